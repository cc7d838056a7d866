"""A folder of photos, with or without a ``metadata.csv``, as a list of :class:`Photo`.

Real users' photos are named ``{user_id}_{image_idx}.jpg`` (``user_042_0.jpg``), augmented ones
``gen_{idx}.jpg``. The CSV has at least ``filename,user_id,image_idx,filepath``; any further column
is a label. Without a CSV, user and index come from the file names, and a file named otherwise
(``IMG_2041.jpeg``) is a user of its own.

Users and labels are read in Unicode's composed form (NFC), since macOS writes 민지 in another one
than Windows does. Paths stay as they are written.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from vibematch.errors import InputError

METADATA_FILENAME: Final = "metadata.csv"
REQUIRED_COLUMNS: Final = ("filename", "user_id", "image_idx", "filepath")
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
SOURCE_COLUMN: Final = "source"
"""Of an augmented photo: the ``filepath`` of the photo that it was made from."""
PROVENANCE_COLUMNS: Final = (SOURCE_COLUMN, "generator", "generation_prompt", "generation_seed")
"""Where an augmented photo comes from; empty for a real one."""

# Two digits at most: IMG_2041 and IMG_2042 are not two photos of a user IMG.
_USER_PHOTO: Final = re.compile(r"(?P<user_id>.+)_(?P<image_idx>\d{1,2})")
_GENERATED_PREFIX: Final = "gen_"
_INDEX: Final = re.compile(r"\d{1,9}")
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of other bytes
_PATH_COLUMNS: Final = frozenset({"filename", "filepath", SOURCE_COLUMN})
_SHOWN_PROBLEMS: Final = 20


@dataclass(frozen=True)
class Photo:
    """One photo file and what is known about it.

    Attributes:
        path: the file.
        user_id: whose photo it is.
        image_idx: which of the user's photos, from 0.
        labels: further CSV columns, e.g. ``fashion_style`` → ``Street_Hip``; empty cells left out.
        line: the line of the CSV that says so, from 1; ``None`` without a CSV.
    """

    path: Path
    user_id: str
    image_idx: int
    labels: Mapping[str, str] = field(default_factory=dict)
    line: int | None = field(default=None, compare=False)

    @property
    def generated(self) -> bool:
        """Whether it is augmented: for training, never a person to recommend.

        That is so if the file is named ``gen_*`` or a column of :data:`PROVENANCE_COLUMNS` is
        filled.
        """
        named = self.path.name.startswith(_GENERATED_PREFIX)
        return named or any(self.labels.get(column) for column in PROVENANCE_COLUMNS)


class Problem(NamedTuple):
    """One thing that is wrong in a ``metadata.csv``.

    Attributes:
        line: where the row begins in the file, from 1; ``None`` without a CSV.
        column: the column, or empty where it concerns the whole row.
        message: what is wrong.
    """

    line: int | None
    column: str
    message: str

    def __str__(self) -> str:
        place = ", ".join(filter(None, [f"line {self.line}" if self.line else "", self.column]))
        return f"{place}: {self.message}" if place else self.message


class Listing(NamedTuple):
    """What a folder or its CSV lists.

    Attributes:
        photos: the photos of rows that are right; all photos, without a CSV.
        flawed: those of the other rows, as far as they can be read: only to look at their labels.
        problems: everything that is wrong, in the order of the file.
    """

    photos: list[Photo]
    flawed: list[Photo]
    problems: list[Problem]


def read_photos(directory: Path) -> list[Photo]:
    """List the photos of a folder, by its ``metadata.csv`` where it has one.

    Without a CSV, subfolders are read too, and a user's id starts with the subfolder's name.

    Raises:
        InputError: no such folder, no photos in it, or a CSV that has problems (all are counted,
            the first of them named).
    """
    listing = check_photos(directory)
    if listing.problems:
        raise problems_error(directory / METADATA_FILENAME, listing.problems)
    return listing.photos


def check_photos(directory: Path) -> Listing:
    """List the photos of a folder and all that is wrong in its ``metadata.csv``.

    Raises:
        InputError: no such folder, no photos in it, or a CSV that cannot be opened.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder")
    metadata = directory / METADATA_FILENAME
    if metadata.exists():
        listing = _check_metadata(metadata)
    else:
        listing = Listing(_from_names(directory), [], [])
    if not listing.photos and not listing.problems:
        raise InputError(f"{directory} holds no photos ({', '.join(sorted(SUFFIXES))})")
    return listing


def problems_error(csv_path: Path | str, problems: Sequence[Problem]) -> InputError:
    """The error that refuses a CSV, naming as many problems as a person reads at once."""
    shown = "; ".join(map(str, problems[:_SHOWN_PROBLEMS]))
    rest = len(problems) - _SHOWN_PROBLEMS
    more = f"; and {rest} more (`vibematch dataset PHOTOS` lists them all)" if rest > 0 else ""
    return InputError(f"{csv_path} has {len(problems)} problem(s): {shown}{more}")


def photo_from_name(path: Path) -> Photo:
    """Take user and index from a file name; any other name is a user of its own."""
    name = nfc(path.stem)
    match = None if name.startswith(_GENERATED_PREFIX) else _USER_PHOTO.fullmatch(name)
    if match is None:
        return Photo(path, name, 0)
    return Photo(path, match["user_id"], int(match["image_idx"]))


