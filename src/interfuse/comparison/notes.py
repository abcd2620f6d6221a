"""What has to be said under a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from interfuse.comparison.measures import Row
from interfuse.comparison.recipe import keys_of
from interfuse.report.diagnosis import SMALL_LOSS
from interfuse.report.text import percent
from interfuse.runs.summary import NO_COLLABORATION, mean

FEW = 3
"""With fewer values in an axis of a grid, one at its edge says nothing."""


def notes(rows: Sequence[Row]) -> list[str]:
    """Lines about entries that fail, that do not beat Local, or whose grid should go further."""
    local = next((row for row in rows if row.name == "local" and row.values), None)
    found: list[str] = []
    for row in rows:
        found += _failures(row)
    if local is not None:
        others = [row for row in rows if row.values and row.finished.entry.config.method not in NO_COLLABORATION]
        found += _not_better(others, local)
        for row in others:
            found += _composed(row, local)
    return found + _at_the_edges(rows)


def _failures(row: Row) -> Iterator[str]:
    for label, reason in row.finished.failures.items():
        yield f"{row.name}, {label}, failed: {reason}"


def _at_the_edges(rows: Sequence[Row]) -> list[str]:
    """One line: a best value that is the smallest or largest tried may not be the best there is."""
    edges = [f"{row.name} ({axis} = {value})" for row in rows for axis, value in _edges(row)]
    return [f"Chosen at the edge of the grid, so try values beyond it: {', '.join(edges)}."] if edges else []


def _edges(row: Row) -> Iterator[tuple[str, object]]:
    for axis, choices in row.finished.entry.grid.items():
        numbers = [choice for choice in choices if isinstance(choice, int | float)]
        value = (row.finished.chosen or {}).get(keys_of(axis)[0])
        if len(numbers) >= FEW and value in (min(numbers), max(numbers)):
            yield axis, value


def _not_better(others: Sequence[Row], local: Row) -> list[str]:
    """One line for all whose own accuracy is not above Local's."""
    alone = local.mean["own_last"]
    behind = [f"{row.name} ({percent(row.mean['own_last'])})" for row in others if row.mean["own_last"] <= alone]
    if not behind:
        return []
    return [f"Not better than local ({percent(alone)}) on the clients' own test shares: {'; '.join(behind)}."]


def _composed(row: Row, local: Row) -> Iterator[str]:
    if not all(run.summary.composes for run in row.runs):
        return
    swapped = row.mean["swapped_last"]
    together = local.mean["global_last"] if local.composition is None else mean(np.diagonal(local.composition))
    if swapped == swapped and together == together:
        verdict = "falls short" if swapped < together - SMALL_LOSS else "is its point"
        yield (
            f"{row.name} shares features, so composition {verdict}: blocks of two different clients reach "
            f"{percent(swapped)}, a client of local with its own two blocks {percent(together)}."
        )
