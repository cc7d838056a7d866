"""How far a model's labels agree with a person's."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vibematch.errors import InputError
from vibematch_training.annotation.metadata import read_table
from vibematch_training.schema import CATEGORIES

_SHOWN_DISAGREEMENTS: Final = 10

Labels = Mapping[str, Mapping[str, str]]
"""Photo → column → value."""


def agreement(human: Labels, model: Labels) -> dict[str, Any]:
    """Compare two sets of labels, column by column.

    Args:
        human: a person's labels.
        model: the model's; photos and columns in only one of the two are left out.

    Returns:
        For each categorical column with something to compare: ``n``, ``accuracy``,
        ``cohen_kappa`` (Cohen 1960: agreement beyond chance, 1 is perfect, 0 is chance; ``None``
        where chance alone would agree), ``values``, ``confusion`` (rows: human, columns: model, in
        the order of ``values``) and ``disagreements``.
    """
    report: dict[str, Any] = {}
    for column, choices in CATEGORIES.items():
        pairs = {
            photo: (human[photo][column], model[photo][column])
            for photo in human
            if photo in model and column in human[photo] and column in model[photo]
        }
        if not pairs:
            continue
        said, answered = zip(*pairs.values(), strict=True)
        found = {*said, *answered}
        values = [value for value in choices if value in found] + sorted(found - {*choices})
        confusion, kappa = _compared(said, answered, values)
        report[column] = {
            "n": len(pairs),
            "accuracy": sum(a == b for a, b in pairs.values()) / len(pairs),
            "cohen_kappa": kappa,
            "values": values,
            "confusion": confusion,
            "disagreements": [
                {"photo": photo, "human": a, "model": b}
                for photo, (a, b) in pairs.items()
                if a != b
            ],
        }
    return report


def _compared(
    said: Sequence[str], answered: Sequence[str], values: list[str]
) -> tuple[list[list[int]], float | None]:
    """Confusion matrix and kappa; one value everywhere agrees by chance alone: kappa is 0/0."""
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    if len(values) == 1:
        return [[len(said)]], None
    confusion = confusion_matrix(said, answered, labels=values).tolist()
    return confusion, float(cohen_kappa_score(said, answered))


def read_human_labels(csv_path: Path, filepaths: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """A person's labels of some photos: a CSV with ``filename`` and label columns.

    Args:
        csv_path: the CSV.
        filepaths: ``filepath`` → ``filename`` of the photos it may speak of.

    Returns:
        The labels by ``filepath``; empty cells left out.

    Raises:
        InputError: unreadable, without those columns, or naming photos that are not known or not
            unique.
    """
    try:
        columns, rows = read_table(csv_path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{csv_path} cannot be read as a CSV ({error})") from error
    if "filename" not in columns or not {*columns} & {*CATEGORIES}:
        raise InputError(
            f"{csv_path} needs a column filename and at least one of {', '.join(CATEGORIES)}"
        )
    counts = Counter(filepaths.values())
    unknown = sorted({row["filename"] for row in rows if counts[row["filename"]] != 1})
    if unknown:
        raise InputError(
            f"{csv_path} names {len(unknown)} file(s) that the photos do not have exactly once, "
            f"e.g. {unknown[0]!r}"
        )
    found = {filename: filepath for filepath, filename in filepaths.items()}
    return {
        found[row["filename"]]: {name: row[name] for name in CATEGORIES if row.get(name)}
        for row in rows
    }


def print_agreement(report: Mapping[str, Any]) -> None:
    """Show an agreement report as tables."""
    console = Console()
    summary = Table("label", "photos", "accuracy", "Cohen's kappa", title="Agreement with people")
    for column, figures in report.items():
        kappa = figures["cohen_kappa"]
        summary.add_row(
            column,
            f"{figures['n']:,}",
            f"{figures['accuracy']:.3f}",
            "undefined" if kappa is None else f"{kappa:.3f}",
        )
    console.print(summary)
    for column, figures in report.items():
        if figures["disagreements"]:
            console.print(_confusion_table(column, figures))
            console.print(_disagreement_table(column, figures["disagreements"]))


def _confusion_table(column: str, figures: Mapping[str, Any]) -> Table:
    table = Table(title=f"{column}: people in rows, the model in columns")
    table.add_column("", overflow="fold")
    for value in figures["values"]:
        table.add_column(Text(value), justify="right", overflow="fold")
    for value, counts in zip(figures["values"], figures["confusion"], strict=True):
        table.add_row(Text(value), *(str(count) for count in counts))
    return table


def _disagreement_table(column: str, disagreements: list[dict[str, str]]) -> Table:
    shown = disagreements[:_SHOWN_DISAGREEMENTS]
    title = f"{column}: {len(shown)} of {len(disagreements)} disagreement(s)"
    table = Table("photo", "people", "model", title=title)
    for row in shown:
        table.add_row(*(Text(row[name]) for name in ("photo", "human", "model")))
    return table
