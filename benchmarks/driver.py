"""A contender as a child process: it answers requests for rounds, one JSON line each. Standard library only.

Requests are ``{"do": "round", "clients": [[client, epoch], ...]}``, answered with ``{"seconds": ...}`` after the
round; ``{"do": "result", "path": ...}``, answered when the weights are in that file, or with ``{"accuracy": ...}``; and
``{"do": "stop"}``. The first line of a contender says that it is ready.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Cohort = list[tuple[int, int]]
"""Who takes part in a round: a client, and which of its epochs this is."""


_LIBC = ctypes.CDLL(None)
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of prctl


def end_with_parent() -> None:
    """Have the kernel end this process with its parent, however that ends; programs it becomes keep to it.

    Linux only. Elsewhere a contender ends when it next asks what to do, and nobody is there to answer.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)


class Channel:
    """Both ends of the conversation. What else is written to the standard output goes to the standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def ready(self) -> None:
        self.answer({"ready": True})

    def answer(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=self._out, flush=True)

    def next_round(self, result: Callable[[Path], dict[str, Any]]) -> Cohort | None:
        """Who takes part in the round that is asked for, or None at the end. Other requests are answered meanwhile.

        Args:
            result: Writes the weights as they are now to a file, or says how good they are.
        """
        for line in iter(sys.stdin.readline, ""):
            request = json.loads(line)
            if request["do"] == "round":
                return [(client, epoch) for client, epoch in request["clients"]]
            if request["do"] == "stop":
                return None
            self.answer({"done": True, **result(Path(request["path"]))})
        return None


def serve(run_round: Callable[[Cohort], None], result: Callable[[Path], dict[str, Any]], channel: Channel) -> None:
    """Answer requests until they end, for a contender whose rounds are calls."""
    channel.ready()
    while (cohort := channel.next_round(result)) is not None:
        began = time.perf_counter()
        run_round(cohort)
        channel.answer({"seconds": time.perf_counter() - began})


def options() -> dict[str, Any]:
    """What the benchmark asks of this contender: its only argument."""
    values: dict[str, Any] = json.loads(sys.argv[1])
    return values


class Forked:
    """Processes forked from this one, each of which does its part of every piece of work."""

    def __init__(self, parts: Sequence[Callable[[Any], Any]]) -> None:
        context = multiprocessing.get_context("fork")
        self._ends: list[Connection] = []
        for part in parts:
            ours, theirs = context.Pipe()
            context.Process(target=_obey, args=(part, theirs), daemon=True).start()
            self._ends.append(ours)

    def run(self, order: Any) -> list[Any]:
        """Give all the same order, and wait for their answers."""
        for end in self._ends:
            end.send(order)
        return [end.recv() for end in self._ends]


def _obey(part: Callable[[Any], Any], end: Connection) -> None:
    end_with_parent()
    while True:
        end.send(part(end.recv()))
