"""Whatever people send: each photo gets a vector or a clear refusal, and nothing gets broken."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.serving_load import resident_mib, server_processes
from tests import photos
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from vibematch.manifest import Manifest
from vibematch.photo_bytes import MAX_BYTES
from vibematch.preprocess import Preprocessing, preprocess
from vibematch_export.repository import write_repository
from vibematch_export.triton import TritonServer

CLIENTS = 8
REASONS = (
    "the photo",  # is empty, has too many bytes or pixels, is too narrow, truncated or damaged
    "not a JPEG, PNG or WEBP photo",
)


def _require_unit(vector: np.ndarray, photo: bytes) -> None:
    length = np.linalg.norm(vector)
    if length == 0:  # what the stand-in model, unlike real ones, makes of black photos
        assert not preprocess(photo, Preprocessing(height=64, width=96)).any()
    else:
        assert abs(length - 1) < 1e-3


def _require_reason(reason: str) -> None:
    reason = reason.removeprefix("in ensemble 'style_encoder', ")
    assert reason.startswith(REASONS), reason


def _by_grpc(client: Any, photo: bytes) -> str:
    tensor = grpc.InferInput("photo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    try:
        answer = client.infer("style_encoder", [tensor], client_timeout=60)
    except InferenceServerException as error:
        assert error.status() == "StatusCode.INVALID_ARGUMENT", str(error)
        _require_reason(error.message())
        return "refused"
    _require_unit(answer.as_numpy("embedding"), photo)
    return "vector"


def _by_http(server: TritonServer, photo: bytes) -> str:
    content = len(photo).to_bytes(4, "little") + photo
    tensor = {
        "name": "photo",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(content)},
    }
    embedding = {"name": "embedding", "parameters": {"binary_data": False}}
    header = json.dumps({"inputs": [tensor], "outputs": [embedding]}).encode()
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/style_encoder/infer",
        header + content,
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            _require_unit(np.array(json.load(response)["outputs"][0]["data"]), photo)
    except urllib.error.HTTPError as error:
        assert error.code == 400, error.read()
        _require_reason(json.load(error)["error"])
        return "refused"
    return "vector"


def _send(server: TritonServer, files: Iterable[tuple[str, bytes]]) -> collections.Counter[str]:
    """How many got a vector and how many were refused, by turns over HTTP and gRPC."""
    with grpc.InferenceServerClient(server.grpc_url) as client:

        def ask(number: int, name: str, photo: bytes) -> str:
            try:
                return _by_http(server, photo) if number % 2 else _by_grpc(client, photo)
            except Exception as error:
                raise AssertionError(f"photo {number} ({name}): {error!r}") from error

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            waiting: collections.deque[concurrent.futures.Future[str]] = collections.deque()
            outcomes: collections.Counter[str] = collections.Counter()
            for number, (name, photo) in enumerate(files):
                waiting.append(pool.submit(ask, number, name, photo))
                if len(waiting) == 2 * CLIENTS:
                    outcomes[waiting.popleft().result()] += 1
            outcomes.update(future.result() for future in waiting)
    return outcomes


def _processes(server: TritonServer) -> dict[int, str]:
    """tritonserver and its children: process id → name."""
    found = server_processes(server.http_url)
    return {int(process.name): (process / "comm").read_text().strip() for process in found}


def _resident_mib(processes: Iterable[int]) -> dict[int, float]:
    return {process: resident_mib(Path("/proc", str(process))) for process in processes}


def test_hostile_photos_are_answered_and_do_no_harm(server: TritonServer) -> None:
    before = _processes(server)
    outcomes = _send(server, photos.hostile_photos(seed=1, count=300))
    assert outcomes.total() == 300
    assert min(outcomes["vector"], outcomes["refused"]) > 50
    assert _processes(server) == before
    valid = _send(server, photos.valid_photos().items())
    assert valid == {"vector": len(photos.valid_photos())}


@pytest.mark.slow
def test_ten_thousand_hostile_photos(exported: Path, tmp_path: Path) -> None:
    model = shutil.copytree(exported, tmp_path / "exported")
    manifest = Manifest.load(model)
    canvas = dataclasses.replace(manifest.preprocessing, max_bytes=MAX_BYTES)
    dataclasses.replace(manifest, preprocessing=canvas).save(model)
    with TritonServer(write_repository(tmp_path / "repository", model)) as server:
        before = _processes(server)
        valid = [*photos.valid_photos().items()] * 40 + [*photos.large_photos().items()] * 8
        assert _send(server, valid) == {"vector": len(valid)}
        time.sleep(2)
        warm = _resident_mib(before)
        start = time.monotonic()
        outcomes = _send(server, photos.hostile_photos(seed=2, count=10_000, large=0.005))
        seconds = time.monotonic() - start
        assert outcomes.total() == 10_000
        assert _processes(server) == before
        time.sleep(2)
        after = _resident_mib(before)
        for process, name in before.items():
            print(f"{name}: {warm[process]:.0f} MiB, then {after[process]:.0f} MiB")
        print(f"{dict(outcomes)} in {seconds:.0f} s")
        assert sum(after.values()) < 1.1 * sum(warm.values())
        assert _send(server, photos.valid_photos().items())["refused"] == 0
