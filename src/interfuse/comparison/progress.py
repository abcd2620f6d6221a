"""How a comparison is followed: one bar over all rounds of all runs, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import rich.progress
from rich.console import Console

from interfuse.report.progress import duration, on_standard_error


class Follower(Protocol):
    """Who wants to see how a comparison goes."""

    def show(self, done: int, rounds: int, running: Sequence[str]) -> None:
        """So many rounds of all are done, and these jobs run."""

    def ended(self, name: str, failure: str | None) -> None:
        """A job is over."""


class Nobody:
    """Nobody looks."""

    def show(self, done: int, rounds: int, running: Sequence[str]) -> None: ...

    def ended(self, name: str, failure: str | None) -> None: ...


class Pace:
    """How long the rest will take, judged by what was done since the beginning of this call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began, self._before = clock, clock(), -1

    def standing(self, done: int, rounds: int, running: Sequence[str]) -> str:
        """How far all is, in words."""
        if self._before < 0:
            self._before = done
        elapsed, made = self._clock() - self._began, done - self._before
        parts = [f"round {done} of {rounds}", duration(elapsed)]
        if made > 0 and done < rounds:
            parts.append(f"{duration(elapsed / made * (rounds - done))} left")
        if running:
            parts.append(f"now {'; '.join(running)}")
        return ", ".join(parts)


class Lines:
    """A line for each job that ends, and one for about every tenth of all rounds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._pace, self._tenth = write, Pace(), -1

    def show(self, done: int, rounds: int, running: Sequence[str]) -> None:
        tenth = 10 * done // max(1, rounds)
        if tenth != self._tenth:
            self._tenth = tenth
            self._write(self._pace.standing(done, rounds, running))

    def ended(self, name: str, failure: str | None) -> None:
        self._write(f"{name}: done" if failure is None else f"{name}: failed: {failure}")


class Bar:
    """One bar, and a line for what failed."""

    def __init__(self, console: Console) -> None:
        columns = (rich.progress.BarColumn(20), rich.progress.TextColumn("{task.description}", markup=False))
        # No thread redraws: processes are forked while the bar is on the screen.
        self._bar = rich.progress.Progress(*columns, console=console, auto_refresh=False)
        self._pace, self._task = Pace(), self._bar.add_task("")
        self._bar.start()

    def show(self, done: int, rounds: int, running: Sequence[str]) -> None:
        text = self._pace.standing(done, rounds, running)
        self._bar.update(self._task, completed=done, total=rounds, description=text, refresh=True)

    def ended(self, name: str, failure: str | None) -> None:
        if failure is not None:
            self._bar.console.print(f"{name}: failed: {failure}")

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


@contextmanager
def shown(quiet: bool) -> Iterator[Follower]:
    """Show a comparison on the standard error stream for as long as the context lasts."""
    if quiet:
        yield Nobody()
    else:
        with on_standard_error(Bar, Lines) as made:
            yield made
