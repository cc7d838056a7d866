"""A photo becomes the same vector in PyTorch, ONNX Runtime, and Triton over gRPC and HTTP."""

from __future__ import annotations

import json
import struct
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from vibematch.encoder import Encoder
from vibematch.photos import read_photos
from vibematch.preprocess import preprocess
from vibematch_export.triton import TritonServer
from vibematch_training.features import pooled_features
from vibematch_training.run import TrainedRun

Vectors = np.ndarray


@pytest.fixture(scope="module")
def photos(sample_photos: Path) -> list[bytes]:
    listed = [p for p in read_photos(sample_photos) if p.labels["split"] == "validation"]
    assert len(listed) == 60
    return [photo.path.read_bytes() for photo in listed]


@pytest.fixture(scope="module")
def reference(trained_run: Path, photos: list[bytes]) -> Vectors:
    """Hugging Face's forward + the trained head, float32 in PyTorch."""
    run = TrainedRun.load(trained_run)
    recipe = run.recipe(run.load_backbone(torch.float32, "cpu"))
    pixels = np.stack([preprocess(photo, recipe.preprocessing) for photo in photos])
    with torch.inference_mode():
        batches = [pooled_features(pixels[i : i + 15], recipe) for i in range(0, len(photos), 15)]
        return run.head(torch.cat(batches)).numpy()


def _assert_same(vectors: Vectors, reference: Vectors) -> None:
    wide, expected = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (wide * expected).sum(axis=1) / norms
    assert cosines.shape == (60,)
    assert cosines.min() >= 0.99999
    # ... and the photos differ enough for that to mean something
    among = reference @ reference.T
    assert np.median(among[~np.eye(60, dtype=bool)]) < 0.9


def test_onnx_runtime(
    exported_model: Path, trained_run: Path, photos: list[bytes], reference: Vectors
) -> None:
    session = onnxruntime.InferenceSession(exported_model / "model.onnx")
    canvas = TrainedRun.load(trained_run).manifest.preprocessing
    pixels = np.stack([preprocess(photo, canvas) for photo in photos])
    _assert_same(session.run(None, {"pixels": pixels})[0], reference)


def test_triton_over_grpc(
    style_server: TritonServer, photos: list[bytes], reference: Vectors
) -> None:
    with Encoder(style_server.grpc_url) as encoder:
        _assert_same(encoder.encode(photos), reference)


def _post(server: TritonServer, photos: list[bytes]) -> Vectors:
    """What `curl` would send: a JSON header and the photo bytes, nothing of ours."""
    body = b"".join(struct.pack("<I", len(photo)) + photo for photo in photos)
    entry = {
        "name": "photo",
        "shape": [len(photos), 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(body)},
    }
    header = json.dumps({"inputs": [entry], "outputs": [{"name": "embedding"}]}).encode()
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/style_encoder/infer",
        header + body,
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
    )
    with urllib.request.urlopen(request) as response:
        (output,) = json.load(response)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_triton_over_plain_http(
    style_server: TritonServer, photos: list[bytes], reference: Vectors
) -> None:
    _assert_same(np.concatenate([_post(style_server, [photo]) for photo in photos]), reference)


def test_a_batch_of_eight_equals_eight_singles(
    style_server: TritonServer, photos: list[bytes]
) -> None:
    together = _post(style_server, photos[:8])
    alone = np.concatenate([_post(style_server, [photo]) for photo in photos[:8]])
    np.testing.assert_allclose(together, alone, atol=2e-6)
