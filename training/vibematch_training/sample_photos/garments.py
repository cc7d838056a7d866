"""Draws clothes on a body: tops, outer layers, trousers, skirts and their construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    Point,
    blob,
    contrast,
    darker,
    lighter,
    luminance,
    mirrored,
    mix,
    oval,
    rect,
    ribbon,
    shift,
    smooth,
    symmetric,
)
from vibematch_training.sample_photos.figure import RIGHT, SIDES, Body, draw_arm_skin
from vibematch_training.sample_photos.wardrobe import Garment, Outfit

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


def _trunk_folds(layer: Canvas, body: Body, colour: Colour, amount: float = 1.0) -> None:
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


def _collar_band(canvas: Canvas, body: Body, garment: Garment, neck: tuple[float, float, float],
                 width: float, texture: str = "rib") -> None:  # fmt: skip
    half, high, low = neck
    line = smooth([(half, high - 0.4), (half * 0.62, high + (low - high) * 0.72), (0, low),
                   (-half * 0.62, high + (low - high) * 0.72), (-half, high - 0.4)])  # fmt: skip
    with canvas.clipped(ribbon(line, width)) as layer:
        layer.flood(darker(garment.colour, 0.08))
        if texture:
            layer.texture(texture, contrast(garment.colour, 0.4), 0.8, 0.75)
    canvas.line(shift(line, 0, width / 2), 0.3, darker(garment.colour, 0.5), 0.7)


def _hem_band(
    layer: Canvas, hem: float, width: float, garment: Garment, texture: str = "rib"
) -> None:
    with layer.clipped(rect(-34, hem - width, 34, hem + 3)) as band:
        band.flood(darker(garment.colour, 0.06))
        if texture:
            band.texture(texture, contrast(garment.colour, 0.4), 0.8, 0.8)
    layer.line([(-34, hem - width), (34, hem - width)], 0.4, darker(garment.colour, 0.5), 0.7)


def _buttons(canvas: Canvas, x: float, rows: np.ndarray[tuple[int], np.dtype[np.float64]],
             colour: Colour, size: float = 0.8) -> None:  # fmt: skip
    for y in rows:
        canvas.oval(x + 0.15, float(y) + 0.2, size, size, darker(colour, 0.6), 0.6)
        canvas.oval(x, float(y), size, size, colour)
        canvas.oval(x, float(y), size * 0.35, size * 0.35, darker(colour, 0.5))


def _zip(canvas: Canvas, points: Outline, metal: Colour) -> None:
    canvas.line(points, 1.3, darker(metal, 0.75))
    for a, b in pairwise(points):
        for t in (0.0, 0.33, 0.66):
            x, y = a + (b - a) * t
            canvas.fill(rect(x - 0.45, y, x + 0.45, y + 0.42), lighter(metal, 0.3))


def _line(*points: Point, steps: int = 14) -> Outline:
    """Returns a straight or broken line cut into short pieces."""
    knots = np.asarray(points, dtype=np.float64)
    t = np.linspace(0, len(knots) - 1, steps * (len(knots) - 1) + 1)
    return np.stack([np.interp(t, range(len(knots)), knots[:, i]) for i in (0, 1)], axis=1)


# ---------------------------------------------------------------------------------------- sleeves


def _sleeve(canvas: Canvas, body: Body, side: int, garment: Garment, ease: float,
            share: float = 1.0, cuff: str = "") -> None:  # fmt: skip
    """Draws a sleeve over `share` of the arm, with folds and an optional cuff."""
    line = body.arm(side)
    count = max(4, round(len(line) * share))
    widths = np.interp(np.linspace(0, share, 5), np.linspace(0, 1, 5), body.arm_widths(side, ease))
    chain = line[:count]
    outlines = body.arm_outlines(side, ease, share)
    angle = np.degrees(np.arctan2(chain[-1][0] - chain[0][0], chain[-1][1] - chain[0][1]))
    with cloth(canvas, body, garment, *outlines, angle=-float(angle)) as layer:
        _SLEEVE_DETAILS.get(garment.kind, _no_detail)(layer, chain, widths, garment)
        inner = chain[:, 0] - side * widths[0] * 0.42
        layer.line(
            np.stack([inner, chain[:, 1]], axis=1),
            (1.4, 2.4, 1.4),
            darker(garment.colour, 0.7),
            0.3,
        )
        if share == 1:
            _elbow_folds(layer, chain, widths, garment.colour)
        if cuff:
            with layer.clipped(ribbon(chain[-4:], widths[-1] + 4)) as band:
                band.flood(darker(garment.accent if cuff == "accent" else garment.colour, 0.05))
                if cuff == "rib":
                    band.texture("rib", contrast(garment.colour, 0.4), 0.8, 0.75, -float(angle))
            layer.line(
                _across(chain[-4], chain[-3], widths[-1] + 4), 0.5, darker(garment.colour, 0.6), 0.7
            )
        else:
            layer.line(
                _across(chain[-2], chain[-1], widths[-1] + 4), 0.5, darker(garment.colour, 0.5), 0.6
            )
    seam = outlines[1][-13:-5]
    canvas.line(seam, (0.3, 0.6, 0.4), darker(garment.colour, 0.7), 0.6)


def _across(start: Outline, end: Outline, width: float) -> Outline:
    dx, dy = end - start
    length = max(float(np.hypot(dx, dy)), 1e-6)
    offset = np.array([-dy, dx]) / length * width / 2
    return np.stack([start - offset, start + offset])


def _elbow_folds(
    layer: Canvas,
    chain: Outline,
    widths: np.ndarray[tuple[int], np.dtype[np.float64]],
    colour: Colour,
) -> None:
    bend = len(chain) // 2
    for i, reach in ((-4, 0.6), (-1, 1.0), (2, 0.8), (8, 0.5)):
        index = min(max(bend + i, 1), len(chain) - 2)
        a, b = _across(chain[index], chain[index + 1], float(widths[2]))
        start, end = (a, b) if a[0] ** 2 < b[0] ** 2 else (b, a)
        stop = start + (end - start) * 0.62 * reach
        middle = (start + stop) / 2 + (0, 0.9)
        fold(layer, [tuple(start), tuple(middle), tuple(stop)], 0.9, colour, 0.5)


Detail = Callable[[Canvas, Outline, "np.ndarray[tuple[int], np.dtype[np.float64]]", Garment], None]


def _no_detail(layer: Canvas, chain: Outline, widths: object, garment: Garment) -> None:
    """Plain sleeves need nothing more."""


def _track_stripes(layer: Canvas, chain: Outline, widths: object, garment: Garment) -> None:
    for offset in (-1.9, 0.0, 1.9):
        layer.line(shift(chain, offset + np.sign(chain[0][0]) * 1.2, 0), 1.05, trim_colour(garment))


def _raglan(layer: Canvas, chain: Outline, widths: object, garment: Garment) -> None:
    layer.flood(garment.accent)
    layer.texture("mesh", contrast(garment.accent, 0.5), 0.8, 0.8)
    layer.line(shift(chain, np.sign(chain[0][0]) * 0.5, 0), 1.3, trim_colour(garment))


def _quilts(layer: Canvas, chain: Outline, widths: object, garment: Garment) -> None:
    for i in range(2, len(chain) - 1, 4):
        seam = _across(chain[i], chain[i + 1], 18)
        layer.line(shift(seam, 0, -1.3), 2.2, lighter(garment.colour, 0.5), 0.35)
        layer.line(seam, 0.9, darker(garment.colour, 0.6), 0.75)


def _biker_sleeve(layer: Canvas, chain: Outline, widths: object, garment: Garment) -> None:
    side = np.sign(chain[0][0])
    for offset in (1.6, 2.6):
        layer.line(
            shift(chain[1:-3], side * offset, 0), (0.2, 0.8, 0.3), lighter(garment.colour, 0.8), 0.6
        )
    layer.line(_across(chain[-7], chain[-6], 20), 0.5, darker(garment.colour, 0.7))


def _printed_sleeve(layer: Canvas, chain: Outline, widths: object, garment: Garment) -> None:
    if garment.motif % 3 == 0:
        middle = chain[len(chain) // 3 : -4]
        for i in range(0, len(middle) - 1, 2):
            layer.line(_across(middle[i], middle[i + 1], 3.4), 1.4, trim_colour(garment))


_SLEEVE_DETAILS: dict[str, Detail] = {
    "track_jacket": _track_stripes,
    "performance_tee": _raglan,
    "quarter_zip": _raglan,
    "puffer": _quilts,
    "biker": _biker_sleeve,
    "hoodie": _printed_sleeve,
}


def trim_colour(garment: Garment) -> Colour:
    """Returns a trim colour that stands out from the garment."""
    far = abs(luminance(garment.accent) - luminance(garment.colour)) > 60
    if far:
        return garment.accent
    return (240, 238, 234) if luminance(garment.colour) < 130 else (34, 34, 40)


# ------------------------------------------------------------------------------------------- tops


def _draw_tee(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 31.0, 35.6)
    with cloth(canvas, body, garment, torso(body, 1.4, 88, neck)) as layer:
        _trunk_folds(layer, body, garment.colour)
        if garment.motif % 3 == 0:
            layer.line(_line((4, 46), (11, 46), (11, 53), (7.5, 54.5), (4, 53), (4, 46)), 0.4,
                       darker(garment.colour, 0.5), 0.8)  # fmt: skip
    _collar_band(canvas, body, garment, neck, 1.5)


def _draw_knit(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 30.6, 34.6)
    with cloth(canvas, body, garment, torso(body, 2.4, 88, neck, drop=1.4)) as layer:
        _trunk_folds(layer, body, garment.colour)
        _hem_band(layer, 88, 5.5, garment)
    _collar_band(canvas, body, garment, neck, 2.8)


def _draw_henley(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 31.0, 35.2)
    with cloth(canvas, body, garment, torso(body, 1.2, 88, neck)) as layer:
        _trunk_folds(layer, body, garment.colour)
        layer.fill(rect(-1.7, 35, 1.7, 50), lighter(garment.colour, 0.12))
        for x in (-1.7, 1.7):
            layer.line([(x, 35), (x, 50)], 0.35, darker(garment.colour, 0.5))
        _buttons(layer, 0, np.array([38.5, 43, 47.5]), lighter(garment.accent, 0.5))
    _collar_band(canvas, body, garment, neck, 1.7)


def _draw_hoodie(canvas: Canvas, body: Body, garment: Garment) -> None:
    colour = garment.colour
    with cloth(canvas, body, garment, torso(body, 4.4, 91, (7.5, 31, 38), drop=2.6)) as layer:
        _trunk_folds(layer, body, colour, 1.5)
        draw_print(layer.moved(0, 53.5), garment)
        pocket = symmetric([(-8, 70), (-14, 83), (-14, 86), (-14, 87)])
        layer.fill(pocket, darker(colour, 0.1))
        layer.line(np.vstack([pocket, pocket[:1]]), 0.6, darker(colour, 0.6))
        stitch(layer, smooth([(-7.2, 71), (-12.8, 83)]), contrast(colour, 0.5))
        stitch(layer, smooth([(7.2, 71), (12.8, 83)]), contrast(colour, 0.5))
        _hem_band(layer, 91, 4.5, garment)
    _draw_hood(canvas, body, garment)


def _draw_hood(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws the gathered hood around the neck, with drawstrings."""
    colour = garment.colour
    for side in SIDES:
        fold = blob(
            [
                (side * x, y)
                for x, y in (
                    (6, 24.5),
                    (10, 26),
                    (13.6, 30.5),
                    (13, 34.8),
                    (7, 39),
                    (0.6, 42.5),
                    (0.4, 39),
                    (4.5, 33),
                    (5.2, 28),
                )
            ]
        )
        with cloth(canvas, body, garment, fold) as layer:
            layer.curve([(side * 6.3, 26), (side * 7, 32), (side * 1.5, 40)], (0.6, 1.8, 0.5),
                        darker(colour, 0.7), 0.5)  # fmt: skip
            layer.curve([(side * 11, 28), (side * 10.5, 33), (side * 4, 39)], (0.3, 0.9, 0.3),
                        lighter(colour, 0.6), 0.3)  # fmt: skip
        canvas.line(np.vstack([fold, fold[:1]]), 0.4, darker(colour, 0.65), 0.8)
    string = trim_colour(garment)
    for side in SIDES:
        canvas.oval(side * 3.2, 39.5, 0.75, 0.75, (190, 190, 196))
        canvas.curve([(side * 3.2, 39.5), (side * 4.0, 46), (side * 3.4, 55)], 0.95, string)
        canvas.line([(side * 3.4, 54.6), (side * 3.3, 58)], 1.25, darker(string, 0.35))


