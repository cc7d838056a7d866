"""Going over to another model under traffic, on the real server."""

from __future__ import annotations

import collections
import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tritonclient import grpc

from vibematch import Encoder, MatchingEngine
from vibematch.errors import (
    InputError,
    ModelChangedError,
    ModelMismatchError,
    ServerError,
    ServerUnavailableError,
)
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing, preprocess
from vibematch_export.canary import write_canary
from vibematch_export.control import Control, announced, find_server, require_nobody_serves
from vibematch_export.publish import PublishError, publish, roll_back
from vibematch_export.repository import (
    EMBED,
    ENCODER,
    add_version,
    point_to,
    read_manifest,
    read_version,
    versions,
)
from vibematch_export.triton import TritonServer


@pytest.fixture(scope="module")
def own_repository(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(repository, tmp_path_factory.mktemp("publish") / "repository")


@pytest.fixture(scope="module")
def shared(own_repository: Path) -> Iterator[TritonServer]:
    with TritonServer(own_repository) as server:
        yield server


@pytest.fixture
def running(shared: TritonServer, own_repository: Path, exported: Path) -> Iterator[TritonServer]:
    """A server that answers with ``exported`` when the test begins."""
    yield shared
    if read_manifest(own_repository) != Manifest.load(exported):
        roll_back(own_repository, shared.control)


def _retrained(exported: Path, folder: Path, seed: int) -> Path:
    """The same model with another projection."""
    shutil.copytree(exported, folder)
    model = onnx.load(folder / "model.onnx")
    (projection,) = [tensor for tensor in model.graph.initializer if tensor.name == "projection"]
    values = np.random.default_rng(seed).normal(size=numpy_helper.to_array(projection).shape)
    projection.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "projection"))
    onnx.save(model, folder / "model.onnx")
    manifest = dataclasses.replace(Manifest.load(exported), head_sha256=f"{seed}" * 64)
    manifest.save(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    write_canary(
        folder, lambda pixels: session.run(None, {"pixels": pixels})[0], manifest.preprocessing
    )
    return folder


@pytest.fixture(scope="session")
def retrained(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _retrained(exported, tmp_path_factory.mktemp("retrained") / "model", seed=7)


def _vector(model: Path, photo: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(model / "model.onnx")
    pixels = preprocess(photo, Manifest.load(model).preprocessing)[None]
    return session.run(None, {"pixels": pixels})[0][0]


class Load:
    """Threads that ask without a pause and check each answer against the model it names."""

    def __init__(self, url: str, photo: bytes, models: list[Path], threads: int = 4) -> None:
        self._expected = {Manifest.load(m).fingerprint: _vector(m, photo) for m in models}
        self._url, self._photo = url, photo
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]
        self._stop = threading.Event()
        self.answers: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failures: list[str] = []

    def _ask(self) -> None:
        tensor = grpc.InferInput("photo", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[self._photo]], dtype=np.object_))
        with grpc.InferenceServerClient(self._url) as client:
            while not self._stop.is_set():
                try:
                    answer = client.infer(ENCODER, [tensor])
                    fingerprint = answer.as_numpy("fingerprint")[0, 0].decode()
                    vector = answer.as_numpy("embedding")[0]
                    np.testing.assert_allclose(vector, self._expected[fingerprint], atol=1e-5)
                    self.answers[fingerprint, answer.get_response().model_version] += 1
                except Exception as error:
                    self.failures.append(str(error))
                    return

    def waited_for_more(self) -> None:
        before = self.answers.total()
        deadline = time.monotonic() + 20
        while self.answers.total() < before + 20 and not self.failures:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def test_a_model_changes_under_load_without_a_failed_request(
    running: TritonServer,
    own_repository: Path,
    exported: Path,
    retrained: Path,
    photos: list[bytes],
    tmp_path: Path,
) -> None:
    again = _retrained(exported, tmp_path / "again", seed=8)
    names = [Manifest.load(model).fingerprint for model in (exported, retrained, again)]
    start = read_version(own_repository)
    load = Load(running.grpc_url, photos[0], [exported, retrained, again])
    with load.running():
        load.waited_for_more()
        first = publish(retrained, own_repository, running.control)
        load.waited_for_more()
        back = roll_back(own_repository, running.control)
        load.waited_for_more()
        third = publish(again, own_repository, running.control)
        load.waited_for_more()
    assert load.failures == []
    assert set(load.answers) == {(names[i], str(start + i)) for i in range(3)}
    assert (first.version, first.previous) == (start + 1, start)
    assert first.manifest == Manifest.load(retrained)
    assert first.cosine == pytest.approx(1, abs=1e-5)
    assert (back.version, back.previous) == (start, start + 1)
    assert back.manifest == Manifest.load(exported)
    assert (third.version, third.previous) == (start + 2, start)
    assert versions(own_repository) == [start, start + 2]
    assert running.control.states(EMBED)[start + 1] != "READY"
    with Encoder(running.grpc_url) as encoder:
        assert encoder.manifest == Manifest.load(again)


