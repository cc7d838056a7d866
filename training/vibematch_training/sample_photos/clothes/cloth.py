"""Covers outlines in shaded, printed cloth; folds, seams and trim colours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    Point,
    contrast,
    darker,
    lighter,
    luminance,
    mix,
)
from vibematch_training.sample_photos.figure import Body
from vibematch_training.sample_photos.wardrobe import Garment

# How strongly each cloth shows on its base colour, and the size of its repeat.
_CLOTH: dict[str, tuple[float, float]] = {
    "rib": (0.62, 1.2),
    "wide_rib": (0.5, 0.9),
    "knit": (0.62, 1.1),
    "cable": (0.62, 0.9),
    "denim": (0.6, 1.2),
    "heather": (0.4, 1.2),
    "weave": (0.4, 1.2),
    "fleece": (0.3, 0.8),
    "mesh": (0.7, 1.2),
    "pinstripe": (0.85, 1.0),
    "herringbone": (0.65, 0.9),
    "houndstooth": (0.8, 0.9),
    "satin": (0.4, 1.1),
    "lace": (0.75, 0.8),
}


_ACCENTED = {"plaid": (0.95, 1.0), "breton": (0.95, 1.0), "dots": (0.95, 0.9),
             "regimental": (0.9, 1.0), "camouflage": (0.75, 1.5)}  # fmt: skip


@contextmanager
def cloth(
    canvas: Canvas, body: Body, garment: Garment, *outlines: Outline, angle: float = 0
) -> Iterator[Canvas]:
    """Yields a canvas clipped to the outlines and covered in cloth, then shades it."""
    with canvas.clipped(*outlines) as layer:
        layer.flood(garment.colour)
        print_cloth(layer, garment, angle)
        yield layer
        everything = np.vstack(outlines)
        (x0, y0), (x1, _) = everything.min(axis=0), everything.max(axis=0)
        middle, half = (x0 + x1) / 2, (x1 - x0) / 2
        lit, unlit = middle + body.light * half * 0.1, middle - body.light * half
        layer.gradient((lit, y0), (unlit, y0 + half * 0.3), darker(garment.colour, 0.8), 0.42)


def print_cloth(layer: Canvas, garment: Garment, angle: float = 0) -> None:
    """Prints the garment's texture over the whole layer."""
    name, base = garment.texture, garment.colour
    if name == "gloss":
        layer.texture("gloss", lighter(base, 0.6), 1.0, 1.0, angle)
    elif name in _ACCENTED:
        alpha, size = _ACCENTED[name]
        layer.texture(name, mix(base, garment.accent, alpha), 1.0, size, angle)
    elif name:
        share, size = _CLOTH[name]
        layer.texture(name, contrast(base, share), 1.0, size, angle)


def fold(
    layer: Canvas, points: list[Point], width: float, colour: Colour, alpha: float = 0.45
) -> None:
    """Draws one soft fold of cloth."""
    layer.curve(points, (0.1, width, 0.1), darker(colour, 0.6), alpha)


def stitch(layer: Canvas, points: Outline, colour: Colour, width: float = 0.32) -> None:
    """Draws a dashed seam."""
    for i in range(0, len(points) - 1, 2):
        layer.line(points[i : i + 2], width, colour, 0.9)


def trim_colour(garment: Garment) -> Colour:
    """Returns a trim colour that stands out from the garment."""
    far = abs(luminance(garment.accent) - luminance(garment.colour)) > 60
    if far:
        return garment.accent
    return (240, 238, 234) if luminance(garment.colour) < 130 else (34, 34, 40)
