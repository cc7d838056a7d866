from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the module sets it: this puts it back
    import guard

    return guard


def test_guard_json_has_every_path_with_ratio_date_and_machine(guard: ModuleType) -> None:
    kept = json.loads(guard.KEPT.read_text())
    assert set(kept) == set(guard.REFERENCES)
    for path in kept.values():
        median, low, high = path["ratio"]
        assert 0 < low <= median <= high
        assert path["date"] and path["machine"]


@pytest.mark.parametrize(
    ("low", "high", "share"), [(0.99, 1.01, 0.15), (0.9, 1.05, 0.15), (0.9, 1.2, 0.3)]
)
def test_the_tolerance_is_the_kept_spread_but_not_below_15_percent(
    guard: ModuleType, low: float, high: float, share: float
) -> None:
    for scale in (0.01, 1, 50):
        kept = guard.Spread(scale, scale * low, scale * high)
        assert guard.tolerance(kept) == pytest.approx(share)


@pytest.mark.parametrize(
    ("median", "slower"), [(2.4, True), (2.31, True), (2.29, False), (2.0, False), (1.0, False)]
)
def test_a_path_is_slower_beyond_the_tolerance(
    guard: ModuleType, median: float, slower: bool
) -> None:
    kept = {"search": {"ratio": [2.0, 1.95, 2.05]}}
    found = guard.regressions(kept, {"search": guard.Spread(median, 1, 9)})
    assert bool(found) == slower


def test_the_sentence_names_the_path_and_both_ratios(guard: ModuleType) -> None:
    kept = {"search": {"ratio": [2.0, 1.9, 2.1]}, "add": {"ratio": [1.0, 0.9, 1.1]}}
    ratios = {"search": guard.Spread(3.0, 2.9, 3.1), "add": guard.Spread(1.1, 1.0, 1.2)}
    (sentence,) = guard.regressions(kept, ratios)
    assert sentence == (
        "search: slower, ratio 3 (2.9 to 3.1), kept 2 (1.9 to 2.1) with a tolerance of 15%"
    )


def test_a_path_that_nothing_is_kept_of_does_not_pass(guard: ModuleType) -> None:
    (sentence,) = guard.regressions({}, {"search": guard.Spread(1, 1, 1)})
    assert sentence == "search: guard.json does not have it; run with --keep"


@pytest.mark.slow
def test_every_path_is_measured_beside_its_reference(guard: ModuleType, tmp_path: Path) -> None:
    arguments = ["--turns", "2", "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--json"]
    command = [sys.executable, str(BENCHMARKS / "guard.py"), *arguments]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(ran.stdout)
    (table,) = result["tables"]
    assert {row["label"] for row in table["rows"]} == set(guard.REFERENCES)
    for row in table["rows"]:
        ours, reference, ratio, kept, at_most, against = row["cells"]
        assert ours[0] > 0 and reference[0] > 0 and ratio[0] > 0 and at_most > kept[0]
        assert against == guard.REFERENCES[row["label"]]
    assert len(result["bars"]) == len(guard.REFERENCES)


def test_the_guard_knows_one_backbone(guard: ModuleType, refusal: Callable[..., str]) -> None:
    assert "leave --backbone out" in refusal(guard, "--backbone", "2b")
