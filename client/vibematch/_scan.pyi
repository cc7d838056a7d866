from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Mask: TypeAlias = npt.NDArray[np.bool_]
_Codes: TypeAlias = npt.NDArray[np.int32]
_Numbers: TypeAlias = npt.NDArray[np.float64]

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
def shortlist(
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    query: npt.NDArray[np.float32],
    rows: npt.NDArray[np.intp],
    found: npt.NDArray[np.intp],
    wanted: int,
    least: float,
    error: float,
    /,
) -> int: ...
def dots(
    vectors: npt.NDArray[np.float32],
    query: npt.NDArray[np.float32],
    rows: npt.NDArray[np.intp],
    scores: npt.NDArray[np.float64],
    /,
) -> None: ...

# What is written must not overlap with what is read.
def select(
    conditions: list[Condition], rows: npt.NDArray[np.intp], places: npt.NDArray[np.intp], /
) -> int: ...
def look(
    lists: tuple[
        npt.NDArray[np.int8],
        npt.NDArray[np.float32],
        float,
        npt.NDArray[np.float32],
        npt.NDArray[np.intp],
        _Mask,
    ],
    users: tuple[npt.NDArray[np.float32], npt.NDArray[np.int8], npt.NDArray[np.float32], float],
    query: npt.NDArray[np.float32],
    conditions: list[Condition],
    excluded: npt.NDArray[np.intp],
    wanted: int,
    least: float,
    most_tried: int,
    /,
) -> tuple[bytes, bytes, int, int, int, float]: ...
def ascending(rows: npt.NDArray[np.intp], end: int, /) -> int: ...
