"""Draws sports clothes: tanks, bras, training tees, running tops and track jackets."""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    Point,
    blob,
    contrast,
    darker,
    mirrored,
    on_side,
    rect,
    shift,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, trim_colour
from vibematch_training.sample_photos.clothes.tailoring import (
    Drawer,
    broken_line,
    collar_band,
    hem_band,
    inner_shadow,
    jacket_fronts,
    stand_collar,
    torso,
    trunk_folds,
    zipper,
)
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment

_METAL: Colour = (206, 208, 214)


def _sports_tank(canvas: Canvas, body: Body, garment: Garment) -> None:
    _strapped(canvas, body, garment, 88)


def _sports_bra(canvas: Canvas, body: Body, garment: Garment) -> None:
    _strapped(canvas, body, garment, 58)
    canvas.curve([(0, 62), (0.2, 72), (0, 80)], (0.2, 0.6, 0.2), darker(body.person.skin, 0.3), 0.6)


def _strapped(canvas: Canvas, body: Body, garment: Garment, hem: float) -> None:
    """Draws a racerback top with mesh panels and contrast piping."""
    trim = trim_colour(garment)
    chest, low = body.half_width(48), body.half_width(hem)
    half = np.vstack(
        [
            smooth([(-7.2, 31.6), (-9.8, 32.8)]),
            smooth([(-9.8, 32.8), (-11.5, 40), (-chest - 0.8, 48.5)]),
            smooth(
                [
                    (-chest - 0.8, 48.5),
                    (-body.half_width(64) - 0.7, min(64, hem)),
                    (-low - 0.7, hem),
                ]
            ),
        ]
    )
    neckline = smooth([(7.2, 31.6), (5.5, 39), (0, 43), (-5.5, 39), (-7.2, 31.6)])
    outline = np.vstack([half, mirrored(half), neckline])
    with cloth(canvas, body, garment, outline) as layer:
        for side in SIDES:
            panel = on_side(
                side, [(chest + 2, 47), (chest * 0.55, 58), (chest * 0.6, 92), (chest + 9, 92)]
            )
            _mesh(layer, panel, garment, 0.9)
            layer.line(panel[:3], 0.8, trim)
            layer.line(half[7:15] * (-side, 1), 1.5, trim)
        layer.line(neckline, 1.6, trim)
        band = broken_line((-30, hem - 3), (30, hem - 3))
        layer.line(band, 0.5 if hem > 60 else 3.6, darker(garment.colour, 0.4))
        if hem > 60:
            trunk_folds(layer, body, garment.colour, 0.8)
        layer.fill([(3.4, 47), (8.2, 44.8), (6.6, 47.2)], trim)


def _mesh(layer: Canvas, outline: Outline, garment: Garment, size: float) -> None:
    """Sets in a panel of mesh in the accent colour."""
    with layer.clipped(outline) as panel:
        panel.flood(garment.accent)
        panel.texture("mesh", contrast(garment.accent, 0.55), 0.9, size)


def _raglan(layer: Canvas, points: list[Point], side: int, garment: Garment, width: float) -> None:
    """Colours the shoulder outside a seam whose points are given for the right side."""
    seam = smooth(on_side(side, points))
    low = points[-1][1]
    layer.fill(np.vstack([seam, [(side * 40, low), (side * 40, 30)]]), garment.accent)
    layer.line(seam, width, trim_colour(garment))


def _performance_tee(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.6, 31.0, 35.4)
    trim = trim_colour(garment)
    with cloth(canvas, body, garment, torso(body, 0.7, 88, neck)) as layer:
        for side in SIDES:
            _raglan(
                layer, [(6.6, 31), (11, 40), (body.half_width(47) * 0.98, 48)], side, garment, 1.1
            )
            edge = smooth(on_side(side, [(30, 52), (body.half_width(66) * 0.62, 66), (30, 84)]))
            _mesh(layer, edge, garment, 1.0)
            layer.line(edge, 0.9, trim)
        layer.fill([(-8.5, 46.5), (-3.8, 44), (-5.4, 46.8)], trim)
        if garment.motif % 2:
            layer.fill([(-30, 57), (30, 51), (30, 55), (-30, 61)], trim)
        trunk_folds(layer, body, garment.colour, 0.8)
    collar_band(canvas, garment, neck, 1.3, "")


def _quarter_zip(canvas: Canvas, body: Body, garment: Garment) -> None:
    trim = trim_colour(garment)
    with cloth(canvas, body, garment, torso(body, 0.8, 88, (6.4, 30, 33))) as layer:
        for side in SIDES:
            _raglan(
                layer, [(8, 33), (13, 44), (body.half_width(47) * 1.02, 50)], side, garment, 1.2
            )
            layer.line(smooth([(side * 15, 50), (side * 9.5, 66), (side * 13, 90)]), 1.2, trim)
        trunk_folds(layer, body, garment.colour, 0.8)
    stand_collar(canvas, body, garment, 25.8)
    zipper(canvas, broken_line((0, 27), (0, 50), steps=20), _METAL)
    canvas.fill(rect(-0.7, 50, 0.7, 53.5), trim)


def _track_jacket(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws a zipped track jacket with a stand collar, half open or closed."""
    opened = garment.motif % 2 == 0
    gap = (2.6, 4.6, 1.0) if opened else (0.3, 0.3, 0.3)
    trim = trim_colour(garment)
    panels = jacket_fronts(body, 2.4, 87, gap)
    if opened:
        inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        trunk_folds(layer, body, garment.colour, 1.2)
        for side in SIDES:
            yoke = np.array([(side * 2, 31), (side * 4, 44), (side * 30, 52), (side * 30, 28)])
            layer.fill(yoke, garment.accent)
            layer.line(yoke[1:3], 1.2, trim)
            layer.line(shift(yoke[1:3], 0, 2.1), 0.8, trim)
            layer.line([(side * 12, 68), (side * 16, 80)], 1.1, trim)
            edge = [(at + 0.4, y) for at, y in zip(gap, (33, 54, 88), strict=True)]
            zipper(layer, smooth(on_side(side, edge)), _METAL)
        hem_band(layer, 87, 4, garment)
    if opened:
        _open_collar(canvas, body, garment)
    else:
        stand_collar(canvas, body, garment, 26.2)
        zipper(canvas, broken_line((0, 28), (0, 87), steps=26), _METAL)


def _open_collar(canvas: Canvas, body: Body, garment: Garment) -> None:
    for side in SIDES:
        collar = blob(
            on_side(side, [(6.2, 24.6), (8.8, 25.6), (9.2, 31), (6, 38), (3, 39), (5.6, 31)])
        )
        with cloth(canvas, body, garment, collar) as layer:
            seam = smooth(on_side(side, [(6.6, 25.2), (6.4, 31), (3.6, 38)]))
            layer.line(seam, 0.9, trim_colour(garment))
        canvas.outline(collar, 0.4, darker(garment.colour, 0.7), 0.8)


TOPS: dict[str, Drawer] = {
    "sports_tank": _sports_tank,
    "sports_bra": _sports_bra,
    "performance_tee": _performance_tee,
    "quarter_zip": _quarter_zip,
}
OUTERS: dict[str, Drawer] = {"track_jacket": _track_jacket}
