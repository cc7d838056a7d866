"""Draws street clothes: hoodies, graphic tees, bombers, overshirts, denim and puffer jackets."""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    blob,
    contrast,
    darker,
    lighter,
    on_side,
    ribbon,
    shift,
    smooth,
    symmetric,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold, stitch, trim_colour
from vibematch_training.sample_photos.clothes.prints import draw_print
from vibematch_training.sample_photos.clothes.tailoring import (
    Drawer,
    broken_line,
    buttons,
    collar_band,
    hem_band,
    inner_shadow,
    jacket_fronts,
    panel_seams,
    torso,
    trunk_folds,
    wide_collar,
    zipper,
)
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment


def _hoodie(canvas: Canvas, body: Body, garment: Garment) -> None:
    colour = garment.colour
    with cloth(canvas, body, garment, torso(body, 4.4, 91, (7.5, 31, 38), drop=2.6)) as layer:
        trunk_folds(layer, body, colour, 1.5)
        draw_print(layer.moved(0, 53.5), garment)
        pocket = symmetric([(-8, 70), (-14, 83), (-14, 86), (-14, 87)])
        layer.fill(pocket, darker(colour, 0.1))
        layer.outline(pocket, 0.6, darker(colour, 0.6))
        stitch(layer, smooth([(-7.2, 71), (-12.8, 83)]), contrast(colour, 0.5))
        stitch(layer, smooth([(7.2, 71), (12.8, 83)]), contrast(colour, 0.5))
        hem_band(layer, 91, 4.5, garment)
    _hood(canvas, body, garment)


