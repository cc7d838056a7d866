from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vibematch.errors import InputError
from vibematch.photos import read_photos
from vibematch_training.annotation.endpoint import Endpoint, InvalidAnswerError
from vibematch_training.annotation.labelling import (
    COLUMNS,
    LabellingResult,
    label_photos,
    parse_labels,
)
from vibematch_training.annotation.ledger import LOST
from vibematch_training.annotation.prices import Price
from vibematch_training.schema import CATEGORIES

GOOD = {
    **{name: values[0] for name, values in CATEGORIES.items()},
    "physical_features": "short hair",
    "caption": "A person.",
}


@pytest.fixture
def label(openai_server: Any, few_photos: Path) -> Callable[..., LabellingResult]:
    def run(out: Path | None = None, **options: Any) -> LabellingResult:
        settings = {"concurrency": 3, "backoff_s": 0.01, "timeout_s": 10.0}
        settings |= {name: options.pop(name) for name in [*options] if hasattr(Endpoint("m"), name)}
        endpoint = Endpoint(**{"model": "m", "base_url": openai_server.url, **settings})
        out = out or few_photos / "metadata.csv"
        return label_photos(few_photos, out, endpoint, Price(), progress=False, **options)

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quarantine_of(result: LabellingResult) -> list[dict[str, Any]]:
    assert result.quarantine is not None
    return [json.loads(line) for line in result.quarantine.read_text().splitlines()]


# --- what goes out and what comes in


def test_every_photo_is_labelled_and_asked_once(label, openai_server, few_photos):
    result = label()
    assert (result.labelled, result.quarantined, result.unanswered) == (12, 0, 0)
    assert result.quarantine is None
    assert {*openai_server.asked.values()} == {1} and len(openai_server.asked) == 12
    assert (result.usage.requests, result.usage.input_tokens) == (12, 12 * 700)
    assert 1 < openai_server.most_in_flight <= 3

    photos = read_photos(few_photos)
    assert len(photos) == 12
    for photo in photos:
        for name, values in CATEGORIES.items():
            assert photo.labels[name] in values
        assert photo.labels["caption"].startswith('A "photo", number')
        assert "\n" not in photo.labels["caption"]

    label()
    assert len(openai_server.received) == 12


def test_the_request_is_strict_and_carries_nothing_but_the_picture(
    label, openai_server, few_photos
):
    secret = few_photos / "user_000_0.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "SECRET exif"
    Image.new("RGB", (2000, 1000), "red").save(
        secret, exif=exif, comment=b"SECRET comment", xmp=b"<x>SECRET xmp</x>"
    )
    label(reasoning_effort="low")
    sizes = set()
    for path, headers, fields in openai_server.requests:
        assert path == "/v1/chat/completions"
        assert "idempotency-key" in headers
        assert "user_0" not in json.dumps(fields) + json.dumps(headers)
        assert fields["model"] == "m" and fields["reasoning_effort"] == "low"
        schema = fields["response_format"]["json_schema"]
        assert schema["strict"] and schema["schema"]["additionalProperties"] is False
        assert schema["schema"]["required"] == list(COLUMNS)
        url = fields["messages"][-1]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/jpeg;base64,")
        sent = base64.b64decode(url.partition(",")[2])
        assert b"SECRET" not in sent
        image = Image.open(io.BytesIO(sent))
        assert not image.getexif() and max(image.size) <= 1024
        sizes.add(image.size)
    assert (512, 1024) in sizes  # turned upright


def test_equal_photos_are_asked_for_once(label, openai_server, few_photos):
    shutil.copy(few_photos / "user_000_0.jpg", few_photos / "user_009_0.jpg")
    result = label()
    assert (result.photos, result.labelled, len(openai_server.received)) == (13, 13, 12)


@pytest.mark.parametrize("text", [json.dumps(GOOD), json.dumps(GOOD, indent=1) + "\n"])
def test_good_answers(text):
    assert parse_labels(text) == GOOD


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(json.dumps)
)
def test_anything_else_is_an_invalid_answer(text):
    with pytest.raises(InvalidAnswerError):
        parse_labels(text)


