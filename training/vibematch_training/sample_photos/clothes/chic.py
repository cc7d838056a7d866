"""Draws chic clothes: turtlenecks, minimal dresses, cut and block tops, bikers and trenches."""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    darker,
    lighter,
    mirrored,
    mix,
    rect,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold, trim_colour
from vibematch_training.sample_photos.clothes.tailoring import (
    Drawer,
    broken_line,
    buttons,
    draw_lapels,
    inner_shadow,
    jacket_fronts,
    panel_seams,
    torso,
    trunk_folds,
    zipper,
)
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment


def _turtleneck(canvas: Canvas, body: Body, garment: Garment) -> None:
    with cloth(canvas, body, garment, torso(body, 0.5, 88, (6.6, 30.5, 32.5))) as layer:
        trunk_folds(layer, body, garment.colour, 0.7)
    collar = np.vstack(
        [
            smooth([(-7.0, 32), (-6.4, 28), (-6.8, 24.0)]),
            smooth([(-6.8, 24.0), (0, 25.8), (6.8, 24.0)]),
            smooth([(6.8, 24.0), (6.4, 28), (7.0, 32)]),
            smooth([(7.0, 32), (0, 35), (-7.0, 32)]),
        ]
    )
    with cloth(canvas, body, garment, collar) as layer:
        layer.line(
            smooth([(-7, 28.2), (0, 30.6), (7, 28.2)]),
            (0.4, 0.9, 0.4),
            darker(garment.colour, 0.6),
            0.7,
        )
    canvas.line(smooth([(-7.0, 32), (0, 35), (7.0, 32)]), 0.6, darker(garment.colour, 0.6), 0.6)


def _minimal_dress(canvas: Canvas, body: Body, garment: Garment) -> None:
    chest = body.half_width(48)
    half = np.vstack(
        [
            [(-9.0, 32.2), (-13.4, 33.8)],
            smooth([(-13.4, 33.8), (-13.6, 41), (-chest - 0.4, 48)]),
            smooth(
                [
                    (-chest - 0.4, 48),
                    (-body.half_width(66) - 0.3, 66),
                    (-body.half_width(86) - 0.4, 87),
                ]
            ),
        ]
    )
    outline = np.vstack(
        [half, mirrored(half), [(9.0, 32.2), (8.2, 42.5), (-8.2, 42.5), (-9.0, 32.2)]]
    )
    with cloth(canvas, body, garment, outline) as layer:
        for side in SIDES:
            layer.curve(
                [(side * 9, 48), (side * 7.2, 64), (side * 9, 86)], 0.4, darker(garment.colour, 0.6)
            )
        layer.fill(
            [(-30, 66), (30, 58), (30, 100), (-30, 100)],
            garment.accent,
            0.0 if garment.motif % 2 else 1.0,
        )
        trunk_folds(layer, body, garment.colour, 0.6)


def _asymmetric_top(canvas: Canvas, body: Body, garment: Garment) -> None:
    chest = body.half_width(47)
    outline = np.vstack(
        [
            [(-10.5, 32.6)],
            smooth(
                [
                    (-body.person.shoulders, 36.4),
                    (-chest - 0.4, 47),
                    (-body.half_width(66) - 0.4, 66),
                    (-body.half_width(88), 88),
                ]
            ),
            smooth(
                [(body.half_width(88), 88), (body.half_width(66) + 0.4, 66), (chest + 0.4, 48.5)]
            ),
            [(chest, 47.0)],
        ]
    )
    with cloth(canvas, body, garment, outline) as layer:
        layer.line([(-11, 32), (chest + 1, 47.5)], 2.0, darker(garment.colour, 0.3))
        for i in range(5):
            layer.curve([(-13 + i * 2, 40 + i * 4), (0, 52 + i * 3.4), (chest + 1, 52 + i * 4)],
                        (0.2, 1.2, 0.3), darker(garment.colour, 0.6), 0.5)  # fmt: skip


