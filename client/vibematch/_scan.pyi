import numpy as np
import numpy.typing as npt

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
def count_up(
    starts: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
    /,
) -> None: ...
