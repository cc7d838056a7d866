"""Whatever has become of a snapshot: the index opens, and answers what the store says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.fork_server import DIM, ForkServer
from tests.client.reference import (
    QUICK_DISK,
    TOLERANCE,
    Array,
    People,
    check_answer,
    manifest_of,
    stored,
    unit,
)

from vibematch.engine import MatchingEngine
from vibematch.errors import StoreError
from vibematch.index import HnswIndex
from vibematch.records import Profile, UserRow
from vibematch.snapshot import FILENAME

USERS = 300
QUERIES = unit(np.random.default_rng(9).normal(size=(4, DIM)))

Damage = Callable[[Path], object]
"""What happens to the folder that the snapshot lies in."""


@dataclass
class Site:
    """Snapshots of one index at two times, one of another index; and whoever opens them."""

    server: ForkServer
    people: People
    folder: Path

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def earlier(self) -> Path:
        return self.folder / "earlier"

    @property
    def other(self) -> Path:
        return self.folder / "other" / "1"

    def scores(self, query: Array) -> dict[str, float]:
        return self.people.search(vectors=query[np.newaxis])

    def answers_after(self, damage: Damage, *, read_only: bool) -> list[Any]:
        """What is said by a process that opens a damaged copy."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.index, copy)
        damage(copy / "1")
        said, ended = self.server.run("answer", str(copy), QUERIES.tolist(), read_only)
        assert ended == 0, f"the process died: {ended}"
        assert "error" not in said[0], said
        return said

    def survives(self, damage: Damage, *, read_only: bool = False) -> None:
        """An engine answers as if the snapshot were whole; a writer leaves a whole one."""
        first, *second = self.answers_after(damage, read_only=read_only)
        for query, found in zip(QUERIES, first["found"], strict=True):
            check_answer([(name, score) for name, score in found], self.scores(query), 10)
        if not read_only:
            ((name, score),) = second[0]["found"][0]
            assert name == "latecomer"
            assert abs(score - 1) < TOLERANCE
            left = list((self.folder / "copy" / "1").glob("snapshot*"))
            assert len(left) == 2, left


