"""Draws trousers, skirts and shoes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    blob,
    contrast,
    darker,
    lighter,
    mirrored,
    mix,
    rect,
    ribbon,
    shift,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, fold, stitch, trim_colour
from vibematch_training.sample_photos.figure import RIGHT, SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment

_THREAD: Colour = (212, 156, 84)


def _trouser_outlines(body: Body, ease: float, flare: float, end: float = 1.0) -> list[Outline]:
    """Returns the outlines of seat and legs; `end` is the share of the leg that is covered."""
    low, hips = 94.0, body.person.hips + ease * 0.5
    seat = np.vstack([
        smooth([(-body.half_width(74) - 0.6, 76), (-hips, 86), (-hips + 0.4, low + 4)]),
        [(0, low + 3)],
        smooth([(hips - 0.4, low + 4), (hips, 86), (body.half_width(74) + 0.6, 76)]),
    ])  # fmt: skip
    outlines = [seat]
    widths = np.array(body.leg_widths(ease)) + np.array([0, 0, flare * 0.4, flare * 0.8, flare])
    for side in SIDES:
        line = body.leg(side)
        count = max(4, round(len(line) * end))
        share = np.interp(np.linspace(0, end, 5), np.linspace(0, 1, 5), widths)
        outlines.append(ribbon(line[:count], share.tolist()))
    return outlines


def _draw_trousers(canvas: Canvas, body: Body, garment: Garment, ease: float, flare: float,
                   end: float = 1.0) -> None:  # fmt: skip
    colour = garment.colour
    outlines = _trouser_outlines(body, ease, flare, end)
    with cloth(canvas, body, garment, *outlines) as layer:
        _LEG_DETAILS.get(garment.kind, _plain)(layer, body, garment)
        for side in SIDES:
            line = body.leg(side)
            layer.line(shift(line, -side * 6.2, 0), (1.5, 3.4, 2.2, 1.2), darker(colour, 0.7), 0.35)
            fold(layer, [(side * 2, 94), (side * 7, 97), (side * 12, 96)], 1.2, colour)
            x, y = line[14]
            fold(layer, [(x - side * 5, y - 2), (x, y), (x + side * 3, y - 1)], 1.0, colour)
            fold(layer, [(x - side * 5, y + 3), (x, y + 4), (x + side * 2, y + 4)], 0.9, colour)
            for i in (-6, -3):
                x, y = line[i]
                fold(layer, [(x - 4, y), (x, y + 1.5), (x + 3.6, y - 0.5)], 1.0, colour)
        layer.line(smooth([(0, 76), (0.3, 88), (0, 97)]), 0.5, darker(colour, 0.65))
        layer.line([(-24, 78.6), (24, 78.6)], 0.5, darker(colour, 0.6))
        layer.line(
            smooth([(0, 97), (0.4, 110), (0.2, 122)]), (0.8, 1.8, 1.2), darker(colour, 0.8), 0.6
        )


def _plain(layer: Canvas, body: Body, garment: Garment) -> None:
    for side in SIDES:
        layer.line([(side * 10, 79), (side * 15.5, 88)], 0.5, darker(garment.colour, 0.6))


def _denim_seams(layer: Canvas, body: Body, garment: Garment) -> None:
    for side in SIDES:
        line = body.leg(side)
        layer.line(line, (5, 6.5, 5, 4), lighter(garment.colour, 0.45), 0.28)
        stitch(layer, shift(line, side * 6.4, 0), _THREAD)
        pocket = smooth([(side * 8.5, 79), (side * 10.5, 84.5), (side * 17, 86.5)])
        layer.line(pocket, 0.5, darker(garment.colour, 0.6))
        stitch(layer, shift(pocket, 0, 0.9), _THREAD, 0.4)
    stitch(layer, smooth([(2.6, 79), (2.8, 88), (0.4, 94)]), _THREAD, 0.4)
    layer.oval(0, 77.2, 0.9, 0.9, _THREAD)


def _rips(layer: Canvas, body: Body, garment: Garment) -> None:
    _denim_seams(layer, body, garment)
    for side, index in ((-1, 14), (1, 15), (1, 9)):
        x, y = body.leg(side)[index]
        hole = blob(
            [(x - 4.2, y), (x - 1, y - 2.4), (x + 3.8, y - 1), (x + 4, y + 1), (x, y + 2.4)]
        )
        with layer.clipped(hole) as gap:
            gap.flood(body.person.skin)
            for i in range(4):
                gap.line(
                    [(x - 6, y - 2 + i * 1.3), (x + 6, y - 1.4 + i * 1.2)], 0.45, (240, 238, 232)
                )


def _cargo_pockets(layer: Canvas, body: Body, garment: Garment) -> None:
    _plain(layer, body, garment)
    for side in SIDES:
        line = body.leg(side)
        x, y = line[9]
        x += side * 5.0
        pocket = np.array([(x - 5, y), (x + 5, y), (x + 5, y + 14), (x - 5, y + 14)])
        layer.fill(shift(pocket, 0.5, 1), darker(garment.colour, 0.7), 0.4)
        layer.fill(pocket, lighter(garment.colour, 0.07))
        layer.fill(rect(x - 5.4, y - 1, x + 5.4, y + 4.2), darker(garment.colour, 0.14))
        layer.outline(pocket, 0.5, darker(garment.colour, 0.65))
        layer.line([(x, y + 4), (x, y + 14)], 0.8, darker(garment.colour, 0.4))
        layer.line([(x - 5.4, y + 4.2), (x + 5.4, y + 4.2)], 0.5, darker(garment.colour, 0.7))
        layer.oval(x, y + 2, 0.7, 0.7, lighter(garment.colour, 0.5))


def _side_stripes(layer: Canvas, body: Body, garment: Garment) -> None:
    trim = trim_colour(garment)
    for side in SIDES:
        line = body.leg(side)
        for offset in (4.2, 6.4) if garment.kind != "leggings" else (4.6,):
            layer.line(
                shift(line, side * offset, -3), 1.2 if garment.kind != "leggings" else 2.6, trim
            )
        if garment.kind == "leggings":
            x, y = line[14]
            panel = [
                (x + side * 1, y - 12),
                (x + side * 9, y - 18),
                (x + side * 9, y + 8),
                (x + side * 2, y + 4),
            ]
            with layer.clipped(np.array(panel)) as mesh:
                mesh.flood(garment.accent)
                mesh.texture("mesh", contrast(garment.accent, 0.5), 0.9, 0.9)
            layer.curve(
                [(side * 14, 84), (x, y - 20), (x - side * 3, y)], 0.5, darker(garment.colour, 0.6)
            )


def _creases(layer: Canvas, body: Body, garment: Garment) -> None:
    _plain(layer, body, garment)
    for side in SIDES:
        line = body.leg(side)[2:]
        layer.line(line, 0.55, lighter(garment.colour, 0.6), 0.8)
        layer.line(shift(line, side * 0.7, 0), 0.8, darker(garment.colour, 0.6), 0.6)


_LEG_DETAILS: dict[str, Callable[[Canvas, Body, Garment], None]] = {
    "jeans": _denim_seams,
    "ripped_jeans": _rips,
    "cargo": _cargo_pockets,
    "leggings": _side_stripes,
    "track_pants": _side_stripes,
    "sport_shorts": _side_stripes,
    "suit_trousers": _creases,
}
# Ease, flare and share of the leg covered.
_TROUSERS: dict[str, tuple[float, float, float]] = {
    "jeans": (1.2, 1.6, 1.0),
    "chinos": (1.6, 1.4, 0.98),
    "cargo": (4.4, 3.5, 1.0),
    "ripped_jeans": (2.6, 3.0, 1.0),
    "leggings": (0.2, 0.2, 0.97),
    "track_pants": (2.6, 1.2, 1.0),
    "sport_shorts": (4.4, 0.0, 0.34),
    "slim_trousers": (0.7, 0.3, 0.95),
    "leather_trousers": (0.6, 0.3, 0.97),
    "suit_trousers": (2.0, 2.2, 1.0),
}
# Hem height and extra half-width at the hem.
_SKIRTS: dict[str, tuple[float, float]] = {
    "pencil_skirt": (124.0, -1.5),
    "pleated_skirt": (142.0, 11.0),
    "gown": (168.0, 11.0),
}


def _draw_skirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    hem, flare = _SKIRTS[garment.kind]
    colour, hips = garment.colour, body.person.hips
    side_line = smooth([
        (-body.half_width(70) - 0.4, 70), (-hips - 0.8, 86), (-hips - 0.8 - flare * 0.35, 104),
        (-hips - flare, hem),
    ])  # fmt: skip
    bottom = smooth([(-hips - flare, hem), (0, hem + 1.6), (hips + flare, hem)])
    with cloth(canvas, body, garment, np.vstack([side_line, bottom, mirrored(side_line)])) as layer:
        if garment.kind == "pleated_skirt":
            for x in np.linspace(-1, 1, 17):
                top, low = (x * body.half_width(70), 70), (x * (hips + flare), hem + 2)
                layer.fill([top, low, (low[0] + 1.3, low[1])], darker(colour, 0.6), 0.6)
                layer.line([top, (low[0] - 0.7, low[1])], (0.2, 0.8), lighter(colour, 0.6), 0.4)
        elif garment.kind == "gown":
            for x in (-0.8, -0.45, -0.1, 0.25, 0.6):
                fold(
                    layer,
                    [(x * 9, 74), (x * hips * 1.1, 110), (x * (hips + flare), hem)],
                    2.2,
                    colour,
                    0.5,
                )
                layer.curve([(x * 9 + 2, 80), (x * hips + 3, 115), (x * (hips + flare) + 4, hem)],
                            (0.2, 1.4, 0.4), lighter(colour, 0.6), 0.3)  # fmt: skip
        else:
            layer.line([(5, 104), (5.6, hem + 2)], 0.7, darker(colour, 0.7))
            fold(layer, [(-hips, 96), (-2, 99), (6, 97)], 1.2, colour)
            fold(layer, [(hips, 92), (4, 95), (-4, 93)], 1.2, colour)
        layer.line([(-30, 73), (30, 73)], 0.5, darker(colour, 0.6))


def draw_lower(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws trousers, shorts or a skirt."""
    if garment.kind in _SKIRTS:
        _draw_skirt(canvas, body, garment)
    else:
        _draw_trousers(canvas, body, garment, *_TROUSERS[garment.kind])


