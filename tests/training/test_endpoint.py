from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch_training.annotation.endpoint import Endpoint, Pacer, api_key


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


def test_the_key_is_not_shown():
    assert "secret" not in repr(Endpoint("m", api_key="secret"))
