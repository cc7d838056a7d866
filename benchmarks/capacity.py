"""What so many members need: processors or GPUs, memory, disk. Computed from measured figures.

    python benchmarks/capacity.py                                   # 5 thousand, 1 and 100 million
    python benchmarks/capacity.py --members 300000 --photos-each 6 --sign-ups-a-day 900
    python benchmarks/capacity.py --results build/benchmarks/2b     # of your own machine

Every figure comes from the results of ``model.py``, ``search.py``, ``growth.py`` and
``end_to_end.py`` in ``--results``, or for the A10G from the data sheet by ``a10g.py``; every
formula is in a docstring here; what is assumed is a constant at the top of the file. An index is
held by one process, so more members than fit one machine's memory need several indexes: ``shards``
here. The product answers for one of them; asking several and joining their answers is the app's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import a10g
import harness
from harness import Column, Result, Row, Table

MEMBERS: Final = (5_000, 1_000_000, 100_000_000)
RESULTS: Final = Path(__file__).parent / "results" / "2b"

# Assumed of an app, where nothing else is said
PHOTOS_EACH: Final = 4.0
SIGN_UPS_A_DAY: Final = 0.002
"""For each member: the app doubles within a year."""
MATCHES_A_DAY: Final = 2.0
"""For each member: searches."""
PEAK_FACTOR: Final = 3.0
"""The busiest minutes of the day, over its mean."""

# Assumed of operations
BUSY: Final = 0.7
"""Share of its time that a machine is planned to work at the peak; beyond that, queues grow."""
MACHINE_BYTES: Final = 64e9
USABLE: Final = 0.9
"""Share of a machine's memory that is left for indexes."""
COPIES: Final = 2
"""An index exists twice while it is compacted, a store while its photos are embedded anew."""
GPU_PRECISION: Final = "bf16"
GPU_BATCH: Final = 8
CPU_ENGINE: Final = "ours int8"

DAY_S: Final = 86_400
MONTH_DAYS: Final = 365.25 / 12


@dataclass(frozen=True)
class Demand:
    """What an app asks for.

    Attributes:
        members: people in the index.
        photos_each: photos of each.
        sign_ups_a_day: new members, each with ``photos_each`` photos.
        matches_a_day: searches.
        peak_factor: the busiest minutes of the day over its mean.

    Raises:
        ValueError: one of them is not a positive number.
    """

    members: float
    photos_each: float
    sign_ups_a_day: float
    matches_a_day: float
    peak_factor: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value:g}")
        if self.peak_factor < 1:
            raise ValueError(f"peak_factor must be at least 1, got {self.peak_factor:g}")

    @classmethod
    def usual(cls, members: float) -> Self:
        """That of an app of which only the size is known."""
        daily = SIGN_UPS_A_DAY * members, MATCHES_A_DAY * members
        return cls(members, PHOTOS_EACH, *daily, PEAK_FACTOR)


@dataclass(frozen=True)
class Measured:
    """What one photo, search, sign-up and member cost.

    Attributes:
        core_s_per_photo: seconds of one photo on the CPU, times the cores that worked on it.
        gpu_photos_per_s: of one A10G.
        search_s: seconds of one core for a search among ``search_users``.
        search_users: how many users that index had, and the one of ``build_s``.
        search_exponent: how a search grows with the users, 0 to 1.
        build_s: seconds to make the index of ``search_users`` anew, on the machine measured.
        build_exponent: how that grows with the users.
        bytes_per_user: memory of the index, with the pages of its files that searches read.
        process_bytes: memory of a process before it opens an index.
        disk_bytes_per_user: of a store and its snapshot, for a user with one photo.
        disk_bytes_per_photo: for each further photo.
        sign_ups_per_s: durable sign-ups a second of one index, vectors given.
    """

    core_s_per_photo: float
    gpu_photos_per_s: float
    search_s: float
    search_users: float
    search_exponent: float
    build_s: float
    build_exponent: float
    bytes_per_user: float
    process_bytes: float
    disk_bytes_per_user: float
    disk_bytes_per_photo: float
    sign_ups_per_s: float


