"""The step before a TensorRT server, with tensorrt-rtx where the GPU machine has tensorrt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.conftest import DEPLOY

from vibematch.encoder import Encoder
from vibematch.manifest import Manifest
from vibematch_export.tensorrt import Target, default_library
from vibematch_export.triton import TritonServer

pytestmark = pytest.mark.slow


def make_plan(repository: Path, cache: Path, served: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DEPLOY / "make_plan.py", repository, cache, served],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Cache and served repository, empty."""
    root = tmp_path_factory.mktemp("plan")
    cache, served = root / "cache", root / "served"
    cache.mkdir()
    served.mkdir()
    return cache, served


@pytest.fixture(scope="module")
def first_start(repository: Path, folders: tuple[Path, Path]) -> str:
    done = make_plan(repository, *folders)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_start_makes_a_plan_for_this_machine(
    first_start: str, exported: Path, folders: tuple[Path, Path]
) -> None:
    cache, served = folders
    assert "building" in first_start
    plan = (served / "style_embed/1/model.plan").resolve()
    assert plan.parent == cache / Manifest.load(exported).fingerprint
    assert Target.of_plan(plan) == Target.here(default_library())


def test_the_next_start_takes_the_plan_that_is_there(
    first_start: str, repository: Path, folders: tuple[Path, Path]
) -> None:
    plan = (folders[1] / "style_embed/1/model.plan").resolve()
    before = plan.stat().st_mtime_ns
    done = make_plan(repository, *folders)
    assert done.returncode == 0 and "up to date" in done.stdout
    assert (folders[1] / "style_embed/1/model.plan").resolve() == plan
    assert plan.stat().st_mtime_ns == before


def test_a_graph_that_is_newer_than_its_plan_is_built_again(
    first_start: str, repository: Path, folders: tuple[Path, Path]
) -> None:
    plan = (folders[1] / "style_embed/1/model.plan").resolve()
    os.utime(plan, (0, 0))
    assert "building" in make_plan(repository, *folders).stdout
    assert plan.stat().st_mtime > 0


def test_triton_serves_what_was_laid_out(
    first_start: str,
    repository: Path,
    server: TritonServer,
    folders: tuple[Path, Path],
    photos: list[bytes],
) -> None:
    """Every file is a link there; without a GPU it is the cpu profile that shows it works."""
    with Encoder(server.grpc_url) as encoder:
        expected = encoder.encode(photos[:2])
    with TritonServer(folders[1]) as linked, Encoder(linked.grpc_url) as encoder:
        np.testing.assert_array_equal(encoder.encode(photos[:2]), expected)


def test_the_repository_itself_is_not_touched(first_start: str, repository: Path) -> None:
    assert not list(repository.rglob("*.plan"))


def test_the_server_is_kept_from_starting_if_no_plan_can_be_made(
    repository: Path, tmp_path: Path
) -> None:
    cache, served = tmp_path / "cache", tmp_path / "served"
    cache.mkdir()
    served.mkdir()
    graph = tmp_path / "broken/style_embed/1/model.onnx"
    for name in ("style_embed", "style_preprocess"):
        (tmp_path / "broken" / name / "1").mkdir(parents=True)
    graph.write_bytes(b"no graph")
    manifest = "style_preprocess/1/manifest.json"
    (tmp_path / "broken" / manifest).write_bytes((repository / manifest).read_bytes())
    done = make_plan(tmp_path / "broken", cache, served)
    assert done.returncode == 1
    assert done.stderr.startswith("vibematch-plan: error: TensorRT cannot read")
    assert not list(served.iterdir()) and not list(cache.rglob("*.plan"))
