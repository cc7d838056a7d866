"""Photos → style vectors, by asking the embedding server (Triton, over gRPC or HTTP).

One photo travels per request and a few requests are in flight at once: forming batches is the
server's job (its dynamic batcher sees all clients), and a bad photo then fails alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, overload

import numpy as np
import numpy.typing as npt

from vibematch.errors import (
    BadVectorError,
    InputError,
    ModelChangedError,
    PhotoError,
    ServerError,
    VibematchError,
)
from vibematch.manifest import Manifest
from vibematch.photo_input import PhotoLike as PhotoLike
from vibematch.photo_input import downscaled
from vibematch.photo_input import photo_name as photo_name
from vibematch.photo_input import read_photo as read_photo
from vibematch.photo_input import refuse_single as refuse_single
from vibematch.transport import FINGERPRINT as FINGERPRINT
from vibematch.transport import INPUT as INPUT
from vibematch.transport import MODEL as MODEL
from vibematch.transport import OUTPUT as OUTPUT
from vibematch.transport import Answer, T, Transport
from vibematch.vector_cache import Vector as Vector
from vibematch.vector_cache import VectorCache, cache_key

MANIFEST_PARAMETER: Final = "manifest"
NORM_TOLERANCE: Final = 1e-3
_LAST_PORT: Final = 65_535


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

    def encode_each(
        self, photos: Iterable[PhotoLike], *, fingerprint: str | None = None
    ) -> Iterable[Vector | VibematchError]:
        """Give for each photo, in order, its vector or the error that it met.

        With ``fingerprint``, a vector of another model is a :class:`ModelChangedError` instead.
        """


class _BaseEncoder:
    """What :class:`Encoder` and :class:`AsyncEncoder` share: everything but the waiting."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout_s: float = 30.0,
        max_in_flight: int = 16,
        root_certificates: str | os.PathLike[str] | None = None,
        downscale: bool = False,
        cache_size: int = 1024,
        cache_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._protocol = _protocol(url)
        if not (isinstance(timeout_s, int | float) and 0 < timeout_s < threading.TIMEOUT_MAX):
            raise InputError(f"timeout_s must be positive, got {timeout_s!r}")
        counts = (("max_in_flight", max_in_flight, 1), ("cache_size", cache_size, 0))
        for name, number, least in counts:
            if not isinstance(number, int) or number < least:
                raise InputError(f"{name} must be at least {least}, a whole number, got {number!r}")
        if root_certificates is not None:
            if self._protocol == "http":
                raise InputError(f"{url} does not encrypt: write https://, or no root_certificates")
            _require_certificates(Path(root_certificates))
        self.url = url
        self.timeout_s = timeout_s
        self.max_in_flight = max_in_flight
        self.root_certificates = root_certificates
        self.downscale = downscale
        self.cache_size = cache_size
        self.cache_path = cache_path
        self._guard = threading.Lock()
        self._open_transport: Transport | None = None
        self._open_cache: VectorCache | None = None
        self._known: Manifest | None = None

    def __repr__(self) -> str:
        options = [f"timeout_s={self.timeout_s}", f"max_in_flight={self.max_in_flight}"]
        if self.downscale:
            options.append("downscale=True")
        return f"{type(self).__name__}({self.url!r}, {', '.join(options)})"

    # --- what stays open between calls

    @property
    def _transport(self) -> Transport:
        with self._guard:
            if self._open_transport is None:
                self._open_transport = self._connect()
            return self._open_transport

    def _connect(self) -> Transport:
        # Here, as importing gRPC is slow, and TLS is not free either.
        if self._protocol == "grpc":
            from vibematch.grpc_transport import GrpcTransport

            return GrpcTransport(self.url, self.timeout_s, self.root_certificates)
        from vibematch.http_transport import HttpTransport

        return HttpTransport(self.url, self.timeout_s, self.max_in_flight, self.root_certificates)

    @property
    def _cache(self) -> VectorCache | None:
        if not self.cache_size and self.cache_path is None:
            return None
        with self._guard:
            if self._open_cache is None:
                self._open_cache = VectorCache(self.cache_size, self.cache_path)
            return self._open_cache

    def _close(self) -> None:
        with self._guard:
            transport, self._open_transport = self._open_transport, None
            cache, self._open_cache = self._open_cache, None
            self._known = None
        if transport is not None:
            transport.close()
        if cache is not None:
            cache.close()

    # --- the model

    def _model(self, wanted: str | None = None) -> Future[Manifest]:
        """The model that answered last, or what the server says if that is unknown or unwanted."""
        known = self._known
        if known is None or wanted not in (None, known.fingerprint):
            return self._present_model()
        return _done(known)

    def _present_model(self) -> Future[Manifest]:
        """The model that the server says it has."""
        return self._transport.config(MODEL, self._learn)

    def _learn(self, config: dict[str, Any]) -> Manifest:
        text = config.get("parameters", {}).get(MANIFEST_PARAMETER, {}).get("string_value")
        if not text:
            raise ServerError(
                f"the model {MODEL!r} at {self.url} states no manifest; export it again"
            )
        manifest = self._known = Manifest.from_json(text)
        return manifest

    def _info(self) -> ServerInfo:
        transport = self._transport
        config, manifest = transport.config(MODEL, lambda c: (c, self._learn(c))).result()
        server = transport.metadata().result()
        model = transport.metadata(MODEL).result()
        step = config["ensemble_scheduling"]["step"][-1]
        ready = transport.metadata(step["model_name"]).result()["versions"]
        return ServerInfo(
            server=f"{server['name']} {server['version']}",
            model=model["name"],
            version=int(step["model_version"]),
            versions_ready=tuple(sorted(map(int, ready))),
            max_batch_size=config["max_batch_size"],
            inputs=_tensors(model["inputs"]),
            outputs=_tensors(model["outputs"]),
            manifest=manifest,
        )

    # --- photos

    def _sent(
        self, photos: Iterable[PhotoLike], manifest: Manifest, wanted: str | None
    ) -> Generator[Future[Vector], None, None]:
        """Draw photos and send them, a few ahead; their answers in order, done or not yet.

        Closing it leaves what is in flight.
        """
        waiting: deque[Future[Vector]] = deque()
        try:
            for photo in photos:
                waiting.append(self._send(photo, manifest, wanted))
                while waiting and (len(waiting) == self.max_in_flight or waiting[0].done()):
                    yield waiting[0]
                    waiting.popleft()
            while waiting:
                yield waiting[0]
                waiting.popleft()
        finally:
            for answer in waiting:
                answer.cancel()

    def _send(self, photo: PhotoLike, manifest: Manifest, wanted: str | None) -> Future[Vector]:
        if wanted is not None and wanted != manifest.fingerprint:
            return _failed(
                ModelChangedError(
                    f"the server at {self.url} has model {manifest.fingerprint[:12]} and not "
                    f"{wanted[:12]}"
                )
            )
        try:
            content = read_photo(photo, manifest.preprocessing.max_bytes)
            cache, key = self._cache, b""
            if cache is not None:
                key = cache_key(manifest.fingerprint, content, downscaled=self.downscale)
                cached = cache.get(key)
                if cached is not None:
                    return _done(cached)
            if self.downscale:
                content = downscaled(content, manifest.preprocessing)
        except InputError as error:
            return _failed(error)

        def finish(answer: Answer) -> Vector:
            vector = self._checked(answer, manifest)
            if cache is not None:
                cache.put(key, vector)
            return vector

        return self._transport.infer(MODEL, content, finish)

    def _checked(self, answer: Answer, manifest: Manifest) -> Vector:
        """The vector of an answer, if it comes from the model of ``manifest``."""
        if answer.fingerprint != manifest.fingerprint:
            if self._known is manifest:
                self._known = None
            raise ModelChangedError(
                f"the server went over from model {manifest.fingerprint[:12]} to "
                f"{answer.fingerprint[:12] or 'another'} meanwhile: ask it again"
            )
        return _checked(answer.vectors, manifest.embedding_dim)


