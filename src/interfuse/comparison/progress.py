"""How a comparison is followed: one bar over all rounds of all runs, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import rich.progress
from rich.console import Console

from interfuse.report.progress import duration, on_standard_error


@dataclass(frozen=True)
class Amount:
    """How far an entry is: rounds done, rounds in all, and those that the run with the most of them still has to do."""

    entry: str
    done: int
    rounds: int
    longest: int


@dataclass(frozen=True)
class Standing:
    """How far a comparison is; ``left`` is None while nothing is known."""

    done: int
    rounds: int
    elapsed: float
    left: float | None
    running: Sequence[str]

    def __str__(self) -> str:
        parts = [f"round {self.done} of {self.rounds}", duration(self.elapsed)]
        if self.left is not None:
            parts.append(f"{duration(self.left)} left")
        if self.running:
            parts.append(f"now {'; '.join(self.running)}")
        return ", ".join(parts)


class Follower(Protocol):
    """Who wants to see how a comparison goes."""

    def show(self, standing: Standing) -> None:
        """It goes on."""

    def ended(self, name: str, failure: str | None) -> None:
        """A job is over."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Nobody:
    """Nobody looks."""

    def show(self, standing: Standing) -> None: ...

    def ended(self, name: str, failure: str | None) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class _Work:
    """What this call has done for an entry."""

    seconds: float = 0.0
    rounds: int = 0


class Pace:
    """How long the rest will take. A round of one method may take twenty times as long as one of another, so each entry
    is judged by its own rounds, and one that has none yet by the mean over the others.

    Args:
        most: So many jobs go side by side.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._began = most, clock, clock()
        self._ended: dict[str, _Work] = {}
        self._running: dict[Hashable, tuple[str, float, int, int]] = {}

    def goes_on(self, job: Hashable, entry: str, done: int) -> None:
        """A job of an entry runs, and has done so many rounds."""
        _, began, before, _ = self._running.get(job, (entry, self._clock(), done, done))
        self._running[job] = (entry, began, before, done)

    def ended(self, job: Hashable, done: int) -> None:
        """A job is over, after so many rounds."""
        if job in self._running:
            entry, began, before, _ = self._running.pop(job)
            work = self._ended.setdefault(entry, _Work())
            work.seconds, work.rounds = work.seconds + self._clock() - began, work.rounds + done - before

    def standing(self, amounts: Sequence[Amount], running: Sequence[str]) -> Standing:
        """How far all is, and how long the rest will take."""
        done, rounds = sum(amount.done for amount in amounts), sum(amount.rounds for amount in amounts)
        left = self._left(amounts) if done < rounds else None
        return Standing(done, rounds, self._clock() - self._began, left, running)

    def _left(self, amounts: Sequence[Amount]) -> float | None:
        paces = self._seconds_of_a_round()
        if not paces:
            return None
        usual = sum(paces.values()) / len(paces)
        each = [(paces.get(amount.entry, usual), amount) for amount in amounts]
        in_all = sum(pace * (amount.rounds - amount.done) for pace, amount in each)
        return max(in_all / self._most, *(pace * amount.longest for pace, amount in each))

    def _seconds_of_a_round(self) -> dict[str, float]:
        """By entry. What runs counts beside what has ended, which had its last evaluation too."""
        work = {entry: _Work(ended.seconds, ended.rounds) for entry, ended in self._ended.items()}
        for entry, began, before, done in self._running.values():
            if done > before:
                own = work.setdefault(entry, _Work())
                own.seconds, own.rounds = own.seconds + self._clock() - began, own.rounds + done - before
        return {entry: own.seconds / own.rounds for entry, own in work.items() if own.rounds}


class Lines:
    """A line for each job that ends, and one for about every tenth of all rounds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._tenth = write, -1

    def show(self, standing: Standing) -> None:
        tenth = 10 * standing.done // max(1, standing.rounds)
        if tenth != self._tenth:
            self._tenth = tenth
            self._write(str(standing))

    def ended(self, name: str, failure: str | None) -> None:
        self._write(f"{name}: done" if failure is None else f"{name}: failed: {failure}")

    def note(self, text: str) -> None:
        self._write(text)


class Bar:
    """One bar, and a line for what failed."""

    def __init__(self, console: Console) -> None:
        columns = (rich.progress.BarColumn(20), rich.progress.TextColumn("{task.description}", markup=False))
        # No thread redraws: processes are forked while the bar is on the screen.
        self._bar = rich.progress.Progress(*columns, console=console, auto_refresh=False)
        self._task = self._bar.add_task("")
        self._bar.start()

    def show(self, standing: Standing) -> None:
        self._bar.update(
            self._task, completed=standing.done, total=standing.rounds, description=str(standing), refresh=True
        )

    def ended(self, name: str, failure: str | None) -> None:
        if failure is not None:
            self.note(f"{name}: failed: {failure}")

    def note(self, text: str) -> None:
        self._bar.console.print(text)

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
