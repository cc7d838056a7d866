from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vibematch import index

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def data() -> ModuleType:
    import search_data

    return search_data


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the script sets them; they are gone afterwards
    import search

    return search


@pytest.fixture
def people(data: ModuleType) -> Any:
    return data.People.make(users=600, dim=32, queries=20, clusters=6, seed=3)


def naive_answer(people: Any, case: Any, query: int, top_k: int) -> list[int]:
    """One user after the other, in double precision."""
    asked = case.vector(query).astype(np.float64)
    mask = None if case.mask is None else case.mask(query)
    scored = []
    for row, vector in enumerate(people.vectors):
        if mask is None or mask[row]:
            scored.append((sum(a * b for a, b in zip(asked, vector.tolist(), strict=True)), row))
    return [row for _, row in sorted(scored, reverse=True)[:top_k]]


def meets(condition: Any, value: Any) -> bool:
    if isinstance(condition, tuple):
        return condition[0] <= value <= condition[1]
    return value in condition if isinstance(condition, frozenset) else value == condition


def all_hold(conditions: dict[str, Any], attributes: dict[str, Any]) -> bool:
    return all(meets(condition, attributes[name]) for name, condition in conditions.items())


def test_the_true_answers_are_those_of_a_naive_loop(data: ModuleType, people: Any) -> None:
    for case in [*data.simple_cases(people), *data.other_cases(people)]:
        answers = data.exact(people, case, 10)
        for query in (0, 7, 19):
            assert answers[query].tolist() == naive_answer(people, case, query, 10)


def test_fewer_answers_are_true_where_fewer_qualify(data: ModuleType, people: Any) -> None:
    nobody_and_three = np.isin(np.arange(len(people)), [5, 9, 300])
    case = data.simple_cases(people)[1]._replace(mask=lambda query: nobody_and_three & (query > 0))
    answers = data.exact(people, case, 10)
    assert len(answers[0]) == 0
    assert sorted(answers[1]) == [5, 9, 300]


def test_the_engine_is_asked_what_the_masks_say(data: ModuleType, people: Any) -> None:
    profiles = list(people.attributes())
    for case in [*data.simple_cases(people)[1:], *data.other_cases(people)]:
        for query in range(len(people.queries)):
            arguments = case.arguments(query)
            if "user_id" in arguments:
                asker = profiles[data.row_of(arguments["user_id"])]
                expected = [
                    profile is not asker
                    and all_hold(asker.preferences, profile.attributes)
                    and all_hold(profile.preferences, asker.attributes)
                    for profile in profiles
                ]
            else:
                where = arguments["where"]
                expected = [all_hold(where, profile.attributes) for profile in profiles]
            assert case.mask(query).tolist() == expected


def test_the_correlated_filters_leave_nobody_of_the_query_s_cluster(
    data: ModuleType, people: Any
) -> None:
    by_name = {case.name: case for case in data.other_cases(people)}
    for query, style in enumerate(people.query_style):
        mask = by_name["other styles only"].mask(query)
        assert not mask[people.style == style].any()
        assert mask[people.style != style].all()
        assert not by_name["other gender only"].mask(query)[people.style == style].any()


def test_members_of_a_cluster_are_as_alike_as_stated(data: ModuleType) -> None:
    people = data.People.make(users=2000, dim=256, queries=1, clusters=2, seed=0)
    cosines = people.vectors @ people.vectors.T
    same = people.style[:, None] == people.style
    assert np.abs(cosines[same].mean() - data.COSINE_IN_CLUSTER) < 0.01
    assert cosines[~same].mean() < 0.2


def test_more_queries_are_asked_of_the_same_people(data: ModuleType, people: Any) -> None:
    others = data.People.make(users=600, dim=32, queries=7, clusters=6, seed=3)
    for name in ("vectors", "style", "age", "wants_from", "wants_to", "lot"):
        assert np.array_equal(getattr(people, name), getattr(others, name))


def test_recall_counts_true_answers_found(data: ModuleType) -> None:
    truth = [np.array([1, 2, 3, 4]), np.array([], int), np.array([7])]
    assert data.recall([np.array([4, 9, 1]), np.array([5]), np.array([7])], truth) == 3 / 5


def assert_it_finds_the_true_answers(data: ModuleType, people: Any, peer: Any) -> None:
    """And nobody who does not qualify; where few do, some libraries do not find them all."""
    for case in [*data.simple_cases(people), *data.other_cases(people)]:
        truth = data.exact(people, case, 5)
        for setting in peer.settings(case)[-1:]:
            answers = [peer.rows(peer.ask(case, query, 5, setting)) for query in range(20)]
            assert (
                case.name not in ("no filter", "10% of all") or data.recall(answers, truth) > 0.97
            )
            assert all(
                case.mask is None or case.mask(query)[answer].all()
                for query, answer in enumerate(answers)
            )


@pytest.mark.parametrize("name", ["Hnswlib", "FaissHnsw", "FaissIvf", "USearch", "Vibematch"])
def test_a_peer_finds_the_true_answers_and_nobody_else(
    data: ModuleType, people: Any, tmp_path: Path, name: str
) -> None:
    import search_build

    peer = getattr(search_build, name)
    for module in peer.needs:
        pytest.importorskip(module)
    assert peer.build(tmp_path / name, people, 1).ready_s > 0
    if name == "Vibematch":
        peer.add_attributes(tmp_path / name, people)
    with closing(peer.open(tmp_path / name, 32)) as index:
        assert_it_finds_the_true_answers(data, people, index)


@pytest.mark.parametrize("name", ["FaissFlat", "Numpy"])
def test_a_scan_finds_the_true_answers_and_nobody_else(
    data: ModuleType, people: Any, name: str
) -> None:
    import search_peers

    peer = getattr(search_peers, name)
    for module in peer.needs:
        pytest.importorskip(module)
    assert_it_finds_the_true_answers(data, people, peer(people.vectors))


