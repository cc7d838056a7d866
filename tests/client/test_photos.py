from __future__ import annotations

from pathlib import Path

import pytest

from vibematch.errors import InputError
from vibematch.photos import photo_from_name, read_metadata, read_photos

HEADER = "filename,user_id,image_idx,filepath,fashion_style\n"


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"photo")


@pytest.mark.parametrize(
    ("name", "user_id", "image_idx", "generated"),
    [
        ("user_042_0.jpg", "user_042", 0, False),
        ("user_042_13.JPEG", "user_042", 13, False),
        ("anna_2.png", "anna", 2, False),
        ("IMG_2041.jpeg", "IMG_2041", 0, False),
        ("user_042.jpg", "user_042", 0, False),
        ("user_042_07.jpg", "user_042", 7, False),
        ("holiday.webp", "holiday", 0, False),
        ("gen_7.jpg", "gen_7", 0, True),
        ("gen_7_1.jpg", "gen_7", 1, False),
    ],
)
def test_names(name: str, user_id: str, image_idx: int, generated: bool) -> None:
    photo = photo_from_name(Path(name))
    assert (photo.user_id, photo.image_idx, photo.generated) == (user_id, image_idx, generated)


def test_folder_without_csv(tmp_path: Path) -> None:
    touch(tmp_path, "b_0.jpg", "a_1.PNG", "a_0.webp", "notes.txt", ".hidden/c_0.jpg", ".d_0.jpg")
    users = [(photo.user_id, photo.image_idx) for photo in read_photos(tmp_path)]
    assert users == [("a", 0), ("a", 1), ("b", 0)]


def test_subfolders_keep_people_apart(tmp_path: Path) -> None:
    touch(tmp_path, "x/a_0.jpg", "y/a_0.jpg")
    assert [photo.user_id for photo in read_photos(tmp_path)] == ["x/a", "y/a"]


def test_folder_with_csv(tmp_path: Path) -> None:
    touch(tmp_path, "photos/one.jpg", "two.jpg", "unlisted.jpg")
    (tmp_path / "metadata.csv").write_text(
        "\ufeff" + HEADER + "one.jpg,anna,0,photos/one.jpg,Minimal\ntwo.jpg,ben,3,two.jpg,\n",
        encoding="utf-8",
    )
    one, two = read_photos(tmp_path)
    assert one.path == tmp_path / "photos/one.jpg"
    assert (one.user_id, one.image_idx, one.labels) == ("anna", 0, {"fashion_style": "Minimal"})
    assert two.labels == {}


def test_csv_problems_are_listed_together(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg")
    (tmp_path / "metadata.csv").write_text(
        HEADER
        + "one.jpg,anna,0,one.jpg,Minimal\n"
        + "one.jpg,,0,one.jpg,Minimal\n"
        + "no.jpg,ben,-1,no.jpg,Minimal\n"
        + "short,row\n"
    )
    with pytest.raises(InputError) as raised:
        read_photos(tmp_path)
    message = str(raised.value)
    for problem in (
        "5 problem(s)",
        "line 3, user_id: empty",
        "line 3, filepath: 'one.jpg' stands on line 2 already",
        "line 4, image_idx: '-1' is not a number from 0",
        "line 4, filepath: no file 'no.jpg'",
        "line 5: not as many cells as columns",
    ):
        assert problem in message
    assert "\n" not in message


def test_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    rows = "".join(f"x,u,0,missing_{index}.jpg,\n" for index in range(50))
    (tmp_path / "metadata.csv").write_text(HEADER + rows)
    with pytest.raises(InputError, match=r"50 problem\(s\).*and 30 more"):
        read_photos(tmp_path)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("filename,user_id\na,b\n")
    with pytest.raises(InputError, match=r"lacks the column\(s\) image_idx, filepath"):
        read_metadata(tmp_path / "metadata.csv")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'filename,"user_id\n', b""])
def test_unreadable_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"metadata\.csv"):
        read_photos(tmp_path)


def test_no_folder_and_no_photos(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no photos"):
        read_photos(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_photos(tmp_path / "nowhere")
