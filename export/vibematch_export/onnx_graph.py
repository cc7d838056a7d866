"""Write the fused module as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Final

import onnx
import torch

from vibematch.preprocess import Preprocessing
from vibematch_export.fused import FusedEncoder
from vibematch_training.graph_extractor import FEATURES_NAME, INPUT_NAME

OPSET: Final = 18
OUTPUT_NAME: Final = "embedding"
_INLINE_LIMIT_BYTES: Final = 2**31 - 2**26
"""Protobuf ends at 2 GiB; larger weights go beside the graph."""


def write_onnx(encoder: FusedEncoder, preprocessing: Preprocessing, path: Path) -> None:
    """Export the encoder with a dynamic batch.

    ``pixels``, uint8 ``[batch, 3, H, W]`` → ``embedding``, float32 ``[batch, dim]``, and
    ``features``, float32 ``[batch, feature_dim]``: what training would start from. Servers ask for
    the first and do not pay for the second.

    Args:
        encoder: the fused module, in evaluation mode.
        preprocessing: gives the fixed canvas.
        path: the ``.onnx`` file to write; weights over 2 GB go to ``<path>.data``.
    """
    example = torch.zeros(2, 3, preprocessing.height, preprocessing.width, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        # it would list every torchvision operator that is not installed
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        program = torch.onnx.export(
            encoder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME, FEATURES_NAME],
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1, max=4096)}},
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    weights_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    program.save(path, external_data=weights_bytes > _INLINE_LIMIT_BYTES)
    _strip_traces(path)
    onnx.checker.check_model(path)


def _strip_traces(path: Path) -> None:
    """Drop the exporter's Python stack traces: size, noise, and paths of this machine."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del entry.metadata_props[:]
    for initializer in graph.initializer:
        del initializer.metadata_props[:]
    onnx.save(model, path)
