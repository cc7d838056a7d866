"""The real server with the tiny model, minutes of load: no error, no leak, no collapse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vibematch_export.repository import write_repository

pytestmark = pytest.mark.slow
LOAD = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"


def _load(*options: str | Path) -> list[dict[str, Any]]:
    command = [sys.executable, LOAD, *options, "--json"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    phases: list[dict[str, Any]] = json.loads(ran.stdout)["phases"]
    return phases


def test_minutes_of_work_change_nothing(exported_model: Path, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", exported_model)
    options = ["--clients", "8", "--seconds", "150", "--deadline", "60"]
    (phase,) = _load("--repository", repository, *options)
    print({name: value for name, value in phase.items() if name != "server_mib"})
    assert phase["answered"] > 1000
    assert (phase["rejected"], phase["late"], phase["errors"]) == (0, 0, {})
    assert phase["p99"] / phase["p50"] < 4
    quarters = [np.median(part) for part in np.array_split(phase["server_mib"], 4)]
    print("MiB by quarter", quarters)
    assert quarters[3] < 1.1 * quarters[0]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for the load")
def test_asked_four_times_too_much_it_does_as_much_as_ever(
    exported_model: Path, tmp_path: Path
) -> None:
    repository = write_repository(tmp_path / "repository", exported_model)
    times = ["--times", *["1", "4"] * 5, "0.5"]
    options = [*times, "--seconds", "10", "--deadline", "9", "--wait", "3"]
    phases = _load("--repository", repository, "--apart", *options)
    for phase in phases:
        print({name: value for name, value in phase.items() if name != "server_mib"})
        assert (phase["late"], phase["errors"]) == (0, {})
    closed, usual, overload, last = phases[0], phases[1:-1:2], phases[2:-1:2], phases[-1]
    assert len(usual) == len(overload) == 5
    assert all(phase["rejected"] > phase["answered"] for phase in overload)
    assert _goodput(overload) >= 0.9 * max(closed["goodput"], _goodput(usual))
    assert last["rejected"] == 0
    assert last["answered"] > 0


def _goodput(phases: list[dict[str, Any]]) -> float:
    """The usual one: what else the machine does costs a phase some."""
    return float(np.median([phase["goodput"] for phase in phases]))
