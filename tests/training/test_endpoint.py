from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch_training.annotation.endpoint import Endpoint, Pacer, api_key, run_jobs
from vibematch_training.annotation.ledger import Ledger
from vibematch_training.commands.endpoint_options import add_endpoint_options, endpoint_from


@given(
    per_minute=st.floats(1, 1000),
    arrivals=st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 5)), min_size=2, max_size=40),
)
def test_no_minute_holds_more_than_its_share(per_minute, arrivals):
    pacer, now_s, starts = Pacer(per_minute), 0.0, []
    for gap_s, cost in arrivals:
        now_s += gap_s
        starts.append((now_s + pacer.reserve(now_s, cost), cost))
    assert starts == sorted(starts, key=lambda start: start[0])
    for (begin_s, cost), (next_s, _) in pairwise(starts):
        assert next_s - begin_s >= cost * 60 / per_minute - 1e-6


def test_without_a_limit_nobody_waits_unless_held():
    pacer = Pacer(None)
    assert [pacer.reserve(5.0), pacer.reserve(5.0)] == [0, 0]
    pacer.hold(8.0)
    assert [pacer.reserve(5.0), pacer.reserve(9.0)] == [3.0, 0]


def test_openais_key_goes_to_openai_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    monkeypatch.setenv("OTHER_KEY", "other")
    assert api_key(None, None) == "secret"
    assert api_key("http://localhost:8000/v1", None) == "none"
    assert api_key("http://localhost:8000/v1", "OTHER_KEY") == "other"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds no API key"):
        api_key(None, None)
    with pytest.raises(InputError, match="MISSING_KEY"):
        api_key("http://localhost:8000/v1", "MISSING_KEY")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "--model"),
        ({"base_url": "localhost:8000"}, "http://"),
        ({"base_url": "http://"}, "name a host"),
        ({"base_url": "http://x:99999/v1"}, "65535"),
        ({"api_key": "ключ"}, "printable ASCII"),
        ({"api_key": "a\nb"}, "printable ASCII"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"requests_per_minute": float("nan")}, "requests_per_minute"),
        ({"concurrency": 0}, "concurrency"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"retries": -1}, "retries"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Endpoint(**{"model": "m", **settings})


def test_openais_variable_counts_as_the_option(monkeypatch: pytest.MonkeyPatch):
    parser = argparse.ArgumentParser()
    add_endpoint_options(parser, model_required=True, timeout_s=1.0)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    endpoint = endpoint_from(parser.parse_args(["--model", "m"]))
    assert (endpoint.base_url, endpoint.api_key) == ("http://localhost:8000/v1", "none")
    assert not endpoint.is_openai
    monkeypatch.delenv("OPENAI_BASE_URL")
    endpoint = endpoint_from(parser.parse_args(["--model", "m"]))
    assert endpoint.is_openai and endpoint.api_key == "secret"


class _BrokenJob:
    item, tokens = "a", 1

    def __init__(self, error: Exception) -> None:
        self.error = error

    def prepare(self) -> None:
        pass

    async def send(self, client: object, request: object, headers: object) -> object:
        raise self.error

    def read(self, response: object) -> dict[str, object]:
        raise AssertionError


@pytest.mark.parametrize(
    ("error", "event"),
    [(OverflowError("port"), "failed"), (RuntimeError("who knows"), "quarantined")],
)
def test_an_unknown_error_ends_the_run_and_is_not_raised(tmp_path: Path, error, event):
    with Ledger(tmp_path / "x.ledger.jsonl") as ledger:
        outcome = run_jobs(Endpoint("m"), ledger, [_BrokenJob(error)], progress=False)
        assert ledger.entries["a"].event == event
    assert type(error).__name__ in str(outcome.error)


def test_the_key_is_not_shown():
    assert "secret" not in repr(Endpoint("m", api_key="secret"))
