from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

MEASURED = {
    "core_s_per_photo": 2.0,
    "gpu_photos_per_s": 50.0,
    "search_s": 0.0005,
    "search_users": 1_000_000,
    "search_exponent": 0.25,
    "build_s": 600.0,
    "build_exponent": 1.0,
    "bytes_per_user": 1_440.0,
    "process_bytes": 0.0,
    "disk_bytes_per_user": 3_000.0,
    "disk_bytes_per_photo": 1_500.0,
    "sign_ups_per_s": 100.0,
}


@pytest.fixture(scope="module")
def capacity() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import capacity

        yield capacity


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of the four scripts, made up."""
    index = {"search_ms": 0.5, "build_s": 600, "disk_bytes_per_user": 3000}
    index |= {"bytes_per_user": 940, "mapped_bytes_per_user": 500}
    figures: dict[str, Any] = {
        "model": {"seconds_per_photo": {"ours int8": 1.0}},
        "search": {"by_users": {"10000": dict.fromkeys(index, 1), "1000000": index}},
        "growth": {
            "exponents": {"search": 0.25, "build": 1.0},
            "process_bytes": 0.0,
            "disk_bytes_per_photo": 1500.0,
        },
        "end_to_end": {"sign_ups_per_s_store": 100.0},
    }
    stated = {"date": "2026-01-31", "machine": {"cores": 2}, "setting": {"weights": "random, 2B"}}
    for name, some in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**stated, "figures": some}))
    return tmp_path


def planned(capacity: ModuleType, *demand: float, **changed: float) -> Any:
    measured = capacity.Measured(**{**MEASURED, **changed})
    return capacity.needs(capacity.Demand(*demand), measured)


def test_a_million_members_by_hand(capacity: ModuleType) -> None:
    # 2,000 sign-ups x 4 photos in 86,400 s, three times that at the peak: 0.2777… photos/s
    plan = planned(capacity, 1e6, 4, 2_000, 2e6, 3)
    assert plan.encode_cores == pytest.approx(0.277777777 * 2 / 0.7)
    assert plan.encode_gpus == 1
    # 8,000 photos x 30.4375 days / 50 per second
    assert plan.gpu_hours_a_month == pytest.approx(243_500 / 50 / 3600)
    assert plan.gpu_hours_a_month_kept_on == pytest.approx(730.5)
    assert plan.reembed_gpu_days == pytest.approx(80_000 / 86_400)
    assert plan.reembed_core_days == pytest.approx(8e6 / 86_400)
    assert plan.shards == 1
    assert plan.memory_gb == pytest.approx(1.44)
    assert plan.disk_gb == pytest.approx(2 * 7.5)  # 3,000 + 3 x 1,500 bytes each, twice
    # 2 million matches: 69.44 a second at the peak, of 0.5 ms
    assert plan.search_cores == pytest.approx(69.444444 * 0.0005 / 0.7)
    assert plan.rebuild_hours == pytest.approx(1 / 6)


def test_a_hundred_million_members_by_hand(capacity: ModuleType) -> None:
    plan = planned(capacity, 1e8, 4, 200_000, 2e8, 3)
    # 144 GB, twice while compacted, in machines of 57.6 GB
    assert plan.shards == 5
    assert plan.encode_gpus == 1  # 27.8 photos/s of 35
    assert plan.reembed_gpu_days == pytest.approx(92.5926, rel=1e-5)
    # 20 million a shard: 20^0.25 times the milliseconds of a million, five times for each search
    assert plan.search_cores == pytest.approx(6944.4444 * 5 * 0.0005 * 20**0.25 / 0.7)
    assert plan.rebuild_hours == pytest.approx(20 / 6)


def test_memory_has_a_process_for_each_shard(capacity: ModuleType) -> None:
    plan = planned(capacity, 1e8, 1, 1, 1, 1, process_bytes=7.6e9)
    assert plan.shards == 6  # 288 GB in 50 each
    assert plan.memory_gb == pytest.approx(144 + 6 * 7.6)


def test_many_sign_ups_need_more_indexes_than_memory_does(capacity: ModuleType) -> None:
    # 864,000 a day are 10 a second, 30 at the peak; an index takes 0.7 x 10
    plan = planned(capacity, 1e6, 1, 864_000, 1, 3, sign_ups_per_s=10.0)
    assert plan.shards == 5


POSITIVE = st.floats(1e-3, 1e9)
DEMANDS = st.tuples(st.floats(1, 1e10), st.floats(1, 100), POSITIVE, POSITIVE, st.floats(1, 50))
FIGURES = st.fixed_dictionaries(
    {
        **{name: st.floats(1e-4, 1e4) for name in MEASURED},
        "search_users": st.floats(1, 1e8),
        "search_exponent": st.floats(0, 1),
        "build_exponent": st.floats(0, 2),
        "process_bytes": st.floats(0, 1e9),
    }
)
NEVER_FEWER = (
    *("encode_cores", "encode_gpus", "gpu_hours_a_month", "gpu_hours_a_month_kept_on"),
    *("reembed_gpu_days", "reembed_core_days", "shards", "memory_gb", "disk_gb", "search_cores"),
)


@given(demand=DEMANDS, field=st.integers(0, 4), factor=st.floats(1, 100), figures=FIGURES)
def test_more_of_anything_never_needs_less(
    capacity: ModuleType,
    demand: tuple[float, ...],
    field: int,
    factor: float,
    figures: dict[str, float],
) -> None:
    more = [*demand]
    more[field] *= factor
    needed, then = (planned(capacity, *some, **figures) for some in (demand, more))
    for name in NEVER_FEWER:
        assert getattr(then, name) >= getattr(needed, name) * (1 - 1e-9), name


@given(members=st.floats(1, 1e9), factor=st.floats(1, 1000))
def test_the_usual_demand_grows_with_the_members(
    capacity: ModuleType, members: float, factor: float
) -> None:
    few, many = (dataclasses.asdict(capacity.Demand.usual(n)) for n in (members, factor * members))
    assert all(many[name] >= few[name] for name in few)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("field", range(5))
def test_demands_that_make_no_sense_are_refused(
    capacity: ModuleType, field: int, value: float
) -> None:
    demand = [1e6, 4, 2_000, 2e6, 3]
    demand[field] = value
    name = [each.name for each in dataclasses.fields(capacity.Demand)][field]
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value:g}"):
        capacity.Demand(*demand)


def test_a_peak_is_no_lower_than_the_mean(capacity: ModuleType) -> None:
    with pytest.raises(ValueError, match="peak_factor must be at least 1"):
        capacity.Demand(1e6, 4, 2_000, 2e6, 0.5)


def test_figures_are_those_of_the_largest_index(capacity: ModuleType, results: Path) -> None:
    measured, origin = capacity.load(results)
    expected = {**MEASURED, "gpu_photos_per_s": measured.gpu_photos_per_s}
    assert dataclasses.asdict(measured) == expected
    assert 20 < measured.gpu_photos_per_s < 100  # an A10G's limit is 57 by its matrix rate alone
    assert origin["model"] == "2026-01-31, 2 cores, random, 2B"


@pytest.mark.parametrize("name", ["model", "search", "growth", "end_to_end"])
def test_a_missing_result_is_named_with_the_script_that_makes_it(
    capacity: ModuleType, results: Path, name: str
) -> None:
    (results / f"{name}.json").unlink()
    with pytest.raises(SystemExit, match=rf"{name}\.json is missing.*benchmarks/{name}\.py"):
        capacity.load(results)


def test_a_missing_figure_is_named(capacity: ModuleType, results: Path) -> None:
    path = results / "growth.json"
    path.write_text(path.read_text().replace("exponents", "something else"))
    with pytest.raises(SystemExit, match=r"growth\.json lacks the figure exponents / search"):
        capacity.load(results)


def test_the_table_has_a_column_for_each_size(
    capacity: ModuleType,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["capacity", "--results", str(results), "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr("sys.argv", [*arguments, "--photos-each", "6"])
    capacity.main()
    content = json.loads(capsys.readouterr().out)
    assert content["computed"]
    (table,) = content["tables"]
    assert [column["name"] for column in table["columns"]] == [
        "5,000 members",
        "1,000,000 members",
        "100,000,000 members",
    ]
    rows = {row["label"]: row["cells"] for row in table["rows"]}
    assert rows["photos each"] == [6, 6, 6]
    assert rows["sign-ups a day"] == [10, 2_000, 200_000]
    assert rows["indexes, each on a 64 GB machine"] == [1, 1, 5]
    assert "20 times as many" in content["notes"][0]


def test_a_senseless_argument_is_no_traceback(
    capacity: ModuleType, refusal: Callable[..., str]
) -> None:
    said = refusal(capacity, "--members", "-5")
    assert "members must be a positive number, got -5" in said
