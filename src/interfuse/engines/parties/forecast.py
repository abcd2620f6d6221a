"""Whether the bytes that a vendor lets leave will do for a whole run, told early."""

from __future__ import annotations

from math import ceil

ENOUGH = 10
"""Whole rounds of which the mean is taken for all others: an evaluation, or a codebook, leaves in every tenth or so."""


class Forecast:
    """Measures the bytes that leave in a round, and tells once where a run will need more than its vendor allows.

    The first round of an attempt is not taken for the others, since some things leave only then. Of few rounds the
    smallest is, so nobody is alarmed by what leaves now and then.

    Args:
        limit: Bytes that may leave over the run; None: any number.
        rounds: Of the run.
    """

    def __init__(self, limit: int | None, rounds: int) -> None:
        self._limit, self._rounds = limit, rounds
        self._told = False
        self.begin_again()

    def begin_again(self) -> None:
        """An attempt begins: where it goes on from is no round's begin."""
        self._at: tuple[int, int] | None = None
        self._whole = list[int]()  # bytes of rounds

    def begins(self, round: int, sent: int) -> str:
        """A call of a round is about to be carried out.

        Args:
            sent: Bytes that have left for the run so far.

        Returns: what is to be told to the vendor; mostly nothing.
        """
        if self._limit is None or self._told or round < 1 or (self._at is not None and round == self._at[0]):
            return ""
        if self._at is not None:
            self._whole.append((sent - self._at[1]) // max(1, round - self._at[0]))
        self._at = round, sent
        measured = self._whole[1:]
        if len(measured) < 2:
            return ""
        each = ceil(sum(measured[-ENOUGH:]) / ENOUGH) if len(measured) >= ENOUGH else min(measured)
        needed = sent + each * (self._rounds - round + 1)
        if not each or needed <= self._limit:
            return ""
        self._told = True
        last = round + max(0, self._limit - sent) // each
        return (
            f"after {round - 1} of {self._rounds} rounds {sent:,} bytes have left, {each:,} a round; at this rate "
            f"the run needs {needed:,}, and [limits] bytes is {self._limit:,}: it ends for this node in about "
            f"round {last}"
        )
