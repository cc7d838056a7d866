"""What may be given as a photo, and what travels of it."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.photos import DISPLAY_P3, mosaic, photograph, saved, with_orientation

from vibematch.encoder import Encoder
from vibematch.errors import InputError, PhotoError
from vibematch.photo_input import downscaled, read_photo, refuse_single
from vibematch.preprocess import Preprocessing, preprocess

CANVAS = Preprocessing(height=448, width=448)
PHOTOGRAPHS = ("astronaut", "coffee")


class Trickle(io.RawIOBase):
    """A file that gives a few bytes at a time, as pipes do, cannot seek, and counts."""

    def __init__(self, content: bytes, step: int) -> None:
        self._content = io.BytesIO(content)
        self._step = step

    def read(self, count: int = -1) -> bytes:
        return self._content.read(self._step if count < 0 else min(count, self._step))

    @property
    def taken(self) -> int:
        return self._content.tell()


@given(content=st.binary(max_size=200), cap=st.integers(1, 150), step=st.integers(1, 80))
def test_a_file_is_read_up_to_the_cap(content: bytes, cap: int, step: int) -> None:
    file = Trickle(content, step)
    if len(content) <= cap:
        assert read_photo(file, cap) == content  # type: ignore[arg-type]
    else:
        with pytest.raises(PhotoError, match=f"more bytes than the limit of {cap:,}") as refused:
            read_photo(file, cap)  # type: ignore[arg-type]
        assert refused.value.code == "too_many_bytes"
    assert file.taken <= cap + 1


def test_a_file_is_read_from_where_it_stands_and_stays_there(tmp_path: Path) -> None:
    path = tmp_path / "album"
    path.write_bytes(b"not thisa photo")
    for buffering in (0, -1):
        with path.open("rb", buffering=buffering) as file:
            file.seek(8)
            assert [read_photo(file, 100), read_photo(file, 100)] == [b"a photo"] * 2
            assert file.tell() == 8


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    content = bytes(range(256)) * 1000

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb", buffering=0) as file:
        assert read_photo(file, 300_000) == content
    thread.join()


def test_files_that_give_no_bytes_are_refused(tmp_path: Path) -> None:
    closed = io.BytesIO(b"photo")
    closed.close()
    with pytest.raises(PhotoError, match=r"cannot be read \(I/O operation on closed file"):
        read_photo(closed, 10)
    with pytest.raises(InputError, match='got str: open it in binary mode, "rb"'):
        read_photo(io.StringIO("photo"), 10)  # type: ignore[arg-type]
    with pytest.raises(PhotoError, match=r"cannot be read \(Is a directory\)"):
        read_photo(tmp_path, 10)
    with pytest.raises(PhotoError, match="cannot be read"):
        read_photo("a\0b", 10)


def test_pixels_travel_without_loss() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for given_pixels in (pixels, pixels[::-1, ::2], np.asfortranarray(pixels)):
        sent = np.asarray(Image.open(io.BytesIO(read_photo(given_pixels, 1))))
        assert np.array_equal(sent, given_pixels)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: Any) -> None:
    with pytest.raises(InputError, match=r"must be RGB pixels, uint8 \[height, width, 3\], got"):
        read_photo(pixels, 10)


def test_a_stack_of_pixels_is_a_list_of_photos() -> None:
    refuse_single(np.zeros((2, 9, 9, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"put \[ \] around a single one"):
        refuse_single(np.zeros((9, 9, 3), np.uint8))  # type: ignore[arg-type]


# --- downscaling


def _difference(photo: bytes, canvas: Preprocessing) -> np.ndarray:
    small = preprocess(downscaled(photo, canvas), canvas)
    return np.abs(small.astype(int) - preprocess(photo, canvas))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_phones_photo_becomes_some_kilobytes_that_look_alike(name: str) -> None:
    photo = saved(photograph(name, 1200, 1600, noise=4), "JPEG", quality=92)
    small = downscaled(photo, CANVAS)
    assert len(small) < 45_000 < 200_000 < len(photo)
    difference = _difference(photo, CANVAS)
    assert difference.mean() < 3
    assert np.percentile(difference, 99.9) < 30


def test_much_detail_costs_bytes_and_not_pixels() -> None:
    photo = saved(mosaic(3000, 2000), "JPEG", quality=92)
    assert len(downscaled(photo, CANVAS)) < 80_000
    assert _difference(photo, CANVAS).mean() < 5


@pytest.mark.parametrize("fit", ["cover", "contain"])
def test_turned_and_coloured_photos_arrive_upright_and_in_srgb(fit: Any) -> None:
    canvas = Preprocessing(height=96, width=64, fit=fit)
    picture = photograph("astronaut", 800, 500)
    photo = saved(picture, "JPEG", quality=95, exif=with_orientation(6), icc_profile=DISPLAY_P3)
    assert len(downscaled(photo, canvas)) < 10_000
    assert _difference(photo, canvas).mean() < 7  # turned the wrong way: some 60


def test_a_photo_that_is_small_already_goes_as_it_is() -> None:
    photo = saved(photograph("astronaut", 100, 100), "JPEG", quality=40)
    assert downscaled(photo, CANVAS) is photo


@pytest.mark.parametrize("photo", [b"", b"no photo", saved(mosaic(90, 60))[:-900], bytes(2_000)])
def test_downscaling_refuses_what_the_server_refuses(photo: bytes) -> None:
    canvas = Preprocessing(height=64, width=96, max_bytes=1_999)
    with pytest.raises(PhotoError) as by_server:
        preprocess(photo, canvas)
    with pytest.raises(PhotoError) as by_client:
        downscaled(photo, canvas)
    assert str(by_client.value) == str(by_server.value)
    assert by_client.value.code == by_server.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "http://localhost:99999"},
        {"url": "localhost:99999"},
        {"url": None},
        {"timeout_s": "3"},
        {"max_in_flight": 1.5},
        {"cache_size": -1},
    ],
)
def test_senseless_encoders_are_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Encoder(**arguments)


def test_a_broken_certificate_is_called_so(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    for url in ("localhost:8001", "https://localhost"):
        with pytest.raises(InputError, match="holds no certificate in PEM format"):
            Encoder(url, root_certificates=broken)
