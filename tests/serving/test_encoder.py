"""The client's encoder against a real tritonserver."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from vibematch import Encoder, MatchingEngine
from vibematch.errors import (
    BadVectorError,
    InputError,
    PhotoError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing, preprocess

CANVAS = Preprocessing(height=64, width=96)


@pytest.fixture
def encoder(server: Any) -> Iterator[Encoder]:
    with Encoder(server.grpc_url) as opened:
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


def test_bytes_paths_and_images_agree(encoder: Encoder, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    vectors = encoder.encode([file.getvalue(), path, str(path), image])
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


def test_a_photo_of_any_size_is_asked_for_again(manifest_text: str) -> None:
    """A server that is always busy counts how often a phone's photo comes."""
    calls: list[int] = []

    def config(request: Any, context: Any) -> Any:
        response = service_pb2.ModelConfigResponse()
        response.config.parameters["manifest"].string_value = manifest_text
        return response

    def busy(request: Any, context: Any) -> Any:
        calls.append(len(request.raw_input_contents[0]))
        context.abort(grpc.StatusCode.UNAVAILABLE, "the queue is full")

    handlers = {
        "ModelConfig": grpc.unary_unary_rpc_method_handler(
            config,
            service_pb2.ModelConfigRequest.FromString,
            service_pb2.ModelConfigResponse.SerializeToString,
        ),
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            busy,
            service_pb2.ModelInferRequest.FromString,
            service_pb2.ModelInferResponse.SerializeToString,
        ),
    }
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Encoder(f"127.0.0.1:{port}") as encoder, pytest.raises(ServerUnavailableError):
            encoder.encode([bytes(3_000_000)])
    finally:
        server.stop(None)
    assert len(calls) == 4 and min(calls) > 3_000_000


@pytest.fixture
def manifest_text(exported: Path) -> str:
    return (exported / "manifest.json").read_text()


def test_a_bad_photo_fails_alone(encoder: Encoder, photos: list[bytes]) -> None:
    mixed = [photos[0], b"not a photo", photos[1], "/no/such.jpg", b"x" * 300_000, 7, photos[2]]
    results = list(encoder.encode_each(mixed))  # type: ignore[arg-type]
    for index in (0, 2, 6):
        assert isinstance(results[index], np.ndarray)
    assert isinstance(results[1], PhotoError)
    assert str(results[1]) == "not a JPEG, PNG or WEBP photo"
    assert str(results[3]) == "the file cannot be read (No such file or directory)"
    assert str(results[4]) == "the photo has 300,000 bytes; the limit is 200,000"
    assert "must be bytes, a path or a PIL.Image, got int" in str(results[5])


def test_encode_names_the_bad_photo(encoder: Encoder, photos: list[bytes]) -> None:
    with pytest.raises(PhotoError, match=r"^photo 1: not a JPEG"):
        encoder.encode([photos[0], b"no", b"neither"])
    with pytest.raises(PhotoError, match=r"^photo 0 \(/no/such\.jpg\): the file cannot be read"):
        encoder.encode(["/no/such.jpg"])


def test_a_single_photo_is_not_taken_for_many(encoder: Encoder, photos: list[bytes]) -> None:
    for single in ("me.jpg", photos[0], Path("me.jpg"), Image.new("RGB", (9, 9))):
        for call in (encoder.encode, lambda photo: next(encoder.encode_each(photo))):
            with pytest.raises(InputError, match=r"put \[ \] around a single one"):
                call(single)


def test_photos_are_drawn_only_as_the_server_takes_them(server: Any, photos: list[bytes]) -> None:
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        for photo in itertools.cycle(photos):
            drawn += 1
            yield photo

    with Encoder(server.grpc_url, max_in_flight=4) as encoder:
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


def test_more_than_the_queue_holds_is_asked_again(server: Any, photos: list[bytes]) -> None:
    with Encoder(server.grpc_url, max_in_flight=300) as encoder:
        assert encoder.encode(photos * 40).shape == (360, encoder.manifest.embedding_dim)


def test_deadline(server: Any, photos: list[bytes]) -> None:
    with (
        Encoder(server.grpc_url, timeout_s=0.0005) as encoder,
        pytest.raises(ServerTimeoutError, match=r"did not answer within 0\.0005 s"),
    ):
        encoder.encode(photos)


def test_no_server() -> None:
    with Encoder("127.0.0.1:1") as encoder:
        with pytest.raises(ServerUnavailableError) as raised:
            encoder.encode([b"photo"])
        assert str(raised.value) == (
            "no vibematch server answers at 127.0.0.1:1; start one with `vibematch serve`"
        )
        with pytest.raises(ServerUnavailableError):
            encoder.manifest  # noqa: B018


def test_not_a_grpc_port(server: Any) -> None:
    with Encoder(server.http_url) as encoder, pytest.raises(ServerError, match=server.http_url):
        encoder.manifest  # noqa: B018


def test_missing_model(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch.encoder.MODEL", "no_such_model")
    with (
        Encoder(server.grpc_url) as encoder,
        pytest.raises(ServerError, match=r"has no model 'no_such_model': point it at an exported"),
    ):
        encoder.manifest  # noqa: B018


def test_foreign_model(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch.encoder.MODEL", "style_embed")
    with Encoder(server.grpc_url) as encoder, pytest.raises(ServerError, match="no manifest"):
        encoder.manifest  # noqa: B018


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
        ({"url": "http://localhost:8001"}, "must be HOST:PORT"),
        ({"url": "localhost:grpc"}, "must be HOST:PORT"),
        ({"timeout_s": 0}, "timeout_s must be positive, got 0"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1, got 0"),
    ],
)
def test_senseless_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoder(**arguments)


def test_repr_and_reuse_after_close(server: Any, photos: list[bytes]) -> None:
    encoder = Encoder(server.grpc_url)
    assert repr(encoder) == f"Encoder('{server.grpc_url}', timeout_s=30.0, max_in_flight=16)"
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
