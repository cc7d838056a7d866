"""Questions to the embedding server over HTTP, with KServe's binary tensors."""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from vibematch.errors import ServerError, ServerUnavailableError, VibematchError
from vibematch.transport import (
    BACKOFF_FACTOR,
    FINGERPRINT,
    FIRST_BACKOFF_S,
    INPUT,
    MAX_ATTEMPTS,
    MAX_BACKOFF_S,
    MAX_TOKENS,
    OUTPUT,
    TOKENS_PER_SUCCESS,
    Answer,
    T,
    Transport,
    settle,
    text_of,
)

_LOG = logging.getLogger(__name__)

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
_MAX_ANSWER_BYTES: Final = 16 * 2**20
_SENT_AT_ONCE: Final = 256 * 2**10
_JITTER: Final = 0.2
"""As in gRPC."""
_DTYPES: Final = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2"}
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",  # a gateway's: its server is away
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MISMATCHES: Final = {62, 64}
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


class _Request(NamedTuple):
    method: Literal["GET", "POST"]
    path: str
    headers: Mapping[str, str] = {}
    body: Sequence[bytes] = ()


class _Response(NamedTuple):
    status: int
    phrase: str
    json_length: int | None
    content: bytes


class _StoppedError(Exception):
    """Nobody waits for this answer any more."""


class _HandshakeError(Exception):
    """The other side hung up on the first word of TLS."""


