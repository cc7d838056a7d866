"""What the server says about its photos, against what was sent to it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import re
import shutil
import struct
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from vibematch.manifest import Manifest
from vibematch_export.repository import PREPROCESS, add_version, write_repository
from vibematch_export.triton import TritonServer

REASONS = {
    *("empty", "too_many_bytes", "too_many_pixels", "not_a_photo", "damaged", "too_narrow"),
    "internal",
}
OUR_FAULT = b"a photo on which the server fails"
FAILURES = "vibematch_photo_failures_total"
DECODED = "vibematch_photo_decode_seconds"
MEGAPIXELS = "vibematch_photo_megapixels"
# Writes down which process took a photo, and fails on one of them.
SPY = f"""
import os
_open = open_photo


def open_photo(photo, max_bytes, max_pixels):
    with Path(__file__).with_name("processes").open("a") as file:
        print(os.getpid(), file=file)
    if photo == {OUR_FAULT!r}:
        raise RuntimeError("no fault of the photo")
    return _open(photo, max_bytes, max_pixels)
"""

Samples = dict[str, float]


def samples(server: TritonServer) -> Samples:
    """Series → value, of what we count about photos."""
    time.sleep(0.3)  # they are sent when the photos are gone
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
        text = response.read().decode()
    lines = re.findall(r"^(vibematch_photo_\S+) (\S+)$", text, re.M)
    return {name: float(value) for name, value in lines}


def changes(server: TritonServer, act: Callable[[], object]) -> Samples:
    """What an act adds to them."""
    before = samples(server)
    act()
    return {
        name: value - before[name]
        for name, value in samples(server).items()
        if value != before[name]
    }


def _failure(reason: str) -> str:
    return f'{FAILURES}{{reason="{reason}"}}'


@dataclasses.dataclass
class _Own:
    """A server of these tests, and what it said before its first photo."""

    server: TritonServer
    repository: Path
    fresh: Samples


@pytest.fixture(scope="module")
def own(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Own]:
    """Photos can be too narrow for this model, and the server can fail on one."""
    folder = tmp_path_factory.mktemp("metrics")
    model = shutil.copytree(exported, folder / "model")
    manifest = Manifest.load(model)
    canvas = dataclasses.replace(manifest.preprocessing, fit="contain")
    dataclasses.replace(manifest, preprocessing=canvas).save(model)
    repository = write_repository(folder / "repository", model)
    code = repository / PREPROCESS / "1" / "model.py"
    code.write_text(code.read_text() + SPY)
    with TritonServer(repository) as running:
        yield _Own(running, repository, samples(running))


def _ask(server: TritonServer, photos: list[bytes], *, version: str = "") -> Any:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        tensor = grpc.InferInput("photo", [len(photos), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(photos, dtype=np.object_)[:, None])
        return client.infer(PREPROCESS, [tensor], version)


def _send(server: TritonServer, photos: list[bytes]) -> str:
    """The status of a request."""
    try:
        _ask(server, photos)
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode.")
    return "OK"


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def _huge_png() -> bytes:
    """Some bytes that say they are 400 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    small = _png(8, 8)
    checked = header + struct.pack(">I", zlib.crc32(header))
    return small[:12] + checked + small[33:]


def test_every_series_is_there_before_the_first_photo(own: _Own) -> None:
    expected = {*map(_failure, REASONS), f"{DECODED}_count", f"{MEGAPIXELS}_count"}
    assert expected <= own.fresh.keys()
    assert not any(own.fresh.values())


@pytest.mark.parametrize(
    ("reason", "photo"),
    [
        ("empty", b""),
        ("too_many_bytes", b"\xff" * 200_001),
        ("too_many_pixels", _huge_png()),
        ("not_a_photo", b"these bytes are no photo"),
        ("damaged", _png(300, 300)[:-60]),
        ("too_narrow", _png(1, 3000)),
        ("internal", OUR_FAULT),
    ],
    ids=lambda value: value if isinstance(value, str) else "photo",
)
def test_a_bad_photo_counts_by_its_reason(reason: str, photo: bytes, own: _Own) -> None:
    found = changes(own.server, lambda: _send(own.server, [photo]))
    assert found.pop(_failure(reason)) == 1
    assert found.pop(f"{DECODED}_count") == 1
    assert all(name.startswith(DECODED) for name in found), "nothing else counts"


def test_good_photos_count_with_their_own_size(own: _Own) -> None:
    sizes = [(100, 80), (640, 480), (1500, 1000), (2000, 1500)]
    photos = [_png(width, height) for width, height in sizes]
    found = changes(own.server, lambda: _send(own.server, photos))
    assert found[f"{DECODED}_count"] == found[f"{MEGAPIXELS}_count"] == len(sizes)
    pixels = sum(width * height for width, height in sizes)
    assert found[f"{MEGAPIXELS}_sum"] == pytest.approx(pixels / 1e6)
    within = {size: found[f'{MEGAPIXELS}_bucket{{le="{size}"}}'] for size in ("0.1", "1", "2", "4")}
    assert within == {"0.1": 1, "1": 2, "2": 3, "4": 4}
    assert found[f"{DECODED}_sum"] > 0
    assert not any(name.startswith(FAILURES) for name in found)


def test_a_request_counts_up_to_the_photo_that_fails_it(own: _Own) -> None:
    found = changes(own.server, lambda: _send(own.server, [_png(64, 64), b"", _png(64, 64)]))
    assert found[_failure("empty")] == 1
    assert found[f"{MEGAPIXELS}_count"] == 1
    assert found[f"{DECODED}_count"] == 2


def test_processes_add_up(own: _Own) -> None:
    processes = own.repository / PREPROCESS / "1" / "processes"
    photos = [_png(1200, 900), b""] * 40

    def send_all() -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda photo: _send(own.server, [photo]), photos))
        assert statuses == ["OK", "INVALID_ARGUMENT"] * 40

    processes.unlink(missing_ok=True)
    found = changes(own.server, send_all)
    assert len(set(processes.read_text().split())) == 2
    assert found[_failure("empty")] == 40
    assert found[f"{MEGAPIXELS}_count"] == 40
    assert found[f"{DECODED}_count"] == 80


@pytest.mark.slow
def test_versions_add_up_and_outlive_each_other(
    repository: Path, exported: Path, tmp_path: Path
) -> None:
    """Where metrics are deleted, Triton takes the others' series too, and processes crash."""
    own_repository = shutil.copytree(repository, tmp_path / "repository")
    crashes = tmp_path / "crashes"
    with TritonServer(own_repository) as server:

        def ask(version: str) -> None:
            _ask(server, [_png(64, 64)] * 3, version=version)
            with pytest.raises(InferenceServerException, match="empty"):
                _ask(server, [b""], version=version)

        ask("1")
        add_version(own_repository, exported, 2)
        for version in ("1", "2"):
            code = own_repository / PREPROCESS / version / "model.py"
            report = f'__import__("faulthandler").enable(open({str(crashes)!r}, "a"))'
            code.write_text(f"{code.read_text()}\n\n{report}\n")
        server.control.load(PREPROCESS)  # both: Triton 2.51 loads the first anew
        ask("1")
        ask("2")
        shutil.rmtree(own_repository / PREPROCESS / "1")
        server.control.load(PREPROCESS)
        deadline = time.monotonic() + 20
        while server.control.states(PREPROCESS)[1] != "UNAVAILABLE":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ask("2")
        found = samples(server)
        assert found[_failure("empty")] == 4
        assert found[f"{MEGAPIXELS}_count"] == 12
        assert found[f"{DECODED}_count"] == 16
    assert crashes.read_text() == ""
