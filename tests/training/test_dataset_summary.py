from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vibematch.cli import main
from vibematch.errors import InputError
from vibematch.photos import read_photos
from vibematch_training.dataset import load_dataset
from vibematch_training.schema import USER_LABEL
from vibematch_training.summary import draw_summary, figures, summarise

STYLES = ("Casual_Basic", "Street_Hip")


def write_folder(directory: Path, *, users: int = 20, photos: int = 2) -> list[dict[str, str]]:
    """A folder that can be trained on, every photo of another colour."""
    rows = []
    for user in range(users):
        for idx in range(photos):
            name = f"user_{user:02d}_{idx}.png"
            Image.new("RGB", (8, 8), (user, idx, 0)).save(directory / name)
            row = {"filename": name, "user_id": f"user_{user:02d}", "image_idx": str(idx)}
            row |= {"filepath": name, "fashion_style": STYLES[user % 2], "visual_quality": "High"}
            rows.append(row | {"split": "validation" if user >= users - 4 else "train"})
    write_csv(directory, rows)
    return rows


def write_csv(directory: Path, rows: list[dict[str, str]]) -> None:
    with (directory / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_sample_photos_are_counted(sample_photos: Path) -> None:
    """Against a recount straight from the file."""
    summary = summarise(sample_photos, "fashion_style", progress=False)
    with (sample_photos / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    listed = summary["listed"]
    assert (listed["photos"], listed["generated"]) == (len(rows), 0)
    per_user = Counter(row["user_id"] for row in rows)
    assert listed["users"] == len(per_user)
    sizes = Counter(map(str, per_user.values()))
    assert listed["photos_per_user"] == sizes
    assert list(listed["photos_per_user"]) == sorted(sizes)
    for column in ("fashion_style", "shot_type", "visual_quality"):
        assert listed["columns"][column] == Counter(row[column] for row in rows)
    assert list(listed["columns"]["visual_quality"]) == ["High", "Medium", "Low"]
    assert summary["splits"] == Counter(row["split"] for row in rows)

    low = sum(row["split"] == "train" and row["visual_quality"] == "Low" for row in rows)
    assert summary["dataset"]["dropped"]["low quality"] == low
    for side in ("train", "validation"):
        kept = [
            row
            for row in rows
            if row["split"] == side and (side != "train" or row["visual_quality"] != "Low")
        ]
        counted = summary["dataset"][side]
        assert counted["photos"] == len(kept)
        assert counted["users"] == len({row["user_id"] for row in kept})
        for column in ("fashion_style", "shot_type", "visual_quality"):
            assert counted["columns"][column] == Counter(row[column] for row in kept)
    assert not summary["problems"] and not summary["unreadable"] and not summary["duplicates"]
    assert not summary["warnings"]


def test_figures_are_those_of_the_data_set(sample_photos: Path) -> None:
    dataset = load_dataset(sample_photos, "fashion_style", 0)
    counted = figures(dataset)
    assert counted["photos"] == len(dataset.train) + len(dataset.validation)
    assert counted == summarise(sample_photos, "fashion_style", progress=False)["dataset"]
    assert json.loads(json.dumps(counted)) == counted


def test_people_are_not_listed_as_classes(sample_photos: Path) -> None:
    summary = summarise(sample_photos, USER_LABEL, progress=False)
    photos = read_photos(sample_photos)
    assert not any(photo.user_id in json.dumps(summary) for photo in photos)
    alone = summary["dataset"]["dropped"]["only photo of its user"]
    assert summary["warnings"] == [
        f"{alone} user(s) have one photo, which makes no positive pair: left out"
    ]
    assert "1" not in summary["dataset"]["train"]["photos_per_user"]


def test_equal_content_is_found(tmp_path: Path) -> None:
    write_folder(tmp_path)
    same = {
        "user_00_1.png": "user_00_0.png",  # harmless: the same person, the same label
        "user_01_1.png": "user_02_0.png",  # another person, another label
        "user_19_0.png": "user_03_0.png",  # both sides
    }
    for copy, original in same.items():
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
    summary = summarise(tmp_path, "fashion_style", progress=False)
    assert summary["duplicates"] == [
        {
            "photos": ["user_00_0.png", "user_00_1.png"],
            "users": ["user_00"],
            "classes": ["Casual_Basic"],
            "splits": ["train"],
        },
        {
            "photos": ["user_01_1.png", "user_02_0.png"],
            "users": ["user_01", "user_02"],
            "classes": ["Casual_Basic", "Street_Hip"],
            "splits": ["train"],
        },
        {
            "photos": ["user_03_0.png", "user_19_0.png"],
            "users": ["user_03", "user_19"],
            "classes": ["Street_Hip"],
            "splits": ["train", "validation"],
        },
    ]
    assert summary["warnings"] == [
        "2 photo(s) are listed under two or more users: one of them is wrong",
        "1 photo(s) are in training and in validation: figures will be too good",
    ]


def test_unreadable_photos_are_reported(tmp_path: Path) -> None:
    write_folder(tmp_path)
    good = (tmp_path / "user_05_0.png").read_bytes()
    (tmp_path / "user_05_0.png").write_bytes(good[:45])
    (tmp_path / "user_05_1.png").write_bytes(b"")
    (tmp_path / "user_06_0.png").write_bytes(b"GIF89a")
    (tmp_path / "user_06_1.png").unlink()
    # a regular file that nobody, root included, can read from its beginning
    (tmp_path / "user_06_1.png").symlink_to("/proc/self/mem")
    summary = summarise(tmp_path, "fashion_style", progress=False)
    reasons = {entry["photo"]: entry["reason"] for entry in summary["unreadable"]}
    assert list(reasons) == [f"user_0{user}_{idx}.png" for user in (5, 6) for idx in (0, 1)]
    for reason, expected in zip(
        reasons.values(), ("truncated or damaged", "empty", "not a JPEG", "error"), strict=True
    ):
        assert expected in reason
    assert summary["warnings"] == ["4 photo(s) cannot be read: left out"]
    assert not summary["problems"]  # training leaves them out too


def test_nothing_readable_stops_training(tmp_path: Path) -> None:
    for row in write_folder(tmp_path):
        (tmp_path / row["filepath"]).write_bytes(b"")
    summary = summarise(tmp_path, "fashion_style", progress=False)
    assert [problem["message"] for problem in summary["problems"]] == [
        "none of the photos can be read"
    ]


def test_weak_classes_are_warned_about(tmp_path: Path) -> None:
    rows = write_folder(tmp_path)
    for row, style in zip(rows, ["rare", "rare", "lone", "lone"], strict=False):
        row["fashion_style"] = style
    rows[-1]["fashion_style"] = "unseen"
    gen = {**rows[4], "filename": "gen_0.png", "filepath": "gen_0.png", "user_id": "gen_0"}
    Image.new("RGB", (8, 8), (0, 0, 99)).save(tmp_path / "gen_0.png")
    write_csv(tmp_path, [*rows, gen])
    assert summarise(tmp_path, "fashion_style", progress=False)["warnings"] == [
        "lone, rare: no photo in validation, so they are not measured",
        "unseen: in validation, but no photo to train on",
        "lone, rare: fewer than 8 photos to train on; a batch takes 8 of a class and repeats them",
        "Casual_Basic has 7.0 times as many photos to train on as rare (14 and 2)",
        "1 generated photo(s) do not say whom they show (a listed user_id, and a listed source of "
        "the same person): left out, it could be somebody held out",
    ]


def test_rows_with_problems_are_not_counted_but_named(tmp_path: Path) -> None:
    rows = write_folder(tmp_path)
    rows[0]["filepath"] = "gone.png"
    rows[1]["visual_quality"] = "low"
    write_csv(tmp_path, rows)
    summary = summarise(tmp_path, "fashion_style", progress=False)
    assert summary["dataset"] is None
    assert summary["listed"]["photos"] == len(rows) - 1
    assert [(problem["line"], problem["column"]) for problem in summary["problems"]] == [
        (2, "filepath"), (2, "filename"), (3, "visual_quality"),
    ]  # fmt: skip


# --- the command


def test_the_command_prints_and_draws(
    tmp_path: Path, sample_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "counts.png"
    assert main(["dataset", str(sample_photos), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    listed = len(read_photos(sample_photos))
    assert f"{listed} photos of" in printed and "ready to train" in printed
    assert "Sporty_Athleisure" in printed and "low quality" in printed
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width == 1500
    assert [path.name for path in picture.parent.iterdir()] == ["counts.png"]


def test_the_command_s_json_is_the_summary(
    sample_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", str(sample_photos), "--json", "--label", "shot_type"]) == 0
    summary = summarise(sample_photos, "shot_type", progress=False)
    assert json.loads(capsys.readouterr().out) == summary


def test_the_command_fails_on_problems_and_names_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_folder(tmp_path)
    for row in rows[:30]:
        row["visual_quality"] = "[red]low"
    write_csv(tmp_path, rows)
    assert main(["dataset", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    for line in range(2, 32):
        assert f"line {line}, visual_quality: '[red]low' is none of High, Medium, Low\n" in printed
    assert "30 problem(s)" in printed and "ready" not in printed
    assert main(["dataset", str(tmp_path), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 30


def test_a_folder_whose_every_row_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metadata.csv").write_text("file;user\n")
    picture = tmp_path / "counts.svg"
    assert main(["dataset", str(tmp_path), "--picture", str(picture)]) == 1
    printed = capsys.readouterr()
    assert "line 1, user_id: no such column; there are 'file;user'" in printed.out
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["nowhere", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["nowhere", "--picture", "counts.pdf"], "counts.pdf must end in .png or .svg"),
    ],
)
def test_misuse_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", *arguments]) == 1
    assert message in capsys.readouterr().err


# --- the picture


def test_the_picture_is_repeatable_and_complete(tmp_path: Path) -> None:
    rows = write_folder(tmp_path)
    rows[0]["fashion_style"] = "$x$ & <b>"  # neither mathematics nor markup
    write_csv(tmp_path, rows)
    summary = summarise(tmp_path, "fashion_style", progress=False)
    once, again = tmp_path / "once.svg", tmp_path / "again.svg"
    draw_summary(summary, once)
    draw_summary(summary, again)
    assert once.read_bytes() == again.read_bytes()
    ET.fromstring(once.read_text())  # noqa: S314 (our own file)
    comments = once.read_text()  # Matplotlib names each drawn text beside its outlines
    for text in ("fashion_style", "Street_Hip", "users by number of photos", "validation", "20"):
        assert f"<!-- {text} -->" in comments
    assert "left out" not in comments  # nothing was


def test_hangul_is_drawn_without_complaint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    rows = write_folder(tmp_path)
    for row in rows:
        row["fashion_style"] = {"Casual_Basic": "캐주얼", "Street_Hip": "거리"}[
            row["fashion_style"]
        ]
    write_csv(tmp_path, rows)
    assert main(["dataset", str(tmp_path), "--picture", str(tmp_path / "counts.png")]) == 0
    assert not recwarn.list
    assert "Glyph" not in (printed := capsys.readouterr().err) and "findfont" not in printed


def test_many_classes_are_drawn_as_few(tmp_path: Path) -> None:
    rows = write_folder(tmp_path, users=60)
    for number, row in enumerate(rows):
        row["fashion_style"] = f"style {number // 3:03d}"
    write_csv(tmp_path, rows)
    summary = summarise(tmp_path, "fashion_style", progress=False)
    assert len(summary["listed"]["columns"]["fashion_style"]) == 40
    draw_summary(summary, tmp_path / "counts.svg")
    assert "<!-- (21 others) -->" in (tmp_path / "counts.svg").read_text()


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    write_folder(tmp_path)
    summary = summarise(tmp_path, "fashion_style", progress=False)
    with pytest.raises(InputError, match="cannot be written"):
        draw_summary(summary, tmp_path / "metadata.csv" / "counts.png")
