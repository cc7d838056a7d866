from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from vibematch.preprocess import Preprocessing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import serving_load

    return serving_load


@pytest.fixture
def measure(load: ModuleType) -> ModuleType:
    import serving_measure

    return serving_measure


@pytest.fixture
def serving(measure: ModuleType) -> ModuleType:
    import serving

    return serving


@pytest.fixture
def servers(load: ModuleType) -> ModuleType:
    from serving_peers import servers

    return servers


class StandIn:
    """A server of the peers' kind on a free port; ``answer`` makes each response."""

    def __init__(self, answer: Any) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        self._answer = answer

    async def _take(self, request: web.Request) -> web.Response:
        self.bodies.append((request.path, await request.read()))
        response: web.Response = await self._answer()
        return response

    async def __aenter__(self) -> StandIn:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def silence() -> web.Response:
    await asyncio.sleep(0.5)  # past all deadlines here
    return web.Response()


async def answered(status: int = 200) -> web.Response:
    return web.json_response([1.0], status=status)


def asked(load: ModuleType, answer: Any, protocol: str = "photo", **how: Any) -> tuple[Any, Any]:
    """A phase against a stand-in, and what that was sent."""

    async def run() -> tuple[Any, Any]:
        async with StandIn(answer) as server:
            requests = [load.prepare(b"a photo")]
            phase = await load.run_phase("", {protocol: server.url}, requests, load.Load(**how), [])
            return phase, server.bodies

    return asyncio.run(run())


def outcomes(load: ModuleType, *latencies: float | None) -> list[Any]:
    """Photos due a second apart; ``None`` has no answer."""
    return [
        load.Outcome(due, due, due + (latency or 1), "late" if latency is None else "answered")
        for due, latency in enumerate(latencies)
    ]


def phase(load: ModuleType, *latencies: float | None) -> Any:
    found = outcomes(load, *latencies)
    return load._figures("", found, load.Load(len(found), 100), 0.0, 0.0, [])


def test_an_open_loop_does_not_wait_for_answers(load: ModuleType, measure: ModuleType) -> None:
    found, sent = asked(load, silence, seconds=0.5, deadline=0.2, rate=100, seed=3)
    draw, due, expected = random.Random(3), 0.0, 0
    while (due := due + draw.expovariate(100)) < 0.5:
        expected += 1
    assert len(found.outcomes) == expected > 20
    assert len(sent) >= expected - 2  # given up at the very moment they were sent
    assert {outcome.status for outcome in found.outcomes} == {"late"}
    assert found.goodput == 0
    assert set(measure.latencies(found, 0.5)) == {math.inf}


def test_a_closed_loop_never_asks_for_more_than_its_clients(load: ModuleType) -> None:
    found, sent = asked(load, silence, seconds=0.1, deadline=0.3, clients=4)
    assert len(sent) == len(found.outcomes) == 4


@pytest.mark.parametrize("protocol", ["photo", "data_uri"])
def test_each_protocol_carries_the_photo(load: ModuleType, protocol: str) -> None:
    found, sent = asked(load, answered, protocol, seconds=0.1, deadline=5, clients=1)
    assert {outcome.status for outcome in found.outcomes} == {"answered"}
    path, body = sent[0]
    if protocol == "photo":
        assert (path, body) == ("/predict", b"a photo")
    else:
        assert path == "/embeddings"
        assert json.loads(body)["input"] == ["data:image/jpeg;base64,YSBwaG90bw=="]


def test_answers_that_are_no_vectors_are_told_apart(load: ModuleType) -> None:
    for status, name in ((503, "rejected"), (500, "500: [1.0]")):
        found, _ = asked(load, lambda s=status: answered(s), seconds=0.1, deadline=5, clients=1)
        assert {outcome.status for outcome in found.outcomes} == {name}


def test_latency_counts_from_when_a_photo_was_due(load: ModuleType, measure: ModuleType) -> None:
    behind = phase(load, 1)
    behind.outcomes[:] = [load.Outcome(due=10, sent=14, done=15, status="answered")]
    assert measure.latencies(behind, 10) == [5]


def test_a_percentile_is_a_value_that_so_many_do_not_exceed(measure: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 99, 100, 101):
        values = rng.normal(size=count).tolist()
        for share in (0.5, 0.95, 0.99):
            expected = np.quantile(values, share, method="inverted_cdf")
            assert measure.percentile(values, share) == expected
    assert measure.percentile([], 0.99) == math.inf
    assert measure.percentile([1.0] * 98 + [math.inf] * 2, 0.99) == math.inf


