"""Writes a sample of photos and its metadata into a folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vibematch.errors import InputError
from vibematch_training.files import write_atomically
from vibematch_training.sample_photos.camera import take
from vibematch_training.sample_photos.captions import caption
from vibematch_training.sample_photos.people import draw_person
from vibematch_training.sample_photos.photos import PhotoPlan, compose, plan_photo
from vibematch_training.sample_photos.wardrobe import STYLES

GENERATOR_VERSION = 1
_SETTINGS_FILE = "sample.json"
_PHOTOS_PER_USER = (1, 2, 3, 4)
_PHOTOS_PER_USER_ODDS = (0.15, 0.35, 0.35, 0.15)
_QUALITY_ODDS = {
    "train": {"High": 0.7, "Medium": 0.25, "Low": 0.05},
    "validation": {"High": 0.75, "Medium": 0.25},
}
# What each random stream is for, so that none depends on how far another was used.
_LAYOUT, _IDENTITY, _PLAN, _DRAWING, _CAPTION = range(5)


@dataclass(frozen=True)
class Photo:
    """Which photo of the sample: enough to draw it anywhere, in any order."""

    seed: int
    user: int
    index: int
    split: str
    style: str

    @property
    def user_id(self) -> str:
        """The name of the user that the photo belongs to."""
        return f"user_{self.user:04d}"

    @property
    def filename(self) -> str:
        """The name of the photo's file."""
        return f"{self.user_id}_{self.index}.jpg"

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, self.user, self.index])

    def plan(self) -> PhotoPlan:
        """Decides who and what is in the photo."""
        person = draw_person(np.random.default_rng([self.seed, _IDENTITY, self.user]))
        rng = self._rng(_PLAN)
        odds = _QUALITY_ODDS[self.split]
        quality = str(rng.choice(list(odds), p=list(odds.values())))
        return plan_photo(rng, person, self.style, quality)

    def row(self) -> dict[str, str | int]:
        """The photo's line of metadata.csv, by column."""
        plan = self.plan()
        return {
            "filename": self.filename,
            "user_id": self.user_id,
            "image_idx": self.index,
            "filepath": self.filename,
            "split": self.split,
            "fashion_style": self.style,
            "shot_type": plan.shot,
            "visual_quality": plan.quality,
            "physical_features": plan.person.features,
            "caption": caption(plan, self._rng(_CAPTION)),
        }

    def draw(self) -> bytes:
        """Draws the photo and returns its JPEG bytes."""
        plan, rng = self.plan(), self._rng(_DRAWING)
        scene, side = compose(plan, rng)
        return take(scene, plan.size, side, plan.quality, rng)


def write_sample_photos(
    directory: Path,
    *,
    train_photos: int = 1508,
    validation_photos: int = 98,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Draws a labelled sample of dating-profile photos into a folder.

    The same seed and counts give the same bytes, whatever the number of processes. An
    interrupted run is resumed by calling again with the same arguments.

    Args:
        directory: The folder for the photos; created if missing, else empty or an earlier run.
        train_photos: Number of photos in the training split.
        validation_photos: Number of photos, of other users, in the validation split.
        seed: Chooses the sample.
        processes: Number of worker processes; by default one per processor.
        progress: Whether to show a progress bar.

    Returns:
        The path of metadata.csv in the folder.

    Raises:
        InputError: If the counts or the number of processes cannot work, or the folder holds
            anything but the same sample.
    """
    _check_counts(train_photos, validation_photos, seed, processes)
    _claim(directory, {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "train_photos": train_photos,
        "validation_photos": validation_photos,
    })  # fmt: skip
    photos = lay_out(train_photos, validation_photos, seed)
    missing = [photo for photo in photos if not (directory / photo.filename).exists()]
    contents = _drawn(missing, min(processes or os.cpu_count() or 1, len(missing)))
    with tqdm(total=len(photos), initial=len(photos) - len(missing), unit="photo",
              desc="Drawing sample photos", disable=not progress) as bar:  # fmt: skip
        for photo, content in zip(missing, contents, strict=True):
            write_atomically(directory / photo.filename, content)
            bar.update()
    return _write_metadata(directory, photos)


def _check_counts(train: int, validation: int, seed: int, processes: int | None) -> None:
    least = len(STYLES)
    for name, count in (("train_photos", train), ("validation_photos", validation)):
        if count < least:
            raise InputError(
                f"{name} is {count}; at least {least} are needed so that each of the "
                f"{least} fashion styles appears."
            )
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more.")
    if processes is not None and processes < 1:
        raise InputError(f"processes is {processes}; it must be 1 or more.")


def _claim(directory: Path, settings: dict[str, int]) -> None:
    """Makes sure that the folder is ours to write, and records the settings in it."""
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / _SETTINGS_FILE
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found != settings:
            raise InputError(
                f"{directory} holds another sample ({found}, wanted {settings}); "
                "choose an empty folder or delete this one."
            )
    elif any(directory.iterdir()):
        raise InputError(
            f"{directory} is not empty and holds no sample of ours; choose an empty folder."
        )
    write_atomically(record, json.dumps(settings, indent=2) + "\n")


def lay_out(train: int, validation: int, seed: int) -> list[Photo]:
    """Deals photos to users: one style and one split per user, styles in equal shares."""
    rng = np.random.default_rng([seed, _LAYOUT])
    users = [
        (split, style, count)
        for split, total in (("train", train), ("validation", validation))
        for position, style in enumerate(STYLES)
        for count in _user_counts(rng, (total + position) // len(STYLES))
    ]
    order = rng.permutation(len(users))
    return [
        Photo(seed, number, index, split, style)
        for number, (split, style, count) in enumerate((users[i] for i in order), start=1)
        for index in range(count)
    ]


def _user_counts(rng: np.random.Generator, total: int) -> Iterator[int]:
    """Yields how many photos each user has, until they add up to the total."""
    while total > 0:
        count = min(int(rng.choice(_PHOTOS_PER_USER, p=_PHOTOS_PER_USER_ODDS)), total)
        total -= count
        yield count


def _drawn(photos: list[Photo], processes: int) -> Iterator[bytes]:
    """Yields the bytes of each photo, in order."""
    if processes <= 1:
        yield from map(Photo.draw, photos)
    else:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(Photo.draw, photos, chunksize=8)


def _write_metadata(directory: Path, photos: list[Photo]) -> Path:
    rows = [photo.row() for photo in photos]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path = directory / "metadata.csv"
    write_atomically(path, text.getvalue())
    return path