def test_after_a_restart_the_published_model_answers_and_can_be_taken_back(
    repository: Path, exported: Path, retrained: Path, photos: list[bytes], tmp_path: Path
) -> None:
    copy = shutil.copytree(repository, tmp_path / "repository")
    add_version(copy, retrained, 2)
    point_to(copy, 2, Manifest.load(retrained))
    with TritonServer(copy) as server, Encoder(server.grpc_url) as encoder:
        assert encoder.manifest == Manifest.load(retrained)
        (vector,) = encoder.encode(photos[:1])
        np.testing.assert_allclose(vector, _vector(retrained, photos[0]), atol=1e-5)
        roll_back(copy, server.control)
        assert encoder.info().manifest == Manifest.load(exported)
        assert encoder.manifest == Manifest.load(exported)  # asked anew by info


def _damaged(retrained: Path, folder: Path, damage: str) -> Path:
    model = shutil.copytree(retrained, folder)
    match damage:
        case "weights":
            (model / "model.onnx").write_bytes(b"garbage")
        case "canary":  # another machine's vector, say
            vector = np.load(model / "canary.npy")
            np.save(model / "canary.npy", np.roll(vector, 1))
        case "canary photo":
            (model / "canary.png").write_bytes(b"no photo")
        case "warm-up":
            text = (model / "model.onnx").read_bytes()
            (model / "model.onnx").write_bytes(text.replace(b"pixels", b"pixelz"))
    return model


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("weights", r"version \d+ did not load: .*model\.onnx cannot be loaded"),
        ("canary", r"has cosine -?\d\.\d+ .* and 0\.999 is needed"),
        ("canary photo", r"cannot encode its canary photo: .*not a JPEG"),
        ("warm-up", r"version \d+ did not load: .*a batch of 1 cannot be run .*pixelz"),
    ],
)
def test_a_bad_model_never_answers(
    damage: str,
    message: str,
    running: TritonServer,
    own_repository: Path,
    exported: Path,
    retrained: Path,
    photos: list[bytes],
    tmp_path: Path,
) -> None:
    answering, before = read_version(own_repository), versions(own_repository)
    load = Load(running.grpc_url, photos[0], [exported])
    with load.running():
        load.waited_for_more()
        with pytest.raises(PublishError, match=message):
            publish(_damaged(retrained, tmp_path / "bad", damage), own_repository, running.control)
        load.waited_for_more()
    assert load.failures == []
    assert {version for _, version in load.answers} == {str(answering)}
    assert read_version(own_repository) == answering
    assert versions(own_repository) == before, "what a rollback needs is still there"


def test_models_that_cannot_take_over_are_refused_before_anything_happens(
    repository: Path, exported: Path, retrained: Path, tmp_path: Path
) -> None:
    own_repository = shutil.copytree(repository, tmp_path / "repository")
    nobody = Control("127.0.0.1:1", "key")
    with pytest.raises(InputError, match="answers with already"):
        publish(exported, own_repository, nobody)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"preprocessing": Preprocessing(height=96, width=96)}, "sees 96 x 96 pixels and"),
        ({"embedding_dim": 8}, "vectors of 8 numbers and the server's model of 16"),
        ({"precision": "bf16"}, "is bf16, which the server's profile cpu cannot run"),
    ]
    for number, (change, message) in enumerate(changes):
        model = shutil.copytree(retrained, tmp_path / str(number))
        dataclasses.replace(Manifest.load(retrained), **change).save(model)
        with pytest.raises(InputError, match=message):
            publish(model, own_repository, nobody)
    with pytest.raises(InputError, match="nothing to go back to"):
        roll_back(own_repository, nobody)
    with pytest.raises(ServerUnavailableError, match="no tritonserver answers"):
        publish(retrained, own_repository, nobody)
    assert versions(own_repository) == [1]


