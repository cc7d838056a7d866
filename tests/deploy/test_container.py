"""What the Dockerfile's cpu image is, without Docker: its install script, and its restrictions.

Linux namespaces give the test what a container gets: the image's installation and nothing else, a
read-only root, a read-only repository, tmpfs for /tmp and /dev/shm, a user without a name or any
capability, and a network of its own.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tests.deploy.conftest import ROOT, find_tool
from tests.serving.conftest import CANVAS

from vibematch.preprocess import preprocess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="making namespaces needs root"),
]

PLACES = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /srv
mkdir -p /srv/environment /srv/repository /srv/exchange
mount --bind "$WORK/environment" /srv/environment
mount --bind "$REPOSITORY" /srv/repository
mount --bind "$WORK/exchange" /srv/exchange
"""
RESTRICTIONS = """
ip link set lo up
mount -t tmpfs -o size=64m,mode=1777 tmpfs /tmp
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mount -o remount,ro,bind /srv/repository
mount -o remount,ro,bind /srv/environment
mount -o remount,ro,bind /
cd /
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \\
    --inh-caps=-all sh -eu -c "$INSIDE"
"""
ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - of the container
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "VIBEMATCH_REPOSITORY": "/srv/repository",
    "VIBEMATCH_PROFILE": "cpu",
}
READY = (
    "import urllib.request as web; "
    "web.urlopen('http://127.0.0.1:8000/v2/models/style_encoder/ready', timeout=4)"
)
SERVE_AND_ENCODE = f"""
export PATH=/srv/environment/bin:$PATH
for place in / /srv/environment /srv/repository; do
    if touch "$place/x" 2>/dev/null; then echo "$place can be written" >&2; exit 1; fi
done
vibematch-server > /srv/exchange/server.txt 2>&1 &
server=$!
for second in $(seq 60); do
    sleep 1
    python3 -c "{READY}" 2>/dev/null && break
    kill -0 $server || exit 1
done
vibematch encode /srv/exchange/photo.jpg --url 127.0.0.1:8001 --out /srv/exchange/vectors.npy
ls -A /dev/shm > /srv/exchange/shared-memory-before.txt
kill -TERM $server
wait $server
ls -A /dev/shm /tmp > /srv/exchange/left-behind.txt
"""
Isolated = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def python() -> Path:
    """A Python that every user may run, as the image's is."""
    for candidate in (Path(sys.base_prefix, "bin/python3.11"), Path("/usr/bin/python3.11")):
        if candidate.exists() and all(
            folder.stat().st_mode & 0o001 for folder in candidate.resolve().parents
        ):
            return candidate
    pytest.fail("no Python 3.11 here that other users may run: apt install python3.11 python3-pip")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build context: what .dockerignore lets through."""
    context = tmp_path_factory.mktemp("context")
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule.startswith("!"):
            source, target = ROOT / rule[1:], context / rule[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    return context


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, photos: list[bytes]) -> Path:
    work = tmp_path_factory.mktemp("container")
    (work / "environment").mkdir()
    (work / "exchange").mkdir()
    (work / "exchange").chmod(0o777)
    (work / "exchange/photo.jpg").write_bytes(photos[0])
    return work


@pytest.fixture(scope="module")
def isolated(work: Path, repository: Path, python: Path) -> Isolated:
    def run(script: str, *namespaces: str, inside: str = "") -> subprocess.CompletedProcess[str]:
        for tool in ("ip", "setpriv"):
            find_tool(tool)
        return subprocess.run(
            [find_tool("unshare"), "--mount", *namespaces, "sh", "-c", PLACES + script],
            env={
                **os.environ,
                **ENVIRONMENT,
                "PYTHON": str(python),
                "WORK": str(work),
                "REPOSITORY": str(repository),
                "INSIDE": inside,
            },
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="module")
def installed(context: Path, work: Path, isolated: Isolated) -> Path:
    """The environment, installed by the very script that the Dockerfile runs."""
    done = isolated(f"sh {context}/deploy/install.sh /srv/environment cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "environment"


@pytest.fixture(scope="module")
def served(installed: Path, isolated: Isolated, work: Path) -> Path:
    done = isolated(
        RESTRICTIONS, "--pid", "--net", "--fork", "--kill-child", inside=SERVE_AND_ENCODE
    )
    log = work / "exchange/server.txt"
    said = log.read_text()[-3000:] if log.exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + said
    return work / "exchange"


def test_the_environment_is_small_and_has_no_tools_to_build_or_install_with(
    installed: Path,
) -> None:
    site = installed / "lib/python3.11/site-packages"
    names = {entry.name for entry in site.iterdir()}
    assert not names & {"pip", "setuptools", "wheel", "torch", "transformers", "hnswlib", "nvidia"}
    size = sum(file.stat().st_size for file in installed.rglob("*") if not file.is_symlink())
    assert size < 450e6


def test_the_locked_up_server_answers_with_the_models_own_vector(
    served: Path, exported: Path
) -> None:
    photo = (served / "photo.jpg").read_bytes()
    assert Image.open(io.BytesIO(photo)).size != (CANVAS.width, CANVAS.height)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    (expected,) = session.run(None, {"pixels": preprocess(photo, CANVAS)[None]})
    np.testing.assert_allclose(np.load(served / "vectors.npy"), expected, atol=1e-6)


def test_tritons_log_is_on_standard_output(served: Path) -> None:
    said = (served / "server.txt").read_text()
    assert "Started GRPCInferenceService at 0.0.0.0:8001" in said
    assert "Started Metrics Service at 0.0.0.0:8002" in said


def test_it_stops_in_order_and_leaves_nothing_behind(served: Path) -> None:
    assert (served / "shared-memory-before.txt").read_text().strip()
    left = (served / "left-behind.txt").read_text().split()
    assert left == ["/dev/shm:", "/tmp:"]  # noqa: S108


def test_an_unknown_kind_is_refused(context: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", context / "deploy/install.sh", tmp_path / "prefix", "tpu"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no such kind: tpu" in done.stderr
    assert not (tmp_path / "prefix").exists()
