"""Starting, failing to start, stopping, dying: nothing is ever left behind."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from vibematch import Encoder
from vibematch.errors import (
    InputError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from vibematch.manifest import Manifest
from vibematch_export import triton
from vibematch_export.control import find_server
from vibematch_export.repository import (
    point_to,
    read_manifest,
    read_version,
    write_repository,
)
from vibematch_export.triton import TritonServer

VIBEMATCH = [sys.executable, "-m", "vibematch"]
FREE_PORTS = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers of this test, and only they, keep their temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def own_repository(repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage or configure."""
    return shutil.copytree(repository, tmp_path / "repository")


def _processes(temporary: Path) -> list[str]:
    """Command lines of the server and its children: all of them name their temporary folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()  # empty for the dead
        except OSError:
            continue
        if str(temporary) in line:
            lines.append(line)
    return lines


def _shared_memory(server_name: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{server_name}*"))  # noqa: S108


def _server_name(temporary: Path) -> str:
    (folder,) = temporary.iterdir()
    return folder.name


def _eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def _serving(repository: Path, command: Sequence[str] = VIBEMATCH) -> Iterator[Any]:
    """``vibematch serve`` in a process of its own, handed out once it said it is ready."""
    process = subprocess.Popen(
        [*command, "serve", "--repository", str(repository), *FREE_PORTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert any(line.startswith("Ctrl-C") for line in process.stdout)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_stop_leaves_nothing(repository: Path, temporary: Path) -> None:
    server = TritonServer(repository)
    server.start()
    name = _server_name(temporary)
    assert len(_processes(temporary)) == 5  # server, two preprocessors, embedder, canary
    assert len(_shared_memory(name)) == 4
    server.stop()
    server.stop()
    assert not _processes(temporary)
    assert not _shared_memory(name)
    assert not list(temporary.iterdir())


def test_stop_cleans_up_after_a_killed_server(repository: Path, temporary: Path) -> None:
    with TritonServer(repository) as server:
        name = _server_name(temporary)
        (listening,) = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"--http-port={server.http_url.split(':')[1]}".encode() in path.read_bytes()
        ]
        os.kill(listening, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert _shared_memory(name)
    assert not _processes(temporary)
    assert not _shared_memory(name)


def test_killed_orphans_are_waited_for() -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        orphan = Path("/proc", parent.stdout.readline().decode().strip())
        assert triton._is_running(parent.pid)
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        triton._wait_until_gone(parent.pid)
        with suppress(OSError):
            assert not (orphan / "cmdline").read_bytes()  # empty for the dead


def test_killed_parent_takes_the_server_along(own_repository: Path, temporary: Path) -> None:
    with _serving(own_repository) as parent:
        name = _server_name(temporary)
        assert _processes(temporary)
        parent.kill()
        assert _eventually(lambda: not _processes(temporary) and not _shared_memory(name), 15)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_well_on_a_signal(
    number: signal.Signals, own_repository: Path, temporary: Path
) -> None:
    with _serving(own_repository) as serving:
        name = _server_name(temporary)
        serving.send_signal(number)
        out, err = serving.communicate(timeout=20)
    assert (serving.returncode, err) == (0, "")
    assert "stopping…" in out
    assert not _processes(temporary)
    assert not _shared_memory(name)
    assert "Started HTTPService" in own_repository.with_name("repository.log").read_text()


def test_serve_fails_if_the_server_dies(own_repository: Path, temporary: Path) -> None:
    with _serving(own_repository) as serving:
        children = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text()
        os.kill(int(children), signal.SIGKILL)
        _, err = serving.communicate(timeout=20)
    assert serving.returncode == 3
    assert "ended by itself with status -9: see" in err
    assert not _processes(temporary)


HURRIED = """
import sys
from vibematch_export import serve
serve._LIFE_CHECK_INTERVAL_S, serve._LIFE_CHECKS, serve.CANARY_INTERVAL_S = 0.2, 1, 1
from vibematch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _hurried(repository: Path) -> Any:
    """``vibematch serve`` with its checks every moment."""
    return _serving(repository, [sys.executable, "-c", HURRIED])


