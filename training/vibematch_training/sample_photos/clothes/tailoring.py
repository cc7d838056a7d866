"""What garments are made up of: trunk outlines, jacket fronts, collars, hems and fastenings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    Point,
    Points,
    contrast,
    darker,
    lighter,
    mirrored,
    on_side,
    rect,
    ribbon,
    shift,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold, stitch, trim_colour
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment

Drawer = Callable[[Canvas, Body, Garment], None]
# Half-width and height of a neckline at its sides, and its height in the middle.
Neck = tuple[float, float, float]
# Half-opening of a jacket at neck, chest and hem.
Gap = tuple[float, float, float]


def torso(body: Body, ease: float, hem: float, neck: Neck, drop: float = 0.6) -> Outline:
    """Returns the outline of a sleeved top.

    Args:
        body: The body to dress.
        ease: How far the cloth stands off the trunk.
        hem: Height of the lower edge.
        neck: The neckline.
        drop: How far the shoulder seam lies outside the shoulder.
    """
    half_neck, high, _ = neck
    shoulders = body.person.shoulders
    side = smooth(
        [
            (-half_neck, high),
            (-(half_neck + shoulders) / 2, high + 1.6),
            (-shoulders - drop, 36.4 + drop),
            (-body.half_width(47) - ease, 47),
            (-body.half_width(66) - ease * 1.15, 66),
            (-body.half_width(hem) - ease, hem),
        ]
    )
    hem_curve = smooth([side[-1], (0, hem + 0.8), (-side[-1][0], hem)])
    return np.vstack([side, hem_curve, mirrored(side), _neckline(neck)])


def _neckline(neck: Neck) -> Outline:
    """Returns the curve of a neckline, from right to left."""
    half, high, low = neck
    bend = half * 0.62, high + (low - high) * 0.72
    return smooth([(half, high), bend, (0, low), (-bend[0], bend[1]), (-half, high)])


def jacket_fronts(
    body: Body, ease: float, hem: float, gap: Gap, drop: float = 1.0
) -> list[Outline]:
    """Returns the left and right front of an open jacket."""
    shoulders = body.person.shoulders
    at_neck, at_chest, at_hem = gap
    outer = smooth([
        (-6.6, 29.6), (-(6.6 + shoulders) / 2, 32.2), (-shoulders - drop, 36.2 + drop),
        (-body.half_width(47) - ease, 47), (-body.half_width(66) - ease * 1.3, 66),
        (-body.half_width(hem) - ease, hem),
    ])  # fmt: skip
    at_waist = at_chest * 0.5 + at_hem * 0.5
    inner = smooth([(-at_hem, hem + 0.5), (-at_waist, 72), (-at_chest, 54), (-at_neck, 34)])
    left = np.vstack([outer, inner])
    return [left, left[::-1] * (-1, 1)]


def panel_seams(layer: Canvas, body: Body, garment: Garment, gap: Gap, hem: float) -> None:
    """Draws the seams along the edges of jacket fronts, and the folds of the trunk."""
    at_neck, at_chest, at_hem = gap
    for side in SIDES:
        edge = smooth(on_side(side, [(at_hem, hem), (at_chest, 54), (at_neck, 34)]))
        layer.line(shift(edge, side * 0.9, 0), 0.35, contrast(garment.colour, 0.6), 0.7)
        layer.line(edge, 0.8, darker(garment.colour, 0.7), 0.7)
    trunk_folds(layer, body, garment.colour, 1.2)


def inner_shadow(canvas: Canvas, panels: list[Outline]) -> None:
    """Draws the shadow that an open jacket throws on what is under it."""
    for side, panel in zip(SIDES, panels, strict=True):
        canvas.fill(shift(panel, -side * 1.6, 1.0), (16, 12, 26), 0.28)


def trunk_folds(layer: Canvas, body: Body, colour: Colour, amount: float = 1.0) -> None:
    """Draws the folds under the arms and at the waist."""
    for side in SIDES:
        x, waist = side * body.half_width(46), side * body.half_width(70)
        fold(layer, [(x, 47), (x * 0.62, 51), (x * 0.35, 52)], 1.3 * amount, colour)
        fold(layer, [(x, 51), (x * 0.7, 57), (x * 0.5, 63)], 1.2 * amount, colour, 0.35)
        fold(layer, [(waist, 69), (side * 6, 73), (side, 72)], 1.3 * amount, colour, 0.35)


def collar_band(
    canvas: Canvas, garment: Garment, neck: Neck, width: float, texture: str = "rib"
) -> None:
    """Draws the band along a round neckline."""
    half, high, low = neck
    bend = half * 0.62, high + (low - high) * 0.72
    line = smooth([(half, high - 0.4), bend, (0, low), (-bend[0], bend[1]), (-half, high - 0.4)])
    with canvas.clipped(ribbon(line, width)) as layer:
        layer.flood(darker(garment.colour, 0.08))
        if texture:
            layer.texture(texture, contrast(garment.colour, 0.4), 0.8, 0.75)
    canvas.line(shift(line, 0, width / 2), 0.3, darker(garment.colour, 0.5), 0.7)


def hem_band(layer: Canvas, hem: float, width: float, garment: Garment) -> None:
    """Draws the ribbed band at the lower edge of a garment."""
    with layer.clipped(rect(-34, hem - width, 34, hem + 3)) as band:
        band.flood(darker(garment.colour, 0.06))
        band.texture("rib", contrast(garment.colour, 0.4), 0.8, 0.8)
    layer.line([(-34, hem - width), (34, hem - width)], 0.4, darker(garment.colour, 0.5), 0.7)


def stand_collar(canvas: Canvas, body: Body, garment: Garment, top: float) -> None:
    """Draws a collar that stands up around the neck."""
    collar = np.vstack(
        [
            smooth([(-7.4, 33), (-6.9, 29), (-6.5, top)]),
            smooth([(-6.5, top), (0, top + 2.4), (6.5, top)]),
            smooth([(6.5, top), (6.9, 29), (7.4, 33)]),
            smooth([(7.4, 33), (0, 36.5), (-7.4, 33)]),
        ]
    )
    with cloth(canvas, body, garment, collar) as layer:
        layer.line(
            smooth([(-6.5, top + 0.7), (0, top + 3.1), (6.5, top + 0.7)]), 0.9, trim_colour(garment)
        )
    canvas.line(smooth([(-7.4, 33), (0, 36.5), (7.4, 33)]), 0.5, darker(garment.colour, 0.6), 0.8)


def wide_collar(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws the turned-down collar of shirts and jackets, with its stitching."""
    for side in SIDES:
        collar = on_side(side, [(6.0, 26.8), (8.8, 30.4), (10.6, 39.4), (4.2, 40.6), (4.4, 33)])
        with cloth(canvas, body, garment, collar) as layer:
            seam = broken_line((side * 9.4, 38.4), (side * 5, 39.4))
            stitch(layer, seam, contrast(garment.colour, 0.6))
        canvas.outline(collar, 0.45, darker(garment.colour, 0.65), 0.8)


