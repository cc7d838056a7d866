"""Reading and rewriting a photo folder's CSV as a table, every column kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vibematch.photos import METADATA_FILENAME, REQUIRED_COLUMNS, Photo, read_photos
from vibematch_training.files import write_atomically

Row = dict[str, str]


def read_table(csv_path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of a CSV that :func:`vibematch.photos.read_photos` accepts."""
    with csv_path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        # spreadsheets leave rows of empty cells behind
        return list(reader.fieldnames or []), [row for row in reader if any(row.values())]


def table_of(directory: Path) -> tuple[list[str], list[Row]]:
    """The table of a photo folder; made from the file names where it has no CSV.

    Raises:
        InputError: the folder cannot be read as photos, with every reason.
    """
    photos = read_photos(directory)
    csv_path = directory / METADATA_FILENAME
    if csv_path.exists():
        return read_table(csv_path)
    return list(REQUIRED_COLUMNS), [_row(photo, directory) for photo in photos]


def write_table(csv_path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a CSV, complete or not at all; one that says the same already is left alone.

    A row's missing cells stay empty.
    """
    if csv_path.exists() and read_table(csv_path) == (list(columns), list(rows)):
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(csv_path, text.getvalue())


def _row(photo: Photo, directory: Path) -> Row:
    return {
        "filename": photo.path.name,
        "user_id": photo.user_id,
        "image_idx": str(photo.image_idx),
        "filepath": photo.path.relative_to(directory).as_posix(),
    }


def is_generated(row: Row) -> bool:
    """Whether a row is of an augmented photo, by the client's rule."""
    return Photo(Path(row["filepath"]), row["user_id"], int(row["image_idx"]), row).generated
