"""How long does a photo take on this CPU, and in how much memory, by each way to run the model?

    python benchmarks/model.py                      # tiny backbone, 2 minutes
    python benchmarks/model.py --backbone 2b        # over an hour, 24 GB of memory, 14 GB of disk
    python benchmarks/model.py --backbone 2b --canvas 448x448 --batch 1 --engines "ours int8"

All engines have the same weights, see the same photos (uint8 pixels of noise, which cost what
photos cost) and give pooled features; each has all cores and a process of its own, and those that
fit in memory together take turns. ``torch.compile`` is of Hugging Face's forward; OpenVINO has our
fused module in its own conversion, int8 with weights compressed by NNCF and dynamic quantisation;
"plain" is our graph in ONNX Runtime without our kernels.

What is measured is kept in ``WORK/model-parts-BACKBONE.json`` until the whole matrix is there, so
that an interrupted run goes on, and parts can be measured one by one. At 2B, the float32 graph and
OpenVINO's files are removed once they have been measured; ``--keep`` keeps them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import harness
import numpy as np
import numpy.typing as npt
from harness import Axis, Column, Plot, Result, Row, Series, Spread, Table
from macs import Format, Rate, Work, matrix_rates, photo_work, read_rate
from model_engines import ENGINES, Files, Place, said
from models import WEIGHTS, noise

from vibematch.preprocess import Preprocessing
from vibematch_training.run import parse_size

CANVASES: Final = {"tiny": ["224x224"], "2b": ["448x448", "224x224", "512x384"]}
"""Height and width; the first is the one whose figures ``capacity.py`` takes."""
BATCHES: Final = {"tiny": [1, 8], "2b": [1, 4, 8]}
TURNS: Final = {"tiny": 40, "2b": 8}
"""With one photo; with B photos one B-th of it, at least 1."""
PATIENCE_S: Final = 1200
"""The longest that an engine may take to load, compile or compute one batch."""
TOGETHER: Final = (
    # those that fit into 24 GB at 2B, the largest first: loading takes more than running
    ("torch.compile bf16", "OpenVINO bf16", "ours int8"),
    ("transformers bf16", "OpenVINO int8", "ours int8"),
    ("ours int8, plain", "ours int8"),  # plain takes more while it loads
    ("transformers fp32", "ours fp32"),
)
PEERS: Final = ("openvino", "nncf")
YARDSTICKS: Final = ("ours int8", "ours fp32")
"""What ratios are against: whichever of them is there."""


# --- a process for each


class Failure(NamedTuple):
    """Why an engine has no figures."""

    reason: str


class Contender:
    """An engine in a process of its own.

    Attributes:
        failed: why it cannot answer any more; empty while it can.
    """

    def __init__(self, name: str, place: Place, photos: int) -> None:
        self.failed = ""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_hold, args=(name, place, photos, theirs), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is noticed here

    def ask(self, what: str, *arguments: Any) -> Any:
        """The answer of a method of :class:`_Held`, or ``None`` once the engine has failed."""
        if self.failed:
            return None
        try:
            self._pipe.send((what, *arguments))
            if not self._pipe.poll(PATIENCE_S):
                return self._give_up(f"took more than {PATIENCE_S / 60:.0f} minutes to {what}")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            return self._give_up(f"its process ended in {what}, as when memory runs out")
        return self._give_up(answer.reason) if isinstance(answer, Failure) else answer

    def end(self) -> None:
        """End the process, which gives its memory back."""
        self._pipe.close()
        self._process.join(0 if self.failed else 10)  # it ends by itself when nobody asks any more
        self._process.kill()
        self._process.join()

    def _give_up(self, reason: str) -> None:
        self.failed = reason
        self.end()


def _hold(name: str, place: Place, photos: int, pipe: Connection) -> None:
    """What the process does: answer until nobody asks any more."""
    # when memory runs out, the system shall end this process and no other
    Path("/proc/self/oom_score_adj").write_text("1000")
    held = _Held(name, place, noise(place.canvas, photos))
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(held, what)(*arguments))
        except Exception as error:
            pipe.send(Failure(f"cannot {what}: {said(error)}"))


class _Held:
    """An engine, the photos, and how far its features are from Hugging Face's in float32."""

    def __init__(self, name: str, place: Place, photos: npt.NDArray[np.uint8]) -> None:
        self._engine, self._place, self._photos = ENGINES[name], place, photos
        self._distance = 0.0

    def load(self) -> None:
        self._run = self._engine.load(self._place)
        self._reference = np.load(self._place.reference).astype(np.float64)
        self.compute(1)

    def prepare(self, batch: int) -> None:
        if batch > 1:  # loading computed one
            self.compute(batch)
        self._distance = 0.0
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of memory so far: proc(5)

    def compute(self, batch: int) -> None:
        features = self._run(self._photos[:batch])[: len(self._reference)].astype(np.float64)
        if not np.isfinite(features).all():
            raise ValueError("its features are not finite")
        reference = self._reference[: len(features)]
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
        cosines = (features * reference).sum(axis=1) / norms
        # what is smaller is the rounding of float32 itself
        self._distance = max(self._distance, round(float(1 - cosines.min()), 9))

    def figures(self) -> dict[str, float]:
        """Memory of its own in MiB, and the largest 1 - cosine, both since ``prepare``."""
        memory = harness.memory_mib()
        mapped = memory["resident"] - memory["private"]
        return {"memory_mib": memory["peak"] - mapped, "distance": self._distance}