@given(
    st.sampled_from(COLUMNS),
    st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=3)),
)
def test_one_wrong_value_is_enough(name, value):
    labels = GOOD | {name: value}
    if isinstance(value, str) and name not in CATEGORIES and value.strip().isprintable():
        return
    try:
        parsed = parse_labels(json.dumps(labels))
    except InvalidAnswerError as error:
        assert name in str(error)
    else:
        parsed[name].encode()
        assert name not in CATEGORIES and parsed[name]


def test_all_problems_are_named_at_once():
    labels = {**GOOD, "shot_type": "Drone", "age": "29", "caption": ""}
    del labels["fashion_style"]
    with pytest.raises(InvalidAnswerError) as caught:
        parse_labels(json.dumps(labels))
    for name in ("fashion_style is missing", "'Drone'", "'age'", "caption is empty"):
        assert name in str(caught.value)
    assert json.loads(caught.value.answer) == labels


# --- a server that misbehaves


@pytest.mark.parametrize("behaviour", ["429", "500", "504", "drop", "half"])
def test_passing_failures_are_tried_again_under_the_same_key(label, openai_server, behaviour):
    openai_server.behave = lambda number, photo: behaviour if number < 2 else "ok"
    result = label()
    assert (result.labelled, result.quarantined) == (12, 0)
    assert {*openai_server.asked.values()} == {2}
    assert len(openai_server.answered) == 12
    assert result.repeated == (12 if behaviour in ("504", "drop", "half") else 0)
    keys = {headers["idempotency-key"] for _, headers, _ in openai_server.requests}
    assert len(keys) == 12


def test_a_slow_answer_is_not_waited_for_for_ever(label, openai_server):
    slow = set()

    def behave(number: int, photo: str) -> str:
        if not slow:
            slow.add(photo)
            return "slow"
        return "ok"

    openai_server.behave = behave
    result = label(timeout_s=0.5, retries=0)
    assert (result.labelled, result.quarantined, result.repeated) == (11, 1, 0)
    [entry] = quarantine_of(result)
    assert "deadline" in entry["reason"]
    # it may have been paid for: only a person decides to ask again
    assert label().labelled == 11
    assert label(retry_quarantined=True).labelled == 12


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("not json", "not JSON"),
        ("key twice", "twice"),
        ("wrong enum", "'Goth', not one of the choices"),
        ("wrong type", "caption is not text"),
        ("empty text", "caption is empty"),
        ("surrogate", "no text"),
        ("extra key", "'age' is not asked for"),
        ("missing key", "shot_type is missing"),
        ("cut off", "cut off"),
        ("html", "not a chat completion"),
        ("broken body", "not a chat completion"),
        ("null", "not a chat completion"),
        ("refusal", "refused: I can't help"),
        ("filtered", "refused: content filter"),
        ("400", "HTTP 400"),
    ],
)
def test_bad_answers_are_quarantined_and_never_guessed(
    label, openai_server, few_photos, behaviour, reason
):
    bad: set[str] = set()

    def behave(number: int, photo: str) -> str:
        if len(bad) < 2:
            bad.add(photo)
        return behaviour if photo in bad else "ok"

    openai_server.behave = behave
    result = label(attempts=2)
    assert (result.photos, result.labelled, result.quarantined) == (12, 10, 2)
    entries = quarantine_of(result)
    assert all(reason in entry["reason"] for entry in entries)
    final = behaviour in ("refusal", "filtered", "400")
    assert {openai_server.asked[photo] for photo in bad} == {1 if final else 2}
    if not final:  # another try is another request, not a repetition
        keys = {headers["idempotency-key"] for _, headers, _ in openai_server.requests}
        assert len(keys) == 14

    rows = {row["filepath"]: row for row in rows_of(result.metadata)}
    assert len(rows) == 12
    for entry in entries:
        assert all(rows[entry["photo"]][name] == "" for name in COLUMNS)
    assert len(read_photos(few_photos)) == 12

    before = len(openai_server.received)
    assert label().quarantined == 2
    assert len(openai_server.received) == before
    openai_server.behave = lambda number, photo: "ok"
    result = label(retry_quarantined=True)
    assert (result.labelled, result.quarantined, result.quarantine) == (12, 0, None)
    assert len(openai_server.received) == before + 2


