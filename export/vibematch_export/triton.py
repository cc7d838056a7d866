"""The real tritonserver, started, watched and stopped in order.

In NVIDIA's container it is the container's own. Elsewhere it comes with the ``nvidia-pytriton``
wheel: no Docker, no GPU. Serving a plain model repository with that one takes a backend folder,
library paths and flags that the wheel does not set up: they are all in this file.
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
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

from vibematch.errors import InputError, ServerError, ServerTimeoutError
from vibematch_export.control import KEY_HEADER, Control
from vibematch_export.repository import (
    CPU,
    EMBED,
    ENCODER,
    PROFILES,
    STEPS,
    find_profile,
    read_manifest,
    read_version,
)

DRAIN_TIMEOUT_S: Final = 30
"""How long photos that were taken may still need once the server was told to stop."""

LogLevel = Literal["error", "warning", "info", "verbose"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("error", "warning", "info", "verbose")

STDOUT: Final = Path("-")

_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB: Final = "triton_python_backend_stub"
_FRUGAL_MALLOC: Final = {
    # glibc raises its thresholds each time a large photo is freed, and then keeps the memory. What
    # usual photos take is kept: to have the kernel clear it each time is a quarter of decoding.
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**20),
    "MALLOC_ARENA_MAX": "2",
}
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps tensors
_CLOSED_APIS: Final = "shared-memory,model-repository,trace,logging"
_ENVIRONMENTS: Final = Path("/tmp")  # noqa: S108 - whatever TMPDIR says
_ENVIRONMENT: Final = "python_env_*"
_CONTAINER_HOME: Final = Path("/opt/tritonserver")
_LAST_WORDS_S: Final = 1
"""For the last answers to leave, once all photos have one."""
_DEATH_TIMEOUT_S: Final = 5
_POLL_INTERVAL_S: Final = 0.05
_LOOPBACK: Final = "127.0.0.1"
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_LOAD_FAILURE: Final = re.compile(
    r"(failed to load|Poll failed for model directory) '(?P<model>[^']+)'( version \d+)?: "
    r"(Internal: TritonModelException: )?"
    r"(?P<reason>.+?)(\\n|\"?$)",  # a traceback may follow, with its line ends escaped
    re.MULTILINE,
)


class TritonServer:
    """A tritonserver process that ends with this one, however this one ends.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Start it from a thread
    that outlives it, such as the main one: Linux ends the server together with that thread.

    Args:
        repository: Triton model repository to serve.
        profile: one of :data:`vibematch_export.repository.PROFILES`.
        host: address to listen on. Triton authenticates nobody: keep it local or fenced off.
        http_port: HTTP port; 0 takes a free one, here and below.
        grpc_port: gRPC port.
        metrics_port: Prometheus port.
        tls: PEM files of a certificate and its key, to encrypt gRPC with. HTTP, which Triton cannot
            encrypt, then stays on this machine's loopback address.
        otlp_url: where to post OpenTelemetry traces, e.g. ``http://127.0.0.1:4318/v1/traces``.
        log_path: file for Triton's log; without one the log goes when the server stops.
            With :data:`STDOUT` it goes where this process writes to.
        log_level: the least important lines to log.
        admin_key: what opens the interface that loads models; by default nobody knows it but
            :attr:`control`.
        start_timeout_s: how long loading and warming up may take, in seconds.

    Raises:
        InputError: on construction, if there is no such profile or ``admin_key`` is no word.
    """

    def __init__(
        self,
        repository: Path,
        *,
        profile: str = CPU,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        tls: tuple[Path, Path] | None = None,
        otlp_url: str | None = None,
        log_path: Path | None = None,
        log_level: LogLevel = "info",
        admin_key: str | None = None,
        start_timeout_s: float = 1800,
    ) -> None:
        find_profile(profile)
        if admin_key is not None and not re.fullmatch(r"[A-Za-z0-9_.-]{16,}", admin_key):
            raise InputError(
                "the admin key must be 16 or more letters, digits, dots, dashes or underscores"
            )
        self._repository = repository
        self._profile = profile
        self._host = host
        self._http_host = _LOOPBACK if tls else host
        self._ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._tls = tls
        self._otlp_url = otlp_url
        self._log_path = log_path
        self._log_level = log_level
        self._admin_key = admin_key or secrets.token_hex(16)
        self._start_timeout_s = start_timeout_s
        self._is_up = False
        self._grace_s = 0.0  # to end in order: nothing, as long as there is nobody to answer
        self._cleanup = ExitStack()

    @property
    def control(self) -> Control:
        """What loads and unloads models on this server."""
        return Control(self.http_url, self._admin_key, self._profile)

    @property
    def is_encrypted(self) -> bool:
        """Whether gRPC takes TLS connections only."""
        return self._tls is not None

    @property
    def http_url(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return f"{self._http_host}:{self._ports['http']}"

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
        installation = _Installation.find()
        _check_repository(self._repository, self._profile, installation)
        if self._tls:
            _require_pair(*self._tls)
        hosts = {"http": self._http_host, "grpc": self._host, "metrics": self._host}
        self._ports = _free_ports(hosts, self._ports)
        try:
            log, self._process = self._launch(installation)
            self._wait_until_ready(log)
            self._is_up, self._grace_s = True, DRAIN_TIMEOUT_S
            self._processes_at_first = self._processes_by_model()
        except BaseException:  # Ctrl-C too: whatever happens, nothing is left running
            self.stop()
            raise

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until the server ends by itself; its exit status, or ``None`` after the timeout."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def is_alive(self) -> bool:
        """Whether the server answers at all; 2.51 can hang in its own crash handler."""
        return _is_ok(self._http_host, self._ports["http"], "/v2/health/live")

    def lost_processes(self) -> list[str]:
        """The models whose answering version has fewer processes than the server began with.

        Triton 2.51 does not replace a process of its Python backend that died, answers its share
        of the requests with errors, and goes on saying that it is ready.

        Raises:
            ServerError: no version answers, or the server does not say.
        """
        now = self._processes_by_model()
        return [name for name, count in self._processes_at_first.items() if now[name] < count]

    def _processes_by_model(self) -> Counter[str]:
        # By the server's account: what lies on the disk may be the next release already.
        version = self.control.answering(ENCODER)
        commands = b"\n".join(_commands_of_children(self._process.pid))
        return Counter({name: commands.count(f"/{name}/{version}/".encode()) for name in STEPS})

    def revive(self, name: str) -> None:
        """Replace the processes of one model; photos are refused for the moment it takes.

        Raises:
            ServerError: the model did not load.
        """
        self.control.unload(name)
        self.control.load(name)

    def kill(self) -> None:
        """End a server that no longer answers; :meth:`stop` then cleans up after it."""
        self._is_up = False
        self._process.kill()

    def stop(self) -> None:
        """End the server in order; calling it again does nothing.

        Photos that were taken still get their vectors, for :data:`DRAIN_TIMEOUT_S`. New ones are
        answered that the model has no available versions, and then nobody answers.
        """
        self._stop_by_s = time.monotonic() + DRAIN_TIMEOUT_S
        try:
            if self._is_up:
                self._is_up = False
                # Once drained, Triton only takes seconds to unload models, or sends last traces.
                if self._drain() and not self._otlp_url:
                    self._grace_s = _LAST_WORDS_S
        finally:
            self._cleanup.close()

    def _drain(self) -> bool:
        """Take no more photos, and wait for those that were taken; whether all are answered.

        A stopping Triton lets no request pass to the next step of an ensemble. So the ensemble is
        unloaded first, while the steps it needs are still there.
        """
        deadline = self._stop_by_s
        try:
            self.control.unload(ENCODER)
            while "UNLOADING" in self.control.states(ENCODER).values():
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_INTERVAL_S)
        except ServerError:  # whatever it is: the server is about to be ended anyway
            return False
        return True

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.terminate()
            left_s = max(self._stop_by_s - time.monotonic(), 0)
            process.wait(min(self._grace_s, left_s + _LAST_WORDS_S))
        except subprocess.TimeoutExpired:
            pass
        finally:
            # The session takes the Python backend's processes with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _wait_until_gone(process.pid)

    def _launch(self, installation: _Installation) -> tuple[Path, subprocess.Popen[bytes]]:
        """Start the process; whatever it needs or leaves is registered for :meth:`stop`."""
        workshop = Path(
            self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vibematch-triton-"))
        )
        backends = installation.make_backends(workshop / "backends")
        self._cleanup.callback(_remove_shared_memory, workshop.name)
        self._cleanup.callback(_remove_environments, set(_ENVIRONMENTS.glob(_ENVIRONMENT)))
        log_path = self._log_path or workshop / "triton.log"
        try:
            log = None if log_path == STDOUT else self._cleanup.enter_context(log_path.open("wb"))
        except OSError as error:
            raise InputError(f"the log {log_path} cannot be written ({error.strerror})") from error
        process = _spawn(
            [str(installation.binary), *self._flags(workshop, backends)], installation, log
        )
        self._cleanup.callback(self._end, process)
        return log_path, process

    def _flags(self, workshop: Path, backends: Path) -> list[str]:
        closed = f"{_CLOSED_APIS}:{KEY_HEADER}={self._admin_key}"
        flags = [
            f"--model-repository={self._repository}",
            f"--model-config-name={self._profile}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            f"--exit-timeout-secs={DRAIN_TIMEOUT_S}",
            f"--backend-directory={backends}",
            # A name of its own, so that stop can remove what a killed server leaves behind.
            f"--backend-config=python,shm-region-prefix-name={workshop.name}",
            f"--http-address={self._http_host}",
            f"--http-port={self._ports['http']}",
            f"--http-restricted-api={closed}",
            f"--grpc-address={self._host}",
            f"--grpc-port={self._ports['grpc']}",
            f"--grpc-restricted-protocol={closed}",
            "--allow-metrics=true",
            "--metrics-config=summary_latencies=true",
            f"--allow-gpu-metrics={str(self._profile != CPU).lower()}",
            f"--metrics-address={self._host}",
            f"--metrics-port={self._ports['metrics']}",
        ]
        if self._tls:
            certificate, key = self._tls
            flags += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={certificate}",
                f"--grpc-server-key={key}",
            ]
        if self._otlp_url:
            flags += [
                "--trace-config=mode=opentelemetry",
                f"--trace-config=opentelemetry,url={self._otlp_url}",
                "--trace-config=opentelemetry,resource=service.name=vibematch",
                "--trace-config=level=TIMESTAMPS",
                "--trace-config=rate=1",
            ]
        at_least = LOG_LEVELS.index(self._log_level)
        flags += [f"--log-{level}={at_least >= LOG_LEVELS.index(level):d}" for level in LOG_LEVELS]
        return flags

    def _wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        # Triton opens the metrics port last.
        while not (
            _is_ok(self._http_host, self._ports["http"], "/v2/health/ready")
            and _is_ok(self._host, self._ports["metrics"], "/metrics")
        ):
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
    """Where the pieces of a tritonserver are.

    Attributes:
        binary: the server.
        backends: its backend folder.
        stub: the process of the Python backend that runs ``model.py``, for this Python; ``None``
            where the backend folder has the right one.
        libraries: folders the dynamic loader has to search.
    """

    binary: Path
    backends: Path
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()

    @classmethod
    def find(cls) -> _Installation:
        """Find everything, or say what is missing.

        Raises:
            ServerError: this environment cannot run tritonserver.
        """
        binary = _CONTAINER_HOME / "bin" / "tritonserver"
        if binary.is_file():
            return cls(binary, _CONTAINER_HOME / "backends")
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

    def make_backends(self, directory: Path) -> Path:
        """A complete backend folder: links, as the wheel's own lacks the stub of this Python."""
        if self.stub is None:
            return self.backends
        python = directory / "python"
        python.mkdir(parents=True)
        for file in [*(self.backends / "python").iterdir(), self.stub]:
            (python / file.name).symlink_to(file)
        return directory

    def environment(self) -> dict[str, str]:
        """Environment variables for the server."""
        libraries = [*map(str, self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        # The stub asks PATH for its Python, and so finds this environment's packages.
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return {
            **os.environ,
            **_FRUGAL_MALLOC,
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


def _check_repository(repository: Path, profile: str, installation: _Installation) -> None:
    if not (repository / ENCODER / "config.pbtxt").is_file():
        raise InputError(
            f"{repository} is no model repository: make it with `vibematch export RUN` first"
        )
    needed = PROFILES[profile]
    weights = Path(EMBED, str(read_version(repository)), needed.weights)
    if not (repository / weights).is_file():
        how = (
            " --runtime tensorrt, on the GPU that serves it,"
            if needed.backend == "tensorrt"
            else ""
        )
        raise InputError(
            f"{repository} has no weights ({weights}): make it with `vibematch export RUN`{how} "
            "first"
        )
    precision = read_manifest(repository).precision
    if precision not in needed.precisions:
        able = ", ".join(name for name, other in PROFILES.items() if precision in other.precisions)
        raise InputError(
            f"{repository} holds a model in {precision}, which the profile {profile} cannot run: "
            f"choose one of {able}, or export it in {' or '.join(needed.precisions)}"
        )
    if not (installation.backends / needed.backend).is_dir():
        raise InputError(
            f"the tritonserver here has no {needed.backend} backend, which the profile {profile} "
            "needs: use NVIDIA's container (docs/deployment.md), or --profile cpu"
        )


def _require_pair(certificate: Path, key: Path) -> None:
    """Notice what tritonserver would call a port in use."""
    _require_pem(certificate)
    _require_pem(key)
    try:  # the empty password keeps OpenSSL from asking for one on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise InputError(
            f"{key} is not the private key, without a password, of the certificate {certificate} "
            f"({error.reason or 'damaged'}): docs/security.md shows how to make both"
        ) from error


def _require_pem(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if b"-----BEGIN " not in content:
        raise InputError(f"{path} is no PEM file: docs/security.md shows how to make one")


def _free_ports(hosts: Mapping[str, str], wanted: Mapping[str, int]) -> dict[str, int]:
    """``wanted`` with a free port for each 0; all are held until all are known."""
    ports = {}
    with ExitStack() as held:
        for name, port in wanted.items():
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((hosts[name], port))
                listener.listen()
            except (OSError, OverflowError) as error:  # OverflowError: above 65535
                reason = getattr(error, "strerror", error)
                raise InputError(
                    f"{hosts[name]}:{port} cannot be used for {name} ({reason}): choose another "
                    f"with --{name}-port or --host"
                ) from error
            ports[name] = listener.getsockname()[1]
    return ports


def _spawn(
    command: list[str], installation: _Installation, log: IO[bytes] | None
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


def _wait_until_gone(group: int) -> None:
    """Give the killed processes of a group the moment they need to end."""
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    while _is_running(group) and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)


def _is_running(group: int) -> bool:
    """Whether a process of the group runs; the dead may stay listed until someone reaps them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                return True
    return False


def _commands_of_children(pid: int) -> list[bytes]:
    """Command lines of a process's living children; a thread may end while it is looked at."""
    commands = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in thread.read_text().split():
                with suppress(OSError):
                    commands.append(Path(f"/proc/{child}/cmdline").read_bytes())
    return commands


def _is_ok(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reason(log: Path, status: int) -> str:
    """Why the server gave up, in its own words."""
    if log == STDOUT:
        return f"it ended with status {status}; its log, above, says why"
    if failure := _load_failure(log):
        return failure
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last_words = next((line for line in reversed(lines) if line.strip()), "(none)")
    return f"it ended with status {status}; its last words: {last_words}"


def _load_failure(log: Path) -> str | None:
    """The model that failed to load and why, as soon as the log says so."""
    if not log.is_file():
        return None
    complete, _, _ = log.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    failure = _LOAD_FAILURE.search(complete)
    return failure and f"{failure['model']} failed to load: {failure['reason']}"


def _remove_environments(before: set[Path]) -> None:
    """Delete the folders that the Python backend makes and does not use; full ones stay."""
    for folder in set(_ENVIRONMENTS.glob(_ENVIRONMENT)) - before:
        with suppress(OSError):
            folder.rmdir()


def _remove_shared_memory(prefix: str) -> None:
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
