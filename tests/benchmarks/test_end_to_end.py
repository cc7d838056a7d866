from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vibematch.preprocess import Preprocessing, preprocess

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import end_to_end

    return end_to_end


@pytest.fixture
def clock(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose one number is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_time_counts_to_the_innermost_part(script: ModuleType, clock: list[float]) -> None:
    watch = script.Stopwatch()

    def inner() -> str:
        clock[0] += 2
        return "done"

    clock[0] += 1
    with watch.part("outer"):
        clock[0] += 4
        assert watch.timed("inner", inner)() == "done"
        clock[0] += 8
    clock[0] += 16
    assert dict(watch.seconds) == {"outer": 12, "inner": 2}


def test_a_part_that_fails_is_counted_and_ends(script: ModuleType, clock: list[float]) -> None:
    watch = script.Stopwatch()

    def fail() -> None:
        clock[0] += 2
        raise RuntimeError

    with watch.part("outer"):
        with pytest.raises(RuntimeError):
            watch.timed("inner", fail)()
        clock[0] += 1
    assert dict(watch.seconds) == {"outer": 1, "inner": 2}


def test_results_count_while_they_are_drawn(script: ModuleType, clock: list[float]) -> None:
    watch = script.Stopwatch()

    def numbers() -> itertools.count[int]:
        for number in itertools.count():
            clock[0] += 1
            yield number

    drawn = watch.each("drawing", numbers)()
    for _ in range(3):
        next(drawn)
        clock[0] += 10
    assert dict(watch.seconds) == {"drawing": 3}


def test_unseen_photos_are_other_files_with_the_same_pixels(script: ModuleType) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(noise).save(jpeg, "JPEG")
    some = [jpeg.getvalue()]
    files = list(itertools.islice(script.unseen(some), 5))
    assert len({*files, *some}) == 6
    canvas = Preprocessing(64, 64)
    assert all((preprocess(file, canvas) == preprocess(some[0], canvas)).all() for file in files)


def test_parts_are_means_of_the_middle_half(script: ModuleType) -> None:
    requests = [script.Request(float(s), {script.MODEL: s - 1.0, script.OTHER: 1.0})
                for s in (1, 2, 3, 4, 1000)]  # fmt: skip
    parts = script.middle_half(requests)
    assert parts[script.MODEL] == 2
    assert parts[script.OTHER] == 1
    assert sum(parts.values()) == 3


def test_a_closed_loop_has_all_clients_ask_at_once_and_counts_what_it_waits_for(
    script: ModuleType,
) -> None:
    together = threading.Barrier(3)
    loop = script.closed_loop(lambda: together.wait(timeout=10), clients=3, seconds=0)
    assert len(loop.seconds) == 3
    assert loop.rate > 0


@pytest.mark.slow
def test_the_parts_of_a_request_add_up_to_the_whole(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "end_to_end.py", "--json", "--users=2500"]
    command += ["--turns=4", "--seconds=0.3", f"--out={tmp_path}", f"--work={tmp_path}/models"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    content = json.loads(done.stdout)
    assert content == json.loads((tmp_path / "end_to_end.json").read_text())
    figures = content["figures"]
    for name, parts in figures["parts_s"].items():
        whole = sorted(figures["seconds"][name])
        assert whole[0] <= sum(parts.values()) <= whole[-1]
        assert sum(parts.values()) > 0.5 * parts["model"] > 0
    sign_up = figures["parts_s"]["sign-up → match"]
    assert min(sign_up[part] for part in ("writing, synced", "index update", "search")) > 0
    assert figures["parts_s"]["downscaled photo → match"]["downscaling"] > 0
    assert figures["parts_s"]["photo → match"]["downscaling"] == 0
    assert figures["sign_ups_per_s_store"] > figures["sign_ups_per_s_served"] > 0
