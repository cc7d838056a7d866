"""Photos and labels as training sees them: what is kept, and who is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from vibematch.errors import InputError
from vibematch.photos import Photo

SPLIT_COLUMN: Final = "split"
QUALITY_COLUMN: Final = "visual_quality"
VALIDATION_FOLDS: Final = 5
"""Without a split column, one fold in five is held out."""


@dataclass(frozen=True)
class Dataset:
    """Labelled photos of two groups of people who do not overlap.

    Attributes:
        train: photos to learn from, none of low visual quality.
        validation: photos of users not in training.
        label: the CSV column that makes two photos a positive pair.
        classes: its values, in the order of their integer codes.
        dropped: how many photos were left out, by reason.
    """

    train: list[Photo]
    validation: list[Photo]
    label: str
    classes: list[str]
    dropped: dict[str, int]


def build_dataset(photos: Sequence[Photo], label: str, seed: int) -> Dataset:
    """Select and split photos for training.

    The ``split`` column decides where there is one (``train`` or ``validation``); otherwise a
    fifth of the users is held out, stratified by class.

    Args:
        photos: all photos, with labels.
        label: the column that makes two photos a positive pair.
        seed: of the held-out choice.

    Raises:
        InputError: nobody has that label, too few classes, or a user on both sides.
    """
    labelled = [photo for photo in photos if label in photo.labels]
    if not labelled:
        found = sorted({column for photo in photos for column in photo.labels})
        raise InputError(
            f"no photo has the label {label!r}; metadata.csv has "
            f"{', '.join(found) if found else 'no label columns'}"
        )
    train, validation = _split(labelled, label, seed)
    clear = [photo for photo in train if photo.labels.get(QUALITY_COLUMN) != "Low"]
    counts = Counter(photo.labels[label] for photo in clear)
    if len(counts) < 2:
        raise InputError(f"training needs at least two classes of {label}, found {list(counts)}")
    if not validation:
        raise InputError(f"column {SPLIT_COLUMN} marks no photo as validation")
    shared = {photo.user_id for photo in clear} & {photo.user_id for photo in validation}
    if shared:
        raise InputError(
            f"{len(shared)} user(s) are in both splits, e.g. {min(shared)}: a person must be "
            "either in training or in validation"
        )
    dropped = {"unlabelled": len(photos) - len(labelled), "low quality": len(train) - len(clear)}
    return Dataset(clear, validation, label, sorted(counts), dropped)


def _split(photos: list[Photo], label: str, seed: int) -> tuple[list[Photo], list[Photo]]:
    stated = {photo.labels.get(SPLIT_COLUMN) for photo in photos}
    if stated <= {"train", "validation"}:
        return (
            [photo for photo in photos if photo.labels[SPLIT_COLUMN] == "train"],
            [photo for photo in photos if photo.labels[SPLIT_COLUMN] == "validation"],
        )
    if stated != {None}:
        raise InputError(
            f"column {SPLIT_COLUMN} must be train or validation for every photo, found "
            f"{', '.join(sorted(str(value) for value in stated))}"
        )
    users = [photo.user_id for photo in photos]
    if len(set(users)) < VALIDATION_FOLDS:
        raise InputError(
            f"{len(set(users))} user(s) are too few to hold a fifth of them out; at least "
            f"{VALIDATION_FOLDS} are needed, or a {SPLIT_COLUMN} column"
        )
    folds = StratifiedGroupKFold(VALIDATION_FOLDS, shuffle=True, random_state=seed)
    labels = [photo.labels[label] for photo in photos]
    kept, held_out = next(folds.split(np.zeros(len(photos)), labels, users))
    return [photos[i] for i in kept], [photos[i] for i in held_out]