@dataclass(frozen=True)
class Needs:
    """What a demand takes; see the functions of the same names.

    Attributes:
        encode_cores: cores like those measured, for sign-ups at the peak; or else
        encode_gpus: A10Gs for them.
        gpu_hours_a_month: hours that A10Gs work on sign-ups in a month, whatever their number.
        gpu_hours_a_month_kept_on: hours of ``encode_gpus`` that are never switched off.
        reembed_gpu_days: days of one A10G to embed all photos anew; of n, an n-th of that.
        reembed_core_days: days of one core for the same.
        shards: indexes, each in a process and on a machine of its own.
        memory_gb: of all indexes, without the room that compacting takes.
        disk_gb: of all stores, with room for embedding anew; photo files are not in it.
        search_cores: cores for searches at the peak.
        rebuild_hours: until the search index of one shard is made anew from its store.
    """

    encode_cores: float
    encode_gpus: int
    gpu_hours_a_month: float
    gpu_hours_a_month_kept_on: float
    reembed_gpu_days: float
    reembed_core_days: float
    shards: int
    memory_gb: float
    disk_gb: float
    search_cores: float
    rebuild_hours: float


def needs(demand: Demand, measured: Measured) -> Needs:
    """Everything a demand takes."""
    gpus = encode_gpus(demand, measured)
    return Needs(
        encode_cores=encode_cores(demand, measured),
        encode_gpus=gpus,
        gpu_hours_a_month=gpu_hours_a_month(demand, measured),
        gpu_hours_a_month_kept_on=gpus * MONTH_DAYS * 24,
        reembed_gpu_days=_photos(demand) / measured.gpu_photos_per_s / DAY_S,
        reembed_core_days=_photos(demand) * measured.core_s_per_photo / DAY_S,
        shards=shards(demand, measured),
        memory_gb=memory_bytes(demand, measured) / 1e9,
        disk_gb=disk_bytes(demand, measured) / 1e9,
        search_cores=search_cores(demand, measured),
        rebuild_hours=rebuild_s(demand, measured) / 3600,
    )


def _photos(demand: Demand) -> float:
    return demand.members * demand.photos_each


def _at_peak(a_day: float, demand: Demand) -> float:
    """A second: ``a_day / 86400 * peak_factor``."""
    return a_day / DAY_S * demand.peak_factor


def photos_per_s(demand: Demand) -> float:
    """Photos of sign-ups at the peak: ``sign_ups_a_day * photos_each / 86400 * peak_factor``."""
    return _at_peak(demand.sign_ups_a_day * demand.photos_each, demand)


def encode_cores(demand: Demand, measured: Measured) -> float:
    """``photos_per_s * core_s_per_photo / BUSY``."""
    return photos_per_s(demand) * measured.core_s_per_photo / BUSY


def encode_gpus(demand: Demand, measured: Measured) -> int:
    """``photos_per_s / (gpu_photos_per_s * BUSY)``, rounded up."""
    return math.ceil(photos_per_s(demand) / (measured.gpu_photos_per_s * BUSY))


def gpu_hours_a_month(demand: Demand, measured: Measured) -> float:
    """``sign_ups_a_day * photos_each * MONTH_DAYS / gpu_photos_per_s / 3600``."""
    photos = demand.sign_ups_a_day * demand.photos_each * MONTH_DAYS
    return photos / measured.gpu_photos_per_s / 3600


def shards(demand: Demand, measured: Measured) -> int:
    """As many as memory or writing needs, whichever is more; each is rounded up.

    Memory: ``members * bytes_per_user * COPIES / (MACHINE_BYTES * USABLE - process_bytes)``. One
    process writes to an index: ``sign_ups at the peak / (sign_ups_per_s * BUSY)``.
    """
    room = MACHINE_BYTES * USABLE - measured.process_bytes
    by_memory = demand.members * measured.bytes_per_user * COPIES / room
    sign_ups = _at_peak(demand.sign_ups_a_day, demand)
    by_writing = sign_ups / (measured.sign_ups_per_s * BUSY)
    return math.ceil(max(by_memory, by_writing))


def memory_bytes(demand: Demand, measured: Measured) -> float:
    """``members * bytes_per_user + shards * process_bytes``."""
    processes = shards(demand, measured) * measured.process_bytes
    return demand.members * measured.bytes_per_user + processes


