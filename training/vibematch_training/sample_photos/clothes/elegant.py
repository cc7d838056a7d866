"""Draws elegant clothes: shirts with ties, bow blouses, lace dresses, suits and waistcoats."""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    blob,
    contrast,
    darker,
    lighter,
    mirrored,
    on_side,
    ribbon,
    shift,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold
from vibematch_training.sample_photos.clothes.tailoring import (
    Drawer,
    buttons,
    draw_lapels,
    inner_shadow,
    jacket_fronts,
    torso,
    trunk_folds,
)
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment


def _dress_shirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    shirt = lighter(garment.colour, 0.62)
    with canvas.clipped(torso(body, 0.9, 88, (6.2, 30.0, 31.5))) as layer:
        layer.flood(shirt)
        if garment.texture == "regimental":
            layer.texture("pinstripe", garment.colour, 0.7, 0.75)
        layer.gradient((body.light * 4, 40), (-body.light * 22, 46), darker(shirt, 0.5), 0.5)
        trunk_folds(layer, body, shirt, 0.9)
        layer.line([(-1.5, 34), (-1.5, 90)], 0.3, darker(shirt, 0.4))
        layer.line([(1.5, 34), (1.5, 90)], 0.3, darker(shirt, 0.4))
        buttons(layer, 0, np.arange(42, 88, 7.0), lighter(shirt, 0.6), 0.65)
    if "bow" in garment.words:
        _bow_tie(canvas, garment.accent)
    else:
        _tie(canvas, body, garment)
    _shirt_collar(canvas, shirt)


def _shirt_collar(canvas: Canvas, shirt: Colour) -> None:
    for side in SIDES:
        collar = on_side(side, [(6.0, 26.6), (7.4, 30.8), (5.6, 37.6), (0.5, 33.2), (3.2, 30.0)])
        canvas.fill(shift(collar, 0.3, 0.7), darker(shirt, 0.6), 0.4)
        canvas.fill(collar, lighter(shirt, 0.25))
        canvas.line(collar[1:4], 0.4, darker(shirt, 0.5), 0.8)
        canvas.line(collar[[0, 4, 3]], 0.4, darker(shirt, 0.5), 0.8)


def _tie(canvas: Canvas, body: Body, garment: Garment) -> None:
    colour = garment.accent
    blade = np.array([(-1.7, 36.2), (1.7, 36.2), (3.5, 70), (0, 75.5), (-3.5, 70)])
    knot = np.array([(-2.6, 32.4), (2.6, 32.4), (1.8, 36.9), (-1.8, 36.9)])
    pattern = ("regimental", "dots", "")[garment.motif % 3]
    for shape in (blade, knot):
        canvas.fill(shift(shape, 0.8, 0.6), (20, 16, 30), 0.28)
        with canvas.clipped(shape) as layer:
            layer.flood(colour)
            if pattern:
                layer.texture(pattern, contrast(colour, 0.65), 0.95, 0.8)
            layer.gradient((body.light, 40), (-body.light * 4, 40), darker(colour, 0.6), 0.6)
    canvas.line([(-1.9, 36.8), (1.9, 36.8)], 0.5, darker(colour, 0.6))


def _bow_tie(canvas: Canvas, colour: Colour) -> None:
    for side in SIDES:
        wing = blob(
            on_side(
                side, [(0.6, 34.2), (4.2, 31.4), (6.6, 31.8), (6.8, 37.2), (4.2, 37.4), (0.6, 35.4)]
            )
        )
        canvas.fill(shift(wing, 0.3, 0.7), (20, 16, 30), 0.35)
        canvas.fill(wing, colour)
        canvas.curve(
            [(side * 1, 34.8), (side * 3.2, 34.2), (side * 5, 33.6)],
            (0.7, 0.5, 0.1),
            darker(colour, 0.6),
        )
        canvas.curve(
            [(side * 3.5, 32.4), (side * 5, 32), (side * 6.2, 32.4)],
            (0.1, 0.6, 0.1),
            lighter(colour, 0.5),
        )
    canvas.fill(blob([(-1.5, 32.8), (1.5, 32.8), (1.4, 36.4), (-1.4, 36.4)]), darker(colour, 0.2))


def _bow_blouse(canvas: Canvas, body: Body, garment: Garment) -> None:
    colour = garment.colour
    with cloth(canvas, body, garment, torso(body, 1.8, 88, (6.6, 30.2, 33.4))) as layer:
        for x in (-11, -7.5, -4, 4, 7.5, 11):
            fold(layer, [(x, 38), (x * 1.1, 52), (x * 0.8, 66)], 0.9, colour, 0.5)
        buttons(layer, 0, np.arange(50, 88, 6.0), (238, 232, 222), 0.7)
    band = ribbon(smooth([(-7, 28.5), (-6, 31.5), (0, 34), (6, 31.5), (7, 28.5)]), 3.2)
    with cloth(canvas, body, garment, band):
        pass
    for side in SIDES:
        tail = on_side(side, [(0.4, 35.5), (3.2, 35.5), (7.4, 55), (5, 53.4), (2.6, 56)])
        loop = blob(
            on_side(side, [(0.8, 35), (5, 30.8), (10, 31.8), (10.4, 38.4), (5, 39.6), (0.8, 36.6)])
        )
        for shape in (tail, loop):
            canvas.fill(shift(shape, 0.4, 0.9), (20, 16, 30), 0.3)
            with cloth(canvas, body, garment, shape) as layer:
                fold(
                    layer,
                    [(side * 1, 35.5), (side * 4.5, 35), (side * 8.5, 35.6)],
                    1.3,
                    colour,
                    0.7,
                )
                fold(layer, [(side * 1, 36.4), (side * 3.5, 45), (side * 5, 53)], 0.8, colour, 0.6)
    canvas.fill(blob([(-1.9, 33.2), (1.9, 33.2), (1.8, 37.6), (-1.8, 37.6)]), darker(colour, 0.2))


