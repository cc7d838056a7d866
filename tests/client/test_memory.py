"""What an index that was opened holds of memory that it does not use."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.client.conftest import unit

from vibematch.engine import MatchingEngine
from vibematch.manifest import Manifest
from vibematch.records import Profile, StoredPhoto

USERS, DIM = 8_000, 32
LEFT_KIB = 150
OPEN = """
import ctypes, sys
from vibematch.engine import MatchingEngine

def own_kib():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["RssAnon"].split()[0])

with MatchingEngine.open(sys.argv[1], read_only=True) as engine:
    assert len(engine.search(vector=[1.0] * int(sys.argv[2]))) == 5
    before = own_kib()
    ctypes.CDLL(None).malloc_trim(0)
    print(before - own_kib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's malloc")
def test_what_opening_took_for_a_moment_is_given_back(tmp_path: Path, manifest: Manifest) -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((USERS, DIM)))
    profiles = (
        Profile(f"user-{row}", [StoredPhoto(f"{row:064x}", vector)])
        for row, vector in enumerate(vectors)
    )
    model = replace(manifest, embedding_dim=DIM)
    with MatchingEngine.open(tmp_path / "index", manifest=model) as engine:
        engine.add_many(profiles)
    command = [sys.executable, "-c", OPEN, tmp_path / "index", str(DIM)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(ran.stdout) < LEFT_KIB
