"""Draws the places behind people. The picture is 100 units wide and `height` units high."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    blob,
    darker,
    lighter,
    mix,
    oval,
    rect,
    smooth,
)

Rng = np.random.Generator

_WALLS: tuple[Colour, ...] = (
    (226, 218, 206), (198, 206, 210), (172, 186, 176), (206, 180, 164), (150, 160, 176),
    (120, 132, 128), (232, 226, 220), (184, 168, 190), (96, 104, 122), (214, 196, 150),
)  # fmt: skip
_WOODS: tuple[Colour, ...] = ((150, 106, 68), (112, 76, 52), (186, 146, 104), (84, 60, 46))
_VIVID: tuple[Colour, ...] = (
    (188, 66, 58), (48, 104, 140), (222, 172, 72), (64, 126, 96), (150, 84, 128), (236, 226, 210),
    (52, 58, 78), (210, 120, 80),
)  # fmt: skip


def _any(rng: Rng, colours: tuple[Colour, ...]) -> Colour:
    base = colours[int(rng.integers(len(colours)))]
    return mix(base, colours[int(rng.integers(len(colours)))], float(rng.uniform(0, 0.35)))


def _tapered(x: float, top: float, upper: float, bottom: float, lower: float) -> Outline:
    """Returns a trapezium around a vertical axis, of half-widths `upper` and `lower`."""
    return np.array([(x - upper, top), (x + upper, top), (x + lower, bottom), (x - lower, bottom)])


def _wall(canvas: Canvas, rng: Rng, height: float, floor: float) -> Colour:
    """Paints a wall lit from one side and a floor; returns the wall colour."""
    wall, ground = _any(rng, _WALLS), _any(rng, _WOODS + _WALLS[:3])
    canvas.fill(rect(0, 0, 100, height), wall)
    side = float(rng.choice([0, 100]))
    canvas.gradient((side, 0), (100 - side, height * 0.5), darker(wall, 0.6), 0.5)
    with canvas.clipped(rect(0, floor, 100, height)) as area:
        area.flood(ground)
        for i in range(8):
            y = floor + (height - floor) * (i / 8) ** 1.7
            area.line([(0, y), (100, y)], 0.5, darker(ground, 0.4), 0.6)
        for x in np.linspace(-120, 220, 15):
            area.line([(50 + (x - 50) * 0.4, floor), (x, height)], 0.5, darker(ground, 0.4), 0.5)
        area.gradient((0, height), (0, floor), darker(ground, 0.7), 0.45)
    canvas.fill(rect(0, floor - 2.2, 100, floor), lighter(wall, 0.45))
    return wall


def _window(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    sky = mix((168, 206, 232), (250, 214, 170), float(rng.random()))
    with canvas.clipped(rect(x, y, x + w, y + h)) as glass:
        glass.flood(sky)
        glass.gradient((0, y), (0, y + h), lighter(sky, 0.7), 0.9)
        for i in range(4):
            bx = x + w * (i / 4)
            glass.fill(
                rect(bx, y + h * float(rng.uniform(0.4, 0.8)), bx + w / 4 - 0.6, y + h),
                darker(sky, 0.35),
                0.7,
            )
    for px in (x, x + w / 2, x + w):
        canvas.line([(px, y), (px, y + h)], 1.3, (244, 242, 238))
    for py in (y, y + h * 0.45, y + h):
        canvas.line([(x, py), (x + w, py)], 1.3, (244, 242, 238))


def _plant(canvas: Canvas, rng: Rng, x: float, y: float, size: float) -> None:
    green = _any(rng, ((58, 104, 70), (92, 128, 74), (40, 86, 78)))
    for angle in np.linspace(-1.25, 1.25, 9):
        tip = (x + size * np.sin(angle), y - size * (0.6 + 0.5 * np.cos(angle)))
        middle = (x + size * 0.35 * np.sin(angle * 1.4), y - size * 0.6)
        canvas.curve([(x, y), middle, tip], (0.6, size * 0.16, 0.2),
                     mix(green, (190, 210, 120), float(rng.uniform(0, 0.35))))  # fmt: skip
    pot = _any(rng, _VIVID)
    canvas.fill(_tapered(x, y - 1, size * 0.28, y + size * 0.4, size * 0.2), pot)


def _picture(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    canvas.fill(rect(x + 0.8, y + 1, x + w + 0.8, y + h + 1), (20, 16, 24), 0.3)
    canvas.fill(rect(x, y, x + w, y + h), darker(_any(rng, _WOODS), 0.2))
    with canvas.clipped(rect(x + 1.2, y + 1.2, x + w - 1.2, y + h - 1.2)) as art:
        art.flood(_any(rng, _VIVID))
        art.oval(x + w * 0.6, y + h * 0.4, w * 0.25, w * 0.25, _any(rng, _VIVID))
        art.fill(
            blob(
                [
                    (x, y + h * 0.6),
                    (x + w * 0.4, y + h * 0.5),
                    (x + w, y + h * 0.8),
                    (x + w, y + h * 1.2),
                    (x, y + h * 1.2),
                ]
            ),
            _any(rng, _VIVID),
        )


def _trees(canvas: Canvas, rng: Rng, ground: float, count: int, size: float) -> None:
    for _ in range(count):
        x, s = float(rng.uniform(-5, 105)), size * float(rng.uniform(0.7, 1.3))
        green = mix((52, 96, 62), (176, 168, 70), float(rng.random()) * 0.8)
        canvas.fill(_tapered(x, ground - s, s * 0.04, ground, s * 0.07), (86, 64, 50))
        for i in range(6):
            dx, dy = rng.uniform(-0.42, 0.42) * s, rng.uniform(-0.4, 0.35) * s
            crown = oval(x + dx, ground - s * 1.15 + dy, s * 0.34, s * 0.3)
            with canvas.clipped(crown) as leaves:
                leaves.flood(mix(green, (230, 232, 150), 0.07 * i))
                leaves.texture("leaves", darker(green, 0.35), 0.6, 0.35)


def _sky(canvas: Canvas, rng: Rng, height: float) -> Colour:
    top = _any(
        rng, ((104, 164, 214), (150, 180, 204), (236, 178, 140), (86, 98, 150), (196, 208, 216))
    )
    canvas.fill(rect(0, 0, 100, height), top)
    canvas.gradient((0, 0), (0, height * 0.6), lighter(top, 0.75), 0.9)
    for _ in range(int(rng.integers(1, 5))):
        x, y, s = rng.uniform(0, 100), rng.uniform(4, height * 0.3), rng.uniform(5, 12)
        for dx, r in ((-0.9, 0.5), (0, 0.75), (0.9, 0.55)):
            canvas.oval(x + dx * s, y, s * r * 1.3, s * r * 0.6, (255, 255, 255), 0.55)
    return top


def _park(canvas: Canvas, rng: Rng, height: float) -> None:
    _sky(canvas, rng, height)
    ground = height * float(rng.uniform(0.5, 0.62))
    _trees(canvas, rng, ground + 2, 9, height * 0.26)
    grass = _any(rng, ((112, 150, 74), (146, 156, 82), (84, 128, 78)))
    with canvas.clipped(rect(0, ground, 100, height)) as lawn:
        lawn.flood(grass)
        lawn.texture("leaves", darker(grass, 0.25), 0.4, 0.5)
        lawn.fill([(34, ground), (46, ground), (90, height), (5, height)], (212, 192, 156))
        lawn.gradient((0, height), (0, ground), darker(grass, 0.5), 0.4)
    _trees(canvas, rng, ground + height * 0.1, 3, height * 0.42)
    x = float(rng.uniform(5, 75))
    for dy in (0, 2.5, 6):
        canvas.line([(x, ground + 4 + dy), (x + 24, ground + 4 + dy)], 1.6, _any(rng, _WOODS))


def _street(canvas: Canvas, rng: Rng, height: float) -> None:
    _sky(canvas, rng, height)
    ground = height * float(rng.uniform(0.64, 0.76))
    x = -float(rng.uniform(0, 14))
    while x < 100:
        w, top = float(rng.uniform(22, 36)), float(rng.uniform(-8, height * 0.16))
        wall, shop = _any(rng, _WALLS + _VIVID[:3]), _any(rng, _VIVID)
        with canvas.clipped(rect(x, top, x + w, ground)) as house:
            house.flood(wall)
            house.texture("weave", darker(wall, 0.3), 0.35, 2.2)
            for row in range(3):
                for col in range(3):
                    wx, wy = x + w * (0.1 + 0.3 * col), ground - 30 - row * 18
                    house.fill(rect(wx, wy - 11, wx + w * 0.19, wy), lighter(wall, 0.6))
                    house.fill(
                        rect(wx + 0.8, wy - 10, wx + w * 0.19 - 0.8, wy - 0.8), (66, 84, 104)
                    )
            house.fill(rect(x + 2, ground - 20, x + w - 2, ground), darker(shop, 0.35))
            house.fill(
                rect(x + 3.5, ground - 16, x + w * 0.64, ground - 3),
                mix((250, 214, 140), shop, 0.2),
            )
            house.fill(rect(x + w * 0.7, ground - 16, x + w - 4, ground), (60, 70, 84))
            for i in range(9):
                ax = x + 1 + (w - 2) * i / 9
                stripe = rect(ax, ground - 24, ax + (w - 2) / 9, ground - 17.5)
                house.fill(stripe, shop if i % 2 else (244, 240, 232))
        x += w
    canvas.fill(rect(0, ground, 100, height), (150, 148, 146))
    for i in range(5):
        y = ground + (height - ground) * (i / 5) ** 1.5
        canvas.line([(0, y), (100, y)], 0.5, (112, 110, 112))
    canvas.gradient((0, ground), (0, height), (60, 58, 70), 0.3)


def _cafe(canvas: Canvas, rng: Rng, height: float) -> None:
    floor = height * 0.8
    wall = _wall(canvas, rng, height, floor)
    if rng.random() < 0.5:
        canvas.texture("weave", darker(wall, 0.3), 0.3, 3)
    wood = _any(rng, _WOODS)
    for y in (height * 0.22, height * 0.38):
        canvas.fill(rect(4, y, 62, y + 1.6), wood)
        for x in np.arange(7, 60, 5.0):
            tall = float(rng.uniform(4, 10))
            canvas.fill(rect(x, y - tall, x + 3, y), _any(rng, _VIVID))
    canvas.fill(rect(0, height * 0.58, 70, floor + 4), darker(wood, 0.1))
    canvas.fill(rect(0, height * 0.56, 71, height * 0.6), lighter(wood, 0.35))
    _window(canvas, rng, 70, height * 0.16, 26, height * 0.4)
    for x in (18, 44, 72):
        y = height * float(rng.uniform(0.1, 0.16))
        canvas.line([(x, 0), (x, y)], 0.5, (40, 36, 36))
        canvas.fill([(x - 5, y + 4), (x - 1.5, y), (x + 1.5, y), (x + 5, y + 4)], _any(rng, _VIVID))
        canvas.oval(x, y + 5, 2.6, 2.0, (255, 240, 190))
        canvas.oval(x, y + 6, 9, 9, (255, 232, 170), 0.18)


def _bedroom(canvas: Canvas, rng: Rng, height: float) -> None:
    floor = height * 0.84
    _wall(canvas, rng, height, floor)
    _window(canvas, rng, float(rng.choice([4, 62])), height * 0.1, 30, height * 0.34)
    _picture(canvas, rng, 44, height * 0.16, 15, 20)
    sheet, throw = _any(rng, _WALLS), _any(rng, _VIVID)
    bed = height * 0.62
    canvas.fill(rect(8, bed - 18, 92, bed + 6), darker(_any(rng, _WOODS), 0.1))
    for x in (14, 54):
        canvas.fill(
            blob(
                [
                    (x, bed - 8),
                    (x + 15, bed - 11),
                    (x + 30, bed - 8),
                    (x + 30, bed + 4),
                    (x, bed + 4),
                ]
            ),
            lighter(sheet, 0.5),
        )
    with canvas.clipped(
        blob([(0, bed), (50, bed - 2), (100, bed), (104, floor + 8), (-4, floor + 8)])
    ) as duvet:
        duvet.flood(sheet)
        duvet.fill(rect(0, bed + 12, 100, floor + 9), throw)
        for i in range(7):
            duvet.curve(
                [(i * 16, bed), (i * 15 + 6, bed + 14), (i * 17, floor + 8)],
                (0.3, 2, 0.3),
                darker(sheet, 0.4),
                0.4,
            )
    _plant(canvas, rng, float(rng.choice([6, 94])), floor, 18)


def _bathroom(canvas: Canvas, rng: Rng, height: float) -> None:
    tile = _any(rng, _WALLS)
    canvas.fill(rect(0, 0, 100, height), tile)
    step = float(rng.uniform(7, 12))
    for i in range(int(100 / step) + 1):
        canvas.line([(i * step, 0), (i * step, height)], 0.5, lighter(tile, 0.6))
    for i in range(int(height / step) + 1):
        canvas.line([(0, i * step), (100, i * step)], 0.5, lighter(tile, 0.6))
    canvas.gradient((50, 0), (50, height), darker(tile, 0.6), 0.5)
    shower = _any(rng, _VIVID + _WALLS)
    canvas.fill(rect(60, height * 0.08, 100, height), shower)
    for x in np.arange(62, 100, 5.0):
        canvas.line([(x, height * 0.08), (x + 1, height)], (1.2, 2.2), darker(shower, 0.35), 0.5)
    canvas.line([(56, height * 0.08), (100, height * 0.08)], 1.2, (200, 202, 206))
    towel = _any(rng, _VIVID)
    canvas.fill(rect(8, height * 0.38, 24, height * 0.66), towel)
    canvas.fill(rect(8, height * 0.6, 24, height * 0.62), lighter(towel, 0.6))
    canvas.line([(5, height * 0.38), (28, height * 0.38)], 1.2, (196, 198, 204))


def _gym(canvas: Canvas, rng: Rng, height: float) -> None:
    floor = height * 0.72
    wall = _wall(canvas, rng, height, floor)
    canvas.fill(rect(0, height * 0.3, 100, height * 0.36), _any(rng, _VIVID))
    for x in np.arange(3, 100, 24.0):
        canvas.fill(rect(x, height * 0.06, x + 18, height * 0.26), lighter(wall, 0.5), 0.8)
    rack = (52, 54, 62)
    for y in (height * 0.5, height * 0.62):
        canvas.fill(rect(4, y, 96, y + 1.6), rack)
        for x in np.arange(7, 94, 9.0):
            weight = _any(rng, _VIVID + ((40, 42, 50),) * 6)
            canvas.fill(rect(x, y - 5.5, x + 2, y), weight)
            canvas.fill(rect(x + 4.4, y - 5.5, x + 6.4, y), weight)
            canvas.fill(rect(x + 1, y - 3.6, x + 5, y - 2), (168, 170, 176))
    for x in (5, 95):
        canvas.fill(rect(x - 1, height * 0.34, x + 1, floor + 6), rack)
    canvas.oval(float(rng.uniform(12, 88)), floor + 5, 11, 11, _any(rng, _VIVID))


def _office(canvas: Canvas, rng: Rng, height: float) -> None:
    floor = height * 0.84
    _wall(canvas, rng, height, floor)
    for x in (2, 36, 70):
        _window(canvas, rng, x, height * 0.06, 28, height * 0.44)
    desk = _any(rng, _WOODS + _WALLS[:2])
    canvas.fill(rect(0, height * 0.64, 100, height * 0.67), desk)
    for x in (8, 58):
        canvas.fill(rect(x, height * 0.46, x + 26, height * 0.6), (44, 48, 56))
        canvas.fill(
            rect(x + 1.2, height * 0.47, x + 24.8, height * 0.59),
            mix((90, 130, 170), _any(rng, _VIVID), 0.3),
        )
        canvas.fill(rect(x + 11, height * 0.6, x + 15, height * 0.64), (60, 62, 70))
    _plant(canvas, rng, 46, height * 0.62, 10)


def _beach(canvas: Canvas, rng: Rng, height: float) -> None:
    _sky(canvas, rng, height)
    sea_top = height * float(rng.uniform(0.42, 0.52))
    sand_top = height * float(rng.uniform(0.62, 0.72))
    sea = _any(rng, ((58, 132, 160), (86, 160, 168), (52, 98, 140)))
    canvas.fill(rect(0, sea_top, 100, height), sea)
    for i in range(9):
        y = sea_top + (sand_top - sea_top) * (i / 9) ** 1.4
        x = float(rng.uniform(-20, 60))
        canvas.curve(
            [(x, y), (x + 25, y + 0.8), (x + 50, y)], (0.1, 0.9, 0.1), lighter(sea, 0.6), 0.8
        )
    sand = _any(rng, ((232, 206, 160), (220, 190, 150), (236, 222, 190)))
    shore = smooth([(-5, sand_top), (25, sand_top + 3), (60, sand_top - 2), (105, sand_top + 3)])
    canvas.line(shore, 3.2, (250, 250, 246), 0.9)
    with canvas.clipped(np.vstack([shore, [(105, height + 5), (-5, height + 5)]])) as area:
        area.flood(sand)
        area.texture("speckle", darker(sand, 0.25), 0.5, 0.6)
    x = float(rng.choice([14, 84]))
    canvas.line([(x, sand_top + 8), (x, sand_top - 30)], 1.0, (230, 226, 220))
    for i in range(6):
        canvas.fill(
            [(x - 18 + i * 6, sand_top - 26), (x - 12 + i * 6, sand_top - 26), (x, sand_top - 38)],
            _any(rng, _VIVID) if i % 2 else (246, 242, 234),
        )


def _studio(canvas: Canvas, rng: Rng, height: float) -> None:
    paper = _any(rng, _WALLS + _VIVID)
    canvas.fill(rect(0, 0, 100, height), paper)
    canvas.gradient((float(rng.choice([0, 100])), 0), (50, height), darker(paper, 0.5), 0.6)
    for radius in (46, 36, 26):
        canvas.oval(50, height * 0.42, radius, radius * 1.15, lighter(paper, 0.6), 0.12)
    canvas.gradient((50, height * 0.8), (50, height), darker(paper, 0.5), 0.4)
    if rng.random() < 0.45:
        x = float(rng.choice([12, 88]))
        canvas.fill(rect(x - 0.5, height * 0.2, x + 0.5, height), (40, 40, 46))
        canvas.fill(_tapered(x, height * 0.06, 10, height * 0.22, 7), (250, 248, 240))


def _library(canvas: Canvas, rng: Rng, height: float) -> None:
    wood = _any(rng, _WOODS)
    canvas.fill(rect(0, 0, 100, height), darker(wood, 0.45))
    shelf = float(rng.uniform(17, 24))
    y = shelf * 0.7
    while y < height * 0.95:
        x = 1.0
        while x < 99:
            w, tall = float(rng.uniform(1.8, 4.2)), float(rng.uniform(0.55, 0.86)) * shelf
            book = _any(rng, _VIVID)
            canvas.fill(rect(x, y - tall, x + w - 0.3, y), book)
            canvas.fill(
                rect(x + 0.4, y - tall * 0.8, x + w - 0.7, y - tall * 0.72), lighter(book, 0.6)
            )
            x += w + (float(rng.uniform(3, 8)) if rng.random() < 0.06 else 0)
        canvas.fill(rect(0, y, 100, y + 2), wood)
        y += shelf
    for x in (0, 49, 98):
        canvas.fill(rect(x, 0, x + 2.4, height), lighter(wood, 0.08))
    canvas.gradient((50, height * 0.3), (50, height), (20, 12, 16), 0.5)


def _subway(canvas: Canvas, rng: Rng, height: float) -> None:
    floor = height * 0.84
    wall = _wall(canvas, rng, height, floor)
    canvas.fill(rect(0, 0, 100, height * 0.1), lighter(wall, 0.5))
    seat = _any(rng, _VIVID)
    for x in (2, 36, 70):
        canvas.fill(blob(rect(x, height * 0.2, x + 28, height * 0.5)), (40, 46, 58))
        canvas.fill(
            [
                (x + 4, height * 0.5),
                (x + 12, height * 0.2),
                (x + 17, height * 0.2),
                (x + 9, height * 0.5),
            ],
            (120, 132, 150),
            0.5,
        )
        canvas.fill(rect(x - 1, height * 0.56, x + 30, height * 0.74), seat)
        canvas.fill(rect(x - 1, height * 0.56, x + 30, height * 0.585), lighter(seat, 0.4))
    for x in (16, 52, 86):
        canvas.line(
            [(x, height * 0.06), (x, floor)], 1.5, _any(rng, ((206, 208, 214), (232, 196, 80)))
        )
    for x in np.arange(6, 100, 13.0):
        canvas.line([(x, height * 0.08), (x, height * 0.17)], 0.9, (60, 62, 70))
        canvas.fill(oval(x, height * 0.19, 2.4, 2.4), (226, 226, 222))


def _lift(canvas: Canvas, rng: Rng, height: float) -> None:
    steel = _any(rng, ((150, 154, 160), (186, 168, 130), (108, 112, 122)))
    canvas.fill(rect(0, 0, 100, height), steel)
    canvas.texture("grain", lighter(steel, 0.5), 0.5, 1.5)
    for x in (0, 25, 50, 75):
        canvas.fill(rect(x + 1, 2, x + 6, height), lighter(steel, 0.5), 0.4)
        canvas.line([(x, 0), (x, height)], 0.7, darker(steel, 0.6))
    canvas.line([(0, height * 0.62), (100, height * 0.62)], 2.6, lighter(steel, 0.6))
    canvas.line([(0, height * 0.635), (100, height * 0.635)], 0.8, darker(steel, 0.6))
    for x in (22, 50, 78):
        canvas.oval(x, 3, 7, 3, (255, 250, 232))
        canvas.oval(x, 6, 16, 10, (255, 250, 232), 0.2)
    canvas.fill(rect(86, height * 0.34, 93, height * 0.56), darker(steel, 0.4))
    for i in range(8):
        canvas.oval(88 + 3 * (i % 2), height * 0.37 + 4 * (i // 2), 1, 1, (250, 214, 120))


def _night(canvas: Canvas, rng: Rng, height: float) -> None:
    base = _any(rng, ((30, 34, 62), (52, 34, 66), (26, 44, 58)))
    canvas.fill(rect(0, 0, 100, height), base)
    canvas.gradient((0, 0), (0, height * 0.7), lighter(base, 0.3), 0.6)
    for _ in range(9):
        x, w, top = rng.uniform(-5, 95), rng.uniform(8, 18), rng.uniform(0.2, 0.6) * height
        canvas.fill(rect(x, top, x + w, height), darker(base, 0.45))
        for _ in range(10):
            wx, wy = rng.uniform(x + 1, x + w - 2), rng.uniform(top + 2, height * 0.85)
            canvas.fill(rect(wx, wy, wx + 1.4, wy + 2), (250, 214, 140), 0.9)
    for _ in range(26):
        r = float(rng.uniform(1.2, 4.6))
        canvas.oval(
            rng.uniform(0, 100),
            rng.uniform(0.25, 0.95) * height,
            r,
            r,
            _any(rng, ((250, 200, 120), (240, 110, 120), (120, 190, 240), (250, 240, 220))),
            0.4,
        )


SCENES: dict[str, tuple[str, Callable[[Canvas, Rng, float], None]]] = {
    "park": ("in a park", _park),
    "street": ("on a street lined with shops", _street),
    "cafe": ("in a café", _cafe),
    "bedroom": ("in a bedroom", _bedroom),
    "bathroom": ("in a bathroom", _bathroom),
    "gym": ("in a gym", _gym),
    "office": ("in an office", _office),
    "beach": ("at the beach", _beach),
    "studio": ("in front of a studio wall", _studio),
    "library": ("in a library", _library),
    "subway": ("on the subway", _subway),
    "lift": ("in a lift", _lift),
    "night": ("in the city at night", _night),
}
MIRROR_SCENES = ("bathroom", "bedroom", "gym", "lift", "office")


def draw_scene(canvas: Canvas, name: str, rng: Rng, height: float) -> None:
    """Draws a place; the same place looks different each time."""
    SCENES[name][1](canvas, rng, height)


def draw_mirror_frame(canvas: Canvas, rng: Rng, height: float) -> None:
    """Draws reflections and the frame of the mirror a picture was taken in."""
    for x in rng.uniform(-10, 90, 2):
        w = float(rng.uniform(5, 14))
        canvas.fill(
            [(x, height), (x + 40, 0), (x + 40 + w, 0), (x + w, height)], (255, 255, 255), 0.07
        )
    frame = _any(rng, _WOODS + _VIVID + ((206, 208, 212), (40, 40, 46)))
    inset, width = float(rng.uniform(0.5, 3.5)), float(rng.uniform(2.0, 4.0))
    inner = rect(inset + width, inset + width, 100 - inset - width, height + 10)
    outer = rect(inset, inset, 100 - inset, height + 10)
    wall = _any(rng, _WALLS)
    for border, colour in ((outer, wall), (inner, frame)):
        (x0, y0), (x1, y1) = border[0], border[2]
        edge = 0.0 if border is outer else inset
        canvas.fill(rect(edge, edge, x0, y1), colour)
        canvas.fill(rect(x1, edge, 100 - edge, y1), colour)
        canvas.fill(rect(edge, edge, 100 - edge, y0), colour)
    (x0, y0), (x1, _) = inner[0], inner[2]
    canvas.line([(x0, height), (x0, y0), (x1, y0)], 0.6, darker(frame, 0.6), 0.8)
    canvas.line(
        [(inset, height), (inset, inset), (100 - inset, inset)], 0.5, lighter(frame, 0.6), 0.8
    )
