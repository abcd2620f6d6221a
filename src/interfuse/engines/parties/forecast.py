"""Whether the bytes that a vendor lets leave will do for a whole run, told early."""

from __future__ import annotations

from math import ceil


class Forecast:
    """Measures the bytes that leave in a round, and tells once where a run will need more than its vendor allows.

    Args:
        limit: Bytes that may leave over the run; None: any number.
        rounds: Of the run.
    """

    def __init__(self, limit: int | None, rounds: int) -> None:
        self._limit, self._rounds = limit, rounds
        self._first: tuple[int, int] | None = None
        self._told = False

    def begins(self, round: int, sent: int) -> str:
        """A call of a round is about to be carried out.

        Args:
            sent: Bytes that have left for the run so far.

        Returns: what is to be told to the vendor, once a round is whole; mostly nothing.
        """
        if self._limit is None or self._told or round < 1:
            return ""
        if self._first is None or round < self._first[0]:  # an attempt goes back to a commit
            self._first = round, sent
        since, before = self._first
        if round == since:
            return ""
        self._told = True
        each = (sent - before) / (round - since)
        needed = ceil(sent + each * (self._rounds - round + 1))
        if needed <= self._limit:
            return ""
        last = round + max(0, int((self._limit - sent) // each))
        return (
            f"after {round - 1} of {self._rounds} rounds {sent:,} bytes have left, {ceil(each):,} a round; at this "
            f"rate the run needs {needed:,}, and [limits] bytes is {self._limit:,}: it ends for this node in about "
            f"round {last}"
        )
