"""Estimates with their 95 % intervals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(per_row: list[int], rows: float) -> "Interval":
        """Estimate the total of `rows` rows from the values of a sample of rows."""
        mean = fmean(per_row)
        half = _Z * stdev(per_row) / math.sqrt(len(per_row)) if len(per_row) > 1 else mean
        return Interval(mean, max(0.0, mean - half), mean + half).times(rows)

    def times(self, factor: float) -> "Interval":
        """Multiply the estimate by a factor."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: "Interval") -> "Interval":
        """Add another estimate; both errors are assumed to have the same sign."""
        return Interval(self.value + other.value, self.low + other.low, self.high + other.high)


NOTHING = Interval(0, 0, 0)


def sum_of(intervals: Iterable[Interval]) -> Interval:
    """Add up estimates."""
    total = NOTHING
    for interval in intervals:
        total = total.plus(interval)
    return total