@pytest.mark.slow
def test_serve_gives_up_a_server_that_hangs(own_repository: Path, temporary: Path) -> None:
    with _hurried(own_repository) as serving:
        children = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text()
        os.kill(int(children), signal.SIGSTOP)
        try:
            _, err = serving.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):  # stopped, it outlives everyone
                os.kill(int(children), signal.SIGKILL)
    assert serving.returncode == 3
    assert "stopped answering: see" in err
    assert not _processes(temporary)


@pytest.mark.parametrize("name", ["style_preprocess", "style_embed"])
def test_serve_replaces_a_process_that_died(
    name: str, own_repository: Path, temporary: Path, photos: list[bytes]
) -> None:
    with _hurried(own_repository) as serving:
        (victim, *_) = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"{own_repository}/{name}/1/".encode() in path.read_bytes()
        ]
        control = find_server(own_repository)
        assert control is not None
        os.kill(victim, signal.SIGKILL)
        assert serving.stderr is not None
        assert f"a process of {name} died" in serving.stderr.readline()
        body = {"inputs": [{"name": "run", "datatype": "BOOL", "shape": [1], "data": [True]}]}

        def answers() -> bool:
            try:
                return bool(control.infer("style_canary", 1, body, 10)["outputs"])
            except ServerError:
                return False

        assert _eventually(answers, 20)
        assert all(answers() for _ in range(8))
        assert control.states("style_encoder") == {1: "READY"}


@pytest.mark.slow
def test_serve_warns_if_the_canary_falls(own_repository: Path) -> None:
    path = own_repository / "style_canary" / "1" / "canary.npy"
    np.save(path, np.roll(np.load(path), 1))
    with _hurried(own_repository) as serving:
        assert serving.stderr is not None
        assert re.search(
            r"warning: the canary photo's vector has cosine -?0\.\d+ ", serving.stderr.readline()
        )
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=20)
    assert serving.returncode == 0


def test_kernels_of_another_kind_of_machine_are_not_used(
    own_repository: Path, tmp_path: Path
) -> None:
    library = own_repository / "style_embed" / "1" / "kernels.so"
    library.unlink(missing_ok=True)
    library.write_bytes(b"\x7fELF of something else")
    with TritonServer(own_repository, log_path=tmp_path / "log"):
        assert "style_embed: kernels.so is not used" in (tmp_path / "log").read_text()


def test_broken_weights_are_named(own_repository: Path, temporary: Path) -> None:
    (own_repository / "style_embed" / "1" / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ServerError, match=r"style_embed failed to load: model\.onnx cannot") as no:
        TritonServer(own_repository).start()
    assert "traceback" not in str(no.value).lower()
    assert "\\n" not in str(no.value)
    assert not _processes(temporary)
    assert not list(temporary.iterdir())


def test_other_preprocessing_is_named(own_repository: Path, temporary: Path) -> None:
    folder = own_repository / "style_preprocess" / "1"
    dataclasses.replace(Manifest.load(folder), preprocessing_revision=99).save(folder)
    with pytest.raises(ServerError, match=r"revision 99 but the installed vibematch"):
        TritonServer(own_repository).start()


