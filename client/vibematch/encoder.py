"""Photos → style vectors, by asking the embedding server (Triton, over gRPC).

One photo travels per request and a few requests are in flight at once: forming batches is the
server's job (its dynamic batcher sees all clients), and a bad photo then fails alone.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vibematch.errors import (
    BadVectorError,
    InputError,
    ModelChangedError,
    PhotoError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
    VibematchError,
)
from vibematch.manifest import Manifest

PhotoLike: TypeAlias = bytes | str | os.PathLike[str] | Image.Image
"""The bytes of a photo file, the path of one, or a Pillow image."""
Vector: TypeAlias = npt.NDArray[np.float32]

MODEL: Final = "style_encoder"
INPUT: Final = "photo"
OUTPUT: Final = "embedding"
FINGERPRINT: Final = "fingerprint"
MANIFEST_PARAMETER: Final = "manifest"
NORM_TOLERANCE: Final = 1e-3

_WAITS: Final = 3
"""Of a photo's time, so much for each of the server's two queues, and for the work itself.

A server that knows lets a photo go that it could not answer in time; the deadline alone does not
take it out of a queue.
"""

# Encoding changes nothing on the server, so asking again is safe. gRPC does it, within the
# deadline, where the server is restarting or its queue is full.
_RETRIES: Final = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL_OPTIONS: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_RETRIES)),
    # a request above this size is never asked again; by default not even a phone's photo fits
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
]
# What gRPC says where there is no connection; its status is UNAVAILABLE, whatever the cause.
_NOT_CONNECTED: Final = re.compile("failed to connect|errors resolving")
_NOT_TRUSTED: Final = re.compile("CERTIFICATE_VERIFY_FAILED: (?P<cause>[^:]+)")
_OTHER_HOST: Final = "Hostname Verification Check failed"
_OTHER_PROTOCOL: Final = re.compile(
    "failed to connect.*([Hh]andshake|Socket closed|parsing HTTP/2)"  # and not: lost later
)


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        name: what requests call it.
        datatype: of its elements, as KServe v2 calls it: ``BYTES``, ``FP32``, …
        shape: its dimensions; -1 is the number of photos.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class ServerInfo:
    """What a server serves, by its own account.

    Attributes:
        server: name and version of the server's software.
        model: the model to ask.
        version: the version that answers.
        versions_ready: those that are loaded, side by side, oldest first.
        max_batch_size: photos in a request, at most.
        inputs: what a request holds.
        outputs: what an answer holds.
        manifest: the model that answers.
    """

    server: str
    model: str
    version: int
    versions_ready: tuple[int, ...]
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    manifest: Manifest


class PhotoEncoder(Protocol):
    """Anything that turns photos into vectors of one known model, e.g. :class:`Encoder`."""

    @property
    def manifest(self) -> Manifest:
        """The model that makes the vectors."""

    def encode_each(self, photos: Iterable[PhotoLike]) -> Iterable[Vector | VibematchError]:
        """Give for each photo, in order, its vector or the error that it met."""


def read_photo(photo: PhotoLike, max_bytes: int) -> bytes:
    """The bytes of a photo file, whatever form the photo is given in.

    Args:
        photo: bytes (returned as they are), a path, or a Pillow image (becomes lossless PNG).
        max_bytes: a larger file is refused without reading all of it.

    Raises:
        PhotoError: there is no such readable file, or it is too large.
        InputError: ``photo`` is of another type.
    """
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, Image.Image):
        return _as_png(photo)
    if not isinstance(photo, str | os.PathLike):
        raise InputError(
            f"a photo must be bytes, a path or a PIL.Image, got {type(photo).__name__}"
        )
    path = Path(photo)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PhotoError(f"the file cannot be read ({reason})") from error
    if len(content) > max_bytes:
        raise PhotoError(
            f"the file has more bytes than the limit of {max_bytes:,}", code="too_many_bytes"
        )
    return content


def refuse_single(photos: Iterable[PhotoLike]) -> None:
    """Notice one photo where several are expected: its letters or bytes would count as photos.

    Raises:
        InputError: it is one photo.
    """
    if isinstance(photos, bytes | str | os.PathLike | Image.Image):
        raise InputError("photos must be a list of photos: put [ ] around a single one")


def photo_name(index: int, photo: PhotoLike) -> str:
    """What messages call one photo of several: its index, from 0, and its path if it has one."""
    if isinstance(photo, str | os.PathLike):
        return f"photo {index} ({os.fspath(photo)})"
    return f"photo {index}"


def _as_png(image: Image.Image) -> bytes:
    image = ImageOps.exif_transpose(image)  # as the bytes of the file would be turned
    if image.mode not in {"RGB", "RGBA", "L", "LA", "P", "I", "I;16"}:
        image = image.convert("RGB")  # PNG has no CMYK, YCbCr, HSV, ...
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


class Encoder:
    """Client of one embedding server; safe to share between threads.

    Args:
        url: ``HOST:PORT`` of the server's gRPC endpoint.
        timeout_s: seconds one photo may take, waiting in the server's queue included; a large
            model on a CPU needs more than the default.
        max_in_flight: photos sent but not yet answered, at most.
        root_certificates: PEM file of the authority that signed the server's certificate; with it
            the connection is encrypted (TLS), without it is not.

    Raises:
        InputError: an argument is out of range, or the certificates cannot be read.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout_s: float = 30.0,
        max_in_flight: int = 16,
        root_certificates: str | os.PathLike[str] | None = None,
    ) -> None:
        if "://" in url or not url.rpartition(":")[2].isdecimal():
            raise InputError(f"the server's address must be HOST:PORT (its gRPC port), got {url!r}")
        if timeout_s <= 0:
            raise InputError(f"timeout_s must be positive, got {timeout_s}")
        if max_in_flight < 1:
            raise InputError(f"max_in_flight must be at least 1, got {max_in_flight}")
        self.url = url
        self.timeout_s = timeout_s
        self.max_in_flight = max_in_flight
        self.root_certificates = root_certificates
        if root_certificates is not None:
            _require_certificates(Path(root_certificates))

    @property
    def manifest(self) -> Manifest:
        """What the server serves right now: asked anew each time, as servers change models.

        Raises:
            ServerError: the server does not answer, or serves no vibematch model.
            ManifestError: its manifest cannot be used.
        """
        return self._manifest_in(self._ask("get_model_config", MODEL).config)

    def info(self) -> ServerInfo:
        """What the server serves, from metadata alone: no photo is encoded.

        Raises:
            ServerError: the server does not answer, or serves no vibematch model.
            ManifestError: its manifest cannot be used.
        """
        config = self._ask("get_model_config", MODEL).config
        manifest = self._manifest_in(config)
        server = self._ask("get_server_metadata")
        model = self._ask("get_model_metadata", MODEL)
        step = config.ensemble_scheduling.step[-1]
        ready = self._ask("get_model_metadata", step.model_name).versions
        return ServerInfo(
            server=f"{server.name} {server.version}",
            model=model.name,
            version=step.model_version,
            versions_ready=tuple(sorted(map(int, ready))),
            max_batch_size=config.max_batch_size,
            inputs=_tensors(model.inputs),
            outputs=_tensors(model.outputs),
            manifest=manifest,
        )

    def encode(self, photos: Iterable[PhotoLike]) -> Vector:
        """Encode photos, all or nothing.

        Args:
            photos: file bytes, paths or Pillow images.

        Returns:
            Unit vectors, float32, shape ``[number of photos, embedding_dim]``.

        Raises:
            PhotoError: a photo cannot be used; the message names its index, from 0.
            ServerError: the server does not answer, or not with proper vectors.
        """
        refuse_single(photos)
        photos = list(photos)
        try:
            return self._encode_all(photos)
        except ModelChangedError:  # all vectors have to come from one model: the new one
            return self._encode_all(photos)

    def _encode_all(self, photos: Sequence[PhotoLike]) -> Vector:
        vectors: list[Vector] = []
        for index, result in enumerate(self.encode_each(photos)):
            if isinstance(result, VibematchError):
                named = type(result)(f"{photo_name(index, photos[index])}: {result}")
                if isinstance(result, PhotoError) and isinstance(named, PhotoError):
                    named.code = result.code
                raise named from result
            vectors.append(result)
        return np.stack(vectors) if vectors else np.empty((0, self.manifest.embedding_dim), "f4")

    def encode_each(self, photos: Iterable[PhotoLike]) -> Iterator[Vector | VibematchError]:
        """Encode photos one by one; an error takes the place of the vector it prevented.

        Photos are drawn from ``photos`` only as the server takes them, so an endless iterable of
        paths is fine and needs little memory. All vectors come from the model that the server has
        at the beginning: if it changes models, photos answered by the new one give a
        :class:`ModelChangedError`.

        Args:
            photos: file bytes, paths or Pillow images.

        Yields:
            For each photo, in order, a unit vector (float32, ``[embedding_dim]``) or the error.

        Raises:
            ServerError: the server does not answer at all.
        """
        refuse_single(photos)
        manifest = self.manifest
        waiting: deque[Future[Vector]] = deque()
        for photo in photos:
            waiting.append(self._send(photo, manifest))
            if len(waiting) == self.max_in_flight:
                yield _outcome(waiting.popleft())
        while waiting:
            yield _outcome(waiting.popleft())

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        client = self.__dict__.pop("_client", None)
        if client is not None:
            client.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Encoder({self.url!r}, timeout_s={self.timeout_s}, max_in_flight={self.max_in_flight})"
        )

    @cached_property
    def _client(self) -> Any:
        from tritonclient.grpc import InferenceServerClient  # here, as importing gRPC is slow

        return InferenceServerClient(
            self.url,
            ssl=self.root_certificates is not None,
            root_certificates=self.root_certificates and os.fspath(self.root_certificates),
            channel_args=_CHANNEL_OPTIONS,
        )

    def _ask(self, question: str, *arguments: str) -> Any:
        """The answer to one of the questions that tritonclient can ask, e.g. a configuration."""
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, question)(*arguments, client_timeout=self.timeout_s)
        except InferenceServerException as error:
            raise self._translate(error) from error

    def _manifest_in(self, config: Any) -> Manifest:
        text = config.parameters[MANIFEST_PARAMETER].string_value
        if not text:
            raise ServerError(
                f"the model {MODEL!r} at {self.url} states no manifest; export it again"
            )
        return Manifest.from_json(text)

    def _send(self, photo: PhotoLike, manifest: Manifest) -> Future[Vector]:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        answer: Future[Vector] = Future()
        try:
            content = read_photo(photo, manifest.preprocessing.max_bytes)
        except InputError as error:
            answer.set_exception(error)
            return answer
        tensor = InferInput(INPUT, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[content]], dtype=np.object_))
        self._client.async_infer(
            MODEL,
            [tensor],
            partial(self._receive, answer, manifest),
            outputs=[InferRequestedOutput(OUTPUT), InferRequestedOutput(FINGERPRINT)],
            client_timeout=self.timeout_s,
            timeout=int(self.timeout_s / _WAITS * 1e6),
        )
        return answer

    def _receive(self, answer: Future[Vector], manifest: Manifest, result: Any, error: Any) -> None:
        # Runs on a gRPC thread: whatever goes wrong has to end up in the future, or it hangs.
        try:
            if error is not None:
                raise self._translate(error) from error
            _require_fingerprint(result.as_numpy(FINGERPRINT), manifest)
            answer.set_result(_checked(result.as_numpy(OUTPUT), manifest.embedding_dim))
        except Exception as problem:
            answer.set_exception(problem)

    def _translate(self, error: Any) -> VibematchError:
        """Triton's error as ours; ``error`` is an ``InferenceServerException``."""
        status = str(error.status()).removeprefix("StatusCode.")
        reason = _one_line(error.message()).removeprefix(f"in ensemble '{MODEL}', ")
        match status:
            case "INVALID_ARGUMENT":
                return PhotoError(reason)
            case "DEADLINE_EXCEEDED":
                return ServerTimeoutError(
                    f"the server at {self.url} did not answer within {self.timeout_s:g} s"
                )
            case "NOT_FOUND" if "no available versions" in reason:
                return ServerUnavailableError(
                    f"the server at {self.url} is stopping or not ready: try again later"
                )
            case "NOT_FOUND":
                return ServerError(
                    f"the server at {self.url} has no model {MODEL!r}: "
                    "point it at an exported model repository"
                )
            case "UNIMPLEMENTED":
                return ServerError(
                    f"no vibematch server is at {self.url}, but something else that speaks gRPC: "
                    "start one with `vibematch serve`"
                )
            case "UNAVAILABLE" if _NOT_CONNECTED.match(reason):
                return self._not_connected(reason)
            case "UNAVAILABLE" if "queue" in reason or "timeout" in reason:
                return ServerUnavailableError(
                    f"the server at {self.url} is overloaded: try again later, or send fewer "
                    "photos at once (max_in_flight)"
                )
            case "UNAVAILABLE" if "model" in reason:
                return ServerUnavailableError(f"the server at {self.url} is not ready: {reason}")
            case "UNAVAILABLE":
                return self._not_connected(reason)
        return ServerError(f"the server at {self.url} failed ({status}): {reason}")

    def _not_connected(self, reason: str) -> ServerError:
        """What to do about it, as far as gRPC's words tell."""
        if refused := _NOT_TRUSTED.search(reason):
            return ServerError(
                f"the certificate of the server at {self.url} is not trusted ({refused['cause']}): "
                "it has to be valid today, and signed by an authority in root_certificates"
            )
        if _OTHER_HOST in reason:
            return ServerError(
                f"the certificate of the server at {self.url} is for another host: use one of the "
                "names or addresses that it lists"
            )
        if _OTHER_PROTOCOL.search(reason):
            how = (
                "in TLS: leave root_certificates out if the server does not encrypt"
                if self.root_certificates
                else "in plain gRPC: give root_certificates if the server encrypts"
            )
            return ServerUnavailableError(
                f"something answers at {self.url}, but not {how}, and check that this is its gRPC "
                "port (8001 by default; 8000 is HTTP)"
            )
        return ServerUnavailableError(
            f"no vibematch server answers at {self.url}; start one with `vibematch serve`"
        )