def _draw_graphic_tee(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 31.0, 35.0)
    with cloth(canvas, body, garment, torso(body, 4.0, 92, neck, drop=2.4)) as layer:
        _trunk_folds(layer, body, garment.colour, 1.4)
        draw_print(layer.moved(0, 55), garment)
    _collar_band(canvas, body, garment, neck, 2.0)


def draw_print(layer: Canvas, garment: Garment) -> None:
    """Draws a big graphic around the origin: geometric, sunset, bolt, waves, letters or flames."""
    first = trim_colour(garment)
    second = mix(garment.accent, (250, 120, 60), 0.35)
    _PRINTS[garment.motif % len(_PRINTS)](layer, first, second)


def _print_sunset(layer: Canvas, first: Colour, second: Colour) -> None:
    with layer.clipped(oval(0, -1, 9.5, 9.5)) as sun:
        sun.flood(second)
        for i in range(5):
            sun.fill(rect(-11, 0.5 + i * 2.1, 11, 1.2 + i * 2.2), first)
    layer.fill([(-10, 8.5), (-4, 1), (-0.5, 5), (4, -1.5), (10, 8.5)], first)


def _print_bolt(layer: Canvas, first: Colour, second: Colour) -> None:
    layer.fill(oval(0, 0, 10, 10), first)
    layer.fill(oval(0, 0, 8.4, 8.4), second)
    layer.fill([(3, -11), (-6, 1.5), (-0.5, 1.5), (-3, 12), (6.5, -2.5), (0.8, -2.5)], first)


