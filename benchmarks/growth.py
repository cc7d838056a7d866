"""How cost grows with photos, users, clients, resolution and photos each; what breaks first.

    python benchmarks/growth.py                   # tiny backbone, 64,000 users: 90 seconds
    python benchmarks/growth.py --backbone 2b     # 1,000,000 users: 18 minutes, 6 GB of disk

Each curve is measured at several sizes in turn, and its exponent fitted to the medians: a straight
line through logarithms, with Student's 95 % interval from what is left over. What is made once (an
index, its memory) has one figure for each size.

- *photos*: one 480x640 photo again and again through ``Encoder.encode`` and tritonserver, uncached
- *clients*: closed loops of so many clients with the same photo
- *resolution*: the int8 graph alone, always of the tiny backbone
- *users*: indexes of the client, each built in a process of its own and opened in another; some
  thousand users are scanned, which is another curve, so sizes begin where the graph answers
- *photos each*: users with so many photos

What breaks first: costs are carried on from the largest size that was measured to the members at
which a limit is reached: in proportion where each member is work of its own, for there another
exponent only shows that small sizes have a fixed cost; by the fitted exponent elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import growth_index
import harness
import models
import numpy as np
from end_to_end import TIMEOUT_S, Loop, closed_loop
from harness import Axis, Column, Plot, Result, Row, Series, Spread, Table
from power_law import PowerLaw
from search_data import user_id
from serving_load import photos

from vibematch import Encoder, MatchingEngine
from vibematch.preprocess import Preprocessing

Cell: TypeAlias = float | Spread | str | None

MEMBERS: Final = 100_000_000
CANVASES: Final = (224, 320, 448, 512)
CLIENTS: Final = (1, 2, 4, 8, 16, 32)
PHOTOS_EACH: Final = (1, 2, 4, 8)
_USERS_WITH_MORE: Final = 3_000
_SEARCHES: Final = 10
"""Searches in a turn."""


class _Sizes(NamedTuple):
    """What is measured for a backbone."""

    canvas: int
    photos: tuple[int, ...]
    users: tuple[int, ...]
    turns: int
    loops: int
    seconds: float


_SIZES: Final = {
    "tiny": _Sizes(224, (1, 4, 16, 64), (8_000, 16_000, 32_000, 64_000), 5, 2, 1.0),
    "2b": _Sizes(448, (1, 2, 4, 8, 16), (10_000, 30_000, 100_000, 300_000, 1_000_000), 3, 1, 60.0),
}
_SEARCH_TURNS: Final = 100
_EACH_TURNS: Final = 20
_CANVAS_TURNS: Final = 10


@dataclass(frozen=True)
class Curve:
    """What each size of something costs.

    Attributes:
        size: what grows.
        cost: what is measured.
        unit: of the cost.
        points: size → cost.
    """

    size: str
    cost: str
    unit: str
    points: Mapping[int, Spread]

    @property
    def law(self) -> PowerLaw:
        """Fitted to the medians."""
        return PowerLaw.fit(list(self.points), [point.median for point in self.points.values()])

    def carried_on(self, size: float, exponent: float) -> float:
        """The cost of a larger size, from that of the largest measured one."""
        largest = max(self.points)
        return float(self.points[largest].median * (size / largest) ** exponent)

    def size_at(self, cost: float, exponent: float) -> float:
        """The size that costs so much; infinite where it does not grow."""
        largest = max(self.points)
        ratio = math.log(cost / self.points[largest].median)
        try:
            return largest * math.exp(ratio / exponent)
        except (OverflowError, ZeroDivisionError):
            return math.inf


class Limit(NamedTuple):
    """What a cost that grows with the members may be.

    Attributes:
        curve: key of the cost.
        most: the limit, in the curve's unit.
        meaning: the limit in words.
        of_each: whether each member is work of its own.
    """

    curve: str
    most: float
    meaning: str
    of_each: bool


LIMITS: Final = (
    Limit("photos", 7 * 86_400, "embedding a photo of each anew takes a week", True),
    Limit("build", 8 * 3_600, "making the search index anew takes a night of 8 hours", False),
    Limit("memory", 64_000, "the index fills 64 GB of memory", True),
    Limit("disk", 1e6, "store and snapshot fill 1 TB of disk", True),
    Limit("search", 50, "a search takes 50 ms", False),
)


def main() -> None:
    """Measure all curves, publish."""
    parser = harness.arguments(__doc__, "growth", models=True)
    parser.add_argument("--users", type=int, nargs="+", help="sizes of indexes, three or more")
    args = parser.parse_args()
    sizes = _SIZES[args.backbone]
    if args.users:
        if len(set(args.users)) < 3 or min(args.users) < 1:
            parser.error("--users needs three different sizes or more")
        sizes = sizes._replace(users=tuple(sorted(set(args.users))))
    canvas = Preprocessing(sizes.canvas, sizes.canvas)
    model = models.exported(args.work, args.backbone, canvas, "int8")
    with models.served(model) as server:
        curves = _served(server.grpc_url, sizes)
    curves |= _resolutions(args.work)
    with tempfile.TemporaryDirectory(dir=args.work) as workshop:
        of_users, process_bytes = _users(Path(workshop), sizes.users, args.seed)
    with tempfile.TemporaryDirectory(dir=args.work) as workshop:
        curves |= of_users | _photos_each(Path(workshop), args.seed)
    harness.publish(_result(args, sizes, curves, process_bytes), args)


# --- photos, clients, resolution


def _served(url: str, sizes: _Sizes) -> dict[str, Curve]:
    photo = min(photos(), key=len)
    with Encoder(url, timeout_s=TIMEOUT_S, cache_size=0) as encoder:
        encoder.encode([photo])

        def encode(count: int) -> Callable[[], Any]:
            return lambda: encoder.encode([photo] * count)

        seconds = harness.take_turns(
            {count: encode(count) for count in sizes.photos}, sizes.turns, "photos"
        )
        loops: dict[int, list[Loop]] = {clients: [] for clients in CLIENTS}

        def loop(clients: int) -> Callable[[], None]:
            return lambda: loops[clients].append(closed_loop(encode(1), clients, sizes.seconds))

        harness.take_turns({clients: loop(clients) for clients in CLIENTS}, sizes.loops, "clients")
    latencies = {
        clients: Spread.of(1000 * each for loop in some for each in loop.seconds)
        for clients, some in loops.items()
    }
    rates = {clients: Spread.of(loop.rate for loop in some) for clients, some in loops.items()}
    return {
        "photos": Curve("photos", "time to encode them", "s", _spreads(seconds)),
        "latency": Curve("clients", "latency of a photo", "ms", latencies),
        "throughput": Curve("clients", "photos a second", "1/s", rates),
    }


def _resolutions(work: Path) -> dict[str, Curve]:
    def graph(side: int) -> Callable[[], Any]:
        canvas = Preprocessing(side, side)
        session = models.session(models.exported(work, "tiny", canvas, "int8"))
        pixels = models.noise(canvas, 1)
        session.run(["embedding"], {"pixels": pixels})
        return lambda: session.run(["embedding"], {"pixels": pixels})

    graphs = {side**2: graph(side) for side in CANVASES}
    seconds = harness.take_turns(graphs, _CANVAS_TURNS, "resolution")
    return {
        "resolution": Curve("pixels", "time of the graph", "ms", _spreads(seconds, 1000)),
    }


def _spreads(seconds: Mapping[int, Sequence[float]], factor: float = 1) -> dict[int, Spread]:
    return {size: Spread.of(factor * one for one in some) for size, some in seconds.items()}


# --- users, photos each


def _users(workshop: Path, sizes: Sequence[int], seed: int) -> tuple[dict[str, Curve], float]:
    """Curves of indexes, and the bytes of a process that has none open."""
    figures: dict[int, dict[str, float]] = {}
    for users in sizes:
        folder = workshop / f"{users}"
        built = _run("build", folder, f"--users={users}", f"--seed={seed}")
        figures[users] = {**built, **_run("open", folder)}
    with ExitStack() as stack:
        searches = {}
        for users in sizes:
            engine = stack.enter_context(MatchingEngine.open(workshop / f"{users}", read_only=True))
            searches[users] = _searches(engine, users, seed)
            searches[users]()
        seconds = harness.take_turns(searches, _SEARCH_TURNS, "users", seed=seed)

    def curve(cost: str, unit: str, name: str, factor: float = 1) -> Curve:
        points = {users: Spread.of([factor * each[name]]) for users, each in figures.items()}
        return Curve("users", cost, unit, points)

    curves = {
        "search": Curve("users", "time of a search", "ms", _spreads(seconds, 1000 / _SEARCHES)),
        "build": curve("time to make the search index", "s", "build_s"),
        "store": curve("time to fill the store", "s", "store_s"),
        "memory": curve("memory of the index", "MB", "index_bytes", 1e-6),
        "disk": curve("disk", "MB", "disk_bytes", 1e-6),
    }
    return curves, harness.median(each["process_bytes"] for each in figures.values())


def _searches(engine: MatchingEngine, users: int, seed: int) -> Callable[[], None]:
    """Some searches for one user after the other."""
    asked = np.random.default_rng(seed)

    def ask() -> None:
        for number in asked.integers(users, size=_SEARCHES):
            engine.search(user_id(int(number)), 10)

    return ask


def _photos_each(workshop: Path, seed: int) -> dict[str, Curve]:
    disk: dict[int, Spread] = {}
    adds: dict[int, Callable[[], None]] = {}
    pairs: dict[int, Callable[[], None]] = {}
    with ExitStack() as stack:
        for count in PHOTOS_EACH:
            folder = workshop / f"{count}-each"
            size = (f"--users={_USERS_WITH_MORE}", f"--photos-each={count}", f"--seed={seed}")
            disk[count] = Spread.of([_run("build", folder, *size)["disk_bytes"] / _USERS_WITH_MORE])
            engine = stack.enter_context(MatchingEngine.open(folder))
            adds[count] = _adds(engine, count, seed)
            pairs[count] = _pairs(engine, seed)
        for ask in (*adds.values(), *pairs.values()):
            ask()
        sign_ups = harness.take_turns(adds, _EACH_TURNS, "photos each", seed=seed)
        compared = harness.take_turns(pairs, _EACH_TURNS, "pairs of photos", seed=seed)
    return {
        "sign_up": Curve(
            "photos each", "time to add a user, synced", "ms", _spreads(sign_ups, 1000)
        ),
        "pairs": Curve("photos each", "time of a best_pair search", "ms", _spreads(compared, 1000)),
        "disk_each": Curve("photos each", "disk of a user", "bytes", disk),
    }


def _adds(engine: MatchingEngine, count: int, seed: int) -> Callable[[], None]:
    """One new user with so many photos, given as vectors."""
    draw, names = np.random.default_rng(seed), iter(range(10**9))

    def add() -> None:
        vectors = draw.standard_normal((count, growth_index.DIM))
        engine.add(f"new_{next(names)}", vectors=vectors)

    return add


def _pairs(engine: MatchingEngine, seed: int) -> Callable[[], None]:
    draw = np.random.default_rng(seed)

    def ask() -> None:
        asked = user_id(int(draw.integers(_USERS_WITH_MORE)))
        engine.search(asked, 10, aggregate="best_pair")

    return ask


def _run(what: str, folder: Path, *arguments: str) -> dict[str, float]:
    """What ``growth_index.py`` finds in a process of its own."""
    command = [sys.executable, growth_index.__file__, what, str(folder), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# --- what came out


def _result(
    args: argparse.Namespace,
    sizes: _Sizes,
    curves: Mapping[str, Curve],
    process_bytes: float,
) -> Result:
    laws = {name: curve.law for name, curve in curves.items()}
    reached = _reached(curves, laws)
    each = curves["disk_each"].points
    more_photos = np.polyfit(list(each), [point.median for point in each.values()], 1)[0]
    return Result(
        name="growth",
        question="How does cost grow with photos, users, clients and resolution?",
        setting={
            "weights": models.WEIGHTS[args.backbone],
            "graph": "int8, our kernels; resolution curve: of the tiny backbone",
            "resolution": f"{sizes.canvas}x{sizes.canvas}",
            "embedding dim": growth_index.DIM,
            "turns": f"photos {sizes.turns}, resolution {_CANVAS_TURNS}, users {_SEARCH_TURNS}, "
            f"photos each {_EACH_TURNS}; clients {sizes.loops} loops of {sizes.seconds:g} s; "
            "indexes are built once",
            "durability": "all users are in a store on the disk; each added user is synced",
            "threads": harness.CORES,
        },
        tables=[_curves_table(curves, laws), _limits_table(curves, laws, reached)],
        plots=_plots(curves, laws),
        notes=[
            *(laws[name].sentence(curve.size, curve.cost) for name, curve in curves.items()),
            _breaks_first(reached),
        ],
        figures={
            "exponents": {name: law.exponent for name, law in laws.items()},
            "points": {name: dict(curve.points) for name, curve in curves.items()},
            "reached_at_members": {limit.curve: members for limit, members in reached},
            "disk_bytes_per_photo": float(more_photos),
            "process_bytes": process_bytes,
        },
    )


def _exponent(limit: Limit, laws: Mapping[str, PowerLaw]) -> float:
    """By which a cost is carried on."""
    return 1.0 if limit.of_each else max(0.0, laws[limit.curve].exponent)


def _reached(
    curves: Mapping[str, Curve], laws: Mapping[str, PowerLaw]
) -> list[tuple[Limit, float]]:
    """At how many members each limit is reached, the first one first."""
    members = [
        (limit, curves[limit.curve].size_at(limit.most, _exponent(limit, laws))) for limit in LIMITS
    ]
    return sorted(members, key=lambda pair: pair[1])


def _curves_table(curves: Mapping[str, Curve], laws: Mapping[str, PowerLaw]) -> Table:
    columns = [
        *(Column("exponent"), Column("smallest"), Column("costs"), Column("largest")),
        *(Column("costs"), Column("unit")),
    ]
    rows = []
    for name, curve in curves.items():
        first, last = min(curve.points), max(curve.points)
        law = laws[name]
        cells: list[Cell] = [Spread(law.exponent, law.low, law.high)]
        cells += [f"{first:,}", _cell(curve.points[first])]
        cells += [f"{last:,}", _cell(curve.points[last]), curve.unit]
        rows.append(Row(curve.cost, cells, group=curve.size))
    return Table("Curves", columns, rows, "Exponents with their 95 % intervals.")


def _cell(cost: Spread) -> Spread | float:
    """A plain number where it was measured once."""
    return cost if cost.low < cost.high else cost.median


def _limits_table(
    curves: Mapping[str, Curve],
    laws: Mapping[str, PowerLaw],
    reached: Sequence[tuple[Limit, float]],
) -> Table:
    columns = [Column("reached at"), Column("measured up to"), Column("exponent")]
    columns += [Column(f"at {MEMBERS:,}"), Column("unit")]
    rows = []
    for limit, members in reached:
        curve, exponent = curves[limit.curve], _exponent(limit, laws)
        cells: list[Cell] = [_people(members), f"{max(curve.points):,}", exponent]
        cells += [curve.carried_on(MEMBERS, exponent), curve.unit]
        rows.append(Row(limit.meaning, cells))
    note = "Computed from the curves: one index in one process, a photo each, on this machine."
    return Table("What breaks first, by members", columns, rows, note)


def _people(members: float) -> str:
    if members > 1e12:
        return "never"
    return f"{float(f'{members:.2g}'):,.0f}"


def _breaks_first(reached: Sequence[tuple[Limit, float]]) -> str:
    (first, at_first), (second, at_second) = reached[:2]
    return (
        f"What breaks first, as members come, on this machine: {first.meaning}, at about "
        f"{_people(at_first)} members; then {second.meaning}, at about {_people(at_second)}."
    )


def _plots(curves: Mapping[str, Curve], laws: Mapping[str, PowerLaw]) -> list[Plot]:
    plots = []
    for name, curve in curves.items():
        costs = [point.median for point in curve.points.values()]
        series = [Series("measured", list(curve.points), costs, ours=True)]
        axes = Axis(curve.size, log=True), Axis(f"{curve.cost}, {curve.unit}", log=True)
        title = f"{curve.cost} ~ {curve.size}^{laws[name].exponent:.2f}"
        plots.append(Plot(title[0].upper() + title[1:], "line", *axes, series))
    return plots


if __name__ == "__main__":
    main()
