"""The encoder where the network and the server misbehave: repetition, deadlines, cancellation.

Also what only a server that counts can show: which photos the vector cache keeps from travelling,
and what a change of models does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import http.server
import logging
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from vibematch.encoder import AsyncEncoder, Encoder
from vibematch.errors import (
    BadVectorError,
    ModelChangedError,
    PhotoError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from vibematch.manifest import Manifest
from vibematch.transport import MAX_TOKENS

WAIT_S = 20
"""Longer than anything here takes, so that a test that fails does not hang."""


def _reset(connection: socket.socket) -> None:
    """Lose a connection, without the farewell of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class GrpcServer:
    """KServe's protocol in a few lines; does what it is told before it answers.

    Its vectors depend on the photo and the model.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.plan: deque[str] = deque()
        self.photos: list[bytes] = []
        self.asked_for_config = 0
        self.left = threading.Semaphore(0)
        """Released by each caller who hung up on an answer that was not coming."""
        handlers = {
            "ModelConfig": grpc.unary_unary_rpc_method_handler(
                self._config,
                service_pb2.ModelConfigRequest.FromString,
                service_pb2.ModelConfigResponse.SerializeToString,
            ),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(
                self._infer,
                service_pb2.ModelInferRequest.FromString,
                service_pb2.ModelInferResponse.SerializeToString,
            ),
        }
        options = [("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        service = "inference.GRPCInferenceService"
        handler = grpc.method_handlers_generic_handler(service, handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> GrpcServer:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(None)

    def vector(self, photo: bytes) -> np.ndarray:
        digest = hashlib.sha256(photo + self.manifest.fingerprint.encode()).digest()
        vector = np.random.default_rng(list(digest)).normal(size=self.manifest.embedding_dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _config(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked_for_config += 1
        response = service_pb2.ModelConfigResponse()
        response.config.parameters["manifest"].string_value = self.manifest.to_json()
        return response

    def _infer(self, request: Any, context: grpc.ServicerContext) -> Any:
        photo = request.raw_input_contents[0][4:]
        self.photos.append(photo)
        order = self.plan.popleft() if self.plan else ""
        if order == "mute":
            gone = threading.Event()
            if context.add_callback(gone.set):
                gone.wait(WAIT_S)
            self.left.release()
        elif order == "slow":
            gone = threading.Event()
            if not context.add_callback(gone.set) or gone.wait(0.2):
                self.left.release()
        elif order:
            context.abort(getattr(grpc.StatusCode, order), "the queue is full")
        response = service_pb2.ModelInferResponse()
        response.outputs.add(name="embedding", datatype="FP32", shape=[1, len(self.vector(photo))])
        response.outputs.add(name="fingerprint", datatype="BYTES", shape=[1, 1])
        fingerprint = self.manifest.fingerprint.encode()
        response.raw_output_contents.append(self.vector(photo).tobytes())
        response.raw_output_contents.append(struct.pack("<I", len(fingerprint)) + fingerprint)
        return response


class HttpGateway:
    """Passes requests on to the real server, unless it is told to do something else first."""

    def __init__(self, target: str, trust: ssl.SSLContext | None = None) -> None:
        self.plan: deque[str] = deque()
        self.paths: list[str] = []
        self.connections = 0
        self.left = threading.Semaphore(0)
        """Released by each caller who hung up on an answer that was not coming."""
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                gateway.connections += 1
                super().setup()

            def do_GET(self) -> None:
                gateway._handle(self, target)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if trust is not None:
            scheme = "https"
            self._server.socket = trust.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> HttpGateway:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: http.server.BaseHTTPRequestHandler, target: str) -> None:
        self.paths.append(request.path)
        if self.plan and self.plan[0] == "hasty":
            self.plan.popleft()
            request.wfile.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            request.close_connection = True
            return
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        order = self.plan.popleft() if self.plan else ""
        if order == "reset":
            request.close_connection = True
            _reset(request.connection)
        elif order == "mute":
            request.close_connection = True
            with contextlib.suppress(OSError):
                request.connection.settimeout(WAIT_S)
                request.connection.recv(1)
            self.left.release()
        elif order == "drip":  # an answer that always goes on, and never ends
            with contextlib.suppress(OSError):
                request.wfile.write(b"HTTP/1.1 200 OK\r\nPatience: ")
                for _ in range(int(WAIT_S / 0.02)):
                    request.wfile.write(b".")
                    time.sleep(0.02)
            request.close_connection = True
        elif order:
            status, _, content = order.partition(" ")
            self._answer(request, int(status), {}, content.encode())
        else:
            self._pass_on(request, target, body)

    def _pass_on(
        self, request: http.server.BaseHTTPRequestHandler, target: str, body: bytes
    ) -> None:
        connection = http.client.HTTPConnection(target, timeout=WAIT_S)
        with contextlib.closing(connection):
            headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
            connection.request(request.command, request.path, body, headers)
            response = connection.getresponse()
            self._answer(request, response.status, dict(response.headers), response.read())

    def _answer(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)

    @property
    def photos(self) -> int:
        """How many photos came by."""
        return sum(path.endswith("/infer") for path in self.paths)


class Relay:
    """A TCP port that loses the first connections after their first words, and passes the rest."""

    def __init__(self, target: str, losses: int) -> None:
        self._target = target
        self.losses = losses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        host, _, port = self._target.rpartition(":")
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.losses:
                self.losses -= 1
                near.recv(1)
                _reset(near)
                continue
            far = socket.create_connection((host, int(port)))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once over HTTP (how gRPC does it cannot be hurried), and close sooner."""
    monkeypatch.setattr("vibematch.http_transport.FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr("vibematch.grpc_transport._FAREWELL_S", 0.6)


@pytest.fixture
def manifest(exported: Path) -> Manifest:
    return Manifest.load(exported)


@pytest.fixture
def grpc_server(manifest: Manifest) -> Iterator[GrpcServer]:
    with GrpcServer(manifest) as running:
        yield running


@pytest.fixture
def gateway(server: Any) -> Iterator[HttpGateway]:
    with HttpGateway(server.http_url) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def between(request: pytest.FixtureRequest) -> Any:
    """A server, or a gateway to one, that does what its ``plan`` says."""
    return request.getfixturevalue("grpc_server" if request.param == "grpc" else "gateway")


BUSY = {GrpcServer: "UNAVAILABLE", HttpGateway: '503 {"error": "the queue is full"}'}


# --- asking again


def test_a_busy_server_is_asked_again(between: Any, photos: list[bytes]) -> None:
    with Encoder(between.url, cache_size=0) as encoder:
        expected = encoder.encode(photos[:1])
        between.plan.extend([BUSY[type(between)]] * 2)
        assert np.allclose(encoder.encode(photos[:1]), expected, atol=1e-6)
        assert not between.plan


def test_a_phones_photo_is_asked_for_again_whole(grpc_server: GrpcServer) -> None:
    grpc_server.plan.extend(["UNAVAILABLE"] * 9)
    grpc_server.manifest = replace(
        grpc_server.manifest,
        preprocessing=replace(grpc_server.manifest.preprocessing, max_bytes=4_000_000),
    )
    with (
        Encoder(grpc_server.url) as encoder,
        pytest.raises(ServerUnavailableError, match="is overloaded: try again later"),
    ):
        encoder.encode([bytes(3_000_000)])
    assert list(map(len, grpc_server.photos)) == [3_000_000] * 4


def test_a_photo_is_sent_four_times_at_most(gateway: HttpGateway, photos: list[bytes]) -> None:
    with Encoder(gateway.url) as encoder:
        encoder.manifest  # noqa: B018
        gateway.plan.extend([BUSY[HttpGateway]] * 9)
        with pytest.raises(ServerUnavailableError, match="is overloaded: try again later"):
            encoder.encode(photos[:1])
    assert len(gateway.plan) == 5


def test_what_asking_again_cannot_change_is_asked_once(
    gateway: HttpGateway, photos: list[bytes]
) -> None:
    orders: dict[str, tuple[type[Exception], str]] = {
        '400 {"error": "in ensemble \'style_encoder\', no"}': (PhotoError, "^no$"),
        '404 {"error": "no such model"}': (ServerError, "has no model 'style_encoder'"),
        '500 {"error": "out of memory"}': (ServerError, r"failed \(INTERNAL\): out of memory"),
        '504 {"error": "late"}': (ServerTimeoutError, "did not answer within"),
        "504 <html>": (ServerTimeoutError, "did not answer within"),
        "404 <html>": (ServerError, "something else that speaks HTTP"),
        "413 <html>": (ServerError, "answered 413 Request Entity Too Large: see what stands in"),
        "200 <html>": (ServerError, "something else that speaks HTTP"),
        '200 {"outputs": [{"name": "embedding"}]}': (ServerError, "something else that speaks"),
        '200 {"outputs": []}': (ModelChangedError, "went over from model"),
    }
    with Encoder(gateway.url) as encoder:
        for order, (error, words) in orders.items():
            encoder.manifest  # noqa: B018
            before = gateway.photos
            gateway.plan.append(order)
            (result,) = encoder.encode_each(photos[:1], fingerprint=encoder.manifest.fingerprint)
            assert type(result) is error, order
            with pytest.raises(error, match=words):
                raise result
            assert gateway.photos == before + 1, order


def test_a_refusal_that_did_not_wait_for_the_photo_is_read(gateway: HttpGateway) -> None:
    with Encoder(gateway.url) as encoder:
        encoder.manifest  # noqa: B018
        gateway.plan.append("hasty")
        with pytest.raises(ServerError, match="answered 413 Too Large"):
            encoder.encode([bytes(5_000_000)])
    assert gateway.photos == 1


def test_an_answer_cut_short_is_asked_for_again(gateway: HttpGateway, photos: list[bytes]) -> None:
    gateway.plan.extend(["", "reset", "503 <html>", "502 <html>"])
    with Encoder(gateway.url) as encoder:
        assert encoder.encode(photos[:1]).shape == (1, 16)
    assert gateway.photos == 4


def test_a_lost_connection_is_made_again(server: Any, photos: list[bytes]) -> None:
    for prefix, url in (("", server.grpc_url), ("http://", server.http_url)):
        with Relay(url, losses=2) as relay, Encoder(prefix + relay.url) as encoder:
            assert encoder.encode(photos).shape == (9, 16)
            assert relay.losses == 0


def test_repetitions_are_logged_and_nothing_else(
    gateway: HttpGateway, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vibematch"), Encoder(gateway.url) as encoder:
        encoder.encode(photos)
        assert caplog.messages == []
        gateway.plan.append("reset")
        encoder.encode([b"\xff\xd8\xff" + photos[0]], strict=False)
        (message,) = caplog.messages
    assert message.startswith("no vibematch server answers at http://127.0.0.1:")
    assert caplog.records[0].levelno == logging.INFO


def test_a_server_that_fails_most_questions_gets_none_twice(
    gateway: HttpGateway, photos: list[bytes]
) -> None:
    with Encoder(gateway.url, cache_size=0) as encoder:
        encoder.manifest  # noqa: B018
        retries = encoder._transport._retries  # type: ignore[attr-defined]
        retries._tokens = MAX_TOKENS / 2 + 1
        gateway.plan.extend([BUSY[HttpGateway]] * 2)
        results = encoder.encode(photos[:1] * 2, strict=False)
        assert {type(result) for result in results} == {ServerUnavailableError}
        assert gateway.photos == 2
        encoder.encode(photos[:9])
        assert retries._tokens == pytest.approx(MAX_TOKENS / 2 - 1 + 0.9)


def test_connections_are_kept(gateway: HttpGateway, photos: list[bytes]) -> None:
    with Encoder(gateway.url, max_in_flight=1, cache_size=0) as encoder:
        encoder.encode(photos)
        assert gateway.connections == 1
    with Encoder(gateway.url, max_in_flight=3, cache_size=0) as encoder:
        encoder.encode(photos * 2)
        assert gateway.connections <= 1 + 3


# --- deadlines


@pytest.mark.parametrize("order", ["mute", "drip"])
def test_a_server_that_never_answers_is_left_at_the_deadline(
    order: str, gateway: HttpGateway, photos: list[bytes]
) -> None:
    with Encoder(gateway.url, timeout_s=0.3) as encoder:
        encoder.manifest  # noqa: B018
        gateway.plan.append(order)
        with pytest.raises(ServerTimeoutError, match=r"did not answer within 0\.3 s"):
            encoder.encode(photos[:1])
        if order == "mute":
            assert gateway.left.acquire(timeout=WAIT_S)
        assert encoder.encode(photos[:1]).shape == (1, 16)


def test_grpc_leaves_a_server_that_never_answers(
    grpc_server: GrpcServer, photos: list[bytes]
) -> None:
    grpc_server.plan.append("mute")
    with Encoder(grpc_server.url, timeout_s=0.3) as encoder:
        with pytest.raises(ServerTimeoutError, match=r"did not answer within 0\.3 s"):
            encoder.encode(photos[:1])
        assert grpc_server.left.acquire(timeout=WAIT_S)


@pytest.mark.parametrize("prefix", ["", "http://", "https://"])
def test_a_port_that_says_nothing_is_left_at_the_deadline(prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{prefix}127.0.0.1:{silent.getsockname()[1]}"
        with (
            Encoder(url, timeout_s=0.3) as encoder,
            pytest.raises(ServerTimeoutError, match=r"did not answer within 0\.3 s"),
        ):
            encoder.manifest  # noqa: B018


# --- cancellation


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.005)


def test_an_exception_where_photos_come_from_leaves_what_is_in_flight(
    between: Any, photos: list[bytes]
) -> None:
    def breaking() -> Iterator[bytes]:
        yield from photos[:2]
        _until(lambda: not between.plan)  # both have arrived
        raise RuntimeError("the disk is gone")

    with Encoder(between.url) as encoder:
        encoder.manifest  # noqa: B018
        between.plan.extend(["mute", "mute"])
        results = encoder.encode_each(breaking(), fingerprint=encoder.manifest.fingerprint)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            list(results)
    assert all(between.left.acquire(timeout=WAIT_S) for _ in range(2))


def test_ctrl_c_leaves_what_is_in_flight(between: Any, photos: list[bytes]) -> None:
    def interrupt() -> None:
        _until(lambda: not between.plan)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with Encoder(between.url) as encoder:
        encoder.manifest  # noqa: B018
        between.plan.extend(["mute", "mute"])
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(photos[:2])
        thread.join()
    assert all(between.left.acquire(timeout=WAIT_S) for _ in range(2))


def test_cancelling_a_task_leaves_what_is_in_flight(between: Any, photos: list[bytes]) -> None:
    async def ask() -> None:
        async with AsyncEncoder(between.url, max_in_flight=2) as encoder:
            await encoder.manifest()
            between.plan.extend(["mute", "mute"])
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(encoder.encode(photos), 0.5)
            assert not between.plan
            assert (await encoder.encode(photos[2:3])).shape == (1, 16)

    asyncio.run(ask())
    assert len(between.photos) == 3 if isinstance(between, GrpcServer) else between.photos == 3
    assert all(between.left.acquire(timeout=WAIT_S) for _ in range(2))


def test_cancelling_a_task_does_not_wait_for_the_photos_to_come(
    gateway: HttpGateway, photos: list[bytes]
) -> None:
    released = threading.Event()
    closed = threading.Event()

    def slow() -> Iterator[bytes]:
        try:
            yield photos[0]
            released.wait(WAIT_S)
            yield photos[1]
        finally:
            closed.set()

    async def ask() -> None:
        async with AsyncEncoder(gateway.url) as encoder:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(encoder.encode_each(slow()).__anext__(), 0.3)
            assert not closed.is_set()
            released.set()
            assert await asyncio.to_thread(closed.wait, WAIT_S)

    asyncio.run(ask())


def test_grpc_never_cancels_what_the_server_computes_anyway(
    grpc_server: GrpcServer, photos: list[bytes]
) -> None:
    def breaking() -> Iterator[bytes]:
        yield from photos[:2]
        _until(lambda: not grpc_server.plan)  # both have arrived
        raise RuntimeError("the disk is gone")

    with Encoder(grpc_server.url, timeout_s=WAIT_S) as encoder:
        encoder.manifest  # noqa: B018
        grpc_server.plan.extend(["slow", "slow"])
        with pytest.raises(RuntimeError, match="the disk is gone"):
            list(encoder.encode_each(breaking()))
    assert not grpc_server.left.acquire(blocking=False)
    assert len(grpc_server.photos) == 2


def test_closing_the_encoder_fails_what_is_in_flight(between: Any, photos: list[bytes]) -> None:
    encoder = Encoder(between.url)
    encoder.manifest  # noqa: B018
    between.plan.append("mute")
    threading.Timer(0.3, encoder.close).start()
    with pytest.raises(ServerError, match="was closed while it was in use"):
        encoder.encode(photos[:1])
    assert between.left.acquire(timeout=WAIT_S)
    assert encoder.encode(photos[:1]).shape == (1, 16)
    encoder.close()


# --- the model changes


def test_all_vectors_of_a_call_come_from_the_new_model(
    grpc_server: GrpcServer, photos: list[bytes]
) -> None:
    with Encoder(grpc_server.url, max_in_flight=1) as encoder:
        old = encoder.encode(photos[:2])
        grpc_server.manifest = replace(grpc_server.manifest, head_sha256="2" * 64)
        assert np.array_equal(encoder.encode(photos[:2]), old)  # remembered: nobody was asked
        vectors = encoder.encode(photos[:3])  # the third one is new, and tells
        assert np.array_equal(vectors, [grpc_server.vector(photo) for photo in photos[:3]])
        assert encoder.manifest == grpc_server.manifest
        assert not np.allclose(vectors[:2], old)


def test_errors_of_a_model_change_are_named_if_it_goes_on(
    grpc_server: GrpcServer, photos: list[bytes]
) -> None:
    manifests = [replace(grpc_server.manifest, head_sha256=digit * 64) for digit in "2345"]

    def changing() -> Iterator[bytes]:
        for photo, manifest in zip(photos, manifests, strict=False):
            yield photo
            grpc_server.manifest = manifest

    with Encoder(grpc_server.url, max_in_flight=1) as encoder:
        results = list(encoder.encode_each(changing()))
        assert isinstance(results[0], np.ndarray)
        assert [type(result) for result in results[1:]] == [ModelChangedError] * 3
        assert f"went over from model {encoder.manifest.fingerprint[:12]}" not in str(results[1])


def test_the_model_is_asked_for_once(grpc_server: GrpcServer, photos: list[bytes]) -> None:
    with Encoder(grpc_server.url) as encoder:
        fingerprint = encoder.manifest.fingerprint
        encoder.encode(photos)
        list(encoder.encode_each(photos[:2], fingerprint=fingerprint))
        assert encoder.manifest.fingerprint == fingerprint
        assert grpc_server.asked_for_config == 1
        list(encoder.encode_each(photos[:2], fingerprint="f" * 64))
        assert grpc_server.asked_for_config == 2
        assert len(grpc_server.photos) == len(photos)


def test_the_wanted_model_is_found_after_a_change(
    grpc_server: GrpcServer, photos: list[bytes]
) -> None:
    with Encoder(grpc_server.url) as encoder:
        old = encoder.manifest.fingerprint
        grpc_server.manifest = replace(grpc_server.manifest, head_sha256="2" * 64)
        new = grpc_server.manifest.fingerprint
        (vector,) = encoder.encode_each(photos[:1], fingerprint=new)
        assert np.array_equal(vector, grpc_server.vector(photos[0]))
        (error,) = encoder.encode_each(photos[:1], fingerprint=old)
        assert isinstance(error, ModelChangedError)


def test_bad_vectors_are_no_vectors_and_are_not_remembered(
    grpc_server: GrpcServer, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Encoder(grpc_server.url) as encoder:
        bad = np.full(16, np.nan, np.float32)
        monkeypatch.setattr(grpc_server, "vector", lambda photo: bad)
        with pytest.raises(BadVectorError, match="photo 0: the server answered a vector"):
            encoder.encode(photos[:1])
        monkeypatch.undo()
        assert np.isfinite(encoder.encode(photos[:1])).all()


# --- the cache


def test_a_photo_that_is_known_does_not_travel(
    gateway: HttpGateway, photos: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photos[0])
    with Encoder(gateway.url) as encoder:
        first = encoder.encode(photos)
        first[:] = 0  # what the caller does with them is no matter of the cache's
        asked = list(gateway.paths)
        again = encoder.encode([path, *photos[1:]])
        assert gateway.paths == asked
        assert np.allclose(np.linalg.norm(again, axis=1), 1, atol=1e-5)
        for result in encoder.encode([photos[0], b"no", b"no"], strict=False)[:1]:
            assert result.flags.writeable
        assert gateway.photos == len(photos) + 2  # errors are not remembered


def test_the_cache_has_a_size(gateway: HttpGateway, photos: list[bytes]) -> None:
    with Encoder(gateway.url, cache_size=2) as encoder:
        encoder.encode(photos[:2])
        encoder.encode(photos[:1])
        encoder.encode(photos[2:3])
        assert gateway.photos == 3
        encoder.encode([photos[0], photos[2]])
        assert gateway.photos == 3
        encoder.encode(photos[1:2])
        assert gateway.photos == 4
    with Encoder(gateway.url, cache_size=0) as encoder:
        encoder.encode(photos[:1])
        encoder.encode(photos[:1])
        assert gateway.photos == 6


def test_downscaled_photos_have_vectors_of_their_own(
    gateway: HttpGateway, photos: list[bytes], tmp_path: Path
) -> None:
    for downscale, travelled in ((False, 1), (True, 2), (False, 2), (True, 2)):
        with Encoder(gateway.url, downscale=downscale, cache_path=tmp_path / "cache") as encoder:
            encoder.encode(photos[:1])
        assert gateway.photos == travelled


CLIENT = """
import sys
import numpy as np
from vibematch import Encoder
url, cache, *photos = sys.argv[1:]
with Encoder(url, cache_path=cache, cache_size=0) as encoder:
    sys.stdout.buffer.write(encoder.encode(photos).tobytes())
"""


def test_processes_share_a_cache(gateway: HttpGateway, photos: list[bytes], tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(len(photos))]
    for file, photo in zip(files, photos, strict=True):
        file.write_bytes(photo)
    command = [sys.executable, "-c", CLIENT, gateway.url, str(tmp_path / "cache")]
    together = [
        subprocess.Popen([*command, *map(str, files)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0] for process in together]
    travelled = gateway.photos
    with Encoder(gateway.url, cache_path=tmp_path / "cache") as encoder:
        answers.append(encoder.encode(files).tobytes())
    assert answers == answers[:1] * 3 and len(answers[0]) == 9 * 16 * 4
    assert gateway.photos == travelled <= 18


# --- TLS over HTTP, by a gateway


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += f" -keyout {key} -out {certificate} -subj /CN=test -addext"
    subprocess.run(
        [*command.split(), "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    return certificate, key


@pytest.fixture
def tls_gateway(server: Any, pair: tuple[Path, Path]) -> Iterator[HttpGateway]:
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(*pair)
    with HttpGateway(server.http_url, trust) as running:
        yield running


def test_https(tls_gateway: HttpGateway, pair: tuple[Path, Path], photos: list[bytes]) -> None:
    with Encoder(tls_gateway.url, root_certificates=pair[0], cache_size=0) as encoder:
        vectors = encoder.encode(photos)
        tls_gateway.plan.append("reset")
        assert np.allclose(encoder.encode(photos), vectors, atol=1e-6)
        tls_gateway.plan.append("mute")
        threading.Timer(0.3, encoder.close).start()
        with pytest.raises(ServerError, match="was closed while it was in use"):
            encoder.encode(photos[:1])


def test_https_names_what_is_wrong(
    tls_gateway: HttpGateway, server: Any, pair: tuple[Path, Path]
) -> None:
    cases: dict[tuple[str, Path | None], str] = {
        (tls_gateway.url, None): r"is not trusted \(self-signed certificate\)",
        (f"https://localhost:{tls_gateway.port}", pair[0]): "is for another host",
        (f"https://{server.http_url}", pair[0]): "not in TLS: write http://",
        (f"http://127.0.0.1:{tls_gateway.port}", None): "no vibematch server|not in plain HTTP",
    }
    for (url, certificates), words in cases.items():
        with (
            Encoder(url, root_certificates=certificates) as encoder,
            pytest.raises(ServerError, match=words),
        ):
            encoder.manifest  # noqa: B018


def test_a_gateways_path_comes_first(gateway: HttpGateway) -> None:
    with Encoder(f"{gateway.url}/style/") as encoder, pytest.raises(ServerError):
        encoder.manifest  # noqa: B018
    assert gateway.paths == ["/style/v2/models/style_encoder/config"]
