from __future__ import annotations

import json
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch_training.annotation.ledger import LOST, Ledger

events = st.tuples(
    st.sampled_from(["sent", "lost", "failed", "invalid", "answered", "quarantined"]),
    st.sampled_from(["a", "b", "c"]),
    st.text(max_size=8),
)


@settings(max_examples=60, deadline=None)
@given(history=st.lists(events, max_size=8), last=events, data=st.data())
def test_a_torn_last_line_never_was(history, last, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.ledger.jsonl"
        with Ledger(path) as ledger:
            for event, item, reason in history:
                ledger.append(event, item, reason=reason)
            before, length = deepcopy(ledger.entries), path.stat().st_size
            ledger.append(last[0], last[1], reason=last[2])
            after = deepcopy(ledger.entries)
        whole = path.read_bytes()
        kept = data.draw(st.integers(length, len(whole)))
        path.write_bytes(whole[:kept])
        with Ledger(path) as ledger:
            assert ledger.entries == (after if kept == len(whole) else before)
            ledger.append(last[0], last[1], reason=last[2])  # and it can be written on
        with Ledger(path) as ledger:
            # the repaired file reads like one that was never torn
            if kept < len(whole):
                assert _without_times(ledger) == _times_removed(after)


def _without_times(ledger: Ledger) -> object:
    return _times_removed(ledger.entries)


def _times_removed(entries: dict) -> object:
    return {
        item: (entry.event, {**entry.record, "at": ""}, entry.answers, entry.rounds)
        for item, entry in entries.items()
    }


def test_what_was_on_its_way_is_quarantined_not_asked_again(tmp_path: Path):
    path = tmp_path / "x.ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.plan({"a": {"n": 1}, "b": {}, "c": {}, "d": {}})
        ledger.append("sent", "a")
        ledger.append("sent", "b")
        ledger.append("failed", "b", reason="HTTP 500")
        ledger.append("sent", "c")
        ledger.append("answered", "c", answer={"x": "y"})
    with Ledger(path) as ledger:
        ledger.settle()
        assert ledger.entries["a"].record["reason"] == LOST
        assert ledger.entries["a"].plan == {"n": 1}
        finished = {item: ledger.finished(item, retry_quarantined=False) for item in ledger.entries}
        assert finished == {"a": True, "b": False, "c": True, "d": False}
        assert not ledger.finished("a", retry_quarantined=True)
        assert ledger.finished("c", retry_quarantined=True)


def test_what_was_lost_stays_open_until_an_answer_comes(tmp_path: Path):
    with Ledger(tmp_path / "x.ledger.jsonl") as ledger:
        for item, after in {"a": [], "b": ["sent", "failed"], "c": ["sent", "answered"]}.items():
            for event in ["sent", "lost", *after]:
                ledger.append(event, item)
    with Ledger(tmp_path / "x.ledger.jsonl") as ledger:
        ledger.settle()
        events = {item: entry.event for item, entry in ledger.entries.items()}
        assert events == {"a": "quarantined", "b": "quarantined", "c": "answered"}
        assert {entry.rounds for entry in ledger.entries.values()} == {0}


def test_every_event_is_on_disk_when_append_returns(tmp_path: Path):
    path = tmp_path / "x.ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append("sent", "a")
        header, line = map(json.loads, path.read_bytes().splitlines())
    assert header == {"ledger": 1}
    assert (line["event"], line["item"]) == ("sent", "a")


def test_one_process_at_a_time(tmp_path: Path):
    with (
        Ledger(tmp_path / "x.ledger.jsonl"),
        pytest.raises(InputError, match="another vibematch is working"),
    ):
        Ledger(tmp_path / "y.ledger.jsonl")
    Ledger(tmp_path / "x.ledger.jsonl").__exit__(None, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"ledger": 1}\nnonsense\n{"event": "sent", "item": "a"}\n', "damaged on line 2"),
        (b'{"ledger": 1}\n{"event": "bought", "item": "a"}\n', "damaged on line 2"),
        (b'{"ledger": 9}\n', "another version"),
        (b"filename,user_id\n", "damaged on line 1"),
    ],
)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(tmp_path: Path, content, message):
    path = tmp_path / "x.ledger.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Ledger(path)
    assert path.read_bytes() == content


def test_answers_that_utf8_cannot_hold_are_kept(tmp_path: Path):
    path = tmp_path / "x.ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append("invalid", "a", answer="\ud800 한")
    with Ledger(path) as ledger:
        assert ledger.entries["a"].record["answer"] == "\ud800 한"
    assert "한".encode() in path.read_bytes()
