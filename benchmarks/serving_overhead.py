"""What the server adds to preprocessing and ONNX Runtime in one process: time, and throughput lost.

    python benchmarks/serving_overhead.py runs/style/export/fp32
    python benchmarks/serving_overhead.py build/benchmark/int8 --photos 8 --seconds 60   # 2B

Both sides use the same graph, kernels, preprocessing, photos and threads. Alone: one photo at a
time, server and process in turn, and the median of the differences within a turn. Saturated: 16
clients against as many photos from one process that decodes ahead in as many threads as the server
has decoders, in turn, and the median of the ratios; in one process photos are computed one by one,
which on these CPUs is as fast as batches. A folder that holds nothing but a graph, such
as those of ``cpu_export.py``, is given a manifest for the purpose.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from serving_load import MODEL, photos
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from vibematch.manifest import FILENAME, Manifest
from vibematch.preprocess import Preprocessing, preprocess
from vibematch_export import kernels
from vibematch_export.canary import write_canary
from vibematch_export.repository import CPU, PROFILES, write_repository
from vibematch_export.triton import TritonServer

CLIENTS = 16
Encode = Callable[[bytes], Any]


def main() -> None:
    """Serve the model, measure both sides in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="exported model folder")
    parser.add_argument("--photos", type=int, default=100, help="one at a time, each side")
    parser.add_argument("--turns", type=int, default=5, help="of saturation, each side")
    parser.add_argument("--seconds", type=float, default=8, help="of one such turn")
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    args = parser.parse_args()
    session = _session(args.model)
    with tempfile.TemporaryDirectory(dir=args.model.parent) as workshop:
        model = _completed(args.model, session, Path(workshop, "model"))
        canvas = Manifest.load(model).preprocessing
        with (
            TritonServer(write_repository(Path(workshop, "repository"), model)) as server,
            InferenceServerClient(server.grpc_url) as client,
        ):

            def served(photo: bytes) -> None:
                _ask(client, photo)

            def in_process(photo: bytes) -> None:
                session.run(["embedding"], {"pixels": preprocess(photo, canvas)[None]})

            report = {
                "model": str(args.model),
                "cores": len(os.sched_getaffinity(0)),
                "alone": _alone(served, in_process, args.photos),
                "saturated": _saturated(server.grpc_url, session, canvas, args),
            }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


# --- the two sides


def _session(model: Path) -> onnxruntime.InferenceSession:
    """As ``style_embed`` makes its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    kernels.register(options)
    return onnxruntime.InferenceSession(
        model / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def _completed(model: Path, session: onnxruntime.InferenceSession, made: Path) -> Path:
    """``model``, or a copy with what a bare graph lacks to be served."""
    if (model / FILENAME).is_file():
        return model
    made.mkdir()
    for weights in model.glob("model.onnx*"):
        os.link(weights.resolve(), made / weights.name)
    _, _, height, width = session.get_inputs()[0].shape
    dim = next(output.shape[1] for output in session.get_outputs() if output.name == "embedding")
    canvas = Preprocessing(height, width)
    Manifest(
        embedding_dim=dim,
        preprocessing=canvas,
        prompt="",
        pooling="mean",
        backbone=str(model),
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="0" * 64,
        precision="int8",
    ).save(made)
    write_canary(made, lambda pixels: session.run(["embedding"], {"pixels": pixels})[0], canvas)
    return made


def _ask(client: InferenceServerClient, photo: bytes) -> None:
    tensor = InferInput("photo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    client.infer(MODEL, [tensor], outputs=[InferRequestedOutput("embedding")])


# --- what is measured


def _alone(served: Encode, in_process: Encode, count: int) -> dict[str, float]:
    sent = [photo for photo in photos() if len(photo) < 500_000]  # no 12 megapixels among them
    for encode in (served, in_process):
        encode(sent[0])
    times = [
        [_seconds(encode, sent[number % len(sent)]) for encode in (served, in_process)]
        for number in range(count)
    ]
    differences = [theirs - ours for theirs, ours in times]
    return {
        "server_ms": 1000 * statistics.median(theirs for theirs, _ in times),
        "in_process_ms": 1000 * statistics.median(ours for _, ours in times),
        "overhead_ms": 1000 * statistics.median(differences),
    }


def _seconds(encode: Encode, photo: bytes) -> float:
    began = time.perf_counter()
    encode(photo)
    return time.perf_counter() - began


def _saturated(
    url: str,
    session: onnxruntime.InferenceSession,
    canvas: Preprocessing,
    args: argparse.Namespace,
) -> dict[str, Any]:
    pairs = [
        (_served_rate(url, args.seconds), _in_process_rate(session, canvas, args.seconds))
        for _ in range(args.turns)
    ]
    return {
        "server_per_s": statistics.median(theirs for theirs, _ in pairs),
        "in_process_per_s": statistics.median(ours for _, ours in pairs),
        "ratios": [theirs / ours for theirs, ours in pairs],
        "ratio": statistics.median(theirs / ours for theirs, ours in pairs),
    }


def _served_rate(url: str, seconds: float) -> float:
    with InferenceServerClient(url) as client:
        return _rate(lambda photo: _ask(client, photo), CLIENTS, seconds)


def _in_process_rate(
    session: onnxruntime.InferenceSession, canvas: Preprocessing, seconds: float
) -> float:
    """Decode ahead in threads, compute in this one."""
    decoders = PROFILES[CPU].preprocess_processes
    sent = photos()
    with ThreadPoolExecutor(decoders) as pool:
        ahead = [pool.submit(preprocess, sent[n], canvas) for n in range(2 * decoders)]
        began = time.perf_counter()
        done = 0
        while (took := time.perf_counter() - began) < seconds:
            pixels = ahead.pop(0).result()
            ahead.append(pool.submit(preprocess, sent[(done + 2 * decoders) % len(sent)], canvas))
            session.run(["embedding"], {"pixels": pixels[None]})
            done += 1
    return done / took


def _rate(encode: Encode, clients: int, seconds: float) -> float:
    """Answers a second of a closed loop, from the first answer on."""
    sent = photos()
    began = time.perf_counter()
    done: list[float] = []

    def client(number: int) -> None:
        while time.perf_counter() - began < seconds:
            encode(sent[number % len(sent)])
            done.append(time.perf_counter())
            number += clients

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    done.sort()
    return (len(done) - 1) / (done[-1] - done[0])


def _print(report: dict[str, Any]) -> None:
    alone, saturated = report["alone"], report["saturated"]
    print(
        f"alone      {alone['server_ms']:.1f} ms a photo, {alone['in_process_ms']:.1f} in process: "
        f"the server adds {alone['overhead_ms']:.2f} ms"
    )
    print(
        f"saturated  {saturated['server_per_s']:.2f} photos a second, "
        f"{saturated['in_process_per_s']:.2f} in process: {saturated['ratio']:.1%} of it "
        f"({min(saturated['ratios']):.1%} to {max(saturated['ratios']):.1%})"
    )


if __name__ == "__main__":
    main()
