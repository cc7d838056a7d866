"""What a running server answers, over both protocols."""

from __future__ import annotations

import concurrent.futures
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from vibematch.manifest import Manifest
from vibematch.preprocess import preprocess
from vibematch_export.repository import CPU_BATCH_SIZE
from vibematch_export.triton import TritonServer

NOT_A_PHOTO = b"these bytes are no photo"


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(server.grpc_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def expected(exported: Path, photos: list[bytes]) -> np.ndarray:
    """The vectors of ``photos``, made without any server: float32 [len(photos), dim]."""
    canvas = Manifest.load(exported).preprocessing
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    pixels = np.stack([preprocess(photo, canvas) for photo in photos])
    (vectors,) = session.run(["embedding"], {"pixels": pixels})
    assert np.linalg.norm(vectors[0] - vectors[1]) > 0.01
    return vectors


def _encode(client: Any, photos: list[bytes]) -> np.ndarray:
    tensor = grpc.InferInput("photo", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_)[:, None])
    return client.infer("style_encoder", [tensor]).as_numpy("embedding")


def _post(server: TritonServer, body: bytes, header_length: int) -> Any:
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/style_encoder/infer",
        body,
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(header_length),
        },
    )
    return urllib.request.urlopen(request, timeout=10)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(f"http://{url}", timeout=10) as response:
        return response.read()


def test_grpc_answers_the_reference(client: Any, photos: list[bytes], expected: np.ndarray) -> None:
    for photo, vector in zip(photos, expected, strict=True):
        answer = _encode(client, [photo])
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, vector[None], atol=1e-6)


def test_every_answer_says_which_model_it_comes_from(
    client: Any, exported: Path, photos: list[bytes]
) -> None:
    tensor = grpc.InferInput("photo", [3, 1], "BYTES")
    tensor.set_data_from_numpy(np.array(photos[:3], dtype=np.object_)[:, None])
    answer = client.infer("style_encoder", [tensor])
    fingerprint = Manifest.load(exported).fingerprint.encode()
    assert answer.as_numpy("fingerprint").tolist() == [[fingerprint]] * 3


def test_batch_of_eight_equals_eight_singles(
    client: Any, photos: list[bytes], expected: np.ndarray
) -> None:
    for count in (7, 8):  # computed by twos
        vectors = _encode(client, photos[:count])
        np.testing.assert_allclose(vectors, expected[:count], atol=1e-6)


def test_nine_photos_are_one_too_many(client: Any, photos: list[bytes]) -> None:
    with pytest.raises(InferenceServerException, match="batch-size must be <= 8") as refused:
        _encode(client, photos)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_http_takes_a_bare_photo(
    server: TritonServer, exported: Path, photos: list[bytes], expected: np.ndarray
) -> None:
    with _post(server, photos[0], header_length=0) as response:
        header_length = int(response.headers["Inference-Header-Content-Length"])
        body = response.read()
    tensors, start = {}, header_length
    for output in json.loads(body[:header_length])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        tensors[output["name"], tuple(output["shape"])] = body[start:end]
        start = end
    vector = np.frombuffer(tensors["embedding", expected[:1].shape], "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-6)
    fingerprint = tensors["fingerprint", (1, 1)][4:]  # after its length
    assert fingerprint.decode() == Manifest.load(exported).fingerprint
    assert vector.tobytes() == body[-4 * len(vector) :], "as docs/serving.md says"


def test_http_takes_several_photos_and_answers_json(
    server: TritonServer, photos: list[bytes], expected: np.ndarray
) -> None:
    content = b"".join(len(photo).to_bytes(4, "little") + photo for photo in photos[:3])
    photo = {
        "name": "photo",
        "shape": [3, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(content)},
    }
    embedding = {"name": "embedding", "parameters": {"binary_data": False}}
    header = json.dumps({"inputs": [photo], "outputs": [embedding]}).encode()
    with _post(server, header + content, len(header)) as response:
        answer = json.load(response)["outputs"][0]
    vectors = np.array(answer["data"], np.float32).reshape(answer["shape"])
    np.testing.assert_allclose(vectors, expected[:3], atol=1e-6)


def test_http_refuses_what_is_no_photo(server: TritonServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(server, NOT_A_PHOTO, header_length=0)
    assert refused.value.code == 400
    assert "not a JPEG, PNG or WEBP photo" in json.load(refused.value)["error"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "empty"),
        (NOT_A_PHOTO, "not a JPEG, PNG or WEBP photo"),
        (b"\xff" * 200_001, "200,001 bytes; the limit is 200,000"),
    ],
)
def test_bad_photo_in_a_request_is_named(
    bad: bytes, reason: str, client: Any, photos: list[bytes]
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        _encode(client, [*photos[:3], bad, *photos[:2]])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "photo 3: " in refused.value.message()
    assert reason in refused.value.message()


def test_truncated_photo_is_refused(client: Any, photos: list[bytes]) -> None:
    with pytest.raises(InferenceServerException, match="truncated or damaged"):
        _encode(client, [photos[0][:-200]])


def test_bad_photo_fails_alone(client: Any, photos: list[bytes], expected: np.ndarray) -> None:
    def encode(photo: bytes) -> np.ndarray | str:
        try:
            return _encode(client, [photo])[0]
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"

    mixed = [*photos[:4], NOT_A_PHOTO, *photos[4:]] * 5
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(encode, mixed))
    vectors = iter(np.tile(expected, (5, 1)))
    for photo, answer in zip(mixed, answers, strict=True):
        if photo is NOT_A_PHOTO:
            assert isinstance(answer, str)
            assert answer.startswith("StatusCode.INVALID_ARGUMENT")
            assert answer.endswith("not a JPEG, PNG or WEBP photo")
        else:
            np.testing.assert_allclose(answer, next(vectors), atol=1e-6)