class Encoder(_BaseEncoder):
    """Client of one embedding server; safe to share between threads.

    It connects on first use. Neither protocol survives a fork: let each process make its own, or
    use it only after the fork.

    Args:
        url: ``HOST:PORT`` of the server's gRPC endpoint, or ``http://HOST:PORT`` or
            ``https://HOST:PORT`` of its HTTP endpoint, which a gateway may have put under a path.
        timeout_s: seconds one photo may take, waiting in the server's queue and repetitions
            included; a large model on a CPU needs more than the default.
        max_in_flight: photos sent but not yet answered, at most; over gRPC for each call, over
            HTTP in all.
        root_certificates: PEM file of the authority that signed the server's certificate. Over
            gRPC the connection is encrypted (TLS) with it, and is not without it. For ``https://``
            it takes the place of the system's authorities.
        downscale: decode photos here and send what the model sees, as a JPEG of some 30 kB,
            instead of the files. Vectors differ a little from those of the files: use one or the
            other for all photos of an index.
        cache_size: vectors to keep in memory; 0 for none. A photo whose bytes were encoded before,
            by the model that the server had last, is not sent again.
        cache_path: file that keeps all vectors, for other processes and later runs too; it only
            grows, and may be deleted while nobody has it open.

    Raises:
        InputError: an argument is out of range, or the certificates cannot be read.
    """

    @property
    def manifest(self) -> Manifest:
        """The model that the server has, asked the first time and after each change of models.

        A change is noticed with the next photo that is encoded, or by :meth:`info`.

        Raises:
            ServerError: the server does not answer, or serves no vibematch model.
            ManifestError: its manifest cannot be used.
        """
        return self._model().result()

    def info(self) -> ServerInfo:
        """What the server serves, from metadata alone: no photo is encoded.

        Raises:
            ServerError: the server does not answer, or serves no vibematch model.
            ManifestError: its manifest cannot be used.
        """
        return self._info()

    @overload
    def encode(self, photos: Iterable[PhotoLike], *, strict: Literal[True] = True) -> Vector: ...
    @overload
    def encode(
        self, photos: Iterable[PhotoLike], *, strict: Literal[False]
    ) -> list[Vector | VibematchError]: ...
    def encode(
        self, photos: Iterable[PhotoLike], *, strict: bool = True
    ) -> Vector | list[Vector | VibematchError]:
        """Encode photos, all by the same model.

        If the server changes models meanwhile, all photos are encoded again, once.

        Args:
            photos: file bytes, paths, binary files, Pillow images, or RGB pixels as uint8 arrays
                ``[height, width, 3]``.
            strict: all or nothing. If not, an error takes the place of the vector it prevented.

        Returns:
            Unit vectors, float32, shape ``[number of photos, embedding_dim]``; if not strict, a
            list of vectors ``[embedding_dim]`` and errors.

        Raises:
            PhotoError: a photo cannot be used; the message names its index, from 0.
            ServerError: the server does not answer, or not with proper vectors.
            StoreError: the file at ``cache_path`` is damaged or no vector cache.
        """
        photos = _listed(photos)
        try:
            return self._encode_all(_Results(photos, strict, first=True))
        except ModelChangedError:  # all vectors have to come from one model: the new one
            return self._encode_all(_Results(photos, strict, first=False))

    def _encode_all(self, results: _Results) -> Vector | list[Vector | VibematchError]:
        manifest = self.manifest
        with closing(self._each(results.photos, manifest, None)) as each:
            for result in each:
                results.add(result)
        return results.gathered(manifest)

    def encode_each(
        self, photos: Iterable[PhotoLike], *, fingerprint: str | None = None
    ) -> Iterator[Vector | VibematchError]:
        """Encode photos one by one; an error takes the place of the vector it prevented.

        Photos are drawn from ``photos`` only as the server takes them, so an endless iterable of
        paths is fine and needs little memory. Closing the iterator leaves the photos in flight at
        once; the server may still compute those few.

        All vectors come from one model: that of ``fingerprint``, or else the one that the server
        says it has at the beginning (a question more). Photos that another model answers give a
        :class:`ModelChangedError`, and so do all photos if the server does not have the wanted
        model.

        Args:
            photos: as for :meth:`encode`.
            fingerprint: of the model whose vectors are wanted.

        Yields:
            For each photo, in order, a unit vector (float32, ``[embedding_dim]``) or the error.

        Raises:
            ServerError: the server does not answer at all.
            StoreError: the file at ``cache_path`` is damaged or no vector cache.
        """
        refuse_single(photos)
        model = self._present_model() if fingerprint is None else self._model(fingerprint)
        yield from self._each(photos, model.result(), fingerprint)

    def _each(
        self, photos: Iterable[PhotoLike], manifest: Manifest, wanted: str | None
    ) -> Generator[Vector | VibematchError, None, None]:
        with closing(self._sent(photos, manifest, wanted)) as answers:
            for answer in answers:
                yield _outcome(answer)

    def close(self) -> None:
        """Close the connection and the cache; a later call opens new ones."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncEncoder(_BaseEncoder):
    """:class:`Encoder` for asyncio: the same arguments, and the same methods, awaited.

    It may be shared between event loops. Photos are read, and decoded if they are, on the threads
    of :func:`asyncio.to_thread`. Cancelling a task that awaits it leaves that task's photos at
    once: no more are sent, and answers on their way are dropped.
    """

    async def manifest(self) -> Manifest:
        """See :attr:`Encoder.manifest`, which is no method."""
        return await asyncio.wrap_future(await asyncio.to_thread(self._model))

    async def info(self) -> ServerInfo:
        """See :meth:`Encoder.info`."""
        return await asyncio.to_thread(self._info)

    @overload
    async def encode(
        self, photos: Iterable[PhotoLike], *, strict: Literal[True] = True
    ) -> Vector: ...
    @overload
    async def encode(
        self, photos: Iterable[PhotoLike], *, strict: Literal[False]
    ) -> list[Vector | VibematchError]: ...
    async def encode(
        self, photos: Iterable[PhotoLike], *, strict: bool = True
    ) -> Vector | list[Vector | VibematchError]:
        """See :meth:`Encoder.encode`."""
        photos = _listed(photos)
        try:
            return await self._encode_all(_Results(photos, strict, first=True))
        except ModelChangedError:
            return await self._encode_all(_Results(photos, strict, first=False))

    async def _encode_all(self, results: _Results) -> Vector | list[Vector | VibematchError]:
        manifest = await self.manifest()
        async with aclosing(self._each(results.photos, manifest, None)) as each:
            async for result in each:
                results.add(result)
        return results.gathered(manifest)

    async def encode_each(
        self, photos: Iterable[PhotoLike], *, fingerprint: str | None = None
    ) -> AsyncGenerator[Vector | VibematchError, None]:
        """See :meth:`Encoder.encode_each`."""
        refuse_single(photos)
        if fingerprint is None:
            model = await asyncio.to_thread(self._present_model)
        else:
            model = await asyncio.to_thread(self._model, fingerprint)
        manifest = await asyncio.wrap_future(model)
        async with aclosing(self._each(photos, manifest, fingerprint)) as each:
            async for result in each:
                yield result

    async def _each(
        self, photos: Iterable[PhotoLike], manifest: Manifest, wanted: str | None
    ) -> AsyncGenerator[Vector | VibematchError, None]:
        answers = _Stepped(self._sent(photos, manifest, wanted))
        try:
            while (answer := await asyncio.to_thread(answers.step)) is not None:
                if not answer.done():
                    with suppress(VibematchError):
                        await asyncio.wrap_future(answer)
                yield _outcome(answer)
        finally:
            answers.close()

    async def close(self) -> None:
        """See :meth:`Encoder.close`."""
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class _Results:
    """What comes of a list of photos: vectors, and errors where they are wanted."""

    def __init__(self, photos: Sequence[PhotoLike], strict: bool, *, first: bool) -> None:
        self.photos = photos
        self._strict = strict
        self._first = first
        self._results: list[Any] = []

    def add(self, result: Vector | VibematchError) -> None:
        """Take the next photo's result, or raise it if it spoils all."""
        if isinstance(result, ModelChangedError) and self._first:
            raise result
        if isinstance(result, VibematchError) and self._strict:
            raise self._named(result) from result
        self._results.append(result)

    def gathered(self, manifest: Manifest) -> Vector | list[Vector | VibematchError]:
        if not self._strict:
            return self._results
        if not self._results:
            return np.empty((0, manifest.embedding_dim), np.float32)
        vectors: Vector = np.stack(self._results)
        return vectors

    def _named(self, error: VibematchError) -> VibematchError:
        index = len(self._results)
        named = type(error)(f"{photo_name(index, self.photos[index])}: {error}")
        if isinstance(error, PhotoError) and isinstance(named, PhotoError):
            named.code = error.code
        return named


