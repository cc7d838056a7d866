"""Photo bytes → an image that is ready to decode, with its orientation and colour profile.

Pillow is given only what decodes. Metadata is taken out first, because its parsers can be made to
burn minutes and gigabytes; of it, only the orientation and the colour profile are read, here.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from vibematch.errors import PhotoError

MAX_BYTES: Final = 15 * 2**20
MAX_PIXELS: Final = 64_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP")
MAX_PROFILE_BYTES: Final = 4 * 2**20
"""Larger colour profiles are ignored; those of printing presses have up to some 3 MB."""
MAX_PARTS: Final = 10_000
"""Photo files of more segments or chunks are refused: they only cost time. Cameras write 300."""
MAX_SCANNED_PIXELS: Final = 20 * MAX_PIXELS
"""Pixels times scans of a progressive JPEG: a decoder passes over all pixels for each scan.

Encoders write 10 scans, or 18 for CMYK; a file of 300 kB can have thousands, and take minutes.
"""
MAX_SIDE: Final = 65_535
"""In pixels, as in JPEG. A PNG of 1 x 64 million costs far more than its pixels do."""

_EXIF: Final = b"Exif\0\0"
_ORIENTATION_TAG: Final = 0x0112
_TIFF_LONG: Final = 4


@dataclass(frozen=True)
class OpenedPhoto:
    """A photo whose pixels are not decoded yet.

    Attributes:
        image: as the file has it; its ``size`` is the photo's own, in pixels.
        orientation: EXIF orientation, 1 to 8.
        profile: the embedded ICC profile; empty if there is none.
    """

    image: ImageFile.ImageFile
    orientation: int
    profile: bytes


def open_photo(photo: bytes, max_bytes: int, max_pixels: int) -> OpenedPhoto:
    """Read a photo file's headers, and refuse it before any work if it exceeds a cap.

    Args:
        photo: the bytes of a JPEG, PNG or WebP file.
        max_bytes: larger photo files are refused.
        max_pixels: photos of more pixels are refused.

    Raises:
        PhotoError: the bytes are no such photo, are damaged, or exceed a cap.
    """
    if not photo:
        raise PhotoError("the photo is empty (0 bytes)", code="empty")
    if len(photo) > max_bytes:
        raise PhotoError(
            f"the photo has {len(photo):,} bytes; the limit is {max_bytes:,}",
            code="too_many_bytes",
        )
    # A hostile file can raise almost anything from inside a reader; all of it means the same.
    try:
        file, image = _read_header(photo)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(max_pixels, "hundreds of millions") from error
    except Exception as error:
        raise damaged(error) from error
    if max(image.size) > MAX_SIDE:
        raise PhotoError(
            f"the photo is longer than {MAX_SIDE:,} pixels ({image.width} x {image.height})",
            code="too_many_pixels",
        )
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(max_pixels, f"{image.width} x {image.height}")
    if image.format == "JPEG":
        _refuse_many_scans(file.bare, image.width * image.height)
    return OpenedPhoto(image, _orientation(file.exif), file.profile)


class _File(NamedTuple):
    """A photo file taken apart: what decodes, and the metadata that matters."""

    bare: bytes
    exif: bytes
    profile: bytes


def _read_header(photo: bytes) -> tuple[_File, ImageFile.ImageFile]:
    # Not by Image.open, which also looks for a second picture in the JPEG files of phones (MPO).
    if photo.startswith(_JPEG_SIGNATURE):
        file = _jpeg(photo)
        return file, JpegImagePlugin.JpegImageFile(io.BytesIO(file.bare))
    if photo.startswith(_PNG_SIGNATURE):
        file = _png(photo)
        return file, PngImagePlugin.PngImageFile(io.BytesIO(file.bare))
    if photo.startswith(b"RIFF") and photo[8:12] == b"WEBP":
        file = _webp(photo)
        return file, WebPImagePlugin.WebPImageFile(io.BytesIO(file.bare))
    raise PhotoError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} photo", code="not_a_photo")


def damaged(reason: object) -> PhotoError:
    """What to raise where a decoder gives up."""
    return PhotoError(f"the photo is truncated or damaged ({reason})", code="damaged")


def _too_many_pixels(max_pixels: int, pixels: str) -> PhotoError:
    return PhotoError(
        f"the photo decodes to more than the limit of {max_pixels:,} pixels ({pixels})",
        code="too_many_pixels",
    )


_JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
_SOI: Final = b"\xff\xd8"
_EOI, _SOS, _APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = (
    0xD9,
    0xDA,
    0xE0,
    0xE1,
    0xE2,
    0xEE,
    0xEF,
    0xFE,
)
_MARKER: Final = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
"""Those that a segment follows: the others stand alone, or are pixels."""


def _segments(photo: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG; of a scan, the end of its header."""
    position = len(_SOI)
    for _ in range(MAX_PARTS):
        found = _MARKER.search(photo, position)
        if found is None or found[1][0] == _EOI:
            return
        position = found.end() + int.from_bytes(photo[found.end() : found.end() + 2], "big")
        yield found[1][0], found.start(), position
    raise damaged(f"more than {MAX_PARTS:,} segments")


