"""Photos and labels as training sees them: what is kept, and who is held out."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from vibematch.errors import InputError
from vibematch.photos import (
    METADATA_FILENAME,
    SOURCE_COLUMN,
    Photo,
    Problem,
    check_photos,
    nfc,
    problems_error,
)
from vibematch_training.schema import (
    CATEGORIES,
    LOW_QUALITY,
    QUALITY_COLUMN,
    SPLIT_COLUMN,
    SPLITS,
    STYLE_COLUMN,
    USER_LABEL,
    VALIDATION,
)

VALIDATION_FOLDS: Final = 5
"""Without a split column, one fold in five is held out."""

# Spaces and underscores anywhere, hyphens only inside words: -1 is not 1, and A- is not A.
_SEPARATORS: Final = re.compile(r"[\s_]+|(?<=[^\W\d])-(?=[^\W\d])")


@dataclass(frozen=True)
class Dataset:
    """Labelled photos of two groups of people who do not overlap.

    Attributes:
        train: photos to learn from, none of low visual quality; a generated one has the
            ``user_id`` of the person it shows.
        validation: photos of users not in training, none of them generated.
        label: the CSV column that makes two photos a positive pair, or ``user_id``.
        classes: its values on both sides, in the order of their integer codes.
        dropped: how many photos were left out, by reason; the keys are always the same.
    """

    train: list[Photo]
    validation: list[Photo]
    label: str
    classes: list[str]
    dropped: dict[str, int]


def class_of(photo: Photo, label: str) -> str | None:
    """The photo's class: photos of equal class are positives; ``None`` if it has none."""
    return photo.user_id if label == USER_LABEL else photo.labels.get(label)


def load_dataset(directory: Path, label: str, seed: int, *, undersample: bool = False) -> Dataset:
    """Read a photo folder for training, as :func:`build_dataset` selects and splits it.

    Raises:
        InputError: the folder, its CSV or its labels cannot be used.
    """
    return build_dataset(
        read_labelled_photos(directory, label), label, seed, undersample=undersample
    )


def read_labelled_photos(directory: Path, label: str) -> list[Photo]:
    """Read a photo folder whose rows and labels are all right.

    Raises:
        InputError: the folder, its CSV or its labels cannot be used; problems of rows and of
            labels are named together.
    """
    photos, problems = check_folder(directory, label)
    if problems:
        raise problems_error(directory / METADATA_FILENAME, problems)
    return photos


def check_folder(directory: Path, label: str) -> tuple[list[Photo], list[Problem]]:
    """The photos of a folder that are listed correctly, and all that is wrong in rows and labels.

    Raises:
        InputError: no such folder, no photos in it, or a CSV that cannot be opened.
    """
    photos, flawed, problems = check_photos(directory)
    return photos, _in_order([*problems, *check_labels([*photos, *flawed], label)])


def build_dataset(
    photos: Sequence[Photo], label: str, seed: int, *, undersample: bool = False
) -> Dataset:
    """Select and split photos for training.

    The ``split`` column decides where there is one; otherwise a fifth of the users is held out,
    stratified by class. Photos are left out, and counted, if they have no class, are of low
    quality (in training), are generated and their person is held out or unknown, or if they are
    their user's only one and users are the classes.

    Args:
        photos: all photos, with labels.
        label: the column that makes two photos a positive pair; ``user_id`` takes the person.
        seed: of the held-out choice and of undersampling.
        undersample: reduce every training class to the size of the smallest.

    Raises:
        InputError: labels are misspelt or contradict each other, nobody has that label, or too
            few classes or users are left.
    """
    problems = check_labels(photos, label)
    if problems:
        raise problems_error(METADATA_FILENAME, problems)
    labelled = [photo for photo in photos if class_of(photo, label) is not None]
    real = [photo for photo in labelled if not photo.generated]
    train, validation = _split(real, label, seed)
    held_out = {photo.user_id for photo in validation}
    generated = [photo for photo in labelled if photo.generated]
    shown = _people_shown(generated, photos)
    unseen = [photo for photo in generated if not shown[photo.path] & held_out]
    safe = [
        replace(photo, user_id=min(shown[photo.path]))
        for photo in unseen
        if len(shown[photo.path]) == 1
    ]
    good = [photo for photo in train + safe if not _is_low(photo)]
    kept, judged = good, validation
    if label == USER_LABEL:
        kept, judged = _with_company(good), _with_company(validation)
    _require_classes(kept, judged, label)
    balanced = _undersample(kept, label, seed) if undersample else kept
    return Dataset(
        balanced,
        judged,
        label,
        sorted({*_class_counts(balanced, label), *_class_counts(judged, label)}),
        {
            "unlabelled": len(photos) - len(labelled),
            "generated from validation": len(generated) - len(unseen),
            "generated of an unknown person": len(unseen) - len(safe),
            "low quality": len(train) + len(safe) - len(good),
            "only photo of its user": len(good) + len(validation) - len(kept) - len(judged),
            "undersampled": len(kept) - len(balanced),
        },
    )