class _Stepped:
    """A generator that threads step, one at a time; closing it does not wait for a step."""

    def __init__(self, answers: Generator[Future[Vector], None, None]) -> None:
        self._answers = answers
        self._guard = threading.Lock()
        self._is_closed = False

    def step(self) -> Future[Vector] | None:
        with self._guard:
            answer = next(self._answers, None)
        if self._is_closed:  # meanwhile
            self.close()
        return answer

    def close(self) -> None:
        self._is_closed = True
        if self._guard.acquire(blocking=False):  # else the step that is under way does it
            try:
                self._answers.close()
            finally:
                self._guard.release()


def _outcome(answer: Future[Vector]) -> Vector | VibematchError:
    try:
        return answer.result()
    except VibematchError as error:
        return error


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _failed(error: VibematchError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _listed(photos: Iterable[PhotoLike]) -> list[PhotoLike]:
    refuse_single(photos)
    return list(photos)


def _protocol(url: str) -> str:
    """What to speak at an address: ``grpc``, ``http`` or ``https``."""
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        host, _, port = scheme.rpartition(":")
        if host and port.isdecimal() and int(port) <= _LAST_PORT:
            return "grpc"
    elif scheme in {"http", "https"}:
        parts = re.fullmatch(
            r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:(?P<port>\d{1,5}))?(/[\w./~-]*)?", rest, re.ASCII
        )
        if parts and int(parts["port"] or 0) <= _LAST_PORT:
            return scheme
    raise InputError(
        "the server's address must be HOST:PORT (its gRPC port), http://HOST:PORT or "
        f"https://HOST:PORT, got {url!r}"
    )


def _tensors(stated: Iterable[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(each["name"], each["datatype"], tuple(map(int, each["shape"]))) for each in stated
    )


def _require_certificates(path: Path) -> None:
    """Notice what gRPC would only call unavailable."""
    import ssl  # here, as few need it

    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise InputError(f"{path} holds no certificate in PEM format") from error
    except OSError as error:
        raise InputError(f"the certificates {path} cannot be read ({error.strerror})") from error


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
