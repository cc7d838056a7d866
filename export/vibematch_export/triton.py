"""The real tritonserver on this machine: no Docker, no GPU.

The binary comes with the ``nvidia-pytriton`` wheel. Serving a plain model repository with it takes
a backend folder, library paths and flags that the wheel does not set up: they are all in this file.
"""

from __future__ import annotations

import ctypes
import http.client
import importlib.metadata
import importlib.util
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from vibematch.errors import InputError, ServerError, ServerTimeoutError
from vibematch_export.repository import EMBED, ENCODER, WEIGHTS

DRAIN_TIMEOUT_S: Final = 30
"""How long photos that wait for the model may still take once the server was told to stop."""

_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB: Final = "triton_python_backend_stub"
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps tensors
_CLOSED_APIS: Final = "shared-memory,model-repository,trace,logging"
_POLL_INTERVAL_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_LOAD_FAILURE: Final = re.compile(
    r"(failed to load|Poll failed for model directory) '(?P<model>[^']+)'( version \d+)?: "
    r"(Internal: TritonModelException: )?"
    r"(?P<reason>.+?)(\\n|\"?$)"  # a traceback may follow, with its line ends escaped
)


class TritonServer:
    """A tritonserver process that ends with this one, however this one ends.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Start it from a thread
    that outlives it, such as the main one: Linux ends the server together with that thread.

    Args:
        repository: Triton model repository to serve.
        host: address to listen on. Triton authenticates nobody: keep it local or fenced off.
        http_port: HTTP port; 0 takes a free one, here and below.
        grpc_port: gRPC port.
        metrics_port: Prometheus port.
        log_path: file for Triton's log; without one the log goes when the server stops.
        start_timeout_s: how long loading and warming up may take, in seconds.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_path: Path | None = None,
        start_timeout_s: float = 600,
    ) -> None:
        self._repository = repository
        self._host = host
        self._ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._cleanup = ExitStack()

    @property
    def http_url(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return f"{self._host}:{self._ports['http']}"

    @property
    def grpc_url(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return f"{self._host}:{self._ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """``host:port`` of the Prometheus endpoint; its path is ``/metrics``."""
        return f"{self._host}:{self._ports['metrics']}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return once it is ready for photos.

        Raises:
            InputError: the repository is missing or has no weights, the log cannot be written, or
                a port is taken.
            ServerError: this environment cannot run tritonserver, or a model did not load.
            ServerTimeoutError: it was not ready within ``start_timeout_s``.
        """
        _check_repository(self._repository)
        installation = _Installation.find()
        self._ports = _free_ports(self._host, self._ports)
        try:
            log, self._process = self._launch(installation)
            self._wait_until_ready(log)
        except BaseException:  # Ctrl-C too: whatever happens, nothing is left running
            self.stop()
            raise

    def wait(self) -> int:
        """Block until the server ends by itself; its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """End the server in order; calling it again does nothing.

        Photos that wait for the model or are in it still get their vectors. Those that are being
        preprocessed, and new ones, are answered UNAVAILABLE: a stopping Triton lets no request
        pass to the next step of an ensemble.
        """
        self._cleanup.close()

    def _launch(self, installation: _Installation) -> tuple[Path, subprocess.Popen[bytes]]:
        """Start the process; whatever it needs or leaves is registered for :meth:`stop`."""
        workshop = Path(
            self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vibematch-triton-"))
        )
        installation.make_backends(workshop / "backends")
        self._cleanup.callback(_remove_shared_memory, workshop.name)
        log_path = self._log_path or workshop / "triton.log"
        try:
            log = self._cleanup.enter_context(log_path.open("wb"))
        except OSError as error:
            raise InputError(f"the log {log_path} cannot be written ({error.strerror})") from error
        process = _spawn([str(installation.binary), *self._flags(workshop)], installation, log)
        self._cleanup.callback(_end, process)
        return log_path, process

    def _flags(self, workshop: Path) -> list[str]:
        # A key nobody knows closes an API: Triton has no switch for it.
        key = f"vibematch={secrets.token_hex(16)}"
        return [
            f"--model-repository={self._repository}",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            f"--exit-timeout-secs={DRAIN_TIMEOUT_S}",
            f"--backend-directory={workshop / 'backends'}",
            # A name of its own, so that stop can remove what a killed server leaves behind.
            f"--backend-config=python,shm-region-prefix-name={workshop.name}",
            f"--http-address={self._host}",
            f"--http-port={self._ports['http']}",
            f"--http-restricted-api={_CLOSED_APIS}:{key}",
            f"--grpc-address={self._host}",
            f"--grpc-port={self._ports['grpc']}",
            f"--grpc-restricted-protocol={_CLOSED_APIS}:{key}",
            "--allow-metrics=true",
            "--allow-gpu-metrics=false",
            f"--metrics-address={self._host}",
            f"--metrics-port={self._ports['metrics']}",
        ]

    def _wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not _is_ready(self._host, self._ports["http"]):
            status = self._process.poll()
            if status is not None:
                raise ServerError(f"tritonserver did not start: {_reason(log, status)}")
            if time.monotonic() > deadline:
                raise ServerTimeoutError(
                    f"tritonserver was not ready within {self._start_timeout_s:g} s: allow it "
                    "more time (start_timeout_s)"
                )
            time.sleep(_POLL_INTERVAL_S)


@dataclass(frozen=True)
class _Installation:
    """Where the pieces of the pip-installed tritonserver are.

    Attributes:
        binary: the server.
        backends: the wheel's backend folder.
        stub: the process of the Python backend that runs ``model.py``, for this Python.
        libraries: folders the dynamic loader has to search.
    """

    binary: Path
    backends: Path
    stub: Path
    libraries: tuple[Path, ...]

    @classmethod
    def find(cls) -> _Installation:
        """Find everything, or say what is missing.

        Raises:
            ServerError: this environment cannot run tritonserver.
        """
        package = importlib.util.find_spec("pytriton")
        if package is None or package.origin is None:
            raise ServerError(
                "tritonserver is not installed here: `pip install nvidia-pytriton==0.7.0`"
            )
        numpy = importlib.metadata.version("numpy")
        if int(numpy.split(".")[0]) >= 2:
            raise ServerError(
                f"tritonserver's Python backend returns empty tensors under numpy {numpy}: "
                "`pip install 'numpy<2'`"
            )
        home = Path(package.origin).parent
        stubs = home / "tritonserver" / "python_backend_stubs"
        return cls(
            binary=home / "tritonserver" / "bin" / "tritonserver",
            backends=home / "tritonserver" / "backends",
            stub=_stub(stubs),
            libraries=(home.parent / "nvidia_pytriton.libs", _libpython().parent),
        )

    def make_backends(self, directory: Path) -> None:
        """Fill ``directory`` with links: the wheel's own folder lacks the stub of this Python."""
        python = directory / "python"
        python.mkdir(parents=True)
        for file in [*(self.backends / "python").iterdir(), self.stub]:
            (python / file.name).symlink_to(file)

    def environment(self) -> dict[str, str]:
        """Environment variables for the server."""
        libraries = [*map(str, self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        # The stub asks PATH for its Python, and so finds this environment's packages.
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join(filter(None, path)),
        }


def _stub(stubs: Path) -> Path:
    stub = stubs / _PYTHON / _STUB
    if not stub.is_file():
        supported = ", ".join(sorted((folder.name for folder in stubs.iterdir()), key=_by_version))
        raise ServerError(
            f"the installed tritonserver runs on Python {supported}, and this is {_PYTHON}: "
            "make a virtual environment with one of them"
        )
    return stub


def _by_version(name: str) -> list[int]:
    return [int(part) for part in name.split(".")]


def _libpython() -> Path:
    name = f"libpython{_PYTHON}.so.1.0"
    library_dir = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = [library_dir, Path(sys.base_prefix, "lib"), library_dir / multiarch]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise ServerError(
        f"tritonserver needs {name}, and this Python has none: on Debian or Ubuntu "
        f"`apt install libpython{_PYTHON}`, with pyenv "
        f"`PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {_PYTHON}`"
    )


def _check_repository(repository: Path) -> None:
    if not (repository / ENCODER / "config.pbtxt").is_file():
        raise InputError(
            f"{repository} is no model repository: make it with `vibematch export RUN` first"
        )
    weights = Path(EMBED, "1", WEIGHTS)
    if not (repository / weights).is_file():
        raise InputError(
            f"{repository} has no weights ({weights}): make it with `vibematch export RUN` first"
        )


def _free_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """``wanted`` with a free port for each 0; all are held until all are known."""
    ports = {}
    with ExitStack() as held:
        for name, port in wanted.items():
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
                listener.listen()
            except (OSError, OverflowError) as error:  # OverflowError: above 65535
                reason = getattr(error, "strerror", error)
                raise InputError(
                    f"{host}:{port} cannot be used for {name} ({reason}): choose another "
                    f"with --{name}-port or --host"
                ) from error
            ports[name] = listener.getsockname()[1]
    return ports


def _spawn(
    command: list[str], installation: _Installation, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=installation.environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A Ctrl-C in the terminal reaches this process only, which then stops the server in order.
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """Runs in the child: have the kernel stop the server in order if we are killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reason(log: Path, status: int) -> str:
    """Why the server gave up, in its own words."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        if failure := _LOAD_FAILURE.search(line):
            return f"{failure['model']} failed to load: {failure['reason']}"
    last_words = next((line for line in reversed(lines) if line.strip()), "(none)")
    return f"it ended with status {status}; its last words: {last_words}"


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        process.wait(DRAIN_TIMEOUT_S + 5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # The session takes the Python backend's processes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _remove_shared_memory(prefix: str) -> None:
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