def _lace_dress(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws an evening bodice: a sweetheart neckline with sheer lace up to the collarbones."""
    colour, chest = garment.colour, body.half_width(47)
    with canvas.clipped(torso(body, 0.5, 87, (8.6, 31.8, 34.8))) as sheer:
        sheer.flood(colour, 0.25)
        sheer.texture("lace", colour, 0.95, 0.95)
    sweetheart = smooth(
        [
            (chest + 1, 46.5),
            (chest * 0.55, 41.8),
            (0, 47.2),
            (-chest * 0.55, 41.8),
            (-chest - 1, 46.5),
        ]
    )
    half = smooth(
        [(-chest - 0.6, 46.5), (-body.half_width(66) - 0.3, 66), (-body.half_width(87) - 0.5, 87)]
    )
    with cloth(canvas, body, garment, np.vstack([half, mirrored(half), sweetheart])) as layer:
        for side in SIDES:
            layer.curve(
                [(side * chest * 0.55, 42), (side * 6, 56), (side * 4.6, 68)],
                0.4,
                darker(colour, 0.6),
            )
        for i in range(5):
            fold(
                layer,
                [(-14, 62 + i * 1.6), (0, 65 + i * 1.8), (14, 61 + i * 1.6)],
                0.8,
                colour,
                0.5,
            )
    canvas.line(sweetheart, 0.9, lighter(colour, 0.35))
    neckline = smooth([(8.6, 31.8), (0, 34.8), (-8.6, 31.8)])
    for x, y in neckline[::2]:
        canvas.oval(x, y + 0.3, 0.9, 0.8, colour)


def _suit(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.4, 4.6, 0.4)
    colour = garment.colour
    panels = jacket_fronts(body, 1.8, 95, gap)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        trunk_folds(layer, body, colour)
        layer.line(smooth([(0.6, 70), (1.6, 84), (6, 97)]), 0.7, darker(colour, 0.7))
        for side in SIDES:
            layer.curve(
                [(side * 12, 56), (side * 10.6, 68), (side * 12, 92)], 0.45, darker(colour, 0.6)
            )
            layer.fill(
                [(side * 9.5, 79), (side * 18, 78), (side * 18, 81.4), (side * 9.5, 82.4)],
                darker(colour, 0.25),
            )
        layer.line([(11.0, 49.4), (17.6, 47.8)], 1.0, darker(colour, 0.6))
        buttons(layer, 0.9, np.array([71.0, 79.5]), darker(garment.accent, 0.3), 1.1)
    velvet = Garment(garment.kind, "", darker(garment.accent, 0.35), "", garment.accent)
    cloth_of = velvet if garment.motif % 4 == 0 else garment
    lower = [(6.2, 28.6), (9.0, 32.6), (14.4, 41.4), (12.2, 47.4), (1.0, 69.5), (3.6, 44)]
    upper = [(6.0, 27), (8.6, 28.4), (11.8, 36.2), (8.4, 39.8), (5.6, 32)]
    draw_lapels(canvas, body, cloth_of, lower, upper)


def _waistcoat(canvas: Canvas, body: Body, garment: Garment) -> None:
    colour = garment.colour
    chest = body.half_width(48)
    left = np.vstack(
        [
            smooth([(-7.2, 30.6), (-11.8, 32.8)]),
            smooth([(-11.8, 32.8), (-13.6, 42), (-chest - 0.8, 50)]),
            smooth(
                [(-chest - 0.8, 50), (-body.half_width(66) - 1, 66), (-body.half_width(84) - 1, 84)]
            ),
            [(-5.5, 90), (0.5, 84), (0.5, 53)],
        ]
    )
    panels = [left, left[::-1] * (-1, 1)]
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        trunk_folds(layer, body, colour, 0.8)
        layer.line([(0.7, 53), (0.7, 86)], 0.5, darker(colour, 0.7))
        for side in SIDES:
            layer.fill(
                [(side * 7.5, 72), (side * 14, 70.4), (side * 14, 73), (side * 7.5, 74.6)],
                darker(colour, 0.3),
            )
            layer.line([(side * 7.2, 31), (side * 0.6, 53)], 0.7, darker(colour, 0.7))
            layer.curve(
                [(side * 10.5, 48), (side * 9, 62), (side * 10.4, 82)], 0.4, darker(colour, 0.6)
            )
        buttons(layer, -0.3, np.arange(56.5, 84, 5.6), lighter(garment.accent, 0.2), 1.0)


TOPS: dict[str, Drawer] = {
    "dress_shirt": _dress_shirt,
    "bow_blouse": _bow_blouse,
    "lace_dress": _lace_dress,
}
OUTERS: dict[str, Drawer] = {"suit": _suit, "waistcoat": _waistcoat}
