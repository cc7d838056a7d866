"""Proof that an exported graph is the model that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from tqdm import tqdm

from vibematch.errors import InputError, PhotoError, VibematchError
from vibematch_export.onnx_graph import OUTPUT_NAME
from vibematch_training.features import FeatureRecipe, load_pixels, pooled_features
from vibematch_training.graph_extractor import INPUT_NAME
from vibematch_training.head import ProjectionHead

MIN_COSINE: Final = {"fp32": 0.99999}
"""Per precision, the least cosine an export may have on any photo."""

_BATCH: Final = 8


class ParityError(VibematchError):
    """The exported graph and the trained model disagree; nothing was published."""


def measure_parity(
    graph: Path, photos: Sequence[Path], recipe: FeatureRecipe, head: ProjectionHead
) -> dict[str, float]:
    """Compare a graph in ONNX Runtime with Hugging Face's forward + head in PyTorch, float32.

    Args:
        graph: the ``.onnx`` file.
        photos: the photo files to compare on; unreadable ones are left out.
        recipe: backbone, canvas, prompt and pooling of the reference.
        head: the trained head, in evaluation mode.

    Returns:
        ``photos`` (how many were compared), ``min_cosine``, ``mean_cosine`` and
        ``max_abs_difference`` between the two vectors of a photo.

    Raises:
        InputError: none of the photos can be read.
        ParityError: the graph gave a value that is not finite.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    cosines: list[float] = []
    largest = 0.0
    for start in tqdm(range(0, len(photos), _BATCH), desc="parity", unit="batch"):
        pixels = _stack(photos[start : start + _BATCH], recipe)
        if not len(pixels):
            continue
        (served,) = session.run([OUTPUT_NAME], {INPUT_NAME: pixels})
        with torch.inference_mode():
            expected = head(pooled_features(pixels, recipe)).numpy()
        if not np.isfinite(served).all():
            raise ParityError(f"{graph} gives vectors that are not finite")
        cosines.extend(_cosines(served, expected))
        largest = max(largest, float(np.abs(served - expected).max()))
    if not cosines:
        raise InputError("none of the photos to compare on can be read")
    return {
        "photos": len(cosines),
        "min_cosine": min(cosines),
        "mean_cosine": float(np.mean(cosines)),
        "max_abs_difference": largest,
    }


def require_parity(parity: dict[str, float], precision: str) -> None:
    """Refuse an export that strays from the model.

    Raises:
        ParityError: the least cosine is under the threshold of this precision.
    """
    threshold = MIN_COSINE[precision]
    if parity["min_cosine"] < threshold:
        raise ParityError(
            f"the {precision} graph strays from the trained model: least cosine "
            f"{parity['min_cosine']:.6f} over {parity['photos']:.0f} photos, at least {threshold} "
            "is required; not published"
        )


def _stack(photos: Sequence[Path], recipe: FeatureRecipe) -> npt.NDArray[np.uint8]:
    pixels = []
    for photo in photos:
        try:
            pixels.append(load_pixels(photo, recipe.preprocessing))
        except PhotoError as error:
            tqdm.write(f"left out: {error}")
    return np.stack(pixels) if pixels else np.empty((0,), np.uint8)


def _cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> list[float]:
    # float64: in float32 the norms alone would cost as much as the difference looked for
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: list[float] = ((a * b).sum(axis=1) / norms).tolist()
    return cosines