def test_a_malformed_request_fails_alone(client: Any, photos: list[bytes]) -> None:
    """Triton refuses it below our code, with all that shares its batch."""
    malformed = grpc.InferInput("photo", [1, 1], "BYTES")
    malformed._input.ClearField("contents")
    malformed._raw_content = (1_000_000).to_bytes(4, "little") + b"end"
    outcomes: list[str] = []

    def send(number: int) -> None:
        if number % 4:
            _encode(client, photos[:1])
            return
        with pytest.raises(InferenceServerException) as refused:
            client.infer("style_encoder", [malformed])
        outcomes.append(str(refused.value.status()))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(160)))
    assert set(outcomes) <= {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL"}


def test_requests_are_really_batched(
    server: TritonServer, client: Any, photos: list[bytes]
) -> None:
    def executions() -> Counter[int]:
        (embed,) = client.get_inference_statistics("style_embed").model_stats
        return Counter({stat.batch_size: stat.compute_infer.count for stat in embed.batch_stats})

    before = executions()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda photo: _encode(client, [photo]), photos * 5))
    assert max(executions() - before) == CPU_BATCH_SIZE


def test_connection_alone_tells_the_model(client: Any, exported: Path) -> None:
    config = client.get_model_config("style_encoder").config
    stated = Manifest.from_json(config.parameters["manifest"].string_value)
    assert stated == Manifest.load(exported)
    embedding, fingerprint = client.get_model_metadata("style_encoder").outputs
    assert list(embedding.shape) == [-1, stated.embedding_dim]
    assert (fingerprint.name, list(fingerprint.shape)) == ("fingerprint", [-1, 1])


def test_health_and_metrics(server: TritonServer, client: Any, photos: list[bytes]) -> None:
    assert client.is_server_ready()
    assert client.is_model_ready("style_encoder")
    _encode(client, photos[:1])
    metrics = _get(f"{server.metrics_url}/metrics").decode()
    assert 'nv_inference_request_success{model="style_encoder",version="1"}' in metrics


def test_administration_is_closed(server: TritonServer, client: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        _get(f"{server.http_url}/v2/systemsharedmemory/status")
    assert refused.value.code == 403
    with pytest.raises(InferenceServerException, match="restricted"):
        client.get_model_repository_index()


def test_documented_commands_work(
    server: TritonServer, photos: list[bytes], expected: np.ndarray, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    raw, as_json, questions = [
        subprocess.run(
            ["bash", "-euc", block.replace("localhost:8000", server.http_url)],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        ).stdout
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    ]
    assert raw == b""
    vector = np.frombuffer((tmp_path / "answer.bin").read_bytes()[-4 * expected.shape[1] :], "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-6)
    (output,) = json.loads(as_json)["outputs"]
    np.testing.assert_allclose(output["data"], expected[0], atol=1e-6)
    config, start = json.JSONDecoder().raw_decode(questions.decode())
    assert json.loads(questions[start:])["outputs"][0]["data"][0] == pytest.approx(1, abs=1e-5)
    assert Manifest.from_json(config["parameters"]["manifest"]["string_value"]).embedding_dim
