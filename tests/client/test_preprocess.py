from __future__ import annotations

import concurrent.futures
import copy
import io
import pickle
import re
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin
from skimage.transform import resize as skimage_resize
from tests import photos
from tests.photos import STORED, Pixels, photograph, saved, with_orientation

from vibematch.errors import InputError, PhotoError
from vibematch.photo_bytes import FORMATS, MAX_PIXELS, MAX_PROFILE_BYTES, MAX_SCANNED_PIXELS
from vibematch.preprocess import Fit, Preprocessing, decode, preprocess

CANVAS = Preprocessing(height=64, width=96)
CANVASES = [(192, 256), (448, 448), (384, 512)]


def picture(width: int, height: int) -> Pixels:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_orientations(orientation: int, file_format: str) -> None:
    upright = picture(width=48, height=32)
    lossless = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    photo = saved(stored, file_format, exif=with_orientation(orientation), **lossless[file_format])
    decoded = np.asarray(decode(photo))
    assert decoded.shape == upright.shape
    tolerance = 12 if file_format == "JPEG" else 0
    assert np.abs(decoded.astype(int) - upright.astype(int)).max() <= tolerance


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_meaningless_orientation_is_ignored(orientation: int) -> None:
    upright = picture(48, 32)
    decoded = decode(saved(Image.fromarray(upright), exif=with_orientation(orientation)))
    assert np.array_equal(np.asarray(decoded), upright)


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


@pytest.mark.parametrize("side", [9_500])
def test_decompression_bomb_is_refused(side: int) -> None:
    bomb = saved(Image.new("1", (side, side)))
    with pytest.raises(PhotoError, match="64,000,000 pixels"):
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


def reference(photo: bytes, canvas: Preprocessing, orientation: int = 1) -> Pixels:
    """``preprocess`` by other means: a full decode, numpy's turns, scikit-image's anti-aliasing."""
    image = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
    undo = {**STORED, 6: STORED[8], 8: STORED[6]}  # the other turns are their own inverse
    image = undo[orientation](image)
    height, width = image.shape[:2]
    scales = canvas.height / height, canvas.width / width
    if canvas.fit == "cover":
        top = round((height - canvas.height / max(scales)) / 2)
        left = round((width - canvas.width / max(scales)) / 2)
        used = image[top : height - top, left : width - left]
        return to_uint8(skimage_resize(used, (canvas.height, canvas.width), anti_aliasing=True))
    size = round(height * min(scales)), round(width * min(scales))
    padded = np.full((canvas.height, canvas.width, 3), 128, np.uint8)
    top, left = (canvas.height - size[0]) // 2, (canvas.width - size[1]) // 2
    small = to_uint8(skimage_resize(image, size, anti_aliasing=True))
    padded[top : top + size[0], left : left + size[1]] = small
    return padded


def to_uint8(values: np.ndarray) -> Pixels:
    return np.round(values * 255).astype(np.uint8)


def by_full_decode(image: Image.Image, canvas: Preprocessing) -> Pixels:
    """An upright image fitted to the canvas in one step, without shortcuts: [3, height, width]."""
    size, bicubic = (canvas.width, canvas.height), Image.Resampling.BICUBIC
    if canvas.fit == "cover":
        fitted = ImageOps.fit(image, size, bicubic)
    else:
        fitted = ImageOps.pad(image, size, bicubic, (128, 128, 128))
    return np.asarray(fitted).transpose(2, 0, 1)


def differences(one: Pixels, other: Pixels) -> np.ndarray:
    return np.abs(one.astype(int) - other.astype(int))


@pytest.mark.parametrize("name", photos.valid_photos())
def test_every_kind_of_photo_gives_pixels(name: str) -> None:
    pixels = preprocess(photos.valid_photos()[name], CANVAS)
    assert (pixels.shape, pixels.dtype) == ((3, 64, 96), np.uint8)
    assert pixels.std() > 10


@pytest.mark.parametrize(
    "name", ["jpeg 4:4:4", "jpeg progressive", "jpeg restarts", "jpeg mpo", "jpeg trailing"]
)
def test_kinds_of_jpeg_look_alike(name: str) -> None:
    original = np.asarray(photograph("astronaut", 160, 120))
    decoded = np.asarray(decode(photos.valid_photos()[name]))
    assert differences(decoded, original).mean() < 6