def nfc(text: str) -> str:
    """The text in Unicode's composed form, in which equal-looking texts are equal."""
    return unicodedata.normalize("NFC", text)


def _from_names(directory: Path) -> list[Photo]:
    photos = []
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            photo = photo_from_name(path)
            # two folders may each hold an IMG_0001.jpg, of different people
            user_id = (inside.parent / photo.user_id).as_posix()
            photos.append(replace(photo, user_id=nfc(user_id)))
    return photos


def _check_metadata(csv_path: Path) -> Listing:
    """Read a photo CSV; relative file paths are relative to the CSV's folder."""
    try:
        with csv_path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return _check_records(csv_path.parent, _records(file))
    except OSError as error:
        raise InputError(f"{csv_path} cannot be read ({error.strerror})") from error


def _records(file: Iterable[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Every row with the line it begins on; a cell may hold line breaks, so rows are not lines."""
    reader = csv.reader(file, strict=True)  # else an unclosed quote swallows the rows after it
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, error
        else:
            if any(cells):  # spreadsheets leave rows of empty cells behind
                yield line, cells


def _check_records(
    directory: Path, records: Iterator[tuple[int, list[str] | csv.Error]]
) -> Listing:
    line, columns = next(records, (1, list[str]()))
    if isinstance(columns, csv.Error):
        return Listing([], [], [Problem(line, "", f"not valid CSV ({columns})")])
    columns = [nfc(column) for column in columns]
    problems = list(_header_problems(line, columns))
    if problems:  # what the rows should hold is unknown
        return Listing([], [], problems)
    photos: list[Photo] = []
    flawed: list[Photo] = []
    seen: dict[Hashable, int] = {}
    for line, cells in records:
        if isinstance(cells, csv.Error):
            problems.append(Problem(line, "", f"not valid CSV ({cells}); is a quote left open?"))
        elif len(cells) != len(columns):
            message = f"{len(cells)} cells, but there are {len(columns)} columns"
            problems.append(Problem(line, "", message))
        else:
            row = dict(zip(columns, cells, strict=True))
            photo = _from_row(directory, line, row)
            found = list(_row_problems(photo, line, row, seen))
            problems += found
            (flawed if found else photos).append(photo)
    return Listing(photos, flawed, problems)


def _header_problems(line: int, columns: Sequence[str]) -> Iterator[Problem]:
    if any(map(_NOT_UTF8.search, columns)):
        yield Problem(line, "", "not UTF-8 text; save the file as CSV in UTF-8")
        return
    named = ", ".join(map(repr, columns)) or "none"
    for column in REQUIRED_COLUMNS:
        if column not in columns:
            yield Problem(line, column, f"no such column; there are {named}")
    for column in sorted({column for column in columns if column and columns.count(column) > 1}):
        yield Problem(line, column, f"{columns.count(column)} columns have this name")


def _row_problems(
    photo: Photo, line: int, row: Mapping[str, str], seen: dict[Hashable, int]
) -> Iterator[Problem]:
    """What is wrong in a row; ``seen`` remembers on which line a photo was first."""
    for column, cell in row.items():
        if not cell and column in REQUIRED_COLUMNS:
            yield Problem(line, column, "empty")
        elif not cell.isascii() and _NOT_UTF8.search(cell):
            yield Problem(line, column, "not UTF-8 text; save the file as CSV in UTF-8")
    filename, _, image_idx, filepath = (row[column] for column in REQUIRED_COLUMNS)
    path, user_id = photo.path, photo.user_id
    if user_id != user_id.strip():
        yield Problem(line, "user_id", f"{user_id!r} begins or ends with a space")
    # a/../one.jpg is one.jpg
    first = seen.setdefault(os.path.normpath(path), line) if filepath else line
    if first != line:
        yield Problem(line, "filepath", f"{filepath!r} stands on line {first} already")
        return  # a repeated row; one problem is enough
    if filepath and not _is_file(path):
        yield Problem(line, "filepath", f"no file {filepath!r}")
    if filename and filepath and nfc(path.name) != nfc(filename):
        yield Problem(line, "filename", f"{filename!r} is not the file of {filepath!r}")
    if image_idx and not _INDEX.fullmatch(image_idx):
        yield Problem(line, "image_idx", f"{image_idx!r} is not a number from 0")
    elif user_id and image_idx and not photo.generated:
        first = seen.setdefault((user_id, int(image_idx)), line)
        if first != line:
            message = f"user {user_id!r} has a photo {image_idx} on line {first} already"
            yield Problem(line, "image_idx", message)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered, a name too long
        return False


def _from_row(directory: Path, line: int, row: Mapping[str, str]) -> Photo:
    labels = {
        column: cell if column in _PATH_COLUMNS else nfc(cell)
        for column, cell in row.items()
        if column and cell and column not in REQUIRED_COLUMNS
    }
    image_idx = int(row["image_idx"]) if _INDEX.fullmatch(row["image_idx"]) else 0
    return Photo(directory / row["filepath"], nfc(row["user_id"]), image_idx, labels, line)
