"""The parts that clothes are cut from: trunk outlines, jacket fronts, collars, hems, fastenings."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    Point,
    contrast,
    darker,
    lighter,
    mirrored,
    rect,
    ribbon,
    shift,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold, stitch, trim_colour
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment

Drawer = Callable[[Canvas, Body, Garment], None]


def torso(body: Body, ease: float, hem: float, neck: tuple[float, float, float] = (6.6, 31.0, 34.5),
          pointed: bool = False, drop: float = 0.6) -> Outline:  # fmt: skip
    """Returns the outline of a sleeved top.

    Args:
        body: The body to dress.
        ease: How far the cloth stands off the trunk.
        hem: Height of the lower edge.
        neck: Half-width and height of the neckline at the sides, and its height in the middle.
        pointed: Whether the neckline is a V.
        drop: How far the shoulder seam lies outside the shoulder.
    """
    half_neck, high, low = neck
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
    if pointed:
        middle = np.array([(half_neck, high), (0.0, low), (-half_neck, high)])
    else:
        dip = low - high
        middle = smooth([(half_neck, high), (half_neck * 0.62, high + dip * 0.72), (0, low),
                         (-half_neck * 0.62, high + dip * 0.72), (-half_neck, high)])  # fmt: skip
    hem_curve = smooth([side[-1], (0, hem + 0.8), (-side[-1][0], hem)])
    return np.vstack([side, hem_curve, mirrored(side), middle])


def panels(body: Body, ease: float, hem: float, gap: tuple[float, float, float],
            drop: float = 1.0) -> list[Outline]:  # fmt: skip
    """Returns the two fronts of an open jacket; gap is its half-opening at neck, chest and hem."""
    shoulders = body.person.shoulders
    at_neck, at_chest, at_hem = gap
    outer = smooth([
        (-6.6, 29.6), (-(6.6 + shoulders) / 2, 32.2), (-shoulders - drop, 36.2 + drop),
        (-body.half_width(47) - ease, 47), (-body.half_width(66) - ease * 1.3, 66),
        (-body.half_width(hem) - ease, hem),
    ])  # fmt: skip
    inner = smooth(
        [
            (-at_hem, hem + 0.5),
            (-at_chest * 0.5 - at_hem * 0.5, 72),
            (-at_chest, 54),
            (-at_neck, 34),
        ]
    )
    left = np.vstack([outer, inner])
    return [left, left[::-1] * (-1, 1)]


def panel_seams(
    layer: Canvas, body: Body, garment: Garment, gap: tuple[float, float, float], hem: float
) -> None:
    _, at_chest, at_hem = gap
    for side in SIDES:
        edge = smooth([(side * at_hem, hem), (side * at_chest, 54), (side * gap[0], 34)])
        layer.line(shift(edge, side * 0.9, 0), 0.35, contrast(garment.colour, 0.6), 0.7)
        layer.line(edge, 0.8, darker(garment.colour, 0.7), 0.7)
    trunk_folds(layer, body, garment.colour, 1.2)


def inner_shadow(canvas: Canvas, panels: list[Outline]) -> None:
    """Draws the shadow that an open jacket throws on what is under it."""
    for side, panel in zip((-1, 1), panels, strict=True):
        canvas.fill(shift(panel, -side * 1.6, 1.0), (16, 12, 26), 0.28)


def trunk_folds(layer: Canvas, body: Body, colour: Colour, amount: float = 1.0) -> None:
    for side in SIDES:
        x = side * body.half_width(46)
        fold(layer, [(x, 47), (x * 0.62, 51), (x * 0.35, 52)], 1.3 * amount, colour)
        fold(layer, [(x, 51), (x * 0.7, 57), (x * 0.5, 63)], 1.2 * amount, colour, 0.35)
        fold(
            layer,
            [(side * body.half_width(70), 69), (side * 6, 73), (side * 1, 72)],
            1.3 * amount,
            colour,
            0.35,
        )


def collar_band(canvas: Canvas, body: Body, garment: Garment, neck: tuple[float, float, float],
                 width: float, texture: str = "rib") -> None:  # fmt: skip
    half, high, low = neck
    line = smooth([(half, high - 0.4), (half * 0.62, high + (low - high) * 0.72), (0, low),
                   (-half * 0.62, high + (low - high) * 0.72), (-half, high - 0.4)])  # fmt: skip
    with canvas.clipped(ribbon(line, width)) as layer:
        layer.flood(darker(garment.colour, 0.08))
        if texture:
            layer.texture(texture, contrast(garment.colour, 0.4), 0.8, 0.75)
    canvas.line(shift(line, 0, width / 2), 0.3, darker(garment.colour, 0.5), 0.7)


def hem_band(
    layer: Canvas, hem: float, width: float, garment: Garment, texture: str = "rib"
) -> None:
    with layer.clipped(rect(-34, hem - width, 34, hem + 3)) as band:
        band.flood(darker(garment.colour, 0.06))
        if texture:
            band.texture(texture, contrast(garment.colour, 0.4), 0.8, 0.8)
    layer.line([(-34, hem - width), (34, hem - width)], 0.4, darker(garment.colour, 0.5), 0.7)


def stand_collar(canvas: Canvas, body: Body, garment: Garment, top: float) -> None:
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
    for side in SIDES:
        collar = np.array(
            [
                (side * x, y)
                for x, y in ((6.0, 26.8), (8.8, 30.4), (10.6, 39.4), (4.2, 40.6), (4.4, 33))
            ]
        )
        with cloth(canvas, body, garment, collar) as layer:
            stitch(
                layer,
                broken_line((side * 9.4, 38.4), (side * 5, 39.4)),
                contrast(garment.colour, 0.6),
            )
        canvas.line(np.vstack([collar, collar[:1]]), 0.45, darker(garment.colour, 0.65), 0.8)


def sharp_lapel(canvas: Canvas, body: Body, garment: Garment, lapel: Outline, side: int) -> None:
    """Draws a crisp lapel with its cast shadow; leather ones get a hard highlight."""
    canvas.fill(shift(lapel, -side * 0.2, 1.1), (12, 8, 20), 0.45)
    with cloth(canvas, body, garment, lapel, angle=side * 24) as layer:
        if garment.texture == "gloss":
            tip = lapel[2]
            layer.line(
                np.array([shift(tip, -side * 1.6, -1.2), shift(lapel[-2], side * 0.2, -2)]),
                (0.4, 1.6, 0.2),
                lighter(garment.colour, 0.85),
                0.75,
            )
    edge = np.vstack([lapel, lapel[:1]])
    canvas.line(edge, 0.5, darker(garment.colour, 0.75), 0.9)
    canvas.line(shift(lapel[1:4], -side * 0.5, 0.2), 0.3, lighter(garment.colour, 0.6), 0.6)


def buttons(canvas: Canvas, x: float, rows: np.ndarray[tuple[int], np.dtype[np.float64]],
             colour: Colour, size: float = 0.8) -> None:  # fmt: skip
    for y in rows:
        canvas.oval(x + 0.15, float(y) + 0.2, size, size, darker(colour, 0.6), 0.6)
        canvas.oval(x, float(y), size, size, colour)
        canvas.oval(x, float(y), size * 0.35, size * 0.35, darker(colour, 0.5))


def zipper(canvas: Canvas, points: Outline, metal: Colour) -> None:
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