# --- measuring


class Parts:
    """What has been measured, in a file that an interrupted run finds again.

    Args:
        path: the file.
        setting: what has to be the same for figures to be kept.

    Attributes:
        kept: how many parts came from the file.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self._path, self._setting = path, setting
        self._parts: dict[str, Any] = {}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["setting"] == setting:
                self._parts = stored["parts"]
        self.kept = 0

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part of this name; measured if it is not there. With a failure, it is not kept."""
        if name in self._parts:
            self.kept += 1
            return dict(self._parts[name])
        measured = measure()
        if not any("failed" in figures for figures in measured.values()):
            self._parts[name] = measured
            unfinished = self._path.with_suffix(".partial")
            unfinished.write_text(json.dumps({"setting": self._setting, "parts": self._parts}))
            unfinished.replace(self._path)
        return measured

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


class Together:
    """Engines that are in memory together at one canvas, started when they are first needed."""

    def __init__(self, names: Sequence[str], place: Place, files: Files, photos: int) -> None:
        self._names, self._place, self._files, self._photos = names, place, files, photos
        self._unmade: dict[str, str] | None = None
        self._contenders: dict[str, Contender] = {}

    def measure(self, batch: int, times: int, seed: int) -> dict[str, Any]:
        """Seconds of each engine in each turn, its memory and distance, or why it failed."""
        if self._unmade is None:
            self._unmade = self._start()
        for one in self._contenders.values():
            one.ask("prepare", batch)
        seconds = harness.take_turns(
            {name: partial(one.ask, "compute", batch) for name, one in self._contenders.items()},
            times,
            f"{self._place.size}, batch {batch}",
            seed=seed,
        )
        found: dict[str, Any] = {name: {"failed": why} for name, why in self._unmade.items()}
        for name, one in self._contenders.items():
            figures = one.ask("figures")
            found[name] = (
                {"failed": one.failed} if one.failed else {"seconds": seconds[name], **figures}
            )
        return found

    def end(self) -> None:
        """End all processes."""
        for one in self._contenders.values():
            one.end()

    def _start(self) -> dict[str, str]:
        """Start what can be; engine → why it cannot."""
        unmade = self._files.make(self._names)
        self._contenders = {  # they import side by side
            name: Contender(name, self._place, self._photos)
            for name in self._names
            if name not in unmade
        }
        for one in self._contenders.values():  # and load one by one
            one.ask("load")
        return unmade


def measure(args: argparse.Namespace, parts: Parts) -> dict[str, dict[str, Any]]:
    """Engine → figures, by canvas and batch: ``{"448x448, batch 1": {"ours int8": {...}}}``.

    Figures are those of :meth:`Together.measure`, and ``over_ours``, the ratio in each turn.
    """
    found: dict[str, dict[str, Any]] = {}
    for size in args.canvas:
        place = Place(args.work, args.backbone, Preprocessing(*parse_size(size)))
        files = Files(place, keep=args.keep)
        sessions = _sessions(args.engines)
        for number, names in enumerate(sessions):
            together = Together(names, place, files, max(args.batch))
            try:
                for batch in args.batch:
                    times = turns(args.turns, batch)
                    part = parts.get(
                        f"{size}, batch {batch}, {times} turns: {', '.join(names)}",
                        partial(together.measure, batch, times, args.seed),
                    )
                    _add(part, found.setdefault(f"{size}, batch {batch}", {}))
            finally:
                together.end()
                files.remove_all_but([name for later in sessions[number + 1 :] for name in later])
    return found


def _sessions(engines: Sequence[str]) -> list[list[str]]:
    """Which of the chosen ones are in memory together; none where another session has them all."""
    sessions: list[list[str]] = []
    for together in sorted(TOGETHER, key=lambda names: -len(set(names) & set(engines))):
        names = [name for name in together if name in engines]
        if not any(set(names) <= set(other) for other in [[], *sessions]):
            sessions.append(names)
    return sessions


