from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

_Mask: TypeAlias = npt.NDArray[np.bool_]
_Codes: TypeAlias = npt.NDArray[np.int32]
_Numbers: TypeAlias = npt.NDArray[np.float64]
_Rows: TypeAlias = npt.NDArray[np.intp]
_Users: TypeAlias = tuple[
    npt.NDArray[np.float32], npt.NDArray[np.int8], npt.NDArray[np.float32], float
]
_Match = TypeVar("_Match", bound=tuple[str, float])
_Found: TypeAlias = tuple[bytes, bytes, int, int, int, float]

Condition: TypeAlias = (
    tuple[_Mask]
    | tuple[_Codes, _Mask]
    | tuple[_Numbers, float, float]
    | tuple[_Codes, _Mask, _Numbers, _Numbers]
)

def encode(
    vectors: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    /,
) -> float: ...
def scale(numbers: npt.NDArray[np.float64], unit: npt.NDArray[np.float32], /) -> int: ...
def dots(
    vectors: npt.NDArray[np.float32],
    query: npt.NDArray[np.float32],
    rows: _Rows,
    scores: npt.NDArray[np.float64],
    /,
) -> None: ...
def span(ascending: _Numbers, low: float, high: float, /) -> tuple[int, int]: ...

# What is written must not overlap with what is read.
def select(conditions: list[Condition], rows: _Rows, places: _Rows, /) -> int: ...
def look(
    lists: tuple[
        npt.NDArray[np.int8],
        npt.NDArray[np.float32],
        float,
        npt.NDArray[np.float32],
        _Rows,
        _Mask,
    ],
    users: _Users,
    rows: list[npt.NDArray[np.int32] | _Rows] | None,
    query: npt.NDArray[np.float32],
    conditions: list[Condition],
    excluded: _Rows,
    wanted: int,
    least: float,
    most_tried: int,
    /,
) -> _Found: ...
def compare(
    users: _Users,
    first: int,
    rows: list[npt.NDArray[np.int32] | _Rows] | None,
    query: npt.NDArray[np.float32],
    conditions: list[Condition],
    excluded: _Rows,
    wanted: int,
    least: float,
    /,
) -> _Found: ...
def rank(
    users: list[str | None],
    rows: _Rows,
    scores: npt.NDArray[np.float64],
    wanted: int,
    least: float,
    match: type[_Match],
    /,
) -> list[_Match]: ...
