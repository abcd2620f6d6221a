"""A contender as a child process: it answers requests for rounds, one JSON line each. Standard library only.

Requests are ``{"do": "round", "clients": [[client, epoch], ...]}``, answered with ``{"seconds": ...}`` after the
round; ``{"do": "result", "path": ...}``, answered when the weights are in that file, or with ``{"accuracy": ...}``; and
``{"do": "stop"}``. The first line of a contender says that it is ready.
"""

from __future__ import annotations

import contextlib
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
_PDEATHSIG, _SUBREAPER = 1, 36  # PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl


def end_with_parent() -> None:
    """Have the kernel end this process with its parent, however that ends; programs it becomes keep to it.

    Linux only. Elsewhere a contender ends when it next asks what to do, and nobody is there to answer.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """All processes that a process started, and those that these started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for own in found:
        found += children.get(own, [])
    return found


def keep() -> None:
    """Go on in a child process, for a contender whose own processes outlive it.

    This one waits, and ends all that the contender started: when that ends, or when the driver does. Linux only.
    """
    if sys.platform != "linux":
        return
    _LIBC.prctl(_SUBREAPER, 1)  # who loses a parent becomes a child of this process, so that none is lost
    contender = os.fork()
    if contender == 0:
        end_with_parent()
        return

    def end(*_: object) -> None:
        while others := descendants(os.getpid()):
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    _LIBC.prctl(_PDEATHSIG, signal.SIGTERM)
    while os.wait()[0] != contender:
        pass
    end()


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
