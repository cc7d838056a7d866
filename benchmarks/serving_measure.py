"""The turns of ``serving.py``: when each server is asked how much, and what that says."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import grpc
import harness
from serving_load import (
    LEFT_OUT,
    Load,
    Phase,
    Request,
    cpu_seconds,
    photos,
    prepare,
    run_phase,
    small_photos,
)
from serving_peers import servers
from serving_peers.servers import FASTAPI, Contender, Server

from vibematch.photo_input import downscaled
from vibematch.preprocess import Preprocessing

LIMIT_TIMES: Final = 10
"""One photo alone, so many times: within it lies the latency that p99 may have."""
DEADLINE_TIMES: Final = 5
"""The same for an answer that is asked for under overload."""
PATIENCE_TIMES: Final = 200
"""After so many, a photo is given up in the phases that have no deadline."""
WAIT_SHARE: Final = 1 / 3
"""Of its deadline: what ``vibematch.Encoder`` lets a photo wait at each step of ours."""
CLOSED: Final = "closed"
DOWNSCALED: Final = "downscaled by the client"
HTTP: Final = "over HTTP"
ONCE: Final = "at the rate it sustains"
TWICE: Final = "the same photos, coming twice as fast"
BAR_TURNS: Final = 3
IDLE_S: Final = 0.5


@dataclass(frozen=True)
class Plan:
    """How long what is measured.

    Attributes:
        turns: of the closed loops, and of the open ones.
        closed_s: seconds of a closed loop.
        open_s: seconds of an open one.
        overload_s: seconds of overload.
        rates: of the open loops, in shares of a server's own capacity.
        overloads: the same, and more than it can do.
        alone: photos asked one by one.
        clients: of the closed loops.
        variants: whether ours has closed loops over HTTP alone and with downscaled photos, too.
    """

    turns: tuple[int, int]
    closed_s: float
    open_s: float
    overload_s: float
    rates: tuple[float, ...]
    overloads: tuple[float, ...]
    alone: int
    clients: int
    variants: bool


PLANS: Final = {
    "tiny": Plan(
        turns=(3, 2),
        closed_s=1.2,
        open_s=2.5,
        overload_s=2.5,
        rates=(0.5, 0.8),
        overloads=(2, 4),
        alone=5,
        clients=16,
        variants=True,
    ),
    "2b": Plan(
        turns=(2, 1),
        closed_s=20,
        open_s=80,
        overload_s=75,
        rates=(0.7,),
        overloads=(4,),
        alone=2,
        clients=8,
        variants=False,
    ),
}


@dataclass
class Measured:
    """All that is known of one server.

    Attributes:
        contender: whose figures these are.
        server: what was asked.
        start_s: seconds from nothing to the first answer.
        alone_s: seconds for one photo, while nothing else is asked.
        idle_cores: CPU that it uses while nothing is asked.
        vectors: of the first photos.
        phases: of closed loops by :data:`CLOSED` or the variant's name, of open ones by their share
            of the capacity, :data:`ONCE` or :data:`TWICE`.
    """

    contender: Contender
    server: Server
    start_s: float
    alone_s: float
    idle_cores: float
    vectors: list[servers.Vector]
    phases: dict[str | float, list[Phase]] = field(default_factory=dict)

    def capacity(self, name: str = CLOSED) -> list[float]:
        """Photos a second, one figure for each turn of a closed loop."""
        return [_work_rate(phase) for phase in self.phases[name]]

    def median_capacity(self) -> float:
        """The same, as one figure."""
        return harness.median(self.capacity())

    @property
    def mib(self) -> float:
        """The most memory it was seen with."""
        samples = [mib for phases in self.phases.values() for p in phases for mib in p.server_mib]
        return max(samples, default=math.nan)


@dataclass(frozen=True)
class Limits:
    """Seconds that answers may take, made of what one photo alone takes ``unit_s``."""

    unit_s: float

    @classmethod
    def of(cls, found: Sequence[Measured]) -> Limits:
        """By FastAPI + transformers, or the slowest of those that are there."""
        alone = {one.contender.label: one.alone_s for one in found}
        return cls(alone.get(FASTAPI, max(alone.values())))

    @property
    def p99_s(self) -> float:
        """What p99 may be for a rate to count as sustained."""
        return LIMIT_TIMES * self.unit_s

    @property
    def deadline_s(self) -> float:
        """Under overload."""
        return DEADLINE_TIMES * self.unit_s

    @property
    def patience_s(self) -> float:
        """In the other phases."""
        return PATIENCE_TIMES * self.unit_s


# --- asking


def start(contender: Contender, plan: Plan, seed: int, running: ExitStack) -> Measured:
    """Start a server, warm it up, ask it alone, and put it to sleep."""
    print(f"starting {contender.label}", file=sys.stderr)
    small = itertools.cycle(prepare(photo) for photo in small_photos(seed))
    began = time.perf_counter()
    server = running.enter_context(contender.start())
    answer = server.ask(next(small), servers.START_TIMEOUT_S)
    start_s = time.perf_counter() - began
    vectors = [answer.vector] if answer.vector is not None else []
    times = []
    for _ in range(plan.alone):
        began = time.perf_counter()
        answer = server.ask(next(small), servers.START_TIMEOUT_S)
        times.append(time.perf_counter() - began)
        vectors += [answer.vector] if answer.vector is not None else []
    time.sleep(IDLE_S)  # whatever it still does after an answer
    used = cpu_seconds(server.processes())
    time.sleep(IDLE_S)
    used = cpu_seconds(server.processes()) - used
    server.signal(signal.SIGSTOP)
    return Measured(contender, server, start_s, harness.median(times), used / IDLE_S, vectors)


def measure(
    found: Sequence[Measured], plan: Plan, limits: Limits, seed: int, canvas: Preprocessing
) -> list[Measured]:
    """All phases, in turns among the servers; figures go into ``found``, whose first is ours.

    Returns:
        Those that answered nothing when first asked for much; they are not asked again.

    Raises:
        SystemExit: ours is among them.
    """
    sent = photos(seed)
    requests = [prepare(photo) for photo in sent]
    open_load = Load(plan.open_s, limits.patience_s, seed=seed)
    _closed_loops(found, plan, limits, seed, requests, canvas)
    silent = [one for one in found if not all(one.capacity())]
    if found[0] in silent:
        raise SystemExit(
            f"{found[0].contender.label} answered nothing: there is nothing to compare"
        )
    found = [one for one in found if one not in silent]
    for share in plan.rates:
        loops = {
            one.contender.label: partial(
                _open_loop, one, share, share * one.median_capacity(), open_load, requests
            )
            for one in found
        }
        harness.take_turns(loops, plan.turns[1], f"open, {share:g} of capacity", seed=seed)
    peer = next((one for one in found if one.contender.label == FASTAPI), None)
    if peer is not None:
        rate = peer.median_capacity() * sustained_share(peer, plan, limits)
        fast_load = dataclasses.replace(open_load, seconds=open_seconds(TWICE, plan))
        loops = {
            FASTAPI: partial(_open_loop, peer, ONCE, rate, open_load, requests),
            # as many photos in half of the time, at moments that are in the same proportions
            TWICE: partial(_open_loop, found[0], TWICE, 2 * rate, fast_load, requests),
        }
        harness.take_turns(loops, BAR_TURNS, "what the peer sustains, and twice", seed=seed)
    impatient = [prepare(photo, WAIT_SHARE * limits.deadline_s) for photo in sent]
    for share, one in itertools.product(plan.overloads, found):
        if one.contender.overloaded:
            print(f"{share:g} times its capacity: {one.contender.label}", file=sys.stderr)
            load = Load(plan.overload_s, limits.deadline_s, seed=seed)
            _open_loop(one, share, share * one.median_capacity(), load, impatient)
            if share != plan.overloads[-1]:
                _settle(one.server, requests[0], limits)
    return silent


def _closed_loops(
    found: Sequence[Measured],
    plan: Plan,
    limits: Limits,
    seed: int,
    requests: Sequence[Request],
    canvas: Preprocessing,
) -> None:
    load = Load(plan.closed_s, limits.patience_s, None, plan.clients, seed)
    loops: dict[str, Callable[[], None]] = {
        one.contender.label: partial(_add, one, CLOSED, load, requests) for one in found
    }
    if plan.variants:
        small = [prepare(downscaled(request.photo, canvas)) for request in requests]
        loops[DOWNSCALED] = partial(_add, found[0], DOWNSCALED, load, small)
        loops[HTTP] = partial(_add, found[0], HTTP, load, requests, ["http"])
    harness.take_turns(loops, plan.turns[0], "closed loops", seed=seed)


def _open_loop(
    one: Measured, name: str | float, rate: float, load: Load, requests: Sequence[Request]
) -> None:
    """Other moments in each turn, the same for all servers."""
    turn = len(one.phases.get(name, []))
    _add(one, name, dataclasses.replace(load, rate=rate, seed=load.seed + turn), requests)


def _add(
    one: Measured,
    name: str | float,
    load: Load,
    requests: Sequence[Request],
    protocols: Sequence[str] = (),
) -> None:
    urls = {name: one.server.urls[name] for name in protocols or one.server.urls}
    with one.server.awake():
        run = run_phase(str(name), urls, list(requests), load, one.server.processes())
        one.phases.setdefault(name, []).append(asyncio.run(run))


def _settle(server: Server, request: Request, limits: Limits) -> None:
    """Wait until a server has worked off what it was too late for."""
    deadline = time.monotonic() + limits.patience_s
    with server.awake():
        while time.monotonic() < deadline:
            with suppress(grpc.RpcError, OSError):
                server.ask(request, limits.patience_s)
                return
            time.sleep(limits.unit_s)


# --- figures


def open_seconds(name: str | float, plan: Plan) -> float:
    """How long photos become due in one of the open loops."""
    return plan.open_s / 2 if name == TWICE else plan.open_s


def _work_rate(phase: Phase) -> float:
    """Answers a second of a closed loop, which keeps the server at work until its last answer."""
    done = [outcome.done for outcome in phase.outcomes if outcome.status == "answered"]
    return len(done) / max(done) if done else 0.0


def latencies(phase: Phase, seconds: float) -> list[float]:
    """Of all photos after the first fifth of a phase, sorted; infinite without an answer."""
    return sorted(
        outcome.done - outcome.due if outcome.status == "answered" else math.inf
        for outcome in phase.outcomes
        if outcome.due >= LEFT_OUT * seconds
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def pooled(phases: Iterable[Phase], seconds: float) -> list[float]:
    """The same, of all turns together."""
    return sorted(itertools.chain.from_iterable(latencies(one, seconds) for one in phases))


def keeps(phases: Sequence[Phase], plan: Plan, limits: Limits) -> bool:
    """Whether the p99 of an open loop is within the limit."""
    return percentile(pooled(phases, plan.open_s), 0.99) <= limits.p99_s


def sustained_share(one: Measured, plan: Plan, limits: Limits) -> float:
    """The highest of the tried rates whose p99 is within the limit; the lowest if none is."""
    kept = [share for share in plan.rates if keeps(one.phases[share], plan, limits)]
    return max(kept, default=min(plan.rates))
