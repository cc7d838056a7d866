"""A small supersampled drawing surface: smooth outlines, clipping, textures and gradients.

Everything is drawn with Pillow's fast scanline polygons on an oversized image that the camera
later scales down, which antialiases every edge. Points are in the units of the current
transform, so the same drawing code serves a close-up and a full-length picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vibematch_training.sample_photos.textures import SHEET_PIXELS_PER_UNIT, sheet

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point] | npt.NDArray[np.float64]
Outline = npt.NDArray[np.float64]
Widths = float | Sequence[float] | npt.NDArray[np.float64]

_CURVE_STEPS = 7
# The inner points of a half circle, from left to right of a line that runs along 1.
_CAP = np.exp(1j * np.linspace(np.pi / 2, -np.pi / 2, 9)[1:-1])


@lru_cache(maxsize=4096)
def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Returns the colour `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float = 0.25) -> Colour:
    """Returns a deeper, slightly cooler version of a colour."""
    return mix(colour, (14, 10, 26), share)


def lighter(colour: Colour, share: float = 0.25) -> Colour:
    """Returns a paler, slightly warmer version of a colour."""
    return mix(colour, (255, 250, 242), share)


def luminance(colour: Colour) -> float:
    """Returns the perceived brightness of a colour, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def contrast(colour: Colour, share: float = 0.35) -> Colour:
    """Returns a version of the colour that shows on it: paler on dark, deeper on light."""
    return lighter(colour, share) if luminance(colour) < 95 else darker(colour, share)


@lru_cache(maxsize=128)
def _spline(count: int, closed: bool) -> npt.NDArray[np.float64]:
    """The matrix that turns so many knots into a dense Catmull-Rom curve through them."""
    knots = np.eye(count)
    if closed:
        padded = np.vstack([knots[-1:], knots, knots[:2]])
    else:
        padded = np.vstack([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.arange(_CURVE_STEPS)[:, None] / _CURVE_STEPS
    catmull_rom = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    basis = np.hstack([t**0, t, t**2, t**3]) @ catmull_rom
    windows = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)])
    curve = np.einsum("sk,knd->nsd", basis, windows).reshape(-1, count)
    return curve if closed else np.vstack([curve, knots[-1:]])


def smooth(points: Points, closed: bool = False) -> Outline:
    """Returns a dense smooth curve (a Catmull-Rom spline) through the points."""
    knots = np.asarray(points, dtype=np.float64)
    curve: Outline = _spline(len(knots), closed) @ knots
    return curve


def blob(points: Points) -> Outline:
    """Returns a smooth closed outline through the points."""
    return smooth(points, closed=True)


def mirrored(points: Points) -> Outline:
    """Returns the points reflected in the vertical axis and reversed, to close a half shape."""
    return np.asarray(points, dtype=np.float64)[::-1] * (-1.0, 1.0)


def on_side(side: int, points: Points) -> Outline:
    """Returns points given for the right side (1), reflected if they are for the left (-1)."""
    placed: Outline = np.asarray(points, dtype=np.float64) * (side, 1)
    return placed


def shift(points: Points, dx: float, dy: float) -> Outline:
    """Returns the points moved by (dx, dy)."""
    moved: Outline = np.asarray(points, dtype=np.float64) + np.array([dx, dy])
    return moved


def symmetric(half: Points) -> Outline:
    """Returns the closed outline made of a half shape and its reflection."""
    return np.vstack([np.asarray(half, dtype=np.float64), mirrored(half)])


@lru_cache(maxsize=8)
def _unit_circle(steps: int) -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def oval(x: float, y: float, rx: float, ry: float, angle: float = 0.0, steps: int = 28) -> Outline:
    """Returns an ellipse outline; `angle` in degrees."""
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    stretch = np.array([(rx * cos, rx * sin), (-ry * sin, ry * cos)])
    outline: Outline = _unit_circle(steps) @ stretch + (x, y)
    return outline


