"""Load on the server: how much it answers in time, also when asked for more than it can do.

    python benchmarks/serving_load.py --repository build/model_repository --times 0.5 1 2 4
    python benchmarks/serving_load.py --grpc localhost:8001 --http localhost:8000 --rates 20 40

First a closed loop (``--clients`` that each wait for their answer) finds the capacity. Then open
loops send photos at random moments (Poisson) at the given ``--rates`` a second, or at ``--times``
the capacity, whether or not earlier ones are answered. Latency counts from the moment a photo was
*due*, so a generator that falls behind makes the figures worse, not better. Goodput is answers
within ``--deadline`` a second. The first fifth of each phase is left out. With both addresses
every other request goes over HTTP. On one machine the load takes what the server could use: with
``--apart`` each has one of the system's cores. Photos are JPEGs: 70 % 480x640, 25 % 1080x1440 and
5 % 3024x4032.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import grpc
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2

from vibematch_export.triton import TritonServer

SIZES: Final = ((14, (480, 640)), (5, (1080, 1440)), (1, (3024, 4032)))
MODEL: Final = "style_encoder"
GRPC_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
LEFT_OUT: Final = 0.2


@dataclass(frozen=True)
class Request:
    """One photo as it goes over the wire, in each protocol of :data:`SENDERS`.

    Attributes:
        grpc: Triton's message.
        http: the same over HTTP.
        http_header_length: bytes of JSON at its beginning.
        photo: the file itself, the body of a request to ``/predict``.
        data_uri: JSON for OpenAI's ``/embeddings`` with a photo for a text, as infinity has it.
    """

    grpc: bytes
    http: bytes
    http_header_length: int
    photo: bytes
    data_uri: bytes

    def message(self, protocol: str) -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers of the HTTP request in one of the protocols that use HTTP."""
        if protocol == "http":
            header = {"Inference-Header-Content-Length": str(self.http_header_length)}
            return f"v2/models/{MODEL}/infer", self.http, header
        if protocol == "photo":
            return "predict", self.photo, {"Content-Type": "application/octet-stream"}
        return "embeddings", self.data_uri, {"Content-Type": "application/json"}


Send: TypeAlias = Callable[[Request], Awaitable[str]]
"""Sends one request; gives ``answered``, ``rejected``, ``late`` or the error."""
Work: TypeAlias = Iterator[tuple[Request, Send]]


@dataclass(frozen=True)
class Outcome:
    """What became of one request; times are seconds since the phase began."""

    due: float
    sent: float
    done: float
    status: str


@dataclass
class Phase:
    """Figures of one phase; times in seconds, CPU in shares of a core, memory in MiB."""

    name: str
    offered: float
    goodput: float
    p50: float | None
    p95: float | None
    p99: float | None
    answered: int
    rejected: int
    rejected_p99: float | None
    late: int
    errors: dict[str, int]
    send_lag_p99: float
    generator_cpu: float
    server_cpu_per_answer: float | None
    server_mib: list[float] = field(repr=False)
    outcomes: list[Outcome] = field(repr=False)


