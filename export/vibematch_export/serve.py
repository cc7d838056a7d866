"""What ``vibematch serve`` does: run the server in the foreground until it is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vibematch.errors import ServerError
from vibematch.manifest import Manifest
from vibematch_export.repository import ENCODER, MAX_BATCH_SIZE, MAX_QUEUE_SIZE, read_manifest
from vibematch_export.triton import DRAIN_TIMEOUT_S, TritonServer


def serve(
    repository: Path, *, host: str, http_port: int, grpc_port: int, metrics_port: int
) -> None:
    """Serve until SIGINT or SIGTERM, then stop the server in order and return.

    Triton's log is written beside the repository, to ``<repository>.log``. Call this from the main
    thread: it takes over both signals while it runs.

    Args:
        repository: Triton model repository written by :func:`.repository.write_repository`.
        host: address to listen on.
        http_port: HTTP port; 0 takes a free one, here and below.
        grpc_port: gRPC port.
        metrics_port: Prometheus port.

    Raises:
        InputError: the repository has no weights, or a port is taken.
        ManifestError: the repository carries no usable manifest.
        ServerError: the server could not start, or ended by itself.
    """
    repository = repository.resolve()
    log_path = repository.with_name(f"{repository.name}.log")
    server = TritonServer(
        repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_path=log_path,
    )
    with _both_signals_interrupt():
        try:
            print(f"starting tritonserver on {repository} …", flush=True)
            with server:
                _run(server, _report(read_manifest(repository), server, log_path), log_path)
        except KeyboardInterrupt:  # during start-up, or again while stopping
            pass
    print("stopped", flush=True)


def _run(server: TritonServer, report: str, log_path: Path) -> None:
    """Block until a signal comes.

    Raises:
        ServerError: the server ended by itself.
    """
    try:
        print(report, flush=True)
        status = server.wait()
    except KeyboardInterrupt:
        print(f"stopping… (photos in the model have {DRAIN_TIMEOUT_S} s)", flush=True)
    else:
        raise ServerError(f"tritonserver ended by itself with status {status}: see {log_path}")


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


def _report(manifest: Manifest, server: TritonServer, log_path: Path) -> str:
    canvas = manifest.preprocessing
    return f"""\
ready
  model     {ENCODER}, fingerprint {manifest.fingerprint[:12]}, {manifest.precision}
  photos    JPEG, PNG or WebP → {canvas.width} x {canvas.height} pixels → {manifest.embedding_dim} \
numbers of unit length
  limits    {canvas.max_bytes:,} bytes and {canvas.max_pixels:,} pixels a photo, \
{MAX_BATCH_SIZE} photos a request, {MAX_QUEUE_SIZE} requests waiting
  gRPC      {server.grpc_url}
  HTTP      http://{server.http_url}/v2/models/{ENCODER}
  metrics   http://{server.metrics_url}/metrics
  log       {log_path}
try       vibematch encode PHOTO --url {server.grpc_url} --out vectors.npy
Ctrl-C stops the server."""