def _print_letters(layer: Canvas, first: Colour, second: Colour) -> None:
    """Draws rows of blocky letter-like strokes."""
    for row, (y, count) in enumerate(((-8, 4), (0, 5))):
        width = 22 / count
        for i in range(count):
            x = -11 + i * width
            colour = first if (i + row) % 3 else second
            layer.line(_line((x + 1, y), (x + 1, y + 6.2), steps=2), 1.7, colour)
            shape = (i * 7 + row * 3) % 4
            if shape != 1:
                layer.line(
                    _line((x + 0.4, y + 0.5), (x + width - 0.9, y + 0.5), steps=2), 1.6, colour
                )
            if shape != 0:
                layer.line(
                    _line((x + 0.4, y + 5.8), (x + width - 0.9, y + 5.8), steps=2), 1.6, colour
                )
            if shape in (0, 3):
                layer.line(_line((x + 0.4, y + 3), (x + width - 1.2, y + 3), steps=2), 1.5, colour)
            if shape in (1, 2):
                layer.line(
                    _line((x + width - 1.4, y), (x + width - 1.4, y + 6), steps=2), 1.5, colour
                )
    layer.fill(rect(-11, 8, 11, 9.6), second)


def _print_waves(layer: Canvas, first: Colour, second: Colour) -> None:
    with layer.clipped(rect(-10, -9, 10, 10)) as frame:
        frame.flood(second)
        for i in range(6):
            y = -6 + i * 3.4
            crest = [(-12, y), (-8, y - 1.8), (-4, y), (0, y + 1.8), (4, y), (8, y - 1.8), (12, y)]
            frame.curve(crest, 1.5, first)
        frame.oval(4.5, -5.5, 2.6, 2.6, first)