def _outcome(answer: Future[Vector]) -> Vector | VibematchError:
    try:
        return answer.result()
    except VibematchError as error:
        return error


def _tensors(stated: Iterable[Any]) -> tuple[Tensor, ...]:
    return tuple(Tensor(each.name, each.datatype, tuple(each.shape)) for each in stated)


def _require_certificates(path: Path) -> None:
    """Notice what gRPC would only call unavailable."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the certificates {path} cannot be read ({error.strerror})") from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise InputError(f"{path} holds no certificate in PEM format")


def _require_fingerprint(fingerprints: npt.NDArray[Any] | None, manifest: Manifest) -> None:
    """Make sure that an answer comes from the model of ``manifest``.

    Raises:
        ModelChangedError: it comes from another one.
    """
    stated = b"" if fingerprints is None else bytes(fingerprints.ravel()[0])
    if stated.decode("ascii", "replace") != manifest.fingerprint:
        raise ModelChangedError(
            f"the server went over from model {manifest.fingerprint[:12]} to "
            f"{stated[:12].decode('ascii', 'replace') or 'another'} meanwhile: ask it again"
        )


def _checked(vectors: npt.NDArray[Any] | None, dim: int) -> Vector:
    """The one vector of an answer.

    Raises:
        BadVectorError: it has not the promised shape and type, or is no finite unit vector.
    """
    if vectors is None or vectors.shape != (1, dim) or vectors.dtype != np.float32:
        got = "nothing" if vectors is None else f"{vectors.dtype} {list(vectors.shape)}"
        raise BadVectorError(f"the server answered {got} instead of float32 [1, {dim}]")
    vector: Vector = vectors[0]
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(norm - 1.0) <= NORM_TOLERANCE:  # written so that NaN fails it too
        raise BadVectorError(f"the server answered a vector of length {norm:g} instead of 1")
    return vector.copy()  # free of the response's buffer


def _one_line(text: str | None) -> str:
    return " ".join((text or "no reason given").split())