def main() -> None:
    """Run the phases and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, help="serve this one, on free ports")
    parser.add_argument(
        "--apart", action="store_true", help="it has the first core, the load the last one"
    )
    parser.add_argument("--grpc", metavar="HOST:PORT", help="a running server's gRPC endpoint")
    parser.add_argument("--http", metavar="HOST:PORT", help="a running server's HTTP endpoint")
    parser.add_argument("--protocol", choices=["grpc", "http", "both"], default="both")
    parser.add_argument("--clients", type=int, default=16, help="of the closed loop")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="photos a second")
    parser.add_argument("--times", type=float, nargs="*", default=[], help="the capacity")
    parser.add_argument("--seconds", type=float, default=20, help="of each phase")
    parser.add_argument("--deadline", type=float, default=5, help="seconds")
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds a step may let it wait (`timeout`)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if args.apart and not args.repository:
        parser.error("--apart goes with --repository: it starts the server on its core")
    if args.apart and len(cores) < 2:
        parser.error("--apart needs two cores")
    servers, loads = (cores[:1], cores[-1:]) if args.apart else (cores, cores)
    with ExitStack() as stack:
        if args.repository:
            with _only_on(servers):
                server = stack.enter_context(TritonServer(args.repository))
            args.grpc, args.http = server.grpc_url, server.http_url
        stack.enter_context(_only_on(loads))
        urls = {
            name: getattr(args, name)
            for name in ("grpc", "http")
            if args.protocol in (name, "both") and getattr(args, name)
        }
        if not urls:
            parser.error("say what to load: --repository, --grpc or --http")
        phases = asyncio.run(_phases(urls, args))
    report = {
        "cores": len(cores),
        "apart": args.apart,
        "protocols": list(urls),
        "seconds": args.seconds,
        "deadline": args.deadline,
        "wait": args.wait,
        "seed": args.seed,
        "peak_goodput": max(phase.goodput for phase in phases),
        "phases": [_without_outcomes(phase) for phase in phases],
    }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


@contextmanager
def _only_on(cores: list[int]) -> Iterator[None]:
    """This thread runs on these cores, and so does what it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _without_outcomes(phase: Phase) -> dict[str, Any]:
    return {name: value for name, value in vars(phase).items() if name != "outcomes"}


# --- what is sent


def photos(seed: int = 0) -> list[bytes]:
    """The 20 JPEG photos that are sent in turn, in random order."""
    rng = np.random.default_rng(seed)
    mix = [drawn(rng, size) for count, size in SIZES for _ in range(count)]
    return [mix[index] for index in rng.permutation(len(mix))]


def small_photos(seed: int = 0) -> list[bytes]:
    """The same without the one of 12 megapixels."""
    return [photo for photo in photos(seed) if len(photo) < 500_000]


