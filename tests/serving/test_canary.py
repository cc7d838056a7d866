"""The canary on the real server: is the model well, ill, or too busy to say?"""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import math
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper
from PIL import Image
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from vibematch.errors import ServerError
from vibematch.preprocess import Preprocessing, preprocess
from vibematch_export.canary import MIN_COSINE, draw_canary
from vibematch_export.repository import CANARY, EMBED, ENCODER
from vibematch_export.triton import TritonServer

REQUEST = {"inputs": [{"name": "run", "datatype": "BOOL", "shape": [1], "data": [True]}]}
NOT_FINITE = """
def _answer(embeddings):
    vectors = np.full_like(embeddings, np.nan)
    return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", vectors)])
"""
FAILING = """
def _fail(self, requests):
    raise RuntimeError("no memory")


TritonPythonModel.execute = _fail
"""
SLOW = """
_execute = TritonPythonModel.execute


def _slowly(self, requests):
    __import__("time").sleep(0.2)
    return _execute(self, requests)


TritonPythonModel.execute = _slowly
"""
CRASH_REPORT = """
__import__("faulthandler").enable(open({path!r}, "a"))
"""


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the canary's process writes if it crashes."""
    return tmp_path_factory.mktemp("crashes") / "crashes"


@pytest.fixture(scope="module")
def own_repository(
    repository: Path, crashes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    copy = shutil.copytree(repository, tmp_path_factory.mktemp("canary") / "repository")
    with (copy / CANARY / "1" / "model.py").open("a") as code:
        code.write(CRASH_REPORT.format(path=str(crashes)))
    return copy


@pytest.fixture(scope="module")
def own(own_repository: Path, crashes: Path) -> Iterator[TritonServer]:
    """A server whose ``style_embed`` these tests may change, and change back."""
    with TritonServer(own_repository) as server:
        assert math.isnan(_gauge(server)), "nobody has measured it yet"
        yield server
    assert crashes.read_text() == ""


def _check(server: TritonServer) -> float:
    (cosine,) = server.control.infer(CANARY, 1, REQUEST, timeout_s=60)["outputs"]
    assert (cosine["datatype"], cosine["shape"]) == ("FP32", [1])
    return float(cosine["data"][0])


def _gauge(server: TritonServer) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
        text = response.read().decode()
    (value,) = re.findall(r'^vibematch_canary_cosine\{version="1"\} (\S+)$', text, re.M)
    return float(value)


@contextmanager
def _changed(server: TritonServer, *paths: Path) -> Iterator[None]:
    """Files of ``style_embed`` may be changed; what they were is back afterwards."""
    before = {path: path.read_bytes() for path in paths}
    for path, content in before.items():
        path.unlink()  # it may be a hard link
        path.write_bytes(content)
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)
        server.control.load(EMBED)


