"""How a cost grows with a size: the exponent in ``cost ~ size ** exponent``, fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from scipy import stats

CONFIDENCE: Final = 0.95
_HARDLY: Final = 0.1
_NEAR_ONE: Final = 0.1
_VAGUE: Final = 0.5


@dataclass(frozen=True)
class PowerLaw:
    """A straight line through logarithms.

    Attributes:
        exponent: the slope of the line.
        low: lower end of the exponent's 95 % confidence interval.
        high: its upper end.
    """

    exponent: float
    low: float
    high: float

    @classmethod
    def fit(cls, sizes: Sequence[float], costs: Sequence[float]) -> Self:
        """Least squares of log cost on log size; the interval is Student's, from the residuals.

        Raises:
            ValueError: there are fewer than three sizes, or something is not positive.
        """
        if len(set(sizes)) < 3:
            raise ValueError(f"a curve needs three sizes or more, got {sorted(set(sizes))}")
        if min(*sizes, *costs) <= 0:
            raise ValueError(f"sizes and costs must be positive, got {[*sizes]} and {[*costs]}")
        line = stats.linregress([math.log(x) for x in sizes], [math.log(y) for y in costs])
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(sizes) - 2)
        slope, margin = float(line.slope), float(quantile * line.stderr)
        return cls(slope, slope - margin, slope + margin)

    def sentence(self, size: str, cost: str) -> str:
        """What it means, in words.

        Args:
            size: what grows: "users".
            cost: what it costs: "milliseconds of a search".
        """
        law = f"{cost} ~ {size}^{self.exponent:.2f} ({self.low:.2f} to {self.high:.2f})"
        ten_times = f"ten times the {size}, {10**self.exponent:.3g} times the {cost}"
        return f"{law[0].upper()}{law[1:]}: {ten_times}; {self._verdict()}."

    def _verdict(self) -> str:
        if self.high - self.low > _VAGUE:
            return "the points scatter too much to say more"
        if abs(self.exponent) < _HARDLY:
            return "it hardly grows"
        if self.exponent < 0:
            return "it falls"
        if abs(self.exponent - 1) < _NEAR_ONE:
            return "it grows in proportion"
        pace = "faster" if self.exponent > 1 else "slower"
        return f"it grows {pace} than in proportion"