def draw_lapels(canvas: Canvas, body: Body, garment: Garment, *pieces: Points) -> None:
    """Draws crisp lapels on both sides, from pieces given for the right side."""
    for side in SIDES:
        for piece in pieces:
            _sharp_lapel(canvas, body, garment, on_side(side, piece), side)


def _sharp_lapel(canvas: Canvas, body: Body, garment: Garment, lapel: Outline, side: int) -> None:
    """Draws a crisp lapel with its cast shadow; leather ones get a hard highlight."""
    canvas.fill(shift(lapel, -side * 0.2, 1.1), (12, 8, 20), 0.45)
    with cloth(canvas, body, garment, lapel, angle=side * 24) as layer:
        if garment.texture == "gloss":
            tip, root = shift(lapel[2], -side * 1.6, -1.2), shift(lapel[-2], side * 0.2, -2)
            shine = lighter(garment.colour, 0.85)
            layer.line(np.array([tip, root]), (0.4, 1.6, 0.2), shine, 0.75)
    canvas.outline(lapel, 0.5, darker(garment.colour, 0.75), 0.9)
    canvas.line(shift(lapel[1:4], -side * 0.5, 0.2), 0.3, lighter(garment.colour, 0.6), 0.6)


def buttons(
    canvas: Canvas, x: float, rows: Iterable[float], colour: Colour, size: float = 0.8
) -> None:
    """Draws a column of buttons."""
    for y in rows:
        canvas.oval(x + 0.15, y + 0.2, size, size, darker(colour, 0.6), 0.6)
        canvas.oval(x, y, size, size, colour)
        canvas.oval(x, y, size * 0.35, size * 0.35, darker(colour, 0.5))


def zipper(canvas: Canvas, points: Outline, metal: Colour) -> None:
    """Draws a zip with its teeth."""
    canvas.line(points, 1.3, darker(metal, 0.75))
    for a, b in pairwise(points):
        for t in (0.0, 0.33, 0.66):
            x, y = a + (b - a) * t
            canvas.fill(rect(x - 0.45, y, x + 0.45, y + 0.42), lighter(metal, 0.3))


def broken_line(*points: Point, steps: int = 14) -> Outline:
    """Returns a straight or broken line cut into short pieces."""
    knots = np.asarray(points, dtype=np.float64)
    t = np.linspace(0, len(knots) - 1, steps * (len(knots) - 1) + 1)
    return np.stack([np.interp(t, range(len(knots)), knots[:, i]) for i in (0, 1)], axis=1)
