from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import vibematch.cli
from vibematch.attributes import Condition, value_from_text
from vibematch.cli import main
from vibematch.encoder import ServerInfo, Tensor
from vibematch.engine import MatchingEngine
from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.records import Profile, StoredPhoto
from vibematch.typed import parse_where, typed

AXES = np.eye(8)


@pytest.fixture
def index(tmp_path: Path, manifest: Manifest) -> Path:
    path = tmp_path / "index"
    with MatchingEngine.open(path, manifest=manifest) as engine:
        for number, name in enumerate(("anna", "ben", "cora")):
            attributes: dict[str, Any] = {"age": 25 + 5 * number, "fashion_style": "Minimal"}
            engine.add(name, vectors=[10 * AXES[0] + number * AXES[1]], attributes=attributes)
    return path


@pytest.fixture
def stub_server(monkeypatch: pytest.MonkeyPatch, encoder: Any) -> Any:
    """The stub encoder in place of a server, for commands that send photos."""

    class Stub:
        def __init__(self, url: str, **options: Any) -> None:
            encoder.options = {"url": url, **options}
            self.manifest = encoder.manifest

        def encode_each(self, photos: Any, *, fingerprint: str | None = None) -> Any:
            assert fingerprint in (None, self.manifest.fingerprint)
            return encoder.encode_each(photos)

        def info(self) -> ServerInfo:
            return ServerInfo(
                server="triton 2.51.0",
                model="style_encoder",
                version=2,
                versions_ready=(1, 2),
                max_batch_size=8,
                inputs=(Tensor("photo", "BYTES", (-1, 1)),),
                outputs=(Tensor("embedding", "FP32", (-1, 8)),),
                manifest=self.manifest,
            )

        def __enter__(self) -> Stub:
            return self

        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr("vibematch.encoder.Encoder", Stub)
    return encoder


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return status, out, err


# --- match


def test_match_prints_an_aligned_table(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "match", index, "anna", "-k", 2)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "   user  score  age  fashion_style",
        "1  ben   0.995  30   Minimal",
        "2  cora  0.981  35   Minimal",
    ]


