from __future__ import annotations

import csv
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch.photos import (
    PROVENANCE_COLUMNS,
    REQUIRED_COLUMNS,
    check_photos,
    photo_from_name,
    read_photos,
)

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
        ("gen_7_1.jpg", "gen_7_1", 0, True),
        ("gen_anna.png", "gen_anna", 0, True),
        ("generation_1.jpg", "generation", 1, False),
    ],
)
def test_names(name: str, user_id: str, image_idx: int, generated: bool) -> None:
    photo = photo_from_name(Path(name))
    assert (photo.user_id, photo.image_idx, photo.generated) == (user_id, image_idx, generated)


def test_folder_without_csv(tmp_path: Path) -> None:
    touch(tmp_path, "b_0.jpg", "a_1.PNG", "a_0.webp", "notes.txt", ".hidden/c_0.jpg", ".d_0.jpg")
    (tmp_path / "folder_0.jpg").mkdir()
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


def write_csv(directory: Path, *rows: str, header: str = HEADER) -> None:
    text = header + "".join(f"{row}\n" for row in rows)
    (directory / "metadata.csv").write_text(text, encoding="utf-8")


def problems(directory: Path) -> list[str]:
    return [str(problem) for problem in check_photos(directory).problems]


def test_csv_problems_are_listed_together(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg")
    write_csv(
        tmp_path,
        "one.jpg,anna,0,one.jpg,Minimal",
        "one.jpg,,0,one.jpg,Minimal",
        "no.jpg,ben,-1,no.jpg,Minimal",
        "short,row",
    )
    with pytest.raises(InputError) as raised:
        read_photos(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / 'metadata.csv'} has 5 problem(s): line 3, user_id: empty; "
        "line 3, filepath: 'one.jpg' stands on line 2 already; "
        "line 4, filepath: no file 'no.jpg'; "
        "line 4, image_idx: '-1' is not a number from 0; "
        "line 5: 2 cells, but there are 5 columns"
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (",ben,0,two.jpg,x", "filename: empty"),
        ("two.jpg,,0,two.jpg,x", "user_id: empty"),
        ("two.jpg,ben ,0,two.jpg,x", "user_id: 'ben ' begins or ends with a space"),
        ("two.jpg,ben,,two.jpg,x", "image_idx: empty"),
        ("two.jpg,ben,1.0,two.jpg,x", "image_idx: '1.0' is not a number from 0"),
        (f"two.jpg,ben,{'9' * 5000},two.jpg,x", f"image_idx: '{'9' * 5000}' is not a number from"),
        ("two.jpg,ben,0,,x", "filepath: empty"),
        ("no.jpg,ben,0,no.jpg,x", "filepath: no file 'no.jpg'"),
        ("folder,ben,0,folder,x", "filepath: no file 'folder'"),
        ("a.jpg,ben,0,one.jpg/a.jpg,x", "filepath: no file 'one.jpg/a.jpg'"),
        (f"{'n' * 300},ben,0,{'n' * 300},x", "filepath: no file 'nnn"),
        ("one.jpg,ben,0,./one.jpg,x", "filepath: './one.jpg' stands on line 2 already"),
        (
            "one.jpg,ben,0,folder/../one.jpg,x",
            "filepath: 'folder/../one.jpg' stands on line 2 already",
        ),
        ("2.jpg,ben,0,two.jpg,x", "filename: '2.jpg' is not the file of 'two.jpg'"),
        ("two.jpg,anna,00,two.jpg,x", "image_idx: user 'anna' has a photo 00 on line 2 already"),
        ("two.jpg,ben,0,two.jpg,x,y", "6 cells, but there are 5 columns"),
        ('two.jpg,ben,0,two.jpg,"x"y', "not valid CSV (',' expected after '\"'); is a quote left"),
        (
            'two.jpg,ben,0,two.jpg,"x',
            "not valid CSV (unexpected end of data); is a quote left open",
        ),
    ],
)
def test_what_is_wrong_in_a_row_is_named(tmp_path: Path, row: str, problem: str) -> None:
    touch(tmp_path, "one.jpg", "two.jpg")
    (tmp_path / "folder").mkdir()
    write_csv(tmp_path, "one.jpg,anna,0,one.jpg,x", row)
    (found,) = problems(tmp_path)
    assert found.removeprefix("line 3").lstrip(",: ").startswith(problem)


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """A cell may hold line breaks, and lines may be empty: row 3 is not line 3."""
    touch(tmp_path, "one.jpg", "two.jpg")
    write_csv(tmp_path, 'one.jpg,anna,0,one.jpg,"a\nb\r\nc"', "", ",,,,", "two.jpg,,0,two.jpg,x")
    assert problems(tmp_path) == ["line 7, user_id: empty"]
    (photo,) = check_photos(tmp_path).photos
    assert (photo.line, photo.labels["fashion_style"]) == (2, "a\nb\r\nc")


def test_rows_with_problems_keep_their_labels(tmp_path: Path) -> None:
    """So that a misspelt label is named together with what else is wrong in the row."""
    touch(tmp_path, "one.jpg")
    write_csv(tmp_path, "one.jpg,anna,zero,one.jpg,Minimal", "no.jpg,ben,1,no.jpg,Street")
    photos, flawed, found = check_photos(tmp_path)
    assert not photos and len(found) == 2
    labels = [(photo.line, photo.image_idx, photo.labels["fashion_style"]) for photo in flawed]
    assert labels == [(2, 0, "Minimal"), (3, 1, "Street")]


