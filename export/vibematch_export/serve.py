"""What ``vibematch serve`` does: run the server in the foreground until it is told to stop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vibematch.errors import ServerError
from vibematch_export.canary import MIN_COSINE
from vibematch_export.control import announced, require_nobody_serves
from vibematch_export.publish import ask_canary
from vibematch_export.repository import (
    ENCODER,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    read_manifest,
    read_version,
)
from vibematch_export.triton import DRAIN_TIMEOUT_S, TritonServer

CANARY_INTERVAL_S: Final = 300
"""Seldom enough to cost under one percent where a photo takes two seconds."""

_LIFE_CHECK_INTERVAL_S: Final = 2
_LIFE_CHECKS: Final = 6
"""So many in a row without an answer, and the server is given up: half a minute or more."""


class ServerEndedError(ServerError):
    """The server ended by itself after it had started well."""


def serve(repository: Path, server: TritonServer, log_path: Path) -> None:
    """Serve until SIGINT or SIGTERM, then stop the server in order and return.

    Call this from the main thread: it takes over both signals while it runs.

    Args:
        repository: what ``server`` serves.
        server: not started yet.
        log_path: where ``server`` logs to, for messages.

    Raises:
        InputError: the repository has no weights, is served already, or a port is taken.
        ManifestError: the repository carries no usable manifest.
        ServerEndedError: the server ended by itself.
        ServerError: the server could not start.
    """
    require_nobody_serves(repository)
    with _both_signals_interrupt():
        try:
            print(f"starting tritonserver on {repository} …", flush=True)
            with server, announced(repository, server.control) as can_publish:
                report = _report(repository, server, log_path, can_publish)
                _watch(server, report, log_path)
        except KeyboardInterrupt:  # during start-up, or again while stopping
            pass
    print("stopped", flush=True)


def default_log(repository: Path) -> Path:
    """Where the log goes by default: beside the repository."""
    return repository.with_name(f"{repository.name}.log")


def _watch(server: TritonServer, report: str, log_path: Path) -> None:
    """Say that it is ready, and block until a signal comes.

    Meanwhile see that it answers, replace processes that died, and ask the canary.

    Raises:
        ServerEndedError: the server ended by itself, or stopped answering.
    """
    silent, next_check_s = 0, time.monotonic() + CANARY_INTERVAL_S
    reviver = _Reviver(server)
    try:
        print(report, flush=True)
        while (status := server.wait(_LIFE_CHECK_INTERVAL_S)) is None:
            silent = 0 if server.is_alive() else silent + 1
            if silent == _LIFE_CHECKS:
                server.kill()
                raise ServerEndedError(f"tritonserver stopped answering: see {log_path}")
            reviver.look()
            if time.monotonic() >= next_check_s:
                _check(server)
                next_check_s = time.monotonic() + CANARY_INTERVAL_S
    except KeyboardInterrupt:
        print(f"stopping… (photos that were taken have {DRAIN_TIMEOUT_S} s)", flush=True)
    else:
        raise ServerEndedError(f"tritonserver ended by itself with status {status}: see {log_path}")


class _Reviver:
    """Replaces model processes that died: by a crash, or killed for memory."""

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._pause_s: float = _LIFE_CHECK_INTERVAL_S
        self._not_before_s = 0.0

    def look(self) -> None:
        """Load models anew that lost a process; if it does not help, wait longer each time."""
        if time.monotonic() < self._not_before_s:
            return
        lost: list[str] = []
        try:
            lost = self._server.lost_processes()
            for name in lost:
                _warn(f"a process of {name} died: loading the model anew")
                self._server.revive(name)
        except ServerError as error:
            _warn(f"the server's models cannot be looked after: {error}")
        self._pause_s = (
            min(2 * self._pause_s, CANARY_INTERVAL_S) if lost else _LIFE_CHECK_INTERVAL_S
        )
        self._not_before_s = time.monotonic() + (self._pause_s if lost else 0)


def _check(server: TritonServer) -> None:
    """Set the canary's metric, and warn where no alert reads it."""
    try:
        # By its own account: what lies on the disk may be the next release already.
        cosine = ask_canary(server.control, server.control.answering(ENCODER))
    except ServerError as error:  # busy, say: metrics tell more about it than this process can
        _warn(f"the canary photo could not be encoded: {error}")
        return
    if not cosine >= MIN_COSINE:
        _warn(
            f"the canary photo's vector has cosine {cosine:.6f} to the proven one (at least "
            f"{MIN_COSINE} is right): do not trust vectors made now"
        )


def _warn(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def _both_signals_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt as SIGINT does, even where SIGINT is ignored."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(repository: Path, server: TritonServer, log_path: Path, can_publish: bool) -> str:
    manifest = read_manifest(repository)
    canvas = manifest.preprocessing
    publish = (
        f"vibematch publish MODEL --repository {repository}"
        if can_publish
        else f"not from here: {repository.parent} cannot be written"
    )
    tls = " --root-certificates PEM" if server.is_encrypted else ""
    return f"""\
ready
  model     {ENCODER} version {read_version(repository)}, fingerprint {manifest.fingerprint[:12]}, \
{manifest.precision}, profile {server.control.profile}
  photos    JPEG, PNG or WebP → {canvas.width} x {canvas.height} pixels → {manifest.embedding_dim} \
numbers of unit length
  limits    {canvas.max_bytes:,} bytes and {canvas.max_pixels:,} pixels a photo, \
{MAX_BATCH_SIZE} photos a request, {MAX_QUEUE_SIZE} requests waiting
  gRPC      {server.grpc_url}{" (TLS)" if server.is_encrypted else ""}
  HTTP      http://{server.http_url}/v2/models/{ENCODER}
  metrics   http://{server.metrics_url}/metrics
  log       {log_path}
  update    {publish}
try       vibematch info {server.grpc_url}{tls}
Ctrl-C stops the server."""
