"""The example backend of the documentation, against the real server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from vibematch import MatchingEngine
from vibematch_export.triton import TritonServer

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "fastapi_backend.py"

Backend = Callable[[str], AbstractContextManager[TestClient]]


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Starts the example for the server at an address."""

    def start(url: str) -> TestClient:
        spec = importlib.util.spec_from_file_location("fastapi_backend", EXAMPLE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setenv("VIBEMATCH_URL", url)
        monkeypatch.setenv("VIBEMATCH_INDEX", str(tmp_path / "index"))
        return TestClient(module.app)

    return start


@pytest.fixture
def app(backend: Backend, server: TritonServer) -> Iterator[TestClient]:
    with backend(server.grpc_url) as client:
        yield client


def sign_up(app: TestClient, user_id: str, photo: bytes, **about: Any) -> Any:
    about = {"gender": "F", "age": 30, "wants_gender": ["M"], **about}
    return app.post(f"/users/{user_id}/photos", data=about, files={"photo": photo})


def found(app: TestClient, user_id: str, **query: Any) -> list[str]:
    response = app.get(f"/users/{user_id}/matches", params=query)
    assert response.status_code == 200, response.text
    return [match["user_id"] for match in response.json()]


def test_from_sign_up_to_matches_that_both_sides_accept(
    app: TestClient, photos: list[bytes], tmp_path: Path
) -> None:
    men = {"gender": "M", "wants_gender": ["F"]}
    people: dict[str, dict[str, Any]] = {
        "ann": {"wants_age_from": 25, "wants_age_to": 40},
        "bea": {"wants_gender": ["F", "M"]},
        "carl": men,
        "dan": {**men, "age": 50},  # too old for ann
        "eric": {**men, "wants_age_to": 29},  # ann is too old for him
        "finn": {**men, "wants_gender": ["M"]},
        "gus": {**men, "age": 25},
    }
    for (user_id, about), photo in zip(people.items(), photos, strict=False):
        response = sign_up(app, user_id, photo, **about)
        assert (response.status_code, response.json()) == (201, {"added": 1, "known": 0})
    assert sign_up(app, "ann", photos[0], **people["ann"]).json() == {"added": 0, "known": 1}
    assert sign_up(app, "ann", photos[8], **people["ann"]).json() == {"added": 1, "known": 0}

    scores = app.get("/users/gus/matches").json()
    assert {match["user_id"] for match in scores} == {"ann", "bea"}
    assert scores == sorted(scores, key=lambda match: -match["score"])
    assert found(app, "ann", age_to=29) == ["gus"]
    assert found(app, "ann") == ["carl"]  # gus was shown before
    assert found(app, "ann") == []
    assert found(app, "bea", min_score=1) == []

    assert app.delete("/users/carl").status_code == 204
    assert "carl" not in found(app, "bea")
    assert app.get("/users/carl/matches").status_code == 404
    assert app.delete("/users/carl").status_code == 404


def test_what_was_answered_is_there_after_a_restart(
    backend: Backend, server: TritonServer, photos: list[bytes], tmp_path: Path
) -> None:
    with backend(server.grpc_url) as app:
        sign_up(app, "ann", photos[0])
    with backend(server.grpc_url) as app:
        assert sign_up(app, "ann", photos[0]).json() == {"added": 0, "known": 1}
    with MatchingEngine.open(tmp_path / "index", read_only=True) as engine:
        assert engine.preferences("ann") == {"gender": ["M"], "age": (18, 120)}


def test_what_a_client_did_wrong_is_said(app: TestClient, photos: list[bytes]) -> None:
    bad = sign_up(app, "ann", b"not a photo")
    assert bad.status_code == 422
    assert "not a JPEG, PNG or WEBP photo" in bad.json()["detail"]
    assert sign_up(app, "ann", photos[0], age=12).status_code == 422
    backwards = sign_up(app, "ann", photos[0], wants_age_from=50, wants_age_to=20)
    assert backwards.status_code == 422
    assert "upside down" in backwards.json()["detail"]
    assert app.get("/users/ann/matches", params={"min_score": 2}).status_code == 422
    assert app.get("/users/ann/matches").status_code == 404  # nothing of it was stored


@pytest.mark.slow  # a server of its own
def test_a_server_that_went_away_means_try_again_later(
    backend: Backend, repository: Path, photos: list[bytes]
) -> None:
    with ExitStack() as backends:
        with TritonServer(repository) as server:
            app = backends.enter_context(backend(server.grpc_url))
            assert sign_up(app, "ann", photos[0]).status_code == 201
            carl = sign_up(app, "carl", photos[1], gender="M", wants_gender=["F"])
            assert carl.status_code == 201
        response = sign_up(app, "bea", photos[2])
        assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
        assert found(app, "ann") == ["carl"]  # matching needs no server
