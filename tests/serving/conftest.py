"""A stand-in for an exported model: same contract, a few lines of graph."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing
from vibematch_export.canary import write_canary
from vibematch_export.repository import write_repository
from vibematch_export.triton import TritonServer

CANVAS = Preprocessing(height=64, width=96, max_bytes=200_000)
DIM = 16


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model folder: mean colour → random projection → unit length."""
    folder = tmp_path_factory.mktemp("exported")
    projection = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "sides"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "projection"], ["features"]),
            helper.make_node("LpNormalization", ["features"], ["embedding"], axis=1, p=2),
        ],
        "stand_in",
        [
            helper.make_tensor_value_info(
                "pixels", TensorProto.UINT8, ["batch", 3, CANVAS.height, CANVAS.width]
            )
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])],
        [
            numpy_helper.from_array(np.array([2, 3]), "sides"),
            numpy_helper.from_array(projection, "projection"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    Manifest(
        embedding_dim=DIM,
        preprocessing=CANVAS,
        prompt="Describe this person's appearance.",
        pooling="mean",
        backbone="stand-in",
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="1" * 64,
        precision="fp32",
    ).save(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    write_canary(folder, lambda pixels: session.run(None, {"pixels": pixels})[0], CANVAS)
    return folder


@pytest.fixture(scope="session")
def repository(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("serving") / "repository", exported)


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Nine different JPEG photos of different sizes."""
    rng = np.random.default_rng(1)
    return [_jpeg(rng, width=100 + 10 * index, height=140 - 5 * index) for index in range(9)]


def _jpeg(rng: np.random.Generator, width: int, height: int) -> bytes:
    file = io.BytesIO()
    colours = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((width, height)).save(file, "JPEG")
    return file.getvalue()