def rect(x0: float, y0: float, x1: float, y1: float) -> Outline:
    """Returns a rectangle outline."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


@lru_cache(maxsize=1024)
def _radii(widths: tuple[float, ...], count: int) -> npt.NDArray[np.float64]:
    """Spreads the widths of a band evenly over so many points; returns half of each."""
    at = np.linspace(0, 1, count) * (len(widths) - 1)
    return np.interp(at, np.arange(len(widths)), np.array(widths) / 2)


def ribbon(points: Points, widths: Widths, caps: bool = False) -> Outline:
    """Returns the outline of a band of varying width along a line, for limbs and strokes."""
    # Points as complex numbers: a quarter turn is then a multiplication by i.
    line = np.ascontiguousarray(points, dtype=np.float64).view(np.complex128)[:, 0]
    if isinstance(widths, int | float):
        widths = (widths, widths)
    radius = _radii(tuple(widths), len(line))
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    along /= np.maximum(np.abs(along), 1e-6)
    offset = along * 1j * radius
    parts = [line + offset, (line - offset)[::-1]]
    if caps:
        parts.insert(1, line[-1] + radius[-1] * along[-1] * _CAP)
        parts.append(line[0] - radius[0] * along[0] * _CAP)
    return np.concatenate(parts).view(np.float64).reshape(-1, 2)


@lru_cache(maxsize=256)
def _fading(alpha: float) -> list[int]:
    return [round(level * alpha) for level in range(256)]


@lru_cache(maxsize=256)
def _ramp(alpha: float) -> Image.Image:
    """A gradient image clamped far on both sides: 0 ... 0, 0 to `alpha`, `alpha` ... `alpha`."""
    values = np.clip(np.arange(256 * 17) - 256 * 8, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(values[:, None], 4, axis=1)).point(_fading(alpha))


def paint(image: Image.Image, colour: Colour, mask: Image.Image) -> None:
    """Mixes a colour into a picture where a mask of the same size says so."""
    # Pillow pastes a plain image through a mask in half the time of a plain colour.
    box = mask.getbbox()
    if box:
        small = mask.crop(box)
        image.paste(Image.new("RGB", small.size, colour), box, small)


class Canvas:
    """An image together with the transform from drawing units to its pixels."""

    def __init__(self, image: Image.Image, matrix: npt.NDArray[np.float64]) -> None:
        """Wraps an RGB image; `matrix` is the 2x3 map from drawing units to pixels."""
        self.image = image
        self.matrix = matrix
        self._linear, self._offset = matrix[:, :2].T, matrix[:, 2]
        self._draw = ImageDraw.Draw(image, "RGBA")

    @classmethod
    def scaled(cls, image: Image.Image, scale: float) -> Canvas:
        """Wraps an image with `scale` pixels per drawing unit and its origin at the top left."""
        return cls(image, np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]))

    def moved(
        self, x: float = 0, y: float = 0, scale: float = 1, angle: float = 0, flip: bool = False
    ) -> Canvas:
        """Returns a view of the same image whose origin is at (x, y), scaled and turned."""
        turn = math.radians(angle)
        cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
        side = -1.0 if flip else 1.0
        inner = np.array([[cos * side, -sin, x], [sin * side, cos, y], [0, 0, 1]])
        return Canvas(self.image, self.matrix @ inner)

    @property
    def scale(self) -> float:
        """Pixels per drawing unit."""
        return math.hypot(self.matrix[0, 0], self.matrix[1, 0])

    def fill(self, points: Points, colour: Colour, alpha: float = 1.0) -> None:
        """Fills a closed outline."""
        pixels = self._pixels(points)
        self._draw.polygon(pixels.ravel().tolist(), fill=(*colour, round(255 * alpha)))

    def line(self, points: Points, width: Widths, colour: Colour, alpha: float = 1.0) -> None:
        """Strokes a line of constant or tapering width."""
        self.fill(ribbon(points, width), colour, alpha)

    def outline(self, points: Outline, width: Widths, colour: Colour, alpha: float = 1.0) -> None:
        """Strokes a closed outline."""
        self.line(np.vstack([points, points[:1]]), width, colour, alpha)

    def curve(self, points: Points, width: Widths, colour: Colour, alpha: float = 1.0) -> None:
        """Strokes a smooth curve through the points."""
        self.line(smooth(points), width, colour, alpha)

    def oval(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """Fills an upright ellipse."""
        self.fill(oval(x, y, rx, ry), colour, alpha)

    @contextmanager
    def clipped(self, *outlines: Points) -> Iterator[Canvas]:
        """Yields a canvas whose drawing only shows inside the union of the outlines."""
        polygons = [self._pixels(points) for points in outlines]
        everything = np.vstack(polygons)
        low = np.floor(np.clip(everything.min(axis=0), 0, self.image.size)).astype(int)
        high = np.ceil(np.clip(everything.max(axis=0) + 1, 0, self.image.size)).astype(int)
        box = (int(low[0]), int(low[1]), int(max(high[0], low[0])), int(max(high[1], low[1])))
        layer = self.image.crop(box)
        shifted = self.matrix.copy()
        shifted[:, 2] -= low
        yield Canvas(layer, shifted)
        if layer.width == 0 or layer.height == 0:
            return
        mask = Image.new("1", layer.size)
        pen = ImageDraw.Draw(mask)
        for polygon in polygons:
            pen.polygon((polygon - low).ravel().tolist(), fill=1)
        self.image.paste(layer, box, mask)

    def flood(self, colour: Colour, alpha: float = 1.0) -> None:
        """Covers the whole canvas (of a clip: the whole outline)."""
        if alpha == 1:
            self.image.paste(colour, (0, 0, *self.image.size))
        else:
            self._draw.rectangle((0, 0, *self.image.size), fill=(*colour, round(255 * alpha)))

    def texture(
        self, name: str, colour: Colour, alpha: float = 1.0, size: float = 1, angle: float = 0
    ) -> None:
        """Prints a repeating texture in one colour, aligned with the drawing."""
        if 0 in self.image.size:
            return
        ink = sheet(name)
        pixels_per_unit = SHEET_PIXELS_PER_UNIT / size
        turn = math.radians(angle)
        cos, sin = math.cos(turn) * pixels_per_unit, math.sin(turn) * pixels_per_unit
        (a, b), (c, d) = self.matrix[:, :2]
        inverse = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
        to_sheet = np.array([[cos, sin], [-sin, cos]]) @ inverse
        middle = np.array([self.image.width / 2, self.image.height / 2])
        # Anchor to the drawing (so that clips agree), then slide by whole sheets' worth of tiles
        # so that the area asked for is near the middle of the sheet.
        anchor = -to_sheet @ self.matrix[:, 2]
        wanted = np.array(ink.size) / 2 - to_sheet @ middle
        tile = 64 * SHEET_PIXELS_PER_UNIT
        anchor += np.round((wanted - anchor) / tile) * tile
        coefficients = (*to_sheet[0], anchor[0], *to_sheet[1], anchor[1])
        magnified = self.scale > 0.8 * pixels_per_unit
        mask = ink.transform(
            self.image.size,
            Image.Transform.AFFINE,
            coefficients,
            Image.Resampling.BILINEAR if magnified else Image.Resampling.NEAREST,
        )
        if alpha < 1:
            mask = mask.point(_fading(round(alpha, 3)))
        paint(self.image, colour, mask)

    def gradient(self, start: Point, end: Point, colour: Colour, alpha: float = 1.0) -> None:
        """Lays a colour over the canvas, from clear at `start` to `alpha` at `end`."""
        if 0 in self.image.size:
            return
        first, last = self._pixels([start, end])
        axis = last - first
        axis = axis / max(float(axis @ axis), 1e-6) * 255
        coefficients = (0, 0, 1, axis[0], axis[1], 256 * 8 - float(axis @ first))
        ramp = _ramp(round(alpha, 3))
        mask = ramp.transform(self.image.size, Image.Transform.AFFINE, coefficients)
        paint(self.image, colour, mask)

    def _pixels(self, points: Points) -> Outline:
        flat = np.asarray(points, dtype=np.float64)
        pixels: Outline = flat @ self._linear + self._offset
        return pixels
