"""Photo bytes → pixels: the one implementation that training, export and serving share.

What changes a pixel is part of the model's fingerprint (:class:`Preprocessing` without its caps,
plus :data:`REVISION`): bump the revision whenever the output of :func:`preprocess` can change.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vibematch.errors import InputError, PhotoError

REVISION: Final = 1
MAX_BYTES: Final = 15 * 2**20
MAX_PIXELS: Final = 64_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP")
PATCH_MULTIPLE: Final = 32
"""Canvas sides are a multiple of this: Qwen3-VL merges 2x2 patches of 16 pixels into one token."""

Fit = Literal["cover", "contain"]

_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY: Final = (128, 128, 128)


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def _contain(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    scale = min(size[0] / image.width, size[1] / image.height)
    if scale * min(image.size) < 1:  # scaled to nothing, only padding would be left
        raise PhotoError(f"the photo is too narrow ({image.width} x {image.height} pixels)")
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, _GREY)


_FITTERS: Final[dict[Fit, Callable[[Image.Image, tuple[int, int]], Image.Image]]] = {
    "cover": _cover,
    "contain": _contain,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes pixels.

    Attributes:
        height: canvas height in pixels, a multiple of 32.
        width: canvas width in pixels, a multiple of 32.
        fit: ``cover`` scales until the canvas is full and crops the centre; ``contain`` scales
            until the whole photo is inside and pads with mid-grey.
        max_bytes: larger photo files are refused.
        max_pixels: photos that decode to more pixels are refused before decoding.

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
    """Decode one photo, turn it upright and fit it to the canvas.

    Args:
        photo: the bytes of a JPEG, PNG or WebP file (of an animation, the first frame counts).
        preprocessing: canvas, fit rule and caps.

    Returns:
        RGB pixels, uint8, shape ``[3, height, width]``.

    Raises:
        PhotoError: the bytes are no such photo, are damaged, or exceed a cap.
    """
    image = decode(photo, preprocessing.max_bytes, preprocessing.max_pixels)
    fitted = _FITTERS[preprocessing.fit](image, (preprocessing.width, preprocessing.height))
    return np.ascontiguousarray(np.asarray(fitted, dtype=np.uint8).transpose(2, 0, 1))


def decode(photo: bytes, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one photo to an upright RGB image of its own size.

    Args:
        photo: the bytes of a JPEG, PNG or WebP file.
        max_bytes: larger photo files are refused.
        max_pixels: photos that decode to more pixels are refused before decoding.

    Raises:
        PhotoError: the bytes are no such photo, are damaged, or exceed a cap.
    """
    if not photo:
        raise PhotoError("the photo is empty (0 bytes)")
    if len(photo) > max_bytes:
        raise PhotoError(f"the photo has {len(photo):,} bytes; the limit is {max_bytes:,}")
    image = _open(photo, max_pixels)
    # A hostile file can raise almost anything from inside a decoder; all of it means the same.
    try:
        image.load()
    except Exception as error:
        raise PhotoError(f"the photo is truncated or damaged ({error})") from error
    return _to_rgb(_upright(image))


def _open(photo: bytes, max_pixels: int) -> Image.Image:
    too_large = f"the photo decodes to more than the limit of {max_pixels:,} pixels"
    try:
        image = Image.open(io.BytesIO(photo), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(too_large) from error
    except Exception as error:
        raise PhotoError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} photo") from error
    if image.width * image.height > max_pixels:
        raise PhotoError(f"{too_large} ({image.width} x {image.height})")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken EXIF must not cost a person an otherwise good photo
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        samples = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(samples.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")
