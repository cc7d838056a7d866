"""Builds the indexes that ``search.py`` asks, and finds what they take: time, memory, disk."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import harness
from harness import CORES
from search_data import People, Vector, unfiltered
from search_databases import MilvusLite, PgVector, Vibematch
from search_peers import Built, FaissHnsw, FaissIvf, Hnswlib, Index, Peer, USearch

PEERS: Final[tuple[type[Index], ...]] = (
    Hnswlib,
    FaissHnsw,
    FaissIvf,
    USearch,
    PgVector,
    MilvusLite,
)
EVERYBODY: Final[tuple[type[Index], ...]] = (Vibematch, *PEERS)
OURS_BARE: Final = f"{Vibematch.name}, no attributes"
_NOTE: Final = "built.json"


class Taken(NamedTuple):
    """What an index took.

    Attributes:
        ready_s: from vectors to an index that answers, on all cores.
        index_s: of these, the index alone, where it is made by itself.
        open_s: from opening it to the first answer.
        memory_bytes: of the processes that it runs in, without files, after the queries; less
            what its libraries take.
        disk_bytes: its files.
    """

    ready_s: float
    index_s: float | None
    open_s: float
    memory_bytes: int
    disk_bytes: int


def installed(peer: type[Peer]) -> bool:
    """Whether its libraries are here."""
    return all(importlib.util.find_spec(module) for module in peer.needs)


def build(
    folder: Path, people: People, size: dict[str, int]
) -> tuple[dict[str, Taken], dict[str, str]]:
    """Build what is not there yet, one after the other; ours also if it was another commit's.

    Args:
        folder: keeps the indexes, ``FOLDER/NAME``, and what they took.
        people: who is put in.
        size: what ``people`` were made from.

    Returns:
        What each took when it was built, ours first; and why others could not be built.

    Raises:
        SystemExit: the folder holds indexes of other people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _NOTE
    kept: dict[str, Any] = {**size, "taken": {}}
    if note.exists():
        kept = json.loads(note.read_text())
    if (held := {field: kept.get(field) for field in size}) != size:
        raise SystemExit(f"{folder} was built for {held}: give another --index")
    taken: dict[str, Sequence[Any]] = kept["taken"]
    failed: dict[str, str] = {}
    if kept.get("commit") != (commit := harness.commit()):
        kept["commit"] = commit
        for name in (OURS_BARE, Vibematch.name):
            taken.pop(name, None)
    for peer in filter(installed, EVERYBODY):
        if peer.name not in taken and len(people) <= peer.most_users:
            print(f"building {peer.name} of {len(people):,} users", file=sys.stderr, flush=True)
            try:
                taken |= _built(peer, folder, people)
            except Exception as error:
                if peer is Vibematch:
                    raise
                failed[peer.name] = f"{type(error).__name__}: {error}"
                _remove(folder / peer.name)
            note.write_text(json.dumps(kept, indent=1) + "\n")
    ours_first = sorted(taken, key=lambda name: not name.startswith(Vibematch.name))
    return {name: Taken(*taken[name]) for name in ours_first}, failed


def _built(peer: type[Index], folder: Path, people: People) -> dict[str, Taken]:
    """What it takes; ours without attributes, too."""
    _remove(folder / peer.name)
    built = peer.build(folder / peer.name, people, CORES)
    taken = {}
    if peer is Vibematch:
        taken[OURS_BARE] = _footprint(peer, folder, people.queries, built)
        attributes = Vibematch.add_attributes(folder / peer.name, people)
        built = built._replace(ready_s=built.ready_s + attributes.ready_s)
    return {**taken, peer.name: _footprint(peer, folder, people.queries, built)}


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover)
    leftover.unlink(missing_ok=True)


def _footprint(peer: type[Index], folder: Path, queries: Vector, built: Built) -> Taken:
    path = folder / peer.name
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        open_s, memory_bytes = pool.submit(_opened, peer, path, queries).result()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    disk_bytes = sum(file.stat().st_size for file in files)
    return Taken(built.ready_s, built.index_s, open_s, memory_bytes, disk_bytes)


def _opened(peer: type[Index], path: Path, queries: Vector) -> tuple[float, int]:
    """Seconds to the first answer, and bytes after all, of an index that is opened here."""
    for module in peer.needs:
        importlib.import_module(module)
    case = unfiltered(queries)
    before = memory_bytes([os.getpid()])
    began = time.perf_counter()
    with closing(peer.open(path, queries.shape[1])) as index:
        setting = index.settings(case)[0]
        index.ask(case, 0, 10, setting)
        open_s = time.perf_counter() - began
        for query in range(len(queries)):
            index.ask(case, query, 10, setting)
        gc.collect()
        return open_s, memory_bytes([os.getpid(), *index.pids()]) - before


def memory_bytes(pids: Sequence[int]) -> int:
    """What processes take together: their own, and what they share, once; no files."""
    kilobytes = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = dict(line.split(":", 1) for line in lines)
        kilobytes += sum(int(sizes[kind].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem"))
    return 1024 * kilobytes