class HttpTransport(Transport):
    """As many persistent connections as there are photos in flight, each with a thread.

    Args:
        url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``; a path is put before ``/v2``.
        timeout_s: seconds that a question may take.
        connections: how many there are, at most.
        root_certificates: PEM file of trusted authorities; without one those of the system.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        connections: int,
        root_certificates: str | os.PathLike[str] | None,
    ) -> None:
        super().__init__(url, timeout_s)
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/")
        self._trust = None
        if parts.scheme == "https":
            self._trust = ssl.create_default_context(cafile=root_certificates)
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="vibematch-http")
        self._retries = _Throttle()
        self._guard = threading.Lock()
        self._idle: list[_Connection] = []
        self._exchanges: set[_Exchange] = set()
        self._is_closed = False

    def infer(self, model: str, photo: bytes, finish: Callable[[Answer], T]) -> Future[T]:
        """See :meth:`Transport.infer`."""
        head = json.dumps(
            {
                "parameters": {"timeout": self._wait_us},
                "inputs": [
                    {
                        "name": INPUT,
                        "datatype": "BYTES",
                        "shape": [1, 1],
                        "parameters": {"binary_data_size": 4 + len(photo)},
                    }
                ],
                "outputs": [
                    {"name": name, "parameters": {"binary_data": True}}
                    for name in (OUTPUT, FINGERPRINT)
                ],
            }
        ).encode()
        body = (head, len(photo).to_bytes(4, "little"), photo)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(sum(map(len, body))),
            _JSON_LENGTH: str(len(head)),
        }
        request = _Request("POST", f"/v2/models/{quote(model)}/infer", headers, body)
        return self._ask(request, lambda response: finish(self._answer(response)), model)

    def config(self, model: str, finish: Callable[[dict[str, Any]], T]) -> Future[T]:
        """See :meth:`Transport.config`."""
        request = _Request("GET", f"/v2/models/{quote(model)}/config")
        return self._ask(request, lambda response: finish(self._json(response)), model)

    def metadata(self, model: str = "") -> Future[dict[str, Any]]:
        """See :meth:`Transport.metadata`."""
        path = f"/v2/models/{quote(model)}" if model else "/v2"
        return self._ask(_Request("GET", path), self._json, model)

    def close(self) -> None:
        """See :meth:`Transport.close`."""
        with self._guard:
            self._is_closed = True
            idle, self._idle = self._idle, []
            exchanges = list(self._exchanges)
        for connection in idle:
            connection.close()
        for exchange in exchanges:
            exchange.stop()
        self._pool.shutdown(wait=False)  # what still waits there fails, as this is closed

    # --- one question

    def _ask(self, request: _Request, finish: Callable[[_Response], T], model: str) -> Future[T]:
        answer: Future[T] = Future()
        exchange = _Exchange(self._timeout_s)
        answer.add_done_callback(lambda done: exchange.stop() if done.cancelled() else None)
        try:
            self._pool.submit(
                settle, answer, lambda: finish(self._repeated(request, exchange, model))
            )
        except RuntimeError:  # the pool is shut down
            answer.set_exception(self._closed())
        return answer

    def _repeated(self, request: _Request, exchange: _Exchange, model: str) -> _Response:
        """The answer to a request, asked again where that may help."""
        with self._guard:
            if self._is_closed:
                raise self._closed()
            self._exchanges.add(exchange)
        try:
            attempt = 0
            while True:
                attempt += 1
                outcome = self._attempt(request, exchange, model)
                if isinstance(outcome, _Response):
                    self._retries.succeeded()
                    return outcome
                pause_s = _backoff_s(attempt)
                may_repeat = self._retries.failed() and attempt < MAX_ATTEMPTS
                if not may_repeat or pause_s > exchange.left_s():
                    raise outcome
                _LOG.info("%s; asking again in %.1f s", outcome, pause_s)
                exchange.pause(pause_s)
        except TimeoutError as error:
            raise self._timed_out() from error
        except _StoppedError as error:
            raise self._closed() from error
        finally:
            with self._guard:
                self._exchanges.discard(exchange)

    def _attempt(
        self, request: _Request, exchange: _Exchange, model: str
    ) -> _Response | ServerUnavailableError:
        """The answer, or an error after which asking again may help; other errors are raised."""
        try:
            response = self._exchanged(request, exchange)
        except TimeoutError:
            raise
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _MISMATCHES:
                raise self._other_host() from error
            raise self._not_trusted(error.verify_message) from error
        except _HandshakeError:
            return self._not_http()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, http.client.IncompleteRead):
            return self._unreachable()
        except ssl.SSLError as error:
            raise self._not_http() from error
        except (OSError, UnicodeError):  # before HTTPException: a lost connection counts as both
            return self._unreachable()
        except http.client.HTTPException as error:
            raise self._not_http() from error
        if response.status == http.HTTPStatus.OK:
            return response
        refused = self._translate(response, model)
        if isinstance(refused, ServerUnavailableError) and response.status in (502, 503):
            return refused
        raise refused

    def _exchanged(self, request: _Request, exchange: _Exchange) -> _Response:
        connection = self._connection()
        try:
            exchange.use(connection)
            response = connection.exchange(request, self._path, exchange)
            exchange.release()
        except BaseException as error:
            connection.close()
            if exchange.stopped:  # which is why it was lost
                raise _StoppedError from error
            raise
        with self._guard:
            if not (self._is_closed or connection.is_lost()):
                self._idle.append(connection)
                return response
        connection.close()
        return response

    def _connection(self) -> _Connection:
        with self._guard:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_lost():
                    return connection
                connection.close()
        return _Connection(self._host, self._port, self._trust)

    # --- its answer

    def _answer(self, response: _Response) -> Answer:
        length = response.json_length
        try:
            head = json.loads(response.content[:length])
            tensors = _tensors(head, response.content[length:] if length is not None else b"")
        except (ValueError, TypeError, KeyError) as error:
            raise self._other_service("HTTP") from error
        return Answer(tensors.get(OUTPUT), text_of(tensors.get(FINGERPRINT)))

    def _json(self, response: _Response) -> dict[str, Any]:
        try:
            return dict(json.loads(response.content))
        except (ValueError, TypeError) as error:
            raise self._other_service("HTTP") from error

    def _translate(self, response: _Response, model: str) -> VibematchError:
        status = _STATUSES.get(response.status)
        try:
            reason = str(json.loads(response.content)["error"])
        except (ValueError, TypeError, KeyError):
            if status == "UNAVAILABLE":  # a gateway's words, for people who look at a page
                return self._refused(status, f"{response.status} {response.phrase}", model)
            if status == "DEADLINE_EXCEEDED":
                return self._timed_out()
            if response.status in (400, 404, 405, 501):
                return self._other_service("HTTP")
            return ServerError(
                f"{self._url} answered {response.status} {response.phrase}: see what stands in "
                "front of the server"
            )
        return self._refused(status or f"{response.status} {response.phrase}", reason, model)

    def _not_http(self) -> ServerUnavailableError:
        how = (
            "in TLS: write http:// if the server does not encrypt"
            if self._trust
            else "in plain HTTP: write https:// if the server encrypts"
        )
        return self._other_protocol(
            f"{how}, and check that this is its HTTP port (8000 by default; 8001 is gRPC): to "
            "speak gRPC, write HOST:PORT"
        )


def _backoff_s(attempt: int) -> float:
    """Seconds to wait after the ``attempt``-th one, counted from 1."""
    backoff_s = min(FIRST_BACKOFF_S * BACKOFF_FACTOR ** (attempt - 1), MAX_BACKOFF_S)
    return backoff_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


def _tensors(head: Any, binary: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an answer, by name.

    Raises:
        ValueError, TypeError, KeyError: they are not as KServe's binary extension has them.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        content, binary = binary[:size], binary[size:]
        if len(content) != size:
            raise ValueError("the answer is shorter than it says")
        if output["datatype"] == "BYTES":  # one text, after its length
            tensors[output["name"]] = np.array([content[4:]], dtype=np.object_)
        elif output["datatype"] in _DTYPES:
            flat = np.frombuffer(content, _DTYPES[output["datatype"]])
            tensors[output["name"]] = flat.reshape(output["shape"])
    return tensors


@dataclass
class _Throttle:
    """Whether failures are rare enough to ask again; see :data:`MAX_TOKENS`."""

    _tokens: float = MAX_TOKENS
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def failed(self) -> bool:
        """Count a failure, and say whether it may be asked again."""
        with self._guard:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > MAX_TOKENS / 2

    def succeeded(self) -> None:
        with self._guard:
            self._tokens = min(MAX_TOKENS, self._tokens + TOKENS_PER_SUCCESS)


class _Exchange:
    """The time that one question has, and a handle for other threads to stop it."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._connection: _Connection | None = None

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def left_s(self) -> float:
        """Seconds that are left.

        Raises:
            TimeoutError: none.
        """
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError

    def use(self, connection: _Connection) -> None:
        """From now on, stopping shuts this connection."""
        with self._guard:
            if self.stopped:
                raise _StoppedError
            self._connection = connection

    def release(self) -> None:
        with self._guard:
            self._connection = None

    def stop(self) -> None:
        with self._guard:
            self._stop.set()
            if self._connection is not None:
                self._connection.shut()