def _require_classes(train: Sequence[Photo], validation: Sequence[Photo], label: str) -> None:
    classes = sorted(_class_counts(train, label))
    if len(classes) < 2:
        need = "at least two users of two photos" if label == USER_LABEL else "at least two classes"
        found = ", ".join(classes) or "none"
        raise InputError(f"training by {label} needs {need} outside validation; found {found}")
    if not validation:
        raise InputError(
            f"nobody can be held out for validation: column {SPLIT_COLUMN} marks no photo as "
            "validation, or with label user_id no user there has two photos"
        )


def _is_low(photo: Photo) -> bool:
    return photo.labels.get(QUALITY_COLUMN) == LOW_QUALITY


def _class_counts(photos: Iterable[Photo], label: str) -> Counter[str]:
    return Counter(str(class_of(photo, label)) for photo in photos)


def _with_company(photos: Sequence[Photo]) -> list[Photo]:
    """The photos that are not their user's only one: a positive pair takes two."""
    counts = Counter(photo.user_id for photo in photos)
    return [photo for photo in photos if counts[photo.user_id] > 1]


def _undersample(photos: Sequence[Photo], label: str, seed: int) -> list[Photo]:
    """Reduce every class to the size of the smallest, in the given order.

    A user's second photo goes before any user's first, and generated photos before real ones.
    """
    least = min(_class_counts(photos, label).values())
    shuffled = np.random.default_rng(seed).permutation(len(photos)).tolist()
    ranks: dict[int, int] = {}
    seen: Counter[tuple[str | None, str]] = Counter()
    for position in sorted(shuffled, key=lambda position: photos[position].generated):
        photo = photos[position]
        key = (class_of(photo, label), photo.user_id)
        ranks[position] = seen[key]
        seen[key] += 1
    taken: Counter[str | None] = Counter()
    chosen = []
    for position in sorted(ranks, key=ranks.__getitem__):  # stable: shuffled within a rank
        name = class_of(photos[position], label)
        if taken[name] < least:
            taken[name] += 1
            chosen.append(position)
    return [photos[position] for position in sorted(chosen)]


# --- misspelt and contradicting labels


def check_labels(photos: Sequence[Photo], label: str) -> list[Problem]:
    """Everything in the label columns that would silently train something else than was meant.

    ``visual_quality``, ``shot_type`` and ``split`` are closed: any other value is a problem.
    ``fashion_style`` and the column that is trained on may hold any vocabulary (digits, a
    company's own styles), but no value that differs from the schema's, or from a more frequent
    value of the column, only by case, spaces, underscores, hyphens or Unicode form (NFC, NFD).

    Returns:
        The problems in the order of the file.
    """
    return _in_order(
        [
            *_column_problems(photos, label),
            *_misspelt_values(photos, label),
            *_split_problems(photos, label),
        ]
    )


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """The problems in the order of the file."""
    return sorted(problems, key=lambda problem: problem.line or 0)


