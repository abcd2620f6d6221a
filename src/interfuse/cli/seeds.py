"""The same experiment with several seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.table import Table

from interfuse.api import carry_out, resume
from interfuse.cli.listings import table
from interfuse.errors import ConfigError
from interfuse.references import short_name
from interfuse.report.text import bare_percent, megabytes
from interfuse.runs import Progress, RunConfig, Summary
from interfuse.runs.config import changed_in

Values = Float[np.ndarray, "measured"]
MEASURED = ("own_accuracy", "global_accuracy", "mean_composition", "uplink_raw_bytes")


def run(config: RunConfig, seed: int, out: Path, progress: Progress) -> Summary:
    """Carry out a configuration with one seed in ``out/seed-S``. What is finished is kept, what was begun goes on.

    Returns the summary.
    """
    path = folder_of(out, seed)
    if (path / "config.toml").exists():
        return resume(path, progress=progress).summary
    return carry_out(config.model_copy(update={"seed": seed}), path, progress=progress).summary


def check(config: RunConfig, seeds: Sequence[int], out: Path) -> None:
    """Check that what lies in ``out`` belongs to this configuration.

    Raises:
        ConfigError: the folder of a seed holds another configuration; names what differs.
    """
    for seed in seeds:
        if changed := _changed(config, seed, out):
            raise ConfigError(
                f"{folder_of(out, seed)} holds a run of another configuration: {'; '.join(changed)}; "
                "choose another --out"
            )


def folder_of(out: Path, seed: int) -> Path:
    """Where the run of a seed lies."""
    return out / f"seed-{seed}"


def default_folder(config: RunConfig, seeds: Sequence[int]) -> Path:
    """The first folder under ``runs/`` that is free, or has nothing but runs of this very configuration."""
    name = f"{short_name(config.method)}-{'-'.join(map(short_name, config.data_names))}-seeds".lower()
    paths = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in paths if not any(_changed(config, seed, path) for seed in seeds))


def _changed(config: RunConfig, seed: int, out: Path) -> list[str]:
    """How the run of a seed that is there differs from the one that is asked for."""
    return changed_in(folder_of(out, seed), config.model_copy(update={"seed": seed}))


def over_seeds(summaries: Sequence[Summary]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and standard deviation over seeds; None where they are unknown."""
    means, deviations = _mean_and_std(summaries)
    return _by_name(means), _by_name(deviations)


def overview(summaries: Sequence[Summary]) -> Table:
    """A line for each seed, then mean ± standard deviation over seeds, the same for the references beside."""
    first = summaries[0]
    rows = [(f"seed {summary.seed}", *_cells(_measured(summary))) for summary in summaries]
    rows.append((short_name(first.method), *_spreads(summaries)))
    for name in first.beside:
        rows.append((f"{name}, beside it", *_spreads([summary.beside[name] for summary in summaries])))
    heads = ("", f"own {first.score}, %", f"global {first.score}, %", "mean composition, %", "uplink, MB")
    return table(heads, rows, title=f"Mean ± standard deviation over {len(summaries)} seeds")


def _measured(summary: Summary) -> list[float]:
    accuracies = (summary.own_accuracy.mean, summary.global_accuracy.mean, summary.mean_composition)
    return [*accuracies, float(summary.uplink_bytes.raw)]


def _mean_and_std(summaries: Sequence[Summary]) -> tuple[Values, Values]:
    """Over seeds; the standard deviation is that of a sample (n - 1), so unknown for one seed."""
    rows = np.array([_measured(summary) for summary in summaries])
    return rows.mean(axis=0), rows.std(axis=0, ddof=1) if len(rows) > 1 else np.full(len(MEASURED), math.nan)


def _spreads(summaries: Sequence[Summary]) -> list[str]:
    means, deviations = (_cells(values) for values in _mean_and_std(summaries))
    return [f"{mean} ± {deviation}" for mean, deviation in zip(means, deviations, strict=True)]


def _by_name(values: Values) -> dict[str, float | None]:
    known = [float(value) if math.isfinite(value) else None for value in values]
    return dict(zip(MEASURED, known, strict=True))


def _cells(values: Iterable[float]) -> list[str]:
    *accuracies, uplink = values
    return [*(bare_percent(value) for value in accuracies), megabytes(uplink)]
