"""The 2B model on an NVIDIA A10G, on paper: how many photos a second, and what is in the way.

    python benchmarks/a10g.py
    python benchmarks/gpu_features.py --json > benchmarks/results/gpu.json    # on a GPU machine

Everything is computed from the data sheet and the assumptions below. Where ``gpu.json`` exists,
what was measured on that GPU is put beside it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import harness
from harness import Axis, Column, Plot, Result, Row, Series, Table
from macs import BYTES, Format, Work, photo_work

from vibematch.preprocess import Preprocessing

CANVAS: Final = Preprocessing(448, 448)
PRECISIONS: Final[tuple[Format, ...]] = ("bf16", "fp16", "int8")
BATCHES: Final = (1, 2, 4, 8, 16, 32)
MEASURED: Final = Path(__file__).parent / "results" / "gpu.json"

FLOPS: Final = {"bf16": 70e12, "fp16": 70e12, "int8": 140e12}
"""Dense, multiply and add counted apart. bf16 and fp16 with float32 sums: 80 multiprocessors x 256
multiply-adds x 1.71 GHz; the often quoted 125 TFLOPS are the A10's. No data sheet has int8: twice
bf16 by inference. There is no FP8 in compute capability 8.6."""
BYTES_PER_S: Final = 600e9
MEMORY_BYTES: Final = 22_587 * 2**20
"""What CUDA reports as the device's memory; sold as 24 GB."""
MULTIPROCESSORS: Final = 80
"""As CUDA reports them."""

# Assumed, for want of a GPU to measure on
COMPUTE_SHARE: Final = 0.7
"""Of the data sheet's rate that large matrix products reach together with what lies between them:
norms, rotations, launches, and a clock that drops under load."""
MEMORY_SHARE: Final = 0.85
"""Of the data sheet's bandwidth that reading in order reaches."""
TILE: Final = 128
"""Rows and columns of the result that one multiprocessor computes at a time. A product takes as
long as if the last tile and the last round of tiles were full (NVIDIA, *Matrix Multiplication
Background User's Guide*: tile and wave quantization)."""
RUNTIME_BYTES: Final = 1e9
"""CUDA's context, TensorRT's workspace, Triton's pinned buffers."""


@dataclass(frozen=True)
class Pass:
    """One batch through the model.

    Attributes:
        batch: photos.
        compute_s: what its multiply-adds take.
        memory_s: what reading weights once, and reading and writing activations, takes.
        macs: multiply-adds.
        traffic_bytes: weights and activations.
        memory_bytes: weights, the largest activations, and the runtime.
    """

    batch: int
    compute_s: float
    memory_s: float
    macs: int
    traffic_bytes: float
    memory_bytes: float

    @property
    def seconds(self) -> float:
        """Whichever takes longer: both go on at the same time."""
        return max(self.compute_s, self.memory_s)

    @property
    def photos_per_s(self) -> float:
        """Photos of one batch over its seconds."""
        return self.batch / self.seconds

    @property
    def bound(self) -> str:
        """What takes longer."""
        return "compute" if self.compute_s >= self.memory_s else "memory"


def photos_per_s(precision: Format, batch: int) -> float:
    """Photos a second of one A10G, 2B architecture, 448x448, computed.

    Args:
        precision: of the linear layers: ``bf16``, ``fp16`` or ``int8``.
        batch: photos that go through the model together.

    Raises:
        ValueError: of a precision that the A10G's tensor cores do not have.
    """
    return one_pass(precision, batch).photos_per_s


def one_pass(precision: Format, batch: int) -> Pass:
    """The time and memory of one batch; attention and states in 16 bits in any precision."""
    if precision not in FLOPS:
        raise ValueError(f"precision must be one of {', '.join(FLOPS)}, got {precision!r}")
    work = photo_work("2b", CANVAS)
    traffic = _weight_bytes(work, precision) + batch * work.state_bytes("bf16")
    # a layer's input and output, and the residual that waits beside them
    widest = max(part.rows * (2 * part.inputs + part.outputs) for part in work.layers)
    return Pass(
        batch=batch,
        compute_s=_products_s(work, precision, batch) / COMPUTE_SHARE,
        memory_s=traffic / (BYTES_PER_S * MEMORY_SHARE),
        macs=batch * work.macs,
        traffic_bytes=traffic,
        memory_bytes=_weight_bytes(work, precision)
        + batch * widest * BYTES["bf16"]
        + RUNTIME_BYTES,
    )


def _weight_bytes(work: Work, precision: Format) -> int:
    edges = sum(part.weights for part in work.edges) * BYTES["bf16"]
    return edges + sum(part.weights for part in work.layers) * BYTES[precision]


def _products_s(work: Work, precision: Format, batch: int) -> float:
    """Seconds of all matrix products at the data sheet's rate, in whole rounds of whole tiles."""
    seconds = 2 * batch * sum(part.macs for part in work.attention) / FLOPS["bf16"]
    for part in (*work.edges, *work.layers):
        flops = FLOPS[precision if part in work.layers else "bf16"]
        tiles = math.ceil(batch * part.rows / TILE) * math.ceil(part.outputs / TILE)
        rounds = math.ceil(tiles / MULTIPROCESSORS)
        tile_s = 2 * TILE**2 * part.inputs / (flops / MULTIPROCESSORS)
        seconds += part.times * rounds * tile_s
    return seconds


# --- the result


