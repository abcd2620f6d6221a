"""What a coordinator may ask of a node, by program: the words that it writes beside a call decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interfuse.engines.parties.contract import Contract
from interfuse.engines.parties.frames import Call, Code
from interfuse.engines.parties.limits import LimitsTable
from interfuse.errors import InterfuseError
from interfuse.evaluation import Evaluation, Mode
from interfuse.handler import Handler, Program, handlers
from interfuse.method import DEPLOY
from interfuse.wire import Heading

MEASURED: Mapping[Mode, frozenset[str]] = {
    "none": frozenset(),
    "own": frozenset({"count"}),
    "shared": frozenset({"count", "fused", "composed"}),
}
"""Handlers of the evaluation that a node runs, by what the contract says of it. None of them takes foreign samples."""
METHOD = "method"
"""Path of the run's method among the programs of a node; those that it wraps stand below it."""


class DeniedError(InterfuseError):
    """A call is not carried out: the code for the coordinator, and the reason for the vendor's own log."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Permission:
    """Which calls of a contract a node carries out.

    Each program has headings of its own. What the evaluation measures is asked for under its heading alone, what a
    method does under those of its rounds, before the first one or in one of them; under evaluation a method's handler
    only puts in place what clients answer with, once an evaluation.
    """

    def __init__(self, programs: Mapping[str, Program], contract: Contract, limits: LimitsTable) -> None:
        self._programs, self._mode = programs, contract.evaluation
        self._last = min(contract.rounds, limits.rounds or contract.rounds)
        self._deployed = False

    def end_round(self) -> None:
        """What was put in place for an evaluation is gone."""
        self._deployed = False

    def granted(self, call: Call) -> Handler[Any, Any]:
        """The handler of a call.

        Raises:
            DeniedError: it may not run, or not now.
        """
        program = self._programs.get(call.program)
        known = {} if program is None else handlers(type(program))
        if program is None or call.handler not in known:
            raise DeniedError("not-allowed", f"{call.program}.{call.handler} is no handler of the contract's method")
        if call.heading not in headings_of(call.program, program, call.handler, self._mode):
            raise DeniedError("not-allowed", f"{call.program}.{call.handler} has no business under {call.heading}")
        if call.round > self._last or not _in_its_round(call):
            raise DeniedError("limit-rounds", f"{call.heading} in round {call.round} is none of 0 to {self._last}")
        deploys = call.heading == "evaluation" and not isinstance(program, Evaluation)
        if deploys and self._deployed:
            raise DeniedError("not-allowed", f"{call.program}.{call.handler} ran in this evaluation already")
        self._deployed |= deploys
        found: Handler[Any, Any] = getattr(program, call.handler)
        return found


def headings_of(path: str, program: Program, handler: str, mode: Mode) -> frozenset[Heading]:
    """Under what a handler of a program may be called."""
    if isinstance(program, Evaluation):
        return frozenset({"evaluation"} if handler in MEASURED[mode] else ())
    puts_in_place = path == METHOD and handler == DEPLOY
    return frozenset({"start", "training", "evaluation"} if puts_in_place else {"start", "training"})


def _in_its_round(call: Call) -> bool:
    """What comes before the first round has number 0, and no round has."""
    return {"start": call.round == 0, "training": call.round > 0}.get(call.heading, True)
