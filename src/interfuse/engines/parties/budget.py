"""What a node has answered in a run so far, counted by itself: numbers in a call are the coordinator's."""

from __future__ import annotations

import json
from pathlib import Path

from interfuse.engines.parties.frames import Call
from interfuse.engines.parties.limits import LimitsTable
from interfuse.engines.parties.permission import DeniedError
from interfuse.errors import RunError

EVALUATIONS = 4
"""Calls of a handler of the evaluation in one round: the curve, everything at the end, metrics."""
CALLS = 10
"""Calls of another handler in one round, where neither the vendor's file nor the method says how many."""

_Handler = tuple[str, str, int]
"""Program, handler, round."""


class Budget:
    """Answers that left, by where in the run they were asked for and by their digests.

    The same answer to the same call costs nothing: it leaves with the same bits. Another one does, whatever made it
    another: a commit that the coordinator went back to, or another message. Each is a line of a file before it leaves.
    """

    def __init__(self, path: Path, limits: LimitsTable) -> None:
        """Go on with what the file says, if there is one.

        Raises:
            RunError: it cannot be read.
        """
        self._path, self._limits = path, limits
        self._answers: dict[_Handler, dict[int, set[str]]] = {}
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # killed while it wrote: that answer has not left
                path.write_text(whole, encoding="utf-8")
            for line in whole.splitlines():
                self._note(line)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path}, which counts what left, cannot be read: {error}") from error

    def _note(self, line: str) -> None:
        program, handler, round, index, digest = json.loads(line)
        self._answers.setdefault((program, handler, round), {}).setdefault(index, set()).add(digest)

    def spend(self, call: Call, digest: str, most: int) -> None:
        """Count an answer that is about to leave.

        Args:
            most: How many calls of its handler may be answered in a round.

        Raises:
            DeniedError: it would be one too many.
            OSError: it cannot be written down, so it must not leave.
        """
        limits, digest = self._limits, digest[:32]
        calls = self._answers.get((call.program, call.handler, call.round), {})
        there = calls.get(call.index, set())
        if digest in there:
            return
        if call.index not in calls and len(calls) >= most:
            raise DeniedError("limit-calls", f"{most} calls of {call.handler} were answered in round {call.round}")
        if len(there) >= limits.answers:
            reason = f"{len(there)} different answers left to call {call.index} of {call.handler}, round {call.round}"
            raise DeniedError("limit-calls", reason)
        line = json.dumps([call.program, call.handler, call.round, call.index, digest])
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._note(line)