def draw_shoes(canvas: Canvas, body: Body, shoes: Garment) -> None:
    """Draws a pair of shoes at the ends of the legs, toes turned a little outwards."""
    for side in SIDES:
        x, y = body.leg(side)[-1]
        shoe = canvas.moved(x, y).moved(flip=side != RIGHT)
        _SHOES[shoes.kind](shoe, body, shoes)


def _sneaker(shoe: Canvas, body: Body, garment: Garment, bulk: float) -> None:
    upper = blob(
        [(-3.4, -3), (3.2, -3.4), (4.6, 0.5), (9.2, 3.2), (10.2, 6.2), (-3.8, 6.2), (-4.2, 2)]
    )
    sole = blob([(-4.4, 5), (3, 5.4), (10.6, 5.2), (11.2, 6.6 + bulk), (-4.8, 6.6 + bulk)])
    with cloth(shoe, body, garment, upper) as layer:
        if garment.kind == "runners":
            layer.curve([(-3, 4), (1, 0), (4, 5.5)], 1.2, trim_colour(garment))
            layer.texture("mesh", contrast(garment.colour, 0.4), 0.6, 0.6)
        elif garment.kind == "chunky_shoes":
            layer.fill([(-4, 1), (3, 2.4), (8, 6), (-4, 6)], garment.accent)
            layer.fill([(4, 1), (9, 3), (10.4, 6.4), (5, 6)], trim_colour(garment), 0.8)
        else:
            layer.fill(blob([(6.6, 2.4), (11, 4), (11, 7), (6.2, 7)]), (236, 234, 228))
        for i in range(3):
            layer.line(
                [(0.8 + i * 1.5, -1.4 + i * 1.3), (3.8 + i * 1.4, -0.6 + i * 1.2)],
                0.6,
                (246, 244, 240),
            )
    shoe.fill(sole, (238, 236, 230) if garment.kind != "runners" else lighter(garment.accent, 0.3))
    shoe.line(
        [(-4.6, 5.7 + bulk * 0.5), (11, 5.7 + bulk * 0.5)], 0.4, darker(garment.accent, 0.3), 0.8
    )


