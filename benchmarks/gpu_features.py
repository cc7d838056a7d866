"""Features on a GPU: Hugging Face's forward beside the fused module, photos/s and share of peak.

The fused module runs as it is and, on a GPU, through torch.compile with CUDA graphs.

    python benchmarks/gpu_features.py                    # the 2B architecture, random weights
    python benchmarks/gpu_features.py --backbone tiny --photos 16 --size 64x96    # works on a CPU

Both start from uint8 pixels in host memory and end with float32 features there; photos are noise,
which costs what photos cost. "Share of peak" is against a large matrix product in the same number
format, measured on the same device just before. The 2B weights are random: same work, no meaning.
"""

from __future__ import annotations

import platform
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import models
import numpy as np
import torch
from harness import Column, Result, Row, Table
from torch.utils.flop_counter import FlopCounterMode

from vibematch.preprocess import Preprocessing
from vibematch_export.fused import FusedEncoder
from vibematch_training.backbone import PROMPT
from vibematch_training.features import FeatureRecipe, pooled_features
from vibematch_training.head import ProjectionHead
from vibematch_training.run import parse_size

Route = Callable[[np.ndarray], torch.Tensor]


def main() -> None:
    """Measure and publish."""
    parser = harness.arguments(__doc__, "gpu_features")
    parser.set_defaults(backbone="2b")
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--size", default="448x448", help="canvas, HxW")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # built on the CPU, where the fused module is put together, and moved as a whole
    backbone = models.backbone(args.backbone, dtype)
    recipe = FeatureRecipe(backbone, Preprocessing(*parse_size(args.size)), PROMPT)
    fused = FusedEncoder(recipe, ProjectionHead(backbone.feature_dim, 256)).eval().to(device)
    backbone.model.to(device)
    turn = threading.Lock()  # as pooled_features does: one batch on the device at a time

    @torch.inference_mode()
    def through_fused(pixels: np.ndarray) -> torch.Tensor:
        with turn:
            return fused(torch.from_numpy(pixels).to(device))[1].cpu()

    compiled = torch.compile(fused, mode="reduce-overhead")

    @torch.inference_mode()
    def through_compiled(pixels: np.ndarray) -> torch.Tensor:
        with turn:
            return compiled(torch.from_numpy(pixels).to(device))[1].cpu()

    peak_flops = _matrix_rate(device, dtype)
    shape = (
        min(max(args.batch), args.photos),
        3,
        recipe.preprocessing.height,
        recipe.preprocessing.width,
    )
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    routes: dict[str, Route] = {
        "Hugging Face": lambda batch: pooled_features(batch, recipe),
        "fused": through_fused,
    }
    if device.type == "cuda":
        routes["fused, compiled"] = through_compiled
    with FlopCounterMode(display=False) as counter:
        reference = pooled_features(pixels[:1], recipe)
    flops = counter.get_total_flops()
    similarity = torch.nn.functional.cosine_similarity(reference, through_fused(pixels[:1]))
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "number_format": str(dtype).removeprefix("torch."),
        "weights": models.WEIGHTS[args.backbone],
        "size": args.size,
        "photos": args.photos,
        "gflop_per_photo": flops / 1e9,
        "matrix_rate_tflops": peak_flops / 1e12,
        "cosine_fused_to_hugging_face": similarity.item(),
        "routes": {
            f"{name}, batch {size}": _measure(
                route, pixels[:size], args.photos, device, flops / peak_flops
            )
            for size in args.batch
            for name, route in routes.items()
        },
    }
    harness.publish(_result(report), args)


def _measure(
    route: Route, pixels: np.ndarray, photos: int, device: torch.device, ideal_s: float
) -> dict[str, float]:
    workers = 8 if device.type == "cuda" else 1  # as extraction feeds a GPU
    batches = [pixels] * max(1, photos // len(pixels))
    route(pixels)  # compiles kernels and fills allocators
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(route, batches):
            pass
    seconds_per_photo = (time.perf_counter() - start) / (len(batches) * len(pixels))
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "photos_per_s": 1 / seconds_per_photo,
        "share_of_matrix_rate": ideal_s / seconds_per_photo,
        "peak_memory_gb": peak_bytes / 1e9,
    }


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of 20."""
    side = 8192 if device.type == "cuda" else 1024
    left = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _result(report: dict[str, Any]) -> Result:
    columns = [Column("rate", "photos/s", "more"), Column("share of matrix rate", "%")]
    columns += [Column("peak memory", "GB")]
    rows = []
    for name, figures in report["routes"].items():
        route, batch = name.rsplit(", ", 1)
        cells = [figures["photos_per_s"], 100 * figures["share_of_matrix_rate"]]
        cells += [figures["peak_memory_gb"]]
        rows.append(Row(route, cells, ours=route.startswith("fused"), group=batch))
    return Result(
        name="gpu_features",
        question="How many photos a second does a GPU turn into features?",
        setting={name: value for name, value in report.items() if name != "routes"},
        tables=[Table("Features", columns, rows)],
        figures=report,
    )


if __name__ == "__main__":
    main()
