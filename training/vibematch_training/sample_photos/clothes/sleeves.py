"""Draws sleeved and bare arms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    contrast,
    darker,
    lighter,
    ribbon,
    shift,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold, trim_colour
from vibematch_training.sample_photos.figure import RIGHT, Body, draw_arm_skin
from vibematch_training.sample_photos.wardrobe import Garment, Outfit

# Ease, share of the arm covered and cuff of each sleeved garment.
_SLEEVES: dict[str, tuple[float, float, str]] = {
    "tee": (2.6, 0.42, ""),
    "knit": (3.0, 1.0, "rib"),
    "henley": (1.6, 1.0, "rib"),
    "hoodie": (5.4, 1.0, "rib"),
    "graphic_tee": (5.6, 0.52, ""),
    "performance_tee": (1.4, 0.4, ""),
    "quarter_zip": (1.2, 1.0, ""),
    "turtleneck": (1.0, 1.0, ""),
    "colour_block": (1.6, 0.62, ""),
    "bow_blouse": (3.6, 1.0, "plain"),
    "dress_shirt": (2.4, 1.0, "plain"),
    "open_shirt": (2.8, 0.66, ""),
    "cardigan": (3.4, 1.0, "rib"),
    "bomber": (5.2, 1.0, "rib"),
    "overshirt": (5.0, 1.0, "plain"),
    "denim_jacket": (4.4, 1.0, "plain"),
    "puffer": (7.6, 1.0, ""),
    "track_jacket": (3.0, 1.0, "rib"),
    "biker": (2.4, 1.0, "plain"),
    "trench": (4.4, 1.0, "plain"),
    "suit": (2.8, 0.95, ""),
}


def draw_sleeve(canvas: Canvas, body: Body, outfit: Outfit, side: int) -> None:
    """Draws one arm: skin, then the sleeves of the top or of the outer layer."""
    sleeved = outfit.outer if outfit.outer and outfit.outer.kind in _SLEEVES else outfit.top
    ease, share, cuff = _SLEEVES.get(sleeved.kind, (0.0, 0.0, ""))
    if sleeved.kind == "asymmetric_top" and side != RIGHT:
        ease, share = 1.0, 1.0
    if share < 1:
        draw_arm_skin(canvas, body, side)
    if sleeved.kind == "dress_shirt":
        sleeved = _shirt_cloth(sleeved)
    if sleeved.kind == "lace_dress":
        with canvas.clipped(*body.arm_outlines(side, 0.4, 0.75)) as sheer:
            sheer.flood(sleeved.colour, 0.2)
            sheer.texture("lace", sleeved.colour, 0.95, 0.95)
    if sleeved.kind == "suit":
        draw_cuff(canvas, body, side, _shirt_cloth(outfit.top).colour)
    if share:
        _sleeve(canvas, body, side, sleeved, ease, share, cuff)


def _shirt_cloth(shirt: Garment) -> Garment:
    """Returns a shirt in the pale version of its colour that shirts come in."""
    return replace(shirt, colour=lighter(shirt.colour, 0.62), texture="")


def draw_cuff(canvas: Canvas, body: Body, side: int, colour: Colour) -> None:
    """Draws the end of a shirt sleeve that shows under a jacket sleeve."""
    canvas.line(body.arm(side)[-4:], body.arm_widths(side, 1.2)[-1], colour)


def _sleeve(
    canvas: Canvas, body: Body, side: int, garment: Garment, ease: float, share: float, cuff: str
) -> None:
    """Draws a sleeve over `share` of the arm, with folds and an optional cuff."""
    line, colour = body.arm(side), garment.colour
    chain = line[: max(4, round(len(line) * share))]
    widths = np.interp(np.linspace(0, share, 5), np.linspace(0, 1, 5), body.arm_widths(side, ease))
    outlines = body.arm_outlines(side, ease, share)
    dx, dy = chain[-1] - chain[0]
    angle = -float(np.degrees(np.arctan2(dx, dy)))
    with cloth(canvas, body, garment, *outlines, angle=angle) as layer:
        if garment.kind in _DETAILS:
            _DETAILS[garment.kind](layer, chain, garment)
        inner = shift(chain, -side * widths[0] * 0.42, 0)
        layer.line(inner, (1.4, 2.4, 1.4), darker(colour, 0.7), 0.3)
        if share == 1:
            _elbow_folds(layer, chain, float(widths[2]), colour)
        _sleeve_end(layer, chain, float(widths[-1]) + 4, colour, cuff, angle)
    canvas.line(outlines[1][-13:-5], (0.3, 0.6, 0.4), darker(colour, 0.7), 0.6)


def _sleeve_end(
    layer: Canvas, chain: Outline, width: float, colour: Colour, cuff: str, angle: float
) -> None:
    """Draws a plain or ribbed cuff, or else a hem."""
    if not cuff:
        layer.line(_across(chain[-2], chain[-1], width), 0.5, darker(colour, 0.5), 0.6)
        return
    with layer.clipped(ribbon(chain[-4:], width)) as band:
        band.flood(darker(colour, 0.05))
        if cuff == "rib":
            band.texture("rib", contrast(colour, 0.4), 0.8, 0.75, angle)
    layer.line(_across(chain[-4], chain[-3], width), 0.5, darker(colour, 0.6), 0.7)


def _across(start: Outline, end: Outline, width: float) -> Outline:
    """Returns the short line at `start` that is square to the way to `end`."""
    dx, dy = end - start
    length = max(float(np.hypot(dx, dy)), 1e-6)
    offset = np.array([-dy, dx]) / length * width / 2
    return np.stack([start - offset, start + offset])


def _elbow_folds(layer: Canvas, chain: Outline, width: float, colour: Colour) -> None:
    bend = len(chain) // 2
    for i, reach in ((-4, 0.6), (-1, 1.0), (2, 0.8), (8, 0.5)):
        index = min(max(bend + i, 1), len(chain) - 2)
        a, b = _across(chain[index], chain[index + 1], width)
        start, end = (a, b) if a[0] ** 2 < b[0] ** 2 else (b, a)
        stop = start + (end - start) * 0.62 * reach
        middle = (start + stop) / 2 + (0, 0.9)
        fold(layer, [tuple(start), tuple(middle), tuple(stop)], 0.9, colour, 0.5)


def _track_stripes(layer: Canvas, chain: Outline, garment: Garment) -> None:
    for offset in (-1.9, 0.0, 1.9):
        layer.line(shift(chain, offset + np.sign(chain[0][0]) * 1.2, 0), 1.05, trim_colour(garment))


def _raglan(layer: Canvas, chain: Outline, garment: Garment) -> None:
    layer.flood(garment.accent)
    layer.texture("mesh", contrast(garment.accent, 0.5), 0.8, 0.8)
    layer.line(shift(chain, np.sign(chain[0][0]) * 0.5, 0), 1.3, trim_colour(garment))


def _quilts(layer: Canvas, chain: Outline, garment: Garment) -> None:
    for i in range(2, len(chain) - 1, 4):
        seam = _across(chain[i], chain[i + 1], 18)
        layer.line(shift(seam, 0, -1.3), 2.2, lighter(garment.colour, 0.5), 0.35)
        layer.line(seam, 0.9, darker(garment.colour, 0.6), 0.75)


def _biker_sleeve(layer: Canvas, chain: Outline, garment: Garment) -> None:
    side = np.sign(chain[0][0])
    for offset in (1.6, 2.6):
        layer.line(
            shift(chain[1:-3], side * offset, 0), (0.2, 0.8, 0.3), lighter(garment.colour, 0.8), 0.6
        )
    layer.line(_across(chain[-7], chain[-6], 20), 0.5, darker(garment.colour, 0.7))


def _printed_sleeve(layer: Canvas, chain: Outline, garment: Garment) -> None:
    if garment.motif % 3 == 0:
        middle = chain[len(chain) // 3 : -4]
        for i in range(0, len(middle) - 1, 2):
            layer.line(_across(middle[i], middle[i + 1], 3.4), 1.4, trim_colour(garment))


_DETAILS: dict[str, Callable[[Canvas, Outline, Garment], None]] = {
    "track_jacket": _track_stripes,
    "performance_tee": _raglan,
    "quarter_zip": _raglan,
    "puffer": _quilts,
    "biker": _biker_sleeve,
    "hoodie": _printed_sleeve,
}
