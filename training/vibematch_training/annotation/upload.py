"""What leaves this machine of a photo: its pixels, upright and bounded, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from PIL import Image

from vibematch.errors import PhotoError
from vibematch.preprocess import decode

LONGEST_SIDE: Final = 1024
"""In pixels: enough to judge clothes and sharpness, and little to pay for."""
JPEG_QUALITY: Final = 90


def read_upright(path: Path) -> Image.Image:
    """A photo file as :func:`decoded`.

    Raises:
        PhotoError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(str(error)) from error
    return decoded(content)


def decoded(content: bytes) -> Image.Image:
    """Decode within vibematch's caps: upright RGB, at most 1024 pixels a side, no metadata.

    Raises:
        PhotoError: no photo, damaged, or beyond a cap.
    """
    image = decode(content)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    image.info.clear()  # Pillow would write comments and XMP out again
    return image


def jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """Encode as JPEG; the same pixels give the same bytes."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()
