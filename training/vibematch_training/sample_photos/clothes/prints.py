"""Draws the big graphics on hoodies and tees."""

from __future__ import annotations

from vibematch_training.sample_photos.canvas import Canvas, Colour, mix, oval, rect
from vibematch_training.sample_photos.clothes.cloth import trim_colour
from vibematch_training.sample_photos.clothes.tailoring import broken_line
from vibematch_training.sample_photos.wardrobe import Garment


def draw_print(layer: Canvas, garment: Garment) -> None:
    """Draws a big graphic around the origin; the garment's motif says which."""
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
        for i in range(count):
            colour = first if (i + row) % 3 else second
            letter = layer.moved(-11 + i * 22 / count, y)
            _letter(letter, 22 / count, (i * 7 + row * 3) % 4, colour)
    layer.fill(rect(-11, 8, 11, 9.6), second)


def _letter(layer: Canvas, width: float, shape: int, colour: Colour) -> None:
    layer.line(broken_line((1, 0), (1, 6.2), steps=2), 1.7, colour)
    if shape != 1:
        layer.line(broken_line((0.4, 0.5), (width - 0.9, 0.5), steps=2), 1.6, colour)
    if shape != 0:
        layer.line(broken_line((0.4, 5.8), (width - 0.9, 5.8), steps=2), 1.6, colour)
    if shape in (0, 3):
        layer.line(broken_line((0.4, 3), (width - 1.2, 3), steps=2), 1.5, colour)
    if shape in (1, 2):
        layer.line(broken_line((width - 1.4, 0), (width - 1.4, 6), steps=2), 1.5, colour)


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
