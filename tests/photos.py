"""Photos for tests: every kind that people send, colour profiles, and hostile files."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

Pixels = npt.NDArray[np.uint8]

ORIENTATION_TAG: Final = 0x0112

STORED: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How a camera stored the upright picture, by EXIF orientation: undone by preprocessing."""

ARITHMETIC_JPEG: Final = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYW"
    "ICwgIyYnKSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo"
    "KCgoKCgoKCgoKCgoKCgoKCgoKCgoKCj/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDd"
    "L8HmtIIy4cYX6pkNfkHhdMVi8GIxvJScs6y2T/0gZBeagGi5BJ+CgJeYDZA03WX3KPbxyBLQWpOImO52B8hujirKZFct"
    "kxBmAID9n1cQW1CffmONVlk/LnPBpMabFYkPgGfttqJPoPiHPVsEOnDV92CEZbUG7OnQ9H1cBp5V6/8AkvHasd2+EX9d"
    "Lz36FcLCrNg5xI3IxMHEhgwKIdf39B40PkNFZ7gj2MasZWYv5DThvN48GDhX25H68tDA+c6AKDYwCf29PPZIwnJ7Qx1s"
    "xCyw30zLv3oGwMuj/9k="
)
"""scikit-image's astronaut at 24 x 16, by libjpeg-turbo's ``cjpeg -arithmetic -quality 80``."""