def _jpeg(photo: bytes) -> _File:
    kept, exif, profile = [_SOI], b"", {}
    for marker, start, end in _segments(photo):
        if marker == _SOS:
            kept.append(photo[start:])
            break
        content = photo[start + 4 : end]
        if marker == _APP1 and content.startswith(_EXIF):
            exif = exif or content
        elif marker == _APP2 and content.startswith(b"ICC_PROFILE\0"):
            profile[content[12:13]] = content[14:]  # numbered, as a segment has at most 64 kB
        elif not (_APP1 <= marker <= _APP15 or marker == _COMMENT) or marker == _APP14:
            kept.append(photo[start:end])  # APP14 is Adobe's, and names the colour transform
    return _File(b"".join(kept), exif, b"".join(profile[number] for number in sorted(profile)))


def _refuse_many_scans(photo: bytes, pixels: int) -> None:
    most = MAX_SCANNED_PIXELS // pixels
    if photo.count(b"\xff\xda") <= most:  # quick; more may also be in what follows the photo
        return
    scans = 0
    for marker, _, _ in _segments(photo):
        scans += marker == _SOS
        if scans > most:
            raise damaged(f"more than {most:,} scans")


_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS: Final = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def _png(photo: bytes) -> _File:
    kept, exif, profile = [_PNG_SIGNATURE], b"", b""
    position = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length = int.from_bytes(photo[position : position + 4], "big")
        kind = photo[position + 4 : position + 8]
        content = photo[position + 8 : position + 8 + length]
        end = position + length + 12
        if kind in _PNG_PIXELS:
            kept.append(photo[position:end])
        elif kind == b"eXIf":
            exif = exif or content
        elif kind == b"iCCP":
            profile = profile or _inflated(content)
        position = end
        if kind == b"IEND" or position >= len(photo):
            return _File(b"".join(kept), exif, profile)
    raise damaged(f"more than {MAX_PARTS:,} chunks")


def _inflated(iccp: bytes) -> bytes:
    """The colour profile in a PNG's chunk: a name, a zero, the method (0: zlib), the content."""
    _, _, compressed = iccp.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(compressed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""


def _webp(photo: bytes) -> _File:
    exif, profile = b"", b""
    position = 12  # RIFF, size, WEBP
    for _ in range(MAX_PARTS):
        kind = photo[position : position + 4]
        length = int.from_bytes(photo[position + 4 : position + 8], "little")
        content = photo[position + 8 : position + 8 + length]
        if kind == b"EXIF":
            exif = exif or content
        elif kind == b"ICCP":
            profile = profile or content
        position += 8 + length + length % 2
        if position >= len(photo):
            return _File(photo, exif, profile)
    raise damaged(f"more than {MAX_PARTS:,} chunks")


def _orientation(exif: bytes) -> int:
    """The orientation in the first directory of a TIFF structure (EXIF 2.32); 1 if none is."""
    exif = exif.removeprefix(_EXIF)
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"

    def number(position: int, size: int) -> int:
        return int.from_bytes(exif[position : position + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            return number(entry + 8, 4 if number(entry + 2, 2) == _TIFF_LONG else 2)
    return 1