def test_long_attributes_are_cut_in_the_table(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MatchingEngine.open(index) as engine:
        engine.add("ben", attributes={"caption": "A posed\nportrait shows a young man."})
    _, out, _ = run(capsys, "match", index, "anna", "-k", 1)
    assert out.splitlines()[1] == "1  ben   0.995  A posed portrait shows …"


def test_match_as_json(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "match", index, "anna", "-k", 1, "--json")
    result = json.loads(out)
    assert result["query"] == ["anna"]
    assert result["matches"][0]["user_id"] == "ben"
    assert result["matches"][0]["score"] == pytest.approx(10 / np.sqrt(101))
    assert result["matches"][0]["attributes"] == {"age": 30, "fashion_style": "Minimal"}


def test_match_with_conditions(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("match", index, "anna", "-k", 1, "--where", "age=30..40", "--exclude", "ben")
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "cora" in out


def test_fewer_than_asked_is_no_failure(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "match", index, "anna", "-k", 9)
    assert (status, len(out.splitlines())) == (0, 3)
    assert err == "vibematch: 2 of the 9 asked for: no more users qualify\n"


def test_match_writes_a_gallery(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gallery.html"
    assert run(capsys, "match", index, "anna", "--gallery", page)[0] == 0
    assert "cora" in page.read_text()


def test_match_by_photo(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "anna_0.jpg"
    photo.write_bytes(b"one")
    assert run(capsys, "add", tmp_path / "index", photo)[0] == 0
    status, out, _ = run(capsys, "match", tmp_path / "index", photo, "-k", 1)
    assert status == 0
    assert "1  anna  1.000" in out


def test_match_by_several_photos_of_one_person(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [tmp_path / "anna_0.jpg", tmp_path / "anna_1.jpg", tmp_path / "ben_0.jpg"]
    for photo in photos:
        photo.write_bytes(photo.name.encode())
    assert run(capsys, "add", tmp_path / "index", *photos)[0] == 0
    page = tmp_path / "page.html"
    arguments = ("match", tmp_path / "index", *photos[:2], "-k", 2, "--json", "--gallery", page)
    status, out, _ = run(capsys, *arguments)
    answer = json.loads(out)
    assert (status, answer["query"]) == (0, [str(photo) for photo in photos[:2]])
    assert answer["matches"][0]["user_id"] == "anna"
    assert answer["matches"][0]["score"] == pytest.approx(1)
    assert page.exists()


@pytest.mark.parametrize("query", [["none.jpg"], ["anna", "ben"], ["HERE", "none.jpg"]])
def test_match_by_photos_that_are_not_there(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], query: list[str]
) -> None:
    (tmp_path / "here.jpg").write_bytes(b"one")
    query = [str(tmp_path / "here.jpg") if part == "HERE" else part for part in query]
    missing = next(part for part in query if not Path(part).exists())
    status, out, err = run(capsys, "match", index, *query)
    assert (status, out) == (1, "")
    assert err.startswith(f"vibematch: error: no such photo: {missing} (search by one user, or by")


@pytest.fixture
def couples(tmp_path: Path, manifest: Manifest) -> Path:
    path = tmp_path / "couples"
    wishes: dict[str, Any] = {"gender": "M", "age": (25, 35)}
    with MatchingEngine.open(path, manifest=manifest) as engine:
        engine.add("ann", vectors=[AXES[0]], attributes={"gender": "F"}, preferences=wishes)
        for number, (name, age, wants) in enumerate(
            [("carl", 30, "F"), ("dan", 50, "F"), ("eric", 30, "M"), ("finn", 35, "F")]
        ):
            engine.add(
                name,
                vectors=[AXES[0] + number * AXES[1], AXES[number]],
                attributes={"gender": "M", "age": age},
                preferences={"gender": ["F", None] if wants == "F" else {wants}},
            )
    return path


def found(capsys: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    status, out, _ = run(capsys, "match", *argv, "--json")
    assert status == 0
    return [match["user_id"] for match in json.loads(out)["matches"]]


def test_match_can_ask_both_sides(couples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, couples, "ann") == ["carl", "dan", "eric", "finn"]
    assert found(capsys, couples, "ann", "--mutual") == ["carl", "finn"]
    assert found(capsys, couples, "ann", "--mutual", "--where", "age=..31") == ["carl"]
    assert found(capsys, couples, "carl", "--where", "age=") == ["ann"]
    assert found(capsys, couples, "carl", "--where", "age=|50") == ["ann", "dan"]


def test_match_can_ask_for_likeness(couples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everyone = found(capsys, couples, "ann")
    with MatchingEngine.open(couples, read_only=True) as engine:
        alike = [match.user_id for match in engine.search("ann", min_score=0.8)]
        pairs = [match.user_id for match in engine.search("ann", aggregate="best_pair")]
    assert found(capsys, couples, "ann", "--min-score", "0.8") == alike
    assert alike == everyone[: len(alike)] and 0 < len(alike) < 4
    assert found(capsys, couples, "ann", "--best-pair") == pairs != []


def test_match_can_explain_itself(couples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "match", couples, "ann", "-k", 4, "--explain")
    *table, plan = out.splitlines()
    assert len(table) == 5
    assert plan.startswith("compared all 4 who qualify of 5 users")
    _, out, _ = run(capsys, "match", couples, "ann", "--explain", "--json")
    plan = json.loads(out)["plan"]
    assert (plan["strategy"], plan["users"], plan["qualifying"]) == ("scan", 5, 4)
    assert plan["graph_us"] is None  # infinite, which JSON does not know


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", {}),
        ("gender=F", {"gender": ["F"]}),
        ("gender=", {"gender": [None]}),
        ("region=Seoul|", {"region": ["Seoul", None]}),
        ("gender=F,age=25..35", {"gender": ["F"], "age": (25, 35)}),
        ("region=Seoul|Busan,vip=true", {"region": ["Seoul", "Busan"], "vip": [True]}),
        ("age=25..", {"age": (25, float("inf"))}),
        ("age=..1.5", {"age": (float("-inf"), 1.5)}),
        ("age=29", {"age": [29]}),
        ("formula=a=b", {"formula": ["a=b"]}),
    ],
)
def test_conditions(text: str, conditions: dict[str, Any]) -> None:
    assert parse_where(text) == conditions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gender", "must be NAME=VALUE, got 'gender'"),
        ("=F", "must be NAME=VALUE"),
        ("age=a..b", r"must be age=LOW\.\.HIGH in numbers, got age=a\.\.b"),
        ("age=1,age=2", "two conditions on 'age'"),
    ],
)
def test_senseless_conditions(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_where(text)


# --- add, remove, info, encode


def test_add_reports_each_bad_photo_and_goes_on(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("anna_0.jpg", "anna_1.jpg", "ben_0.jpg", "gen_0.jpg"):
        (photos / name).write_bytes(name.encode())
    for name in ("bad.txt", "worse.txt"):
        (tmp_path / name).write_bytes(b"bad")
    arguments = ("add", tmp_path / "index", photos, tmp_path / "bad.txt", tmp_path / "worse.txt")
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert out == (
        f"3 photos added, 0 known already, 2 rejected; {tmp_path}/index holds 2 users with "
        "3 photos\n"
    )
    assert sorted(err.splitlines()) == [
        f"vibematch: warning: {tmp_path}/bad.txt: not a photo",
        f"vibematch: warning: {tmp_path}/worse.txt: not a photo",
    ]
    status, out, _ = run(capsys, *arguments, "--json")
    counts = json.loads(out)
    assert (status, counts["added"], counts["known"], len(counts["rejected"])) == (0, 0, 3, 2)
    assert (counts["users"], counts["photos"]) == (2, 3)


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with vibematch.cli._progress() as show:
        show(1, 1_500)
        monkeypatch.setattr("vibematch.cli.time.monotonic", lambda: float("inf"))
        show(1_200, 1_500)
    assert capsys.readouterr().err == "1,200 of 1,500 photos\n"


def test_progress_on_a_terminal_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("vibematch.cli._TTY_EVERY_S", 0)
    with vibematch.cli._progress() as show:
        show(1, 3)
        show(2, 3)
    assert capsys.readouterr().err == "\r1 of 3 photos\r2 of 3 photos\r\x1b[K"


def test_add_with_nothing_usable_fails(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad.txt", "worse.txt"):
        (tmp_path / name).write_bytes(b"bad")
    bad, worse, index = tmp_path / "bad.txt", tmp_path / "worse.txt", tmp_path / "index"
    assert run(capsys, "add", index, bad, worse) == (
        1,
        "",
        f"vibematch: error: no photo could be added: {bad}: not a photo, and 1 more like it\n",
    )


def test_add_with_a_path_that_is_nothing_adds_nothing(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "anna_0.jpg").write_bytes(b"one")
    missing = tmp_path / "none.jpg"
    status, _, err = run(capsys, "add", tmp_path / "index", tmp_path / "anna_0.jpg", missing)
    assert (status, err) == (1, f"vibematch: error: no such photo or folder: {missing}\n")
    assert not (tmp_path / "index").exists()


def test_add_with_attributes(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "anna_0.jpg").write_bytes(b"one")
    (tmp_path / "people.csv").write_text("user_id,age,region\nanna,29,\nzoe,1,Seoul\n")
    arguments = ("--attributes", tmp_path / "people.csv")
    assert run(capsys, "add", tmp_path / "index", tmp_path / "anna_0.jpg", *arguments)[0] == 0
    with MatchingEngine.open(tmp_path / "index", read_only=True) as engine:
        assert engine.attributes("anna") == {"age": 29}


def test_add_with_preferences(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("anna_0.jpg", "ben_0.jpg", "bad_0.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    photos = sorted(tmp_path.glob("*.jpg"))
    table = tmp_path / "people.csv"
    table.write_text(
        "user_id,age,prefers:gender,prefers:age,prefers:region\n"
        "anna,29,F|M,25..,Seoul|\nben,30,,,\nbad,1,F,,\nzoe,2,M,,\n"
    )
    arguments = ("add", tmp_path / "index", *photos, "--attributes", table)
    assert run(capsys, *arguments)[0] == 0
    with MatchingEngine.open(tmp_path / "index", read_only=True) as engine:
        assert engine.attributes("anna") == {"age": 29}
        wishes = {"gender": ["F", "M"], "age": (25, float("inf")), "region": ["Seoul", None]}
        assert engine.preferences("anna") == wishes
        assert engine.preferences("ben") == {}
        assert "bad" not in engine and "zoe" not in engine
    table.write_text("user_id,age\nanna,30\n")
    assert run(capsys, *arguments)[0] == 0
    with MatchingEngine.open(tmp_path / "index", read_only=True) as engine:
        assert engine.preferences("anna") == wishes  # a table without them says nothing about them
    table.write_text("user_id,prefers:gender\nanna,\n")
    assert run(capsys, *arguments)[0] == 0
    with MatchingEngine.open(tmp_path / "index", read_only=True) as engine:
        assert (engine.attributes("anna"), engine.preferences("anna")) == ({"age": 30}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\nx\n", "user_id column"),
        ("", "user_id column"),
        ("user_id\na,b\n", "more cells"),
        ("user_id,prefers:age\nann,a..b\n", "user 'ann': a range must be prefers:age=LOW..HIGH"),
        ("user_id,prefers:age\nann,9..1\n", "user 'ann': the range for 'age' is upside down"),
        ("user_id,prefers:\nann,F\n", "user 'ann': an attribute's name must be printable"),
    ],
)
def test_unusable_attributes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    table, photo = tmp_path / "people.csv", tmp_path / "a_0.jpg"
    table.write_text(content)
    photo.write_bytes(b"one")
    status, _, err = run(capsys, "add", tmp_path / "index", photo, "--attributes", table)
    assert status == 1
    assert message in err


def test_remove(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "remove", index, "ben", "cora")[:2] == (0, "removed ben\nremoved cora\n")
    status, _, err = run(capsys, "remove", index, "ben")
    assert status == 1
    assert err.startswith("vibematch: error: no user 'ben'")


def test_remove_removes_all_or_nobody(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "remove", index, "ben", "nobody")
    assert (status, out) == (1, "")
    assert err.startswith("vibematch: error: no user 'nobody'")
    assert json.loads(run(capsys, "info", index, "--json")[1])["users"] == 3
    status, out, _ = run(capsys, "remove", index, "ben", "cora", "ben", "--json")
    assert (status, json.loads(out)) == (0, {"users": ["ben", "cora"], "photos": []})
    assert json.loads(run(capsys, "info", index, "--json")[1])["users"] == 1


def test_remove_single_photos(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    vectors = {"front": AXES[0], "side": AXES[1], "back": AXES[2]}
    photos = [
        StoredPhoto(f"{n:064}", np.float32(v), None, name)
        for n, (name, v) in enumerate(vectors.items())
    ]
    with MatchingEngine.open(index, manifest=manifest) as engine:
        engine.add_many([Profile("anna", photos)])
    assert run(capsys, "remove", index, "anna", "--photo", "side") == (
        0,
        "removed anna's photo side\n",
        "",
    )
    _, out, _ = run(capsys, "info", index, "--user", "anna", "--json")
    assert [photo["photo_id"] for photo in json.loads(out)["photos"]] == ["front", "back"]
    for photos, reason in {
        ("side",): "user 'anna' has no photo 'side'; `vibematch info INDEX --user anna` lists them",
        ("front", "back"): "user 'anna' has no other photos: remove the user, that is leave",
    }.items():
        options = [part for photo in photos for part in ("--photo", photo)]
        status, _, err = run(capsys, "remove", index, "anna", *options)
        assert (status, err[: 18 + len(reason)]) == (1, f"vibematch: error: {reason}")
    status, _, err = run(capsys, "remove", index, "anna", "ben", "--photo", "front")
    assert (status, "--photo goes with one user" in err) == (1, True)
    assert len(json.loads(run(capsys, "info", index, "--user", "anna", "--json")[1])["photos"]) == 2


def test_info_of_a_user(
    stub_server: Any, couples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "info", couples, "--user", "ann")
    lines = out.splitlines()
    assert lines[:4] == [
        "user_id         ann",
        "gender          F",
        "prefers:age     25..35",
        "prefers:gender  M",
    ]
    assert lines[4].startswith("photo  ") and len(lines) == 5
    _, out, _ = run(capsys, "info", couples, "--user", "carl", "--json")
    facts = json.loads(out)
    assert (facts["user_id"], facts["attributes"]) == ("carl", {"gender": "M", "age": 30})
    assert facts["preferences"] == {"gender": "|F"}
    assert [photo["path"] for photo in facts["photos"]] == [None]
    assert run(capsys, "info", couples, "--user", "nobody")[0] == 1
    status, _, err = run(capsys, "info", "somewhere:8001", "--user", "ann")
    assert (status, "a server knows no users" in err) == (1, True)


TEXTS = st.text(st.characters(exclude_characters=",|=.", exclude_categories=["C"]), min_size=1)
BOUNDS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
VALUES = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXTS.filter(lambda text: value_from_text(text) == text)
)


@example((math.inf, -math.inf))
@example((-math.inf, math.inf))
@given(st.tuples(BOUNDS, BOUNDS) | VALUES | st.none() | st.lists(VALUES | st.none(), min_size=1))
def test_conditions_are_shown_as_they_are_typed(condition: Condition) -> None:
    read = parse_where(f"a={typed(condition)}")["a"]
    if isinstance(condition, tuple):
        assert read == condition
    else:
        assert isinstance(read, list)
        assert set(read) == set(condition if isinstance(condition, list) else [condition])


def test_info(index: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "info", index)
    assert f"fingerprint    {manifest.fingerprint}" in out.splitlines()
    _, out, _ = run(capsys, "info", index, "--json")
    facts = json.loads(out)
    assert (facts["users"], facts["photos"], facts["embedding_dim"]) == (3, 3, 8)
    assert facts["generations"] == [1]
    assert facts["bytes_on_disk"] == sum(f.stat().st_size for f in index.rglob("*") if f.is_file())


@pytest.mark.parametrize("url", ["somewhere:8001", "http://somewhere:8000", "https://vibe.example"])
def test_info_of_a_server(
    url: str, stub_server: Any, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "info", url)
    assert (status, err) == (0, "")
    assert stub_server.options["url"] == url
    assert out.splitlines() == [
        f"server       triton 2.51.0 at {url}",
        "model        style_encoder version 2; ready: 1, 2",
        f"fingerprint  {manifest.fingerprint}",
        "precision    fp32",
        "backbone     tiny",
        "photos       96 x 64 pixels, fit cover",
        "limits       100,000 bytes and 64,000,000 pixels a photo, 8 photos a request",
        "vectors      8 numbers of unit length",
        "inputs       photo BYTES [-1, 1]",
        "outputs      embedding FP32 [-1, 8]",
    ]


def test_info_of_a_server_as_json(
    stub_server: Any, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "info", "somewhere:8001", "--json")
    facts = json.loads(out)
    assert facts.items() >= json.loads(manifest.to_json()).items()
    assert (facts["url"], facts["server"]) == ("somewhere:8001", "triton 2.51.0")
    assert (facts["version"], facts["versions_ready"], facts["max_batch_size"]) == (2, [1, 2], 8)
    assert facts["inputs"] == [{"name": "photo", "datatype": "BYTES", "shape": [-1, 1]}]


@pytest.fixture
def grpc_server() -> Iterator[str]:
    """Speaks gRPC, and knows no models."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_info_of_something_else_that_speaks_grpc(
    grpc_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "info", grpc_server)
    assert (status, out) == (1, "")
    assert err.startswith(f"vibematch: error: no vibematch server is at {grpc_server}, but some")


def test_info_of_a_web_server_asks_for_the_grpc_port(
    web_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "info", web_server)
    assert (status, out) == (1, "")
    assert f"something answers at {web_server}, but not in plain gRPC" in err
    assert "check that this is its gRPC port (8001 by default; 8000 is HTTP)" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["info", "somewhere:8001"],
        ["add", "INDEX", "PHOTO"],
        ["match", "INDEX", "PHOTO"],
        ["encode", "PHOTO", "--out", "OUT"],
    ],
)
def test_whatever_asks_a_server_can_encrypt(
    argv: list[str],
    stub_server: Any,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"INDEX": index, "PHOTO": tmp_path / "anna_0.jpg", "OUT": tmp_path / "out.npy"}
    paths["PHOTO"].write_bytes(b"one")
    arguments = [paths.get(part, part) for part in argv]
    assert run(capsys, *arguments, "--root-certificates", "ca.pem")[0] == 0
    assert stub_server.options["root_certificates"] == Path("ca.pem")
    assert run(capsys, *arguments)[0] == 0
    assert stub_server.options["root_certificates"] is None


@pytest.mark.parametrize(
    "argv",
    [["add", "INDEX", "PHOTO"], ["match", "INDEX", "PHOTO"], ["encode", "PHOTO", "--out", "OUT"]],
)
def test_whatever_encodes_can_say_how(
    argv: list[str],
    stub_server: Any,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"INDEX": index, "PHOTO": tmp_path / "anna_0.jpg", "OUT": tmp_path / "out.npy"}
    paths["PHOTO"].write_bytes(b"one")
    arguments = [paths.get(part, part) for part in argv]
    url = "https://photos.example/vibe"
    assert run(capsys, *arguments, "--url", url, "--downscale", "--timeout-s", "7.5")[0] == 0
    expected = {"url": url, "downscale": True, "timeout_s": 7.5, "root_certificates": None}
    assert stub_server.options == expected


def test_encode(stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    out_file = tmp_path / "vectors.npy"
    status, out, _ = run(capsys, "encode", tmp_path / "a.jpg", "--out", out_file)
    assert (status, out) == (0, f"{out_file}: float32 [1, 8]\n")
    assert np.array_equal(np.load(out_file)[0], stub_server.vector(b"one"))


def test_encode_writes_nothing_if_a_photo_is_bad(
    stub_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, out_file = tmp_path / "good.jpg", tmp_path / "bad.jpg", tmp_path / "vectors.npy"
    good.write_bytes(b"one")
    bad.write_bytes(b"bad")
    status, out, err = run(capsys, "encode", good, bad, "--out", out_file)
    assert (status, out) == (1, "")
    assert err == (f"vibematch: error: {bad}: not a photo (--skip-bad leaves such photos out)\n")
    assert not out_file.exists()
    status, _, err = run(capsys, "encode", bad, "--out", out_file, "--skip-bad")
    assert (status, out_file.exists()) == (1, False)
    assert err == f"vibematch: error: no photo could be encoded: {bad}: not a photo\n"


def test_encode_can_leave_bad_photos_out_and_tells_which_row_is_whose(
    stub_server: Any, tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")]
    for path, content in zip(paths, (b"one", b"bad", b"two"), strict=True):
        path.write_bytes(content)
    out_file = tmp_path / "vectors.npy"
    status, out, err = run(capsys, "encode", *paths, "--out", out_file, "--skip-bad", "--json")
    assert (status, err) == (0, f"vibematch: warning: {paths[1]}: not a photo\n")
    assert json.loads(out) == {
        "out": str(out_file),
        "dtype": "float32",
        "shape": [2, 8],
        "fingerprint": manifest.fingerprint,
        "photos": [str(paths[0]), str(paths[2])],
        "rejected": [{"photo": str(paths[1]), "reason": "not a photo"}],
    }
    expected = np.stack([stub_server.vector(b"one"), stub_server.vector(b"two")])
    assert np.array_equal(np.load(out_file), expected)


def test_recall(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "recall", index, "-k", 2, "--queries", 2)
    assert status == 0
    assert out.startswith("recall@2 1.0000 over 2 users, worst 1.00; a search takes ")
    _, out, _ = run(capsys, "recall", index, "--json")
    facts = json.loads(out)
    assert (facts["top_k"], facts["queries"], facts["recall"], facts["worst"]) == (10, 3, 1, 1)


# --- another model


@pytest.fixture
def old_index(
    stub_server: Any, other_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """Three photos by the model before the one that the server has."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("anna_0.jpg", "anna_1.jpg", "ben_0.jpg"):
        (photos / name).write_bytes(name.encode())
    assert run(capsys, "add", tmp_path / "index", photos)[0] == 0
    stub_server.manifest = other_manifest
    stub_server.encoded.clear()
    return tmp_path / "index"


def test_reindex_goes_over_to_the_servers_model(
    stub_server: Any, old_index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = stub_server.manifest.fingerprint
    assert run(capsys, "reindex", old_index, "--url", "new:8001") == (
        0,
        f"{old_index} went over to model {new[:12]}: 2 users with 3 photos, 3 encoded now\n",
        "",
    )
    assert stub_server.options["url"] == "new:8001"
    facts = json.loads(run(capsys, "info", old_index, "--json")[1])
    assert (facts["fingerprint"], facts["generations"]) == (new, [1, 2])
    status, out, _ = run(capsys, "reindex", old_index, "--json", "--forget-old")
    assert (status, json.loads(out)) == (
        0,
        {
            "fingerprint": new,
            "switched": False,
            "users": 2,
            "photos": 3,
            "encoded": 0,
            "left_out_photos": 0,
            "left_out_users": 0,
            "generations_deleted": 1,
        },
    )
    assert json.loads(run(capsys, "info", old_index, "--json")[1])["generations"] == [2]
    assert found(capsys, old_index, "anna", "-k", 1) == ["ben"]


def test_reindex_finds_photos_that_moved(
    stub_server: Any, old_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "anna_0.jpg").rename(tmp_path / "elsewhere" / "another name.jpg")
    status, out, err = run(capsys, "reindex", old_index)
    assert (status, out) == (1, "")
    assert "3 of 3 photos" in err and "--photos" in err and "--skip-missing" in err
    status, _, err = run(capsys, "reindex", old_index, "--photos", tmp_path / "nowhere")
    assert (status, "no such folder of photos" in err) == (1, True)
    assert run(capsys, "reindex", old_index, "--photos", tmp_path / "elsewhere")[0] == 0
    facts = json.loads(run(capsys, "info", old_index, "--json")[1])
    assert (facts["photos"], facts["fingerprint"]) == (3, stub_server.manifest.fingerprint)


def test_reindex_leaves_out_what_is_gone_only_if_told(
    stub_server: Any, old_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "ben_0.jpg").unlink()
    assert run(capsys, "reindex", old_index)[0] == 1
    assert json.loads(run(capsys, "info", old_index, "--json")[1])["generations"] == [1]
    status, out, err = run(capsys, "reindex", old_index, "--skip-missing", "--forget-old")
    assert status == 0
    assert out.splitlines()[0].endswith(": 1 user with 2 photos, 0 encoded now")
    assert err.startswith(
        "vibematch: warning: left out 1 photo not found, and with them 1 user; the old vectors are "
    )
    assert json.loads(run(capsys, "info", old_index, "--json")[1])["generations"] == [1, 2]
    _, out, err = run(capsys, "reindex", old_index, "--forget-old")
    assert (out.splitlines()[1], err) == ("deleted 1 earlier generation", "")


# --- what can go wrong


@pytest.mark.parametrize(
    "argv",
    [
        ["match", "INDEX", "nobody"],
        ["match", "INDEX", "anna", "-k", "0"],
        ["match", "INDEX", "anna", "--where", "age"],
        ["match", "INDEX", "anna", "--min-score", "2"],
        ["remove", "INDEX", "nobody"],
        ["recall", "INDEX", "--queries", "0"],
        ["recall", "/no/such/index"],
        ["encode", "x.jpg", "--out", "x.npy", "--timeout-s", "-1"],
        ["match", "INDEX", "anna", "--gallery", "/no/such/folder/page.html"],
        ["match", "/no/such/index", "anna"],
        ["info", "/no/such/index"],
        ["info", "127.0.0.1:1"],
        ["info", "127.0.0.1:1", "--root-certificates", "/no/such.pem"],
        ["add", "INDEX", "/no/such.jpg", "--url", "127.0.0.1:1"],
        ["add", "INDEX", "/no/such.jpg", "--url", "http://127.0.0.1:1"],
        ["encode", "/no/such.jpg", "--out", "/no/such/folder/x.npy", "--url", "127.0.0.1:1"],
    ],
)
def test_errors_are_one_line(
    index: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    status, out, err = run(capsys, *[str(index) if part == "INDEX" else part for part in argv])
    assert (status, out) == (1, "")
    assert err.startswith("vibematch: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [["sing"], ["match"], ["match", "a", "b", "-k", "many"]])
def test_misuse_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "usage: vibematch" in capsys.readouterr().err


def test_interruption(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MatchingEngine, "search", interrupt)
    assert run(capsys, "match", index, "anna") == (130, "", "vibematch: error: interrupted\n")


def test_a_closed_pipe_is_quiet(index: Path) -> None:
    command = [sys.executable, "-m", "vibematch", "info", str(index)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


# --- help, version, the lab


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"]):
        with pytest.raises(SystemExit) as raised:
            main(argv)
        assert raised.value.code == 0
        text = capsys.readouterr().out
        assert text.index("matching:") < text.index("the lab") < text.index("examples:")
        assert "  add            encode photos and remember whose they are" in text.splitlines()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"vibematch {vibematch.__version__}\n"


def test_lab_commands_register_themselves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        parser = commands.add_parser("train", help="train a head")
        parser.set_defaults(run=lambda args: 7)

    monkeypatch.setattr(EntryPoint, "load", lambda self: register)
    monkeypatch.setattr(
        vibematch.cli, "entry_points", lambda group: [EntryPoint("lab", "lab:register", group)]
    )
    assert main(["train"]) == 7
    with pytest.raises(SystemExit):
        main([])
    assert "the lab:\n  train          train a head" in capsys.readouterr().out


@pytest.mark.parametrize("command", vibematch.cli.LAB_COMMANDS)
def test_without_the_lab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(vibematch.cli, "entry_points", lambda group: [])
    status, _, err = run(capsys, command, "--any", "option")
    assert status == 1
    assert err == (
        f"vibematch: error: `vibematch {command}` is part of the lab, which is not installed: "
        "clone the repository and run `make install` there\n"
    )


def test_a_broken_lab_does_not_stop_matching(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("lab", "no_such_lab.commands:register", vibematch.cli.ENTRY_POINTS)
    monkeypatch.setattr(vibematch.cli, "entry_points", lambda group: [broken])
    status, out, err = run(capsys, "match", index, "anna", "-k", 2)
    assert status == 0
    assert "ben" in out
    assert "no_such_lab.commands:register cannot be loaded" in err
