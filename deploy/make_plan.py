#!/usr/bin/env python3
"""Make the TensorRT plans of a model repository for the GPU of this machine, once.

Runs before the server, in NVIDIA's TensorRT container of the release that the Triton container
has. A plan runs with one kind of GPU and one TensorRT version, so it is made where it serves::

    CACHE/<fingerprint>/model.tensorrt-11.4.1.10.nvidia-a10g.plan   kept: the next start takes it
    SERVED/                       links to REPOSITORY's files, and style_embed/N/model.plan

The server mounts all three read-only at the same paths and serves SERVED with the profile
``tensorrt``. It fails, and so keeps the server from starting, where a plan cannot be made.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from vibematch.errors import VibematchError
from vibematch.manifest import Manifest
from vibematch_export.repository import (
    EMBED,
    PLAN,
    PREPROCESS,
    VERSIONS_SIDE_BY_SIDE,
    WEIGHTS,
    versions,
)
from vibematch_export.tensorrt import (
    Library,
    Target,
    build_engine,
    default_library,
    is_up_to_date,
)


def main() -> int:
    """Make what is missing, then lay out the repository that is served."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path, help="written by `vibematch export`; not changed")
    parser.add_argument("cache", type=Path, help="where plans are kept from start to start")
    parser.add_argument("served", type=Path, help="what the server gets; its content is replaced")
    args = parser.parse_args()
    try:
        lay_out(args.repository.resolve(), args.cache.resolve(), args.served.resolve())
    except (VibematchError, OSError) as error:
        print(f"vibematch-plan: error: {error}", file=sys.stderr)
        return 1
    return 0


def lay_out(repository: Path, cache: Path, served: Path) -> None:
    """Fill ``served`` with links to ``repository`` and a plan for each version that is loaded."""
    plans = {
        version: find_or_make_plan(repository, version, cache)
        for version in versions(repository)[-VERSIONS_SIDE_BY_SIDE:]
    }
    for old in served.iterdir():
        shutil.rmtree(old)
    # Links to files in real folders: Triton refuses folders that lead out of the repository.
    shutil.copytree(
        repository, served, copy_function=_link, dirs_exist_ok=True, ignore=_ignore_other_plans
    )
    for version, plan in plans.items():
        (served / EMBED / str(version) / PLAN).symlink_to(plan)


def find_or_make_plan(repository: Path, version: int, cache: Path) -> Path:
    """The plan of one version for this machine: from ``cache``, or built into it."""
    manifest = Manifest.load(repository / PREPROCESS / str(version))
    graph = repository / EMBED / str(version) / WEIGHTS
    # Without a GPU, TensorRT says that it needs one; default_library() would turn to tensorrt-rtx.
    library: Library = "tensorrt" if find_spec("tensorrt") else default_library()
    folder = cache / manifest.fingerprint
    plan = folder / Target.here(library).filename
    if is_up_to_date(plan, graph):
        print(f"version {version}: {plan} (up to date)")
        return plan
    print(f"version {version}: building {plan}; this takes minutes, once")
    folder.mkdir(parents=True, exist_ok=True)
    return build_engine(graph, folder, library=library, progress=False).path


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def _ignore_other_plans(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == PLAN]


if __name__ == "__main__":
    sys.exit(main())