def test_first_picture_of_a_phones_jpeg_counts() -> None:
    sides = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    photo = saved(sides[0], "MPO", save_all=True, append_images=sides[1:])
    assert Image.open(io.BytesIO(photo)).format == "MPO"
    assert preprocess(photo, CANVAS)[0].min() > 250


def test_broken_index_of_a_phones_jpeg_costs_nobody_a_photo() -> None:
    photo = photos.valid_photos()["jpeg mpo"]
    index = photo.index(b"MPF\0")
    for position in range(index, index + 80):
        broken = photo[:position] + b"\xff" + photo[position + 1 :]
        assert np.array_equal(preprocess(broken, CANVAS), preprocess(photo, CANVAS))


def test_arithmetic_coding() -> None:
    original = photograph("astronaut", 512, 512).resize((24, 16))
    usual = decode(saved(original, "JPEG", quality=80))
    off = differences(np.asarray(decode(photos.ARITHMETIC_JPEG)), np.asarray(usual))
    assert off.max() <= 2


def test_ycck_as_photoshop_writes_it() -> None:
    inks = np.zeros((64, 96, 4), np.uint8)
    inks[:, :48] = (0, 255, 255, 0)
    inks[:, 48:] = (128, 0, 0, 128)
    pixels = preprocess(photos.ycck_jpeg(inks), CANVAS)
    assert differences(pixels[:, 32, 20], np.array([255, 0, 0])).max() <= 3
    assert differences(pixels[:, 32, 75], np.array([63, 127, 127])).max() <= 3


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colours_are_scaled_not_clipped(colour: int, channels: int) -> None:
    sample = [0x8012, 0x4034, 0xC0FF][: channels - 1 if channels % 2 == 0 else 3]
    opaque = [0xFFFF] if channels % 2 == 0 else []
    row = struct.pack(f">{channels}H", *sample, *opaque) * 96
    pixels = preprocess(photos.png(96, 64, 16, colour, row * 64), CANVAS)[:, 5, 5].tolist()
    assert pixels == [0x80, 0x40, 0xC0] if channels > 2 else [0x80] * 3


def test_colour_key_becomes_white() -> None:
    red = saved(Image.new("RGB", (96, 64), "red"), transparency=(255, 0, 0))
    assert (preprocess(red, CANVAS) == 255).all()
    grey = saved(Image.new("L", (96, 64), 7), transparency=7)
    assert (preprocess(grey, CANVAS) == 255).all()
    assert (preprocess(saved(Image.new("L", (96, 64), 8), transparency=7), CANVAS) == 8).all()
    black = saved(Image.new("1", (96, 64), 0), transparency=0)
    assert (preprocess(black, CANVAS) == 255).all()


def test_16_bit_colour_key_is_exact() -> None:
    key = photos.png_chunk(b"tRNS", struct.pack(">H", 0x8012))
    halves = struct.pack(">48H", *[0x8012] * 48) + struct.pack(">48H", *[0x8013] * 48)
    pixels = preprocess(photos.png(96, 64, 16, 0, halves * 64, key), CANVAS)
    assert (pixels[:, :, :40] == 255).all()
    assert (pixels[:, :, 56:] == 0x80).all()


def test_palette_with_partial_transparency() -> None:
    image = Image.new("P", (96, 64), 0)
    image.putpalette([0, 0, 0])
    pixels = preprocess(saved(image, transparency=b"\x80"), CANVAS)
    assert differences(pixels, np.array(127)).max() <= 1


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_orientation_in_either_byte_order_and_type(byte_order: str) -> None:
    upright = picture(48, 32)
    stored = np.ascontiguousarray(STORED[6](upright))
    for kind, value in (("HH", (6, 0)), ("I", (6,))):
        tag = struct.pack(f"{byte_order}HHI{kind}", 0x0112, 3 if kind == "HH" else 4, 1, *value)
        mark = b"II*\0" if byte_order == "<" else b"MM\0*"
        exif = mark + struct.pack(f"{byte_order}IH", 8, 1) + tag + b"\0" * 4
        photo = photos.with_png_chunk(saved(stored), b"eXIf", exif)
        assert np.array_equal(np.asarray(decode(photo)), upright)


