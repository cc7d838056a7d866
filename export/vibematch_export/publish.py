"""A new model on a running server: no request fails, and a bad model never answers one.

The new version is laid beside the one that answers, loaded, warmed up and asked for a photo whose
vector is known; only then does the ensemble go over to it, in one step. If anything before that
fails, everything is as it was.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vibematch.errors import InputError, ServerError, ServerUnavailableError
from vibematch.manifest import Manifest
from vibematch_export.canary import MIN_COSINE
from vibematch_export.control import Control
from vibematch_export.repository import (
    CANARY,
    ENCODER,
    PLAN,
    PREPROCESS,
    PROFILES,
    STEPS,
    add_version,
    bring_back,
    drop_what_was_set_aside,
    find_plan,
    load_servable,
    next_version,
    point_to,
    read_manifest,
    read_version,
    remove_version,
    set_aside,
    versions,
)
from vibematch_training.files import FolderLock

CANARY_TIMEOUT_S: Final = 120
"""One photo of a large model on a busy CPU."""

_CANARY_ATTEMPTS: Final = 30

_CANARY_REQUEST: Final = {
    "inputs": [{"name": "run", "datatype": "BOOL", "shape": [1], "data": [True]}]
}


class PublishError(ServerError):
    """The new model was not published; the one before goes on answering."""


@dataclass(frozen=True)
class Published:
    """What answers now.

    Attributes:
        version: its number in the repository.
        manifest: what it is.
        previous: the version that answered before, and stays loaded beside it.
        cosine: of the new version's canary vector and the one it was proven with.
    """

    version: int
    manifest: Manifest
    previous: int
    cosine: float


def publish(model: Path, repository: Path, server: Control) -> Published:
    """Go over to another model under traffic.

    Args:
        model: exported model folder.
        repository: the model repository that the server serves, at a path of this machine.
        server: the running server.

    Returns:
        What answers now.

    Raises:
        InputError: the model is not one this server can go over to.
        ManifestError: a manifest is missing or unusable.
        PublishError: the new version did not load, or is not the model that was proven.
        ServerError: the server does not answer.
    """
    manifest = load_servable(model)
    _require_fitting(manifest, model, read_manifest(repository), server.profile)
    with FolderLock(repository, waiting="waiting for another `vibematch publish` …"):
        previous, version = read_version(repository), next_version(repository)
        server.states(ENCODER)  # nothing is touched for a server that is not there
        with _undone_on_failure(repository, server, version):
            # Two stay loaded: the one that answers, and the new one.
            for number in versions(repository):
                if number != previous:
                    set_aside(repository, number)
            add_version(repository, model, version)
            cosine = _load(server, version)
            _switch(repository, server, version, manifest)
        drop_what_was_set_aside(repository)
    return Published(version, manifest, previous, cosine)


def roll_back(repository: Path, server: Control) -> Published:
    """Go back to the version before, which is still loaded.

    Raises:
        InputError: there is none.
        PublishError: it is not the model that was proven, or could not be switched to.
        ServerError: the server does not answer.
    """
    if not repository.is_dir():
        raise InputError(f"{repository} is no model repository")
    with FolderLock(repository, waiting="waiting for another `vibematch publish` …"):
        current = read_version(repository)
        earlier = [number for number in versions(repository) if number != current]
        if not earlier:
            raise InputError(f"{repository} holds only version {current}: nothing to go back to")
        version = earlier[-1]
        manifest = Manifest.load(repository / PREPROCESS / str(version))
        cosine = _proven(server, version)
        _switch(repository, server, version, manifest)
    return Published(version, manifest, current, cosine)


def ask_canary(server: Control, version: int) -> float:
    """Cosine between a known photo's vector as served by ``version`` and as it was proven.

    Raises:
        ServerError: a step failed, or the server does not answer.
    """
    answer = server.infer(CANARY, version, _CANARY_REQUEST, CANARY_TIMEOUT_S)
    return float(answer["outputs"][0]["data"][0])


def _require_fitting(manifest: Manifest, model: Path, served: Manifest, profile: str) -> None:
    if manifest.fingerprint == served.fingerprint:
        raise InputError(f"{model} is what the server answers with already")
    ours, theirs = manifest.preprocessing, served.preprocessing
    if (ours.height, ours.width) != (theirs.height, theirs.width):
        raise InputError(
            f"{model} sees {ours.width} x {ours.height} pixels and the server's model "
            f"{theirs.width} x {theirs.height}: a server cannot change its canvas while it runs; "
            "export to another repository and start a second server"
        )
    if manifest.embedding_dim != served.embedding_dim:
        raise InputError(
            f"{model} makes vectors of {manifest.embedding_dim} numbers and the server's model of "
            f"{served.embedding_dim}: export to another repository and start a second server"
        )
    if manifest.precision not in PROFILES[profile].precisions:
        raise InputError(
            f"{model} is {manifest.precision}, which the server's profile {profile} cannot run; "
            f"it runs {', '.join(PROFILES[profile].precisions)}"
        )
    if PROFILES[profile].weights == PLAN and find_plan(model) is None:
        raise InputError(
            f"{model} has no TensorRT plan, which the server's profile needs: make it with "
            f"`vibematch export {model} --runtime tensorrt` on the GPU that serves it"
        )


def _load(server: Control, version: int) -> float:
    for name in STEPS:
        try:
            server.load(name)
        except ServerError as error:
            raise PublishError(f"version {version} did not load: {error}") from error
        if server.states(name).get(version) != "READY":
            raise PublishError(f"version {version} of {name} did not become ready")
    return _proven(server, version)


def _proven(server: Control, version: int) -> float:
    """The cosine of a version's canary; where the queues are full, ask again for a while.

    Raises:
        PublishError: the photo cannot be encoded, or its vector is not the proven one.
    """
    for attempt in range(_CANARY_ATTEMPTS):
        try:
            cosine = ask_canary(server, version)
            break
        except ServerError as error:
            if not isinstance(error, ServerUnavailableError) or attempt + 1 == _CANARY_ATTEMPTS:
                raise PublishError(
                    f"version {version} cannot encode its canary photo: {error}"
                ) from error
            time.sleep(1)
    if not cosine >= MIN_COSINE:  # written so that NaN fails it too
        raise PublishError(
            f"the canary photo's vector has cosine {cosine:.6f} to the one the model was proven "
            f"with, and {MIN_COSINE} is needed: this machine computes something else"
        )
    return cosine


@contextlib.contextmanager
def _undone_on_failure(repository: Path, server: Control, version: int) -> Iterator[None]:
    """Take a version out again that cannot answer; Ctrl-C counts as well."""
    try:
        yield
    except BaseException:
        remove_version(repository, version)
        bring_back(repository)
        for name in STEPS:
            with contextlib.suppress(ServerError):  # what failed is said already
                server.load(name)
        raise


def _switch(repository: Path, server: Control, version: int, manifest: Manifest) -> None:
    """Have the ensemble answer with another version that is loaded, in one step."""
    before_version, before = read_version(repository), read_manifest(repository)
    point_to(repository, version, manifest)
    try:
        server.load(ENCODER)
        if server.states(ENCODER).get(version) != "READY":
            raise PublishError(f"version {version} of {ENCODER} did not become ready")
    except BaseException as error:
        point_to(repository, before_version, before)
        with contextlib.suppress(ServerError):
            server.load(ENCODER)
        if isinstance(error, ServerError):
            raise PublishError(f"the server did not go over: {error}") from error
        raise