def test_ours_is_compared_with_the_quickest_that_finds_as_many(search: ModuleType) -> None:
    from search_curves import Curves, Point

    def point(name: str, setting: int, recall: float, seconds: float) -> Any:
        return Point(name, setting, recall, [seconds, seconds, 3 * seconds], 9.0, 30)

    ours = point("vibematch", 0, 0.98, 0.001)
    theirs = [point("A", 16, 0.97, 1e-4), point("A", 32, 0.98, 0.002), point("A", 64, 1.0, 0.004)]
    too_few = [point("B", 16, 0.5, 1e-4), point("B", 32, 0.7, 1e-4)]
    curves = Curves("1% of all", 1000, 10.0, "graph", [ours, *too_few, *theirs])
    table = search._equal_recall([curves])
    assert [row.label for row in table.rows] == ["vibematch", "A", "B"]
    assert [row.ours for row in table.rows] == [True, False, False]
    assert table.rows[1].cells[0] == "ef 32"
    assert table.rows[1].cells[2].median == pytest.approx(500)
    assert table.rows[1].cells[4].median == pytest.approx(2)
    assert table.rows[2].cells == ["never as many; ef 32", 0.7, None, None, None]
    assert [(bar.value, bar.met) for bar in search._bars(curves)] == [
        (0.98, False), (9.0, False), (pytest.approx(2), False),
    ]  # fmt: skip


def test_everybody_is_asked_every_query_once(
    data: ModuleType, search: ModuleType, tmp_path: Path
) -> None:
    import search_curves
    from search_peers import Numpy

    people = data.People.make(users=300, dim=8, queries=40, clusters=2, seed=3)
    search.Vibematch.build(tmp_path, people, 1)
    with closing(search.Vibematch.open(tmp_path, 8)) as ours:
        case = data.simple_cases(people)[0]
        curves = search_curves.measure(people, case, ours, [Numpy(people.vectors)])
    assert [(point.name, point.queries) for point in curves.points] == [
        ("vibematch", 40), ("numpy", 40),
    ]  # fmt: skip
    assert all(point.recall == 1 and len(point.seconds) == 10 for point in curves.points)
    assert curves.qualifying == 300
    assert curves.plan == "scan: 300 scanned"


def test_a_folder_built_for_others_is_refused(data: ModuleType, tmp_path: Path) -> None:
    import search_build

    (tmp_path / "built.json").write_text(json.dumps({"users": 5, "dim": 32, "taken": {}}))
    with pytest.raises(SystemExit, match="give another --index"):
        search_build.build(tmp_path, None, {"users": 600, "dim": 32})


def test_clusters_without_users_are_refused(
    search: ModuleType, refusal: Callable[..., str]
) -> None:
    said = refusal(search, "--users-per-cluster", "0")
    assert "--users-per-cluster must be at least 1, got 0" in said


def test_the_peers_graphs_are_built_like_ours() -> None:
    import search_peers

    ours = (index._M, index._EF_CONSTRUCTION, index._SEED)
    theirs = (search_peers.M, search_peers.EF_CONSTRUCTION, search_peers.SEED)
    assert theirs == ours


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PgVector", "MilvusLite"])
def test_a_database_finds_the_true_answers_and_nobody_else(tmp_path: Path, name: str) -> None:
    """In a process of its own: PyTorch Metric Learning changes FAISS, and Milvus Lite uses that."""
    import search_databases

    for module in getattr(search_databases, name).needs:
        pytest.importorskip(module)
    subprocess.run([sys.executable, __file__, name, tmp_path / name], check=True)
    assert not list(tmp_path.rglob("postmaster.pid"))


def build_open_and_ask(name: str, folder: Path) -> None:
    import search_data
    import search_databases

    peer = getattr(search_databases, name)
    people = search_data.People.make(users=3000, dim=32, queries=20, clusters=3, seed=3)
    peer.build(folder, people, 2)
    with closing(peer.open(folder, 32)) as database:  # a second time, from the disk
        assert_it_finds_the_true_answers(search_data, people, database)
        assert all(Path(f"/proc/{pid}").exists() for pid in database.pids())


@pytest.mark.slow
def test_the_script_measures_what_it_built_before(tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, BENCHMARKS / "search.py", "--users", "5000", "--dim", "32"]
        folders = ["--index", tmp_path / "kept", "--out", tmp_path / "out", "--json"]
        done = subprocess.run(
            [*command, *folders, *arguments], check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    first = run("--queries", "50", "--only", "curves,filters")
    groups = {row["group"] for row in first["tables"][0]["rows"]}
    assert len(groups) == 9
    assert {plot["kind"] for plot in first["plots"]} == {"line"}
    recalls = [bar for bar in first["bars"] if bar["promise"].startswith("recall")]
    assert len(recalls) == 9
    assert all(bar["met"] for bar in recalls)
    figures = first["figures"]["by_users"]["5000"]
    assert figures.keys() == {
        *("search_ms", "build_s"),
        *("bytes_per_user", "mapped_bytes_per_user", "disk_bytes_per_user"),
    }
    second = run("--queries", "60", "--only", "costs")
    assert [table["title"] for table in second["tables"]] == [
        "Build, memory, disk", "What the graph costs", "What a scan costs",
    ]  # fmt: skip
    assert second["tables"][0] == first["tables"][1]
    del figures["search_ms"]
    assert second["figures"]["by_users"]["5000"] == figures


if __name__ == "__main__":
    sys.path.insert(0, str(BENCHMARKS))
    build_open_and_ask(sys.argv[1], Path(sys.argv[2]))
