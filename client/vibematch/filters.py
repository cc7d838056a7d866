"""Who qualifies: attributes and preferences of all users as columns in memory.

A search has to ask "who of these is M, 25 to 35, and looks for someone like me?" of some hundred
users, or of all of them, in a fraction of a millisecond. So each attribute is an array with one
element per row of the index, in which compiled loops look (``_scan.c``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vibematch import scan
from vibematch.attributes import Condition, Value, Where, as_bound, choices_of

if TYPE_CHECKING:
    from vibematch._scan import Condition as Test

Rows: TypeAlias = npt.NDArray[np.intp]
Mask: TypeAlias = npt.NDArray[np.bool_]
Column: TypeAlias = npt.NDArray[Any]

_FIRST_CAPACITY: Final = 1024
_FEW: Final = 8
_FEW_ROWS: Final = 16_384
_FEW_SHARE: Final = 1 / 8
_SORTED_FROM: Final = 4_096
_MOST_CODED_NUMBERS: Final = 4_096
_MOST_COMPILED: Final = 64
_MOST_REMEMBERED_CODES: Final = 65_536
_MOST_REMEMBERED_CHOICES: Final = 1_000
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_MOST_UNSORTED: Final = 0.02
"""Of all rows; so many are tried one by one when a selective condition is compiled."""
# Codes of an attribute: missing, some number, then the values seen. Codes of what is preferred:
# anything, a range of numbers, then the sets of values seen.
_MISSING: Final = 0
_ANYTHING: Final = 0
_NUMBER: Final = 1
_FIRST_CODE: Final = 2
_NOBODY: Final = -1


class Filter(NamedTuple):
    """What a match has to be.

    Attributes:
        where: conditions on the match's attributes, all of which have to hold.
        accepted_by: somebody's attributes, which the match's preferences have to accept; ``None``
            if they do not matter.
    """

    where: Sequence[tuple[str, Condition]] = ()
    accepted_by: Mapping[str, Value] | None = None

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return bool(self.where) or self.accepted_by is not None


class Columns:
    """Attributes and preferences by row."""

    def __init__(self) -> None:
        self._attributes: dict[str, _Attribute] = {}
        self._preferences: dict[str, _Preference] = {}
        self._capacity = _FIRST_CAPACITY

    def put(self, row: int, attributes: Mapping[str, Value], preferences: Where) -> None:
        """Set all that is known about the user in a row."""
        self.make_room(row + 1)
        for name in attributes.keys() - self._attributes.keys():
            self._attributes[name] = _Attribute(self._capacity)
        for name in preferences.keys() - self._preferences.keys():
            self._preferences[name] = _Preference(self._capacity)
        for name, attribute in self._attributes.items():
            attribute.put(row, attributes.get(name))
        for name, preference in self._preferences.items():
            if name in preferences:
                preference.put(row, preferences[name])
            else:
                preference.clear(row)

    def about(self, row: int) -> tuple[dict[str, Value], dict[str, Condition]]:
        """Attributes and preferences of the user in a row; numbers as float64, lists as sets."""
        attributes = {
            name: value
            for name, each in self._attributes.items()
            if (value := each.value(row)) is not None
        }
        preferences = {
            name: each.condition(row)
            for name, each in self._preferences.items()
            if each.is_set(row)
        }
        return attributes, preferences

    def make_room(self, count: int) -> None:
        """Let nothing be known about the users in the first ``count`` rows that were not put."""
        if count > self._capacity:
            self._capacity = max(2 * self._capacity, count)
            for attribute in self._attributes.values():
                attribute.grow(self._capacity)
            for preference in self._preferences.values():
                preference.grow(self._capacity)

    def take(self, rows: Rows) -> Columns:
        """A copy of some rows, in the given order."""
        taken = Columns()
        taken._capacity = max(_FIRST_CAPACITY, len(rows))
        for name, attribute in self._attributes.items():
            taken._attributes[name] = attribute.take(rows, taken._capacity)
        for name, preference in self._preferences.items():
            taken._preferences[name] = preference.take(rows, taken._capacity)
        return taken

    def keep_sorted(self, count: int) -> None:
        """Bring up to date what :meth:`selector` looks things up in, if too much of it is not.

        Searches may go on meanwhile, changes not.

        Args:
            count: how many rows there are.
        """
        for attribute in self._attributes.values():
            attribute.keep_sorted(count)

    def selector(self, wanted: Filter, alive: Mask | None = None) -> Selector:
        """What tells who meets a filter, for as long as nothing is put.

        Args:
            wanted: the filter.
            alive: of rows, those that may qualify at all; ``None``: all that were put.
        """
        tests: list[Test] = []
        fewest: Few | None = None
        sought: Test | None = None
        for name, condition in wanted.where:
            attribute = self._attributes.get(name)
            if attribute is not None:
                test, few = attribute.compiled(condition)
                tests.append(test)
                if few is not None and (fewest is None or few.size < fewest.size):
                    fewest, sought = few, test
            elif not accepts(condition, None):  # nobody has such an attribute
                tests.append((np.zeros(self._capacity, bool),))
        if wanted.accepted_by is not None:
            for name, preference in self._preferences.items():
                tests += preference.compiled(wanted.accepted_by.get(name))
        if alive is not None:
            tests.append((alive,))
        if fewest is not None and len(tests) > 1:
            others = [test for test in tests if test is not sought]
            fewest = fewest._replace(tests=fewest.tests + others)
        return Selector(tests, fewest)


class Few(NamedTuple):
    """A few rows in which to look, found but not put together yet.

    Attributes:
        parts: the rows, in no order; some may be there more than once.
        tests: of these rows, those qualify that pass all of them.
        size: how many rows these are, at most.
    """

    parts: list[Column]
    tests: list[Test]
    size: int


class Selector(NamedTuple):
    """Who qualifies: whoever passes all tests.

    Attributes:
        tests: for the compiled loops.
        few: rows among which all of them are; ``None`` where none of the conditions is known to be
            met by a few only.
    """

    tests: list[Test]
    few: Few | None = None

    def places(self, rows: Rows) -> Rows:
        """Of some rows, the places of those that qualify, ascending."""
        places = np.empty(len(rows), np.intp)
        return places[: scan.select(self.tests, rows, places)]


def accepts(condition: Condition, value: Value | None) -> bool:
    """Whether a value (``None``: no value) meets a condition; what :class:`Columns` does fast.

    Numbers, to which true and false belong, are compared as float64.
    """
    if isinstance(condition, tuple):
        low, high = map(_as_float, condition)
        return isinstance(value, int | float) and low <= float(value) <= high
    return any(
        float(choice) == float(value)
        if isinstance(choice, int | float) and isinstance(value, int | float)
        else choice == value
        for choice in _choices(condition)
    )


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # of larger integers
        return as_bound(number)


def _choices(condition: Condition) -> frozenset[Value | None]:
    return frozenset(choices_of(condition))


class _Lookup(NamedTuple):
    """The first rows in the order of what they hold.

    Attributes:
        rows: how many.
        by_code: those without numbers.
        starts: where the rows of each code begin among these, and where the last one's end.
        by_number: those with numbers.
        numbers: theirs.
    """

    rows: int
    by_code: npt.NDArray[np.int32]
    starts: Column
    by_number: npt.NDArray[np.int32]
    numbers: Column

    @classmethod
    def of(cls, codes: Column, numbers: Column) -> _Lookup:
        """By the codes and the numbers of the rows."""
        is_number = ~np.isnan(numbers)
        coded, counted = np.flatnonzero(~is_number), np.flatnonzero(is_number)
        coded = coded[np.argsort(codes[coded], kind="stable")]
        counted = counted[np.argsort(numbers[counted], kind="stable")]
        ends = np.cumsum(np.bincount(codes[coded]))
        return cls(
            len(codes),
            coded.astype(np.int32),
            np.append(0, ends).astype(np.int32),
            counted.astype(np.int32),
            numbers[counted],
        )

    def with_code(self, code: int) -> npt.NDArray[np.int32]:
        if not 0 <= code < len(self.starts) - 1:
            return self.by_code[:0]
        return self.by_code[self.starts[code] : self.starts[code + 1]]

    def between(self, low: float, high: float) -> npt.NDArray[np.int32]:
        first, end = scan.span(self.numbers, low, high)
        return self.by_number[first:end]


class _Codes(dict[Any, int]):
    """Value → code, numbered from the first code on in the order in which values came."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Any] = []

    def add(self, value: object) -> int:
        """The code of a value, which may be a new one."""
        if value not in self:
            self[value] = len(self) + _FIRST_CODE
            self._values.append(value)
        return self[value]

    def value(self, code: int) -> Any:
        return self._values[code - _FIRST_CODE]

    def none_allowed(self) -> Mask:
        """A table of all codes, in which to mark those that are."""
        return np.zeros(len(self) + _FIRST_CODE, bool)


