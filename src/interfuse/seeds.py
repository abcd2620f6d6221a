"""The same experiment with several seeds: a run folder each, and what they have in common."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from interfuse.errors import ConfigError, RunError
from interfuse.method import Method
from interfuse.references import short_name, slug
from interfuse.report.text import METRICS, figures, measured, told_by
from interfuse.result import Result
from interfuse.runs import RunConfig, Summary
from interfuse.runs.config import changed_in
from interfuse.runs.differences import difference, points
from interfuse.runs.summary import without_nan
from interfuse.runs.words import counted, percents, size
from interfuse.writing import write_whole

SUMMARY = "seeds.json"
Form = Callable[[float, float], str]


def folder_of(out: Path, seed: int) -> Path:
    """Where the run of a seed lies."""
    return out / f"seed-{seed}"


def check(config: RunConfig, seeds: Sequence[int], out: Path, method: Method | None = None) -> None:
    """Check that there are seeds, and that what lies in ``out`` belongs to this configuration.

    Raises:
        ConfigError: a seed is there twice, or its folder holds another configuration; names what differs.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds = {list(seeds)}: name at least one seed, and each once")
    for seed in seeds:
        if changed := _changed(config, seed, out, method):
            raise ConfigError(
                f"{folder_of(out, seed)} holds a run of another configuration: {'; '.join(changed)}; "
                "choose another --out"
            )


def default_folder(config: RunConfig, seeds: Sequence[int], method: Method | None = None) -> Path:
    """The first folder under ``runs/`` that is free, or has nothing but runs of this very configuration."""
    name = f"{slug(config.method, *config.data_names)}-seeds"
    paths = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in paths if not any(_changed(config, seed, path, method) for seed in seeds))


def _changed(config: RunConfig, seed: int, out: Path, method: Method | None) -> list[str]:
    """How the run of a seed that is there differs from the one that is asked for."""
    return changed_in(folder_of(out, seed), config.model_copy(update={"seed": seed}), method)


