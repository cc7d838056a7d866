from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vibematch.errors import InputError, PhotoError
from vibematch.preprocess import Fit, Preprocessing, decode, preprocess

CANVAS = Preprocessing(height=64, width=96)
Pixels = npt.NDArray[np.uint8]

# How a camera stored the upright picture, by EXIF orientation: undone by preprocessing.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def picture(width: int, height: int) -> Pixels:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_orientations(orientation: int, file_format: str) -> None:
    upright = picture(width=48, height=32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    photo = saved(stored, file_format, exif=exif, **lossless[file_format])
    decoded = np.asarray(decode(photo))
    assert decoded.shape == upright.shape
    tolerance = 12 if file_format == "JPEG" else 0
    assert np.abs(decoded.astype(int) - upright.astype(int)).max() <= tolerance


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_meaningless_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(48, 32)
    decoded = decode(saved(Image.fromarray(upright), exif=exif))
    assert np.array_equal(np.asarray(decoded), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_costs_nobody_a_photo() -> None:
    photo = saved(Image.fromarray(picture(48, 32)), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode(photo).size == (48, 32)


@pytest.mark.parametrize("fit", ["cover", "contain"])
@pytest.mark.parametrize("size", [(96, 64), (300, 100), (10, 500), (1, 1), (4000, 50)])
def test_every_shape_fits_the_canvas(fit: Fit, size: tuple[int, int]) -> None:
    pixels = preprocess(
        saved(Image.new("RGB", size, (200, 10, 30))), Preprocessing(height=64, width=96, fit=fit)
    )
    assert (pixels.shape, pixels.dtype) == ((3, 64, 96), np.uint8)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels[:, 32, 48], [200, 10, 30])


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_slivers(size: tuple[int, int]) -> None:
    photo = saved(Image.new("RGB", size, "red"))
    assert (preprocess(photo, CANVAS)[0] == 255).all()
    with pytest.raises(PhotoError, match="too narrow"):
        preprocess(photo, Preprocessing(height=64, width=96, fit="contain"))


def test_canvas_sized_photo_is_untouched() -> None:
    upright = picture(width=96, height=64)
    pixels = preprocess(saved(Image.fromarray(upright)), CANVAS)
    assert np.array_equal(pixels.transpose(1, 2, 0), upright)


def test_cover_crops_the_centre() -> None:
    stripes = np.zeros((64, 192, 3), np.uint8)
    stripes[:, 48:144] = 255
    assert (preprocess(saved(Image.fromarray(stripes)), CANVAS) == 255).all()


def test_contain_pads_with_grey() -> None:
    canvas = Preprocessing(height=64, width=64, fit="contain")
    pixels = preprocess(saved(Image.new("RGB", (64, 32), "white")), canvas)
    assert (pixels[:, 16:48] == 255).all()
    assert (pixels[:, :16] == 128).all()
    assert (pixels[:, 48:] == 128).all()


def test_transparency_becomes_white() -> None:
    for mode in ("RGBA", "LA"):
        clear = Image.new(mode, (96, 64), (0,) * len(mode))
        assert (preprocess(saved(clear), CANVAS) == 255).all()


def test_half_transparency_blends_with_white() -> None:
    half = Image.new("RGBA", (96, 64), (0, 0, 0, 128))
    assert np.abs(preprocess(saved(half), CANVAS).astype(int) - 127).max() <= 1


def test_palette_with_transparency() -> None:
    image = Image.new("P", (96, 64), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 48, 64))
    pixels = preprocess(saved(image, transparency=0), CANVAS)
    assert (pixels[:, 32, 24].tolist(), pixels[:, 32, 72].tolist()) == ([0, 255, 0], [255] * 3)


def test_palette_without_transparency() -> None:
    image = Image.new("P", (96, 64), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert preprocess(saved(image), CANVAS)[:, 5, 5].tolist() == [9, 8, 7]


def test_grey_and_bilevel() -> None:
    assert (preprocess(saved(Image.new("L", (96, 64), 77)), CANVAS) == 77).all()
    assert (preprocess(saved(Image.new("1", (96, 64), 1)), CANVAS) == 255).all()


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.full((64, 96), 0x8012, np.uint16))
    assert (preprocess(saved(image), CANVAS) == 0x80).all()


def test_cmyk() -> None:
    pixels = preprocess(saved(Image.new("CMYK", (96, 64), (0, 255, 255, 0)), "JPEG"), CANVAS)
    assert pixels[0, 5, 5] > 240
    assert (pixels[1:, 5, 5] < 15).all()


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    photo = saved(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert preprocess(photo, CANVAS)[:, 5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(file_format: str) -> None:
    with pytest.raises(PhotoError, match="not a JPEG, PNG or WEBP photo"):
        decode(saved(Image.new("RGB", (32, 32)), file_format))


def test_empty_photo() -> None:
    with pytest.raises(PhotoError, match=r"empty \(0 bytes\)"):
        decode(b"")


def test_byte_cap() -> None:
    photo = saved(Image.new("RGB", (96, 64)))
    decode(photo, max_bytes=len(photo))
    caps = Preprocessing(height=64, width=96, max_bytes=len(photo))
    preprocess(photo, caps)
    with pytest.raises(PhotoError, match="the limit is"):
        preprocess(photo + b"x", caps)


def test_pixel_cap() -> None:
    caps = Preprocessing(height=64, width=96, max_pixels=96 * 64)
    preprocess(saved(Image.new("RGB", (96, 64))), caps)
    with pytest.raises(PhotoError, match=r"limit of 6,144 pixels \(97 x 64\)"):
        preprocess(saved(Image.new("RGB", (97, 64))), caps)


@pytest.mark.parametrize("side", [9_500, 20_000])  # Pillow warns of the first, refuses the second
def test_decompression_bomb_is_refused_quietly(side: int) -> None:
    bomb = saved(Image.new("1", (side, side)))
    with warnings.catch_warnings(), pytest.raises(PhotoError, match="64,000,000 pixels"):
        warnings.simplefilter("error")
        decode(bomb)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_photos_are_refused(file_format: str, kept: float) -> None:
    photo = saved(Image.fromarray(picture(200, 150)), file_format)
    with pytest.raises(PhotoError):
        preprocess(photo[: int(len(photo) * kept)], CANVAS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 33, "width": 64}, "height must be a positive multiple of 32, got 33"),
        ({"height": 64, "width": 0}, "width must be a positive multiple of 32, got 0"),
        ({"height": 64, "width": 64, "fit": "stretch"}, "one of cover, contain, got 'stretch'"),
        ({"height": 64, "width": 64, "max_bytes": 0}, "must be positive"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocessing(**settings)


SEEDS = [
    saved(Image.fromarray(picture(20, 14)), "JPEG"),
    saved(Image.fromarray(picture(20, 14)), "PNG"),
    saved(Image.fromarray(picture(20, 14)), "WEBP"),
    saved(Image.new("LA", (9, 9))),
]


@given(st.binary(max_size=200))
@example(b"\x89PNG\r\n\x1a\n")
@example(b"\xff\xd8\xff")
@example(b"RIFF\x00\x00\x00\x00WEBP")
def test_random_bytes_raise_only_photo_errors(photo: bytes) -> None:
    with pytest.raises(PhotoError):
        preprocess(photo, CANVAS)


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255))))
def test_damaged_photos_decode_or_raise_photo_errors(
    seed: bytes, damage: list[tuple[int, int]]
) -> None:
    photo = bytearray(seed)
    for position, value in damage:
        photo[position % len(photo)] = value
    try:
        pixels = preprocess(bytes(photo), CANVAS)
    except PhotoError:
        return
    assert (pixels.shape, pixels.dtype) == ((3, 64, 96), np.uint8)