@pytest.fixture(scope="module")
def large_photographs() -> list[tuple[bytes, Image.Image]]:
    """JPEG photos, and each as it is when decoded in full."""
    files = [
        saved(photograph("astronaut", 2000, 1500, noise=3), "JPEG", quality=90),
        saved(photograph("chelsea", 1700, 2000, noise=3), "JPEG", progressive=True),
        saved(photos.mosaic(1201, 1603), "JPEG", quality=95, subsampling=0),
    ]
    return [(file, decode(file)) for file in files]


@pytest.mark.parametrize("fit", ["cover", "contain"])
@pytest.mark.parametrize(("height", "width"), CANVASES)
def test_large_photographs_are_as_if_decoded_in_full(
    large_photographs: list[tuple[bytes, Image.Image]], height: int, width: int, fit: Fit
) -> None:
    canvas = Preprocessing(height, width, fit)
    for photo, in_full in large_photographs:
        off = differences(preprocess(photo, canvas), by_full_decode(in_full, canvas))
        assert off.mean() < 2
        assert off.max() <= 25


@pytest.mark.parametrize("fit", ["cover", "contain"])
@pytest.mark.parametrize("orientation", STORED)
def test_large_photographs_are_upright_and_in_place(orientation: int, fit: Fit) -> None:
    canvas = Preprocessing(192, 256, fit)
    upright = np.asarray(photograph("coffee", 1401, 997))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    photo = saved(stored, "JPEG", quality=95, exif=with_orientation(orientation))
    pixels = preprocess(photo, canvas).transpose(1, 2, 0)
    # scikit-image's Gaussian is softer than our bicubic filter; a shift of half a pixel gives 3.5
    assert differences(pixels, reference(photo, canvas, orientation)).mean() < 2


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.sampled_from(["cover", "contain"]),
    st.sampled_from(sorted(STORED)),
)
@example(767, 1, "cover", 6)
@example(768, 512, "contain", 1)
def test_no_size_loses_its_place(width: int, height: int, fit: Fit, orientation: int) -> None:
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 1))
    fall = np.linspace(255, 0, height)[:, None, None] * np.ones((1, width, 1))
    image = np.concatenate([ramp, fall, np.full_like(ramp, 90)], axis=2).astype(np.uint8)
    exif = with_orientation(orientation)
    photo = saved(image, "JPEG", quality=98, subsampling=0, exif=exif)
    try:
        pixels = preprocess(photo, Preprocessing(64, 96, fit))
    except PhotoError as error:
        assert error.code == "too_narrow"
        return
    full = by_full_decode(decode(photo), Preprocessing(64, 96, fit))
    assert differences(pixels, full).mean() < 1.5