def _canvas_shoes(shoe: Canvas, body: Body, garment: Garment) -> None:
    _sneaker(shoe, body, garment, 0.6)


def _runners(shoe: Canvas, body: Body, garment: Garment) -> None:
    _sneaker(shoe, body, garment, 1.2)


def _chunky_shoes(shoe: Canvas, body: Body, garment: Garment) -> None:
    _sneaker(shoe.moved(scale=1.12), body, garment, 2.6)


def _ankle_boots(shoe: Canvas, body: Body, garment: Garment) -> None:
    boot = blob(
        [
            (-3.9, -11),
            (3.7, -11),
            (4.2, -2),
            (8.8, 3),
            (11.0, 6.2),
            (2.5, 6.4),
            (-3.6, 5),
            (-4.2, -3),
        ]
    )
    with cloth(shoe, body, garment, boot) as layer:
        layer.line(
            [(1.4, -10), (1.8, -1), (6.6, 3.6)], (0.6, 1.2, 0.4), lighter(garment.colour, 0.8), 0.7
        )
        layer.fill([(-1.6, -11), (0, -11), (0.4, -3), (-1.4, -3)], darker(garment.colour, 0.6), 0.7)
    shoe.fill([(-4.0, 4), (-0.6, 5.2), (-1.0, 8.4), (-3.8, 8.4)], darker(garment.colour, 0.6))
    shoe.line([(-0.8, 6.6), (11.0, 6.6)], 0.9, darker(garment.colour, 0.7))