@dataclass(frozen=True, eq=False)
class SeedResults:
    """Finished runs of one configuration with several seeds.

    Attributes:
        path: The folder of their folders.
        results: The runs, in the order of the seeds.
    """

    path: Path
    results: tuple[Result, ...]

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """Those of the runs."""
        return tuple(result.summary for result in self.results)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(summary.seed for summary in self.summaries)

    @cached_property
    def per_seed(self) -> dict[str, list[float]]:
        """Every measure by seed, NaN where it is unknown: scores between 0 and 1, raw bytes sent by all clients, and
        metrics on own test shares, recall of absent and present classes on the common test set."""
        return _measured(self.summaries)

    @property
    def mean(self) -> dict[str, float]:
        """Of each measure, over seeds."""
        return {name: float(np.mean(values)) for name, values in self.per_seed.items()}

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation of each measure over seeds, that of a sample (n − 1); NaN for one seed."""
        return {name: _std(values) for name, values in self.per_seed.items()}

    def minus(self, reference: str) -> tuple[float, float]:
        """Own score minus that of a reference beside it with the same seed: mean and standard deviation over seeds.

        Raises:
            ConfigError: it did not run.
        """
        if any(reference not in summary.beside for summary in self.summaries):
            raise ConfigError(f"{reference!r} did not run beside these: run them with beside=[{reference!r}]")
        pairs = [s.own_accuracy.mean - s.beside[reference].own_accuracy.mean for s in self.summaries]
        return float(np.mean(pairs)), _std(pairs)

    def values(self) -> dict[str, Any]:
        """All of it as plain values, null for what is unknown; what ``seeds.json`` and ``--json`` say."""
        found: dict[str, Any] = without_nan(
            {
                "seeds": [summary.values() for summary in self.summaries],
                "mean": self.mean,
                "std": self.std,
                "minus": {name: dict(zip(("mean", "std"), self.minus(name), strict=True)) for name in self._beside},
            }
        )
        return found

    def write(self) -> SeedResults:
        """Write ``seeds.json``.

        Raises:
            RunError: it cannot be written.
        """
        try:
            write_whole(self.path / SUMMARY, json.dumps(self.values(), indent=1))
        except OSError as error:
            raise RunError(f"cannot write {self.path / SUMMARY}: {error.strerror}") from error
        return self

    @property
    def title(self) -> str:
        """What the table is of."""
        return f"Mean ± standard deviation over {len(self.results)} seeds"

    @property
    def heads(self) -> list[str]:
        """Those of the table."""
        score = self.summaries[0].score
        metrics = [
            f"{told_by(name)} {called}{', %' * (name in METRICS)}"
            for name, called in measured(self.summaries[0]).items()
        ]
        return ["", f"own {score}, %", f"global {score}, %", "mean composition, %", "uplink", *metrics]

    def lines(self) -> list[list[str]]:
        """The table as text: a line for each seed, then for all, for the references, and for the paired differences."""
        first = self.summaries[0]
        lines = [[f"seed {summary.seed}", *_cells(_measured([summary]), _mean)] for summary in self.summaries]
        lines.append([short_name(first.method), *_cells(self.per_seed, _spread)])
        for name in self._beside:
            of_reference = _measured([summary.beside[name] for summary in self.summaries])
            lines.append([f"{name}, beside it", *_cells(of_reference, _spread)])
        for name in self._beside:
            blank = [""] * (len(self.heads) - 2)
            found = difference([s.own_accuracy.mean - s.beside[name].own_accuracy.mean for s in self.summaries])
            lines.append([f"minus {name}, ± 95 %{', not told from 0' * found.untold}", points(found), *blank])
        return lines

    @property
    def notes(self) -> list[str]:
        """The warnings of the runs: each once, with how many seeds it is of, and the text of the first."""
        warnings = [warning for summary in self.summaries for warning in summary.warnings]
        seeds, first = Counter(w.name for w in warnings), {w.name: w.text for w in reversed(warnings)}
        of = counted(len(self.summaries), "seed")
        return [f"warning ({seeds[name]} of {of}): {name}. {first[name]}" for name in seeds]

    @property
    def _beside(self) -> list[str]:
        return [name for name in self.summaries[0].beside if all(name in other.beside for other in self.summaries)]

    def __repr__(self) -> str:
        rows = [self.heads, *self.lines()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self.title, *map(str.rstrip, lines), *self.notes, str(self.path)])

    def _repr_html_(self) -> str:
        from interfuse.report.html import render

        return render(
            "table.html", title=self.title, heads=self.heads, lines=self.lines(), notes=self.notes, path=self.path
        )


def _measured(summaries: Sequence[Summary]) -> dict[str, list[float]]:
    found = {
        "own_accuracy": [summary.own_accuracy.mean for summary in summaries],
        "global_accuracy": [summary.global_accuracy.mean for summary in summaries],
        "mean_composition": [summary.mean_composition for summary in summaries],
        "uplink_raw_bytes": [float(summary.uplink_bytes.raw) for summary in summaries],
    }
    names = measured(summaries[0])
    return found | {name: [summary.metric(name, told_by(name)).mean for summary in summaries] for name in names}


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _mean(values: Sequence[float], form: Form) -> str:
    return form(float(np.mean(values)), math.nan)


def _spread(values: Sequence[float], form: Form) -> str:
    return form(float(np.mean(values)), _std(values))


def _cells(found: Mapping[str, Sequence[float]], cell: Callable[[Sequence[float], Form], str]) -> list[str]:
    scores = ("own_accuracy", "global_accuracy", "mean_composition")
    forms: dict[str, Form] = {**dict.fromkeys((*scores, *METRICS), percents), "uplink_raw_bytes": size}
    return [cell(values, forms.get(name, figures)) for name, values in found.items()]
