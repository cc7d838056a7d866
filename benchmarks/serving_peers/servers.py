"""The servers that are compared: started, asked once, put to sleep while others have their turn."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import models
import numpy as np
import numpy.typing as npt
from macs import photo_work
from models import BackboneName
from serving_load import GRPC_METHOD, Request, family, server_processes
from tritonclient.grpc import service_pb2

from vibematch.preprocess import Preprocessing

BENCHMARKS: Final = Path(__file__).parents[1]
INFINITY: Final = Path(
    os.environ.get("INFINITY_PYTHON", BENCHMARKS.parent / "build/infinity-venv/bin/python")
)
FASTAPI: Final = "FastAPI + transformers"
CLIP_LAYERS: Final = 6
_HEAD_DIM: Final = 64
_PATCH: Final = 16
_POLL_S: Final = 0.05
START_TIMEOUT_S: Final = 600
_LAST_WORDS: Final = 2000

Vector = npt.NDArray[np.float32]


class Answer(NamedTuple):
    """A vector, if the protocol is one whose vectors are read, and the answer's bytes."""

    vector: Vector | None
    received: int


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        urls: protocol (see ``serving_load.SENDERS``) → ``HOST:PORT``.
        root: ``/proc/PID`` of the process that the others descend from.
    """

    urls: dict[str, str]
    root: Path

    def processes(self) -> list[Path]:
        """``/proc/PID`` of all its processes."""
        return family(self.root)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for a while."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes: children wake before those that watch them."""
        processes = self.processes()
        for process in reversed(processes) if number == signal.SIGCONT else processes:
            with suppress(ProcessLookupError):
                os.kill(int(process.name), number)

    def ask(self, request: Request, timeout_s: float, protocol: str | None = None) -> Answer:
        """One photo, alone, by the first of the protocols if none is named.

        Raises:
            grpc.RpcError, OSError: it does not answer, or not with a vector.
        """
        protocol = protocol or next(iter(self.urls))
        url = self.urls[protocol]
        if protocol == "grpc":
            return _ask_grpc(url, request, timeout_s)
        path, content, headers = request.message(protocol)
        asked = urllib.request.Request(f"http://{url}/{path}", content, headers)
        with urllib.request.urlopen(asked, timeout=timeout_s) as answer:  # noqa: S310 (http on loopback)
            body = answer.read()
        if protocol == "http":  # Triton's vectors are read over gRPC
            return Answer(None, len(body))
        found = json.loads(body)
        numbers = found["data"][0]["embedding"] if protocol == "data_uri" else found
        return Answer(np.asarray(numbers, np.float32), len(body))


def _ask_grpc(url: str, request: Request, timeout_s: float) -> Answer:
    with grpc.insecure_channel(url, [("grpc.max_send_message_length", -1)]) as channel:
        body: bytes = channel.unary_unary(GRPC_METHOD)(request.grpc, timeout=timeout_s)
    message = service_pb2.ModelInferResponse.FromString(body)
    return Answer(np.frombuffer(message.raw_output_contents[0], np.float32), len(body))


class Contender(NamedTuple):
    """Who takes part.

    Attributes:
        label: its name.
        start: runs it; ready when entered.
        model: what it computes with; only those of the same model compete.
        ours: whether it is ours.
        overloaded: whether it is asked for more than it can do: of each kind of server, one.
    """

    label: str
    start: Callable[[], AbstractContextManager[Server]]
    model: str = "same weights"
    ours: bool = False
    overloaded: bool = False


@contextmanager
def triton(model: Path) -> Iterator[Server]:
    """Our ensemble with an exported model."""
    with models.served(model) as running:
        root, *_ = server_processes(running.grpc_url)
        server = Server({"grpc": running.grpc_url, "http": running.http_url}, root)
        try:
            yield server
        finally:
            server.signal(signal.SIGCONT)  # it ends in order


@contextmanager
def fastapi(*options: str) -> Iterator[Server]:
    """FastAPI over the encoder of ``encoders.py``."""
    command = [sys.executable, "-m", "serving_peers.fastapi_server", *options]
    with _process(command, "photo") as server:
        yield server


@contextmanager
def litserve(*options: str) -> Iterator[Server]:
    """LitServe over the encoder of ``encoders.py``."""
    command = [sys.executable, "-m", "serving_peers.litserve_server", *options]
    with _process(command, "photo") as server:
        yield server


@contextmanager
def infinity(side: int, width: int, checkpoint: Path) -> Iterator[Server]:
    """infinity-emb, in its own environment, over a random CLIP."""
    script = BENCHMARKS / "serving_peers" / "infinity_server.py"
    sizes = f"--canvas={side}", f"--width={width}", f"--layers={CLIP_LAYERS}"
    command = [str(INFINITY), str(script), *sizes, f"--checkpoint={checkpoint.resolve()}"]
    with _process(command, "data_uri") as server:
        yield server


def clip_width(backbone: BackboneName, canvas: Preprocessing) -> tuple[int, int]:
    """Width of the CLIP tower that is nearest to our backbone's work, and its multiply-adds."""
    ours = photo_work(backbone, canvas).macs
    widths = range(_HEAD_DIM, 64 * _HEAD_DIM, _HEAD_DIM)
    width = min(widths, key=lambda width: abs(clip_macs(width, canvas) - ours))
    return width, clip_macs(width, canvas)


def clip_macs(width: int, canvas: Preprocessing) -> int:
    """Multiply-adds of a vision transformer whose MLPs are four times as wide as its states."""
    patches = (canvas.height // _PATCH) * (canvas.width // _PATCH)
    tokens = patches + 1
    layer = tokens * 12 * width**2 + 2 * tokens**2 * width
    return CLIP_LAYERS * layer + patches * 3 * _PATCH**2 * width


def missing() -> dict[str, str]:
    """Peers that are not installed → how to install them."""
    found = {}
    if not importlib.util.find_spec("fastapi") or not importlib.util.find_spec("uvicorn"):
        found["FastAPI"] = "pip install -e '.[benchmarks]'"
    if not importlib.util.find_spec("litserve"):
        found["LitServe"] = "pip install -e '.[benchmarks]'"
    if not INFINITY.exists():
        found["infinity-emb"] = "make build/infinity-venv/.installed"
    return found


@contextmanager
def _process(command: list[str], protocol: str) -> Iterator[Server]:
    """A server of one process and its children, which all end with this context."""
    port = _free_port()
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, f"--port={port}"],
            cwd=BENCHMARKS,
            env=os.environ | {"PATH": path},
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(process, port)
            yield Server({protocol: f"127.0.0.1:{port}"}, Path("/proc", str(process.pid)))
        except _NotStartedError as error:
            log.seek(0)
            words = log.read()[-_LAST_WORDS:].decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} {error}:\n{words}") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class _NotStartedError(Exception):
    """A server ended, or took too long."""


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            address = f"http://127.0.0.1:{port}/health"
            urllib.request.urlopen(address, timeout=5).close()
            return
        if process.poll() is not None:
            raise _NotStartedError(f"ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise _NotStartedError(f"was not ready within {START_TIMEOUT_S} s")
        time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