class _Connection:
    """One persistent connection, for one exchange at a time."""

    def __init__(self, host: str, port: int | None, trust: ssl.SSLContext | None) -> None:
        self._http = (
            http.client.HTTPConnection(host, port)
            if trust is None
            else http.client.HTTPSConnection(host, port, context=trust)
        )
        self._host = host
        self._trust = trust
        self._socket: socket.socket | None = None

    def exchange(self, request: _Request, prefix: str, time_left: _Exchange) -> _Response:
        """Send a request and read its answer.

        Raises:
            TimeoutError: there was no time left.
            OSError, http.client.HTTPException: what the network and the other side made of it.
        """
        if self._socket is None:
            self._socket = self._connect(time_left.left_s())
            if time_left.stopped:  # there was nothing to shut until now
                raise _StoppedError
        self._http.sock = _TimedSocket(self._socket, time_left)
        target, headers = prefix + request.path, dict(request.headers)
        was_sent = False
        # A gateway that refuses a request before it has read it may have said why.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._http.request(request.method, target, request.body or None, headers)
            was_sent = True
        with self._http.getresponse() as response:
            content = response.read(_MAX_ANSWER_BYTES + 1)
            if len(content) > _MAX_ANSWER_BYTES:
                raise http.client.HTTPException("endless")
            length = response.headers.get(_JSON_LENGTH, "")
            if response.will_close or not was_sent:
                self.shut()
            return _Response(
                response.status,
                response.reason,
                int(length) if length.isdecimal() else None,
                content,
            )

    def _connect(self, timeout_s: float) -> socket.socket:
        self._http.timeout = timeout_s
        http.client.HTTPConnection.connect(self._http)
        plain: socket.socket = self._http.sock
        if self._trust is None:
            return plain
        try:
            return self._trust.wrap_socket(plain, server_hostname=self._host)
        except (ssl.SSLEOFError, ConnectionError) as error:
            raise _HandshakeError from error

    def is_lost(self) -> bool:
        """Whether the other side has hung up (an idle connection has nothing to read)."""
        if self._socket is None:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def shut(self) -> None:
        """Have all reading and writing end at once, on any thread."""
        if self._socket is not None:
            with suppress(OSError):
                # past TLS, whose own method another thread's reading would not survive
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._http.close()
        if self._socket is not None:
            self._socket.close()


class _TimedSocket:
    """What :mod:`http.client` needs of a socket, held to a deadline over all that it does.

    A socket's own timeout begins anew with every byte.
    """

    def __init__(self, wrapped: socket.socket, time_left: _Exchange) -> None:
        self._wrapped = wrapped
        self._time_left = time_left

    def sendall(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            self._wrapped.settimeout(self._time_left.left_s())
            view = view[self._wrapped.send(view[:_SENT_AT_ONCE]) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self._wrapped, self._time_left))

    def close(self) -> None:
        """Nothing: http.client closes it before it reads the last answer, and has it kept open."""


class _Reading(io.RawIOBase):
    def __init__(self, wrapped: socket.socket, time_left: _Exchange) -> None:
        self._wrapped = wrapped
        self._time_left = time_left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wrapped.settimeout(self._time_left.left_s())
        return self._wrapped.recv_into(buffer)
