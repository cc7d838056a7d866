"""One photo on a CPU: our graphs beside transformers and OpenVINO, 2B architecture, one run.

    pip install -e '.[benchmarks]'
    python benchmarks/cpu_export.py --work build/benchmark            # 20 minutes, 20 GB of disk
    python benchmarks/cpu_export.py --work build/benchmark --json

Weights are random (``random_2b.py``), the photo is noise: neither changes the work. Each engine
lives in a process of its own; engines that are compared take turns, one photo each, and the table
gives medians, quartiles and the median of the ratios within a turn. OpenVINO int8 is int8 weights
with dynamic quantisation. "plain" is our graph in ONNX Runtime without our kernels. Cosines are
those of the pooled features with Hugging Face's forward in float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SIDE = 448
GROUPS = {
    "8 bits": ("transformers bf16", "OpenVINO int8", "ours int8, plain", "ours int8"),
    "float32": ("OpenVINO fp32", "ours fp32"),  # 7.3 GB each
}
Engine = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Make what is missing under ``--work``, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = {step.__name__: _in_child(step, args.work) for step in (make_graphs, make_openvino)}
    report: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "weights": "random, 2B architecture",
        "size": f"{SIDE}x{SIDE}",
        "batch": 1,
        "versions": {
            name: version(name)
            for name in ("onnxruntime", "openvino", "nncf", "torch", "transformers")
        },
        "made": made,
        "groups": {},
    }
    for name in args.groups:
        report["groups"][name] = _compare(GROUPS[name], args.work, args.turns)
        (args.work / "cpu_export.json").write_text(json.dumps(report, indent=2) + "\n")
    _print(report, as_json=args.json)


# --- what is measured


def make_graphs(work: Path) -> dict[str, Any]:
    """Our fp32 and int8 graphs, and what Hugging Face's forward gives for the photos."""
    if (work / "reference.npy").exists():
        return {}
    import torch
    from random_2b import random_2b

    from vibematch.preprocess import Preprocessing
    from vibematch_export.fused import FusedEncoder
    from vibematch_export.onnx_graph import write_onnx
    from vibematch_training.backbone import PROMPT
    from vibematch_training.features import FeatureRecipe, pooled_features
    from vibematch_training.head import ProjectionHead

    backbone = random_2b(torch.float32)
    recipe = FeatureRecipe(backbone, Preprocessing(SIDE, SIDE), PROMPT)
    torch.manual_seed(0)
    encoder = FusedEncoder(recipe, ProjectionHead(backbone.feature_dim, 256).eval()).eval()
    seconds = {}
    for precision in ("fp32", "int8"):
        folder = work / precision
        folder.mkdir(exist_ok=True)
        start = time.perf_counter()
        write_onnx(encoder, recipe.preprocessing, folder / "model.onnx", precision)
        seconds[f"{precision}_s"] = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    reference = np.concatenate([pooled_features(photo[None], recipe) for photo in _photos()])
    np.save(work / "reference.npy", reference)
    return {**seconds, "peak_memory_gb": peak_gb}


def make_openvino(work: Path) -> dict[str, Any]:
    """OpenVINO's own conversion of the fused PyTorch module, and its compression to int8."""
    if (work / "openvino_int8.xml").exists():
        return {}
    import nncf
    import openvino
    import torch
    from random_2b import random_2b

    from vibematch.preprocess import Preprocessing
    from vibematch_export.fused import FusedEncoder
    from vibematch_training.backbone import PROMPT
    from vibematch_training.features import FeatureRecipe
    from vibematch_training.head import ProjectionHead

    nncf.set_log_level(logging.ERROR)  # it prints tables on standard output
    backbone = random_2b(torch.float32)
    recipe = FeatureRecipe(backbone, Preprocessing(SIDE, SIDE), PROMPT)
    torch.manual_seed(0)
    encoder = FusedEncoder(recipe, ProjectionHead(backbone.feature_dim, 256).eval()).eval()
    start = time.perf_counter()
    pixels = torch.from_numpy(_photos()[:1])
    model = openvino.convert_model(encoder, example_input=pixels, input=[(1, 3, SIDE, SIDE)])
    openvino.save_model(model, work / "openvino_fp32.xml", compress_to_fp16=False)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, work / "openvino_int8.xml", compress_to_fp16=False)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": time.perf_counter() - start, "peak_memory_gb": peak_gb}


