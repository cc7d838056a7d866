"""Clients that know nothing of vibematch get the same vectors, and say what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient import grpc, http
from tritonclient.grpc import aio as grpc_aio
from tritonclient.http import aio as http_aio
from tritonclient.utils import InferenceServerException

from vibematch.cli import main
from vibematch.manifest import Manifest
from vibematch.preprocess import preprocess
from vibematch_export.repository import add_version, point_to
from vibematch_export.triton import TritonServer

ASK_BY_KSERVE = Path(__file__).parents[1] / "kserve" / "ask.py"
KSERVE_PYTHON = os.environ.get("KSERVE_PYTHON", "")
MODEL = "style_encoder"
NOT_A_PHOTO = b"these bytes are no photo"
REASON = "in ensemble 'style_encoder', not a JPEG, PNG or WEBP photo"


@pytest.fixture(scope="module")
def expected(exported: Path, photos: list[bytes]) -> np.ndarray:
    """The vectors of ``photos``, made without any server: float32 [len(photos), dim]."""
    canvas = Manifest.load(exported).preprocessing
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    pixels = np.stack([preprocess(photo, canvas) for photo in photos])
    vectors: np.ndarray = session.run(["embedding"], {"pixels": pixels})[0]
    return vectors


# --- tritonclient


def _tensor(library: Any, photos: list[bytes]) -> Any:
    tensor = library.InferInput("photo", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_)[:, None])
    return tensor


def _by_grpc(server: TritonServer, photos: list[bytes]) -> np.ndarray:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        return client.infer(MODEL, [_tensor(grpc, photos)]).as_numpy("embedding")


def _by_http(server: TritonServer, photos: list[bytes]) -> np.ndarray:
    with http.InferenceServerClient(server.http_url) as client:
        return client.infer(MODEL, [_tensor(http, photos)]).as_numpy("embedding")


def _by_grpc_aio(server: TritonServer, photos: list[bytes]) -> np.ndarray:
    async def ask() -> np.ndarray:
        async with grpc_aio.InferenceServerClient(server.grpc_url) as client:
            answer = await client.infer(MODEL, [_tensor(grpc, photos)])
            return answer.as_numpy("embedding")

    return asyncio.run(ask())


def _by_http_aio(server: TritonServer, photos: list[bytes]) -> np.ndarray:
    async def ask() -> np.ndarray:
        async with http_aio.InferenceServerClient(server.http_url) as client:
            answer = await client.infer(MODEL, [_tensor(http, photos)])
            return answer.as_numpy("embedding")

    return asyncio.run(ask())


Ask = Callable[[TritonServer, list[bytes]], np.ndarray]
each_tritonclient = pytest.mark.parametrize("ask", [_by_grpc, _by_http, _by_grpc_aio, _by_http_aio])


@each_tritonclient
def test_tritonclient_gets_the_reference(
    ask: Ask, server: TritonServer, photos: list[bytes], expected: np.ndarray
) -> None:
    for asked in (slice(0, 1), slice(1, 9)):
        np.testing.assert_allclose(ask(server, photos[asked]), expected[asked], atol=1e-6)


@each_tritonclient
def test_tritonclient_is_told_what_is_wrong(
    ask: Ask, server: TritonServer, photos: list[bytes]
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(server, [NOT_A_PHOTO])
    assert refused.value.message() == REASON
    assert refused.value.status() in {"400", "StatusCode.INVALID_ARGUMENT"}
    with pytest.raises(InferenceServerException, match="photo 1: not a JPEG, PNG or WEBP photo"):
        ask(server, [photos[0], NOT_A_PHOTO])


# --- curl


def _curl(server: TritonServer, body: bytes, *options: str) -> tuple[int, bytes]:
    """Post ``body``; the HTTP status and the answer."""
    url = f"http://{server.http_url}/v2/models/{MODEL}/infer"
    done = subprocess.run(
        ["curl", "-sS", url, "--data-binary", "@-", "-w", "%{stderr}%{http_code}", *options],
        input=body,
        capture_output=True,
        check=True,
    )
    return int(done.stderr), done.stdout


def _curl_photo(server: TritonServer, photo: bytes) -> tuple[int, bytes]:
    """As docs/serving.md says: a JSON header, then the photo after its length; a JSON answer."""
    tensor = {"name": "photo", "shape": [1, 1], "datatype": "BYTES"}
    size = {"parameters": {"binary_data_size": len(photo) + 4}}
    output = {"name": "embedding", "parameters": {"binary_data": False}}
    header = json.dumps({"inputs": [{**tensor, **size}], "outputs": [output]}).encode()
    body = header + len(photo).to_bytes(4, "little") + photo
    return _curl(
        server,
        body,
        *("-H", f"Inference-Header-Content-Length: {len(header)}"),
        *("-H", "Content-Type: application/octet-stream"),
    )


def test_curl_gets_the_reference_as_json(
    server: TritonServer, photos: list[bytes], expected: np.ndarray
) -> None:
    for photo, vector in zip(photos[:3], expected, strict=False):
        status, answer = _curl_photo(server, photo)
        (output,) = json.loads(answer)["outputs"]
        assert (status, output["shape"]) == (200, [1, len(vector)])
        np.testing.assert_allclose(output["data"], vector, atol=1e-6)


def test_curl_gets_the_reference_for_a_bare_photo(
    server: TritonServer, photos: list[bytes], expected: np.ndarray
) -> None:
    status, answer = _curl(
        server,
        photos[0],
        *("-H", "Inference-Header-Content-Length: 0"),
        *("-H", "Content-Type: application/octet-stream"),
    )
    assert status == 200
    vector = np.frombuffer(answer[-expected[0].nbytes :], "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-6)


def test_curl_is_told_what_is_wrong(server: TritonServer) -> None:
    assert _curl_photo(server, NOT_A_PHOTO) == (
        400,
        json.dumps({"error": REASON}, separators=(",", ":")).encode(),
    )


@pytest.mark.parametrize(
    "as_text",
    [
        lambda photo: photo.decode("latin-1"),  # every byte above 127 becomes two
        lambda photo: photo.hex(),
    ],
)
def test_a_photo_as_a_json_string_is_refused_with_a_reason(
    as_text: Callable[[bytes], str], server: TritonServer, photos: list[bytes]
) -> None:
    tensor = {"name": "photo", "shape": [1, 1], "datatype": "BYTES", "data": [as_text(photos[0])]}
    status, answer = _curl(server, json.dumps({"inputs": [tensor]}).encode())
    assert (status, json.loads(answer)) == (400, {"error": REASON})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"name": "image"}, "unexpected inference input 'image'"),
        ({"datatype": "UINT8", "data": [1]}, "'UINT8', but model 'style_encoder' expects 'BYTES'"),
        ({"shape": [1]}, "unexpected shape for input 'photo'"),
        ({"shape": [9, 1], "data": ["a"] * 9}, "batch-size must be <= 8"),
    ],
)
def test_a_wrong_request_is_named(wrong: dict[str, Any], reason: str, server: TritonServer) -> None:
    tensor = {"name": "photo", "shape": [1, 1], "datatype": "BYTES", "data": ["a"], **wrong}
    status, answer = _curl(server, json.dumps({"inputs": [tensor]}).encode())
    assert status == 400
    assert reason in json.loads(answer)["error"]


# --- vibematch info, which asks for metadata alone


def test_info_tells_what_is_served(
    server: TritonServer, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", server.grpc_url, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.items() >= json.loads((exported / "manifest.json").read_text()).items()
    with http.InferenceServerClient(server.http_url) as client:  # by another way
        model, software = client.get_model_metadata(MODEL), client.get_server_metadata()
        max_batch_size = client.get_model_config(MODEL)["max_batch_size"]
    assert facts["server"] == f"{software['name']} {software['version']}"
    assert (facts["model"], [str(facts["version"])]) == (MODEL, model["versions"])
    assert (facts["inputs"], facts["outputs"]) == (model["inputs"], model["outputs"])
    assert facts["max_batch_size"] == max_batch_size


@pytest.mark.slow
def test_info_tells_versions_side_by_side(
    repository: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(repository, tmp_path / "repository")
    add_version(both, exported, 2)
    point_to(both, 2, Manifest.load(exported))
    with TritonServer(both) as server:
        assert main(["info", server.grpc_url]) == 0
    assert "style_encoder version 2; ready: 1, 2\n" in capsys.readouterr().out


@pytest.mark.slow
def test_info_asks_for_the_grpc_port(
    server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (server.http_url, server.metrics_url):
        assert main(["info", url]) == 1
        assert "check that this is its gRPC port (8001 by default" in capsys.readouterr().err


# --- KServe's own client


@pytest.mark.slow
@pytest.mark.skipif(not KSERVE_PYTHON, reason="`make test-kserve` makes its environment")
def test_kserves_own_client(
    server: TritonServer, photos: list[bytes], expected: np.ndarray, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, content in zip(paths, [*photos[:2], NOT_A_PHOTO], strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [KSERVE_PYTHON, ASK_BY_KSERVE, server.http_url, server.grpc_url, *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for protocol in ("http", "grpc"):
        *vectors, refused = [answer for answer in answers if answer["protocol"] == protocol]
        for answer, vector in zip(vectors, expected[:2], strict=True):
            np.testing.assert_allclose(answer["vector"], vector[None], atol=1e-6)
        assert REASON in refused["error"]
        assert ("400" if protocol == "http" else "INVALID_ARGUMENT") in refused["error"]