@pytest.mark.parametrize("behaviour", ["401", "402", "403", "404", "quota"])
def test_what_no_photo_can_cure_ends_the_run(label, openai_server, few_photos, behaviour):
    openai_server.behave = lambda number, photo: behaviour
    result = label()
    assert result.error is not None and "HTTP 4" in str(result.error)
    assert len(openai_server.received) <= 3  # those sent at the same time
    assert (result.labelled, result.quarantined) == (0, 0)
    assert result.unanswered == 12
    openai_server.behave = lambda number, photo: "ok"
    assert label().labelled == 12


def test_killed_before_a_repetition_it_is_not_sent_unasked(label, openai_server, few_photos):
    out = few_photos.parent / "labels.csv"
    openai_server.behave = lambda number, photo: "drop" if number == 1 else "ok"
    assert label(out, concurrency=1).repeated == 12
    [(_, first, _), *_] = openai_server.requests
    # what is on disk while the first photo waits for its repetition
    path = out.with_suffix(".ledger.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if '"event": "lost"' in line)
    path.write_text("".join(lines[: lost + 1]))
    out.unlink()
    openai_server.forget()
    openai_server.behave = lambda number, photo: "ok"
    result = label(out)
    assert (result.labelled, result.quarantined, len(openai_server.received)) == (11, 1, 11)
    assert quarantine_of(result)[0]["reason"] == LOST
    openai_server.forget()
    assert label(out, retry_quarantined=True).labelled == 12
    [(_, again, _)] = openai_server.requests
    assert again["idempotency-key"] == first["idempotency-key"]


def test_photos_do_not_follow_a_redirect(label, openai_server):
    openai_server.behave = lambda number, photo: "redirect"
    result = label()
    assert "redirects to /elsewhere/" in str(result.error)
    assert (result.quarantined, result.unanswered) == (0, 12)
    assert not any("elsewhere" in path for path, _, _ in openai_server.requests)


def test_what_openais_variables_name_stays_with_openai(label, openai_server, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "secret-org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "secret-project")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    label()
    assert len(openai_server.requests) == 12
    assert "secret" not in str([headers for _, headers, _ in openai_server.requests])


def test_a_server_that_only_fails_is_left_alone(label, openai_server):
    openai_server.behave = lambda number, photo: "500"
    result = label(retries=1)
    assert "in a row" in str(result.error)
    assert result.quarantined == 0
    assert max(openai_server.asked.values()) == 2
    openai_server.behave = lambda number, photo: "ok"
    assert label().labelled == 12


def test_a_model_that_never_answers_right_is_not_paid_for_the_whole_folder(label, openai_server):
    openai_server.behave = lambda number, photo: "not json"
    result = label(attempts=1)
    assert "in a row got no usable answer" in str(result.error)
    assert len(openai_server.received) < 12


def test_nobody_there(label):
    result = label(base_url="http://127.0.0.1:9/v1", retries=0)
    assert "no connection" in str(result.error)
    assert (result.labelled, result.quarantined, result.unanswered) == (0, 0, 12)


def test_a_request_to_wait_for_an_hour_is_passed_on(label, openai_server):
    openai_server.behave = lambda number, photo: "wait an hour"
    assert "asks to wait 3,600 s" in str(label().error)


def test_unreadable_photos_are_never_sent(label, openai_server, few_photos):
    (few_photos / "user_000_0.jpg").write_bytes(b"\xff\xd8\xff no photo")
    result = label()
    assert (result.labelled, result.quarantined) == (11, 1)
    assert len(openai_server.received) == 11
    [entry] = quarantine_of(result)
    assert entry["photo"] == "user_000_0.jpg" and "cannot be read" in entry["reason"]


# --- the table


def test_labels_of_people_stay_and_their_gaps_are_filled(label, openai_server, few_photos):
    own = few_photos / "metadata.csv"
    lines = ["filename,user_id,image_idx,filepath,split,fashion_style,note"]
    for number, path in enumerate(sorted(few_photos.glob("*.jpg"))):
        style = "Classy_Elegant" if number < 4 else ""
        name = path.name
        lines.append(f"{name},{name[:8]},{name[9]},{name},train,{style},n{number}")
    own.write_text("\n".join(lines) + "\n")
    result = label()
    rows = rows_of(own)
    assert list(rows[0])[:7] == lines[0].split(",")
    assert [row["note"] for row in rows] == [f"n{number}" for number in range(12)]
    assert {row["fashion_style"] for row in rows[:4]} == {"Classy_Elegant"}
    assert all(row[name] for row in rows for name in COLUMNS)
    assert all(row["split"] == "train" for row in rows)
    # what people said is still known when the labels of all are in the same file
    again = label()
    for known in (result.given, again.given):
        assert [len(known[row["filepath"]]) for row in rows] == [1] * 4 + [0] * 8
    assert len(openai_server.received) == 12

    other = few_photos.parent / "labels" / "metadata.csv"
    other.parent.mkdir()
    label(other, relabel=True)
    assert len(openai_server.received) == 24
    answers = label(other).answers
    for row in rows_of(other):
        path = f"../{few_photos.name}/{row['filename']}"
        assert row["filepath"] == path
        assert row["fashion_style"] == answers[path]["fashion_style"]
    assert [photo.path.resolve() for photo in read_photos(other.parent)] == sorted(
        few_photos.resolve().glob("*.jpg")
    )


def test_copies_are_labelled_but_no_second_opinion(label, few_photos):
    from vibematch_training.annotation.augmentation import augment

    label()
    made = augment(few_photos, 1, progress=False).made
    result = label(few_photos.parent / "labels.csv", relabel=True)
    assert result.photos == result.labelled == len(result.answers) == 12 + made > 12
    assert len(result.given) == 12
    moved = {row["source"] for row in rows_of(result.metadata)} - {""}
    assert len(moved) == made and moved <= {*result.given}  # relative to the new file


def test_a_table_that_needs_nothing_is_left_as_it_is(label, few_photos):
    label()
    own = few_photos / "metadata.csv"
    own.write_text(own.read_text().replace("\r\n", "\n"))
    before = own.read_bytes()
    label()
    assert own.read_bytes() == before


def test_corrections_in_the_output_survive_a_rerun(label, openai_server, few_photos):
    out = few_photos.parent / "labels.csv"
    label(out)
    text = out.read_text()
    first = rows_of(out)[0]["caption"].replace('"', '""')
    out.write_text(text.replace(first, "corrected by hand"))
    label(out)
    assert rows_of(out)[0]["caption"] == "corrected by hand"
    assert len(openai_server.received) == 12


def test_a_file_that_is_not_ours_is_not_overwritten(label, openai_server, few_photos):
    out = few_photos.parent / "mine.csv"
    out.write_text("precious")
    with pytest.raises(InputError, match="was not written by vibematch label"):
        label(out)
    assert out.read_text() == "precious" and not openai_server.received


def test_another_model_is_asked_anew(label, openai_server, few_photos):
    label(few_photos.parent / "labels.csv")
    label(few_photos.parent / "labels.csv", model="better", relabel=True)
    assert [fields["model"] for _, _, fields in openai_server.requests] == ["m"] * 12 + [
        "better"
    ] * 12


def test_declining_sends_nothing(label, openai_server):
    estimates = []

    def decline(estimate: object) -> None:
        estimates.append(estimate)
        raise InputError("no, thank you")

    with pytest.raises(InputError, match="thank you"):
        label(confirm=decline)
    assert not openai_server.received
    assert estimates[0].usage.requests == 12
    label()
    label(confirm=decline)  # nothing left to agree to


# --- killed and interrupted


def label_command(server: Any, photos: Path, out: Path, *more: str) -> list[object]:
    return ["label", photos, "--out", out, "--model", "m", "--base-url", server.url, "--yes",
            "--concurrency", "3", "--json", *more]  # fmt: skip


def run_here(capsys: Any, command: list[object]) -> dict[str, Any]:
    from vibematch.cli import main

    assert main([*map(str, command)]) == 0
    return json.loads(capsys.readouterr().out)


def check_kills(
    openai_server: Any,
    few_photos: Path,
    run_until: Any,
    label: Any,
    capsys: Any,
    kills: list[tuple[str, int]],
) -> None:
    reference = few_photos.parent / "reference.csv"
    label(reference)
    openai_server.forget()
    out = few_photos.parent / "labels.csv"
    for kill in kills:
        status, _ = run_until(*label_command(openai_server, few_photos, out), at=kill)
        assert status == -signal.SIGKILL
    result = run_here(capsys, label_command(openai_server, few_photos, out))
    assert max(openai_server.asked.values()) == 1
    assert result["labelled"] + result["quarantined"] == 12
    assert result["quarantined"] <= 3 * len(kills)
    entries = [json.loads(line) for line in Path(result["quarantine"]).read_text().splitlines()]
    assert {entry["reason"] for entry in entries} == {LOST}
    answered = len(openai_server.answered)
    assert answered >= result["labelled"]

    before = openai_server.asked
    openai_server.forget()
    run_here(capsys, label_command(openai_server, few_photos, out, "--retry-quarantined"))
    # exactly the quarantined ones were asked again, once each
    assert len(openai_server.received) == len({*openai_server.received}) == result["quarantined"]
    assert {*openai_server.received} | {*before} == {*before} | {*openai_server.answered}
    assert out.read_bytes() == reference.read_bytes()


def test_killed_and_rerun_nothing_is_asked_twice(
    openai_server, few_photos, run_until, label, capsys
):
    kills = [("received", 2), ("answered", 6)]
    check_kills(openai_server, few_photos, run_until, label, capsys, kills)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 12, 2))
