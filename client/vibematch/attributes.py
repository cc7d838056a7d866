"""What users are, and what they want others to be: attributes, and conditions on them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

from vibematch.errors import InputError

Value: TypeAlias = str | int | float | bool
"""What an attribute can be; numbers are compared as float64, ``True`` as 1."""
Condition: TypeAlias = (
    Value | Sequence[Value | None] | AbstractSet[Value | None] | tuple[float, float] | None
)
"""What a filter asks of an attribute: a value, ``None`` (the attribute is missing), one of a list
or set (which may hold ``None``), or a ``(low, high)`` range of numbers, ends included."""
Where: TypeAlias = Mapping[str, Condition]


_LONGEST_TEXT: Final = 100_000
# "007", "1_000" and "nan" are names, not numbers.
_INTEGER: Final = re.compile("-?(0|[1-9][0-9]{0,18})")
_DECIMAL: Final = re.compile(
    r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,300}(e[+-][0-9]{1,2})?|e[+-][0-9]{1,2})"
)


def value_from_text(text: str) -> Value:
    """Read an attribute from a CSV cell or the command line.

    What looks like a number becomes one, ``true`` and ``false`` become what they say.
    """
    if text in {"true", "false"}:
        return text == "true"
    if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def check_attributes(attributes: Mapping[str, Value]) -> None:
    """Refuse attributes that could not be stored and found again.

    Raises:
        InputError: naming the attribute.
    """
    if not isinstance(attributes, Mapping):
        raise InputError(f"attributes must be a dict of values by name, got {attributes!r}")
    for name, value in attributes.items():
        _check_name(name)
        _check_value(name, value)


def check_where(where: Where) -> None:
    """Refuse conditions that make no sense.

    Raises:
        InputError: naming the attribute.
    """
    if not isinstance(where, Mapping):
        raise InputError(f"conditions must be a dict by attribute name, got {where!r}")
    for name, condition in where.items():
        _check_name(name)
        if isinstance(condition, tuple):
            _check_range(name, condition)
            continue
        for choice in choices_of(condition):
            if choice is not None:
                _check_value(name, choice)


def choices_of(condition: Condition) -> Iterable[Value | None]:
    """What an attribute may be by a condition that is not a range."""
    is_text = isinstance(condition, str | bytes)  # bytes are refused later, as one thing
    if is_text or not isinstance(condition, Sequence | AbstractSet):
        return [condition]  # type: ignore[list-item]
    return condition


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InputError(f"an attribute's name must be printable text, got {name!r}")


def _check_value(name: str, value: object) -> None:
    if isinstance(value, str):
        if "\0" in value or not is_unicode(value):
            raise InputError(f"attribute {name!r} holds broken text: {value!r}")
        if len(value) > _LONGEST_TEXT:
            raise InputError(f"attribute {name!r} must have at most {_LONGEST_TEXT:,} characters")
    elif isinstance(value, int):  # as are true and false
        if not -(2**63) <= value < 2**63:
            raise InputError(f"attribute {name!r} is too large an integer")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"attribute {name!r} must be finite, got {value}")
    else:
        raise InputError(
            f"attribute {name!r} must be text, a number or true/false, got {type(value).__name__}"
        )


def _check_range(name: str, bounds: tuple[object, ...]) -> None:
    numbers = [bound for bound in bounds if isinstance(bound, (int, float)) and bound == bound]
    if len(bounds) != 2 or len(numbers) != 2:
        raise InputError(
            f"the range for {name!r} must be (low, high), two numbers (one-of is a list), got "
            f"{tuple(map(as_bound, bounds))!r}"  # type: ignore[arg-type]  # no number: as it is
        )
    low, high = map(as_bound, numbers)
    if low > high:
        raise InputError(f"the range for {name!r} is upside down: {low} is above {high}")


def as_bound(number: float) -> float:
    """A bound that JSON can hold: integers beyond every float are as good as infinite."""
    if isinstance(number, int) and abs(number) > sys.float_info.max:
        return math.inf if number > 0 else -math.inf
    return number


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which no encoding can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


to_json: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True).encode


def where_to_json(where: Where) -> str:
    """Conditions as JSON that :func:`where_from_json` reads back as they were."""
    return to_json({name: _condition_to_json(condition) for name, condition in where.items()})


def _condition_to_json(condition: Condition) -> object:
    """A value as it is; anything else as an object that tells its kind."""
    if isinstance(condition, tuple):
        # JSON has no infinities
        bounds = [
            bound if math.isfinite(bound) else str(bound) for bound in map(as_bound, condition)
        ]
        return {"range": bounds}
    if isinstance(condition, AbstractSet):
        return {"set": sorted(condition, key=lambda choice: (str(type(choice)), str(choice)))}
    choices = choices_of(condition)
    return {"list": list(choices)} if choices is condition else condition


def where_from_json(text: str) -> dict[str, Condition]:
    """What :func:`where_to_json` wrote."""
    return {name: _condition_from_json(content) for name, content in json.loads(text).items()}


def _condition_from_json(content: Any) -> Condition:
    if not isinstance(content, dict):
        value: Value | None = content
        return value
    ((kind, parts),) = content.items()
    if kind == "range":
        low, high = (float(part) if isinstance(part, str) else part for part in parts)
        return low, high
    choices: list[Value | None] = parts
    return set(choices) if kind == "set" else choices
