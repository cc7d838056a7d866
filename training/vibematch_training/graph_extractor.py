"""An exported graph as feature extractor, so that training and a production index share vectors."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.preprocess import REVISION, Preprocessing

# From 1.29 on it reports models and runs to Microsoft unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

GRAPH_FILENAME: Final = "model.onnx"
INPUT_NAME: Final = "pixels"
FEATURES_NAME: Final = "features"
"""The graph's second output: pooled features, float32 ``[batch, feature_dim]``, before the head."""


class GraphExtractor:
    """The ``features`` output of an exported model in ONNX Runtime, on the CPU.

    Calls may come from several threads; each runs on its own.

    Args:
        model: the exported folder, with ``model.onnx`` and ``manifest.json``.

    Attributes:
        model: that folder.
        manifest: what the model is.
        sha256: digest of the graph and its weights.

    Raises:
        InputError: there is no graph, it cannot be loaded, or it has no ``features`` output.
        ManifestError: its manifest is missing or cannot be used.
    """

    def __init__(self, model: Path) -> None:
        graph = model / GRAPH_FILENAME
        if not graph.is_file():
            raise InputError(
                f"{model} is not an exported model (no {GRAPH_FILENAME}); give the folder that "
                "`vibematch export` made, such as RUN/export/fp32"
            )
        self.model = model
        self.manifest = Manifest.load(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # photos are spread over threads, not single operations
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises kinds of its own
            raise InputError(f"{graph} cannot be loaded ({error})") from error
        if FEATURES_NAME not in [output.name for output in self._session.get_outputs()]:
            raise InputError(
                f"{graph} has no output {FEATURES_NAME!r}; export the model again to extract "
                "features with it"
            )
        self.sha256 = _digest(model)

    def require_agreement(
        self, *, backbone_sha256: str, preprocessing: Preprocessing, prompt: str, pooling: str
    ) -> None:
        """Make sure that the graph computes the features that are asked for.

        Args:
            backbone_sha256: digest of the wanted backbone.
            preprocessing: wanted canvas and fit rule; the caps may differ.
            prompt: the wanted instruction.
            pooling: the wanted pooling.

        Raises:
            InputError: naming everything in which the graph differs.
        """
        served, wanted = self.manifest.preprocessing, preprocessing
        pairs = {
            "backbone": (self.manifest.backbone_sha256[:12], backbone_sha256[:12]),
            "canvas": (f"{served.height}x{served.width}", f"{wanted.height}x{wanted.width}"),
            "fit": (served.fit, wanted.fit),
            "preprocessing revision": (self.manifest.preprocessing_revision, REVISION),
            "prompt": (self.manifest.prompt, prompt),
            "pooling": (self.manifest.pooling, pooling),
        }
        differing = [
            f"{name} {of_graph!r}, asked for {asked!r}"
            for name, (of_graph, asked) in pairs.items()
            if of_graph != asked
        ]
        if differing:
            raise InputError(
                f"the graph of {self.model} computes other features: {'; '.join(differing)}"
            )

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Map uint8 ``[batch, 3, height, width]`` to float32 ``[batch, feature_dim]``."""
        (features,) = self._session.run([FEATURES_NAME], {INPUT_NAME: pixels})
        return torch.from_numpy(features)


def _digest(model: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(model.glob(f"{GRAPH_FILENAME}*")):  # large weights lie beside the graph
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
