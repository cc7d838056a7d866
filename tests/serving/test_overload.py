"""More photos than the model can do: what is refused, what is computed, and what stays whole."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pytest
from benchmarks.serving_load import SENDERS, prepare
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from vibematch.encoder import Encoder
from vibematch_export.triton import TritonServer

LOAD = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"
SECONDS_PER_PHOTO = 0.2
SLOW = f"""

def _slow(requests):
    import time
    for _ in requests:
        time.sleep({SECONDS_PER_PHOTO})
        with open(__file__ + ".computed", "a") as file:
            file.write("photo\\n")
"""


class SlowServer:
    """A server whose model needs 0.2 s for a photo, and counts them."""

    def __init__(self, server: TritonServer, computed: Path) -> None:
        self.server = server
        self.urls = {"grpc": server.grpc_url, "http": server.http_url}
        self._computed = computed

    def computed(self) -> int:
        return len(self._computed.read_text().splitlines()) if self._computed.exists() else 0

    def burst(self, protocol: str, photo: bytes, count: int, wait_s: float = 0) -> list[str]:
        """Send ``count`` photos at once: what became of each, first done first."""
        return asyncio.run(self._burst(protocol, photo, count, wait_s))

    async def _burst(self, protocol: str, photo: bytes, count: int, wait_s: float) -> list[str]:
        request = prepare(photo, wait_s)
        async with SENDERS[protocol](self.urls[protocol], 30) as send:
            asked = [send(request) for _ in range(count)]
            return [await outcome for outcome in asyncio.as_completed(asked)]

    def waiting(self) -> dict[str, int]:
        """Model → requests that wait there."""
        with urllib.request.urlopen(f"http://{self.server.metrics_url}/metrics") as page:
            lines = page.read().decode().splitlines()
        found = [line for line in lines if line.startswith("nv_inference_pending_request_count{")]
        return {line.split('"')[1]: int(line.split()[-1]) for line in found}

    def assert_healthy(self, photo: bytes) -> None:
        with Encoder(self.urls["grpc"], timeout_s=10) as encoder:
            assert encoder.encode([photo]).shape == (1, 16)
        waiting = self.waiting()
        assert set(waiting) >= {"style_preprocess", "style_embed", "style_encoder"}
        assert not any(waiting.values())


@contextmanager
def _slow_server(repository: Path, max_queue_size: int, wait_s: float) -> Iterator[SlowServer]:
    code = repository / "style_embed" / "1" / "model.py"
    slow = code.read_text().replace("photos = [", "_slow(requests)\n        photos = [", 1)
    assert "_slow(requests)" in slow
    code.write_text(slow + SLOW)
    for step in ("style_preprocess", "style_embed"):
        path = repository / step / "config.pbtxt"
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size and policy.default_timeout_microseconds
        policy.max_queue_size = max_queue_size
        policy.default_timeout_microseconds = int(wait_s * 1e6)
        path.write_text(text_format.MessageToString(config))
    manifest = repository / "style_preprocess" / "1" / "manifest.json"
    text = manifest.read_text()
    assert '"max_bytes": 200000' in text
    manifest.write_text(text.replace('"max_bytes": 200000', '"max_bytes": 20000000'))
    with TritonServer(repository) as server:
        yield SlowServer(server, code.with_name("model.py.computed"))


@pytest.fixture(scope="module")
def short_queue(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowServer]:
    """Six photos may wait at each step, and do not wait too long."""
    copy = copytree(repository, tmp_path_factory.mktemp("short") / "repository")
    with _slow_server(copy, max_queue_size=6, wait_s=30) as server:
        yield server


@pytest.fixture(scope="module")
def short_wait(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowServer]:
    """Any number of photos may wait, for a second."""
    copy = copytree(repository, tmp_path_factory.mktemp("wait") / "repository")
    with _slow_server(copy, max_queue_size=1000, wait_s=1) as server:
        yield server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_photos_beyond_the_bound_are_refused_at_once(
    protocol: str, short_queue: SlowServer, photos: list[bytes]
) -> None:
    before = short_queue.computed()
    outcomes = short_queue.burst(protocol, photos[0], 60)
    counts = Counter(outcomes)
    assert set(counts) == {"answered", "rejected"}
    assert counts["rejected"] >= 30  # two queues of 6, two batches decoding, one in the model
    assert "rejected" not in outcomes[-6:]  # whoever waits in the last queue outlasts them all
    assert short_queue.computed() - before == counts["answered"]
    short_queue.assert_healthy(photos[0])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_photo_waits_no_longer_than_its_sender_wants(
    protocol: str, short_queue: SlowServer, photos: list[bytes]
) -> None:
    before = short_queue.computed()
    counts = Counter(short_queue.burst(protocol, photos[0], 6, wait_s=0.1))
    assert set(counts) == {"answered", "rejected"}
    assert short_queue.computed() - before == counts["answered"]
    counts = Counter(short_queue.burst(protocol, photos[0], 6, wait_s=20))
    assert counts == {"answered": 6}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_photos_that_waited_too_long_are_never_computed(
    protocol: str, short_wait: SlowServer, photos: list[bytes]
) -> None:
    before = short_wait.computed()
    counts = Counter(short_wait.burst(protocol, photos[0], 40))  # 8 s of work
    assert set(counts) == {"answered", "rejected"}
    assert counts["rejected"] >= 20
    assert short_wait.computed() - before == counts["answered"]
    short_wait.assert_healthy(photos[0])


@pytest.mark.slow
def test_a_server_asked_four_times_too_much_keeps_deadlines_and_recovers(
    short_wait: SlowServer, photos: list[bytes]
) -> None:
    before = short_wait.computed()
    command = [sys.executable, str(LOAD), "--grpc", short_wait.urls["grpc"]]
    command += ["--http", short_wait.urls["http"], "--clients", "6", "--times", "4"]
    command += ["--seconds", "3", "--deadline", "5", "--json"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    closed, overload = json.loads(ran.stdout)["phases"]
    assert closed["errors"] == overload["errors"] == {}
    assert closed["late"] == overload["late"] == 0
    assert overload["rejected"] > overload["answered"] > 0
    assert short_wait.computed() > before
    short_wait.assert_healthy(photos[0])