def saved(image: Image.Image | Pixels, file_format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a photo file."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image))
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def photograph(name: str, width: int, height: int, *, noise: float = 0) -> Image.Image:
    """One of scikit-image's photographs at any size, with a camera's noise if wanted."""
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    if not noise:
        return image
    grain = np.random.default_rng(0).normal(0, noise, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def mosaic(width: int, height: int) -> Image.Image:
    """Many photographs side by side: full detail at any size, harder to scale than any one."""
    tiles = [getattr(data, name)()[:300, :400] for name in ("astronaut", "coffee", "chelsea")]
    image = Image.new("RGB", (width, height))
    for number, (top, left) in enumerate(
        (top, left) for top in range(0, height, 300) for left in range(0, width, 400)
    ):
        image.paste(Image.fromarray(tiles[number % len(tiles)]), (left, top))
    return image


def with_orientation(orientation: int) -> Image.Exif:
    """EXIF data that says how the camera was held."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif


def ycck_jpeg(cmyk: Pixels) -> bytes:
    """A JPEG as Photoshop writes it: inverted inks, the first three as YCbCr, Adobe's marker.

    Args:
        cmyk: inks, 255 for full, uint8 ``[height, width, 4]``.
    """
    # Its RGB are the inverse of the stored inks, which are inverted themselves.
    colours = Image.fromarray(cmyk[..., :3]).convert("YCbCr")
    stored = np.dstack([np.asarray(colours), 255 - cmyk[..., 3]])
    # Pillow inverts what it writes, and calls the channels CMYK: transform 0; YCCK is 2.
    photo = saved(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100)
    marker = photo.index(b"Adobe") + len(b"Adobe") + 6
    assert photo[marker] == 0
    return photo[:marker] + b"\2" + photo[marker + 1 :]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_png_chunk(photo: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with a further chunk after its header."""
    return photo[:33] + png_chunk(kind, content) + photo[33:]


def png(width: int, height: int, depth: int, colour: int, samples: bytes, *chunks: bytes) -> bytes:
    """A PNG written by hand; ``samples`` are its rows without filter bytes."""
    stride = len(samples) // height
    rows = b"".join(b"\0" + samples[row * stride : (row + 1) * stride] for row in range(height))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def with_jpeg_segments(photo: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with further segments, (marker, content), at its beginning."""
    written = [struct.pack(">BBH", 0xFF, marker, len(c) + 2) + c for marker, c in segments]
    return photo[:2] + b"".join(written) + photo[2:]


def with_scans(photo: bytes, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes that many times more."""
    return photo[:-2] + photo[photo.rindex(b"\xff\xda") : -2] * scans + photo[-2:]


def _icc_numbers(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + _icc_numbers(*values)


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (ICC.1:2001-04) of the D50 illuminant."""
    tags = {b"wtpt": _xyz(0.9642, 1, 0.8249), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        table += name + struct.pack(">II", offset, len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = struct.pack(">I", 128 + len(table) + len(body))
    header = size + b"\0" * 4 + struct.pack(">I", 0x02400000) + kind + space + connection
    header = (header.ljust(36, b"\0") + b"acsp").ljust(68, b"\0") + _icc_numbers(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + body


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


SRGB_CURVE: Final = (
    b"para\0\0\0\0"
    + struct.pack(">HH", 3, 0)
    + _icc_numbers(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)
SRGB_COLOURS: Final = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]]
)
"""Linear RGB → XYZ (D50): a column for each primary; here, and below."""
DISPLAY_P3_COLOURS: Final = np.array(
    [[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
ADOBE_RGB_COLOURS: Final = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)


def rgb_profile(colours: npt.NDArray[np.float64], curve: bytes) -> bytes:
    """A matrix profile: a curve, then ``colours``."""
    tags = {}
    for letter, column in zip(b"rgb", colours.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = _xyz(*column)
        tags[bytes([letter]) + b"TRC"] = curve
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


SRGB: Final = rgb_profile(SRGB_COLOURS, SRGB_CURVE)
DISPLAY_P3: Final = rgb_profile(DISPLAY_P3_COLOURS, SRGB_CURVE)
ADOBE_RGB: Final = rgb_profile(ADOBE_RGB_COLOURS, _gamma(2.19921875))
GREY_1_8: Final = _profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": _gamma(1.8)})


def cmyk_profile(grid: int = 5) -> bytes:
    """A table from inks to Lab, of a made-up press."""
    inks = np.stack(np.meshgrid(*[np.linspace(0, 1, grid)] * 4, indexing="ij"), -1).reshape(-1, 4)
    cyan, magenta, yellow, black = inks.T
    lightness = 100 * (1 - black) * (1 - 0.3 * cyan - 0.4 * magenta - 0.05 * yellow)
    red_green = (70 * magenta - 40 * cyan) * (1 - black)
    yellow_blue = (90 * yellow - 45 * cyan) * (1 - black)
    lab = np.stack([lightness * 652.8, (red_green + 128) * 256, (yellow_blue + 128) * 256], -1)
    straight = struct.pack(">HH", 0, 65535)
    table = (
        b"mft2\0\0\0\0"
        + struct.pack(">BBBB", 4, 3, grid, 0)
        + _icc_numbers(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + struct.pack(">HH", 2, 2)
        + straight * 4
        + lab.clip(0, 65535).astype(">u2").tobytes()
        + straight * 3
    )
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table})


@cache
def valid_photos() -> dict[str, bytes]:
    """A small photo of every kind that has to be understood, by name."""
    image = photograph("astronaut", 160, 120)
    grey, blue = image.convert("L"), Image.new("RGB", image.size, "blue")
    clear = image.convert("RGBA")
    clear.putalpha(grey)
    frames: dict[str, Any] = {"save_all": True, "append_images": [blue]}
    sideways = with_orientation(6)
    return {
        "jpeg": saved(image, "JPEG", quality=90),
        "jpeg 4:4:4": saved(image, "JPEG", quality=95, subsampling=0),
        "jpeg progressive": saved(image, "JPEG", progressive=True),
        "jpeg restarts": saved(image, "JPEG", restart_marker_blocks=2),
        "jpeg exif": saved(image, "JPEG", exif=sideways, comment=b"hello"),
        "jpeg profile": saved(image, "JPEG", icc_profile=DISPLAY_P3),
        "jpeg grey": saved(grey, "JPEG", icc_profile=GREY_1_8),
        "jpeg cmyk": saved(image.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "jpeg ycck": ycck_jpeg(np.asarray(image.convert("CMYK"))),
        "jpeg arithmetic": ARITHMETIC_JPEG,
        "jpeg trailing": saved(image, "JPEG") + b"\xff\xda" * 500,
        "jpeg mpo": saved(image, "MPO", save_all=True, append_images=[blue]),
        "png": saved(image, exif=sideways, icc_profile=ADOBE_RGB),
        "png grey": saved(grey),
        "png bilevel": saved(image.convert("1")),
        "png 16-bit": saved(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)),
        "png rgba": saved(clear),
        "png grey alpha": saved(clear.convert("LA")),
        "png palette": saved(image.quantize(64)),
        "png palette clear": saved(image.quantize(64), transparency=3),
        "png colour key": saved(image, transparency=(10, 20, 30)),
        "png animated": saved(image, **frames),
        "webp": saved(image, "WEBP", exif=sideways, icc_profile=DISPLAY_P3),
        "webp lossless": saved(image, "WEBP", lossless=True),
        "webp rgba": saved(clear, "WEBP"),
        "webp animated": saved(image, "WEBP", **frames),
    }


@cache
def large_photos() -> dict[str, bytes]:
    """Valid photos of few bytes and as many pixels as are allowed: the bombs that must be eaten."""
    sides, colour = (8000, 8000), (9, 99, 200)
    plain = Image.new("RGB", sides, colour)
    return {
        "jpeg": saved(plain, "JPEG", quality=30),
        "jpeg progressive": saved(plain, "JPEG", quality=30, progressive=True),
        "png": saved(plain, compress_level=9),
        "png palette": saved(Image.new("P", sides, 1), transparency=1),
        "png 16-bit": saved(Image.fromarray(np.zeros(sides, np.uint16))),
        "webp": saved(plain, "WEBP", lossless=True, method=0),
    }


def _other_files() -> list[bytes]:
    image = photograph("coffee", 60, 40)
    files = [saved(image, kind) for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "PDF", "AVIF")]
    words = [b"", b"\0", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"PK\3\4"]
    return [*files, *words, b"GIF89a", b"\x7fELF", b"http://127.0.0.1/photo.jpg", b"\0" * 100_000]


def _exif_bomb() -> bytes:
    """A directory whose 20,000 entries all point at the same megabyte."""
    entry = struct.pack("<HHII", 1000, 7, 1_000_000, 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 20_000) + entry * 20_000 + b"\0" * 1_000_000


def _segments(content: bytes) -> list[tuple[int, bytes]]:
    return [(0xE1, b"Exif\0\0" + content[k : k + 65_000]) for k in range(0, len(content), 65_000)]


@cache
def bombs() -> dict[str, bytes]:
    """Files that cost gigabytes or minutes where nobody takes care; all under 2 MB."""
    photo, jpeg = valid_photos()["png grey"], valid_photos()["jpeg"]
    progressive = saved(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True, quality=30)
    animated = valid_photos()["webp animated"]
    canvas = animated.index(b"VP8X") + 12
    zeros = zlib.compress(b"\0" * 20_000_000, 9)
    return {
        "scans": with_scans(progressive, 5000),
        "empty scans": _with_size(with_scans(valid_photos()["jpeg progressive"], 300), 8000, 8000),
        "segments": with_jpeg_segments(jpeg, *[(0xFE, b"")] * 200_000),
        "junk": jpeg[:2] + b"\xff\xe0\0\2" + b"\xff\0" * 500_000 + jpeg[2:],
        "jpeg exif": with_jpeg_segments(jpeg, *_segments(_exif_bomb())),
        "png exif": with_png_chunk(photo, b"eXIf", _exif_bomb()),
        "png text": with_png_chunk(photo, b"zTXt", b"a\0\0" + zeros),
        "png profile": with_png_chunk(photo, b"iCCP", b"a\0\0" + zeros),
        "png chunks": photo[:33] + png_chunk(b"abCd", b"") * 100_000 + photo[33:],
        "png long": _with_size(photo, 1, 64_000_000),
        "png header": _with_size(photo, 60_000, 60_000),
        "jpeg header": _with_size(jpeg, 65_500, 65_500),
        "webp canvas": animated[:canvas] + b"\xff\xff\xff" * 2 + animated[canvas + 6 :],
    }


def _with_size(photo: bytes, width: int, height: int) -> bytes:
    """A JPEG or PNG of 160 x 120 whose header claims another size; a PNG's checksum is right."""
    if photo.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + photo[24:29]
        return photo[:8] + png_chunk(b"IHDR", header) + photo[33:]
    return photo.replace(struct.pack(">HH", 120, 160), struct.pack(">HH", height, width), 1)


def _flip_bits(rng: random.Random, photo: bytes) -> bytes:
    flipped = bytearray(photo)
    for _ in range(rng.choice([1, 3, 30])):
        # headers are the most interesting part
        position = rng.randrange(min(len(photo), rng.choice([64, 700, len(photo)])))
        flipped[position] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _overwrite(rng: random.Random, photo: bytes) -> bytes:
    start = rng.randrange(len(photo))
    value = rng.choice([b"\0", b"\xff", rng.randbytes(1)])
    length = min(len(photo) - start, rng.randrange(1, 40))
    return photo[:start] + value * length + photo[start + length :]


def _truncate(rng: random.Random, photo: bytes) -> bytes:
    return photo[: rng.randrange(len(photo))]


def _resize_header(rng: random.Random, photo: bytes) -> bytes:
    sides = [0, 1, 119, 161, 4_000, 8_000, 16_383, 65_500, 2**31 - 1]
    small = [side for side in sides if side < 2**16]
    choices = sides if photo.startswith(b"\x89PNG") else small
    return _with_size(photo, rng.choice(choices), rng.choice(choices))


def _swap_parts(rng: random.Random, photo: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(photo)) for _ in range(3))
    return photo[:a] + photo[b:c] + photo[a:b] + photo[c:]


def _splice(rng: random.Random, photo: bytes) -> bytes:
    other = rng.choice(list(valid_photos().values()))
    return photo[: rng.randrange(len(photo))] + other[rng.randrange(len(other)) :]


def _repeat_part(rng: random.Random, photo: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(photo)) for _ in range(2))
    return photo[:end] + photo[start:end] * rng.choice([1, 2, 5]) + photo[end:]


_MUTATIONS: Final = [
    _flip_bits,
    _overwrite,
    _truncate,
    _resize_header,
    _swap_parts,
    _splice,
    _repeat_part,
]


def hostile_photos(seed: int, count: int, *, large: float = 0) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of ``count`` files that somebody might send to do harm, or by mistake.

    Most are mutated small photos; 3 % are no photos at all and 2 % bombs.

    Args:
        seed: same seed, same files.
        count: how many.
        large: the share, from 0 to 0.95, of valid photos with as many pixels as are allowed.
    """
    rng = random.Random(seed)
    valid = list(valid_photos().items())
    other = _other_files()
    for _ in range(count):
        draw = rng.random()
        if draw < 0.02:
            yield rng.choice(list(bombs().items()))
        elif draw < 0.05:
            yield "no photo", rng.choice(other)
        elif draw < 0.05 + large:
            name, photo = rng.choice(list(large_photos().items()))
            yield f"large {name}", photo
        else:
            name, photo = rng.choice(valid)
            mutation = rng.choice(_MUTATIONS)
            yield f"{name}, {mutation.__name__}", mutation(rng, photo)
