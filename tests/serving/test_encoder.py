"""The client's encoder against a real tritonserver."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.photos import photograph, saved

from vibematch import Encoder, MatchingEngine
from vibematch.encoder import AsyncEncoder
from vibematch.errors import (
    BadVectorError,
    InputError,
    ModelChangedError,
    PhotoError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing, preprocess

CANVAS = Preprocessing(height=64, width=96)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: Any) -> str:
    return str(server.grpc_url if request.param == "grpc" else f"http://{server.http_url}")


@pytest.fixture
def encoder(url: str) -> Iterator[Encoder]:
    with Encoder(url, cache_size=0) as opened:
        yield opened


def test_manifest_comes_from_the_server(encoder: Encoder, exported: Path) -> None:
    assert encoder.manifest == Manifest.load(exported)


def test_vectors(encoder: Encoder, photos: list[bytes]) -> None:
    vectors = encoder.encode(photos)
    assert (vectors.dtype, vectors.shape) == (np.float32, (9, encoder.manifest.embedding_dim))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(encoder.encode(photos[3:4])[0], vectors[3], atol=1e-6)


def test_no_photos(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.manifest.embedding_dim)


def test_all_forms_of_a_photo_agree(encoder: Encoder, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    file.seek(0)
    with path.open("rb") as opened:
        vectors = encoder.encode(
            [file.getvalue(), path, str(path), image, pixels, file, opened, opened]
        )
    assert np.allclose(vectors, vectors[0], atol=1e-6)


def test_an_opened_photo_is_turned_upright_like_its_file(encoder: Encoder) -> None:
    # a checkerboard would look the same on its side; this has a dark half
    pixels = np.full((60, 90, 3), 220, np.uint8)
    pixels[:, :40] = (30, 60, 120)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    turned, plain = Image.open(file), Image.fromarray(pixels)
    from_file, from_image = encoder.encode([file.getvalue(), turned])
    assert np.allclose(from_file, from_image, atol=1e-6)
    assert preprocess(file.getvalue(), CANVAS).tobytes() != _pixels_of(plain).tobytes()


def _pixels_of(image: Image.Image) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "PNG")
    return preprocess(file.getvalue(), CANVAS)


def test_downscaled_photos_have_nearly_the_same_vectors(url: str, photos: list[bytes]) -> None:
    people = [
        saved(photograph(name, 800, 600, noise=4), "JPEG", quality=90)
        for name in ("astronaut", "coffee", "chelsea")
    ]
    with Encoder(url, downscale=True) as small, Encoder(url) as whole:
        refused = small.encode([*people, b"no photo", *photos], strict=False)
        told = whole.encode([*people, b"no photo", *photos], strict=False)
    assert str(refused[3]) == str(told[3]) == "not a JPEG, PNG or WEBP photo"
    assert isinstance(refused[3], PhotoError) and refused[3].code == "not_a_photo"
    vectors = [[v for v in some if isinstance(v, np.ndarray)] for some in (refused, told)]
    assert len(vectors[0]) == len(vectors[1]) == 12
    assert np.einsum("ij,ij->i", *map(np.stack, vectors)).min() > 0.9999


@pytest.mark.slow  # trains a model
def test_downscaled_photos_have_nearly_the_same_vectors_of_a_trained_model(
    style_server: Any, sample_photos: Path
) -> None:
    people = sorted(sample_photos.glob("*.jpg"))[:60]
    with Encoder(style_server.grpc_url, downscale=True) as small:
        vectors = small.encode(people)
    with Encoder(style_server.grpc_url) as whole:
        cosines = np.einsum("ij,ij->i", vectors, whole.encode(people))
    assert cosines.min() > 0.98
    assert np.median(cosines) > 0.998


def test_a_bad_photo_fails_alone(encoder: Encoder, photos: list[bytes]) -> None:
    mixed = [photos[0], b"not a photo", photos[1], "/no/such.jpg", b"x" * 300_000, 7, photos[2]]
    results = list(encoder.encode_each(mixed))  # type: ignore[arg-type]
    for index in (0, 2, 6):
        assert isinstance(results[index], np.ndarray)
    assert isinstance(results[1], PhotoError)
    assert str(results[1]) == "not a JPEG, PNG or WEBP photo"
    assert str(results[3]) == "the file cannot be read (No such file or directory)"
    assert str(results[4]) == "the photo has 300,000 bytes; the limit is 200,000"
    assert "must be bytes, a path, a PIL.Image, an array or a binary file" in str(results[5])


def test_errors_take_their_vectors_places(encoder: Encoder, photos: list[bytes]) -> None:
    first, error, second = encoder.encode([photos[0], b"no", photos[1]], strict=False)
    assert isinstance(error, PhotoError) and str(error) == "not a JPEG, PNG or WEBP photo"
    assert np.allclose([first, second], encoder.encode(photos[:2]), atol=1e-6)
    assert encoder.encode([], strict=False) == []


def test_encode_names_the_bad_photo(encoder: Encoder, photos: list[bytes]) -> None:
    with pytest.raises(PhotoError, match=r"^photo 1: not a JPEG"):
        encoder.encode([photos[0], b"no", b"neither"])
    with pytest.raises(PhotoError, match=r"^photo 0 \(/no/such\.jpg\): the file cannot be read"):
        encoder.encode(["/no/such.jpg"])


def test_a_single_photo_is_not_taken_for_many(encoder: Encoder, photos: list[bytes]) -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    file = io.BytesIO(photos[0])
    for single in ("me.jpg", photos[0], Path("me.jpg"), Image.fromarray(pixels), pixels, file):
        for call in (encoder.encode, lambda photo: next(encoder.encode_each(photo))):
            with pytest.raises(InputError, match=r"put \[ \] around a single one"):
                call(single)


def test_photos_are_drawn_only_as_the_server_takes_them(url: str, photos: list[bytes]) -> None:
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        for photo in itertools.cycle(photos):
            drawn += 1
            yield photo

    with Encoder(url, max_in_flight=4) as encoder:
        for result in itertools.islice(encoder.encode_each(endless()), 20):
            assert isinstance(result, np.ndarray)
    assert drawn <= 24


def test_many_photos_and_threads_keep_their_order(encoder: Encoder, photos: list[bytes]) -> None:
    expected = encoder.encode(photos)
    problems: list[BaseException] = []

    def work() -> None:
        try:
            assert np.allclose(encoder.encode(photos * 6), np.tile(expected, (6, 1)), atol=1e-6)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_more_than_the_queue_holds_is_asked_again(url: str, photos: list[bytes]) -> None:
    with Encoder(url, max_in_flight=120, cache_size=0) as encoder:
        assert encoder.encode(photos * 14).shape == (126, encoder.manifest.embedding_dim)


def test_deadline(server: Any, photos: list[bytes]) -> None:
    # over gRPC, photos that are left in the middle would have Triton take 30 s to stop
    with (
        Encoder(f"http://{server.http_url}", timeout_s=0.0005) as encoder,
        pytest.raises(ServerTimeoutError, match=r"did not answer within 0\.0005 s"),
    ):
        encoder.encode(photos)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1", "https://127.0.0.1:1"])
def test_no_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch.http_transport.FIRST_BACKOFF_S", 0.01)
    with Encoder(url) as encoder:
        with pytest.raises(ServerUnavailableError) as raised:
            encoder.encode([b"photo"])
        assert str(raised.value) == (
            f"no vibematch server answers at {url}; start one with `vibematch serve`"
        )


def test_the_other_protocols_port(server: Any) -> None:
    for url, how in (
        (server.http_url, "not in plain gRPC: .* 8000 is HTTP"),
        (f"http://{server.grpc_url}", "not in plain HTTP: .* 8001 is gRPC"),
    ):
        with (
            Encoder(url) as encoder,
            pytest.raises(ServerUnavailableError, match=f"something answers at {url}, but {how}"),
        ):
            encoder.manifest  # noqa: B018


def test_missing_model(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch.encoder.MODEL", "no_such_model")
    with (
        Encoder(url) as encoder,
        pytest.raises(ServerError, match=r"has no model 'no_such_model': point it at an exported"),
    ):
        encoder.manifest  # noqa: B018


def test_foreign_model(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch.encoder.MODEL", "style_embed")
    with Encoder(url) as encoder, pytest.raises(ServerError, match="no manifest"):
        encoder.manifest  # noqa: B018


# --- sync and asyncio, gRPC and HTTP


def _outcomes(url: str, photos: list[Any]) -> list[str]:
    """What both encoders make of photos, as text."""

    async def ask() -> list[Any]:
        async with AsyncEncoder(url, max_in_flight=3, cache_size=0) as encoder:
            return [result async for result in encoder.encode_each(photos)]

    with Encoder(url, max_in_flight=3, cache_size=0) as encoder:
        results = list(encoder.encode_each(photos))
    told = [_told(result) for result in results]
    assert told == [_told(result) for result in asyncio.run(ask())]
    return told


def _told(result: Any) -> str:
    if isinstance(result, np.ndarray):
        return str(np.round(result, 5))
    return f"{type(result).__name__}: {result}"


def test_all_ways_to_ask_give_the_same(server: Any, photos: list[bytes]) -> None:
    mixed = [*photos, b"not a photo", b"", "/no/such.jpg", 7, b"x" * 300_000, *photos]
    assert _outcomes(server.grpc_url, mixed) == _outcomes(f"http://{server.http_url}", mixed)


def test_all_ways_to_ask_name_the_same_facts(server: Any, exported: Path) -> None:
    async def ask(url: str) -> Any:
        async with AsyncEncoder(url) as encoder:
            assert await encoder.manifest() == Manifest.load(exported)
            return await encoder.info()

    urls = (server.grpc_url, f"http://{server.http_url}")
    facts = [asyncio.run(ask(url)) for url in urls] + [Encoder(url).info() for url in urls]
    assert facts == facts[:1] * 4
    assert facts[0].manifest == Manifest.load(exported)
    assert str(facts[0].inputs[0]) == "photo BYTES [-1, 1]"


def test_asyncio_is_strict_or_not(url: str, photos: list[bytes]) -> None:
    async def ask() -> None:
        async with AsyncEncoder(url) as encoder:
            vectors = await encoder.encode(photos * 5)
            assert vectors.shape == (45, 16)
            assert (await encoder.encode([])).shape == (0, 16)
            with pytest.raises(PhotoError, match=r"^photo 1: not a JPEG"):
                await encoder.encode([photos[0], b"no", b"neither"])
            first, error = await encoder.encode([photos[0], b"no"], strict=False)
            assert np.allclose(first, vectors[0], atol=1e-6) and isinstance(error, PhotoError)
            with pytest.raises(InputError, match=r"put \[ \] around a single one"):
                await encoder.encode(photos[0])  # type: ignore[arg-type]

    asyncio.run(ask())


def test_one_async_encoder_serves_many_tasks_and_loops(url: str, photos: list[bytes]) -> None:
    encoder = AsyncEncoder(url, max_in_flight=4, cache_size=0)

    async def ask() -> Any:
        return await asyncio.gather(*(encoder.encode(photos) for _ in range(8)))

    with ThreadPoolExecutor(2) as threads:
        answers = [*threads.map(lambda _: asyncio.run(ask()), range(2))]
    asyncio.run(encoder.close())
    assert np.allclose(answers, answers[0][0], atol=1e-6)


def test_asyncio_draws_photos_only_as_the_server_takes_them(url: str, photos: list[bytes]) -> None:
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        for photo in itertools.cycle(photos):
            drawn += 1
            yield photo

    async def ask() -> None:
        taken = 0
        async with (
            AsyncEncoder(url, max_in_flight=4) as encoder,
            contextlib.aclosing(encoder.encode_each(endless())) as results,
        ):
            async for _ in results:
                taken += 1
                if taken == 20:
                    break

    asyncio.run(ask())
    assert drawn <= 24


def test_another_model_than_the_wanted_one_makes_no_vector(
    encoder: Encoder, photos: list[bytes]
) -> None:
    right = encoder.manifest.fingerprint
    assert all(isinstance(v, np.ndarray) for v in encoder.encode_each(photos, fingerprint=right))
    results = list(encoder.encode_each(photos[:3], fingerprint="f" * 64))
    assert [type(result) for result in results] == [ModelChangedError] * 3
    assert f"has model {right[:12]} and not ffffffffffff" in str(results[0])


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros((1, 4), np.float32),
        np.full((1, 4), np.nan, np.float32),
        np.array([[np.inf, 0, 0, 0]], np.float32),
        np.array([[1.01, 0, 0, 0]], np.float32),
        np.array([[1, 0, 0]], np.float32),
        np.array([[1, 0, 0, 0]], np.float64),
        np.zeros((0, 4), np.float32),
        None,
    ],
)
def test_bad_vectors_are_refused(vector: Any) -> None:
    from vibematch.encoder import _checked

    with pytest.raises(BadVectorError, match="the server answered"):
        _checked(vector, dim=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost"}, "must be HOST:PORT"),
        ({"url": ":8001"}, "must be HOST:PORT"),
        ({"url": "grpc://localhost:8001"}, "must be HOST:PORT"),
        ({"url": "http://"}, "must be HOST:PORT"),
        ({"url": "http://localhost:http"}, "must be HOST:PORT"),
        ({"url": "http://localhost:8000/?model=1"}, "must be HOST:PORT"),
        ({"url": "https://me:secret@localhost"}, "must be HOST:PORT"),
        ({"url": "http://a:1", "root_certificates": "a.pem"}, "does not encrypt: write https://"),
        ({"cache_size": -1}, "cache_size must be at least 0, a whole number, got -1"),
        ({"timeout_s": float("nan")}, "timeout_s must be positive, got nan"),
        ({"url": "localhost:grpc"}, "must be HOST:PORT"),
        ({"timeout_s": 0}, "timeout_s must be positive, got 0"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1, a whole number, got 0"),
    ],
)
def test_senseless_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoder(**arguments)


def test_repr_and_reuse_after_close(url: str, photos: list[bytes]) -> None:
    encoder = Encoder(url, cache_size=0)
    assert repr(encoder) == f"Encoder('{url}', timeout_s=30.0, max_in_flight=16)"
    assert repr(AsyncEncoder("a:1", downscale=True)).endswith("max_in_flight=16, downscale=True)")
    first = encoder.encode(photos[:1])
    encoder.close()
    encoder.close()
    assert np.allclose(encoder.encode(photos[:1]), first, atol=1e-6)
    encoder.close()


def test_engine_over_the_real_server(encoder: Encoder, photos: list[bytes], tmp_path: Path) -> None:
    with MatchingEngine.open(tmp_path / "index", encoder=encoder) as engine:
        for number, photo in enumerate(photos):
            engine.add(f"user_{number}", photos=[photo, b"not a photo"])
        (best,) = engine.search(photo=photos[4], top_k=1)
        assert best.user_id == "user_4"
        assert best.score == pytest.approx(1)
        assert len(engine.search("user_4", top_k=100)) == 8