def test_killed_at_any_moment(openai_server, few_photos, run_until, label, capsys, first):
    kills = [("received", first)]
    if first < 8:
        kills.append(("answered", first + 2))
    check_kills(openai_server, few_photos, run_until, label, capsys, kills)


def test_ctrl_c_keeps_the_answers_that_are_on_their_way(
    openai_server, few_photos, run_until, capsys
):
    out = few_photos / "metadata.csv"
    command = label_command(openai_server, few_photos, out)
    status, output = run_until(*command, at=("received", 4), send=signal.SIGINT)
    assert status == 130 and "interrupted" in output
    done = len(openai_server.received)
    assert 4 <= done < 12
    assert sum(bool(row["caption"]) for row in rows_of(out)) == len(openai_server.answered) == done
    assert not out.with_suffix(".quarantine.jsonl").exists()
    assert run_here(capsys, command)["labelled"] == 12
    assert {*openai_server.asked.values()} == {1}


# --- the command line


def test_nobody_to_ask_and_no_consent(openai_server, few_photos, capsys, monkeypatch):
    from vibematch.cli import main

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    command = [*map(str, label_command(openai_server, few_photos, few_photos / "metadata.csv"))]
    command.remove("--yes")
    assert main(command) != 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "add --yes" in shown and "12 photo(s)" in shown and "price: unknown" in shown
    assert openai_server.url in shown
    assert not openai_server.received


def test_the_command_reports_agreement_usage_and_price(openai_server, few_photos, capsys):
    from vibematch.cli import main

    human = few_photos.parent / "human.csv"
    human.write_text("filename,fashion_style\nuser_000_0.jpg,Goth\nuser_001_0.jpg,Goth\n")
    out = few_photos / "metadata.csv"
    command = [*map(str, label_command(openai_server, few_photos, out))]
    command += ["--input-price", "1", "--output-price", "10", "--agreement-with", str(human)]
    assert main(command) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["agreement"]["fashion_style"]["n"] == 2
    assert result["agreement"]["fashion_style"]["accuracy"] == 0
    assert result["usage"]["cost_usd"] == pytest.approx(12 * (700 + 900) / 1e6)
    assert "price: about $0.0" in shown.err and "(as stated)" in shown.err
    assert "8,400 input" in shown.err and "about $0.0192" in shown.err
    command.remove("--json")
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "12 of 12 photos" in shown.out and "kappa" in shown.out and "Goth" in shown.out
