"""The client as an app backend installs it: its wheel, alone in an empty environment."""

from __future__ import annotations

import subprocess
import sys
import venv
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


def run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
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
