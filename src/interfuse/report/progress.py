"""How a run is followed: a line that is redrawn in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import rich.progress
from rich.console import Console

from interfuse.clients import is_part
from interfuse.errors import numbers
from interfuse.references import short_name
from interfuse.report.text import percent, size
from interfuse.runs import Progress, Row, RunConfig, Silent
from interfuse.runs.summary import mean
from interfuse.runs.summing import scores_of
from interfuse.runs.words import ALONE_IN_A_BATCH

REDRAW_SECONDS = 0.1
JUDGED = 20
"""Rounds, and evaluations, by whose median the time left is judged: the first ones take longer, and loads change."""


@contextmanager
def following(progress: Progress | None) -> Iterator[Progress]:
    """The given follower, or one on the standard error stream."""
    if progress is not None:
        yield progress
    else:
        with shown(quiet=False) as made:
            yield made


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """Show a run on the standard error stream for as long as the context lasts."""
    if quiet:
        yield Silent()
    else:
        with on_standard_error(Bars, Lines) as made:
            yield made


class Stoppable(Protocol):
    """Something that is redrawn until it is stopped."""

    def stop(self) -> None: ...


B = TypeVar("B", bound=Stoppable)
L = TypeVar("L")


@contextmanager
def on_standard_error(bars: Callable[[Console], B], lines: Callable[[Callable[[str], None]], L]) -> Iterator[B | L]:
    """Bars where the standard error stream is a terminal that can redraw them, otherwise plain lines."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        made = bars(console)
        try:
            yield made
        finally:
            made.stop()
    else:
        yield lines(lambda text: console.print(text, soft_wrap=True))


class Standing:
    """How far a run is, in words."""

    def __init__(self, config: RunConfig, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.rounds, self.round = short_name(config.method), config.rounds, done
        self._clock, self._began, self._every = clock, clock(), config.eval_every
        self._clients, self._coded = config.clients, any(text != "none" for text in config.codecs.values())
        self._trained: deque[float] = deque(maxlen=JUDGED)
        self._evaluated: deque[float] = deque(maxlen=JUDGED)
        self._accuracy = self._uplink = ""
        self._measured = done
        self._failed: set[int] = set()
        self._left_out: set[int] = set()

    def update(self, row: Row) -> list[str]:
        """Take a line of ``metrics.jsonl``; returns what deserves a line of its own."""
        self.round = row.round
        wire = f"uplink {size(row.uplink.wire)} on the wire"
        self._uplink = wire if self._coded else f"uplink {size(row.uplink.raw)}"
        evaluation = row.seconds.get("evaluation", 0.0)
        if self.round:
            self._trained.append(sum(s for phase, s in row.seconds.items() if not is_part(phase)) - evaluation)
        if row.accuracy:
            self._evaluated.append(evaluation)
            self._measured = self.round
            sides = {"global": mean(row.accuracy.common), "own": mean(row.accuracy.own)}
            # the first that is measured: of parties without a public test set that is not the global one
            known = [f"{side} {percent(value)}" for side, value in sides.items() if not math.isnan(value)][:1]
            if row.accuracy.composition is not None:
                known.append(f"composition {percent(scores_of(row.accuracy).mean_composition)}")
            if known and (some := row.accuracy.evaluated):
                known.append(f"of {len(some):,} of {self._clients:,} clients")
            self._accuracy = ", ".join(known)
        new = {failure.client: failure.reason for failure in row.failures}
        lines = [f"round {self.round}: client {c} failed: {new[c]}" for c in sorted(new.keys() - self._failed)]
        self._failed |= new.keys()
        shorter = sorted(row.left_out.clients.keys() - self._left_out)
        if shorter:
            lines.append(f"round {self.round}: {numbers(shorter)} left rows out of training: {ALONE_IN_A_BATCH}")
        self._left_out |= {*shorter}
        return lines

    def __str__(self) -> str:
        elapsed = self._clock() - self._began
        several = "both " if "composition" in self._accuracy else ""
        old = f" ({several}after round {self._measured})" if self._accuracy and self._measured < self.round else ""
        parts = [f"round {self.round}/{self.rounds}", self._accuracy + old, self._uplink, duration(elapsed)]
        if self._trained and self.round < self.rounds:
            parts.append(f"{duration(self._left())} left")
        return ", ".join(part for part in parts if part)

    def _left(self) -> float:
        """Seconds of the rounds to come, and of the points of the curve among them."""
        points = math.ceil(self.rounds / self._every) - self.round // self._every
        of_points = points * statistics.median(self._evaluated) if self._evaluated else 0.0
        return (self.rounds - self.round) * statistics.median(self._trained) + of_points


class Lines:
    """A line for about every tenth of the rounds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def begin(self, config: RunConfig, done: int) -> None:
        self._standing, self._tenth = Standing(config, done), -1
        if done:
            self.note(f"{self._standing.name}: goes on after round {done} of {config.rounds}")

    def advance(self, row: Row) -> None:
        standing = self._standing
        for text in standing.update(row):
            self.note(f"{standing.name}: {text}")
        tenth = 10 * standing.round // standing.rounds
        if tenth != self._tenth:
            self._tenth = tenth
            self.note(f"{standing.name}: {standing}")

    def stage(self, text: str) -> None:
        if text:
            self.note(f"{self._standing.name}: {text}")

    def note(self, text: str) -> None:
        self._write(text)


class Bars:
    """A bar for the run and one for each reference."""

    def __init__(self, console: Console) -> None:
        columns: list[rich.progress.ProgressColumn] = [rich.progress.TextColumn("{task.description}", markup=False)]
        if console.width >= 120:
            columns.append(rich.progress.BarColumn(20))
        columns.append(rich.progress.TextColumn("{task.fields[standing]}", markup=False))
        # No thread redraws: worker processes are forked while the bars are on the screen.
        self._bars = rich.progress.Progress(*columns, console=console, auto_refresh=False)
        self._drawn = -math.inf

    def begin(self, config: RunConfig, done: int) -> None:
        self._standing = Standing(config, done)
        self._bars.start()
        self._task = self._bars.add_task(
            self._standing.name, total=config.rounds, completed=done, standing=str(self._standing)
        )

    def advance(self, row: Row) -> None:
        for text in self._standing.update(row):
            self.note(f"{self._standing.name}: {text}")
        self._bars.update(self._task, completed=self._standing.round, standing=str(self._standing))
        last = self._standing.round == self._standing.rounds
        if last or time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self._bars.refresh()
            self._drawn = time.monotonic()

    def stage(self, text: str) -> None:
        self._bars.update(self._task, standing=f"{self._standing}, {text}" if text else str(self._standing))
        self._bars.refresh()

    def note(self, text: str) -> None:
        self._bars.console.print(text)

    def stop(self) -> None:
        """Leave the bars as they are."""
        self._bars.stop()


def duration(seconds: float) -> str:
    """A time in words: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
