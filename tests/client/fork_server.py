"""Jobs in processes that may be killed or crash. Each is forked off one that has imported all.

A job is a line of JSON on standard input, ``[name, arguments…]``. Its process says its id, then
whatever it has to say; in the end this one says the exit code, as ``{"ended": …}``.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.client.reference import People, stored

from vibematch import engine as engine_module
from vibematch import planner
from vibematch.engine import MatchingEngine
from vibematch.errors import VibematchError
from vibematch.records import Profile

DIM = 8
LOADED = 500
"""Users of a bulk load."""
COMMITTED = 200
"""So many of them are one transaction."""

Call = dict[str, Any]


class ForkServer:
    """The other end: starts the server, gives it jobs, hears what they say."""

    def __init__(self, scratch: Path) -> None:
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(scratch)},
        )

    def start(self, *job: Any) -> int:
        """Begin a job; returns the id of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(next(self.lines())["pid"])

    def lines(self) -> Iterator[dict[str, Any]]:
        """What is said, line by line."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def run(self, *job: Any) -> tuple[list[dict[str, Any]], int]:
        """Do a job to its end: what it said, and how it ended."""
        self.start(*job)
        said: list[dict[str, Any]] = []
        for line in self.lines():
            if "ended" in line:
                return said, line["ended"]
            said.append(line)
        raise AssertionError("the server is gone")

    def close(self) -> None:
        self._process.communicate()


# --- what jobs do


def write(path: str, seed: int, favourite: str) -> None:
    """Do random things to an index for ever; say each one before, and ``{}`` when it is done."""
    rng = random.Random(seed)
    engine = MatchingEngine.open(path)
    while True:
        call = _next_call(rng, engine, favourite)
        _say(call)
        if call["do"] == "reopen":
            engine.close()
            engine = MatchingEngine.open(path)
        else:
            perform(engine, call)
        _say({})


def answer(path: str, queries: list[list[float]], read_only: bool) -> None:
    """Open an index and search it by its graph; then write to it, unless it is only to be read."""
    planner.EXACT_UP_TO = planner.FIRST_LOOK = 0
    planner.scan_us = lambda *_: math.inf
    try:
        with MatchingEngine.open(path, read_only=read_only) as engine:
            _say({"found": [engine.search(vector=query, top_k=10) for query in queries]})
            if not read_only:
                engine.add("latecomer", vectors=[queries[0]])
                _say({"found": [engine.search(vector=queries[0], where={"age": None})]})
    except VibematchError as error:
        _say({"error": type(error).__name__, "message": str(error)})


def follow(path: str, seconds: float) -> None:
    """Say who is found whenever that has changed, until somebody is called ``stop``."""
    end_s = time.monotonic() + seconds
    last: list[Any] = []
    with MatchingEngine.open(path, read_only=True) as engine:
        while time.monotonic() < end_s:
            found = engine.search(vector=np.eye(DIM)[0], top_k=10)
            if found != last:
                _say({"found": found})
                last = found
            if any(name == "stop" for name, _ in found):
                return
            time.sleep(0.01)


def perform(engine: MatchingEngine, call: Call) -> None:
    match call["do"]:
        case "write":
            engine.add_many(map(_profile, call["profiles"]))
        case "load":
            engine.add_many(loaded(call["version"]))
        case "remove":
            engine.remove(call["user"])
        case "remove_photo":
            engine.remove_photo(call["user"], call["photo_id"])
        case what:
            getattr(engine, what)()  # save, compact


def apply(people: People, call: Call) -> None:
    """What a call does, for the reference."""
    match call["do"]:
        case "write":
            for profile in call["profiles"]:
                people.write(_profile(profile))
        case "load":
            for profile in loaded(call["version"]):
                people.write(profile)
        case "remove":
            del people[call["user"]]
        case "remove_photo":
            del people[call["user"]].photos[call["photo_id"]]


def loaded(version: int) -> Iterator[Profile]:
    """The profiles of a bulk load: always the same users, with other vectors each time."""
    rows = np.random.default_rng(version).normal(size=(LOADED, DIM))
    for number, row in enumerate(rows):
        yield Profile(f"loaded_{number:04d}", [stored(row, "only")], {"version": version})


def _next_call(rng: random.Random, engine: MatchingEngine, favourite: str) -> Call:
    what = favourite if rng.random() < 0.3 else rng.choice(["write"] * 6 + KINDS)
    user = f"user_{rng.randrange(30):02d}"
    if what == "load":
        return {"do": "load", "version": rng.randrange(2**31)}
    if what in ("save", "compact", "reopen"):
        return {"do": what}
    if what != "write" and user in engine:
        if what == "remove":
            return {"do": "remove", "user": user}
        photos = engine.photos(user)
        if len(photos) > 1:
            return {"do": what, "user": user, "photo_id": rng.choice(photos).photo_id}
    return {"do": "write", "profiles": [_random_profile(rng) for _ in range(rng.randint(1, 3))]}


KINDS = ["write", "remove", "remove_photo", "load", "save", "compact", "reopen"]


def _random_profile(rng: random.Random) -> list[Any]:
    photos = [
        [rng.choice(["", "front", "side"]), [rng.gauss(0, 1) for _ in range(DIM)]]
        for _ in range(rng.randint(1, 3))
    ]
    attributes = {"age": rng.randrange(5)} if rng.random() < 0.7 else None
    preferences = {"age": [rng.randrange(5), None]} if rng.random() < 0.5 else None
    return [f"user_{rng.randrange(30):02d}", photos, attributes, preferences]


def _profile(written: list[Any]) -> Profile:
    user_id, photos, attributes, preferences = written
    return Profile(
        user_id, [stored(row, photo_id) for photo_id, row in photos], attributes, preferences
    )


# --- the server


def _say(what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _serve() -> None:
    import hnswlib  # noqa: F401 (so that no job has to)

    engine_module._COMMIT_PROFILES = COMMITTED  # type: ignore[misc]
    jobs: dict[str, Callable[..., None]] = {"write": write, "answer": answer, "follow": follow}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            _say({"pid": os.getpid()})
            try:
                jobs[name](*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say({"ended": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    _serve()