def turns(with_one: int, batch: int) -> int:
    """How often a batch is measured."""
    return max(1, with_one // batch)


def _add(part: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what was measured together; an engine that takes part twice has the turns of both."""
    ours = next((part[name].get("seconds") for name in YARDSTICKS if name in part), None)
    for name, figures in part.items():
        if "failed" in figures:
            found.setdefault(name, figures)
            continue
        pairs = zip(figures["seconds"], ours or [], strict=bool(ours))
        figures = {**figures, "over_ours": [one / other for one, other in pairs]}
        known = found.get(name, {})
        if "seconds" in known:
            for listed in ("seconds", "over_ours"):
                figures[listed] = known[listed] + figures[listed]
            for worst in ("memory_mib", "distance"):
                figures[worst] = max(known[worst], figures[worst])
        found[name] = figures


def rates() -> dict[str, Rate]:
    """Of the machine: by number format, and ``read`` in bytes per second."""
    return {**matrix_rates(), "read": read_rate()}


# --- the result


def main() -> None:
    """Measure what is asked for and not known, publish."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    missing = [name for name in args.engines if not _installed(name)]
    args.engines = [name for name in args.engines if name not in missing]
    if not args.engines:
        raise SystemExit(f"{' and '.join(PEERS)} are missing: pip install -e '.[benchmarks]'")
    known = harness.machine()
    setting = {
        **{name: known[name] for name in ("cpu", "cores", "memory_gb")},
        "versions": harness.versions([*harness.PACKAGES, *PEERS]),
        "commit": harness.commit(),
        "seed": args.seed,
    }
    parts = Parts(args.work / f"model-parts-{args.backbone}.json", setting)
    before = rates()
    found = measure(args, parts)
    limits = {name: max(rate, before[name]) for name, rate in rates().items()}
    harness.publish(result(args, found, limits, _notes(found, missing, parts.kept)), args)
    if args.whole:
        parts.forget()


def _arguments() -> argparse.Namespace:
    parser = harness.arguments(__doc__, "model", models=True)
    parser.add_argument("--canvas", nargs="+", metavar="HxW", help="height and width")
    parser.add_argument("--batch", type=int, nargs="+", help="photos at a time")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), metavar="NAME")
    parser.add_argument("--turns", type=int, help="with one photo; with B photos one B-th of it")
    parser.add_argument("--keep", action="store_true", help="keep the large files of 2b")
    args = parser.parse_args()
    args.whole = not (args.canvas or args.batch or args.engines)
    args.canvas = args.canvas or CANVASES[args.backbone]
    args.batch = sorted(args.batch or BATCHES[args.backbone])
    args.engines = args.engines or list(ENGINES)
    args.turns = args.turns or TURNS[args.backbone]
    if args.batch[0] < 1 or args.turns < 1:
        parser.error("--batch and --turns must be at least 1")
    return args


def _installed(name: str) -> bool:
    return not name.startswith("OpenVINO") or all(map(importlib.util.find_spec, PEERS))


def _notes(found: dict[str, dict[str, Any]], missing: Sequence[str], kept: int) -> list[str]:
    notes = [
        f"{case}: {name} has no figures: {figures['failed']}."
        for case, engines in found.items()
        for name, figures in engines.items()
        if "failed" in figures
    ]
    if missing:
        named = ", ".join(missing)
        notes.append(f"{named}: not installed; pip install -e '.[benchmarks]' installs them.")
    if kept:
        notes.append(f"Measured by earlier runs of the same setting: {kept} of the parts.")
    return notes


def result(
    args: argparse.Namespace,
    found: dict[str, dict[str, Any]],
    limits: dict[str, Rate],
    notes: list[str],
) -> Result:
    """Table and plots.

    Args:
        args: what was asked for.
        found: what :func:`measure` gives.
        limits: what :func:`rates` gives, the better of before and after.
        notes: sentences for the reader.
    """
    main_size = CANVASES[args.backbone][0]
    first = found.get(f"{main_size}, batch 1", {})
    counts = [f"{turns(args.turns, batch)} of batch {batch}" for batch in args.batch]
    works = {size: _work(args.backbone, size) for size in args.canvas}
    return Result(
        name="model",
        question="How long does a photo take on this CPU, and in how much memory?",
        setting={
            "weights": WEIGHTS[args.backbone],
            "resolution": args.canvas,
            "batch": args.batch,
            "turns": counts,
            "threads": harness.CORES,
            "gmac_per_photo": {size: round(work.macs / 1e9, 2) for size, work in works.items()},
            "giga multiply-adds (read: GB) per second": {
                name: f"{rate.per_s / 1e9:.4g} ({rate.by})" for name, rate in limits.items()
            },
        },
        tables=[_table(args, found, limits, counts)],
        plots=[
            *(_by_batch(args, found, size) for size in args.canvas if len(args.batch) > 1),
            _roofline(args, found, limits),
        ],
        notes=notes,
        figures={
            "seconds_per_photo": {
                name: harness.median(figures["seconds"])
                for name, figures in first.items()
                if "failed" not in figures
            },
            "measured": found,
            "limits_per_s": {name: rate.per_s for name, rate in limits.items()},
        },
        packages=PEERS,
    )


