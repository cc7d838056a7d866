"""What an index of so many made-up users takes; ``growth.py`` runs this, a process for each figure.

    python benchmarks/growth_index.py build FOLDER --users 10000 --photos-each 1
    python benchmarks/growth_index.py open FOLDER

It imports nothing but the client, so that memory is that of an app's backend.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from harness import memory_mib
from search_data import People, made_up_manifest, user_id

from vibematch import MatchingEngine
from vibematch.records import Profile, StoredPhoto

DIM = 256
STYLE_OF = 1000
"""Users of a style."""


def main() -> None:
    """Do one of the two, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["build", "open"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--photos-each", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "build":
        figures = build(args.folder, args.users, args.photos_each, args.seed)
    else:
        figures = opened(args.folder)
    print(json.dumps(figures))


def people(users: int, queries: int, seed: int) -> People:
    """The made-up users of a size; those of a larger size are others."""
    return People.make(users, DIM, queries, max(2, users // STYLE_OF), seed)


def build(folder: Path, users: int, photos_each: int, seed: int) -> dict[str, float]:
    """Fill a new index; seconds of the store and of the search index, and bytes on the disk."""
    made = people(users * photos_each, 1, seed)
    with MatchingEngine.open(folder, manifest=made_up_manifest(DIM)) as engine:
        began = time.perf_counter()
        engine.add_many(_profiles(made, photos_each))
        stored = time.perf_counter()
        engine.search(vector=made.queries[0])  # the first search makes the index
        built = time.perf_counter()
    disk_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"store_s": stored - began, "build_s": built - stored, "disk_bytes": disk_bytes}


def _profiles(made: People, photos_each: int) -> Iterator[Profile]:
    """Users whose photos are of one style."""
    by_style = np.argsort(made.style, kind="stable").reshape(-1, photos_each)
    for number, rows in enumerate(np.random.default_rng(0).permutation(by_style)):
        vectors = made.vectors[rows]
        photos = [StoredPhoto(sha256(vector.data).hexdigest(), vector) for vector in vectors]
        yield Profile(user_id(number), photos)


def opened(folder: Path) -> dict[str, float]:
    """Bytes of this process's own memory before it opens an index, and what that adds."""
    before = memory_mib()["private"]
    with MatchingEngine.open(folder, read_only=True) as engine:
        engine.search(user_id(0))
        after = memory_mib()["private"]
    return {"process_bytes": before * 2**20, "index_bytes": (after - before) * 2**20}


if __name__ == "__main__":
    main()