class _Compiled(dict[Any, Any]):
    """What conditions were made into lately: apps ask the same ones again and again.

    There is a new one when rows were sorted: what a search makes meanwhile goes into the old one.
    Other changes exclude searches.
    """

    def remember(self, condition: object, compiled: object, codes: _Codes) -> None:
        """Unless it would take much memory: a table of all codes, or many choices."""
        choices = len(condition) if isinstance(condition, frozenset) else 1
        if len(codes) > _MOST_REMEMBERED_CODES or choices > _MOST_REMEMBERED_CHOICES:
            return
        if len(self) >= _MOST_COMPILED:
            self.clear()
        self[condition] = compiled


class _Attribute:
    """One attribute: a code per row, which says which value it is, and a number per row.

    Numbers have codes as long as they are few.
    """

    def __init__(self, capacity: int) -> None:
        self._count = 0
        self._lookup: _Lookup | None = None
        self._changed: set[int] = set()  # rows in it whose value is another since
        self._compiled = _Compiled()
        self._code_of = _Codes()
        self._coded_numbers = 0  # -1: they are too many
        self._codes = np.full(capacity, _MISSING, np.int32)
        self._numbers = np.full(capacity, math.nan)

    def grow(self, capacity: int) -> None:
        self._compiled.clear()
        self._codes = _longer(self._codes, capacity, _MISSING)
        self._numbers = _longer(self._numbers, capacity, math.nan)

    def take(self, rows: Rows, capacity: int) -> _Attribute:
        taken = _Attribute(capacity)
        taken._codes[: len(rows)], kept = _recoded(self._codes[rows])
        for value, code in self._code_of.items():
            if code in kept:
                taken._code_of.add(value)
        taken._numbers[: len(rows)] = self._numbers[rows]
        taken._count = len(rows)
        taken._coded_numbers = self._coded_numbers
        return taken

    def keep_sorted(self, count: int) -> None:
        known = 0 if self._lookup is None else self._lookup.rows
        unsorted = count - known + len(self._changed)
        if count < _SORTED_FROM or unsorted <= _MOST_UNSORTED * count:
            return
        self._lookup = _Lookup.of(self._codes[:count], self._numbers[:count])
        self._changed = set()  # read first: a search in between sees too many rows, not too few
        self._compiled = _Compiled()

    def compiled(self, condition: Condition) -> tuple[Test, Few | None]:
        """What tells who meets a condition, and a few among whom these are, if they are few."""
        if isinstance(condition, tuple):
            key: Condition = tuple(condition)
        else:  # lists have no hash
            key = condition if type(condition) in _PLAIN else _choices(condition)
        compiled = self._compiled
        known = compiled.get(key)
        if known is None:
            if isinstance(key, tuple):
                known = self._within(*map(_as_float, key))
            else:
                known = self._one_of(_choices(key))
            compiled.remember(key, known, self._code_of)
        return known

    def _within(self, low: float, high: float) -> tuple[Test, Few | None]:
        changed, lookup = self._changed, self._lookup  # in this order: see keep_sorted
        test = self._numbers, low, high
        if lookup is None:
            return test, None
        return test, self._narrowed(test, [lookup.between(low, high)], lookup.rows, changed)

    def _one_of(self, choices: frozenset[Value | None]) -> tuple[Test, Few | None]:
        changed, lookup = self._changed, self._lookup
        codes = [_MISSING] if None in choices else []
        codes += [self._code_of.get(one, _NOBODY) for one in choices if isinstance(one, str)]
        numbers = [one for one in choices if not (one is None or isinstance(one, str))]
        amounts = sorted(set(map(_as_float, numbers)))  # two of them may be one as float64
        test = self._test(codes, amounts)
        if lookup is None or len(codes) + len(amounts) > _FEW:
            return test, None
        found = [lookup.with_code(code) for code in codes]
        found += [lookup.between(amount, amount) for amount in amounts]
        return test, self._narrowed(test, found, lookup.rows, changed)

    def _test(self, codes: list[int], amounts: list[float]) -> Test:
        if self._coded_numbers >= 0:
            codes = [*codes, *(self._code_of.get(amount, _NOBODY) for amount in amounts)]
            amounts = []
        allowed = self._code_of.none_allowed()
        allowed[[code for code in codes if code != _NOBODY]] = True
        if not amounts:
            return self._codes, allowed
        return self._codes, allowed, self._numbers, np.array(amounts)

    def _narrowed(
        self, test: Test, found: list[Column], known: int, changed: set[int]
    ) -> Few | None:
        """Rows among which all are that pass a test, ``None`` if these are many.

        Args:
            test: is left to try on them only if some may not pass it.
            found: those of the first rows that passed it when these were sorted.
            known: how many rows these are.
            changed: those of them that hold something else since.
        """
        size = sum(map(len, found))
        if size > min(_FEW_ROWS, _FEW_SHARE * known):
            return None
        if changed or self._count > known:
            unsorted = np.arange(known, self._count)
            others = np.concatenate([np.fromiter(changed, np.intp), unsorted])
            found.append(others[Selector([test]).places(others)])
            size += len(found[-1])
        return Few(found, [test] if changed else [], size)

    def put(self, row: int, value: Value | None) -> None:
        self._compiled.clear()
        self._count = max(self._count, row + 1)
        code, number = _MISSING, math.nan
        if isinstance(value, str):
            code = self._code_of.add(value)
        elif value is not None:
            number = float(value)
            code = self._code_of_number(number)
        if self._lookup is not None and row < self._lookup.rows:
            is_other = self._codes[row] != code or (
                code == _NUMBER and self._numbers[row] != number
            )
            if is_other:
                self._changed.add(row)
        self._codes[row], self._numbers[row] = code, number

    def value(self, row: int) -> Value | None:
        code = int(self._codes[row])
        if code < _FIRST_CODE:
            return float(self._numbers[row]) if code == _NUMBER else None
        value: Value = self._code_of.value(code)
        return value

    def _code_of_number(self, number: float) -> int:
        if number not in self._code_of:
            if not 0 <= self._coded_numbers < _MOST_CODED_NUMBERS:
                self._coded_numbers = -1
                return _NUMBER
            self._coded_numbers += 1
        return self._code_of.add(number)


