"""Draws hats, headphones, jewellery, belts, watches and bags."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    blob,
    contrast,
    darker,
    lighter,
    oval,
    rect,
    ribbon,
    shift,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth, trim_colour
from vibematch_training.sample_photos.figure import LEFT, SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment, Outfit

HATS = frozenset({"cap", "beanie", "bucket_hat", "beret"})
_PEARL: Colour = (244, 238, 228)


def draw_neckwear(canvas: Canvas, body: Body, outfit: Outfit) -> None:
    """Draws necklaces, belts and the pocket square, over the clothes."""
    closed = outfit.top.kind in ("turtleneck", "dress_shirt", "bow_blouse", "quarter_zip")
    if "chain" in outfit.extras:
        low = 53.0 if outfit.top.kind == "hoodie" else 47.0
        links = smooth([(-7.5, 31), (-6, low - 8), (0, low), (6, low - 8), (7.5, 31)])
        canvas.line(shift(links, 0.3, 0.5), 1.2, (20, 16, 24), 0.4)
        for x, y in links[::1]:
            canvas.oval(x, y, 0.85, 0.8, darker(outfit.metal, 0.35))
            canvas.oval(x - 0.15, y - 0.2, 0.5, 0.45, lighter(outfit.metal, 0.45))
        canvas.fill(rect(-1.6, low, 1.6, low + 4.4), outfit.metal)
        canvas.fill(rect(-0.9, low + 0.7, 0.9, low + 3.6), darker(outfit.metal, 0.35))
    if "pearls" in outfit.extras and not closed:
        for depth in (37.4, 39.8):
            string = smooth(
                [(-6.4, 30), (-4.6, depth - 2), (0, depth), (4.6, depth - 2), (6.4, 30)]
            )
            for x, y in string[::2]:
                canvas.oval(x + 0.15, y + 0.3, 0.95, 0.95, (40, 30, 40), 0.35)
                canvas.oval(x, y, 0.92, 0.92, _PEARL)
                canvas.oval(x - 0.25, y - 0.3, 0.32, 0.32, (255, 255, 255))
    if "collar_necklace" in outfit.extras and outfit.outer is None:
        arc = smooth([(-7, 33), (-4.4, 40), (0, 42.4), (4.4, 40), (7, 33)])
        canvas.line(arc, (0.6, 1.6, 0.6), outfit.metal)
        canvas.fill([(0, 42), (2.8, 47), (0, 52), (-2.8, 47)], outfit.metal)
        canvas.fill([(0, 42), (2.8, 47), (0, 52)], darker(outfit.metal, 0.35))
    if "pocket_square" in outfit.extras and outfit.outer and outfit.outer.kind == "suit":
        canvas.fill([(11.2, 48.6), (12.4, 44.6), (14.2, 47), (15.6, 43.8), (17.4, 47.4)],
                    lighter(outfit.top.accent, 0.35))  # fmt: skip
    if "wide_belt" in outfit.extras and (outfit.outer is None or outfit.outer.kind == "biker"):
        _draw_belt(canvas, body, outfit)


def _draw_belt(canvas: Canvas, body: Body, outfit: Outfit) -> None:
    waist, colour = body.half_width(68) + 1.4, outfit.shoes.colour
    belt = np.vstack(
        [
            smooth([(-waist, 64.5), (0, 65.6), (waist, 64.5)]),
            smooth([(waist, 71), (0, 72.2), (-waist, 71)]),
        ]
    )
    with canvas.clipped(belt) as layer:
        layer.flood(colour)
        layer.texture("gloss", lighter(colour, 0.7), 0.6)
        layer.gradient((body.light * 4, 66), (-body.light * 18, 66), darker(colour, 0.8), 0.5)
    canvas.line(smooth([(-waist, 71), (0, 72.2), (waist, 71)]), 0.5, darker(colour, 0.7))
    canvas.fill(oval(0, 68.8, 4.2, 4.2), outfit.metal)
    canvas.fill(oval(0, 68.8, 2.9, 2.9), darker(colour, 0.2))
    canvas.line([(-0.4, 68.8), (4, 68.8)], 0.7, lighter(outfit.metal, 0.3))


def draw_wristwear(canvas: Canvas, body: Body, outfit: Outfit) -> None:
    """Draws a watch or a smart band on the left wrist."""
    if body.hand(LEFT) == "hidden":
        return
    line, width = body.arm(LEFT), body.arm_widths(LEFT)[-1] + 1.6
    band = ribbon(line[-5:-2], width + 0.6)
    x, y = line[-4]
    if "watch" in outfit.extras:
        canvas.fill(band, darker(outfit.shoes.colour, 0.3))
        canvas.oval(x, y, 2.3, 2.3, outfit.metal)
        canvas.oval(x, y, 1.7, 1.7, (246, 244, 238))
        canvas.line([(x, y), (x, y - 1.2)], 0.3, (30, 30, 34))
        canvas.line([(x, y), (x + 0.9, y + 0.2)], 0.3, (30, 30, 34))
    elif "smart_band" in outfit.extras:
        canvas.fill(band, trim_colour(outfit.shoes))
        canvas.fill(
            blob([(x - 1.9, y - 2.4), (x + 1.9, y - 2.4), (x + 1.9, y + 2.4), (x - 1.9, y + 2.4)]),
            (22, 22, 28),
        )
        canvas.line([(x - 1.0, y - 0.6), (x + 1.0, y - 0.6)], 0.6, (120, 230, 160))
        canvas.line([(x - 1.0, y + 0.8), (x + 0.4, y + 0.8)], 0.6, (240, 120, 120))


def draw_bag(canvas: Canvas, body: Body, bag: Garment) -> None:
    """Draws a bag: a tote or small bag on the left shoulder, or a strap across the chest."""
    shoulder = body.person.shoulders - 4
    strap = darker(bag.colour, 0.25)
    if bag.kind == "crossbody":
        line = smooth([(shoulder - 3, 34), (2, 58), (-body.half_width(70) - 2, 76)])
        canvas.line(shift(line, 0.4, 0.8), 2.6, (16, 12, 24), 0.3)
        canvas.line(line, 2.4, strap)
        pouch = blob([(-21, 72), (-9, 70), (-8, 83), (-20, 85)])
        with cloth(canvas, body, bag, pouch) as layer:
            layer.line([(-21, 75), (-8, 73)], 0.7, (200, 200, 206))
            layer.line([(-20, 80), (-8, 78)], 1.2, trim_colour(bag))
        return
    x = -shoulder - 3
    low, size = (78.0, 12.0) if bag.kind != "small_bag" else (72.0, 7.5)
    for dx in (-2.2, 2.2):
        canvas.curve(
            [(x + 2 + dx * 0.4, 35.5), (x - 2 + dx, 54), (x - 3 + dx * 1.6, low + 1)], 1.3, strap
        )
    body_of_bag = np.array(
        [
            (x - 3 - size, low),
            (x - 3 + size * 0.7, low),
            (x - 3 + size * 0.8, low + size * 1.9),
            (x - 3 - size * 1.1, low + size * 1.9),
        ]
    )
    with cloth(canvas, body, bag, body_of_bag) as layer:
        if bag.kind == "tote":
            layer.texture("weave", contrast(bag.colour, 0.3), 0.6, 0.8)
            layer.oval(x - 4, low + size, 4, 4, bag.accent)
        elif bag.kind == "gym_bag":
            layer.line([(x - 30, low + 6), (x + 10, low + 6)], 2.0, trim_colour(bag))
            layer.line([(x - 30, low + 10), (x + 10, low + 10)], 1.0, trim_colour(bag))
        else:
            layer.fill([(x - 14, low), (x + 5, low), (x - 4, low + 8)], darker(bag.colour, 0.3))
            layer.oval(x - 4, low + 7, 1.3, 1.3, (216, 180, 96))
            layer.texture("gloss", lighter(bag.colour, 0.7), 0.5)
    canvas.outline(body_of_bag, 0.5, darker(bag.colour, 0.6))


def draw_earrings(head: Canvas, body: Body, outfit: Outfit) -> None:
    """Draws geometric or pearl earrings."""
    for side in SIDES:
        x = side * 9.6 * body.person.face_width
        if "geometric_earrings" in outfit.extras:
            head.oval(x, 17.6, 0.6, 0.6, outfit.metal)
            head.fill([(x, 17.6), (x + 2.3, 22.4), (x - 2.3, 22.4)], outfit.metal)
            head.fill([(x, 19.4), (x + 1.2, 21.7), (x - 1.2, 21.7)], darker(outfit.metal, 0.6))
            head.fill(rect(x - 0.5, 22.4, x + 0.5, 26), lighter(outfit.metal, 0.3))
        elif "pearl_earrings" in outfit.extras:
            head.oval(x, 18.0, 1.15, 1.15, _PEARL)
            head.oval(x, 20.6, 1.5, 1.6, _PEARL)
            head.oval(x - 0.4, 20.0, 0.5, 0.5, (255, 255, 255))


def draw_headphones(head: Canvas, colour: Colour) -> None:
    """Draws over-ear headphones."""
    head.curve(
        [(-10.8, 12), (-10.4, 2), (0, -3.4), (10.4, 2), (10.8, 12)], 1.9, darker(colour, 0.3)
    )
    head.curve([(-10.2, 4), (-6, -1.4), (0, -3.6)], (0.2, 0.6, 0.2), lighter(colour, 0.6), 0.7)
    for side in SIDES:
        cup = blob(
            [
                (side * 8.8, 9),
                (side * 12.4, 9.5),
                (side * 13.2, 14),
                (side * 12.4, 18.6),
                (side * 8.8, 19),
            ]
        )
        head.fill(cup, darker(colour, 0.15))
        head.line(
            smooth([(side * 11, 10.5), (side * 12, 14), (side * 11, 17.6)]),
            0.7,
            lighter(colour, 0.5),
        )


def draw_headwear(head: Canvas, body: Body, hat: Garment) -> None:
    """Draws a hat or a headband over the hair."""
    _HEADWEAR[hat.kind](head, body, hat)


def _cap(head: Canvas, body: Body, hat: Garment) -> None:
    crown = np.vstack(
        [
            smooth(
                [
                    (-10.6, 8.2),
                    (-10.3, 1.5),
                    (-6.4, -3.6),
                    (0, -5.0),
                    (6.4, -3.6),
                    (10.3, 1.5),
                    (10.6, 8.2),
                ]
            ),
            smooth([(10.6, 8.2), (0, 5.8), (-10.6, 8.2)]),
        ]
    )
    with cloth(head, body, hat, crown) as layer:
        for x in (-6, 0, 6):
            layer.curve([(0, -5), (x * 1.1, 0), (x * 1.35, 8)], 0.35, darker(hat.colour, 0.6))
        patch = trim_colour(hat)
        layer.fill(blob([(-3.4, -1.2), (3.4, -1.2), (3.2, 4.2), (-3.2, 4.2)]), patch)
        layer.line([(-1.8, 0.4), (1.6, 0.4), (-1.4, 2.8), (2, 2.8)], 0.8, darker(hat.accent, 0.2))
    brim = np.vstack(
        [
            smooth([(-10.4, 7.6), (0, 4.9), (10.4, 7.6)]),
            smooth([(10.4, 7.6), (9.0, 10.4), (0, 9.0), (-9.0, 10.4), (-10.4, 7.6)]),
        ]
    )
    head.fill(shift(brim, 0, 1.5), (30, 14, 18), 0.3)
    head.fill(brim, darker(hat.colour, 0.12))
    head.curve([(-8, 7.6), (0, 6.0), (8, 7.6)], 0.5, lighter(hat.colour, 0.5), 0.6)
    head.oval(0, -5, 0.9, 0.6, darker(hat.colour, 0.3))


def _beanie(head: Canvas, body: Body, hat: Garment) -> None:
    dome = np.vstack([
        smooth([(-10.4, 7), (-10.6, 0), (-7, -6.2), (0, -8.2), (7, -6.2), (10.6, 0), (10.4, 7)]),
        smooth([(10.4, 7), (0, 5), (-10.4, 7)]),
    ])  # fmt: skip
    with cloth(head, body, hat, dome) as layer:
        layer.texture("wide_rib", contrast(hat.colour, 0.42), 0.7, 0.6)
    cuff = np.vstack(
        [
            smooth([(-10.9, 2.2), (0, -0.4), (10.9, 2.2)]),
            smooth([(10.8, 8.6), (0, 6.4), (-10.8, 8.6)]),
        ]
    )
    with cloth(head, body, hat, cuff) as layer:
        layer.texture("wide_rib", contrast(hat.colour, 0.5), 0.9, 0.6)
        layer.fill(rect(3, 1.6, 7, 5.2), trim_colour(hat))
    head.line(smooth([(-10.8, 8.6), (0, 6.4), (10.8, 8.6)]), 0.6, darker(hat.colour, 0.6), 0.7)


def _bucket_hat(head: Canvas, body: Body, hat: Garment) -> None:
    brim = np.vstack(
        [
            smooth([(-10.6, 3.5), (0, 1.6), (10.6, 3.5)]),
            smooth([(14.4, 9.6), (8, 10.6), (0, 8.6), (-8, 10.6), (-14.4, 9.6)]),
        ]
    )
    crown = np.vstack(
        [
            smooth([(-10.8, 4.4), (-9.2, -4.2), (0, -6.2), (9.2, -4.2), (10.8, 4.4)]),
            smooth([(10.8, 4.4), (0, 2.4), (-10.8, 4.4)]),
        ]
    )
    head.fill(shift(brim, 0, 1.5), (30, 14, 18), 0.3)
    with cloth(head, body, hat, crown):
        pass
    with cloth(head, body, hat, brim) as layer:
        for i in range(3):
            layer.line(
                smooth([(-13, 5 + i * 1.5), (0, 3.2 + i * 1.8), (13, 5 + i * 1.5)]),
                0.3,
                contrast(hat.colour, 0.5),
            )
        layer.gradient((0, 2), (0, 12), darker(hat.colour, 0.6), 0.4)
    head.line(smooth([(-10.8, 4.2), (0, 2.2), (10.8, 4.2)]), 0.9, trim_colour(hat))


def _beret(head: Canvas, body: Body, hat: Garment) -> None:
    with cloth(
        head,
        body,
        hat,
        blob(
            [(-12, 1.5), (-9, -5), (2, -7.2), (11, -3.5), (12.6, 2.5), (6, 5), (-4, 5.4), (-10, 5)]
        ),
    ) as layer:
        layer.curve([(-9, 3), (0, 0), (10, 2)], (0.2, 1.2, 0.2), darker(hat.colour, 0.6), 0.5)
    head.curve([(-9.4, 5.6), (0, 3.6), (9.4, 5)], 1.3, darker(hat.colour, 0.3))


def _headband(head: Canvas, body: Body, hat: Garment) -> None:
    band = np.vstack([
        smooth([(-9.8, 5.4), (0, 1.4), (9.8, 5.4)]), smooth([(9.8, 9.0), (0, 5.2), (-9.8, 9.0)])
    ])  # fmt: skip
    with cloth(head, body, hat, band) as layer:
        layer.texture("rib", contrast(hat.colour, 0.35), 0.6, 0.6)
        layer.line(smooth([(-9.8, 7.2), (0, 3.3), (9.8, 7.2)]), 0.9, trim_colour(hat))


_HEADWEAR: dict[str, Callable[[Canvas, Body, Garment], None]] = {
    "cap": _cap,
    "beanie": _beanie,
    "bucket_hat": _bucket_hat,
    "beret": _beret,
    "headband": _headband,
}
