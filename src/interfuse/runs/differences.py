"""Which differences seeds can tell: paired by seed, with Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interfuse.runs.words import number

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
    def untold(self) -> bool:
        """Whether these seeds do not tell it from 0: the interval has 0 in it. Equal it is not for that."""
        return abs(self.mean) <= self.half


def difference(values: Sequence[float]) -> Difference:
    """The mean of differences, one of each seed; NaN is unknown and left out."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return Difference(known[0] if known else math.nan, math.nan, len(known))
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known))
    return Difference(float(np.mean(known)), quantile(len(known) - 1) * error, len(known))


def points(found: Difference) -> str:
    """A difference in points with half its interval: ``−5.3 ± 5.9``; alone where one seed tells none."""
    sign = "+" if found.mean > 0 else ""
    text = sign + number(100 * found.mean, 1)
    return text if math.isnan(found.half) else f"{text} ± {number(100 * found.half, 1)}"


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