def test_whole_batches_do_not_make_a_server_seem_faster(
    load: ModuleType, measure: ModuleType
) -> None:
    single, batches = phase(load, *[1] * 8), phase(load, *[1] * 8)
    single.outcomes[:] = [load.Outcome(0, 0, n + 1, "answered") for n in range(8)]
    batches.outcomes[:] = [load.Outcome(0, 0, 4 * (n // 4 + 1), "answered") for n in range(8)]
    assert measure._work_rate(single) == measure._work_rate(batches) == 1


def measured(measure: ModuleType, label: str, phases: dict[Any, list[Any]]) -> Any:
    contender = measure.Contender(label, lambda: None)
    return measure.Measured(contender, None, 1, 1, 0, [], phases)


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [((1, 1), (1, 2), True), ((1, 3), (1, 2), False), ((1, None), (1, None), False)],
)
def test_the_bar_is_met_by_answers_only(
    load: ModuleType,
    measure: ModuleType,
    serving: ModuleType,
    ours: tuple[float | None, ...],
    theirs: tuple[float | None, ...],
    met: bool,
) -> None:
    plan = measure.PLANS["2b"]

    def photos_later(*latencies: float | None) -> list[Any]:
        late = phase(load, *latencies)
        late.outcomes[:] = [
            load.Outcome(o.due + plan.open_s, o.sent, o.done + plan.open_s, o.status)
            for o in late.outcomes
        ]
        return [late]

    closed = [phase(load, 1, 1)]
    found = [
        measured(measure, "vibematch int8", {"closed": closed, measure.TWICE: photos_later(*ours)}),
        measured(measure, measure.FASTAPI, {"closed": closed, measure.ONCE: photos_later(*theirs)}),
    ]
    (bar,) = serving._twice_bar(found, plan, measure.Limits(1))
    assert bar.met is met


@pytest.mark.parametrize(("goodput", "met"), [(0.9, True), (0.85, False)])
def test_the_bar_of_overload_is_a_share_of_the_capacity(
    load: ModuleType, measure: ModuleType, serving: ModuleType, goodput: float, met: bool
) -> None:
    overload = replace(phase(load, 1, 1), goodput=goodput, late=3)
    ours = measured(measure, "vibematch int8", {"closed": [phase(load, 1, 1)], 4: [overload]})
    bar = serving._overload_bar(ours, measure.PLANS["2b"])
    assert (bar.met, bar.value) == (
        met,
        f"{goodput / ours.median_capacity():.0%}; 3 answers too late",
    )


def test_twice_the_rate_is_the_same_photos_in_half_of_the_time(load: ModuleType) -> None:
    how = {"deadline": 5, "seed": 7}
    once, _ = asked(load, answered, seconds=0.4, rate=50, **how)
    twice, _ = asked(load, answered, seconds=0.2, rate=100, **how)
    assert len(once.outcomes) > 5
    moments = [[outcome.due for outcome in phase.outcomes] for phase in (once, twice)]
    assert [2 * due for due in moments[1]] == pytest.approx(moments[0])


def test_a_sleeping_server_stands_still_and_wakes(servers: ModuleType) -> None:
    busy = "while True: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        server = servers.Server({}, Path("/proc", str(process.pid)))
        try:
            until(lambda: busy.encode() in _words(server.processes()[-1]))
            with server.awake():
                pass
            until(lambda: [_state(one) for one in server.processes()] == ["T", "T"])
            before = _ticks(server)
            with server.awake():
                until(lambda: _ticks(server) > before)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _words(process: Path) -> list[bytes]:
    return (process / "cmdline").read_bytes().split(b"\0")


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def _ticks(server: Any) -> int:
    stats = [(one / "stat").read_text().rpartition(")")[2].split() for one in server.processes()]
    return sum(int(one[11]) + int(one[12]) for one in stats)


def test_a_server_that_does_not_start_says_why(servers: ModuleType) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    told = r"(?s)ended with status 3.*no such model"
    with pytest.raises(SystemExit, match=told), servers._process(command, "photo"):
        pass


def test_work_of_the_stand_in_tower_is_what_torch_counts(servers: ModuleType) -> None:
    canvas, width = Preprocessing(64, 64), 128
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=servers.CLIP_LAYERS,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        attn_implementation="eager",  # torch does not count the fused one
    )
    model = CLIPVisionModel(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, 64, 64))
    assert servers.clip_macs(width, canvas) == counter.get_total_flops() / 2


@pytest.mark.slow
def test_all_servers_give_the_same_vectors_and_end(
    measure: ModuleType, serving: ModuleType, tmp_path: Path
) -> None:
    quick = {"turns": (1, 1), "closed_s": 0.4, "open_s": 0.4, "overload_s": 0.4, "alone": 1}
    plan = replace(measure.PLANS["tiny"], **quick)
    with ExitStack() as running:
        contenders = serving.entered("tiny", tmp_path)
        found = [measure.start(one, plan, 0, running) for one in contenders]
        limits = measure.Limits.of(found)
        measure.measure(found, plan, limits, 0, Preprocessing(224, 224))
        processes = [process for one in found for process in one.server.processes()]
    until(lambda: not any(process.exists() for process in processes))
    made = serving.result(argparse.Namespace(backbone="tiny", seed=0), found, plan, limits)
    assert len(made.tables) == 6 and len(made.plots) == 2 and len(made.bars) == 2
    cosines = {row.label: row.cells[3] for row in made.tables[1].rows}
    assert cosines["vibematch fp32"] > 0.99999
    assert all(cosine > 0.99 for cosine in cosines.values() if cosine is not None)
    for one in found:
        assert all(not phase.errors for phases in one.phases.values() for phase in phases)


@pytest.mark.slow
def test_the_overhead_is_measured_on_both_sides(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "serving_overhead.py", "--work", tmp_path / "models"]
    command += ["--out", tmp_path, "--photos", "2", "--turns", "2", "--seconds", "1", "--json"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    made = json.loads(ran.stdout)
    assert made["name"] == "serving_overhead"
    assert [len(seconds) for seconds in made["figures"]["alone_s"].values()] == [2, 2, 2]
    for rates in made["figures"]["photos_per_s"].values():
        assert len(rates) == 2 and min(rates) > 0
    request, decoding = made["figures"]["by_size_s"].values()
    for small, large in (request, decoding):
        assert len(small) == len(large) == 2
        assert min(large) > min(small) > 0
