"""What a photo folder holds, and what stands in the way of training on it."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from vibematch.errors import InputError, PhotoError
from vibematch.photos import Photo, Problem
from vibematch.preprocess import decode
from vibematch_training.dataset import (
    Dataset,
    build_dataset,
    check_folder,
    class_of,
)
from vibematch_training.files import write_atomically
from vibematch_training.run import TrainingConfig
from vibematch_training.schema import CATEGORIES, SPLIT_COLUMN, USER_LABEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_PHOTOS: Final = TrainingConfig.photos_per_class
"""What the PK sampler takes of a class by default: with fewer, photos are repeated in a batch."""
IMBALANCE: Final = 3.0
"""Largest class over smallest, from which on it is worth a warning."""
PICTURE_SUFFIXES: Final = (".png", ".svg")

_SHOWN: Final = 20
_LONGEST_NAME: Final = 24
_USERS_SECTION: Final = "users by number of photos"
_CHUNK: Final = 16
# Of Linux, Windows and macOS; DejaVu, Matplotlib's own, has no Hangul.
_KOREAN_FONTS: Final = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
)
# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS: Final = {
    "train": "#0072B2",
    "validation": "#E69F00",
    "left out": "#BBBBBB",
    "listed": "#56B4E9",
}


def figures(dataset: Dataset) -> dict[str, Any]:
    """The counts of a data set, for reports, model cards and machines.

    Returns:
        ``label``, ``photos``, ``users``, ``dropped`` (photos left out, by reason), and for each
        of ``train`` and ``validation`` what :func:`counts` returns.
    """
    both = [*dataset.train, *dataset.validation]
    return {
        "label": dataset.label,
        "photos": len(both),
        "users": len({photo.user_id for photo in both}),
        "train": counts(dataset.train, dataset.label),
        "validation": counts(dataset.validation, dataset.label),
        "dropped": dataset.dropped,
    }


def counts(photos: Sequence[Photo], label: str) -> dict[str, Any]:
    """Count photos in every way that matters for training.

    Returns:
        ``photos``, ``users``, ``generated``; ``photos_per_user``: number of photos (as text) →
        number of users with so many; ``columns``: column → value → number of photos, for
        the label and the columns of the schema that any photo has. The value ``""`` counts the
        photos without one. With label ``user_id`` the classes are people, and are not listed.
    """
    per_user = Counter(photo.user_id for photo in photos)
    sizes = Counter(per_user.values())
    return {
        "photos": len(photos),
        "users": len(per_user),
        "generated": sum(photo.generated for photo in photos),
        "photos_per_user": {str(size): sizes[size] for size in sorted(sizes)},
        "columns": {
            column: _column_counts(photos, column)
            for column in _columns(label)
            if any(column in photo.labels for photo in photos)
        },
    }


def _columns(label: str) -> list[str]:
    return list(dict.fromkeys([label, *CATEGORIES] if label != USER_LABEL else CATEGORIES))


def _column_counts(photos: Iterable[Photo], column: str) -> dict[str, int]:
    """Photos of each value, in the schema's order where it has one."""
    found = Counter(photo.labels.get(column, "") for photo in photos)
    known = [value for value in CATEGORIES.get(column, ()) if value in found]
    others = sorted(set(found) - set(known), key=lambda value: (not value, value))
    return {value: found[value] for value in [*known, *others]}


def summarise(
    directory: Path, label: str, seed: int = 0, *, progress: bool = True
) -> dict[str, Any]:
    """Read every photo of a folder once, and say what training would make of them.

    Args:
        directory: folder with photos and, normally, ``metadata.csv``.
        label: the column that makes two photos a positive pair, or ``user_id``.
        seed: of the held-out choice, as in training.
        progress: draw a progress bar on standard error.

    Returns:
        JSON-ready: ``label``; ``listed``, the :func:`counts` of all photos listed correctly;
        ``splits``, the same photos by the ``split`` column; ``dataset``, the :func:`figures` of
        what is trained on, ``None`` if there are problems; ``problems`` that stop training, each
        with ``line``, ``column``, ``message``; ``unreadable`` photos, each with its ``reason``;
        ``duplicates``, groups of photos with equal bytes; ``warnings``, sentences.

    Raises:
        InputError: no such folder, no photos in it, or a negative seed.
    """
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}")
    photos, problems = check_folder(directory, label)
    dataset = None
    if not problems:
        try:
            dataset = build_dataset(photos, label, seed)
        except InputError as error:
            problems.append(Problem(None, "", str(error)))
    digests, unreadable = _read_all([photo.path for photo in photos], progress)
    if photos and len(unreadable) == len(photos):
        problems.append(Problem(None, "", "none of the photos can be read"))
    sides = _sides(photos, dataset)
    duplicates = [_duplicate(group, sides, label, directory) for group in _groups(photos, digests)]
    return {
        "label": label,
        "listed": counts(photos, label),
        "splits": _column_counts(photos, SPLIT_COLUMN),
        "dataset": figures(dataset) if dataset else None,
        "problems": [problem._asdict() for problem in problems],
        "unreadable": [
            {"photo": _name(path, directory), "reason": reason}
            for path, reason in unreadable.items()
        ],
        "duplicates": duplicates,
        "warnings": [
            *(_class_warnings(dataset) if dataset else ()),
            *_content_warnings(duplicates, len(unreadable)),
        ],
    }


