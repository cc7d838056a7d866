"""One drawn photo and the vector that the proven graph makes of it: a server's health check.

Both lie in the exported model, and ``style_canary`` compares them with what the server makes of the
photo. Wrong weights, other preprocessing or a broken driver show in the cosine long before anyone
complains about the matches.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from vibematch.preprocess import Preprocessing, preprocess

CANARY_PHOTO: Final = "canary.png"
CANARY_EMBEDDING: Final = "canary.npy"
MIN_COSINE: Final = 0.999
"""What a server has to reach: the mean cosine that every precision is proven to."""

_SIDE: Final = 256
_GRID: Final = 32
_STEP: Final = 32
"""Colours are rounded to multiples of this: PNG packs few colours well."""


def draw_canary() -> bytes:
    """Draw the photo: soft colours, gratings from broad to fine, and grain; no one's face.

    Returns:
        A PNG file of 256 x 256 pixels, the same each time. PNG, so that every decoder reads the
        same pixels.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    colours = rng.integers(0, 256, (_GRID, _GRID, 3), dtype=np.uint8)
    soft = Image.fromarray(colours[:8, :8]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    squares = Image.fromarray(colours).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    waves = np.sin(2 * np.pi * (3 * x + 40 * x * y))[..., None]  # ever finer to the lower right
    drawn = 0.6 * np.asarray(soft) + 0.4 * np.asarray(squares) + 50 * waves
    drawn += rng.normal(0, 12, drawn.shape) * (x < y)[..., None]  # grain in one half
    levels = np.rint(drawn / _STEP) * _STEP
    file = io.BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(file, "PNG", optimize=True)
    return file.getvalue()


def write_canary(
    model: Path,
    run: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    preprocessing: Preprocessing,
) -> None:
    """Store the photo and its vector, float32 ``[dim]``, in a model folder.

    Args:
        model: folder of the exported model.
        run: its graph: pixels, uint8 ``[1, 3, H, W]`` → embeddings, float32 ``[1, dim]``.
        preprocessing: canvas and fit rule of the model.
    """
    photo = draw_canary()
    (vector,) = run(preprocess(photo, preprocessing)[None])
    (model / CANARY_PHOTO).write_bytes(photo)
    np.save(model / CANARY_EMBEDDING, vector.astype(np.float32))