def _column_problems(photos: Sequence[Photo], label: str) -> Iterator[Problem]:
    found = {column for photo in photos for column in photo.labels}
    if photos and label not in {*found, USER_LABEL}:
        there = ", ".join(sorted(found)) if found else "no label columns"
        message = f"no photo has this label; metadata.csv has {there}"
        yield Problem(None, label, f"{message}; --label names one, or {USER_LABEL}")
    wanted = {*CATEGORIES, SPLIT_COLUMN, label}
    names = {_plain(column): column for column in sorted(wanted)}
    for column in sorted(found - wanted):
        if meant := names.get(_plain(column)):
            yield Problem(1, column, f"the column's name must be {meant!r} exactly")


def _misspelt_values(photos: Sequence[Photo], label: str) -> Iterator[Problem]:
    free = {STYLE_COLUMN, label}
    closed = {**CATEGORIES, SPLIT_COLUMN: SPLITS}
    for column in sorted({*closed, label}):
        stated = [photo for photo in photos if column in photo.labels]
        allowed = closed.get(column, ())
        spelling = _spelling(Counter(photo.labels[column] for photo in stated), allowed)
        for photo in stated:
            value = photo.labels[column]
            if spelling[value] != value:
                yield Problem(photo.line, column, f"{value!r} must be written {spelling[value]!r}")
            elif column not in free and value not in allowed:
                message = f"{value!r} is none of {', '.join(allowed)}"
                yield Problem(photo.line, column, message)


def _spelling(counts: Mapping[str, int], allowed: Iterable[str]) -> dict[str, str]:
    """The agreed spelling of every value: the schema's, else the most frequent one's."""
    agreed = {_plain(value): value for value in allowed}
    for value in sorted(counts, key=lambda value: (-counts[value], value)):
        agreed.setdefault(_plain(value), value)
    return {value: value if value in allowed else agreed[_plain(value)] for value in counts}


def _plain(value: str) -> str:
    return _SEPARATORS.sub("", nfc(value)).casefold() or value


def _split_problems(photos: Iterable[Photo], label: str) -> Iterator[Problem]:
    # A generated photo follows its person, whatever its row says.
    split = [p for p in photos if class_of(p, label) is not None and not p.generated and p.user_id]
    if not any(SPLIT_COLUMN in photo.labels for photo in split):
        return
    first: dict[str, Photo] = {}
    for photo in split:
        side = photo.labels.get(SPLIT_COLUMN)
        other = first.setdefault(photo.user_id, photo)
        if side is None:
            yield Problem(photo.line, SPLIT_COLUMN, "empty, but other photos have a value")
        elif side != other.labels.get(SPLIT_COLUMN, side):
            message = (
                f"user {photo.user_id!r} is in {side} here and in {other.labels[SPLIT_COLUMN]} "
                f"on line {other.line}; a person must be in one of them"
            )
            yield Problem(photo.line, SPLIT_COLUMN, message)


# --- who is held out


def _split(photos: list[Photo], label: str, seed: int) -> tuple[list[Photo], list[Photo]]:
    """Training and validation photos of different people, each in the given order."""
    if any(SPLIT_COLUMN in photo.labels for photo in photos):
        users = {p.user_id for p in photos if p.labels[SPLIT_COLUMN] == VALIDATION}
    else:
        users = _held_out_users(photos, label, seed)
    train = [photo for photo in photos if photo.user_id not in users]
    return train, [photo for photo in photos if photo.user_id in users]


def _held_out_users(photos: list[Photo], label: str, seed: int) -> set[str]:
    """A fifth of the users, stratified by class; every class keeps someone to learn from."""
    users = [photo.user_id for photo in photos]
    if len(set(users)) < VALIDATION_FOLDS:
        raise InputError(
            f"{len(set(users))} user(s) are too few to hold a fifth of them out; at least "
            f"{VALIDATION_FOLDS} are needed, or a {SPLIT_COLUMN} column"
        )
    if max(Counter(_strata(photos, label)).values()) < VALIDATION_FOLDS:
        raise InputError(
            f"no class of {label} has {VALIDATION_FOLDS} photos, too few to hold a fifth out; "
            f"add photos or a {SPLIT_COLUMN} column"
        )
    chosen = _one_fold_of_users(photos, label, VALIDATION_FOLDS, seed)
    usable = defaultdict(set)
    for stratum, photo in zip(_strata(photos, label), photos, strict=True):
        if not _is_low(photo):
            usable[stratum].add(photo.user_id)
    for stratum in sorted(usable):
        if usable[stratum] <= chosen:
            chosen.remove(min(usable[stratum]))
    if not chosen:
        raise InputError(f"too few users to hold one out and keep every class of {label}")
    return chosen


