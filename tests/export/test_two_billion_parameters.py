"""The exact Qwen3-VL-2B architecture, with random weights: 15 GB of memory, some minutes each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from benchmarks.models import random_2b

from vibematch.preprocess import Preprocessing
from vibematch_export import kernels
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import write_onnx
from vibematch_training.backbone import PROMPT
from vibematch_training.features import FeatureRecipe, pooled_features
from vibematch_training.head import ProjectionHead

CANVAS = Preprocessing(448, 448)

pytestmark = pytest.mark.slow


def _encoder(recipe: FeatureRecipe, features: torch.Tensor) -> FusedEncoder:
    head = ProjectionHead(recipe.backbone.feature_dim, 256).eval()
    # centred close to this photo, so that the head magnifies any difference
    head.feature_mean.copy_(0.9 * features[0])
    head.feature_std.fill_(0.1 * float(features.std()))
    return FusedEncoder(recipe, head).eval()


def test_the_graphs_of_the_2b_architecture(tmp_path: Path) -> None:
    backbone = random_2b(torch.float32)
    assert sum(weights.numel() for weights in backbone.model.parameters()) == 2_127_532_032
    recipe = FeatureRecipe(backbone, CANVAS, PROMPT)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 448, 448), dtype=np.uint8)
    features = pooled_features(pixels, recipe)
    fused = _encoder(recipe, features)
    with torch.inference_mode():
        expected = fused.head(features).numpy()
        embedding, _ = fused(torch.from_numpy(pixels))
        np.testing.assert_allclose(embedding.numpy(), expected, atol=2e-5)
    graphs = {precision: tmp_path / precision / "model.onnx" for precision in ("fp32", "int8")}
    for precision, graph in graphs.items():
        graph.parent.mkdir()
        write_onnx(fused, CANVAS, graph, precision)  # type: ignore[arg-type]
    assert graphs["fp32"].stat().st_size < 1e6 < 7e9 < _data(graphs["fp32"]) < 8e9
    assert 1.7e9 < _data(graphs["int8"]) < 2e9
    del fused, backbone, recipe
    for own_kernels in (False, True):
        served, _ = _run(graphs["fp32"], pixels, own_kernels)
        np.testing.assert_allclose(served, expected, atol=2e-5)
        _, narrow = _run(graphs["int8"], pixels, own_kernels)
        cosine = (narrow * features.numpy()).sum() / np.linalg.norm(narrow) / features.norm()
        assert cosine > 0.999


def _data(graph: Path) -> int:
    return graph.with_name("model.onnx.data").stat().st_size


def _run(graph: Path, pixels: np.ndarray, own_kernels: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if own_kernels:
        assert kernels.register(options)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(["embedding", "features"], {"pixels": pixels})
    return outputs


def test_the_export_takes_less_than_12_gb(tmp_path: Path) -> None:
    """The backbone in float32 and one layer more; in a process of its own, to measure it."""
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tests.export.test_two_billion_parameters import *\n"
        "recipe = FeatureRecipe(random_2b(torch.float32), CANVAS, PROMPT)\n"
        "fused = FusedEncoder(recipe, ProjectionHead(2048, 256).eval()).eval()\n"
        "for precision in ('int8', 'fp32', 'bf16'):\n"
        "    write_onnx(fused, CANVAS, Path(sys.argv[1]) / f'{precision}.onnx', precision)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    root = Path(__file__).parents[2]
    measure = [sys.executable, "-c", code, str(tmp_path), str(root)]
    peak = int(subprocess.check_output(measure, text=True).split()[-1])
    print(f"peak {peak / 1e9:.1f} GB")
    assert peak < 12e9
