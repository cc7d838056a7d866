"""What was acknowledged survives a killed process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vibematch.engine import MatchingEngine
from vibematch.manifest import Manifest

# Adds users and says so, saves snapshots and removes users in between, until it is killed.
WRITER = """
import sys
import numpy as np
from vibematch.engine import MatchingEngine

rng = np.random.default_rng(int(sys.argv[2]))
engine = MatchingEngine.open(sys.argv[1])
for number in range(100_000):
    user_id = f"user_{sys.argv[2]}_{number}"
    engine.add(user_id, vectors=rng.normal(size=(2, 8)), attributes={"number": number})
    print("added", user_id, flush=True)
    if number % 7 == 3:
        engine.remove(user_id)
        print("removed", user_id, flush=True)
    if number % 20 == 0:
        engine.save()
"""


def test_acknowledged_writes_survive_kill_9(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "index"
    MatchingEngine.open(path, manifest=manifest).close()
    alive: set[str] = set()
    for round_number in range(4):
        acknowledged, unclear = _write_until_killed(path, round_number)
        for what, user_id in acknowledged:
            (alive.add if what == "added" else alive.discard)(user_id)
        assert len(acknowledged) > 5
        with MatchingEngine.open(path) as engine:
            there = {match.user_id for match in engine.search(vector=[1.0] * 8, top_k=100_000)}
            assert there - unclear == alive - unclear
            assert engine.info().photos == 2 * len(there)
            alive = there
            for user_id in list(alive)[:20]:
                assert engine.attributes(user_id)["number"] == int(user_id.rpartition("_")[2])


def _write_until_killed(path: Path, round_number: int) -> tuple[list[list[str]], set[str]]:
    """Acknowledged writes, and the user whose write may or may not have happened."""
    command = [sys.executable, "-c", WRITER, str(path), str(round_number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.25 + 0.037 * round_number)
        process.kill()
        lines = [first, *process.stdout.readlines()]
    acknowledged = [line.split() for line in lines if line.endswith("\n")]
    last = int(acknowledged[-1][1].rpartition("_")[2])
    return acknowledged, {f"user_{round_number}_{number}" for number in (last, last + 1)}


@pytest.mark.parametrize("kept", [0, 100, 4096])
def test_a_torn_write_ahead_log_loses_only_what_was_torn(
    tmp_path: Path, manifest: Manifest, kept: int
) -> None:
    path = tmp_path / "index"
    with MatchingEngine.open(path, manifest=manifest) as engine:
        engine.add("first", vectors=[[1.0] * 8])
    engine = MatchingEngine.open(path)
    engine.add("second", vectors=[[1.0] * 8])
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("store.sqlite3", "store.sqlite3-wal"):
        (copy / name).write_bytes((path / name).read_bytes())
    engine.close()
    log = copy / "store.sqlite3-wal"
    log.write_bytes(log.read_bytes()[:kept])
    with MatchingEngine.open(copy) as torn:
        assert "first" in torn
        assert "second" not in torn