# --- what is in the files


def _read_all(paths: Sequence[Path], progress: bool) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The SHA-256 of every readable photo, and why the others are not. No pixels are kept."""
    digests, unreadable = {}, {}
    with (
        ThreadPool() as pool,  # decoders release the interpreter's lock
        tqdm(
            total=len(paths), desc="reading", unit="photo", disable=not (progress and paths)
        ) as bar,
    ):
        for path, (digest, reason) in zip(
            paths, pool.imap(_read, paths, chunksize=_CHUNK), strict=True
        ):
            if reason:
                unreadable[path] = reason
            else:
                digests[path] = digest
            bar.update()
    return digests, unreadable


def _read(path: Path) -> tuple[bytes, str]:
    """The SHA-256 of a photo, and the reason if it cannot be used, else an empty text."""
    try:
        content = path.read_bytes()
        decode(content)
    except OSError as error:
        return b"", error.strerror or str(error)
    except PhotoError as error:
        return b"", str(error)
    return hashlib.sha256(content).digest(), ""


def _groups(photos: Iterable[Photo], digests: Mapping[Path, bytes]) -> list[list[Photo]]:
    """Readable photos with equal bytes, where there are two or more."""
    groups = defaultdict(list)
    for photo in photos:
        if photo.path in digests:
            groups[digests[photo.path]].append(photo)
    return [group for group in groups.values() if len(group) > 1]


def _sides(photos: Iterable[Photo], dataset: Dataset | None) -> dict[Path, str]:
    """Which side of the split each photo is on, as far as that is known."""
    if dataset is None:
        stated = ((photo.path, photo.labels.get(SPLIT_COLUMN)) for photo in photos)
        return {path: side for path, side in stated if side}
    return {
        photo.path: side
        for side, group in (("train", dataset.train), ("validation", dataset.validation))
        for photo in group
    }


def _duplicate(
    group: Sequence[Photo], sides: Mapping[Path, str], label: str, directory: Path
) -> dict[str, list[str]]:
    paths = [photo.path for photo in group]
    classes = {class_of(photo, label) or "" for photo in group}
    return {
        "photos": [_name(path, directory) for path in paths],
        "users": sorted({photo.user_id for photo in group}),
        "classes": sorted(classes),
        "splits": sorted({sides[path] for path in paths if path in sides}),
    }


def _name(path: Path, directory: Path) -> str:
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path)


# --- what deserves a look


def _class_warnings(dataset: Dataset) -> Iterator[str]:
    label = dataset.label
    train, validation = (
        Counter(class_of(photo, label) or "" for photo in side)
        for side in (dataset.train, dataset.validation)
    )
    if label == USER_LABEL:
        if alone := dataset.dropped["only photo of its user"]:
            yield f"{alone} user(s) have one photo, which makes no positive pair: left out"
    else:  # people are in one of the splits only, and have few photos
        if missing := sorted(set(train) - set(validation)):
            yield f"{_listed(missing)}: no photo in validation, so they are not measured"
        if unseen := sorted(set(validation) - set(train)):
            yield f"{_listed(unseen)}: in validation, but no photo to train on"
        if few := sorted(name for name, count in train.items() if count < FEW_PHOTOS):
            yield (
                f"{_listed(few)}: fewer than {FEW_PHOTOS} photos to train on; a batch takes "
                f"{FEW_PHOTOS} of a class and repeats them"
            )
        most, least = max(train.items(), key=_by_count), min(train.items(), key=_by_count)
        if most[1] >= IMBALANCE * least[1]:
            yield (
                f"{most[0]} has {most[1] / least[1]:.1f} times as many photos to train on as "
                f"{least[0]} ({most[1]:,} and {least[1]:,})"
            )
    if strangers := dataset.dropped["generated of an unknown person"]:
        yield (
            f"{strangers} generated photo(s) do not say whom they show (a listed user_id, and a "
            "listed source of the same person): left out, it could be somebody held out"
        )


def _by_count(item: tuple[str, int]) -> int:
    return item[1]


def _content_warnings(duplicates: Sequence[Mapping[str, Any]], unreadable: int) -> Iterator[str]:
    if unreadable:
        yield f"{unreadable} photo(s) cannot be read: left out"
    people = sum(len(group["users"]) > 1 for group in duplicates)
    sides = sum(len(group["splits"]) > 1 for group in duplicates)
    classes = sum(len(group["classes"]) > 1 for group in duplicates)
    if people:
        yield f"{people} photo(s) are listed under two or more users: one of them is wrong"
    if sides:
        yield f"{sides} photo(s) are in training and in validation: figures will be too good"
    if classes and people < classes:
        yield f"{classes} photo(s) are listed twice with different labels"


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    shown = separator.join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


# --- for people


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what a person wants to know, and all that has to be put right."""
    # Names come from a file: they are not markup, and a line is a line for grep.
    console = Console(markup=False, highlight=False)
    if summary["listed"]["photos"]:
        console.print(_title(summary), style="italic")
        console.print(_table(summary))
    duplicates = [_duplicate_line(group) for group in summary["duplicates"]]
    if len(duplicates) > _SHOWN:
        more = len(duplicates) - _SHOWN
        duplicates[_SHOWN:] = [f"and {more} more; --json lists them all"]
    _print_list(console, "Equal content", duplicates)
    unreadable = [f"{entry['photo']}: {entry['reason']}" for entry in summary["unreadable"]]
    _print_list(console, "Cannot be read", unreadable)
    _print_list(console, "Worth a look", summary["warnings"])
    problems = [str(Problem(**problem)) for problem in summary["problems"]]
    _print_list(console, f"{len(problems)} problem(s) to put right before training", problems)
    if not problems:
        console.print("\nready to train", style="green")


