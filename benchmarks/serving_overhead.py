"""What the server adds to preprocessing and ONNX Runtime in one process: time, and throughput lost.

    python benchmarks/serving_overhead.py                  # tiny backbone
    python benchmarks/serving_overhead.py --backbone 2b    # a quarter of an hour
    python benchmarks/serving_overhead.py --model runs/style/export/fp32

Both sides use the same graph, kernels, preprocessing, photos and threads. Alone: one photo at a
time, server and process in turn, and the median of the differences within a turn; the server is
asked over gRPC by tritonclient, and over HTTP with bytes that are ready. Saturated: 16
clients against as many photos from one process that decodes ahead in as many threads as the server
has decoders, in turn, and the median of the ratios; in one process photos are computed one by one,
which on these CPUs is as fast as batches. Large: a photo of 12 megapixels against one of the
canvas's size, in turn, through the server and decoded only.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import harness
import models
import numpy as np
import onnxruntime
from harness import Bar, Column, Result, Row, Spread, Table, take_turns
from serving_load import MODEL, SIZES, drawn, photos, prepare, small_photos
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing, preprocess
from vibematch_export.repository import CPU, PROFILES

CLIENTS: Final = 16
PROMISED: Final = 0.03
"""Of the bare graph's throughput, what the server may cost at most."""
LARGE: Final = SIZES[-1][1]
MOST_TIMES: Final = 10
"""As long as a photo of the canvas's size, one of 12 megapixels may take."""
MOST_ADDED_MS: Final = 3
"""To a photo of the tiny model, alone."""
SERVER: Final = "server"
HTTP: Final = "server, plain HTTP"
PROCESS: Final = "one process"
REQUEST: Final = "a request to the server"
DECODING: Final = "decoding alone"
DEFAULTS: Final = {"tiny": (100, 5, 8.0), "2b": (8, 3, 60.0)}
"""Photos alone, turns of saturation, and the seconds of one."""

Encode: TypeAlias = Callable[[bytes], Any]
Seconds: TypeAlias = dict[str, list[float]]
Rates: TypeAlias = dict[str, list[float]]
Sizes: TypeAlias = dict[str, tuple[list[float], list[float]]]
"""Way → seconds of a photo of the canvas's size, and of one of 12 megapixels, turn by turn."""


def main() -> None:
    """Serve the model, measure both sides in turn, publish."""
    args = _arguments()
    model = args.model or models.exported(
        args.work, args.backbone, models.CANVAS[args.backbone], "int8"
    )
    manifest = Manifest.load(model)
    canvas = manifest.preprocessing
    session = models.session(model)
    with models.served(model) as server, InferenceServerClient(server.grpc_url) as client:

        def in_process(photo: bytes) -> None:
            session.run(["embedding"], {"pixels": preprocess(photo, canvas)[None]})

        served = partial(_ask, client)
        connection = http.client.HTTPConnection(server.http_url)
        ways = {
            SERVER: served,
            HTTP: _over_http(connection, args.seed),
            PROCESS: in_process,
        }
        alone = _alone(ways, args.photos, args.seed)
        connection.close()
        decode = partial(preprocess, preprocessing=canvas)
        by_size = _by_size({REQUEST: served, DECODING: decode}, canvas, args)
        rates = _saturated(
            lambda: _served_rate(server.grpc_url, args.seconds, args.seed),
            lambda: _in_process_rate(session, canvas, args.seconds, args.seed),
            args,
        )
    harness.publish(result(args, manifest, alone, by_size, rates), args)