def _work(backbone: Any, size: str) -> Work:
    return photo_work(backbone, Preprocessing(*parse_size(size)))


def _table(
    args: argparse.Namespace,
    found: dict[str, dict[str, Any]],
    limits: dict[str, Rate],
    counts: Sequence[str],
) -> Table:
    columns = [
        Column("a photo", "s", "less"),
        Column("time over ours"),
        Column("share of the limit"),
        Column("peak memory", "MiB", "less"),
        Column("1 - cosine", better="less"),
    ]
    rows = []
    for size, batch, case in _cases(args):
        # rows of a group beside each other
        for name in sorted(args.engines, key=lambda name: ENGINES[name].layers == "fp32"):
            figures, engine = found[case][name], ENGINES[name]
            bits = "float32" if engine.layers == "fp32" else "8 and 16 bits"
            cells: list[float | Spread | str | None] = [None] * len(columns)
            if "failed" not in figures:
                a_photo = Spread.of(seconds / batch for seconds in figures["seconds"])
                least_s = _least_s(args.backbone, size, name, limits)
                cells = [
                    a_photo,
                    Spread.of(figures["over_ours"]) if figures["over_ours"] else None,
                    f"{least_s / a_photo.median:.0%} of {engine.layers}",
                    figures["memory_mib"],
                    figures["distance"],
                ]
            ours = name.startswith("ours")
            rows.append(Row(name, cells, ours=ours, group=f"{case}, {bits}"))
    note = (
        f"Medians and quartiles of {', '.join(counts)}, taken in turns. Time over ours is the "
        "median of the ratios within a turn, against our int8 graph, or our fp32 graph among "
        "float32. The limit is every matrix product at the rate measured here for its number "
        "format (the better of before and after), and nothing else. Peak memory is the "
        "process's own while it computes, without files that are mapped. 1 - cosine is of the "
        "pooled features with Hugging Face's in float32, the largest seen."
    )
    return Table("A photo", columns, rows, note)


def _cases(args: argparse.Namespace) -> list[tuple[str, int, str]]:
    return [(size, batch, f"{size}, batch {batch}") for size in args.canvas for batch in args.batch]


def _least_s(backbone: Any, size: str, name: str, limits: dict[str, Rate]) -> float:
    per_s: dict[Format, float] = {name: limits[name].per_s for name in ("int8", "bf16", "fp32")}
    return _work(backbone, size).least_s(per_s, ENGINES[name].layers, ENGINES[name].attention)


def _by_batch(args: argparse.Namespace, found: dict[str, dict[str, Any]], size: str) -> Plot:
    series = []
    for name in args.engines:
        points = [
            (batch, harness.median(figures["seconds"]) / batch)
            for batch in args.batch
            if "failed" not in (figures := found[f"{size}, batch {batch}"][name])
        ]
        if points:
            series.append(Series(name, *zip(*points, strict=True), ours=name.startswith("ours")))
    return Plot(
        f"A photo of {size} by batch", "line", Axis("photos at a time"), Axis("s a photo"), series
    )


def _roofline(
    args: argparse.Namespace, found: dict[str, dict[str, Any]], limits: dict[str, Rate]
) -> Plot:
    """Points of all canvases and batches under the machine's measured limits."""
    read = limits["read"].per_s
    intensities = [2.0**power for power in range(-1, 12)]
    series = [
        Series(
            f"limit {name}",
            intensities,
            [min(limits[name].per_s, read * one) / 1e9 for one in intensities],
        )
        for name in ("int8", "bf16", "fp32")
    ]
    for name in args.engines:
        points = []
        for size, batch, case in _cases(args):
            figures = found[case][name]
            if "failed" not in figures:
                engine, work = ENGINES[name], _work(args.backbone, size)
                states = batch * work.state_bytes(engine.attention)
                rate = batch * work.macs / harness.median(figures["seconds"])
                intensity = batch * work.macs / (work.weight_bytes(engine.layers) + states)
                points.append((intensity, rate / 1e9))
        if points:
            series.append(Series(name, *zip(*points, strict=True), ours=name.startswith("ours")))
    return Plot(
        "Roofline of this machine",
        "roofline",
        Axis("multiply-adds per byte of weights and states", log=True),
        Axis("billion multiply-adds per second", log=True),
        series,
    )


if __name__ == "__main__":
    main()