def test_large_photos_are_not_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    prepare = JpegImagePlugin.JpegImageFile.load_prepare

    def spy(image: JpegImagePlugin.JpegImageFile) -> None:
        decoded.append(image.size)
        prepare(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load_prepare", spy)
    for side in (95, 190, 200, 399, 401, 801, 4000):
        preprocess(saved(Image.new("L", (side, side)), "JPEG"), Preprocessing(64, 64))
    assert [width for width, _ in decoded] == [95, 190, 100, 100, 101, 101, 500]


def test_pixel_cap_counts_the_full_size_of_a_scaled_photo() -> None:
    photo = saved(Image.new("RGB", (2000, 1500)), "JPEG")
    with pytest.raises(PhotoError, match=r"limit of 2,999,999 pixels \(2000 x 1500\)"):
        preprocess(photo, Preprocessing(64, 96, max_pixels=2_999_999))
    preprocess(photo, Preprocessing(64, 96, max_pixels=3_000_000))


def by_formula(encoded: Pixels, colours: np.ndarray, gamma: float | None) -> np.ndarray:
    """RGB of a matrix profile → sRGB, clipped: IEC 61966-2-1's curve, and ICC's D50 matrices."""
    values = encoded / 255
    curve = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = curve if gamma is None else values**gamma
    srgb = np.clip(linear @ (np.linalg.inv(photos.SRGB_COLOURS) @ colours).T, 0, 1)
    return 255 * np.where(srgb <= 0.0031308, srgb * 12.92, 1.055 * srgb ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("profile", "colours", "gamma"),
    [
        (photos.DISPLAY_P3, photos.DISPLAY_P3_COLOURS, None),
        (photos.ADOBE_RGB, photos.ADOBE_RGB_COLOURS, 2.19921875),
    ],
    ids=["Display P3", "Adobe RGB"],
)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_wide_colours_become_srgb(
    file_format: str, profile: bytes, colours: np.ndarray, gamma: float | None
) -> None:
    levels = np.arange(256, dtype=np.uint8)
    spread = np.stack(np.meshgrid(*[levels[::15]] * 3, indexing="ij"), -1).reshape(18, -1, 3)
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    photo = saved(spread, file_format, icc_profile=profile, **options)
    off = np.abs(np.asarray(decode(photo)) - by_formula(spread, colours, gamma))
    assert off.max() < 3
    assert off.mean() < 0.6
    assert np.abs(spread - by_formula(spread, colours, gamma)).max() > 50


def test_profile_of_a_jpeg_in_several_segments() -> None:
    image = photograph("chelsea", 96, 64)
    profile = photos.cmyk_profile(grid=13)
    assert len(profile) > 2 * 65_000
    photo = saved(image.convert("CMYK"), "JPEG", quality=100, icc_profile=profile)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    expected = ImageCms.profileToProfile(
        Image.open(io.BytesIO(photo)),
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert expected is not None
    assert np.array_equal(np.asarray(decode(photo)), np.asarray(expected))
    plain = saved(image.convert("CMYK"), "JPEG", quality=100)
    assert differences(np.asarray(decode(plain)), np.asarray(expected)).mean() > 10


def test_grey_profile() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    decoded = np.asarray(decode(saved(levels, icc_profile=photos.GREY_1_8)))
    linear = (levels / 255) ** (round(1.8 * 256) / 256)
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(decoded - 255 * expected[..., None]).max() < 2


def test_photos_are_converted_once_they_fit_as_if_before() -> None:
    canvas = Preprocessing(192, 256)
    image = photograph("astronaut", 1600, 1200)
    photo = saved(image, "JPEG", quality=95, icc_profile=photos.DISPLAY_P3)
    off = differences(preprocess(photo, canvas), by_full_decode(decode(photo), canvas))
    assert off.mean() < 1.5
    assert differences(preprocess(photo, canvas), preprocess(saved(image), canvas)).mean() > 2


@pytest.mark.parametrize(
    "profile",
    [photos.SRGB, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["hand-made", "littlecms"],
)
def test_srgb_profile_changes_nothing(profile: bytes) -> None:
    image = picture(96, 64)
    assert np.array_equal(np.asarray(decode(saved(image, icc_profile=profile))), image)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        photos.DISPLAY_P3[:200],
        photos.GREY_1_8,
        photos.cmyk_profile(),
        photos.DISPLAY_P3 + b"\0" * (MAX_PROFILE_BYTES + 1),
    ],
    ids=["nonsense", "truncated", "of grey", "of inks", "oversized"],
)
@pytest.mark.parametrize("file_format", FORMATS)
def test_unusable_profile_costs_nobody_a_photo(file_format: str, profile: bytes) -> None:
    options: dict[str, Any] = {"compress_level": 1} if file_format == "PNG" else {}
    plain = saved(picture(96, 64), file_format, **options)
    photo = saved(picture(96, 64), file_format, icc_profile=profile, **options)
    assert np.array_equal(preprocess(photo, CANVAS), preprocess(plain, CANVAS))


@pytest.mark.parametrize(
    "content", [b"", b"name", b"name\0", b"name\0\7abc", b"name\0\0abc", b"\0\0" * 3]
)
def test_broken_profile_chunk_costs_nobody_a_photo(content: bytes) -> None:
    photo = photos.with_png_chunk(saved(picture(96, 64)), b"iCCP", content)
    assert np.array_equal(preprocess(photo, CANVAS).transpose(1, 2, 0), picture(96, 64))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([photos.DISPLAY_P3, photos.cmyk_profile(2), photos.GREY_1_8]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_damaged_profiles_never_cost_a_photo(profile: bytes, damage: list[tuple[int, int]]) -> None:
    modes = {b"RGB ": "RGB", b"CMYK": "CMYK", b"GRAY": "L"}
    damaged = bytearray(profile)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    image = Image.new(modes[profile[16:20]], (32, 32), 99)
    pixels = preprocess(saved(image, "JPEG", icc_profile=bytes(damaged)), CANVAS)
    assert pixels.shape == (3, 64, 96)


def test_threads_share_profiles() -> None:
    colours = photograph("astronaut", 96, 64)
    profiles = [photos.DISPLAY_P3, photos.ADOBE_RGB, photos.SRGB]
    files = [saved(colours, icc_profile=profile) for profile in profiles]
    expected = [preprocess(file, CANVAS) for file in files]
    assert not np.array_equal(expected[0], expected[1])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda file: preprocess(file, CANVAS), files * 50))
    for number, answer in enumerate(answers):
        assert np.array_equal(answer, expected[number % 3])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scans", "more than 320 scans"),
        ("empty scans", "more than 20 scans"),
        ("segments", "more than 10,000 segments"),
        ("png chunks", "more than 10,000 chunks"),
        ("png long", "longer than 65,535 pixels"),
        ("png header", "more than the limit of 64,000,000 pixels (60000 x 60000)"),
        ("jpeg header", "more than the limit of 64,000,000 pixels (65500 x 65500)"),
        ("webp canvas", "more than the limit of 64,000,000 pixels"),
    ],
)
def test_bombs_are_refused(name: str, reason: str) -> None:
    with pytest.raises(PhotoError, match=re.escape(reason)):
        preprocess(photos.bombs()[name], CANVAS)


