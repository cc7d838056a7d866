"""What every benchmark here shares: taking turns, spread, and results in one form.

A script answers one question. It measures its contenders *in turn*, in one run, because a machine
is faster in one minute than in the next; compares them by the median of the ratios within a turn;
and writes a :class:`Result`, from which ``report.py`` draws tables and plots. Nothing here knows
what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

CORES: Final = len(os.sched_getaffinity(0))
PACKAGES: Final = (
    *("vibematch", "vibematch-lab", "numpy", "pillow", "torch", "transformers", "onnxruntime"),
    *("nvidia-pytriton", "tritonclient", "hnswlib"),
)
Name = TypeVar("Name", bound=Hashable)


# --- measuring


class Spread(NamedTuple):
    """A median and the quartiles around it, in the unit of what was measured."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        low, median, high = np.quantile(list(values), [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def take_turns(
    contenders: Mapping[Name, Callable[[], Any]], turns: int, title: str = "", *, seed: int = 0
) -> dict[Name, list[float]]:
    """Seconds of each contender in each turn; the order within a turn is drawn anew.

    Args:
        contenders: what is timed; call each once before, if its first time is not typical.
        turns: how many times each is timed.
        title: of the progress bar, on standard error.
        seed: of the orders.
    """
    rng = np.random.default_rng(seed)
    names = list(contenders)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for _ in tqdm(range(turns), title, file=sys.stderr, disable=not title):
        for place in rng.permutation(len(names)):
            began = time.perf_counter()
            contenders[names[place]]()
            seconds[names[place]].append(time.perf_counter() - began)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Spread of ours over theirs, turn by turn."""
    return Spread.of(one / other for one, other in zip(ours, theirs, strict=True))


# --- results


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        name: what the figures are.
        unit: theirs.
        better: which are better; ``None`` where neither is, or where rows do not compete.
    """

    name: str
    unit: str = ""
    better: Literal["less", "more"] | None = None


@dataclass(frozen=True)
class Row:
    """One contender's figures.

    Attributes:
        label: the contender's name.
        cells: one for each column: a number, a ``Spread``, text, or ``None`` for "not measured".
        ours: whether this row is vibematch's. Where a row of someone else's in the same group is
            better by more than the spreads, the report prints our cell in bold and says so.
        group: rows compete within a group ("batch 1"); the report prints it as a heading.
    """

    label: str
    cells: Sequence[float | Spread | str | None]
    ours: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Figures side by side."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis of a plot."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Series:
    """Points of a plot; for ``stacked``, ``x`` are the names of the bars."""

    label: str
    x: Sequence[float | str]
    y: Sequence[float]
    ours: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        kind: ``line`` joins points, ``points`` does not, ``cdf`` is given sorted values in ``x``
            and shares in ``y``, ``stacked`` is horizontal bars made of the series, ``roofline`` is
            ``line`` for series whose label starts with "limit" and ``points`` for the others.
    """

    title: str
    kind: Literal["line", "points", "cdf", "stacked", "roofline"]
    x: Axis
    y: Axis
    series: Sequence[Series]
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """Something promised, what came out, and whether that keeps the promise."""

    promise: str
    value: float | str
    met: bool


@dataclass
class Result:
    """What one script found.

    Attributes:
        name: the script's, which names the file.
        question: what it answers, one sentence.
        setting: what has to be known of the run: weights, dtype, resolution, batch, counts…
        computed: whether all of it was computed from datasheets and formulas, not measured.
        notes: sentences for the reader.
        figures: raw figures for machines, in any form.
    """

    name: str
    question: str
    setting: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    computed: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    packages: Sequence[str] = ()
    """Whose versions matter besides ``PACKAGES``; not in the file as such."""


def arguments(
    description: str | None, name: str, *, models: bool = False
) -> argparse.ArgumentParser:
    """A parser with what all scripts understand.

    Args:
        description: the script's docstring.
        name: the script's.
        models: whether it has exported models, which ``--work`` keeps.
    """
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py", description=(description or "").splitlines()[0]
    )
    parser.add_argument(
        "--backbone",
        choices=["tiny", "2b"],
        default="tiny",
        help="2b: Qwen3-VL-2B's exact architecture with random weights",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/benchmarks"), help="folder for results"
    )
    if models:
        parser.add_argument(
            "--work", type=Path, default=Path("build/benchmarks/models"), help="keeps models"
        )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def publish(result: Result, args: argparse.Namespace) -> Path:
    """Write ``OUT/NAME.json``, and print the result for people, or with ``--json`` for machines."""
    args.out.mkdir(parents=True, exist_ok=True)
    path: Path = args.out / f"{result.name}.json"
    content = dataclasses.asdict(result)
    stated = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "seed": args.seed,
        "machine": machine(),
        "versions": versions([*PACKAGES, *content.pop("packages")]),
    }
    text = json.dumps({**stated, **content}, indent=1)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
    if args.json:
        print(text)
    else:
        import report  # here: it imports this module

        report.print_result(json.loads(text))
        print(f"written to {path}")
    return path


def machine() -> dict[str, Any]:
    """The hardware, and how busy it is."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": CORES,
        "memory_gb": round(memory_bytes / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The commit, with a plus where files differ from it; empty outside of a repository."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def memory_mib(pid: int | Literal["self"] = "self") -> dict[str, float]:
    """A process's memory in MiB: ``private`` is its own, ``peak`` its highest, files included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        name: int(status[key].split()[0]) / 1024
        for name, key in (("private", "RssAnon"), ("resident", "VmRSS"), ("peak", "VmHWM"))
    }


def median(values: Iterable[float]) -> float:
    """The median, as a plain number."""
    return float(statistics.median(values))
