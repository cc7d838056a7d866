"""What a phone camera does to a scene: light, colour cast, focus, grain, JPEG and orientation."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from vibematch_training.sample_photos.canvas import Colour, paint

_ORIENTATION_TAG = 0x0112
# How stored pixels must be turned so that a reader that honours the tag shows them upright.
_STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_ORIENTATIONS = (1, 6, 3, 8, 2, 4, 5, 7)
_ORIENTATION_ODDS = (0.76, 0.1, 0.04, 0.05, 0.0125, 0.0125, 0.0125, 0.0125)
_NOISE_SIZE = 1100


@cache
def _noise() -> npt.NDArray[np.int16]:
    """A fixed field of film grain, alike in all three channels; each photo shows a part of it."""
    grey = np.random.default_rng(20240229).standard_normal((_NOISE_SIZE, _NOISE_SIZE))
    return np.repeat(np.round(grey * 16).astype(np.int16), 3, axis=1)


@cache
def _vignette() -> Image.Image:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    return Image.fromarray((np.clip(np.hypot(x, y) - 0.55, 0, 1) * 255).astype(np.uint8))


@cache
def _side_light(side: float) -> Image.Image:
    """One row of pixels that brightens towards a side."""
    ramp = Image.linear_gradient("L").rotate(90 if side < 0 else 270).reduce(4)
    return ramp.crop((0, 0, ramp.width, 1))


def _tint(image: Image.Image, colour: Colour, mask: Image.Image, share: float) -> None:
    """Mixes a share of a colour into the picture where a small mask says so."""
    faded = mask.point([round(level * share) for level in range(256)])
    if faded.height == 1:  # repeating one row is cheaper than smoothing between equal rows
        faded = faded.resize((image.width, 1), Image.Resampling.BILINEAR)
        paint(image, colour, faded.resize(image.size, Image.Resampling.NEAREST))
    else:
        paint(image, colour, faded.resize(image.size, Image.Resampling.BILINEAR))


def _light(image: Image.Image, rng: np.random.Generator, side: float) -> None:
    """Adds a soft light from one side and darker corners, in place."""
    warm = (255, 214, 160) if rng.random() < 0.6 else (190, 214, 255)
    _tint(image, warm, _side_light(side), float(rng.uniform(0.05, 0.25)))
    _tint(image, (8, 6, 14), _vignette(), float(rng.uniform(0.05, 0.3)))


def _develop(image: Image.Image, rng: np.random.Generator, dark: float) -> Image.Image:
    """Applies exposure, contrast and white balance through one lookup table per channel."""
    exposure = float(rng.normal(1.05, 0.06)) * dark
    contrast = float(rng.uniform(0.88, 1.16))
    lift = float(rng.uniform(0, 18))
    warmth, tint = float(rng.normal(0, 0.04)), float(rng.normal(0, 0.03))
    gains = (1 + warmth, 1 + tint, 1 - warmth)
    levels = np.arange(256)
    table = [
        ((levels * gain * exposure - 128) * contrast + 128) + lift * (1 - levels / 255)
        for gain in gains
    ]
    return image.point(np.rint(np.clip(table, 0, 255)).astype(int).ravel().tolist())


def _grain(image: Image.Image, rng: np.random.Generator, amount: float) -> Image.Image:
    x, y = (int(rng.integers(0, _NOISE_SIZE - side + 1)) for side in image.size)
    pixels = np.asarray(image)
    rows = pixels.reshape(image.height, -1)
    grain = _noise()[y : y + image.height, 3 * x : 3 * (x + image.width)] * round(amount * 16) >> 8
    return Image.fromarray(np.clip(grain + rows, 0, 255).astype(np.uint8).reshape(pixels.shape))


def take(
    scene: Image.Image, size: tuple[int, int], side: float, quality: str, rng: np.random.Generator
) -> bytes:
    """Turns a drawn scene into the JPEG bytes of a photo of the given visual quality."""
    if quality == "Low":
        size = (round(size[0] * 0.55), round(size[1] * 0.55))
    image = scene.resize(size, Image.Resampling.BILINEAR)
    _light(image, rng, side)
    # Every quality draws the same random numbers, so that what follows does not depend on it.
    dark = {
        "High": 1.0,
        "Medium": float(rng.uniform(0.9, 1.05)),
        "Low": float(rng.uniform(0.4, 0.9)),
    }
    image = _develop(image, rng, dark[quality])
    blur = {
        "High": 0.0,
        "Medium": float(rng.uniform(0.2, 0.7)),
        "Low": float(rng.uniform(1.0, 2.6)),
    }
    if blur[quality]:
        image = image.filter(ImageFilter.BoxBlur(blur[quality] * image.width / 480))
    amount = {
        "High": float(rng.uniform(0.5, 2)),
        "Medium": float(rng.uniform(1.5, 3.5)),
        "Low": float(rng.uniform(6, 14)),
    }
    image = _grain(image, rng, amount[quality])
    compression = int(rng.integers(80, 95)) if quality != "Low" else int(rng.integers(45, 75))
    orientation = int(rng.choice(_ORIENTATIONS, p=_ORIENTATION_ODDS))
    return encode(image, compression, orientation)


def encode(image: Image.Image, compression: int, orientation: int) -> bytes:
    """Returns an upright picture as JPEG bytes, stored turned as its orientation tag says."""
    buffer = io.BytesIO()
    if orientation == 1:
        image.save(buffer, "JPEG", quality=compression)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    stored = image.transpose(_STORED_AS[orientation])
    stored.save(buffer, "JPEG", quality=compression, exif=exif)
    return buffer.getvalue()