def _hood(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws the gathered hood around the neck, with drawstrings."""
    colour = garment.colour
    for side in SIDES:
        half = blob(
            on_side(
                side,
                [
                    (6, 24.5),
                    (10, 26),
                    (13.6, 30.5),
                    (13, 34.8),
                    (7, 39),
                    (0.6, 42.5),
                    (0.4, 39),
                    (4.5, 33),
                    (5.2, 28),
                ],
            )
        )
        with cloth(canvas, body, garment, half) as layer:
            layer.curve([(side * 6.3, 26), (side * 7, 32), (side * 1.5, 40)], (0.6, 1.8, 0.5),
                        darker(colour, 0.7), 0.5)  # fmt: skip
            layer.curve([(side * 11, 28), (side * 10.5, 33), (side * 4, 39)], (0.3, 0.9, 0.3),
                        lighter(colour, 0.6), 0.3)  # fmt: skip
        canvas.outline(half, 0.4, darker(colour, 0.65), 0.8)
    string = trim_colour(garment)
    for side in SIDES:
        canvas.oval(side * 3.2, 39.5, 0.75, 0.75, (190, 190, 196))
        canvas.curve([(side * 3.2, 39.5), (side * 4.0, 46), (side * 3.4, 55)], 0.95, string)
        canvas.line([(side * 3.4, 54.6), (side * 3.3, 58)], 1.25, darker(string, 0.35))


def _graphic_tee(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 31.0, 35.0)
    with cloth(canvas, body, garment, torso(body, 4.0, 92, neck, drop=2.4)) as layer:
        trunk_folds(layer, body, garment.colour, 1.4)
        draw_print(layer.moved(0, 55), garment)
    collar_band(canvas, garment, neck, 2.0)


def _bomber(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (5.0, 6.5, 6.5)
    panels = jacket_fronts(body, 5.0, 84, gap, 2.2)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        panel_seams(layer, body, garment, gap, 84)
        hem_band(layer, 84, 5.5, garment)
        for side in SIDES:
            zipper(
                layer, broken_line((side * 6.6, 40), (side * 6.9, 84), steps=22), (196, 198, 204)
            )
            layer.line([(side * 12, 64), (side * 18, 76)], 1.0, darker(garment.colour, 0.6))
    _rib_collar(canvas, garment)


def _rib_collar(canvas: Canvas, garment: Garment) -> None:
    for side in SIDES:
        band = ribbon(
            smooth([(side * 6.4, 27), (side * 8, 31.5), (side * 5.8, 40)]), (3.4, 4.2, 2.4)
        )
        with canvas.clipped(band) as layer:
            layer.flood(darker(garment.accent, 0.1))
            layer.texture("rib", contrast(garment.accent, 0.45), 0.9, 0.8, 70 * side)
        canvas.outline(band, 0.35, darker(garment.colour, 0.7), 0.8)


def _overshirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.4, 7.0, 9.0)
    panels = jacket_fronts(body, 5.2, 95, gap, 2.2)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        panel_seams(layer, body, garment, gap, 95)
        for side in SIDES:
            corners = [(10, 48), (18, 48), (18, 57), (14, 58.6), (10, 57), (10, 48)]
            pocket = broken_line(*on_side(side, corners), steps=4)
            layer.line(pocket, 0.6, darker(garment.colour, 0.65))
            layer.line([(side * 10, 51), (side * 18, 51)], 0.5, darker(garment.colour, 0.65))
    wide_collar(canvas, body, garment)


def _denim_jacket(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.6, 6.8, 7.5)
    thread = (214, 158, 84)
    panels = jacket_fronts(body, 3.8, 83, gap, 1.8)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        panel_seams(layer, body, garment, gap, 83)
        for side in SIDES:
            for seam in (
                broken_line((side * 6.5, 48), (side * 27, 48)),
                broken_line((side * 10, 49), (side * 8.6, 82), steps=22),
                broken_line((side * 17, 49), (side * 13.5, 82), steps=22),
                broken_line((side * 7, 79), (side * 27, 79)),
            ):
                layer.line(seam, 0.9, darker(garment.colour, 0.4), 0.6)
                stitch(layer, shift(seam, 0.6, 0.6), thread, 0.4)
            flap = on_side(side, [(9.6, 47), (9.6, 50), (13.3, 52), (17, 50), (17, 47)])
            layer.fill(flap, lighter(garment.colour, 0.12))
            layer.line(broken_line(*flap, steps=3), 0.45, thread)
            layer.oval(side * 13.3, 50.2, 0.8, 0.8, (196, 150, 90))
        buttons(layer, 8.0, np.arange(44, 82, 7.5), (196, 150, 90), 0.9)
    wide_collar(canvas, body, garment)


def _puffer(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.6, 5.2, 5.2)
    panels = jacket_fronts(body, 6.4, 86, gap, 3.2)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        for i, y in enumerate(np.arange(33, 92, 7.2)):
            for side in SIDES:
                seam = smooth([(side * 4, y + 1), (side * 15, y + 1.8), (side * 32, y - 0.8)])
                layer.line(
                    shift(seam, 0, 2.3), (2.2, 3.2, 2.0), lighter(garment.colour, 0.55), 0.45
                )
                layer.line(seam, (1.0, 1.6, 1.0), darker(garment.colour, 0.7), 0.75)
                for x in (9, 15, 21):
                    fold(
                        layer,
                        [(side * (x + i % 2), y + 1.5), (side * (x + 1), y + 4)],
                        0.9,
                        garment.colour,
                    )
        for side in SIDES:
            zipper(layer, broken_line((side * 5.2, 34), (side * 5.4, 86), steps=24), (60, 60, 66))
    for side in SIDES:
        collar = blob(
            on_side(side, [(6.2, 24), (10.4, 25), (11.4, 31), (9, 37), (5, 40), (5.4, 32)])
        )
        with cloth(canvas, body, garment, collar) as layer:
            layer.curve(
                [(side * 5.6, 31.5), (side * 8.5, 32), (side * 11.6, 30)],
                0.9,
                darker(garment.colour, 0.7),
                0.7,
            )
        canvas.outline(collar, 0.4, darker(garment.colour, 0.7), 0.8)


TOPS: dict[str, Drawer] = {"hoodie": _hoodie, "graphic_tee": _graphic_tee}
OUTERS: dict[str, Drawer] = {
    "bomber": _bomber,
    "overshirt": _overshirt,
    "denim_jacket": _denim_jacket,
    "puffer": _puffer,
}