def _reweigh(graph: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(graph)
    (projection,) = [tensor for tensor in model.graph.initializer if tensor.name == "projection"]
    changed = change(numpy_helper.to_array(projection)).astype(np.float32)
    projection.CopyFrom(numpy_helper.from_array(changed, "projection"))
    onnx.save(model, graph)


def test_a_healthy_model_gives_the_proven_vector(own: TritonServer) -> None:
    assert _check(own) == pytest.approx(1, abs=1e-6)
    assert _gauge(own) == pytest.approx(1, abs=1e-6)


def test_other_weights_are_noticed(own: TritonServer, own_repository: Path) -> None:
    graph = own_repository / EMBED / "1" / "model.onnx"
    with _changed(own, graph):
        _reweigh(graph, lambda weights: weights[:, ::-1])
        own.control.load(EMBED)
        cosine = _check(own)
        assert cosine < MIN_COSINE
        assert _gauge(own) == pytest.approx(cosine)
    assert _check(own) >= MIN_COSINE


@pytest.mark.parametrize(
    ("ailment", "complaint"),
    [
        (FAILING, "style_embed fails on the canary photo.*no memory"),
        (NOT_FINITE, "zero or not finite"),  # of a backend that does not look at what it answers
    ],
    ids=["fails", "not finite"],
)
def test_an_ill_model_is_an_error(
    ailment: str, complaint: str, own: TritonServer, own_repository: Path
) -> None:
    code = own_repository / EMBED / "1" / "model.py"
    assert _check(own) >= MIN_COSINE
    with _changed(own, code):
        code.write_text(code.read_text() + ailment)
        own.control.load(EMBED)
        with pytest.raises(ServerError, match=complaint):
            _check(own)
        assert _gauge(own) == 0
    assert _check(own) >= MIN_COSINE


def test_a_missing_step_is_an_error(own: TritonServer) -> None:
    try:
        own.control.unload(EMBED)
        with pytest.raises(ServerError, match="style_embed"):
            _check(own)
        assert _gauge(own) == 0
    finally:
        own.control.load(EMBED)
    assert _check(own) >= MIN_COSINE


def test_an_overloaded_model_is_not_ill(
    own: TritonServer, own_repository: Path, photos: list[bytes]
) -> None:
    """The check gets no answer, and the cosine stays what it was."""
    config_path = own_repository / EMBED / "config.pbtxt"
    code = own_repository / EMBED / "1" / "model.py"
    busy = True

    def encode_on(_: int) -> None:
        with grpc.InferenceServerClient(own.grpc_url) as client:
            tensor = grpc.InferInput("photo", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[photos[0]]], np.object_))
            while busy:
                with suppress(InferenceServerException):
                    client.infer(ENCODER, [tensor])

    with _changed(own, config_path, code), concurrent.futures.ThreadPoolExecutor(24) as pool:
        config = text_format.Parse(config_path.read_text(), pb.ModelConfig())
        config.dynamic_batching.default_queue_policy.max_queue_size = 1
        config_path.write_text(text_format.MessageToString(config))
        code.write_text(code.read_text() + SLOW)
        own.control.load(EMBED)
        assert _check(own) >= MIN_COSINE
        clients = pool.map(encode_on, range(24))
        try:
            with pytest.raises(ServerError, match="maximum queue size"):
                for _ in range(100):
                    _check(own)
        finally:
            busy = False
        list(clients)
        assert _gauge(own) >= MIN_COSINE
    assert _check(own) >= MIN_COSINE


@pytest.mark.slow
def test_a_thousand_checks_leave_nothing_behind(repository: Path) -> None:
    with TritonServer(repository) as server:
        for _ in range(50):
            _check(server)
        memory, shared = _footprint(server)
        for _ in range(1000):
            _check(server)
        memory_after, shared_after = _footprint(server)
    assert shared_after == shared
    assert memory_after < 1.02 * memory


def _footprint(server: TritonServer) -> tuple[int, int]:
    """kB of the server's and its model processes' own memory, and blocks of shared memory."""
    port = server.http_url.rpartition(":")[2]
    commands = {path.parent: path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline")}
    (main,) = (folder for folder, line in commands.items() if f"--http-port={port}\0" in line)
    (prefix,) = re.findall(r"shm-region-prefix-name=([^\0]+)", commands[main])
    memory = 0
    for folder in commands:
        with suppress(OSError):  # another process, which has ended meanwhile
            if _session(folder) == _session(main):
                memory += int(re.findall(r"RssAnon:\s+(\d+)", (folder / "status").read_text())[0])
    regions = Path("/dev/shm").glob(f"{prefix}*")  # noqa: S108
    return memory, sum(region.stat().st_blocks for region in regions)


def _session(process: Path) -> int:
    return os.getsid(int(process.name))


def test_the_photo_is_small_and_always_the_same() -> None:
    photo = draw_canary()
    assert photo == draw_canary()
    assert len(photo) < 64_000
    with Image.open(io.BytesIO(photo)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")


@pytest.mark.parametrize("fit", ["cover", "contain"])
@pytest.mark.parametrize("size", [(256, 192), (448, 448), (512, 384)])
def test_the_photo_has_colour_and_texture_in_every_part(fit: Any, size: tuple[int, int]) -> None:
    """What a fault in a part of the canvas, a channel or a scale would change."""
    canvas = Preprocessing(*size, fit=fit)
    pixels = preprocess(draw_canary(), canvas).astype(float)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    drawn = pixels[:, top : top + side, left : left + side]
    quarters = [slice(start, start + side // 4) for start in range(0, side, side // 4)]
    for rows, columns in itertools.product(quarters, quarters):
        block = drawn[:, rows, columns]
        assert (block.std(axis=(1, 2)) > 15).all(), "each channel varies"
        assert np.abs(np.diff(block, axis=2)).mean() > 4, "finely, too"
    assert np.ptp(drawn.mean(axis=(1, 2))) < 128, "no channel drowns the others"