def disk_bytes(demand: Demand, measured: Measured) -> float:
    """``COPIES * members * (per_user + (photos_each - 1) * per_photo)``; one photo at least."""
    more_photos = max(0.0, demand.photos_each - 1)
    each = measured.disk_bytes_per_user + more_photos * measured.disk_bytes_per_photo
    return COPIES * demand.members * each


def search_cores(demand: Demand, measured: Measured) -> float:
    """Cores for searches at the peak; each search asks all shards.

    ``matches at the peak * shards * search_s * (members / shards / search_users) **
    search_exponent / BUSY``.
    """
    parts = shards(demand, measured)
    growth = math.pow(demand.members / parts / measured.search_users, measured.search_exponent)
    matches = _at_peak(demand.matches_a_day, demand)
    return matches * parts * measured.search_s * growth / BUSY


def rebuild_s(demand: Demand, measured: Measured) -> float:
    """``build_s * (members / shards / search_users) ** build_exponent``: all shards at once."""
    each = demand.members / shards(demand, measured)
    return measured.build_s * math.pow(each / measured.search_users, measured.build_exponent)


# --- what was measured


def load(results: Path) -> tuple[Measured, dict[str, Any]]:
    """Figures from the results of the other scripts, and where they are from.

    Args:
        results: folder with ``model.json``, ``search.json``, ``growth.json``, ``end_to_end.json``.

    Raises:
        SystemExit: one of them is missing or lacks a figure; the message says what makes it.
    """
    by_users = _figure(results, "search", "by_users")
    users = max(by_users, key=int)
    index = {
        name: _figure(results, "search", "by_users", users, name)
        for name in (
            *("search_ms", "build_s"),
            *("bytes_per_user", "mapped_bytes_per_user", "disk_bytes_per_user"),
        )
    }
    search_exponent = _figure(results, "growth", "exponents", "search")
    measured = Measured(
        core_s_per_photo=_figure(results, "model", "seconds_per_photo", CPU_ENGINE)
        * _read(results, "model")["machine"]["cores"],
        gpu_photos_per_s=a10g.photos_per_s(GPU_PRECISION, GPU_BATCH),
        search_s=index["search_ms"] / 1000,
        search_users=int(users),
        search_exponent=min(1.0, max(0.0, search_exponent)),
        build_s=index["build_s"],
        build_exponent=max(0.0, _figure(results, "growth", "exponents", "build")),
        bytes_per_user=index["bytes_per_user"] + index["mapped_bytes_per_user"],
        process_bytes=_figure(results, "growth", "process_bytes"),
        disk_bytes_per_user=index["disk_bytes_per_user"],
        disk_bytes_per_photo=_figure(results, "growth", "disk_bytes_per_photo"),
        sign_ups_per_s=_figure(results, "end_to_end", "sign_ups_per_s_store"),
    )
    return measured, {name: _origin(results, name) for name in _SOURCES}


_SOURCES: Final = ("model", "search", "growth", "end_to_end")


def _read(results: Path, name: str) -> dict[str, Any]:
    path = results / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise SystemExit(
            f"{path} is missing: make it with `python benchmarks/{name}.py --out {results}` "
            "(add --backbone 2b for the real size), or name another folder by --results"
        ) from None
    except ValueError as error:
        raise SystemExit(f"{path} is no result: {error}") from None
    return content


def _figure(results: Path, name: str, *keys: str) -> Any:
    """One figure; keys lead to it."""
    found: Any = _read(results, name).get("figures", {})
    for key in keys:
        if not isinstance(found, dict) or found.get(key) is None:
            raise SystemExit(
                f"{results / name}.json lacks the figure {' / '.join(keys)}: make it again with "
                f"`python benchmarks/{name}.py --out {results}`"
            )
        found = found[key]
    return found


def _origin(results: Path, name: str) -> str:
    content = _read(results, name)
    weights = content["setting"].get("weights", "no model")
    return f"{content['date']}, {content['machine']['cores']} cores, {weights}"


# --- the result