def drawn(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of ``(width, height)`` with soft colours and grain."""
    colours = Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8))
    pixels = np.asarray(colours.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-6, 7, (size[1], size[0], 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def prepare(photo: bytes, wait_s: float = 0) -> Request:
    """One photo as a request; ``wait_s``: how long each step may let it wait, 0 for no limit."""
    content = len(photo).to_bytes(4, "little") + photo
    message = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[content])
    message.inputs.add(name="photo", datatype="BYTES", shape=[1, 1])
    message.outputs.add(name="embedding")
    tensor = {"name": "photo", "shape": [1, 1], "datatype": "BYTES"}
    header: dict[str, Any] = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}],
        "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}],
    }
    if wait_s:
        message.parameters["timeout"].int64_param = int(wait_s * 1e6)
        header["parameters"] = {"timeout": int(wait_s * 1e6)}
    text = json.dumps(header).encode()
    return Request(
        grpc=message.SerializeToString(),
        http=text + content,
        http_header_length=len(text),
        photo=photo,
        data_uri=_data_uri(photo),
    )


def _data_uri(photo: bytes) -> bytes:
    uri = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    return json.dumps({"model": "default", "modality": "image", "input": [uri]}).encode()


# --- who sends it


@asynccontextmanager
async def _grpc_sender(url: str, deadline: float) -> AsyncIterator[Send]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(url, options) as channel:
        infer = channel.unary_unary(GRPC_METHOD)

        async def send(request: Request) -> str:
            try:
                await infer(request.grpc, timeout=deadline)
            except grpc.aio.AioRpcError as error:
                match error.code():
                    case grpc.StatusCode.UNAVAILABLE:
                        return "rejected"
                    case grpc.StatusCode.DEADLINE_EXCEEDED:
                        return "late"
                    case code:
                        return f"{code.name}: {error.details()}"
            return "answered"

        yield send


@asynccontextmanager
async def _http_sender(protocol: str, url: str, deadline: float) -> AsyncIterator[Send]:
    timeout = aiohttp.ClientTimeout(total=deadline)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def send(request: Request) -> str:
            path, body, headers = request.message(protocol)
            try:
                async with session.post(
                    f"http://{url}/{path}", data=body, headers=headers
                ) as answer:
                    text = await answer.read()
            except TimeoutError:
                return "late"
            except aiohttp.ClientError as error:
                return f"connection: {error}"
            match answer.status:
                case 200:
                    return "answered"
                case 503:
                    return "rejected"
                case status:
                    return f"{status}: {text.decode(errors='replace')}"

        yield send


SENDERS: Final[dict[str, Callable[[str, float], AbstractAsyncContextManager[Send]]]] = {
    "grpc": _grpc_sender,
    **{name: partial(_http_sender, name) for name in ("http", "photo", "data_uri")},
}


# --- phases


@dataclass(frozen=True)
class Load:
    """How one phase asks.

    Attributes:
        seconds: how long photos become due.
        deadline: seconds after which an answer is of no use to anybody.
        rate: photos a second of an open loop; ``None`` for a closed one.
        clients: of the closed loop.
        seed: of the open loop's moments.
    """

    seconds: float
    deadline: float
    rate: float | None = None
    clients: int = 16
    seed: int = 0


async def _phases(urls: dict[str, str], args: argparse.Namespace) -> list[Phase]:
    """The closed loop, then the open ones; each on connections of its own."""
    requests = [prepare(photo, args.wait) for photo in photos(args.seed)]
    server = server_processes(next(iter(urls.values())))

    async def phase(name: str, rate: float | None) -> Phase:
        load = Load(args.seconds, args.deadline, rate, args.clients, args.seed)
        return await run_phase(name, urls, requests, load, server)

    phases = [await phase("closed", None)]
    loops = [(f"{rate:g}/s", rate) for rate in args.rates]
    loops += [(f"x{times:g}", times * phases[0].goodput) for times in args.times]
    for name, rate in loops:
        phases.append(await phase(name, rate))
    return phases


async def run_phase(
    name: str, urls: dict[str, str], requests: list[Request], load: Load, server: list[Path]
) -> Phase:
    """Load a server for a while.

    Args:
        name: what to call the phase.
        urls: protocol, one of :data:`SENDERS` → ``HOST:PORT``; requests take turns among them.
        requests: sent in turn, over and over.
        load: how many, and for how long.
        server: ``/proc/PID`` of its processes, for memory and CPU; empty if it is elsewhere.
    """
    draw = random.Random(load.seed)  # noqa: S311 - moments, not secrets
    async with AsyncExitStack() as stack:
        senders = [
            await stack.enter_async_context(SENDERS[protocol](url, load.deadline))
            for protocol, url in urls.items()
        ]
        work = zip(itertools.cycle(requests), itertools.cycle(senders), strict=False)
        with _sampled_memory(server) as memory:
            began, own, servers = time.monotonic(), time.process_time(), cpu_seconds(server)
            if load.rate is None:
                outcomes = await _closed_loop(work, load.clients, load.seconds)
            else:
                outcomes = await _open_loop(work, load.rate, load.seconds, draw)
            own = (time.process_time() - own) / (time.monotonic() - began)
            servers = cpu_seconds(server) - servers
    return _figures(name, outcomes, load, own, servers, memory)


async def _closed_loop(work: Work, clients: int, seconds: float) -> list[Outcome]:
    began = time.monotonic()

    async def client() -> list[Outcome]:
        outcomes = []
        while (due := time.monotonic() - began) < seconds:
            outcomes.append(await _ask(work, due, began))
        return outcomes

    return [
        outcome
        for outcomes in await asyncio.gather(*(client() for _ in range(clients)))
        for outcome in outcomes
    ]


async def _open_loop(work: Work, rate: float, seconds: float, draw: random.Random) -> list[Outcome]:
    began = time.monotonic()
    asked = []
    due = draw.expovariate(rate)
    while due < seconds:
        await asyncio.sleep(began + due - time.monotonic())
        asked.append(asyncio.create_task(_ask(work, due, began)))
        due += draw.expovariate(rate)
    return list(await asyncio.gather(*asked))


async def _ask(work: Work, due: float, began: float) -> Outcome:
    request, send = next(work)
    sent = time.monotonic() - began
    status = await send(request)
    return Outcome(due, sent, time.monotonic() - began, status)


# --- figures


@contextmanager
def _sampled_memory(server: list[Path]) -> Iterator[list[float]]:
    """MiB that the server's processes hold, twice a second; stays empty for another machine's."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            if server:
                samples.append(sum(map(resident_mib, server)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def server_processes(url: str) -> list[Path]:
    """``/proc/PID`` of the local tritonserver that listens on ``url``, and of its children."""
    port = url.rpartition(":")[2]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            flags = (process / "cmdline").read_bytes().split(b"\0")
            if f"--grpc-port={port}".encode() in flags or f"--http-port={port}".encode() in flags:
                return family(process)
    return []


def family(process: Path) -> list[Path]:
    """``/proc/PID`` of a process, its children, and theirs."""
    found = [process]
    with suppress(OSError):  # it ended
        numbers = [
            number
            for task in (process / "task").iterdir()
            for number in (task / "children").read_text().split()
        ]
        found += [one for number in numbers for one in family(Path("/proc", number))]
    return found


def resident_mib(process: Path) -> float:
    """Private and shared pages, shared ones by their part, so that a sum counts each once."""
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:  # it ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def cpu_seconds(server: list[Path]) -> float:
    """What these processes have used since they began; nothing of those that ended."""
    ticks = 0
    for process in server:
        with suppress(OSError):
            ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _figures(
    name: str,
    outcomes: list[Outcome],
    load: Load,
    generator_cpu: float,
    server_cpu_seconds: float,
    memory: list[float],
) -> Phase:
    seconds = load.seconds
    begin = LEFT_OUT * seconds
    counted = [outcome for outcome in outcomes if outcome.due >= begin]
    answered = [outcome for outcome in outcomes if outcome.status == "answered"]
    in_time = sum(
        begin <= outcome.done < seconds and outcome.done - outcome.due <= load.deadline
        for outcome in answered
    )
    latencies = [outcome.done - outcome.due for outcome in answered if outcome.due >= begin]
    statuses = Counter(outcome.status for outcome in counted)
    rejections = [o.done - o.due for o in counted if o.status == "rejected"]
    return Phase(
        name=name,
        offered=len(counted) / (seconds - begin),
        goodput=in_time / (seconds - begin),
        p50=_percentile(latencies, 50),
        p95=_percentile(latencies, 95),
        p99=_percentile(latencies, 99),
        answered=statuses.pop("answered", 0),
        rejected=statuses.pop("rejected", 0),
        rejected_p99=_percentile(rejections, 99),
        late=statuses.pop("late", 0),
        errors=dict(statuses),
        send_lag_p99=_percentile([o.sent - o.due for o in counted], 99) or 0.0,
        generator_cpu=generator_cpu,
        server_cpu_per_answer=server_cpu_seconds / len(answered) if answered else None,
        server_mib=memory,
        outcomes=outcomes,
    )


def _percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _print(report: dict[str, Any]) -> None:
    table = Table(
        *("phase", "offered/s", "goodput/s", "p50 ms", "p95 ms", "p99 ms", "rejected"),
        *("after p99 ms", "late", "errors", "send lag p99 ms", "generator CPU"),
        *("server CPU ms/answer", "server MiB"),
    )
    for phase in report["phases"]:
        memory = phase["server_mib"]
        table.add_row(
            phase["name"],
            f"{phase['offered']:.1f}",
            f"{phase['goodput']:.1f}",
            *(_milliseconds(phase[name]) for name in ("p50", "p95", "p99")),
            str(phase["rejected"]),
            _milliseconds(phase["rejected_p99"]),
            str(phase["late"]),
            str(sum(phase["errors"].values())),
            _milliseconds(phase["send_lag_p99"]),
            f"{phase['generator_cpu']:.0%}",
            _milliseconds(phase["server_cpu_per_answer"]),
            f"{memory[0]:.0f} → {memory[-1]:.0f}" if memory else "",
        )
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    for phase in report["phases"]:
        for error, count in phase["errors"].items():
            console.print(f"{phase['name']}: {count} x {error}", markup=False)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f}"


if __name__ == "__main__":
    main()
