"""When a run ends before its rounds are over: once the validation score rises no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from interfuse.runs.summary import Row, Stopped, mean


@dataclass(frozen=True)
class EarlyStopping:
    """End a run once the mean validation score of its clients has not risen for ``patience`` points of the curve.

    A point counts where its mean is above the highest so far by more than ``min_delta``; one without a known score does
    not. Test data is never looked at. The next round is then the last, with all that a last round does.

    Attributes:
        patience: Points of the curve, of which there is one every ``eval_every`` rounds.
        min_delta: In the units of the score: 0.01 is one point of accuracy.
    """

    patience: Annotated[int, Ge(1)] = 5
    min_delta: Annotated[float, Ge(0)] = 0.0

    def after(self, rows: Sequence[Row]) -> Stopped | None:
        """Where a run with these lines of ``metrics.jsonl`` ends; None: not yet. A function of the lines alone.

        The point before the first round does not count.
        """
        best, since, waited = -math.inf, 0, 0
        for row in rows:
            if row.accuracy is None or row.round == 0:
                continue
            found = mean(row.accuracy.validation)
            if found > best + self.min_delta:
                best, since, waited = found, row.round, 0
            elif (waited := waited + 1) >= self.patience:
                return Stopped(round=row.round + 1, point=row.round, since=since, patience=self.patience)
        return None