def main() -> None:
    """Plan for the sizes asked for, publish."""
    parser = harness.arguments(__doc__, "capacity")
    parser.add_argument("--members", type=float, help="default: 5 thousand, 1 and 100 million")
    parser.add_argument("--photos-each", type=float, help=f"default: {PHOTOS_EACH:g}")
    parser.add_argument(
        "--sign-ups-a-day", type=float, help=f"default: {100 * SIGN_UPS_A_DAY:g} %% of members"
    )
    parser.add_argument("--matches-a-day", type=float, help=f"default: {MATCHES_A_DAY:g} a member")
    parser.add_argument("--peak-factor", type=float, help=f"default: {PEAK_FACTOR:g}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of measured figures")
    args = parser.parse_args()
    try:
        demands = _demands(args)
    except ValueError as error:
        parser.error(f"{error}")
    harness.publish(result(demands, *load(args.results)), args)


def _demands(args: argparse.Namespace) -> list[Demand]:
    """One for each size; what is given takes the place of what is usual."""
    sizes = MEMBERS if args.members is None else (args.members,)
    fields = [field.name for field in dataclasses.fields(Demand)]
    given = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    return [dataclasses.replace(Demand.usual(members), **given) for members in sizes]


def result(demands: list[Demand], measured: Measured, origin: dict[str, Any]) -> Result:
    """A column for each demand."""
    plans = [needs(demand, measured) for demand in demands]
    columns = [Column(f"{demand.members:,.0f} members") for demand in demands]
    asked, taken = (
        [
            Row(label, [getattr(each, name) for each in some], group=group)
            for name, label in labels.items()
        ]
        for some, labels, group in ((demands, _ASKED, "asked for"), (plans, _TAKEN, "needed"))
    )
    return Result(
        name="capacity",
        question="What do so many members need?",
        setting={
            "measured figures": origin,
            "A10G": f"{GPU_PRECISION}, batch {GPU_BATCH}, 448x448, 2B: computed by a10g.py",
            "CPU": f"{CPU_ENGINE}, one photo at a time",
            "busy at the peak": BUSY,
            "machine_gb": MACHINE_BYTES / 1e9,
            "usable share of memory": USABLE,
            "copies while compacting and embedding anew": COPIES,
        },
        tables=[Table("Capacity", columns, asked + taken, _NOTE)],
        notes=[_reach(demands, plans, measured)],
        computed=True,
        figures={
            "measured": dataclasses.asdict(measured),
            "plans": [
                {**dataclasses.asdict(demand), **dataclasses.asdict(plan)}
                for demand, plan in zip(demands, plans, strict=True)
            ],
        },
    )


_ASKED: Final = {
    "photos_each": "photos each",
    "sign_ups_a_day": "sign-ups a day",
    "matches_a_day": "matches a day",
    "peak_factor": "peak over mean",
}
_TAKEN: Final = {
    "encode_cores": "CPU cores to encode at the peak",
    "encode_gpus": "or A10Gs to encode at the peak",
    "gpu_hours_a_month": "A10G hours a month, at work",
    "gpu_hours_a_month_kept_on": "A10G hours a month, never switched off",
    "reembed_gpu_days": "embedding all anew: A10G days",
    "reembed_core_days": "embedding all anew: core days",
    "shards": "indexes, each on a 64 GB machine",
    "memory_gb": "memory of the indexes, GB",
    "disk_gb": "disk, GB",
    "search_cores": "cores to search at the peak",
    "rebuild_hours": "hours to make an index anew",
}
_NOTE: Final = (
    "Computed by the formulas in capacity.py. Days of n machines are an n-th. Disk has room for "
    "both models while all is embedded anew; photo files are not in it. Cores for encoding are "
    "those of the model alone: decoding photos and the server come on top (end_to_end.py says how "
    "much). Searches are without a filter. Cores are of the backbone that model.py measured, A10Gs "
    "of the 2B architecture."
)


def _reach(demands: list[Demand], plans: list[Needs], measured: Measured) -> str:
    """How far beyond the largest index that was measured this goes."""
    largest = max(one.members / plan.shards for one, plan in zip(demands, plans, strict=True))
    reach = largest / measured.search_users
    measured_to = f"The largest index that was measured has {measured.search_users:,.0f} users"
    if reach <= 1:
        return f"{measured_to}; none here is larger."
    return (
        f"{measured_to}; the largest here has {largest:,.0f}, {reach:.3g} times as many: its "
        "search and its making are extrapolated by the exponents that growth.py fitted."
    )


if __name__ == "__main__":
    main()
