"""What callers may give as a photo, and the bytes that travel for it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vibematch.errors import InputError, PhotoError
from vibematch.preprocess import Preprocessing, preprocess

PhotoLike: TypeAlias = (
    bytes | str | os.PathLike[str] | Image.Image | BinaryIO | npt.NDArray[np.uint8]
)
"""The bytes of a photo file, its path, a file open in binary mode, a Pillow image, or RGB pixels
(uint8, ``[height, width, 3]``)."""

JPEG_QUALITY: Final = 85
JPEG_SUBSAMPLING: Final = "4:2:0"
"""Of what :func:`downscaled` makes. 448 x 448 pixels of a person take 28 kB, and differ from the
server's own by 1.4 of 255 on average; those of photographs full of detail 39 kB and 2.6.

Measured beside qualities of 70 to 95 and all subsamplings: 4:4:4 needs quality 80 for the same
size, and differs as much; quality 95 needs twice the bytes for two thirds of the difference.
"""


def read_photo(photo: PhotoLike, max_bytes: int) -> bytes:
    """The bytes of a photo file, whatever form the photo is given in.

    Args:
        photo: bytes (returned as they are); a path; a binary file, which is read from where it
            stands and, if it can seek, left standing there; a Pillow image or RGB pixels (uint8,
            ``[height, width, 3]``), which become lossless PNG.
        max_bytes: no more than one byte above this is read; a larger file is refused.

    Raises:
        PhotoError: there is no such readable file, or it is too large.
        InputError: ``photo`` is of another type.
    """
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, Image.Image):
        return _as_png(photo)
    if isinstance(photo, np.ndarray):
        return _as_png(_image(photo))
    try:
        if isinstance(photo, str | os.PathLike):
            with Path(photo).open("rb") as file:
                content = _read(file, max_bytes + 1)
        elif hasattr(photo, "read"):
            content = _peek(photo, max_bytes + 1)
        else:
            raise InputError(
                "a photo must be bytes, a path, a PIL.Image, an array or a binary file, "
                f"got {type(photo).__name__}"
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, a closed file
        reason = getattr(error, "strerror", None) or error
        raise PhotoError(f"the file cannot be read ({reason})") from error
    if len(content) > max_bytes:
        raise PhotoError(
            f"the file has more bytes than the limit of {max_bytes:,}", code="too_many_bytes"
        )
    return content


def refuse_single(photos: Iterable[PhotoLike]) -> None:
    """Notice one photo where several are expected: its letters or rows would count as photos.

    Raises:
        InputError: it is one photo.
    """
    is_pixels = isinstance(photos, np.ndarray) and photos.ndim <= 3
    if is_pixels or isinstance(photos, bytes | str | os.PathLike | Image.Image | io.IOBase):
        raise InputError("photos must be a list of photos: put [ ] around a single one")


def photo_name(index: int, photo: PhotoLike) -> str:
    """What messages call one photo of several: its index, from 0, and its path if it has one."""
    if isinstance(photo, str | os.PathLike):
        return f"photo {index} ({os.fspath(photo)})"
    return f"photo {index}"


def downscaled(photo: bytes, preprocessing: Preprocessing) -> bytes:
    """A photo of a few kilobytes that a server makes nearly the same pixels of.

    Args:
        photo: the bytes of a JPEG, PNG or WebP file.
        preprocessing: the server's canvas, fit rule and caps.

    Returns:
        What :func:`vibematch.preprocess.preprocess` makes of the photo, as a JPEG of the canvas'
        size; or the photo itself if that is no larger.

    Raises:
        PhotoError: the server would refuse the photo, for the same reason.
    """
    pixels = preprocess(photo, preprocessing).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_SUBSAMPLING, optimize=True
    )
    small = file.getvalue()
    return small if len(small) < len(photo) else photo


def _peek(file: BinaryIO, count: int) -> bytes:
    """Read on without moving: the same photo may be needed again."""
    position = file.tell() if _can_seek(file) else None
    try:
        return _read(file, count)
    finally:
        if position is not None:
            file.seek(position)


def _can_seek(file: BinaryIO) -> bool:
    return hasattr(file, "seekable") and file.seekable()


def _read(file: BinaryIO, count: int) -> bytes:
    """Up to ``count`` bytes; fewer only at the file's end, which pipes need several reads for."""
    parts: list[bytes] = []
    while count > 0:
        part: object = file.read(count)
        if not isinstance(part, bytes):
            raise InputError(
                f"a photo's file must give bytes, got {type(part).__name__}: "
                'open it in binary mode, "rb"'
            )
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            "an array must be RGB pixels, uint8 [height, width, 3], "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _as_png(image: Image.Image) -> bytes:
    image = ImageOps.exif_transpose(image)  # as the bytes of the file would be turned
    if image.mode not in {"RGB", "RGBA", "L", "LA", "P", "I", "I;16"}:
        image = image.convert("RGB")  # PNG has no CMYK, YCbCr, HSV, ...
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
