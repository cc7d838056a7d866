"""A dating app's backend in one file: sign-up photos in, people who share the style out.

    pip install ./client fastapi uvicorn python-multipart
    VIBEMATCH_URL=localhost:8001 VIBEMATCH_INDEX=index/ uvicorn fastapi_backend:app

The endpoints are plain functions, which FastAPI runs on threads: engine and encoder may be shared
between threads. One process writes to an index, so this runs with one worker; others that only
search open the index with ``read_only=True``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from vibematch import Encoder, MatchingEngine, VibematchError
from vibematch.errors import (
    InputError,
    ServerTimeoutError,
    ServerUnavailableError,
    UnknownUserError,
)

SEEN: defaultdict[str, set[str]] = defaultdict(set)  # your database's business


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open index and connection before the first request, and close them after the last."""
    url = os.environ.get("VIBEMATCH_URL", "localhost:8001")
    with (
        Encoder(url, timeout_s=10) as encoder,
        MatchingEngine.open(os.environ.get("VIBEMATCH_INDEX", "index/"), encoder=encoder) as engine,
    ):
        app.state.engine = engine
        yield


app = FastAPI(title="matches", lifespan=lifespan)


@app.post("/users/{user_id}/photos", status_code=201)
def add_photo(
    request: Request,
    user_id: str,
    photo: UploadFile,
    gender: Annotated[str, Form()],
    age: Annotated[int, Form(ge=18, le=120)],
    wants_gender: Annotated[list[str], Form()],
    wants_age_from: Annotated[int, Form(ge=18)] = 18,
    wants_age_to: Annotated[int, Form(le=120)] = 120,
) -> dict[str, int]:
    """A sign-up, or one more photo; the same request again changes nothing."""
    engine: MatchingEngine = request.app.state.engine
    added = engine.add(
        user_id,
        photos=[photo.file],
        attributes={"gender": gender, "age": age},
        preferences={"gender": wants_gender, "age": (wants_age_from, wants_age_to)},
    )
    return {"added": added.added, "known": added.known}


@app.get("/users/{user_id}/matches")
def matches(
    request: Request,
    user_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    min_score: float | None = None,
    age_from: int = 18,
    age_to: int = 120,
) -> list[dict[str, Any]]:
    """People who share the style, and each of whom would accept the other; new ones each time."""
    engine: MatchingEngine = request.app.state.engine
    found = engine.search(
        user_id,
        limit,
        mutual=True,
        where={"age": (age_from, age_to)},
        exclude=SEEN.get(user_id, ()),
        min_score=min_score,
    )
    SEEN[user_id].update(match.user_id for match in found)
    return [match._asdict() for match in found]


@app.delete("/users/{user_id}", status_code=204)
def remove(request: Request, user_id: str) -> Response:
    """Forget a person: vectors, attributes, everything."""
    request.app.state.engine.remove(user_id)
    SEEN.pop(user_id, None)
    return Response(status_code=204)


@app.exception_handler(VibematchError)
def refuse(request: Request, error: VibematchError) -> JSONResponse:
    """Say whose fault it is; whatever is not listed is ours, and answered with 500."""
    match error:
        case UnknownUserError():
            return JSONResponse({"detail": str(error)}, 404)
        case InputError():  # PhotoError among them
            return JSONResponse({"detail": str(error)}, 422)
        case ServerUnavailableError() | ServerTimeoutError():
            return JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": "2"})
    raise error
