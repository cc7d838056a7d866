"""Photo bytes → pixels: the one implementation that training, export and serving share.

What changes a pixel is part of the model's fingerprint (:class:`Preprocessing` without its caps,
plus :data:`REVISION`): bump the revision whenever the output of :func:`preprocess` can change.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile

from vibematch.errors import InputError, PhotoError
from vibematch.photo_bytes import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_PROFILE_BYTES,
    OpenedPhoto,
    damaged,
    open_photo,
)

REVISION: Final = 2
PATCH_MULTIPLE: Final = 32
"""Canvas sides are a multiple of this: Qwen3-VL merges 2x2 patches of 16 pixels into one token."""

OVERSIZE: Final = 1.5
"""A large photo may be decoded smaller, but not below this multiple of its size on the canvas.

The pixels then differ from those of a full decode by at most 2 of 255 on average and 25 at worst
where photographs have full detail; at the sharpness of phones by 0.7 and 14.
"""

_CACHED_PROFILE_BYTES: Final = 64 * 2**10
"""Cameras' profiles have some 500 bytes. Those of presses are rare, and their tables large."""

Fit = Literal["cover", "contain"]

_Box = tuple[float, float, float, float]

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS: Final = {5, 6, 7, 8}
_GREY: Final = (128, 128, 128)
_COLOUR_SPACES: Final = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes pixels.

    Attributes:
        height: canvas height in pixels, a multiple of 32.
        width: canvas width in pixels, a multiple of 32.
        fit: ``cover`` scales until the canvas is full and crops the centre; ``contain`` scales
            until the whole photo is inside and pads with mid-grey.
        max_bytes: larger photo files are refused.
        max_pixels: photos of more pixels are refused before decoding.

    Raises:
        InputError: on construction, if a value is out of range.
    """

    height: int
    width: int
    fit: Fit = "cover"
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if side <= 0 or side % PATCH_MULTIPLE:
                raise InputError(
                    f"canvas {name} must be a positive multiple of {PATCH_MULTIPLE}, got {side}"
                )
        if self.fit not in get_args(Fit):
            raise InputError(f"fit must be one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        if self.max_bytes <= 0 or self.max_pixels <= 0:
            raise InputError("max_bytes and max_pixels must be positive")


def preprocess(photo: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode one photo, turn it upright, fit it to the canvas and convert its colours to sRGB.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the canvas needs no more
    (:data:`OVERSIZE`).

    Args:
        photo: the bytes of a JPEG, PNG or WebP file (of an animation, the first frame counts).
        preprocessing: canvas, fit rule and caps.

    Returns:
        RGB pixels, uint8, shape ``[3, height, width]``.

    Raises:
        PhotoError: the bytes are no such photo, are damaged, or exceed a cap.
    """
    return fit(open_photo(photo, preprocessing.max_bytes, preprocessing.max_pixels), preprocessing)