def test_a_failed_publish_leaves_the_way_back(
    running: TritonServer, own_repository: Path, exported: Path, retrained: Path, tmp_path: Path
) -> None:
    publish(retrained, own_repository, running.control)
    worse = _damaged(_retrained(exported, tmp_path / "next", seed=9), tmp_path / "bad", "weights")
    with pytest.raises(PublishError):
        publish(worse, own_repository, running.control)
    assert read_manifest(own_repository) == Manifest.load(retrained)
    assert roll_back(own_repository, running.control).manifest == Manifest.load(exported)


def test_the_interface_is_closed_to_other_keys(
    running: TritonServer, own_repository: Path, retrained: Path
) -> None:
    stranger = dataclasses.replace(running.control, key="guessed-a-key-0123456789")
    with pytest.raises(ServerError, match="does not accept this key"):
        stranger.unload(ENCODER)
    with pytest.raises(ServerError, match="does not accept this key"):
        publish(retrained, own_repository, stranger)
    states = running.control.states(ENCODER)
    assert states[read_version(own_repository)] == "READY"


def test_client_notices_that_the_model_changed_meanwhile(
    running: TritonServer,
    own_repository: Path,
    retrained: Path,
    photos: list[bytes],
    tmp_path: Path,
) -> None:
    with (
        Encoder(running.grpc_url, max_in_flight=1, cache_size=0) as encoder,
        MatchingEngine.open(tmp_path / "index", encoder=encoder) as engine,
    ):
        engine.add("before", photos=photos[:1])

        def changing() -> Iterator[bytes]:
            yield photos[0]
            publish(retrained, own_repository, running.control)
            yield photos[1]

        before, after = encoder.encode_each(changing())
        assert isinstance(before, np.ndarray)
        assert isinstance(after, ModelChangedError)
        with pytest.raises(ModelMismatchError):
            engine.add("after", photos=photos[1:2])
        assert "after" not in engine


def test_all_vectors_of_one_call_come_from_one_model(
    running: TritonServer,
    own_repository: Path,
    retrained: Path,
    photos: list[bytes],
    tmp_path: Path,
) -> None:
    with Encoder(running.grpc_url, max_in_flight=1, cache_size=0) as encoder:
        stop = threading.Event()
        done: list[np.ndarray] = []

        def encode() -> None:
            while not stop.is_set():
                done.append(encoder.encode(photos[:1] * 10))

        thread = threading.Thread(target=encode)
        thread.start()
        try:
            publish(retrained, own_repository, running.control)
        finally:
            time.sleep(0.2)
            stop.set()
            thread.join()
    assert all(np.allclose(vectors, vectors[0], atol=1e-5) for vectors in done)
    assert not np.allclose(done[0][0], done[-1][0], atol=1e-2)


# --- the command


def _vibematch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vibematch", *map(str, arguments)], capture_output=True, text=True
    )


def test_command_publishes_to_the_server_of_the_repository(
    running: TritonServer, own_repository: Path, retrained: Path
) -> None:
    start = read_version(own_repository)
    absent = _vibematch("publish", retrained, "--repository", own_repository)
    assert absent.returncode == 1
    assert "no server runs on" in absent.stderr
    with announced(own_repository, running.control) as can_publish:
        assert can_publish
        published = _vibematch("publish", retrained, "--repository", own_repository)
        assert (published.returncode, published.stderr) == (0, "")
        assert "answers now" in published.stdout
        assert read_manifest(own_repository) == Manifest.load(retrained)
        back = _vibematch("publish", "--rollback", "--repository", own_repository)
        assert f"version {start} answers now" in back.stdout
        with pytest.raises(InputError, match="change its model with `vibematch publish`"):
            require_nobody_serves(own_repository)
    assert find_server(own_repository) is None


def test_announcement_is_private_and_dies_with_its_server(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    control = Control("127.0.0.1:8000", "secret")
    path = tmp_path / "repository.serving.json"
    with announced(repository, control):
        assert path.stat().st_mode & 0o777 == 0o600
        assert find_server(repository) == control
    assert not path.exists()
    path.write_text("left by a server that was killed")
    assert find_server(repository) is None
    with announced(repository, control):
        assert find_server(repository) == control


def test_where_nothing_can_be_written_nothing_is_announced(tmp_path: Path) -> None:
    with announced(tmp_path / "no such folder" / "repository", Control("h:1", "key")) as can:
        assert not can
