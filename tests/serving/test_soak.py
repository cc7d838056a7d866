"""The real server with the tiny model, minutes of load: no error, no leak, no collapse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vibematch.encoder import Encoder
from vibematch_export.repository import write_repository
from vibematch_export.triton import TritonServer

pytestmark = pytest.mark.slow
LOAD = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"


@pytest.fixture(scope="module")
def soaked(
    exported_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server of its own, with the trained model."""
    repository = write_repository(tmp_path_factory.mktemp("soak") / "repository", exported_model)
    with TritonServer(repository) as server:
        yield server


def _load(server: TritonServer, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(LOAD), "--grpc", server.grpc_url, "--http", server.http_url]
    ran = subprocess.run([*command, *options, "--json"], check=True, capture_output=True, text=True)
    phases: list[dict[str, Any]] = json.loads(ran.stdout)["phases"]
    return phases


def test_minutes_of_work_change_nothing(soaked: TritonServer) -> None:
    (phase,) = _load(soaked, "--clients", "8", "--seconds", "150", "--deadline", "60")
    print({name: value for name, value in phase.items() if name != "server_mib"})
    assert phase["answered"] > 1000
    assert (phase["rejected"], phase["late"], phase["errors"]) == (0, 0, {})
    assert phase["p99"] / phase["p50"] < 4
    quarters = [np.median(part) for part in np.array_split(phase["server_mib"], 4)]
    print("MiB by quarter", quarters)
    assert quarters[3] < 1.1 * quarters[0]


@pytest.mark.xfail(
    reason="73 to 95 % on two cores that also make the load: refusing a photo costs 1 to 2 ms",
    strict=False,
)
def test_asked_four_times_too_much_it_does_as_much_as_ever(soaked: TritonServer) -> None:
    options = ["--times", "1", "4", "--seconds", "20", "--deadline", "9", "--wait", "3"]
    phases = _load(soaked, *options)
    for phase in phases:
        print({name: value for name, value in phase.items() if name != "server_mib"})
        assert (phase["late"], phase["errors"]) == (0, {})
    overload = phases[-1]
    assert overload["rejected"] > overload["answered"]
    assert overload["goodput"] >= 0.9 * max(phase["goodput"] for phase in phases)
    with Encoder(soaked.grpc_url, timeout_s=5) as encoder:
        assert encoder.encode([_grey_photo()]).shape[0] == 1


def _grey_photo() -> Any:
    from PIL import Image

    return Image.new("RGB", (320, 240), "grey")