def test_a_generated_photo_shares_its_source_s_user_and_index(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg", "gen_0.jpg", "gen_1.jpg")
    rows = [f"{name},anna,0,{name},x" for name in ("one.jpg", "gen_0.jpg", "gen_1.jpg")]
    write_csv(tmp_path, *rows)
    assert [photo.generated for photo in read_photos(tmp_path)] == [False, True, True]


@pytest.mark.parametrize("column", PROVENANCE_COLUMNS)
def test_a_photo_with_an_origin_is_generated_whatever_its_name(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "one.jpg", "aug_a.jpg")
    rows = ["one.jpg,anna,0,one.jpg,", "aug_a.jpg,anna,0,aug_a.jpg,one.jpg"]
    write_csv(tmp_path, *rows, header=f"{','.join(REQUIRED_COLUMNS)},{column}\n")
    assert [photo.generated for photo in read_photos(tmp_path)] == [False, True]


def test_composed_and_decomposed_text_is_the_same(tmp_path: Path) -> None:
    """macOS writes Hangul in parts, and so do the names of files that come from there."""
    nfc, nfd = (unicodedata.normalize(form, "민지") for form in ("NFC", "NFD"))
    assert nfc != nfd
    touch(tmp_path, f"{nfc}_0.jpg", f"{nfd}_1.jpg", f"gen_{nfd}.jpg", f"{nfd}/{nfd}.jpg")
    named = read_photos(tmp_path)
    assert {photo.user_id for photo in named} == {nfc, f"gen_{nfc}", f"{nfc}/{nfc}"}
    write_csv(
        tmp_path,
        f"{nfc}_0.jpg,{nfc},0,{nfc}_0.jpg,{nfc},",
        f"{nfd}_1.jpg,{nfd},1,{nfd}_1.jpg,{nfd},",
        f"gen_{nfd}.jpg,{nfd},1,gen_{nfd}.jpg,{nfd},{nfd}_1.jpg",
        header=f"{','.join(REQUIRED_COLUMNS)},{nfd},source\n",
    )
    photos = read_photos(tmp_path)
    assert {(photo.user_id, photo.labels[nfc]) for photo in photos} == {(nfc, nfc)}
    assert photos[2].labels["source"] == photos[1].path.name == f"{nfd}_1.jpg"  # as on disk
    assert all(photo.path.read_bytes() for photo in [*named, *photos])


def test_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    write_csv(tmp_path, *(f"{index}.jpg,u,{index},{index}.jpg," for index in range(50)))
    with pytest.raises(InputError, match=r"50 problem\(s\).*and 30 more \(`vibematch dataset"):
        read_photos(tmp_path)
    assert len(problems(tmp_path)) == 50


def test_problems_of_the_header_are_named(tmp_path: Path) -> None:
    write_csv(tmp_path, "a,b,c,d", header="filename, user_id,style,style\n")
    there = "there are 'filename', ' user_id', 'style', 'style'"
    assert problems(tmp_path) == [
        f"line 1, user_id: no such column; {there}",
        f"line 1, image_idx: no such column; {there}",
        f"line 1, filepath: no such column; {there}",
        "line 1, style: 2 columns have this name",
    ]


def test_a_column_without_a_name_is_no_label(tmp_path: Path) -> None:
    """The row numbers that pandas writes in front."""
    touch(tmp_path, "one.jpg")
    write_csv(tmp_path, "0,one.jpg,anna,0,one.jpg,x", header=f",{HEADER}")
    assert [photo.labels for photo in read_photos(tmp_path)] == [{"fashion_style": "x"}]


def test_another_encoding_is_named_where_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg", "two.jpg")
    rows = "one.jpg,anna,0,one.jpg,캐주얼\ntwo.jpg,ben,0,two.jpg,x\n"
    (tmp_path / "metadata.csv").write_bytes((HEADER + rows).encode("cp949"))
    assert problems(tmp_path) == [
        "line 2, fashion_style: not UTF-8 text; save the file as CSV in UTF-8"
    ]
    (tmp_path / "metadata.csv").write_bytes((HEADER + rows).encode("utf-16"))
    assert problems(tmp_path) == ["line 1: not UTF-8 text; save the file as CSV in UTF-8"]


@pytest.mark.parametrize(
    "content", [b"", b'filename,"user_id\n', b'filename,"user_id"x\n', b"\n\n"]
)
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"metadata\.csv has \d problem\(s\): line 1"):
        read_photos(tmp_path)


def test_a_csv_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").mkdir()
    with pytest.raises(InputError, match=r"metadata\.csv cannot be read \(Is a directory\)"):
        read_photos(tmp_path)


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None)
@given(st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=6), st.booleans())
def test_any_table_is_read_or_refused(rows: list[list[str]], quote: bool) -> None:
    """Whatever the cells hold, every row with content becomes a photo or has a problem."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (directory / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
            writer.writerow([*REQUIRED_COLUMNS, "fashion_style"])
            writer.writerows(rows)
        expected = sum(any(row) for row in rows)
        if not expected:
            with pytest.raises(InputError, match="holds no photos"):
                check_photos(directory)
            return
        photos, flawed, found = check_photos(directory)
        assert not photos  # none of these files exists
        assert len(flawed) == expected == len({problem.line for problem in found})


def test_no_folder_and_no_photos(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no photos"):
        read_photos(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_photos(tmp_path / "nowhere")