def write_index(path: Path, seed: int, people: People, *, again: Path | None = None) -> None:
    """Make an index with a snapshot; one of a state before is kept under ``again``."""
    rng = np.random.default_rng(seed)
    with MatchingEngine.open(path, manifest=manifest_of(DIM)) as engine:
        for rows in (rng.normal(size=(USERS, DIM)), rng.normal(size=(USERS // 2, DIM))):
            profiles = [
                Profile(f"user_{number:03d}", [stored(row, "face")], {"age": number % 7})
                for number, row in enumerate(rows)
            ]
            engine.add_many(profiles)
            for profile in profiles:
                people.write(profile)
            engine.save()
            if again is not None and not again.exists():
                shutil.copytree(path / "1", again)
        for number in range(0, USERS, 9):
            engine.remove(f"user_{number:03d}")
            del people[f"user_{number:03d}"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        folder, people = Path(name), People()
        write_index(folder / "index", 1, people, again=folder / "earlier")
        write_index(folder / "other", 2, People())
        (folder / "scratch").mkdir()
        server = ForkServer(folder / "scratch")
        yield Site(server, people, folder)
        server.close()
        assert list((folder / "scratch").iterdir()) == []


def graph_of(folder: Path) -> Path:
    (graph,) = folder.glob(f"{FILENAME}.graph-*")
    return graph


def file_of(folder: Path, which: str) -> Path:
    return graph_of(folder) if which == "graph" else folder / FILENAME


def bring(source: Path, folder: Path) -> None:
    """Put the snapshot of one folder into another, instead of the one that is there."""
    for old in folder.glob(f"{FILENAME}*"):
        old.unlink()
    for new in source.glob(f"{FILENAME}*"):
        shutil.copy(new, folder)


def seal(folder: Path, header: dict[str, Any], arrays: bytes, version: int = 4) -> None:
    """Write a snapshot with a right digest before it."""
    content = json.dumps(header).encode().ljust(553) + b"\n" + arrays
    digest = hashlib.sha256(content).hexdigest()
    (folder / FILENAME).write_bytes(f"vibematch-snapshot {version} {digest}\n".encode() + content)


def unseal(folder: Path) -> tuple[dict[str, Any], bytes]:
    _, header, arrays = (folder / FILENAME).read_bytes().split(b"\n", 2)
    return json.loads(header), arrays


def forge(folder: Path, version: int = 4) -> None:
    """Give each row to another user."""
    header, arrays = unseal(folder)
    start = header["rows"] * (5 * header["dim"] + 4)  # behind vectors, codes and scales
    end = start + 16 * header["rows"]
    ids, revisions = np.frombuffer(arrays[start:end], "<i8").reshape(2, -1)
    swapped = ids[::-1].tobytes() + revisions[::-1].tobytes()
    seal(folder, header, arrays[:start] + swapped + arrays[end:], version)


def nothing(content: object) -> None: ...


def test_a_snapshot_with_the_right_digest_is_what_answers(site: Site) -> None:
    """Otherwise the other tests here would show nothing."""
    said = site.answers_after(forge, read_only=True)
    with pytest.raises(AssertionError):
        check_answer(said[0]["found"][0], site.scores(QUERIES[0]), 10)


@pytest.mark.parametrize("read_only", [True, False])
def test_an_undamaged_snapshot(site: Site, read_only: bool) -> None:
    site.survives(nothing, read_only=read_only)


def test_a_snapshot_of_a_newer_format(site: Site) -> None:
    site.survives(lambda folder: forge(folder, version=5))


@pytest.mark.parametrize(
    "change",
    [
        {"dim": DIM + 1},
        {"rows": 2**40},
        {"rows": -1},
        {"lists": 10**6},
        {"lists": 1},
        {"limits": 10**6},
        {"limits": -1},
        {"limits": 2**40},
        {"lists": 2**62},
        {"sorted_rows": 10**6},
        {"sorted_rows": -1},
        {"code_error": -1.0},
        {"code_error": float("nan")},
        {"code_error": None},
        {"graph_sha256": "0" * 64},
        {"graph_sha256": "../store.sqlite3"},
        {"hnswlib": "0.9.0"},
        {"fingerprint": "0" * 64},
        {"invented_later": True},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense(site: Site, change: dict[str, Any]) -> None:
    def damage(folder: Path) -> None:
        header, arrays = unseal(folder)
        seal(folder, {**header, **change}, arrays)

    site.survives(damage)


@pytest.mark.parametrize("damage", ["nothing", "limits", "centroids", "lists", "short", "familiar"])
def test_lists_that_make_no_sense(tmp_path: Path, damage: str) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(4_000, DIM))).astype(np.float32)
    people = [UserRow(n + 1, f"u{n:04d}", 1, 1, {}, {}) for n in range(4_000)]
    HnswIndex.gather(DIM, [(people, vectors)], 1).save(tmp_path, "f")
    header, arrays = unseal(tmp_path)
    assert (header["lists"], header["limits"]) == (10, 257)
    floats = np.frombuffer(arrays[-4 * (10 * DIM + 257) :], "<f4").copy()
    if damage == "limits":
        floats[-1] = -1
    if damage == "centroids":
        floats[3] = np.nan
    lists = np.frombuffer(arrays[-floats.nbytes - 8_000 : -floats.nbytes], "<u2").copy()
    if damage == "lists":
        lists = lists[::-1]
    arrays = arrays[: -floats.nbytes - 8_000] + lists.tobytes() + floats.tobytes()
    if damage == "familiar":
        header["familiar"] = float("nan")
    if damage == "short":
        header["lists"], arrays = 11, arrays[:-4]
    seal(tmp_path, header, arrays)
    assert (HnswIndex.load(tmp_path, "f", DIM, people) is None) == (damage != "nothing")


def test_a_header_with_something_missing(site: Site) -> None:
    def damage(folder: Path) -> None:
        header, arrays = unseal(folder)
        del header["rows"]
        seal(folder, header, arrays)

    site.survives(damage)


def test_an_earlier_snapshot_of_the_same_index(site: Site) -> None:
    site.survives(lambda folder: bring(site.earlier, folder))


def test_a_snapshot_of_another_index_of_the_same_model(site: Site) -> None:
    site.survives(lambda folder: bring(site.other, folder))


@pytest.mark.parametrize("source", ["earlier", "other"])
@pytest.mark.parametrize("which", ["graph", "snapshot"])
def test_half_of_another_snapshot(site: Site, source: str, which: str) -> None:
    """A graph of another snapshot, under the name of the right one; or the other way round."""
    there = getattr(site, source)
    site.survives(lambda folder: shutil.copy(file_of(there, which), file_of(folder, which)))


@pytest.mark.parametrize("which", [["graph"], ["snapshot"], ["graph", "snapshot"]], ids=str)
@pytest.mark.parametrize("read_only", [True, False])
def test_missing_pieces(site: Site, which: list[str], read_only: bool) -> None:
    def lose(folder: Path) -> None:
        for each in which:
            file_of(folder, each).unlink()

    site.survives(lose, read_only=read_only)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 5_000, b"vibematch-snapshot 4 \n{}"],
    ids=lambda content: f"{len(content)} bytes",
)
@pytest.mark.parametrize("which", ["graph", "snapshot"])
def test_foreign_content(site: Site, which: str, content: bytes) -> None:
    site.survives(lambda folder: file_of(folder, which).write_bytes(content))


def test_what_a_killed_writer_leaves_behind(site: Site) -> None:
    def leave(folder: Path) -> None:
        for name in ("tmp", "graph.tmp", "graph-0123456789abcdef0123456789abcdef"):
            (folder / f"{FILENAME}.{name}").write_bytes(b"half")

    site.survives(leave)


positions = st.floats(0, 1, exclude_max=True)
which_files = st.sampled_from(["graph", "snapshot"])
flips = st.lists(st.tuples(positions, st.integers(1, 255)), min_size=1, max_size=3)
unhurried = settings(deadline=None, suppress_health_check=list(HealthCheck))


def flip(file: Path, where: list[tuple[float, int]]) -> None:
    content = bytearray(file.read_bytes())
    for position, mask in where:
        content[int(position * len(content))] ^= mask
    file.write_bytes(content)


def cut(file: Path, position: float) -> None:
    os.truncate(file, int(position * file.stat().st_size))


@settings(unhurried, max_examples=6)
@given(which=which_files, where=flips, read_only=st.booleans())
def test_flipped_bits(
    site: Site, which: str, where: list[tuple[float, int]], read_only: bool
) -> None:
    site.survives(lambda folder: flip(file_of(folder, which), where), read_only=read_only)


@settings(unhurried, max_examples=6)
@given(which=which_files, position=positions, read_only=st.booleans())
def test_truncated_files(site: Site, which: str, position: float, read_only: bool) -> None:
    site.survives(lambda folder: cut(file_of(folder, which), position), read_only=read_only)


@pytest.mark.slow
@settings(unhurried, max_examples=1_500)
@given(which=which_files, where=flips, position=st.none() | positions, read_only=st.booleans())
def test_thousands_of_damaged_files(
    site: Site,
    which: str,
    where: list[tuple[float, int]],
    position: float | None,
    read_only: bool,
) -> None:
    def damage(folder: Path) -> None:
        flip(file_of(folder, which), where)
        if position is not None:
            cut(file_of(folder, which), position)

    site.survives(damage, read_only=read_only)


# --- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return filler


def test_a_full_disk_loses_nothing(disk: Path) -> None:
    people = People()
    write_index(disk / "index", 1, people)
    snapshot = (disk / "index" / "1" / FILENAME).read_bytes()
    scores = people.search(vectors=QUERIES[:1])
    engine = MatchingEngine.open(disk / "index")
    engine.add("anna", vectors=QUERIES[:1])
    filler = fill(disk)
    for call in (engine.save, lambda: engine.add("ben", vectors=[QUERIES[0]] * 500), engine.close):
        with pytest.raises(StoreError):
            call()
    assert (disk / "index" / "1" / FILENAME).read_bytes() == snapshot
    filler.unlink()
    with MatchingEngine.open(disk / "index") as engine:
        assert "ben" not in engine
        check_answer(engine.search(vector=QUERIES[0], top_k=9), {**scores, "anna": 1.0}, 9)
        engine.save()


def test_an_engine_outlives_a_full_disk(disk: Path) -> None:
    with MatchingEngine.open(disk / "index", manifest=manifest_of(DIM)) as engine:
        engine.add("anna", vectors=QUERIES[:1])
        filler = fill(disk)
        with pytest.raises(StoreError):
            engine.add_many(
                Profile(f"user_{number}", [stored(QUERIES[1])], {"text": "x" * 999})
                for number in range(999)
            )
        assert [name for name, _ in engine.search(vector=QUERIES[0])] == ["anna"]
        filler.unlink()
        engine.add("ben", vectors=QUERIES[:1])
        assert [name for name, _ in engine.search(vector=QUERIES[0])] == ["anna", "ben"]


def test_a_disk_that_can_only_be_read(disk: Path) -> None:
    people = People()
    write_index(disk / "index", 1, people)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError):
        MatchingEngine.open(disk / "index")
    with MatchingEngine.open(disk / "index", read_only=True) as engine:
        found = engine.search(vector=QUERIES[0], top_k=9)
        check_answer(found, people.search(vectors=QUERIES[:1]), 9)
        with pytest.raises(StoreError):
            engine.save()
        with pytest.raises(StoreError):
            engine.add("anna", vectors=QUERIES[:1])