def hold_out_people(
    photos: Sequence[Photo], label: str, share: float, seed: int
) -> tuple[list[Photo], list[Photo]]:
    """Hold out about a share of the people, stratified by class; nobody is on both sides.

    Args:
        photos: labelled photos of many people.
        label: what makes the classes.
        share: how many of the people, in (0, 0.5].
        seed: of the choice.

    Returns:
        The remaining people's photos, and those of the held-out people, generated ones left out.

    Raises:
        InputError: too few people, or those held out have nobody to be found by.
    """
    users, folds = {photo.user_id for photo in photos}, round(1 / share)
    instead = "use keep: last and patience_epochs: 0"
    if min(len(users), max(Counter(_strata(photos, label)).values(), default=0)) < folds:
        raise InputError(
            f"{len(photos)} photos of {len(users)} people to train on are too few to hold "
            f"{share:.0%} of them out for choosing an epoch; {instead}"
        )
    chosen = _one_fold_of_users(photos, label, folds, seed)
    judges = [photo for photo in photos if photo.user_id in chosen and not photo.generated]
    found = {(class_of(p, label), p.path if label == USER_LABEL else p.user_id) for p in judges}
    if max(Counter(name for name, _ in found).values(), default=0) < 2:
        raise InputError(
            f"{len(chosen)} of {len(users)} people to train on would be held out for choosing an "
            f"epoch, and no two of them share a class of {label}; set a larger selection_share, or "
            f"{instead}"
        )
    return [photo for photo in photos if photo.user_id not in chosen], judges


def _one_fold_of_users(photos: Sequence[Photo], label: str, folds: int, seed: int) -> set[str]:
    """About one in ``folds`` users, stratified by class."""
    users = [photo.user_id for photo in photos]
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # a class of few photos is named by `vibematch dataset`
        warnings.simplefilter("ignore", UserWarning)
        _, chosen = next(split.split(np.zeros(len(photos)), _strata(photos, label), users))
    return {users[position] for position in chosen}


def _strata(photos: Sequence[Photo], label: str) -> list[str]:
    """What each photo is stratified by; people cannot be by who they are."""
    return ["" if label == USER_LABEL else str(class_of(photo, label)) for photo in photos]


def _people_shown(
    generated: Iterable[Photo], photos: Sequence[Photo]
) -> dict[Path, frozenset[str]]:
    """Who may be seen in each generated photo; nobody where that is not certain.

    The row's own ``user_id`` is not enough: so is whoever is in the photo that it was made from,
    back to a real one, and each photo on the way must be listed.
    """
    by_path = {photo.path: photo for photo in photos}
    users = {photo.user_id for photo in photos if not photo.generated}
    return {photo.path: frozenset(_origins(photo, by_path) & users) for photo in generated}


def _origins(photo: Photo, by_path: Mapping[Path, Photo]) -> set[str]:
    """Users of a generated photo and of all it was made from; none if one is not listed."""
    origins: dict[Path, str] = {}
    queue = [photo]
    while queue:
        current = queue.pop()
        if current.path in origins:
            continue
        origins[current.path] = current.user_id
        if current.generated and (source := current.labels.get(SOURCE_COLUMN)):
            # Relative to the CSV's folder, which is one of these: any that fits counts.
            found = [by_path.get(folder / source) for folder in current.path.parents]
            if not any(found):
                return set()
            queue += filter(None, found)
    return set(origins.values())