def _print_flames(layer: Canvas, first: Colour, second: Colour) -> None:
    for shrink, colour in ((1.0, first), (0.7, second)):
        flame = [
            (-9, 9),
            (-9.5, 2),
            (-6.5, -5),
            (-5.5, 1),
            (-2.2, -9),
            (0.5, -1.5),
            (3.5, -7),
            (5, 0),
            (8.3, -3.5),
            (9.5, 4),
            (8, 9),
        ]
        layer.fill([(x * shrink, 9 - (9 - y) * shrink) for x, y in flame], colour)


def _print_checker(layer: Canvas, first: Colour, second: Colour) -> None:
    for i in range(36):
        column, row = i % 9, i // 9
        if (column + row) % 2 == 0:
            x, y = -10.8 + column * 2.4, -5 + row * 2.4
            layer.fill(rect(x, y, x + 2.4, y + 2.4), first)
    layer.fill([(0, -12), (2.6, -7), (8, -6.6), (0, 12), (-8, -6.6), (-2.6, -7)], second, 0.9)


_PRINTS = (_print_sunset, _print_bolt, _print_letters, _print_waves, _print_flames, _print_checker)


def _draw_sports_tank(canvas: Canvas, body: Body, garment: Garment) -> None:
    _draw_strapped(canvas, body, garment, 88)


def _draw_sports_bra(canvas: Canvas, body: Body, garment: Garment) -> None:
    _draw_strapped(canvas, body, garment, 58)
    canvas.curve([(0, 62), (0.2, 72), (0, 80)], (0.2, 0.6, 0.2), darker(body.person.skin, 0.3), 0.6)


def _draw_strapped(canvas: Canvas, body: Body, garment: Garment, hem: float) -> None:
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
            panel = [(side * (chest + 2), 47), (side * chest * 0.55, 58), (side * chest * 0.6, 92),
                     (side * (chest + 9), 92)]  # fmt: skip
            with layer.clipped(np.array(panel)) as mesh:
                mesh.flood(garment.accent)
                mesh.texture("mesh", contrast(garment.accent, 0.55), 0.9, 0.9)
            layer.line([panel[0], panel[1], panel[2]], 0.8, trim)
            layer.line(half[7:15] * (-side, 1), 1.5, trim)
        layer.line(neckline, 1.6, trim)
        layer.line(
            _line((-30, hem - 3), (30, hem - 3)),
            0.5 if hem > 60 else 3.6,
            darker(garment.colour, 0.4),
        )
        if hem > 60:
            _trunk_folds(layer, body, garment.colour, 0.8)
        layer.fill([(3.4, 47), (8.2, 44.8), (6.6, 47.2)], trim)


def _draw_performance_tee(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.6, 31.0, 35.4)
    trim = trim_colour(garment)
    with cloth(canvas, body, garment, torso(body, 0.7, 88, neck)) as layer:
        for side in SIDES:
            seam = smooth(
                [(side * 6.6, 31), (side * 11, 40), (side * body.half_width(47) * 0.98, 48)]
            )
            outside = np.vstack([seam, [(side * 40, 48), (side * 40, 30)]])
            layer.fill(outside, garment.accent)
            layer.line(seam, 1.1, trim)
            edge = smooth(
                [(side * 30, 52), (side * body.half_width(66) * 0.62, 66), (side * 30, 84)]
            )
            with layer.clipped(edge) as panel:
                panel.flood(garment.accent)
                panel.texture("mesh", contrast(garment.accent, 0.55), 0.9, 1.0)
            layer.line(edge, 0.9, trim)
        layer.fill([(-8.5, 46.5), (-3.8, 44), (-5.4, 46.8)], trim)
        if garment.motif % 2:
            layer.fill([(-30, 57), (30, 51), (30, 55), (-30, 61)], trim)
        _trunk_folds(layer, body, garment.colour, 0.8)
    _collar_band(canvas, body, garment, neck, 1.3, "")


def _draw_quarter_zip(canvas: Canvas, body: Body, garment: Garment) -> None:
    trim = trim_colour(garment)
    with cloth(canvas, body, garment, torso(body, 0.8, 88, (6.4, 30, 33))) as layer:
        for side in SIDES:
            seam = smooth(
                [(side * 8, 33), (side * 13, 44), (side * body.half_width(47) * 1.02, 50)]
            )
            layer.fill(np.vstack([seam, [(side * 40, 50), (side * 40, 30)]]), garment.accent)
            layer.line(seam, 1.2, trim)
            layer.line(smooth([(side * 15, 50), (side * 9.5, 66), (side * 13, 90)]), 1.2, trim)
        _trunk_folds(layer, body, garment.colour, 0.8)
    _stand_collar(canvas, body, garment, 25.8)
    _zip(canvas, _line((0, 27), (0, 50), steps=20), (206, 208, 214))
    canvas.fill(rect(-0.7, 50, 0.7, 53.5), trim)