def _print_list(console: Console, heading: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"\n{heading}:", style="bold")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


def _duplicate_line(group: Mapping[str, Any]) -> str:
    flags = {
        "different users": group["users"],
        "training and validation": group["splits"],
        "different labels": group["classes"],
    }
    wrong = ", ".join(flag for flag, values in flags.items() if len(values) > 1)
    return _listed(group["photos"], " = ") + (f"  ({wrong})" if wrong else "")


def _table(summary: Mapping[str, Any]) -> Table:
    parts = _parts(summary)
    table = Table(caption=_left_out(summary), caption_justify="left")
    table.add_column("")
    for heading in parts:
        table.add_column(heading, justify="right")
    for heading in ("photos", "users", "generated"):
        table.add_row(heading, *(f"{part[heading]:,}" for part in parts.values()))
    for heading, rows in _sections(summary).items():
        table.add_section()
        table.add_row(heading, style="bold")
        for value, numbers in rows.items():
            table.add_row(f"  {value}", *(f"{number:,}" if number else "-" for number in numbers))
    return table


def _title(summary: Mapping[str, Any]) -> str:
    listed = summary["listed"]
    return (
        f"{listed['photos']:,} photos of {listed['users']:,} users, classes by {summary['label']}"
    )


def _left_out(summary: Mapping[str, Any]) -> str | None:
    dropped = summary["dataset"]["dropped"] if summary["dataset"] else {}
    reasons = [f"{count:,} {reason}" for reason, count in dropped.items() if count]
    return f"left out: {', '.join(reasons)}" if reasons else None


