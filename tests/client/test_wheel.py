"""The client as an app backend installs it: its wheel, alone in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

CLIENT = Path(__file__).resolve().parents[2] / "client"
SCRIPT = """
import sys
import numpy as np
from vibematch import Manifest, MatchingEngine, Preprocessing

manifest = Manifest(
    embedding_dim=8, preprocessing=Preprocessing(32, 32), prompt="", pooling="mean", backbone="",
    backbone_sha256="", head="", head_sha256="", precision="fp32",
)
with MatchingEngine.open(sys.argv[1], manifest=manifest) as engine:
    for user_id, vector in zip("abc", np.eye(8)):
        engine.add(user_id, vectors=[vector + 0.5])
    print([match.user_id for match in engine.search("b")])
"""


WITHOUT_AN_INDEX = """
import sys
sys.path.insert(0, sys.argv[1])
from vibematch import Encoder, Manifest
try:
    from vibematch import MatchingEngine
except ImportError as error:
    print(error)
"""


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # pip compiles hnswlib
def test_the_wheel_works_alone(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, CLIENT)
    (wheel,) = tmp_path.glob("vibematch-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    installed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "torch" not in installed
    assert "onnxruntime" not in installed
    command = tmp_path / "venv" / "bin" / "vibematch"
    assert "the lab (not installed)" in run(command, "--help")
    assert run(python, "-c", SCRIPT, tmp_path / "index") == "['a', 'c']\n"
    assert "1  a     " in run(command, "match", tmp_path / "index", "b")


@pytest.mark.slow  # pip fetches the build backend
def test_without_a_compiler_there_is_an_encoder_and_no_index(tmp_path: Path) -> None:
    built = shutil.ignore_patterns("build", "*.so", "*.egg-info")
    shutil.copytree(CLIENT, tmp_path / "client", ignore=built)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
    run(*pip, tmp_path / "none", tmp_path / "client", CC="false")
    (wheel,) = (tmp_path / "none").glob("vibematch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    said = run(sys.executable, "-c", WITHOUT_AN_INDEX, tmp_path / "installed")
    assert "installed without a C compiler" in said