def _stand_collar(canvas: Canvas, body: Body, garment: Garment, top: float) -> None:
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


def _draw_turtleneck(canvas: Canvas, body: Body, garment: Garment) -> None:
    with cloth(canvas, body, garment, torso(body, 0.5, 88, (6.6, 30.5, 32.5))) as layer:
        _trunk_folds(layer, body, garment.colour, 0.7)
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


def _draw_minimal_dress(canvas: Canvas, body: Body, garment: Garment) -> None:
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
        _trunk_folds(layer, body, garment.colour, 0.6)


def _draw_asymmetric_top(canvas: Canvas, body: Body, garment: Garment) -> None:
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


def _draw_colour_block(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (9.5, 32.2, 35.4)
    with cloth(canvas, body, garment, torso(body, 1.0, 88, neck)) as layer:
        layer.fill([(-40, 46), (3, 52), (3, 100), (-40, 100)], garment.accent)
        layer.fill([(3, 28), (40, 28), (40, 52), (3, 52)], mix(garment.accent, garment.colour, 0.5))
        layer.fill([(3, 52), (40, 52), (3, 92)], trim_colour(garment))
        _trunk_folds(layer, body, garment.colour, 0.6)
    canvas.line(smooth([(-9.5, 32.2), (0, 35.6), (9.5, 32.2)]), 0.5, darker(garment.colour, 0.6))


def _draw_dress_shirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    shirt = lighter(garment.colour, 0.62)
    with canvas.clipped(torso(body, 0.9, 88, (6.2, 30.0, 31.5))) as layer:
        layer.flood(shirt)
        if garment.texture == "regimental":
            layer.texture("pinstripe", garment.colour, 0.7, 0.75)
        layer.gradient((body.light * 4, 40), (-body.light * 22, 46), darker(shirt, 0.5), 0.5)
        _trunk_folds(layer, body, shirt, 0.9)
        layer.line([(-1.5, 34), (-1.5, 90)], 0.3, darker(shirt, 0.4))
        layer.line([(1.5, 34), (1.5, 90)], 0.3, darker(shirt, 0.4))
        _buttons(layer, 0, np.arange(42, 88, 7.0), lighter(shirt, 0.6), 0.65)
    if "bow" in garment.words:
        _draw_bow_tie(canvas, garment.accent)
    else:
        _draw_tie(canvas, body, garment)
    _shirt_collar(canvas, shirt)


def _shirt_collar(canvas: Canvas, shirt: Colour, spread: float = 1.0) -> None:
    for side in SIDES:
        collar = [
            (side * 6.0, 26.6),
            (side * 7.4, 30.8),
            (side * 5.6 * spread, 37.6),
            (side * 0.5, 33.2),
            (side * 3.2, 30.0),
        ]
        canvas.fill(shift(np.array(collar), 0.3, 0.7), darker(shirt, 0.6), 0.4)
        canvas.fill(collar, lighter(shirt, 0.25))
        canvas.line([*collar[1:4]], 0.4, darker(shirt, 0.5), 0.8)
        canvas.line(np.array([collar[0], collar[4], collar[3]]), 0.4, darker(shirt, 0.5), 0.8)


def _draw_tie(canvas: Canvas, body: Body, garment: Garment) -> None:
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


def _draw_bow_tie(canvas: Canvas, colour: Colour) -> None:
    for side in SIDES:
        wing = blob([(side * 0.6, 34.2), (side * 4.2, 31.4), (side * 6.6, 31.8), (side * 6.8, 37.2),
                     (side * 4.2, 37.4), (side * 0.6, 35.4)])  # fmt: skip
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


def _draw_bow_blouse(canvas: Canvas, body: Body, garment: Garment) -> None:
    colour = garment.colour
    with cloth(canvas, body, garment, torso(body, 1.8, 88, (6.6, 30.2, 33.4))) as layer:
        for x in (-11, -7.5, -4, 4, 7.5, 11):
            fold(layer, [(x, 38), (x * 1.1, 52), (x * 0.8, 66)], 0.9, colour, 0.5)
        _buttons(layer, 0, np.arange(50, 88, 6.0), (238, 232, 222), 0.7)
    with cloth(
        canvas,
        body,
        garment,
        ribbon(smooth([(-7, 28.5), (-6, 31.5), (0, 34), (6, 31.5), (7, 28.5)]), 3.2),
    ):
        pass
    for side in SIDES:
        tail = np.array(
            [
                (side * 0.4, 35.5),
                (side * 3.2, 35.5),
                (side * 7.4, 55),
                (side * 5, 53.4),
                (side * 2.6, 56),
            ]
        )
        loop = blob(
            [
                (side * 0.8, 35),
                (side * 5, 30.8),
                (side * 10, 31.8),
                (side * 10.4, 38.4),
                (side * 5, 39.6),
                (side * 0.8, 36.6),
            ]
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


def _draw_lace_dress(canvas: Canvas, body: Body, garment: Garment) -> None:
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


TOPS: dict[str, Callable[[Canvas, Body, Garment], None]] = {
    "tee": _draw_tee,
    "knit": _draw_knit,
    "henley": _draw_henley,
    "hoodie": _draw_hoodie,
    "graphic_tee": _draw_graphic_tee,
    "sports_tank": _draw_sports_tank,
    "sports_bra": _draw_sports_bra,
    "performance_tee": _draw_performance_tee,
    "quarter_zip": _draw_quarter_zip,
    "turtleneck": _draw_turtleneck,
    "minimal_dress": _draw_minimal_dress,
    "asymmetric_top": _draw_asymmetric_top,
    "colour_block": _draw_colour_block,
    "dress_shirt": _draw_dress_shirt,
    "bow_blouse": _draw_bow_blouse,
    "lace_dress": _draw_lace_dress,
}
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


# ----------------------------------------------------------------------------------- outer layers


def _panels(body: Body, ease: float, hem: float, gap: tuple[float, float, float],
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


def _panel_seams(
    layer: Canvas, body: Body, garment: Garment, gap: tuple[float, float, float], hem: float
) -> None:
    _, at_chest, at_hem = gap
    for side in SIDES:
        edge = smooth([(side * at_hem, hem), (side * at_chest, 54), (side * gap[0], 34)])
        layer.line(shift(edge, side * 0.9, 0), 0.35, contrast(garment.colour, 0.6), 0.7)
        layer.line(edge, 0.8, darker(garment.colour, 0.7), 0.7)
    _trunk_folds(layer, body, garment.colour, 1.2)


def _inner_shadow(canvas: Canvas, panels: list[Outline]) -> None:
    """Draws the shadow that an open jacket throws on what is under it."""
    for side, panel in zip((-1, 1), panels, strict=True):
        canvas.fill(shift(panel, -side * 1.6, 1.0), (16, 12, 26), 0.28)


def _draw_open_shirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.0, 6.5, 9.0)
    panels = _panels(body, 2.8, 92, gap)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _panel_seams(layer, body, garment, gap, 92)
        for y in np.arange(46, 92, 8.0):
            layer.oval(8.6, y, 0.7, 0.7, lighter(garment.colour, 0.7))
        layer.line(_line((-17, 47), (-10, 47), (-10, 55), (-13.5, 57), (-17, 55), (-17, 47)), 0.4,
                   darker(garment.colour, 0.5))  # fmt: skip
    _wide_collar(canvas, body, garment)


def _wide_collar(canvas: Canvas, body: Body, garment: Garment) -> None:
    for side in SIDES:
        collar = np.array(
            [
                (side * x, y)
                for x, y in ((6.0, 26.8), (8.8, 30.4), (10.6, 39.4), (4.2, 40.6), (4.4, 33))
            ]
        )
        with cloth(canvas, body, garment, collar) as layer:
            stitch(
                layer, _line((side * 9.4, 38.4), (side * 5, 39.4)), contrast(garment.colour, 0.6)
            )
        canvas.line(np.vstack([collar, collar[:1]]), 0.45, darker(garment.colour, 0.65), 0.8)


def _draw_cardigan(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (5.0, 4.0, 5.0)
    panels = _panels(body, 2.8, 90, gap)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _trunk_folds(layer, body, garment.colour)
        for side in SIDES:
            edge = smooth([(side * 6.4, 30), (side * 6.4, 40), (side * 5.6, 54), (side * 6.4, 90)])
            with layer.clipped(ribbon(edge, 3.4)) as band:
                band.flood(darker(garment.colour, 0.08))
                band.texture("rib", contrast(garment.colour, 0.45), 0.85, 0.8, 90)
        _hem_band(layer, 90, 5, garment)
        _buttons(layer, 5.9, np.arange(56, 88, 7.0), lighter(garment.accent, 0.3), 1.0)


def _draw_bomber(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (5.0, 6.5, 6.5)
    panels = _panels(body, 5.0, 84, gap, 2.2)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _panel_seams(layer, body, garment, gap, 84)
        _hem_band(layer, 84, 5.5, garment)
        for side in SIDES:
            _zip(layer, _line((side * 6.6, 40), (side * 6.9, 84), steps=22), (196, 198, 204))
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
        canvas.line(np.vstack([band, band[:1]]), 0.35, darker(garment.colour, 0.7), 0.8)


def _draw_overshirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.4, 7.0, 9.0)
    panels = _panels(body, 5.2, 95, gap, 2.2)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _panel_seams(layer, body, garment, gap, 95)
        for side in SIDES:
            pocket = _line(
                (side * 10, 48),
                (side * 18, 48),
                (side * 18, 57),
                (side * 14, 58.6),
                (side * 10, 57),
                (side * 10, 48),
                steps=4,
            )
            layer.line(pocket, 0.6, darker(garment.colour, 0.65))
            layer.line([(side * 10, 51), (side * 18, 51)], 0.5, darker(garment.colour, 0.65))
    _wide_collar(canvas, body, garment)


def _draw_denim_jacket(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.6, 6.8, 7.5)
    thread = (214, 158, 84)
    panels = _panels(body, 3.8, 83, gap, 1.8)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _panel_seams(layer, body, garment, gap, 83)
        for side in SIDES:
            for seam in (
                _line((side * 6.5, 48), (side * 27, 48)),
                _line((side * 10, 49), (side * 8.6, 82), steps=22),
                _line((side * 17, 49), (side * 13.5, 82), steps=22),
                _line((side * 7, 79), (side * 27, 79)),
            ):
                layer.line(seam, 0.9, darker(garment.colour, 0.4), 0.6)
                stitch(layer, shift(seam, 0.6, 0.6), thread, 0.4)
            layer.fill(
                [
                    (side * 9.6, 47),
                    (side * 17, 47),
                    (side * 17, 50),
                    (side * 13.3, 52),
                    (side * 9.6, 50),
                ],
                lighter(garment.colour, 0.12),
            )
            layer.line(
                _line(
                    (side * 9.6, 47),
                    (side * 9.6, 50),
                    (side * 13.3, 52),
                    (side * 17, 50),
                    (side * 17, 47),
                    steps=3,
                ),
                0.45,
                thread,
            )
            layer.oval(side * 13.3, 50.2, 0.8, 0.8, (196, 150, 90))
        _buttons(layer, 8.0, np.arange(44, 82, 7.5), (196, 150, 90), 0.9)
    _wide_collar(canvas, body, garment)


def _draw_puffer(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.6, 5.2, 5.2)
    panels = _panels(body, 6.4, 86, gap, 3.2)
    _inner_shadow(canvas, panels)
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
            _zip(layer, _line((side * 5.2, 34), (side * 5.4, 86), steps=24), (60, 60, 66))
    for side in SIDES:
        collar = blob(
            [
                (side * x, y)
                for x, y in ((6.2, 24), (10.4, 25), (11.4, 31), (9, 37), (5, 40), (5.4, 32))
            ]
        )
        with cloth(canvas, body, garment, collar) as layer:
            layer.curve(
                [(side * 5.6, 31.5), (side * 8.5, 32), (side * 11.6, 30)],
                0.9,
                darker(garment.colour, 0.7),
                0.7,
            )
        canvas.line(np.vstack([collar, collar[:1]]), 0.4, darker(garment.colour, 0.7), 0.8)


def _draw_track_jacket(canvas: Canvas, body: Body, garment: Garment) -> None:
    """Draws a zipped track jacket with a stand collar, half open or closed."""
    opened = garment.motif % 2 == 0
    gap = (2.6, 4.6, 1.0) if opened else (0.3, 0.3, 0.3)
    trim = trim_colour(garment)
    panels = _panels(body, 2.4, 87, gap)
    if opened:
        _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _trunk_folds(layer, body, garment.colour, 1.2)
        for side in SIDES:
            yoke = np.array([(side * 2, 31), (side * 4, 44), (side * 30, 52), (side * 30, 28)])
            layer.fill(yoke, garment.accent)
            layer.line(yoke[1:3], 1.2, trim)
            layer.line(shift(yoke[1:3], 0, 2.1), 0.8, trim)
            layer.line([(side * 12, 68), (side * 16, 80)], 1.1, trim)
            _zip(layer, smooth([(side * gap[0] + side * 0.4, 33), (side * gap[1] + side * 0.4, 54),
                                (side * gap[2] + side * 0.4, 88)]), (206, 208, 214))  # fmt: skip
        _hem_band(layer, 87, 4, garment)
    if not opened:
        _stand_collar(canvas, body, garment, 26.2)
        _zip(canvas, _line((0, 28), (0, 87), steps=26), (206, 208, 214))
        return
    for side in SIDES:
        collar = blob(
            [
                (side * x, y)
                for x, y in ((6.2, 24.6), (8.8, 25.6), (9.2, 31), (6, 38), (3, 39), (5.6, 31))
            ]
        )
        with cloth(canvas, body, garment, collar) as layer:
            layer.line(smooth([(side * 6.6, 25.2), (side * 6.4, 31), (side * 3.6, 38)]), 0.9, trim)
        canvas.line(np.vstack([collar, collar[:1]]), 0.4, darker(garment.colour, 0.7), 0.8)


def _draw_biker(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (3.0, 6.2, 5.4)
    colour = garment.colour
    shine = lighter(colour, 0.8)
    panels = _panels(body, 1.8, 82, gap)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _panel_seams(layer, body, garment, gap, 82)
        for side in SIDES:
            layer.fill(
                [(side * 12, 50), (side * 14, 50), (side * 11.6, 74), (side * 10.6, 74)], shine, 0.5
            )
            layer.fill([(side * 15.6, 52), (side * 16.3, 52), (side * 14, 70)], shine, 0.4)
            _zip(layer, _line((side * 9.5, 66), (side * 16, 72), steps=5), (206, 208, 214))
            layer.curve(
                [(side * 17.5, 38), (side * 12.5, 44), (side * 13.0, 60)], 0.4, darker(colour, 0.8)
            )
        _zip(layer, _line((6.6, 54), (5.9, 82), steps=12), (206, 208, 214))
        layer.fill(rect(-34, 77.5, 34, 84), darker(colour, 0.25))
        layer.line([(-34, 77.5), (34, 77.5)], 0.5, shine, 0.6)
        layer.fill(rect(7.4, 78.4, 11.2, 82.0), (206, 208, 214))
        layer.fill(rect(8.3, 79.3, 10.3, 81.1), darker(colour, 0.4))
    for side in SIDES:
        lapel = np.array(
            [
                (side * x, y)
                for x, y in (
                    (6.0, 28.5),
                    (9.2, 31.5),
                    (15.8, 38.6),
                    (12.6, 44.6),
                    (6.0, 57),
                    (2.6, 40),
                )
            ]
        )
        _sharp_lapel(canvas, body, garment, lapel, side)
        upper = np.array(
            [
                (side * x, y)
                for x, y in ((5.8, 26.2), (8.6, 27.2), (11.8, 33.2), (8.4, 36), (5.4, 31))
            ]
        )
        _sharp_lapel(canvas, body, garment, upper, side)
        canvas.oval(side * 13.0, 39.4, 0.75, 0.75, (220, 222, 228))
        canvas.oval(side * 7.0, 53.2, 0.75, 0.75, (220, 222, 228))


def _sharp_lapel(canvas: Canvas, body: Body, garment: Garment, lapel: Outline, side: int) -> None:
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


def _draw_trench(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (3.4, 1.2, 2.0)
    colour = garment.colour
    panels = _panels(body, 3.6, 118, gap, 1.6)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _trunk_folds(layer, body, colour, 1.2)
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
            _buttons(layer, column, np.array([57.0, 78, 88, 98]), darker(garment.accent, 0.35), 1.3)
        layer.fill(rect(-34, 64, 34, 69.5), darker(colour, 0.18))
        for y in (64, 69.5):
            layer.line([(-34, y), (34, y)], 0.45, darker(colour, 0.7))
        layer.line(
            _line((-3.5, 63.4), (3.5, 63.4), (3.5, 70.2), (-3.5, 70.2), (-3.5, 63.4), steps=2),
            1.0,
            darker(garment.accent, 0.3),
        )
    for side in SIDES:
        lapel = np.array(
            [
                (side * x, y)
                for x, y in (
                    (6.0, 28.5),
                    (9.2, 31.5),
                    (17.6, 40.0),
                    (13.6, 46.5),
                    (3.4, 62),
                    (2.2, 42),
                )
            ]
        )
        _sharp_lapel(canvas, body, garment, lapel, side)
        upper = np.array(
            [
                (side * x, y)
                for x, y in ((5.8, 25.6), (9.2, 26.6), (13.6, 34.6), (8.6, 37.6), (5.2, 31))
            ]
        )
        _sharp_lapel(canvas, body, garment, upper, side)


def _draw_suit(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.4, 4.6, 0.4)
    colour = garment.colour
    panels = _panels(body, 1.8, 95, gap)
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _trunk_folds(layer, body, colour)
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
        _buttons(layer, 0.9, np.array([71.0, 79.5]), darker(garment.accent, 0.3), 1.1)
    velvet = Garment(garment.kind, "", darker(garment.accent, 0.35), "", garment.accent)
    cloth_of = velvet if garment.motif % 4 == 0 else garment
    for side in SIDES:
        lapel = np.array(
            [
                (side * x, y)
                for x, y in (
                    (6.2, 28.6),
                    (9.0, 32.6),
                    (14.4, 41.4),
                    (12.2, 47.4),
                    (1.0, 69.5),
                    (3.6, 44),
                )
            ]
        )
        _sharp_lapel(canvas, body, cloth_of, lapel, side)
        upper = np.array(
            [
                (side * x, y)
                for x, y in ((6.0, 27), (8.6, 28.4), (11.8, 36.2), (8.4, 39.8), (5.6, 32))
            ]
        )
        _sharp_lapel(canvas, body, cloth_of, upper, side)


def _draw_waistcoat(canvas: Canvas, body: Body, garment: Garment) -> None:
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
    _inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        _trunk_folds(layer, body, colour, 0.8)
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
        _buttons(layer, -0.3, np.arange(56.5, 84, 5.6), lighter(garment.accent, 0.2), 1.0)


OUTERS: dict[str, Callable[[Canvas, Body, Garment], None]] = {
    "open_shirt": _draw_open_shirt,
    "cardigan": _draw_cardigan,
    "bomber": _draw_bomber,
    "overshirt": _draw_overshirt,
    "denim_jacket": _draw_denim_jacket,
    "puffer": _draw_puffer,
    "track_jacket": _draw_track_jacket,
    "biker": _draw_biker,
    "trench": _draw_trench,
    "suit": _draw_suit,
    "waistcoat": _draw_waistcoat,
}


def draw_upper(canvas: Canvas, body: Body, outfit: Outfit) -> None:
    """Draws the top and the outer layer, without sleeves."""
    TOPS[outfit.top.kind](canvas, body, outfit.top)
    if outfit.outer:
        OUTERS[outfit.outer.kind](canvas, body, outfit.outer)


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
