"""How long a node works for one call. Nothing else goes by this clock: a call that is in time has the bits it has."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Unpack

import torch

from interfuse.data import Batch
from interfuse.errors import InterfuseError
from interfuse.models import SplitModel
from interfuse.training import FitOptions, Fitted, Objective, OptimizerState, fit


class OvertimeError(InterfuseError):
    """A call takes longer than its vendor lets it."""


class Stopwatch:
    """Asked between two batches of training, and whenever rows are taken: where work can be given up.

    Args:
        seconds: Of a call at most.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._until = seconds, math.inf
        self.over = False

    def start(self) -> None:
        """A call begins."""
        self._until, self.over = time.monotonic() + self._seconds, False

    def check(self) -> None:
        """Go on, or give up.

        Raises:
            OvertimeError: the time is over.
        """
        if time.monotonic() > self._until:
            self.over = True
            raise OvertimeError(f"the call takes longer than {self._seconds:g} seconds: [limits] seconds")

    def _each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.check()
            yield batch

    def fit(
        self,
        model: SplitModel,
        losses: Objective | Mapping[str, Objective],
        batches: Iterable[Batch],
        *,
        slots: OptimizerState | None = None,
        round: int = 0,
        autocast: torch.dtype | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted:
        """:func:`interfuse.training.fit`, as long as there is time."""
        return fit(model, losses, self._each(batches), slots=slots, round=round, autocast=autocast, **options)