def _parts(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The counts to stand side by side."""
    dataset = summary["dataset"]
    sides = {side: dataset[side] for side in ("train", "validation")} if dataset else {}
    return {"listed": summary["listed"], **sides}


def _sections(summary: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Column → value → how many photos of each of the :func:`_parts`; last, users by photos."""
    parts = _parts(summary).values()
    sections = {
        column: {
            value or "(empty)": [part["columns"].get(column, {}).get(value, 0) for part in parts]
            for value in values
        }
        for column, values in summary["listed"]["columns"].items()
    }
    if summary["dataset"] is None and set(summary["splits"]) != {""}:
        sections[SPLIT_COLUMN] = {
            value or "(empty)": [number] for value, number in summary["splits"].items()
        }
    sections[_USERS_SECTION] = {
        size: [part["photos_per_user"].get(size, 0) for part in parts]
        for size in summary["listed"]["photos_per_user"]
    }
    return {heading: _shortened(rows) for heading, rows in sections.items()}


def _shortened(rows: dict[str, list[int]]) -> dict[str, list[int]]:
    """The rows of the largest values, and one for all others."""
    if len(rows) <= _SHOWN:
        return rows
    largest = sorted(rows, key=lambda value: -rows[value][0])[: _SHOWN - 1]
    rest = [numbers for value, numbers in rows.items() if value not in largest]
    shown = {value: numbers for value, numbers in rows.items() if value in largest}
    return {**shown, f"({len(rest)} others)": [sum(column) for column in zip(*rest, strict=True)]}


def draw_summary(summary: Mapping[str, Any], picture: Path) -> None:
    """Draw the counts as bars, PNG or SVG by the file's ending.

    Raises:
        InputError: the file has another ending or cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    check_picture(picture)
    installed = {font.name for font in fontManager.ttflist}  # it complains about any other
    style: dict[Any, Any] = {
        "font.family": ["DejaVu Sans", *(name for name in _KOREAN_FONTS if name in installed)],
        "svg.hashsalt": "vibematch",  # the same bytes each time
    }
    metadata = {"Date": None} if picture.suffix == ".svg" else None
    content = io.BytesIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        # one for each syllable, where none of the fonts is installed
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        _figure(summary).savefig(content, format=picture.suffix[1:], dpi=150, metadata=metadata)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(picture, content.getvalue())
    except OSError as error:
        raise InputError(f"{picture} cannot be written ({error.strerror})") from error


def _figure(summary: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    sections = _sections(summary)
    ordered = list(sections.items())
    pairs = [ordered[start : start + 2] for start in range(0, len(ordered), 2)]
    heights = [max(len(rows) for _, rows in pair) for pair in pairs]  # in bars
    size = (10, 0.26 * sum(heights) + 0.8 * len(pairs) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_title(summary), fontsize=13, fontweight="bold", parse_math=False)
    grid = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=[h + 1.5 for h in heights])
    for line, pair, height in zip(grid, pairs, heights, strict=True):
        for panel, (heading, rows) in zip(line, pair, strict=False):
            _draw_bars(panel, heading, rows, height)
        for panel in line[len(pair) :]:
            panel.set_axis_off()
    panels = grid.ravel()
    handles, names = panels[0].get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def check_picture(picture: Path) -> None:
    """Refuse a picture that could not be written, before minutes of work.

    Raises:
        InputError: the file's ending is not one of :data:`PICTURE_SUFFIXES`.
    """
    if picture.suffix not in PICTURE_SUFFIXES:
        raise InputError(f"{picture} must end in {' or '.join(PICTURE_SUFFIXES)}")


def _draw_bars(axes: Axes, heading: str, rows: Mapping[str, Sequence[int]], height: int) -> None:
    """Draw one section; ``height`` is the room in bars, so that bars are equally thick."""
    totals = [numbers[0] for numbers in rows.values()]
    if heading == _USERS_SECTION or len(next(iter(rows.values()))) == 1:
        bars = {"listed": totals}
    else:
        _, train, validation = (list(column) for column in zip(*rows.values(), strict=True))
        left_out = [total - t - v for total, t, v in zip(totals, train, validation, strict=True)]
        bars = {"train": train, "validation": validation, "left out": left_out}
        bars = {name: widths for name, widths in bars.items() if any(widths)}
    starts = [0] * len(totals)
    positions = range(len(totals))
    for name, widths in bars.items():
        axes.barh(positions, widths, left=starts, label=name, color=_COLOURS[name], height=0.7)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for position, total in zip(positions, totals, strict=True):
        axes.annotate(f"{total:,}", (total, position), (4, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
    axes.set_yticks(positions, [_cut(value) for value in rows], fontsize=9, parse_math=False)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_title(heading, loc="left", fontsize=11, parse_math=False)
    axes.set_xlim(0, max(totals) * 1.15)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
