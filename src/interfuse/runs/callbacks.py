"""What a user hangs into a run: called in the process that carries it out, without a say in its results."""

from __future__ import annotations

from interfuse.runs.config import RunConfig
from interfuse.runs.summary import Row, Summary


class Callback:
    """Hooks into a run; a subclass defines those that it wants. References beside the run have none.

    A run can be cut off and go on, so ``on_start`` may come again, with the rounds that are done; lines after those are
    told once more. An exception in a hook ends the run after a commit, from which ``interfuse resume`` goes on.
    """

    def on_start(self, config: RunConfig, done: int) -> None:
        """A run begins, or goes on after ``done`` rounds."""

    def on_round(self, row: Row) -> None:
        """A line was added to ``metrics.jsonl``; the first is of round 0, before any training."""

    def on_end(self, summary: Summary) -> None:
        """The run is over and ``summary.json`` written; a run that was over already is not told again."""
