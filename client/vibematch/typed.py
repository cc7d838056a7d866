"""What people type: conditions on the command line, and tables of users."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from vibematch.attributes import Condition, Value, Where, check_where, value_from_text
from vibematch.errors import InputError
from vibematch.photos import nfc

PREFERS: Final = "prefers:"
"""Columns of a table that begin so hold conditions on the others."""


class Table(NamedTuple):
    """What a table says about users, by user id.

    Attributes:
        attributes: name → cell, empty cells left out.
        preferences: nobody's if the table has no columns for them.
    """

    attributes: dict[str, dict[str, str]]
    preferences: dict[str, Where]


def parse_where(text: str) -> Where:
    """Read conditions as typed: ``gender=F,age=25..35,region=Seoul|Busan``.

    A range may be open on one side: ``age=25..``. Nothing stands for a missing attribute:
    ``region=``, or ``region=Seoul|`` for Seoul or none.

    Raises:
        InputError: naming the condition that makes no sense.
    """
    conditions: dict[str, Condition] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals):
            raise InputError(f"a condition must be NAME=VALUE, got {part!r}")
        if name in conditions:
            raise InputError(f"there are two conditions on {name!r}; keep one")
        conditions[name] = _condition(name, value)
    return conditions


def _condition(name: str, text: str) -> Condition:
    if ".." in text:
        return _range(name, text)
    choices = dict.fromkeys(text.split("|"))
    return [value_from_text(choice) if choice else None for choice in choices]


def _range(name: str, text: str) -> tuple[float, float]:
    low, _, high = text.partition("..")
    try:
        return float(low or "-inf"), float(high or "inf")
    except ValueError:
        raise InputError(
            f"a range must be {name}=LOW..HIGH in numbers, got {name}={text}"
        ) from None


def typed(condition: Condition) -> str:
    """A condition as :func:`parse_where` reads it."""
    if isinstance(condition, tuple):
        low, high = (str(bound).removesuffix(".0") for bound in condition)
        return f"{low.removeprefix('-inf')}..{'' if high == 'inf' else high}"
    if condition is None or isinstance(condition, str | int | float):
        return _typed_value(condition) or "|"
    return "|".join(sorted(map(_typed_value, condition))) or "|"


def _typed_value(value: Value | None) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def read_table(csv_path: Path) -> Table:
    """Read a CSV with a ``user_id`` column, attributes, and preferences (``prefers:NAME``).

    Raises:
        InputError: it cannot be read, or holds a condition that makes no sense.
    """
    try:
        with csv_path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{csv_path} cannot be read as a CSV ({error})") from error
    if not rows or "user_id" not in rows[0]:
        raise InputError(f"{csv_path} needs a user_id column and at least one row")
    if any(None in row for row in rows):
        raise InputError(f"{csv_path} has a row with more cells than columns")
    columns = reader.fieldnames or ()
    if len(set(columns)) < len(columns):
        raise InputError(f"{csv_path} has two columns of one name")
    filled: dict[str, dict[str, str]] = {}
    for row in rows:
        user_id = nfc(row.pop("user_id"))
        if not user_id or user_id in filled:
            raise InputError(
                f"{csv_path} has two rows for user {user_id!r}"
                if user_id
                else f"{csv_path} has a row without user_id"
            )
        filled[user_id] = {name: nfc(cell) for name, cell in row.items() if cell}
    table = Table({}, {})
    has_preferences = any(name.startswith(PREFERS) for name in rows[0])
    for user_id, cells in filled.items():
        own = {name: cell for name, cell in cells.items() if not name.startswith(PREFERS)}
        table.attributes[user_id] = own
        if has_preferences:
            table.preferences[user_id] = _wishes(cells, f"{csv_path}, user {user_id!r}")
    return table


def _wishes(cells: Mapping[str, str], place: str) -> Where:
    try:
        wishes = {
            name.removeprefix(PREFERS): _condition(name, cell)
            for name, cell in cells.items()
            if name.startswith(PREFERS)
        }
        check_where(wishes)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return wishes