def fit(opened: OpenedPhoto, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The second half of :func:`preprocess`: decode a photo that is open, once, and fit it.

    Returns:
        RGB pixels, uint8, shape ``[3, height, width]``.

    Raises:
        PhotoError: the photo is damaged, or too narrow for the canvas.
    """
    canvas = (preprocessing.width, preprocessing.height)
    sideways = opened.orientation in _SIDEWAYS
    box, size = _placement(
        opened.image.size, canvas[::-1] if sideways else canvas, preprocessing.fit
    )
    box = _draft(opened.image, box, size)
    fitted = _flat(opened.image).resize(
        size, Image.Resampling.BICUBIC, box=box, reducing_gap=OVERSIZE
    )
    upright = _turned(_to_srgb(fitted, opened.profile), opened.orientation)
    return np.ascontiguousarray(np.asarray(_padded(upright, canvas)).transpose(2, 0, 1))


def decode(photo: bytes, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one photo to an upright sRGB image of its own size.

    Args:
        photo: the bytes of a JPEG, PNG or WebP file.
        max_bytes: larger photo files are refused.
        max_pixels: photos of more pixels are refused before decoding.

    Raises:
        PhotoError: the bytes are no such photo, are damaged, or exceed a cap.
    """
    opened = open_photo(photo, max_bytes, max_pixels)
    return _turned(_to_srgb(_flat(opened.image), opened.profile), opened.orientation)


def _placement(
    size: tuple[int, int], canvas: tuple[int, int], fit: Fit
) -> tuple[_Box, tuple[int, int]]:
    """Which box of a photo is used, and how large it becomes, both as the camera stored it."""
    width, height = size
    scales = canvas[0] / width, canvas[1] / height
    if fit == "cover":
        used = min(width, canvas[0] / max(scales)), min(height, canvas[1] / max(scales))
        left, top = (width - used[0]) / 2, (height - used[1]) / 2
        return (left, top, left + used[0], top + used[1]), canvas
    if min(scales) * min(size) < 1:  # scaled to nothing, only padding would be left
        raise PhotoError(f"the photo is too narrow ({width} x {height} pixels)", code="too_narrow")
    return (0, 0, width, height), (round(width * min(scales)), round(height * min(scales)))


def _draft(image: ImageFile.ImageFile, box: _Box, size: tuple[int, int]) -> _Box:
    """Have a JPEG decoded at a fraction of its size if that is enough; ``box`` in what results."""
    enough = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) / OVERSIZE
    fraction = next((fraction for fraction in (8, 4, 2) if fraction <= enough), 1)
    if image.format != "JPEG" or fraction == 1:
        return box
    image.draft(None, (image.width // fraction, image.height // fraction))
    return (box[0] / fraction, box[1] / fraction, box[2] / fraction, box[3] / fraction)


def _flat(image: Image.Image) -> Image.Image:
    """The decoded pixels as opaque 8-bit ``L``, ``RGB`` or ``CMYK``; white behind transparency."""
    try:
        image.load()
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow clips instead of scaling
            image = _high_bytes(image)
        if image.has_transparency_data:
            return _on_white(image)
        if image.mode in _COLOUR_SPACES:
            return image
        return image.convert("L" if image.mode == "1" else "RGB")
    except Exception as error:
        raise damaged(error) from error


def _high_bytes(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    grey = Image.fromarray((samples >> 8).astype(np.uint8))
    if "transparency" in image.info:
        opaque = samples != image.info["transparency"]
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    mode = "L" if image.mode in {"1", "L", "LA"} else "RGB"
    if image.mode != f"{mode}A":
        image = image.convert(f"{mode}A")
    white = Image.new(mode, image.size, "white")
    white.paste(image, mask=image)
    return white


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _padded(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    if image.size == canvas:
        return image
    padded = Image.new("RGB", canvas, _GREY)
    margins = canvas[0] - image.width, canvas[1] - image.height
    padded.paste(image, (round(margins[0] / 2), round(margins[1] / 2)))
    return padded


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """``L``, ``RGB`` or ``CMYK`` → sRGB by the photo's own colour profile, if it is of use."""
    if 0 < len(profile) <= MAX_PROFILE_BYTES:
        small = image.mode != "CMYK" and len(profile) <= _CACHED_PROFILE_BYTES
        transform = (_cached_transform if small else _transform)(profile, image.mode)
        if transform is not None:
            return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; ``None`` if that changes nothing, or the profile is unusable.

    Relative colorimetric: colours that sRGB has stay exact, the others go to its border. With
    black point compensation, so that dark ink stays black.
    """
    # A broken profile must not cost a person an otherwise good photo.
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _COLOUR_SPACES[mode]:
            return None
        transform = ImageCms.ImageCmsTransform(
            source,
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if _changes_nothing(transform, mode) else transform
    except Exception:
        return None


_cached_transform: Final = lru_cache(maxsize=16)(_transform)


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether no colour moves by more than rounding does: there are many profiles of sRGB."""
    if mode == "CMYK":
        return False
    levels = np.arange(256, dtype=np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None])
    else:
        grid = np.stack(np.meshgrid(*[levels[::15]] * 3, indexing="ij"), axis=-1)
        probe = Image.fromarray(grid.reshape(1, -1, 3))
    before = np.asarray(probe.convert("RGB"), np.int16)
    return bool(np.abs(np.asarray(transform.apply(probe), np.int16) - before).max() <= 2)