def _load(name: str, work: Path) -> Engine:
    """An engine: pixels, uint8 ``[1, 3, H, W]`` → features."""
    if name.startswith("transformers"):
        return _transformers()
    if name.startswith("OpenVINO"):
        return _openvino(work / f"openvino_{name.split()[1]}.xml")
    precision = name.removeprefix("ours ").split(",")[0]
    return _onnx_runtime(work / precision / "model.onnx", own_kernels="plain" not in name)


def _transformers() -> Engine:
    import torch
    from random_2b import random_2b

    from vibematch.preprocess import Preprocessing
    from vibematch_training.backbone import PROMPT
    from vibematch_training.features import FeatureRecipe, pooled_features

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recipe = FeatureRecipe(random_2b(torch.bfloat16), Preprocessing(SIDE, SIDE), PROMPT)
    return lambda pixels: pooled_features(pixels, recipe).float().numpy()


def _openvino(path: Path) -> Engine:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if "int8" in path.name:  # its fastest: int8 products, the rest in bfloat16
        settings |= {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 1024}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda pixels: np.array(request.infer({0: pixels})[1])


def _onnx_runtime(graph: Path, *, own_kernels: bool) -> Engine:
    import onnxruntime

    from vibematch_export import kernels

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    if own_kernels and not kernels.register(options):
        raise SystemExit("our kernels cannot be had here; see the warning above")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["features"], {"pixels": pixels})[0]


# --- how it is measured


def _compare(names: tuple[str, ...], work: Path, turns: int) -> dict[str, Any]:
    """Let engines take turns; the last one's time is the divisor of all ratios."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    loaded: dict[str, dict[str, float]] = {}
    for name in names:  # one after the other: loading takes more memory than running
        pipes[name], theirs = context.Pipe()
        context.Process(target=_serve, args=(name, work, theirs), daemon=True).start()
        loaded[name] = pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name, pipe in pipes.items():
            pipe.send("run")
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send("end")
    ours = np.array(seconds[names[-1]])
    return {
        name: {
            **loaded[name],
            "seconds": taken,
            "median_s": float(np.median(taken)),
            "quartiles_s": np.quantile(taken, [0.25, 0.75]).tolist(),
            "over_ours": float(np.median(np.array(taken) / ours)),
        }
        for name, taken in seconds.items()
    }


def _serve(name: str, work: Path, pipe: Connection) -> None:
    """A process that holds one engine and runs it when it is told to."""
    start = time.perf_counter()
    engine = _load(name, work)
    load_s = time.perf_counter() - start
    photos, reference = _photos(), np.load(work / "reference.npy").astype(np.float64)
    features = np.concatenate([engine(photo[None]) for photo in photos]).astype(np.float64)
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = (features * reference).sum(axis=1) / norms
    pipe.send(
        {
            "load_s": load_s,
            "min_cosine": float(cosines.min()),
            "mean_cosine": float(cosines.mean()),
            "memory_gb": _private_memory_gb(),
        }
    )
    while pipe.recv() == "run":
        start = time.perf_counter()
        engine(photos[:1])
        pipe.send(time.perf_counter() - start)


def _in_child(step: Callable[[Path], dict[str, Any]], work: Path) -> dict[str, Any]:
    """Run a step in a process of its own, which gives all its memory back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, (work,))


def _photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, SIDE, SIDE), dtype=np.uint8)


def _private_memory_gb() -> float:
    """Memory that is this process's own; not weights that are mapped from a file."""
    fields = dict(
        line.split(":")
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) / 1e6


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    stated = {name: value for name, value in report.items() if name != "groups"}
    print(", ".join(f"{name} {value}" for name, value in stated.items()))
    headings = ("s/photo", "quartiles", "time over ours", "min cosine", "mean cosine", "memory")
    for group, engines in report["groups"].items():
        table = Table("engine", *headings, title=group)
        for name, figures in engines.items():
            low, high = figures["quartiles_s"]
            table.add_row(
                name,
                f"{figures['median_s']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{figures['over_ours']:.2f}",
                f"{figures['min_cosine']:.6f}",
                f"{figures['mean_cosine']:.6f}",
                f"{figures['memory_gb']:.1f} GB",
            )
        Console().print(table)


if __name__ == "__main__":
    main()
