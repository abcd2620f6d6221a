"""A run folder as reports and comparisons see it, finished or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from interfuse.data import DataFacts
from interfuse.errors import RunError
from interfuse.opening import content
from interfuse.runs import Row, RunConfig, Summary
from interfuse.runs.drawn import Drawn
from interfuse.runs.folder import RunFolder
from interfuse.runs.summary import Rows, mean, std
from interfuse.runs.summing import Facts, scores_of, summarise
from interfuse.runs.verdict import concluded


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores over the evaluated rounds: means (and a standard deviation) over clients, NaN where unknown."""

    rounds: Int64[np.ndarray, "points"]
    uplink: Int64[np.ndarray, "points"]
    own: Float[np.ndarray, "points"]
    common: Float[np.ndarray, "points"]
    common_std: Float[np.ndarray, "points"]
    composition: Float[np.ndarray, "points"]
    others: Float[np.ndarray, "points"]


def curve(rows: Sequence[Row]) -> Curve:
    """The evaluated ones of a run's rows."""
    points = [(row, row.accuracy) for row in rows if row.accuracy]
    return Curve(
        rounds=np.array([row.round for row, _ in points], dtype=np.int64),
        uplink=np.array([row.uplink.raw for row, _ in points], dtype=np.int64),
        own=np.array([mean(point.own) for _, point in points]),
        common=np.array([mean(point.common) for _, point in points]),
        common_std=np.array([std(point.common) for _, point in points]),
        composition=np.array([_mean_of_all(point.composition) for _, point in points]),
        others=np.array([mean(point.others) for _, point in points]),
    )


def _mean_of_all(matrix: Rows | None) -> float:
    return mean(value for row in matrix for value in row) if matrix else math.nan


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder.

    Attributes:
        summary: ``summary.json``; while the run is not finished, what the other files say in the same form.
        beside: The rows of the references.
        data: How each data set was read.
        drawn: What clients drew at the end, beside real samples; empty where the method draws nothing.
        notices: What of its files nothing vouches for, or is not there any more.
    """

    path: Path
    config: RunConfig
    config_text: str
    summary: Summary
    rows: Sequence[Row]
    beside: Mapping[str, Sequence[Row]]
    finished: bool
    data: Sequence[DataFacts] = ()
    drawn: Sequence[Drawn] = ()
    notices: Sequence[str] = ()

    @property
    def rounds_done(self) -> int:
        """Rounds so far."""
        return self.rows[-1].round if self.rows else 0


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: there is no run, or a file of it cannot be read.
    """
    try:
        run = RunFolder(folder)
        config, text = run.config(), content(folder / "config.toml", follow=False).decode("utf-8")
        rows, summary = run.metrics(), run.summary()
        references = {path.name: RunFolder(path) for path in sorted((folder / "beside").glob("*")) if path.is_dir()}
        finished = summary is not None
        if summary is None:
            # a reference counts once it has as many rounds: others compare to nothing, such as those of a run that is
            # being extended
            done = rows[-1].round if rows else 0
            known = {name: reference.summary() for name, reference in references.items()}
            ended = {name: other for name, other in known.items() if other is not None and other.rounds == done}
            summary = concluded(_so_far(run, config, rows).model_copy(update={"beside": ended}), rows)
        beside = {name: reference.metrics() for name, reference in references.items()}
        data, drawn = run.data(), run.drawn()
        others = (f"beside/{name}: {text}" for name, reference in references.items() for text in reference.notices())
        notices = (*run.notices(), *others)
    except OSError as error:
        raise RunError(f"cannot read the run in {folder}: {error.strerror}: {error.filename}") from error
    return Run(folder, config, text, summary, rows, beside, finished, data, drawn, notices)


def _so_far(folder: RunFolder, config: RunConfig, rows: Sequence[Row]) -> Summary:
    """A summary of what is there."""
    ledger = folder.ledger()
    point = next((row.accuracy for row in reversed(rows) if row.accuracy), None)
    return summarise(
        config, folder, rows, ledger, Facts.of_config(config, parties=folder.between_parties), scores_of(point), None
    )
