"""Differences between the entries of a comparison.

Runs of one seed share data, partition and initial values where their entries do, so a difference is taken seed by seed,
and the spread of these differences says how well their mean is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from interfuse.comparison.measures import Row
from interfuse.runs.differences import Difference, difference


def paired(row: Row, other: Row, key: str) -> Difference:
    """A measure of an entry minus that of another one, over the seeds that both have."""
    others = {run.seed: values.get(key, math.nan) for run, values in zip(other.runs, other.values, strict=True)}
    pairs = zip(row.runs, row.values, strict=True)
    return difference([values.get(key, math.nan) - others[run.seed] for run, values in pairs if run.seed in others])


def best_of(rows: Sequence[Row], key: str) -> Row | None:
    """The entry with the largest mean; None where none has one."""
    known = [row for row in rows if row.values and not math.isnan(row.mean.get(key, math.nan))]
    return max(known, key=lambda row: row.mean[key], default=None)
