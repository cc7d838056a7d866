"""Finding and steering a running tritonserver: who serves a repository, and loading models there.

The interface that loads and unloads models is closed to everyone without a key. ``vibematch serve``
leaves the key, with the address, in a file beside the repository that only its owner can read; the
file is locked as long as the server lives.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vibematch.errors import InputError, ServerError, ServerUnavailableError

KEY_HEADER: Final = "vibematch-admin-key"
_LOAD_TIMEOUT_S: Final = 1800
"""Weights of a large model, then a warm-up of every batch size, on a busy machine."""
_QUICK_TIMEOUT_S: Final = 30


@dataclass(frozen=True)
class Control:
    """The closed part of a tritonserver's HTTP interface.

    Attributes:
        http_url: ``host:port`` of the HTTP endpoint.
        key: what opens it.
        profile: the profile it serves, one of :data:`vibematch_export.repository.PROFILES`.
    """

    http_url: str
    key: str
    profile: str = "cpu"

    def load(self, name: str) -> None:
        """Load a model's new versions and warm them up; what is loaded goes on answering.

        Raises:
            ServerError: it did not load; the message is Triton's reason.
        """
        self._post(f"/v2/repository/models/{name}/load", {}, _LOAD_TIMEOUT_S)

    def unload(self, name: str) -> None:
        """Let a model take no more requests; those it has are finished.

        Raises:
            ServerError: the server refused.
        """
        self._post(f"/v2/repository/models/{name}/unload", {}, _QUICK_TIMEOUT_S)

    def states(self, name: str) -> dict[int, str]:
        """Version → ``READY``, ``LOADING``, ``UNLOADING`` or ``UNAVAILABLE`` for one model.

        Raises:
            ServerError: the server refused.
        """
        index = self._post("/v2/repository/index", {}, _QUICK_TIMEOUT_S)
        return {
            int(model["version"]): model.get("state", "UNAVAILABLE")
            for model in index
            if model["name"] == name and model.get("version")
        }

    def answering(self, name: str) -> int:
        """The version of a model that answers.

        Raises:
            ServerError: none does, or the server refused.
        """
        ready = [version for version, state in self.states(name).items() if state == "READY"]
        if not ready:
            raise ServerUnavailableError(f"{name} is not ready")
        return max(ready)

    def infer(
        self, name: str, version: int, request: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """Ask one version of a model; request and answer are KServe v2 JSON.

        Raises:
            ServerError: it refused; the message is its reason.
        """
        path = f"/v2/models/{name}/versions/{version}/infer"
        answer: dict[str, Any] = self._post(path, request, timeout_s)
        return answer

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        connection = http.client.HTTPConnection(self.http_url, timeout=timeout_s)
        try:
            connection.request("POST", path, json.dumps(body), {KEY_HEADER: self.key})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailableError(
                f"no tritonserver answers at {self.http_url} ({error})"
            ) from error
        finally:
            connection.close()
        if response.status == http.HTTPStatus.FORBIDDEN:
            raise ServerError(
                f"the server at {self.http_url} does not accept this key: give the one it was "
                "started with"
            )
        try:
            answer = json.loads(content) if content else None
        except ValueError:
            answer = None
        if response.status != http.HTTPStatus.OK:
            reason = answer.get("error") if isinstance(answer, dict) else None
            busy = response.status == http.HTTPStatus.SERVICE_UNAVAILABLE
            kind = ServerUnavailableError if busy else ServerError
            raise kind(" ".join(str(reason or f"HTTP status {response.status}").split()))
        return answer


@contextmanager
def announced(repository: Path, control: Control) -> Iterator[bool]:
    """Let :func:`find_server` find a server as long as the context lasts.

    Gives whether it can be found: not where nothing can be written beside the repository.
    """
    path = _announcement(repository)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield False
        return
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another server was started on {repository} just now") from error
        os.fchmod(file.fileno(), 0o600)  # the file of a server that was killed may be there
        file.truncate()
        json.dump(asdict(control), file)
        file.flush()
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def find_server(repository: Path) -> Control | None:
    """The running server that ``vibematch serve`` started on ``repository``, if there is one.

    Raises:
        InputError: there is one, but its announcement belongs to another user.
    """
    path = _announcement(repository)
    try:
        with path.open() as file:
            if not _is_locked(file.fileno()):
                return None  # left by a server that was killed
            return Control(**json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"a server runs on {repository}, but {path} cannot be read ({error}): be the user who "
            "started it"
        ) from error


def require_nobody_serves(repository: Path) -> None:
    """Make sure that a repository can be replaced without pulling it from under a server.

    Raises:
        InputError: a server runs on it.
    """
    if (server := find_server(repository)) is not None:
        raise InputError(
            f"a server at {server.http_url} serves {repository}: change its model with "
            "`vibematch publish`, or stop it first"
        )


def _announcement(repository: Path) -> Path:
    return repository.resolve().with_name(f"{repository.resolve().name}.serving.json")


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
