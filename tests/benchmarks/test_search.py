from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vibematch import index

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import search_data

    return search_data


@pytest.fixture
def people(data: ModuleType) -> Any:
    return data.People.make(users=600, dim=32, queries=20, clusters=6, seed=3)


def run(*arguments: str | Path) -> str:
    command = [sys.executable, BENCHMARKS / "search.py", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
    for case in data.cases(people):
        answers = data.exact(people, case, 10)
        for query in (0, 7, 19):
            assert answers[query].tolist() == naive_answer(people, case, query, 10)


def test_fewer_answers_are_true_where_fewer_qualify(data: ModuleType, people: Any) -> None:
    nobody_and_three = np.isin(np.arange(len(people)), [5, 9, 300])
    case = data.cases(people)[1]._replace(mask=lambda query: nobody_and_three & (query > 0))
    answers = data.exact(people, case, 10)
    assert len(answers[0]) == 0
    assert sorted(answers[1]) == [5, 9, 300]


def test_the_engine_is_asked_what_the_masks_say(data: ModuleType, people: Any) -> None:
    profiles = list(people.attributes())
    for case in data.cases(people)[1:]:
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
    by_name = {case.name: case for case in data.cases(people)}
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


def test_the_report_is_a_table_and_json(tmp_path: Path) -> None:
    size = ["--users", "3000", "--dim", "32", "--queries", "20"]
    file = tmp_path / "report.json"
    printed = run(*size, "--only", "recall,latency", "--json", file)
    report = json.loads(file.read_text())
    assert report["cases"][0]["case"] == "no filter"
    for case in report["cases"]:
        assert case["case"] in printed
        assert case["contenders"]["vibematch"]["recall"] >= 0.99
        assert all(figures["median_ms"] > 0 for figures in case["contenders"].values())
    assert report["cases"][3]["contenders"]["numpy scan, some"]["recall"] == 1
    assert "recall@10 ≥ 0.99, no filter" in {bar["bar"] for bar in report["bars"]}


@pytest.mark.slow
def test_memory_and_costs_are_measured_on_what_was_built_before(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    size = ["--users", "3000", "--dim", "32", "--index", tmp_path / "kept"]
    run(*size, "--queries", "20", "--only", "recall", "--json", file)
    built = json.loads(file.read_text())["data"]["seconds"]
    printed = run(*size, "--queries", "40", "--only", "recall,memory,costs", "--json", file)
    report = json.loads(file.read_text())
    assert report["data"]["seconds"] == built
    assert report["cases"][0]["contenders"]["vibematch"]["recall"] >= 0.99
    assert "memory ≤ 1500 B a user" in printed
    assert report["memory"]["vibematch"]["anonymous"] > 0
    assert report["costs"].keys() == {"graph", "scan"}


def test_a_folder_built_for_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "built.json").write_text(
        json.dumps({"users": 5, "dim": 32, "clusters": 2, "seed": 0, "seconds": {}})
    )
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run("--users", "3000", "--dim", "32", "--index", tmp_path)
    assert "give another --index" in failed.value.stderr


@pytest.mark.slow
def test_other_libraries_stand_beside_ours(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    run("--users", "3000", "--queries", "50", "--only", "peers", "--json", tmp_path / "report.json")
    peers = json.loads((tmp_path / "report.json").read_text())["peers"]
    assert {name.split(",")[0] for name in peers} == {
        "vibematch", "hnswlib", "FAISS HNSW", "USearch", "FAISS flat", "numpy",
    }  # fmt: skip
    assert all(figures["recall"] >= 0.99 for figures in peers.values())
    assert peers["FAISS flat"]["recall"] == peers["numpy"]["recall"] == 1


def test_the_peers_graphs_are_built_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import search_peers

    ours = (index._M, index._EF_CONSTRUCTION, index._SEED)
    theirs = (search_peers.M, search_peers.EF_CONSTRUCTION, search_peers.SEED)
    assert theirs == ours
