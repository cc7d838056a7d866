from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def power_law(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import power_law

    return power_law


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import growth

    return growth


def test_an_exact_power_law_is_found(power_law: ModuleType) -> None:
    sizes = [1_000, 3_000, 10_000, 100_000]
    law = power_law.PowerLaw.fit(sizes, [0.2 * size**0.7 for size in sizes])
    assert law.exponent == pytest.approx(0.7)
    assert (law.low, law.high) == pytest.approx((0.7, 0.7))


def test_the_interval_holds_the_true_exponent_as_often_as_it_says(power_law: ModuleType) -> None:
    rng, sizes = np.random.default_rng(0), np.array([1, 2, 4, 8, 16])
    held = 0
    for _ in range(300):
        costs = 3 * sizes**0.5 * np.exp(rng.normal(0, 0.1, len(sizes)))
        law = power_law.PowerLaw.fit(sizes.tolist(), costs.tolist())
        held += law.low <= 0.5 <= law.high
    assert 0.91 <= held / 300 <= 0.99


@pytest.mark.parametrize(
    ("sizes", "costs", "message"),
    [
        ([1, 2], [1, 2], "three sizes"),
        ([1, 2, 2], [1, 2, 2], "three sizes"),
        ([1, 2, 3], [0, 1, 2], "must be positive"),
        ([-1, 2, 3], [1, 1, 2], "must be positive"),
    ],
)
def test_curves_that_cannot_be_fitted_are_refused(
    power_law: ModuleType, sizes: list[float], costs: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        power_law.PowerLaw.fit(sizes, costs)


@pytest.mark.parametrize(
    ("exponent", "margin", "verdict"),
    [
        (0.05, 0.02, "it hardly grows"),
        (0.5, 0.1, "it grows slower than in proportion"),
        (1.02, 0.1, "it grows in proportion"),
        (1.5, 0.1, "it grows faster than in proportion"),
        (-0.5, 0.1, "it falls"),
        (1.0, 0.4, "the points scatter too much to say more"),
    ],
)
def test_sentences_say_what_an_exponent_means(
    power_law: ModuleType, exponent: float, margin: float, verdict: str
) -> None:
    law = power_law.PowerLaw(exponent, exponent - margin, exponent + margin)
    sentence = law.sentence("users", "time of a search")
    assert sentence.startswith(f"Time of a search ~ users^{exponent:.2f} (")
    assert sentence.endswith(f"{verdict}.")


def curve(growth: ModuleType, exponent: float, scale: float = 1.0) -> Any:
    points = {n: growth.Spread.of([scale * n**exponent]) for n in (10, 100, 1000)}
    return growth.Curve("users", "cost", "s", points)


def test_a_cost_is_carried_on_from_the_largest_size(growth: ModuleType) -> None:
    some = curve(growth, 0.5)
    assert some.carried_on(4000, 0.5) == pytest.approx(math.sqrt(4000))
    assert some.carried_on(4000, 1) == pytest.approx(4 * math.sqrt(1000))
    assert some.size_at(some.carried_on(1e8, 0.5), 0.5) == pytest.approx(1e8)
    assert some.size_at(1e9, 0) == math.inf
    assert some.size_at(1e9, 0.001) == math.inf


def test_what_breaks_first_is_what_reaches_its_limit_with_the_fewest_members(
    growth: ModuleType,
) -> None:
    curves = {
        "photos": curve(growth, 1, 1.0),  # 7 days: 604,800 members
        "build": curve(growth, 1.2, 1e-4),
        "memory": curve(growth, 0.9, 1.5e-3),  # carried on in proportion: each member is memory
        "disk": curve(growth, 1, 1e-9),
        "search": curve(growth, 0.1, 1e-9),
    }
    laws = {name: one.law for name, one in curves.items()}
    reached = growth._reached(curves, laws)
    members = {limit.curve: number for limit, number in reached}
    assert list(members.values()) == sorted(members.values())
    assert reached[0][0].curve == "photos"
    assert members["photos"] == pytest.approx(604_800)
    assert members["build"] == pytest.approx((28_800 / 1e-4) ** (1 / 1.2))
    assert members["memory"] == pytest.approx(1000 * 64_000 / (1.5e-3 * 1000**0.9))
    assert "embedding a photo of each anew takes a week, at about 600,000 members" in (
        growth._breaks_first(reached)
    )


@pytest.mark.slow
def test_an_index_is_built_and_opened_in_processes_of_their_own(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        command = [sys.executable, BENCHMARKS / "growth_index.py", *arguments]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    folder = str(tmp_path / "index")
    built = run("build", folder, "--users=3000", "--photos-each=2")
    assert built["disk_bytes"] > 3000 * 2 * 256 * 4
    opened = run("open", folder)
    assert opened["index_bytes"] > 3000 * 256 * 4
    assert opened["process_bytes"] > 0
