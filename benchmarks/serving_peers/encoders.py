"""Pixels → vectors, as the servers we are compared with compute them: the same weights as ours."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import models
import numpy as np
import numpy.typing as npt
import torch
from harness import CORES

from vibematch.preprocess import Preprocessing
from vibematch_training.features import pooled_features
from vibematch_training.head import ProjectionHead

Encode: TypeAlias = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Pixels, uint8 ``[batch, 3, height, width]`` → unit vectors, float32 ``[batch, dim]``."""


def arguments() -> argparse.ArgumentParser:
    """What every peer has to be told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backbone", choices=["tiny", "2b"], default="tiny")
    parser.add_argument("--canvas", type=int, nargs=2, required=True, help="height and width")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--graph", type=Path, help="run this exported model instead")
    return parser


def made(args: argparse.Namespace) -> tuple[Preprocessing, Encode]:
    """The canvas, and the encoder that was asked for."""
    canvas = Preprocessing(*args.canvas)
    if args.graph:
        return canvas, _graph(args.graph)
    return canvas, _transformers(args.backbone, canvas, getattr(torch, args.dtype))


def _transformers(name: models.BackboneName, canvas: Preprocessing, dtype: torch.dtype) -> Encode:
    """Hugging Face's own forward, and the head that the exported graph has."""
    torch.set_num_threads(CORES)
    recipe = models.recipe(name, canvas, dtype)
    torch.manual_seed(0)  # the head of models.fused
    head = ProjectionHead(recipe.backbone.feature_dim, models.EMBEDDING_DIM).eval()

    def encode(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            vectors: npt.NDArray[np.float32] = head(pooled_features(pixels, recipe)).numpy()
        return vectors

    return encode


def _graph(model: Path) -> Encode:
    session = models.session(model)

    def encode(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        outputs: list[Any] = session.run(["embedding"], {"pixels": pixels})
        return np.asarray(outputs[0], np.float32)

    return encode