def _heels(shoe: Canvas, body: Body, garment: Garment) -> None:
    shoe.fill(
        blob([(-2.8, -4), (2.8, -4), (4, 0), (7.4, 4), (2, 4.6), (-2.8, 2)]), body.person.skin
    )
    pump = smooth(
        [
            (-3.2, -1.5),
            (-1.4, 2.2),
            (3.4, 3.0),
            (6.0, 2.0),
            (9.8, 5.0),
            (10.4, 6.4),
            (4.6, 6.4),
            (-1.8, 4.6),
            (-3.4, 2),
        ]
    )
    shoe.fill(pump, garment.colour)
    shoe.fill([(-3.4, 1.2), (-1.5, 3.4), (-2.2, 8.4), (-3.0, 8.4)], darker(garment.colour, 0.3))
    shoe.curve([(6.6, 3.2), (8.4, 4.4), (9.6, 5.6)], 0.5, lighter(garment.colour, 0.7), 0.8)


def _oxfords(shoe: Canvas, body: Body, garment: Garment) -> None:
    colour = mix(garment.colour, darker(garment.colour, 0.6), 0.4)
    upper = blob([(-3.4, -2.4), (3.2, -2.6), (4.8, 1), (9.4, 3.2), (11.2, 6), (-3.8, 6.2)])
    shoe.fill(upper, colour)
    shoe.curve([(6.6, 2.6), (6.0, 4.4), (6.6, 6)], 0.4, darker(colour, 0.7))
    shoe.curve([(7.6, 3.6), (9.2, 4.2), (10.2, 5.2)], 0.7, lighter(colour, 0.8), 0.8)
    for i in range(3):
        shoe.line([(1.2 + i * 1.2, -0.6 + i), (3.4 + i * 1.2, 0.2 + i)], 0.35, darker(colour, 0.7))
    shoe.line([(-4, 6.6), (11.4, 6.6)], 0.9, darker(colour, 0.8))
    shoe.fill(rect(-3.9, 6.2, -0.4, 8.0), darker(colour, 0.8))


_SHOES: dict[str, Callable[[Canvas, Body, Garment], None]] = {
    "canvas_shoes": _canvas_shoes,
    "runners": _runners,
    "chunky_shoes": _chunky_shoes,
    "ankle_boots": _ankle_boots,
    "heels": _heels,
    "oxfords": _oxfords,
}