@pytest.mark.parametrize("name", ["junk", "jpeg exif", "png exif", "png text", "png profile"])
def test_bombs_in_metadata_do_no_harm(name: str) -> None:
    kind = "jpeg" if name in {"junk", "jpeg exif"} else "png grey"
    plain = preprocess(photos.valid_photos()[kind], CANVAS)
    tracemalloc.start()
    try:
        assert np.array_equal(preprocess(photos.bombs()[name], CANVAS), plain)
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


def test_scans_in_what_follows_a_photo_do_not_count() -> None:
    photo = saved(Image.new("L", (3000, 3000)), "JPEG", progressive=True)
    pixels = preprocess(photo + b"\xff\xda\0\2" * 5000, CANVAS)
    assert np.array_equal(pixels, preprocess(photo, CANVAS))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_usual_number_of_scans_is_taken_at_any_size(mode: str) -> None:
    photo = saved(Image.new(mode, (64, 64)), "JPEG", progressive=True)
    assert 5 < photo.count(b"\xff\xda") <= MAX_SCANNED_PIXELS // MAX_PIXELS


def test_every_refusal_has_its_code() -> None:
    jpeg = photos.valid_photos()["jpeg"]
    caps = Preprocessing(64, 96, "contain", max_bytes=200_000)
    refused = {
        "empty": b"",
        "too_many_bytes": b"x" * 200_001,
        "too_many_pixels": photos.bombs()["png header"],
        "not_a_photo": b"GIF89a",
        "damaged": jpeg[:-500],
        "too_narrow": saved(Image.new("RGB", (1, 4000))),
    }
    for code, photo in refused.items():
        with pytest.raises(PhotoError) as error:
            preprocess(photo, caps)
        assert error.value.code == code
    assert PhotoError("no such file").code == "unreadable"


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own bytes
    ],
)
def test_photo_errors_can_be_copied(copied: Callable[[PhotoError], PhotoError]) -> None:
    error = copied(PhotoError("it is broken", code="damaged"))
    assert (str(error), error.code) == ("it is broken", "damaged")


def test_hostile_photos_give_pixels_or_photo_errors() -> None:
    for name, photo in photos.hostile_photos(seed=0, count=1_500):
        try:
            pixels = preprocess(photo, CANVAS)
        except PhotoError as error:
            assert error.code != "unreadable", name
        else:
            assert pixels.shape == (3, 64, 96), name
