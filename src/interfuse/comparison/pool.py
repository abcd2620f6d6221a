"""Jobs in forked processes, so many side by side."""

from __future__ import annotations

import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Generic, TypeVar

from interfuse.engines.processes import fork

J = TypeVar("J")


@dataclass(frozen=True)
class Ended(Generic[J]):
    """A job that is over; ``failure`` says why it did not succeed, ``result`` is what it returned."""

    job: J
    failure: str | None
    result: str | None = None


class Pool(Generic[J]):
    """Does jobs, each in a process of its own, ``most`` at a time. Use as a context: leaving it ends what runs.

    Args:
        work: What a job is; it may return a text. An exception that leaves it is the job's failure.
    """

    def __init__(self, work: Callable[[J], str | None], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: deque[J] = deque()
        self._running: dict[int, tuple[J, BaseProcess, Connection]] = {}

    def __enter__(self) -> Pool[J]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, process, _ in self._running.values():
            process.kill()
        for _, process, connection in self._running.values():
            process.join()
            connection.close()
        self._running.clear()

    def add(self, jobs: Iterable[J]) -> None:
        """Put jobs at the end of the queue."""
        self._waiting.extend(jobs)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running or self._waiting)

    @property
    def running(self) -> list[J]:
        """Jobs that run, the oldest first."""
        return [job for job, _, _ in self._running.values()]

    def ended(self, seconds: float) -> list[Ended[J]]:
        """Start what there is room for, then wait so long for a job to end; returns those that did."""
        while self._waiting and len(self._running) < self._most:
            self._start(self._waiting.popleft())
        found = []
        for sentinel in wait(list(self._running), timeout=seconds):
            assert isinstance(sentinel, int)
            job, process, connection = self._running.pop(sentinel)
            process.join()
            found.append(Ended(job, *_answer(process, connection)))
            connection.close()
        return found

    def _start(self, job: J) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = fork(_do, self._work, job, theirs, name=f"interfuse-job-{len(self._running)}")
        theirs.close()
        self._running[process.sentinel] = (job, process, ours)


def _do(work: Callable[[J], str | None], job: J, answer: Connection) -> None:
    reason = result = None
    try:
        result = work(job)
    except Exception as error:  # whatever it is, the table has to say so
        reason = str(error) or type(error).__name__
    # nobody reads it where the parent is about to end
    with suppress(OSError):
        answer.send_bytes(json.dumps([reason, result]).encode())


def _answer(process: BaseProcess, connection: Connection) -> tuple[str | None, str | None]:
    """Why a job failed, and what it returned."""
    try:
        reason, result = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return f"its process ended with exit code {process.exitcode}; is there enough memory?", None
    return reason, result
