"""Which differences the seeds of a comparison can tell: paired by seed, with Student's t.

Runs of one seed share data, partition and initial values where their entries do, so a difference is taken seed by seed,
and the spread of these differences says how well their mean is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interfuse.comparison.measures import Row

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Attributes:
        mean: Over seeds, in the unit of the measure; NaN where no seed has both values.
        half: Half the confidence interval of the mean, which is the smallest difference that these seeds tell; NaN for
            fewer than two seeds, which tell none.
        seeds: How many have both values.
    """

    mean: float
    half: float
    seeds: int

    @property
    def told(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half

    @property
    def tie(self) -> bool:
        """Whether the interval has 0 in it."""
        return abs(self.mean) <= self.half


def difference(values: Sequence[float]) -> Difference:
    """The mean of differences, one of each seed; NaN is unknown and left out."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return Difference(known[0] if known else math.nan, math.nan, len(known))
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known))
    return Difference(float(np.mean(known)), quantile(len(known) - 1) * error, len(known))


def paired(row: Row, other: Row, key: str) -> Difference:
    """A measure of an entry minus that of another one, over the seeds that both have."""
    others = {run.seed: values.get(key, math.nan) for run, values in zip(other.runs, other.values, strict=True)}
    pairs = zip(row.runs, row.values, strict=True)
    return difference([values.get(key, math.nan) - others[run.seed] for run, values in pairs if run.seed in others])


def best_of(rows: Sequence[Row], key: str) -> Row | None:
    """The entry with the largest mean; None where none has one."""
    known = [row for row in rows if row.values and not math.isnan(row.mean.get(key, math.nan))]
    return max(known, key=lambda row: row.mean[key], default=None)


def within(t: float, freedom: int) -> float:
    """The probability that the absolute value of Student's t is at most ``t``.

    For whole degrees of freedom a finite series (Abramowitz & Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd, square = freedom % 2, math.cos(angle) ** 2
    total, term = 0.0, math.cos(angle) if odd else 1.0
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= square * power / (power + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def quantile(freedom: int) -> float:
    """What the absolute value of Student's t stays within in 95 % of cases: 12.7 for one degree of freedom."""
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < CONFIDENCE else (low, middle)
    return high
