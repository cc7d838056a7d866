from __future__ import annotations

import csv
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vibematch.cli import main
from vibematch.errors import InputError
from vibematch.photos import read_photos
from vibematch_training.annotation.augmentation import AugmentationResult, augment, edit_prompt
from vibematch_training.annotation.endpoint import Endpoint
from vibematch_training.annotation.ledger import LOST
from vibematch_training.annotation.prices import Price
from vibematch_training.schema import PROVENANCE_COLUMNS


@pytest.fixture
def labelled_photos(few_photos: Path) -> Path:
    """Of twelve photos, two are for validation, and one is of low quality: nine to augment."""
    lines = ["filename,user_id,image_idx,filepath,split,fashion_style,visual_quality,caption"]
    for number, path in enumerate(sorted(few_photos.glob("*.jpg"))):
        split = "validation" if number < 2 else "train"
        quality = "Low" if number == 5 else "High"
        user, name = path.name[:8], path.name
        lines.append(f"{name},{user},{name[9]},{name},{split},Street_Hip,{quality},in a park")
    (few_photos / "metadata.csv").write_text("\n".join(lines) + "\n")
    return few_photos


@pytest.fixture
def edit(openai_server: Any, labelled_photos: Path) -> Callable[..., AugmentationResult]:
    def run(per_photo: int = 1, **options: Any) -> AugmentationResult:
        settings = {"concurrency": 3, "backoff_s": 0.01, "timeout_s": 10.0}
        settings |= {name: options.pop(name) for name in [*options] if hasattr(Endpoint("m"), name)}
        endpoint = Endpoint(**{"model": "seedream-4", "base_url": openai_server.url, **settings})
        return augment(labelled_photos, per_photo, endpoint=endpoint, progress=False, **options)

    return run


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, str]:
    """Every file a user sees, by content; ledgers carry times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in (".jpg", ".csv")
    }


# --- on this machine


def test_classic_photos_carry_their_origin_and_their_sources_labels(labelled_photos):
    before = rows_of(labelled_photos)
    result = augment(labelled_photos, 2, progress=False)
    assert (result.sources, result.wanted, result.made, result.present) == (9, 18, 18, 18)
    rows = rows_of(labelled_photos)
    assert [{name: row[name] for name in before[0]} for row in rows[:12]] == before
    real = {row["filepath"]: row for row in rows[:12]}
    generated = rows[12:]
    assert [row["filename"] for row in generated] == [f"gen_{i:06d}.jpg" for i in range(1, 19)]
    for row in generated:
        source = real[row["source"]]
        assert source["split"] == "train" and source["visual_quality"] == "High"
        for name in ("user_id", "split", "fashion_style", "visual_quality", "caption"):
            assert row[name] == source[name]
        assert row["generator"] == "classic-1" and row["generation_prompt"]
        assert row["generation_seed"].isdecimal()
    for name in PROVENANCE_COLUMNS:
        assert all(not row[name] for row in real.values())
    indices = [(row["user_id"], row["image_idx"]) for row in rows]
    assert len({*indices}) == len(indices)
    photos = read_photos(labelled_photos)
    assert sum(photo.generated for photo in photos) == 18
    for photo in photos:
        Image.open(photo.path).load()


def test_a_repeated_run_makes_only_what_is_missing(labelled_photos):
    augment(labelled_photos, 1, progress=False)
    first = contents(labelled_photos)
    assert augment(labelled_photos, 1, progress=False).made == 0
    assert contents(labelled_photos) == first
    assert augment(labelled_photos, 3, progress=False).made == 18
    more = contents(labelled_photos)
    del first["metadata.csv"]
    assert first.items() <= more.items()
    assert augment(labelled_photos, 1, seed=1, progress=False).made == 9
    assert len({*contents(labelled_photos).values()}) == 12 + 1 + 27 + 9


def test_the_same_seed_gives_the_same_bytes(labelled_photos, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    for path in labelled_photos.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    for folder in (labelled_photos, twin):
        augment(folder, 2, seed=7, progress=False)
    assert contents(labelled_photos) == contents(twin)


def test_a_folder_without_a_csv_gets_one(few_photos):
    result = augment(few_photos, 1, progress=False)
    assert (result.sources, result.made) == (12, 12)
    photos = read_photos(few_photos)
    assert len(photos) == 24
    assert {photo.user_id for photo in photos} == {f"user_{i:03d}" for i in range(6)}


def test_foreign_generated_files_are_neither_sources_nor_overwritten(labelled_photos):
    foreign = labelled_photos / "gen_000007.jpg"
    foreign.write_bytes(b"precious")
    augment(labelled_photos, 1, progress=False)
    assert foreign.read_bytes() == b"precious"
    assert rows_of(labelled_photos)[12]["filename"] == "gen_000008.jpg"


def test_unreadable_sources_are_named(labelled_photos):
    (labelled_photos / "user_003_0.jpg").write_bytes(b"no photo")
    result = augment(labelled_photos, 2, progress=False)
    assert result.made == 16
    assert [line.partition(":")[0] for line in result.unreadable] == ["user_003_0.jpg"]


def test_nothing_to_augment(labelled_photos):
    path = labelled_photos / "metadata.csv"
    path.write_text(path.read_text().replace("train", "validation"))
    with pytest.raises(InputError, match="no photo to augment"):
        augment(labelled_photos, 1, progress=False)


@pytest.mark.parametrize("numbers", [{"per_photo": 0}, {"per_photo": 1, "seed": -1}])
def test_impossible_numbers(labelled_photos, numbers):
    with pytest.raises(InputError, match="at least"):
        augment(labelled_photos, progress=False, **numbers)


def test_killed_on_this_machine_it_goes_on_to_the_same_end(labelled_photos, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    for path in labelled_photos.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    augment(twin, 20, progress=False)

    before = (labelled_photos / "metadata.csv").read_bytes()
    command = [sys.executable, "-m", "vibematch", "augment", labelled_photos, "--per-photo", "20"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(labelled_photos.glob("gen_*"))) < 5 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (labelled_photos / "metadata.csv").read_bytes() == before
    for path in labelled_photos.glob("gen_*.jpg"):
        Image.open(path).load()
    assert len(read_photos(labelled_photos)) == 12
    augment(labelled_photos, 20, progress=False)
    assert contents(labelled_photos) == contents(twin)


# --- from an image model


def test_edits_are_stored_upright_and_listed(edit, openai_server, labelled_photos):
    result = edit(2)
    assert (result.made, result.quarantined, result.usage.requests) == (18, 0, 18)
    assert {*openai_server.asked.values()} == {1}
    for path, headers, fields in openai_server.requests:
        assert path == "/v1/images/edits"
        assert fields["upload_name"] == "photo.jpg"
        assert (fields["model"], fields["response_format"]) == ("seedream-4", "b64_json")
        assert "idempotency-key" in headers
        Image.open(io.BytesIO(fields["image"])).verify()
    rows = rows_of(labelled_photos)[12:]
    assert len(rows) == 18
    for row in rows:
        assert row["generator"] == "seedream-4"
        assert row["generation_prompt"] == edit_prompt(int(row["generation_seed"]))
        assert row["caption"] == ""  # the place has changed; labelling writes a new one
        assert row["fashion_style"] == "Street_Hip"
        assert Image.open(labelled_photos / row["filepath"]).format == "JPEG"
    assert edit(2).made == 0
    assert len(openai_server.received) == 18
    # both kinds live side by side
    assert augment(labelled_photos, 1, progress=False).made == 9
    assert len({row["filename"] for row in rows_of(labelled_photos)}) == 12 + 18 + 9


def test_edits_in_a_folder_without_a_csv(edit, labelled_photos):
    (labelled_photos / "metadata.csv").unlink()
    assert edit().made == 12
    assert len(read_photos(labelled_photos)) == 24


def test_openais_own_models_are_not_sent_what_they_refuse(edit, openai_server):
    edit(1, model="gpt-image-2.5-flare")
    assert all("response_format" not in fields for _, _, fields in openai_server.requests)


@pytest.mark.parametrize(
    ("behaviour", "reason", "tries"),
    [
        ("url", "fetches no URLs", 1),
        ("truncated image", "cannot be used", 2),
        ("not base64", "cannot be used", 2),
        ("null", "not an answer with one image", 2),
        ("html", "not an answer with one image", 2),
        ("400", "HTTP 400", 1),
    ],
)
def test_bad_pictures_are_quarantined(
    edit, openai_server, labelled_photos, behaviour, reason, tries
):
    bad: set[str] = set()

    def behave(number: int, photo: str) -> str:
        if len(bad) < 2:
            bad.add(photo)
        return behaviour if photo in bad else "ok"

    openai_server.behave = behave
    result = edit()
    assert (result.made, result.quarantined) == (7, 2)
    entries = [json.loads(line) for line in result.quarantine.read_text().splitlines()]
    assert all(reason in entry["reason"] for entry in entries)
    assert {openai_server.asked[photo] for photo in bad} == {tries}
    assert len(list(labelled_photos.glob("gen_*"))) == 7
    before = len(openai_server.received)
    assert edit().quarantined == 2 and len(openai_server.received) == before
    openai_server.behave = lambda number, photo: "ok"
    result = edit(retry_quarantined=True)
    assert (result.made, result.present, result.quarantine) == (2, 9, None)
    assert not (labelled_photos / "augment.quarantine.jsonl").exists()


def test_passing_failures_are_tried_again(edit, openai_server):
    openai_server.behave = lambda number, photo: ["429", "500", "drop", "ok"][number - 1]
    assert edit().made == 9
    assert {*openai_server.asked.values()} == {4}


def edit_command(server: Any, photos: Path, *more: str) -> list[str]:
    return ["augment", str(photos), "--per-photo", "2", "--model", "m", "--base-url", server.url,
            "--concurrency", "3", "--yes", "--json", *more]  # fmt: skip


def check_kills(
    openai_server: Any, folder: Path, run_until: Any, capsys: Any, kills: list[tuple[str, int]]
) -> None:
    twin = folder.parent / "twin"
    twin.mkdir()
    for path in folder.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    assert main(edit_command(openai_server, twin)) == 0
    openai_server.forget()
    before = (folder / "metadata.csv").read_bytes()
    for kill in kills:
        status, _ = run_until(*edit_command(openai_server, folder), at=kill)
        assert status == -signal.SIGKILL
        assert (folder / "metadata.csv").read_bytes() == before
        for path in folder.glob("gen_*.jpg"):
            Image.open(path).load()
    capsys.readouterr()
    assert main(edit_command(openai_server, folder)) == 0
    result = json.loads(capsys.readouterr().out)
    assert max(openai_server.asked.values()) == 1
    assert result["present"] + result["quarantined"] == 18
    assert result["quarantined"] <= 3 * len(kills)
    lines = (folder / "augment.quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {LOST}
    openai_server.forget()
    assert main(edit_command(openai_server, folder, "--retry-quarantined")) == 0
    assert len(openai_server.received) == len({*openai_server.received}) == result["quarantined"]
    assert contents(folder) == contents(twin)


def test_killed_and_rerun_nothing_is_asked_twice(openai_server, labelled_photos, run_until, capsys):
    check_kills(openai_server, labelled_photos, run_until, capsys, [("received", 7)])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 18, 4))
def test_killed_at_any_moment(openai_server, labelled_photos, run_until, capsys, first):
    kills = [("received", first)]
    if first < 12:
        kills.append(("answered", first + 3))
    check_kills(openai_server, labelled_photos, run_until, capsys, kills)


# --- the command line


def test_consent_and_price(openai_server, labelled_photos, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    command = [*edit_command(openai_server, labelled_photos), "--price-per-image", "0.04"]
    command.remove("--yes")
    assert main(command) != 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "add --yes" in shown and "18 edited photo(s)" in shown and "$0.72" in shown
    assert not openai_server.received and not list(labelled_photos.glob("gen_*"))
    assert main([*command, "--yes"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["cost_usd"] == pytest.approx(0.72)


def test_an_endpoint_without_a_model_is_a_mistake(labelled_photos, capsys):
    command = ["augment", str(labelled_photos), "--per-photo", "1", "--base-url", "http://x"]
    assert main(command) != 0
    assert "need --model" in capsys.readouterr().err
    assert main([*command[:4], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 9


def test_a_price_without_options_is_unknown():
    assert Price().per_image is None
