"""Questions to the embedding server over gRPC. Importing this is slow; do it on first use."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import (
    InferResult,
    service_pb2,
    service_pb2_grpc,
)

from vibematch.errors import ServerUnavailableError, VibematchError
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

# gRPC itself repeats what is UNAVAILABLE, with 20 % of jitter.
_RETRIES: Final = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": MAX_ATTEMPTS,
                "initialBackoff": f"{FIRST_BACKOFF_S}s",
                "maxBackoff": f"{MAX_BACKOFF_S}s",
                "backoffMultiplier": BACKOFF_FACTOR,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": MAX_TOKENS, "tokenRatio": TOKENS_PER_SUCCESS},
}
_FAREWELL_S: Final = 1.0
"""How long closing waits for answers that are on their way.

Triton 2.51 computes a photo whose sender cancelled all the same, but goes on counting it as in
flight and then takes 30 s to stop. So a call that nobody waits for is left to end by itself.
"""
_OPTIONS: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_RETRIES)),
    # a request above this size is never asked again; by default not even a phone's photo fits
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
    # By default it connects again after 1 s at the earliest, which is most of the repetitions, and
    # two minutes later where a server was away for long.
    ("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(MAX_BACKOFF_S * 1000)),
]
# What gRPC says where there is no connection; its status is UNAVAILABLE, whatever the cause.
_NOT_CONNECTED: Final = re.compile("failed to connect|errors resolving")
_NOT_TRUSTED: Final = re.compile("CERTIFICATE_VERIFY_FAILED: (?P<cause>[^:]+)")
_OTHER_HOST: Final = "Hostname Verification Check failed"
_OTHER_PROTOCOL: Final = re.compile(
    "failed to connect.*([Hh]andshake|Socket closed|parsing HTTP/2)"  # and not: lost later
)


class GrpcTransport(Transport):
    """A gRPC channel; photos travel side by side on one connection.

    Args:
        url: ``HOST:PORT``.
        timeout_s: seconds that a question may take.
        root_certificates: PEM file of trusted authorities; without one nothing is encrypted.
    """

    def __init__(
        self, url: str, timeout_s: float, root_certificates: str | os.PathLike[str] | None
    ) -> None:
        super().__init__(url, timeout_s)
        self._encrypted = root_certificates is not None
        if root_certificates is None:
            self._channel = grpc.insecure_channel(url, _OPTIONS)
        else:
            trusted = grpc.ssl_channel_credentials(Path(root_certificates).read_bytes())
            self._channel = grpc.secure_channel(url, trusted, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._in_flight = 0
        self._changed = threading.Condition()

    def infer(self, model: str, photo: bytes, finish: Callable[[Answer], T]) -> Future[T]:
        """See :meth:`Transport.infer`."""
        request = service_pb2.ModelInferRequest(model_name=model)
        request.parameters["timeout"].int64_param = self._wait_us
        request.inputs.add(name=INPUT, datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(photo).to_bytes(4, "little") + photo)
        for name in (OUTPUT, FINGERPRINT):
            request.outputs.add(name=name)
        return self._ask("ModelInfer", request, lambda response: finish(_answer(response)), model)

    def config(self, model: str, finish: Callable[[dict[str, Any]], T]) -> Future[T]:
        """See :meth:`Transport.config`."""
        request = service_pb2.ModelConfigRequest(name=model)
        return self._ask(
            "ModelConfig", request, lambda response: finish(_fields(response.config)), model
        )

    def metadata(self, model: str = "") -> Future[dict[str, Any]]:
        """See :meth:`Transport.metadata`."""
        if not model:
            return self._ask("ServerMetadata", service_pb2.ServerMetadataRequest(), _fields)
        return self._ask(
            "ModelMetadata", service_pb2.ModelMetadataRequest(name=model), _fields, model
        )

    def close(self) -> None:
        """See :meth:`Transport.close`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight, _FAREWELL_S)
        self._channel.close()

    def _ask(
        self, method: str, request: Any, finish: Callable[[Any], T], model: str = ""
    ) -> Future[T]:
        answer: Future[T] = Future()
        try:
            call = getattr(self._stub, method).future(request, timeout=self._timeout_s)
        except ValueError:  # the channel is closed
            answer.set_exception(self._closed())
            return answer

        def result() -> T:
            try:
                response = call.result()
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                raise self._translate(call.code().name, call.details() or "", model) from error
            return finish(response)

        def end(_: object) -> None:
            settle(answer, result)
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

        with self._changed:
            self._in_flight += 1
        call.add_done_callback(end)
        return answer

    def _translate(self, status: str, reason: str, model: str) -> VibematchError:
        reason = " ".join(reason.split())
        if status == "UNIMPLEMENTED":
            return self._other_service("gRPC")
        if status != "UNAVAILABLE":
            return self._refused(status, reason, model)
        if refused := _NOT_TRUSTED.search(reason):
            return self._not_trusted(refused["cause"])
        if _OTHER_HOST in reason:
            return self._other_host()
        if _OTHER_PROTOCOL.search(reason):
            return self._not_grpc()
        if not _NOT_CONNECTED.match(reason) and re.search("queue|timeout|model", reason):
            return self._refused(status, reason, model)
        return self._unreachable()

    def _not_grpc(self) -> ServerUnavailableError:
        how = (
            "in TLS: leave root_certificates out if the server does not encrypt"
            if self._encrypted
            else "in plain gRPC: give root_certificates if the server encrypts"
        )
        return self._other_protocol(
            f"{how}, and check that this is its gRPC port (8001 by default; 8000 is HTTP): to "
            "speak HTTP, write http:// before the address"
        )


def _fields(message: Any) -> dict[str, Any]:
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def _answer(response: Any) -> Answer:
    result = InferResult(response)
    return Answer(result.as_numpy(OUTPUT), text_of(result.as_numpy(FINGERPRINT)))
