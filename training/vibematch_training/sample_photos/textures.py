"""Procedural cloth textures, as repeating masks of "where the second colour shows".

Each texture is a 64 x 64 unit tile that repeats seamlessly; one unit is about a centimetre on
the figure.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

SHEET_PIXELS_PER_UNIT = 8
_UNITS = 64
_REPEATS = 4
_SIZE = _UNITS * SHEET_PIXELS_PER_UNIT

Field = npt.NDArray[np.float64]


def _wave(field: Field) -> Field:
    return np.asarray(0.5 + 0.5 * np.cos(2 * np.pi * field))


def _noise(sigma: tuple[float, float], seed: int) -> Field:
    """Seamless smooth noise, equalised to 0..1; sigma is (down, across) in units."""
    raw = np.random.default_rng(seed).standard_normal((_SIZE, _SIZE))
    scaled = [value * SHEET_PIXELS_PER_UNIT for value in sigma]
    soft = ndimage.gaussian_filter(raw, scaled, mode="wrap")
    return np.asarray(np.clip(0.5 + soft / (4 * soft.std()), 0, 1))


def _band(field: Field, share: float) -> Field:
    """1 where the fractional part of the field is below `share`."""
    return (np.mod(field, 1) < share).astype(np.float64)


def _rib(x: Field, y: Field) -> Field:
    return np.asarray(_wave(x / 2) ** 1.5)


def _wide_rib(x: Field, y: Field) -> Field:
    return np.asarray(_wave(x / 4) ** 2)


def _knit(x: Field, y: Field) -> Field:
    column = np.mod(x / 4, 1)
    chevron = np.abs(column - 0.5)
    return np.clip(_wave(y / 3.2 + chevron * 1.3) ** 1.5 + (_wave(x / 4) > 0.9), 0, 1)


def _cable(x: Field, y: Field) -> Field:
    column = np.mod(x / 16, 1)
    twist = np.abs(np.mod(y / 8 + np.sin(2 * np.pi * column) * 0.35, 1) - 0.5) * 2
    rope = np.where(column < 0.5, twist**2, 0.8 * _wave(x / 2))
    return np.clip(rope, 0, 1)


def _denim(x: Field, y: Field) -> Field:
    twill = _wave((x + y) / 1.0)
    fade = 0.75 * _noise((3, 0.12), 3) + 0.4 * _noise((4, 4), 4)
    return np.asarray(np.clip(0.45 * twill + fade - 0.4, 0, 1))


def _heather(x: Field, y: Field) -> Field:
    return np.clip(2.2 * _noise((0.15, 0.9), 5) - 0.85, 0, 1)


def _weave(x: Field, y: Field) -> Field:
    return np.clip(_band(x / 1, 0.5) * 0.6 + _band(y / 1, 0.5) * 0.6, 0, 1)


def _fleece(x: Field, y: Field) -> Field:
    return np.clip(2 * _noise((0.2, 0.2), 6) - 0.7, 0, 1)


def _plaid(x: Field, y: Field) -> Field:
    twill = 0.75 + 0.25 * _band((x + y) / 1, 0.5)
    wide = 0.45 * _band(x / 16, 0.4) + 0.45 * _band(y / 16, 0.4)
    thin = 0.4 * _band(x / 16 + 0.33, 0.07) + 0.4 * _band(y / 16 + 0.33, 0.07)
    return np.clip((wide + thin) * twill, 0, 1)


def _mesh(x: Field, y: Field) -> Field:
    row = np.floor(y / 2)
    dx = np.mod(x / 2 + 0.5 * np.mod(row, 2), 1) - 0.5
    dy = np.mod(y / 2, 1) - 0.5
    return np.clip(4.5 - 12 * np.hypot(dx, dy), 0, 1)


def _pinstripe(x: Field, y: Field) -> Field:
    return _band(x / 4, 0.22) * (0.7 + 0.3 * _band(y, 0.6))


def _herringbone(x: Field, y: Field) -> Field:
    zigzag = np.abs(np.mod(x / 8, 1) - 0.5) * 8
    return np.asarray(_band((y + zigzag) / 2, 0.45) * (np.abs(np.mod(x / 4, 1) - 0.5) < 0.46))


def _houndstooth(x: Field, y: Field) -> Field:
    across, down = _band(x / 4, 0.5), _band(y / 4, 0.5)
    diagonal = _band((x + y) / 2, 0.5)
    return np.where(across == down, across, diagonal)


def _lace(x: Field, y: Field) -> Field:
    flower = np.zeros_like(x)
    for cx, cy in ((4, 4), (8, 8)):
        dx, dy = np.mod(x - cx + 4, 8) - 4, np.mod(y - cy + 4, 8) - 4
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        petals = 2.3 + 1.1 * np.cos(6 * angle)
        flower = np.maximum(flower, (np.abs(radius - petals) < 0.45).astype(float))
        flower = np.maximum(flower, (radius < 0.6).astype(float))
    net = np.maximum(_wave((x + y) / 2) ** 8, _wave((x - y) / 2) ** 8) * 0.6
    return np.maximum(flower, net)


def _gloss(x: Field, y: Field) -> Field:
    return np.clip((_noise((5, 1.6), 9) - 0.62) * 9, 0, 1)


def _satin(x: Field, y: Field) -> Field:
    return np.asarray(_noise((7, 1.8), 10) ** 1.5)


def _breton(x: Field, y: Field) -> Field:
    return _band(y / 4, 0.42)


def _dots(x: Field, y: Field) -> Field:
    row = np.floor(y / 4)
    dx = np.mod(x / 4 + 0.5 * np.mod(row, 2), 1) - 0.5
    dy = np.mod(y / 4, 1) - 0.5
    return (np.hypot(dx, dy) < 0.22).astype(np.float64)


def _regimental(x: Field, y: Field) -> Field:
    return _band((x + y) / 4, 0.4)


def _camouflage(x: Field, y: Field) -> Field:
    return (_noise((1.8, 2.6), 11) > 0.55) * 1.0 + (_noise((1.8, 2.6), 12) > 0.66) * 0.5


def _grain(x: Field, y: Field) -> Field:
    return np.clip(3 * _noise((0.5, 6), 13) - 1.2, 0, 1)


def _leaves(x: Field, y: Field) -> Field:
    return (_noise((0.9, 0.9), 14) > 0.56).astype(np.float64)


def _speckle(x: Field, y: Field) -> Field:
    return (_noise((0.35, 0.35), 15) > 0.68).astype(np.float64)


_TEXTURES: dict[str, Callable[[Field, Field], Field]] = {
    "rib": _rib,
    "wide_rib": _wide_rib,
    "knit": _knit,
    "cable": _cable,
    "denim": _denim,
    "heather": _heather,
    "weave": _weave,
    "fleece": _fleece,
    "plaid": _plaid,
    "mesh": _mesh,
    "pinstripe": _pinstripe,
    "herringbone": _herringbone,
    "houndstooth": _houndstooth,
    "lace": _lace,
    "gloss": _gloss,
    "satin": _satin,
    "breton": _breton,
    "dots": _dots,
    "regimental": _regimental,
    "camouflage": _camouflage,
    "grain": _grain,
    "leaves": _leaves,
    "speckle": _speckle,
}


@cache
def sheet(name: str) -> Image.Image:
    """Returns a large grey image of the texture, 255 where its colour shows fully."""
    axis = (np.arange(_SIZE) + 0.5) / SHEET_PIXELS_PER_UNIT
    # A row and a column, so that a texture that changes in one direction only stays one line.
    field = _TEXTURES[name](axis[None, :], axis[:, None])
    tile = np.broadcast_to((255 * np.clip(field, 0, 1)).astype(np.uint8), (_SIZE, _SIZE))
    return Image.fromarray(np.tile(tile, (_REPEATS, _REPEATS)))