def test_unusable_host_is_named(repository: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.invalid:0 cannot be used .*--host"):
        TritonServer(repository, host="nowhere.invalid").start()


def test_unreadable_config_is_named(own_repository: Path) -> None:
    (own_repository / "style_embed" / "config.pbtxt").write_text("max_batch_sise: 8")
    with pytest.raises(ServerError, match=r"style_embed failed to load: .*config\.pbtxt"):
        TritonServer(own_repository).start()


def test_server_that_gives_no_reason_has_its_last_words_shown(
    own_repository: Path, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    (own_repository / "style_embed" / "1" / "model.py").write_text(
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(5)\n"
    )
    with pytest.raises(ServerError, match=r"it ended with status -9; its last words: .*style_"):
        TritonServer(own_repository, log_path=log).start()


def test_slow_start_is_given_up(own_repository: Path, temporary: Path) -> None:
    code = own_repository / "style_embed" / "1" / "model.py"
    code.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ServerTimeoutError, match="not ready within 1 s"):
        TritonServer(own_repository, start_timeout_s=1).start()
    assert not _processes(temporary)  # killed, not drained
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("profile", ["onnxruntime", "onnxruntime_tensorrt"])
def test_missing_backend_is_named(profile: str, repository: Path) -> None:
    with pytest.raises(InputError, match=r"has no onnxruntime backend.*NVIDIA's container"):
        TritonServer(repository, profile=profile).start()


def test_missing_plan_is_named(repository: Path) -> None:
    with pytest.raises(InputError, match=r"no weights .*model\.plan.*--runtime tensorrt"):
        TritonServer(repository, profile="tensorrt").start()


def test_precision_that_the_profile_cannot_run_is_named(own_repository: Path) -> None:
    manifest = dataclasses.replace(read_manifest(own_repository), precision="bf16")
    point_to(own_repository, 1, manifest)
    with pytest.raises(InputError, match=r"in bf16, which the profile cpu cannot run: choose one"):
        TritonServer(own_repository).start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "gpu"}, "profile must be one of cpu, onnxruntime"),
        ({"admin_key": "secret"}, "16 or more letters"),
        ({"admin_key": "no, spaces please!"}, "16 or more letters"),
    ],
)
def test_impossible_options_are_refused(
    options: dict[str, str], message: str, repository: Path
) -> None:
    with pytest.raises(InputError, match=message):
        TritonServer(repository, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_a_repository_is_not_served_twice(own_repository: Path) -> None:
    with _serving(own_repository):
        again = subprocess.run(
            [*VIBEMATCH, "serve", "--repository", str(own_repository)],
            capture_output=True,
            text=True,
        )
    assert again.returncode == 1
    assert "change its model with `vibematch publish`" in again.stderr


def test_a_start_that_fails_ends_also_where_the_log_is_standard_output(
    own_repository: Path,
) -> None:
    (own_repository / "style_embed" / "1" / "model.onnx").write_bytes(b"garbage")
    failed = subprocess.run(
        [*VIBEMATCH, "serve", "--repository", str(own_repository), *FREE_PORTS, "--log", "-"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 1
    assert "did not start: it ended with status 1; its log, above, says why" in failed.stderr
    assert "model.onnx cannot be loaded" in failed.stdout


def test_a_repository_that_is_replaced_does_not_disturb_its_server(
    own_repository: Path, exported: Path, photos: list[bytes]
) -> None:
    """As a container update does it: the next release appears in the volume first."""
    with _hurried(own_repository) as serving:
        control = find_server(own_repository)
        assert control is not None
        write_repository(own_repository, exported)
        assert read_version(own_repository) == 2
        time.sleep(2)  # checks, and the canary
        assert control.states("style_encoder") == {1: "READY"}
        serving.send_signal(signal.SIGTERM)
        _, err = serving.communicate(timeout=20)
    assert (serving.returncode, err) == (0, "")


@pytest.mark.slow
def test_log_goes_to_standard_output_and_says_as_little_as_asked(own_repository: Path) -> None:
    command = [*VIBEMATCH, "serve", "--repository", str(own_repository)]
    texts = []
    for options in (["--log", "-"], ["--log", "-", "--log-level", "warning"]):
        with subprocess.Popen([*command, *FREE_PORTS, *options], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = list(iter(process.stdout.readline, b"Ctrl-C stops the server.\n"))
            process.terminate()
            texts.append(b"".join(lines).decode())
    assert all("fingerprint" in text for text in texts)
    assert ["Started HTTPService" in text for text in texts] == [True, False]


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_taken_port_is_named(name: str, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"{port} cannot be used for {name} .*--{name}-port"):
            TritonServer(repository, **{f"{name}_port": port}).start()


def test_impossible_port_is_named(repository: Path) -> None:
    with pytest.raises(InputError, match=r"70000 cannot be used for grpc .*--grpc-port"):
        TritonServer(repository, grpc_port=70_000).start()


def test_one_port_for_two_endpoints_is_refused(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once_free:
        port = once_free.getsockname()[1]
    with pytest.raises(InputError, match="--grpc-port"):
        TritonServer(repository, http_port=port, grpc_port=port).start()


def test_missing_repository_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no model repository.*vibematch export"):
        TritonServer(tmp_path / "nowhere").start()


def test_missing_weights_say_how_to_make_them(own_repository: Path) -> None:
    (own_repository / "style_embed" / "1" / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"no weights .*vibematch export"):
        TritonServer(own_repository).start()


def test_unwritable_log_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        TritonServer(repository, log_path=tmp_path / "nowhere" / "triton.log").start()


def test_environment_without_tritonserver(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match="pip install nvidia-pytriton"):
        TritonServer(repository).start()


def test_environment_with_numpy_2(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.3.1")
    with pytest.raises(ServerError, match=r"empty tensors under numpy 2\.3\.1"):
        TritonServer(repository).start()


def test_environment_with_unknown_python(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_PYTHON", "3.99")
    with pytest.raises(ServerError, match=r"runs on Python 3\.8, .*3\.13, and this is 3\.99"):
        TritonServer(repository).start()


def test_environment_without_libpython(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(ServerError, match=r"needs libpython3\.\d+\.so.*--enable-shared"):
        TritonServer(repository).start()


def test_vector_that_is_not_finite_is_never_answered(
    own_repository: Path, photos: list[bytes]
) -> None:
    weights = own_repository / "style_embed" / "1" / "model.onnx"
    model = onnx.load(weights)
    (projection,) = [tensor for tensor in model.graph.initializer if tensor.name == "projection"]
    huge = numpy_helper.to_array(projection) * np.float32(1e38)  # overflows, but not for black
    projection.CopyFrom(numpy_helper.from_array(huge, "projection"))
    weights.unlink()  # it is a hard link
    onnx.save(model, weights)
    with (
        TritonServer(own_repository) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        with pytest.raises(InferenceServerException, match="not finite") as refused:
            client.infer("style_encoder", [_photo_tensor(photos[0])])
        assert refused.value.status() == "StatusCode.INTERNAL"


@pytest.mark.parametrize("slow_step", ["style_preprocess", "style_embed"])
def test_stop_finishes_the_photos_it_took_and_takes_no_more(
    slow_step: str, own_repository: Path, photos: list[bytes]
) -> None:
    code = own_repository / slow_step / "1" / "model.py"
    begin = "def execute(self, requests: list[Any]) -> list[Any]:\n"
    slow = f'{begin}        __import__("time").sleep(0.5)\n'
    assert begin in code.read_text()
    code.write_text(code.read_text().replace(begin, slow))
    with (
        TritonServer(own_repository) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
        Encoder(server.grpc_url) as encoder,
        concurrent.futures.ThreadPoolExecutor(13) as pool,
    ):
        tensor = _photo_tensor(photos[0])
        asked = [pool.submit(client.infer, "style_encoder", [tensor]) for _ in range(12)]
        time.sleep(0.3)
        assert not any(request.done() for request in asked)
        stopping = pool.submit(server.stop)
        assert _eventually(lambda: not client.is_model_ready("style_encoder"), 5)
        assert not all(request.done() for request in asked)
        with pytest.raises(ServerUnavailableError, match="is stopping or not ready"):
            encoder.encode(photos[:1])
        for request in asked:
            vector = request.result().as_numpy("embedding")
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        stopping.result()


def _photo_tensor(photo: bytes) -> Any:
    tensor = grpc.InferInput("photo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    return tensor