def main() -> None:
    """Compute, put measured rows beside, publish."""
    parser = harness.arguments(__doc__, "a10g")
    parser.set_defaults(backbone="2b")
    args = parser.parse_args()
    if args.backbone != "2b":
        parser.error("only the 2B architecture is computed; leave --backbone out")
    measured = json.loads(MEASURED.read_text())["figures"] if MEASURED.is_file() else None
    harness.publish(result(measured), args)


def result(measured: dict[str, Any] | None) -> Result:
    """Tables and the roofline.

    Args:
        measured: the ``figures`` that ``gpu_features.py --json`` printed, if there are any.
    """
    passes = {
        precision: [one_pass(precision, batch) for batch in BATCHES] for precision in PRECISIONS
    }
    tables = [_table(passes)]
    if measured is None:
        notes = ["No GPU machine was available: nothing here is measured."]
    else:
        notes = []
        tables.append(_measured_table(measured))
    notes.append(
        "Our int8 graphs are for CPUs today: the int8 rows say what a GPU graph in 8 bits could "
        "give. int8 is twice bf16 by inference; no data sheet of the A10G has it. There is no FP8."
    )
    return Result(
        name="a10g",
        question="How many photos a second would one A10G embed, and what limits it?",
        setting={
            "gpu": "NVIDIA A10G, 80 multiprocessors, compute capability 8.6",
            "weights": "2B architecture",
            "resolution": "448x448",
            "batch": list(BATCHES),
            "gmac_per_photo": round(photo_work("2b", CANVAS).macs / 1e9, 1),
            "data sheet": {
                "bf16_tflops": FLOPS["bf16"] / 1e12,
                "int8_tops": FLOPS["int8"] / 1e12,
                "gb_per_s": BYTES_PER_S / 1e9,
                "memory_gb": round(MEMORY_BYTES / 1e9, 1),
            },
            "assumed": {
                "share of the matrix rate": COMPUTE_SHARE,
                "share of the bandwidth": MEMORY_SHARE,
                "tile": f"{TILE}x{TILE}, whole rounds of {MULTIPROCESSORS}",
                "runtime_gb": RUNTIME_BYTES / 1e9,
            },
        },
        tables=tables,
        plots=[_roofline(passes)],
        notes=notes,
        computed=True,
        figures={
            "photos_per_s": {
                precision: {str(one.batch): one.photos_per_s for one in some}
                for precision, some in passes.items()
            }
        },
    )


def _table(passes: dict[Format, list[Pass]]) -> Table:
    columns = [
        Column("photos/s"),
        Column("ceiling"),
        Column("a batch", "ms"),
        Column("compute", "ms"),
        Column("memory", "ms"),
        Column("bound by"),
        Column("needs", "GB"),
    ]
    rows = [
        Row(
            f"batch {one.batch}",
            [
                one.photos_per_s,
                FLOPS[precision] / 2 / (one.macs / one.batch),
                1e3 * one.seconds,
                1e3 * one.compute_s,
                1e3 * one.memory_s,
                one.bound,
                one.memory_bytes / 1e9,
            ],
            ours=True,
            group=precision,
        )
        for precision, some in passes.items()
        for one in some
    ]
    note = (
        f"Computed. A batch takes the longer of two: its products at {COMPUTE_SHARE:.0%} of the "
        f"data sheet's rate in whole rounds of {TILE}x{TILE} tiles, and its weights (read once) "
        f"and activations at {MEMORY_SHARE:.0%} of 600 GB/s. The ceiling is "
        f"the data sheet's rate itself. The card has {MEMORY_BYTES / 1e9:.1f} GB. Decoding JPEGs "
        "is not in it."
    )
    return Table("One A10G, computed", columns, rows, note)


def _measured_table(measured: dict[str, Any]) -> Table:
    columns = [
        Column("photos/s", better="more"),
        Column("share of its matrix rate"),
        Column("GPU memory", "GB"),
    ]
    rows = [
        Row(
            route,
            [
                figures["photos_per_s"],
                f"{figures['share_of_matrix_rate']:.0%}",
                figures["peak_memory_gb"],
            ],
            ours=route.startswith("fused"),
            group=route.rsplit(", ", 1)[1],
        )
        for route, figures in measured["routes"].items()
    ]
    note = (
        f"Measured on {measured['device']}, {measured['number_format']}, {measured['weights']}, "
        f"{measured['size']}; its measured matrix rate is "
        f"{measured['matrix_rate_tflops']:.0f} TFLOPS."
    )
    return Table(f"Measured on {measured['device']}", columns, rows, note)


def _roofline(passes: dict[Format, list[Pass]]) -> Plot:
    """Intensity in multiply-adds per byte, rates in Tera multiply-adds per second."""
    intensities = [2.0**power for power in range(4, 12)]
    limits = [
        Series(
            f"limit {name}",
            intensities,
            [min(flops / 2, BYTES_PER_S * one) / 1e12 for one in intensities],
        )
        for name, flops in (("bf16 and fp16", FLOPS["bf16"]), ("int8", FLOPS["int8"]))
    ]
    points = [
        Series(
            precision,
            [one.macs / one.traffic_bytes for one in some],
            [one.macs / one.seconds / 1e12 for one in some],
            ours=True,
        )
        for precision, some in passes.items()
    ]
    return Plot(
        "Roofline of an A10G, 2B at 448x448, batch 1 to 32, computed",
        "roofline",
        Axis("multiply-adds per byte of memory traffic", log=True),
        Axis("tera multiply-adds per second", log=True),
        [*limits, *points],
    )


if __name__ == "__main__":
    main()