class _Preference:
    """What users want of one attribute: a code per row for sets of values, bounds for ranges."""

    def __init__(self, capacity: int) -> None:
        self._compiled = _Compiled()
        self._code_of = _Codes()  # of sets
        self._codes_with: dict[str | float | None, list[int]] = {}  # choice → sets it is in
        self._codes = np.full(capacity, _ANYTHING, np.int32)
        self._low = np.full(capacity, -math.inf)
        self._high = np.full(capacity, math.inf)

    def grow(self, capacity: int) -> None:
        self._compiled.clear()
        self._codes = _longer(self._codes, capacity, _ANYTHING)
        self._low = _longer(self._low, capacity, -math.inf)
        self._high = _longer(self._high, capacity, math.inf)

    def take(self, rows: Rows, capacity: int) -> _Preference:
        taken = _Preference(capacity)
        taken._codes[: len(rows)], kept = _recoded(self._codes[rows])
        for wish, code in self._code_of.items():
            if code in kept:
                taken._code(wish)
        taken._low[: len(rows)] = self._low[rows]
        taken._high[: len(rows)] = self._high[rows]
        return taken

    def clear(self, row: int) -> None:
        self._compiled.clear()
        self._codes[row], self._low[row], self._high[row] = _ANYTHING, -math.inf, math.inf

    def put(self, row: int, condition: Condition) -> None:
        self.clear(row)
        if isinstance(condition, tuple):
            self._codes[row] = _NUMBER
            self._low[row], self._high[row] = map(_as_float, condition)
        else:
            self._codes[row] = self._code(_choices(condition))

    def _code(self, wish: frozenset[Value | None]) -> int:
        is_new = wish not in self._code_of
        code = self._code_of.add(wish)
        if is_new:
            for choice in {_comparable(choice) for choice in wish}:
                self._codes_with.setdefault(choice, []).append(code)
        return code

    def is_set(self, row: int) -> bool:
        return bool(self._codes[row] != _ANYTHING)

    def condition(self, row: int) -> Condition:
        code = int(self._codes[row])
        if code == _NUMBER:
            return float(self._low[row]), float(self._high[row])
        wish: Condition = self._code_of.value(code)
        return wish

    def compiled(self, value: Value | None) -> list[Test]:
        """What tells who accepts a value."""
        compiled = self._compiled
        known = compiled.get(value)
        if known is None:
            known = list(self._tests(value))
            compiled.remember(value, known, self._code_of)
        return known

    def _tests(self, value: Value | None) -> Iterator[Test]:
        is_number = isinstance(value, int | float)
        if self._code_of or not is_number:  # else all wishes are ranges
            allowed = self._code_of.none_allowed()
            allowed[_ANYTHING], allowed[_NUMBER] = True, is_number
            allowed[self._codes_with.get(_comparable(value), [])] = True
            yield self._codes, allowed
        if isinstance(value, int | float):
            number = _as_float(value)
            yield self._low, -math.inf, number
            yield self._high, number, math.inf


def _comparable(value: Value | None) -> str | float | None:
    return float(value) if isinstance(value, int | float) else value


def _recoded(codes: Column) -> tuple[Column, dict[int, int]]:
    """Codes without those that no row has any more, and old code → new code."""
    used = np.unique(codes[codes >= _FIRST_CODE])
    table = np.arange(int(codes.max(initial=0)) + 1)
    table[used] = np.arange(len(used)) + _FIRST_CODE
    return table[codes], {int(code): int(table[code]) for code in used}


def _longer(column: Column, capacity: int, missing: float) -> Column:
    longer = np.full(capacity, missing, column.dtype)
    longer[: len(column)] = column
    return longer