def _arguments() -> argparse.Namespace:
    parser = harness.arguments(__doc__, "serving_overhead", models=True)
    parser.add_argument("--model", type=Path, help="an exported model folder of your own")
    parser.add_argument("--photos", type=int, help="one at a time, each side")
    parser.add_argument("--turns", type=int, help="of saturation, each side")
    parser.add_argument("--seconds", type=float, help="of one such turn")
    args = parser.parse_args()
    names = ("photos", "turns", "seconds")
    for name, default in zip(names, DEFAULTS[args.backbone], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def _ask(client: InferenceServerClient, photo: bytes) -> None:
    tensor = InferInput("photo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    client.infer(MODEL, [tensor], outputs=[InferRequestedOutput("embedding")])


# --- what is measured


def _over_http(connection: http.client.HTTPConnection, seed: int) -> Encode:
    messages = {photo: prepare(photo).message("http") for photo in small_photos(seed)}

    def ask(photo: bytes) -> None:
        path, body, headers = messages[photo]
        connection.request("POST", f"/{path}", body, headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise RuntimeError(answer.read().decode())
        answer.read()

    return ask


def _alone(ways: Mapping[str, Encode], turns: int, seed: int) -> Seconds:
    sent = small_photos(seed)
    for encode in ways.values():
        encode(sent[0])
    sides = {way: partial(next, map(encode, itertools.cycle(sent))) for way, encode in ways.items()}
    return take_turns(sides, turns, "one photo at a time", seed=seed)


def _by_size(ways: dict[str, Encode], canvas: Preprocessing, args: argparse.Namespace) -> Sizes:
    rng = np.random.default_rng(args.seed)
    sent = [drawn(rng, size) for size in ((canvas.width, canvas.height), LARGE)]
    sides = {
        (way, place): partial(encode, photo)
        for way, encode in ways.items()
        for place, photo in enumerate(sent)
    }
    for ask in sides.values():
        ask()
    seconds = take_turns(sides, args.photos, "12 megapixels", seed=args.seed)
    return {way: (seconds[way, 0], seconds[way, 1]) for way in ways}


def _saturated(served: Callable[[], float], in_process: Callable[[], float], args: Any) -> Rates:
    """Photos a second of each side in each turn."""
    rates: Rates = {SERVER: [], PROCESS: []}
    sides = {
        SERVER: lambda: rates[SERVER].append(served()),
        PROCESS: lambda: rates[PROCESS].append(in_process()),
    }
    take_turns(sides, args.turns, "saturated", seed=args.seed)
    return rates


def _served_rate(url: str, seconds: float, seed: int) -> float:
    with InferenceServerClient(url) as client:
        return _rate(lambda photo: _ask(client, photo), CLIENTS, seconds, seed)


def _in_process_rate(
    session: onnxruntime.InferenceSession, canvas: Preprocessing, seconds: float, seed: int
) -> float:
    """Decode ahead in threads, compute in this one."""
    decoders = PROFILES[CPU].preprocess_processes
    sent = photos(seed)
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


def _rate(encode: Encode, clients: int, seconds: float, seed: int) -> float:
    """Answers a second of a closed loop, which keeps the server at work until the last of them.

    Counted from the first answer on, a server that answers whole batches would seem faster.
    """
    sent = photos(seed)
    began = time.perf_counter()
    done: list[float] = []

    def client(number: int) -> None:
        while time.perf_counter() - began < seconds:
            encode(sent[number % len(sent)])
            done.append(time.perf_counter())
            number += clients

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return len(done) / (max(done) - began)


# --- the result


def result(
    args: argparse.Namespace, manifest: Manifest, alone: Seconds, sizes: Sizes, rates: Rates
) -> Result:
    """All tables, and the bars."""
    canvas = manifest.preprocessing
    lost = Spread.of(1 - share for share in _shares(rates))
    added = {
        way: [theirs - ours for theirs, ours in zip(alone[way], alone[PROCESS], strict=True)]
        for way in (SERVER, HTTP)
    }
    weights = str(args.model) if args.model else models.WEIGHTS[args.backbone]
    return Result(
        name="serving_overhead",
        question="What does the server cost beside the bare graph in one process?",
        setting={
            "weights": weights,
            "dtype": manifest.precision,
            "canvas": f"{canvas.height}x{canvas.width}",
            "threads": harness.CORES,
            "batch": "1 photo a request; the server makes batches of what waits",
            "clients when saturated": CLIENTS,
            "photos alone": args.photos,
            "turns": args.turns,
            "seconds of a turn": args.seconds,
        },
        tables=[
            Table(
                "One photo at a time",
                [Column("photo", "ms"), Column("more than in one process", "ms")],
                [
                    *(Row(way, [_ms(alone[way]), _ms(added[way])], ours=True) for way in added),
                    Row(PROCESS, [_ms(alone[PROCESS]), None]),
                ],
            ),
            Table(
                "A photo of 12 megapixels",
                [
                    Column("canvas's size", "ms"),
                    Column("12 megapixels", "ms"),
                    Column("times as long", "x", better="less"),
                ],
                [
                    Row(way, [_ms(small), _ms(large), harness.ratio(large, small)])
                    for way, (small, large) in sizes.items()
                ],
            ),
            Table(
                "Saturated",
                [Column("answers", "photos/s"), Column("of one process", "x")],
                [
                    Row(SERVER, [Spread.of(rates[SERVER]), Spread.of(_shares(rates))], ours=True),
                    Row(PROCESS, [Spread.of(rates[PROCESS]), None]),
                ],
                note="The process decodes ahead in threads, and has no requests to take or answer.",
            ),
        ],
        bars=[
            *([_added_bar(added[HTTP])] if weights == models.WEIGHTS["tiny"] else []),
            *(_large_bar(way, *seconds) for way, seconds in sizes.items()),
            Bar(
                f"the server costs at most {PROMISED:.0%} of the bare graph's throughput",
                f"{lost.median:.1%} ({lost.low:.1%} to {lost.high:.1%})",
                met=lost.median <= PROMISED,
            ),
        ],
        notes=["The clients run on the same cores as the server."],
        packages=["grpcio"],
        figures={"alone_s": alone, "by_size_s": sizes, "photos_per_s": rates},
    )


def _added_bar(added: list[float]) -> Bar:
    added_ms = _ms(added).median
    promise = f"{HTTP}: it adds at most {MOST_ADDED_MS} ms to a photo alone"
    return Bar(promise, f"{added_ms:.1f} ms", added_ms <= MOST_ADDED_MS)


def _large_bar(way: str, small: list[float], large: list[float]) -> Bar:
    times = harness.ratio(large, small).median
    promise = f"12 megapixels take at most {MOST_TIMES} times as long as the canvas's size: {way}"
    return Bar(promise, times, times <= MOST_TIMES)


def _shares(rates: Rates) -> list[float]:
    return [theirs / ours for theirs, ours in zip(rates[SERVER], rates[PROCESS], strict=True)]


def _ms(seconds: list[float]) -> Spread:
    return Spread.of(1000 * one for one in seconds)


if __name__ == "__main__":
    main()