def _colour_block(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (9.5, 32.2, 35.4)
    with cloth(canvas, body, garment, torso(body, 1.0, 88, neck)) as layer:
        layer.fill([(-40, 46), (3, 52), (3, 100), (-40, 100)], garment.accent)
        layer.fill([(3, 28), (40, 28), (40, 52), (3, 52)], mix(garment.accent, garment.colour, 0.5))
        layer.fill([(3, 52), (40, 52), (3, 92)], trim_colour(garment))
        trunk_folds(layer, body, garment.colour, 0.6)
    canvas.line(smooth([(-9.5, 32.2), (0, 35.6), (9.5, 32.2)]), 0.5, darker(garment.colour, 0.6))


def _biker(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (3.0, 6.2, 5.4)
    colour = garment.colour
    shine = lighter(colour, 0.8)
    panels = jacket_fronts(body, 1.8, 82, gap)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        panel_seams(layer, body, garment, gap, 82)
        for side in SIDES:
            layer.fill(
                [(side * 12, 50), (side * 14, 50), (side * 11.6, 74), (side * 10.6, 74)], shine, 0.5
            )
            layer.fill([(side * 15.6, 52), (side * 16.3, 52), (side * 14, 70)], shine, 0.4)
            zipper(layer, broken_line((side * 9.5, 66), (side * 16, 72), steps=5), (206, 208, 214))
            layer.curve(
                [(side * 17.5, 38), (side * 12.5, 44), (side * 13.0, 60)], 0.4, darker(colour, 0.8)
            )
        zipper(layer, broken_line((6.6, 54), (5.9, 82), steps=12), (206, 208, 214))
        layer.fill(rect(-34, 77.5, 34, 84), darker(colour, 0.25))
        layer.line([(-34, 77.5), (34, 77.5)], 0.5, shine, 0.6)
        layer.fill(rect(7.4, 78.4, 11.2, 82.0), (206, 208, 214))
        layer.fill(rect(8.3, 79.3, 10.3, 81.1), darker(colour, 0.4))
    lower = [(6.0, 28.5), (9.2, 31.5), (15.8, 38.6), (12.6, 44.6), (6.0, 57), (2.6, 40)]
    upper = [(5.8, 26.2), (8.6, 27.2), (11.8, 33.2), (8.4, 36), (5.4, 31)]
    draw_lapels(canvas, body, garment, lower, upper)
    for side in SIDES:
        canvas.oval(side * 13.0, 39.4, 0.75, 0.75, (220, 222, 228))
        canvas.oval(side * 7.0, 53.2, 0.75, 0.75, (220, 222, 228))


def _trench(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (3.4, 1.2, 2.0)
    colour = garment.colour
    panels = jacket_fronts(body, 3.6, 118, gap, 1.6)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        trunk_folds(layer, body, colour, 1.2)
        layer.line([(3.0, 52), (3.4, 118)], 0.6, darker(colour, 0.6))
        for side in SIDES:
            flap = np.array(
                [(side * 4, 36), (side * 30, 36), (side * 30, 53), (side * 14, 50), (side * 6, 45)]
            )
            layer.line(flap[2:], 0.7, darker(colour, 0.65))
            for x in (12, 19):
                fold(
                    layer,
                    [(side * x, 72), (side * (x + 1.5), 94), (side * (x + 2), 118)],
                    1.6,
                    colour,
                    0.4,
                )
        for column in (-7.5, 7.5):
            buttons(layer, column, np.array([57.0, 78, 88, 98]), darker(garment.accent, 0.35), 1.3)
        layer.fill(rect(-34, 64, 34, 69.5), darker(colour, 0.18))
        for y in (64, 69.5):
            layer.line([(-34, y), (34, y)], 0.45, darker(colour, 0.7))
        layer.line(
            broken_line(
                (-3.5, 63.4), (3.5, 63.4), (3.5, 70.2), (-3.5, 70.2), (-3.5, 63.4), steps=2
            ),
            1.0,
            darker(garment.accent, 0.3),
        )
    lower = [(6.0, 28.5), (9.2, 31.5), (17.6, 40.0), (13.6, 46.5), (3.4, 62), (2.2, 42)]
    upper = [(5.8, 25.6), (9.2, 26.6), (13.6, 34.6), (8.6, 37.6), (5.2, 31)]
    draw_lapels(canvas, body, garment, lower, upper)


TOPS: dict[str, Drawer] = {
    "turtleneck": _turtleneck,
    "minimal_dress": _minimal_dress,
    "asymmetric_top": _asymmetric_top,
    "colour_block": _colour_block,
}
OUTERS: dict[str, Drawer] = {"biker": _biker, "trench": _trench}
