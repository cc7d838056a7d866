"""A folder of photos, with or without a ``metadata.csv``, as a list of :class:`Photo`.

Real users' photos are named ``{user_id}_{image_idx}.jpg`` (``user_042_0.jpg``), augmented ones
``gen_{idx}.jpg``. The CSV has at least ``filename,user_id,image_idx,filepath``; any further column
is a label. Without a CSV, user and index come from the file names, and a file named otherwise
(``IMG_2041.jpeg``) is a user of its own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from vibematch.errors import InputError

METADATA_FILENAME: Final = "metadata.csv"
REQUIRED_COLUMNS: Final = ("filename", "user_id", "image_idx", "filepath")
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})

# Two digits at most: IMG_2041 and IMG_2042 are not two photos of a user IMG.
_USER_PHOTO: Final = re.compile(r"(?P<user_id>.+)_(?P<image_idx>\d{1,2})")
_GENERATED: Final = re.compile(r"gen_\d+")
_SHOWN_PROBLEMS: Final = 20


@dataclass(frozen=True)
class Photo:
    """One photo file and what is known about it.

    Attributes:
        path: the file.
        user_id: whose photo it is.
        image_idx: which of the user's photos, from 0.
        labels: further CSV columns, e.g. ``fashion_style`` → ``Street_Hip``; empty cells left out.
    """

    path: Path
    user_id: str
    image_idx: int
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def generated(self) -> bool:
        """Whether it is an augmented ``gen_*`` file: for training, never a person to recommend."""
        return _GENERATED.fullmatch(self.path.stem) is not None


def read_photos(directory: Path) -> list[Photo]:
    """List the photos of a folder, by its ``metadata.csv`` where it has one.

    Without a CSV, subfolders are read too, and a user's id starts with the subfolder's name.

    Raises:
        InputError: no such folder, no photos in it, or a CSV that has problems (all are named).
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder")
    metadata = directory / METADATA_FILENAME
    photos = read_metadata(metadata) if metadata.exists() else _from_names(directory)
    if not photos:
        raise InputError(f"{directory} holds no photos ({', '.join(sorted(SUFFIXES))})")
    return photos


def photo_from_name(path: Path) -> Photo:
    """Take user and index from a file name; any other name is a user of its own."""
    match = None if _GENERATED.fullmatch(path.stem) else _USER_PHOTO.fullmatch(path.stem)
    if match is None:
        return Photo(path, path.stem, 0)
    return Photo(path, match["user_id"], int(match["image_idx"]))


def _from_names(directory: Path) -> list[Photo]:
    photos = []
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in SUFFIXES and not hidden:
            photo = photo_from_name(path)
            # two folders may each hold an IMG_0001.jpg, of different people
            user_id = (inside.parent / photo.user_id).as_posix()
            photos.append(replace(photo, user_id=user_id))
    return photos


def read_metadata(csv_path: Path) -> list[Photo]:
    """Read a photo CSV; relative file paths are relative to the CSV's folder.

    Raises:
        InputError: naming every missing column, bad value, duplicate or missing file.
    """
    try:
        with csv_path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{csv_path} cannot be read as a CSV ({error})") from error
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise InputError(f"{csv_path} lacks the column(s) {', '.join(missing)}")
    problems = list(_problems(csv_path, rows))
    if problems:
        shown = problems[:_SHOWN_PROBLEMS]
        rest = len(problems) - len(shown)
        more = f"; and {rest} more" if rest else ""
        raise InputError(f"{csv_path} has {len(problems)} problem(s): {'; '.join(shown)}{more}")
    return [_from_row(csv_path.parent, row) for row in rows]


def _problems(csv_path: Path, rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            yield f"line {line}: not as many cells as columns"
            continue
        if not row["user_id"]:
            yield f"line {line}, user_id: empty"
        if not row["image_idx"].isdecimal():
            yield f"line {line}, image_idx: {row['image_idx']!r} is not a number from 0"
        path = row["filepath"]
        if not path or not (csv_path.parent / path).is_file():
            yield f"line {line}, filepath: no file {path!r}"
        elif path in seen:
            yield f"line {line}, filepath: {path!r} stands on line {seen[path]} already"
        seen.setdefault(path, line)


def _from_row(directory: Path, row: Mapping[str, str]) -> Photo:
    labels = {key: value for key, value in row.items() if key not in REQUIRED_COLUMNS and value}
    return Photo(directory / row["filepath"], row["user_id"], int(row["image_idx"]), labels)
