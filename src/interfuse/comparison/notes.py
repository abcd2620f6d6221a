"""What has to be said beside the figures of a table, and under it."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from interfuse.comparison.measures import Row, SeedRun
from interfuse.comparison.recipe import keys_of
from interfuse.comparison.resolution import paired
from interfuse.report.text import percent
from interfuse.runs.differences import difference, points
from interfuse.runs.protocols import departures
from interfuse.runs.summary import NO_COLLABORATION, mean
from interfuse.runs.verdict import OTHER_STEPS, SMALL_LOSS
from interfuse.runs.words import counts

FEW = 3
"""With fewer values in an axis of a grid, one at its edge says nothing."""


@dataclass(frozen=True)
class Footnote:
    """A note that stands beside figures by its mark.

    Attributes:
        entries: The names of those that it is of.
        keys: The measures that it is of; empty where it is of the whole entry, whose name then has the mark.
    """

    mark: str
    text: str
    entries: Sequence[str]
    keys: Sequence[str] = ()


def footnotes(rows: Sequence[Row]) -> list[Footnote]:
    """What single runs know of their figures, one note for all seeds and entries of which it is true."""
    there = [row for row in rows if row.values]
    of_runs = (_protocols, _warnings, _unequal_work, _stopped_early, _missing_replies, _clients_behind)
    found = [note for notes_of in of_runs for note in notes_of(there)]
    return [replace(note, mark=mark_of(place)) for place, note in enumerate(found)]


def mark_of(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = string.ascii_lowercase
    return ("" if place < len(letters) else mark_of(place // len(letters) - 1)) + letters[place % len(letters)]


def _protocols(rows: Sequence[Row]) -> Iterator[Footnote]:
    """Whose protocol the runs follow, and what all or some of them have otherwise; what it sets is in their reports."""
    by_name: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if said := row.runs[0].summary.protocol:
            name, other = departures(said)
            by_name.setdefault(name, {})[row.name] = other
    for name, others in by_name.items():
        alike = [one for one in next(iter(others.values())) if all(one in other for other in others.values())]
        text = f"by protocol {name}, whose settings the report of each run lists"
        yield Footnote("", f"{text}; otherwise than it: {', '.join(alike)}" if alike else text, list(others))
        alone: dict[str, list[str]] = {}
        for entry, other in others.items():
            if own := [one for one in other if one not in alike]:
                alone.setdefault(", ".join(own), []).append(entry)
        for text, entries in alone.items():
            yield Footnote("", f"otherwise than protocol {name}: {text}", entries)


def _warnings(rows: Sequence[Row]) -> Iterator[Footnote]:
    """Those of the runs; of one name and several texts, which differ in numbers, that of the first seed stands."""
    by_text: dict[str, list[str]] = {}
    for row in rows:
        first: dict[str, str] = {}
        seeds: dict[str, list[int]] = {}
        for run in row.runs:
            for warning in run.summary.warnings:
                first.setdefault(warning.name, warning.text)
                seeds.setdefault(warning.name, []).append(run.seed)
        for name, text in first.items():
            of = "" if len(seeds[name]) == len(row.runs) else f" (seed {', '.join(map(str, seeds[name]))})"
            by_text.setdefault(f"{name}{of}: {text}", []).append(row.name)
    for text, names in by_text.items():
        yield Footnote("", text, names)


def _unequal_work(rows: Sequence[Row]) -> Iterator[Footnote]:
    """Who took other gradient steps than Local, or, where there is none, than the first entry."""
    if not rows:
        return
    usual = next((row for row in rows if row.name == "local"), rows[0])
    steps = usual.mean["steps_clients"]
    others = [row for row in rows if abs((own := row.mean["steps_clients"]) - steps) > OTHER_STEPS * max(own, steps)]
    if others:
        each = "; ".join(f"{row.name} {_work(row)}" for row in others)
        yield Footnote(
            "",
            f"unequal work: gradient steps of all clients, beside {counts(steps)} of {usual.name}: {each}",
            [row.name for row in others],
        )


def _work(row: Row) -> str:
    server = row.mean["steps_server"]
    return counts(row.mean["steps_clients"]) + (f" and {counts(server)} at the server" if server else "")


def _stopped_early(rows: Sequence[Row]) -> Iterator[Footnote]:
    each = {
        row.name: ", ".join(f"{run.summary.rounds:,}" for run in row.runs)
        for row in rows
        if any(run.summary.stopped is not None for run in row.runs)
    }
    if each:
        text = "; ".join(f"{name} {rounds}" for name, rounds in each.items())
        yield Footnote("", f"early stopping: so many rounds, by seed: {text}", list(each))


def _missing_replies(rows: Sequence[Row]) -> Iterator[Footnote]:
    each = {}
    for row in rows:
        kinds = dict.fromkeys(kind for run in row.runs for kind in run.summary.missing_replies)
        means = {kind: mean(run.summary.missing_replies.get(kind, 0) for run in row.runs) for kind in kinds}
        if any(means.values()):
            each[row.name] = ", ".join(f"{counts(value)} {kind}" for kind, value in means.items() if value)
    if each:
        text = "; ".join(f"{name} {said}" for name, said in each.items())
        yield Footnote("", f"rounds went on without replies, so many a seed: {text}", list(each))


def _clients_behind(rows: Sequence[Row]) -> Iterator[Footnote]:
    """Scores that are means over some of the clients alone."""
    for side in ("own", "global"):
        by_text: dict[str, list[str]] = {}
        for row in rows:
            if some := some_clients([row], side):
                by_text.setdefault(f"mean over the {some} {_which(row, side)}", []).append(row.name)
        for text, names in by_text.items():
            keys = dict.fromkeys(key for row in rows for key in row.mean if key.startswith(f"{side}_"))
            yield Footnote("", f"{side}: {text}", names, tuple(keys))


def _which(row: Row, side: str) -> str:
    if side == "global":
        return "that were evaluated"
    some = any(run.summary.evaluated for run in row.runs)
    return "that were evaluated and have a test share of their own" if some else "with a test share of their own"


def clients_behind(run: SeedRun, side: str) -> int:
    """How many clients the mean of a score is over, ``own`` or ``global``."""
    scores = run.summary.own_accuracy if side == "own" else run.summary.global_accuracy
    return sum(not math.isnan(value) for value in scores.per_client)


def some_clients(rows: Sequence[Row], side: str) -> str:
    """``100 of 130 clients`` or ``90 to 95 of 100 clients``, where means are over some alone; else empty.

    Args:
        side: The score that they are of, ``own`` or ``global``.
    """
    found = []
    for most in dict.fromkeys(run.clients for row in rows for run in row.runs):
        behind = sorted({clients_behind(run, side) for row in rows for run in row.runs if run.clients == most})
        if behind[0] < most:
            ends = dict.fromkeys((behind[0], behind[-1]))
            found.append(f"{' to '.join(f'{end:,}' for end in ends)} of {most:,} clients")
    return " or ".join(found)


def rows_behind(rows: Sequence[Row]) -> str:
    """How many test rows are behind the figures of a table, over entries and seeds."""
    counted: dict[str, set[int]] = {}
    for run in (run for row in rows for run in row.runs):
        for evidence, behind in run.summary.rows.items():
            counted.setdefault(evidence, set()).add(behind)
    each = [
        f"{evidence} {' to '.join(f'{end:,}' for end in dict.fromkeys((min(found), max(found))))}"
        for evidence, found in counted.items()
    ]
    return f"Test rows behind a figure: {'; '.join(each)}." if each else ""


def notes(rows: Sequence[Row]) -> list[str]:
    """Lines about entries that fail, how all stand beside Local, and whose grid should go further."""
    local = next((row for row in rows if row.name == "local" and row.values), None)
    found: list[str] = []
    for row in rows:
        found += _failures(row)
    if local is not None:
        others = [row for row in rows if row.values and row.finished.entry.config.method not in NO_COLLABORATION]
        found += _beside_local(others, local)
        for row in others:
            found += _composed(row, local)
    return found + _at_the_edges(rows)


def _failures(row: Row) -> Iterator[str]:
    verb = "refused" if row.finished.refused else "failed"
    for label, reason in row.finished.failures.items():
        yield f"{row.name}, {label}, {verb}: {reason}"


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


def _beside_local(others: Sequence[Row], local: Row) -> Iterator[str]:
    """A line for all that are told to be below Local, and one for all that are not told from it."""
    found = {row.name: paired(row, local, "own_last") for row in others}
    below = {name: d for name, d in found.items() if d.told and d.mean < 0}
    untold = {name: d for name, d in found.items() if d.untold}
    for said, group in (("Worse than local", below), ("Not told from local", untold)):
        if group:
            some = some_clients([local, *(row for row in others if row.name in group)], "own")
            where = f"on the clients' own test shares{f' ({some})' * bool(some)}, in points with half the 95 % interval"
            yield f"{said} {where}: {'; '.join(f'{name} ({points(d)})' for name, d in group.items())}."


def _composed(row: Row, local: Row) -> Iterator[str]:
    """How compositions stand beside a client of Local with its own two blocks, where features are shared."""
    if not all(run.summary.composes for run in row.runs):
        return
    alone = {run.seed: _together(run) for run in local.runs}
    pairs = [(run.summary.mean_swapped, alone.get(run.seed, math.nan)) for run in row.runs]
    found = difference([swapped - together for swapped, together in pairs])
    if math.isnan(found.mean):
        return
    verdict = "is not told from that"
    if found.told:
        verdict = "falls short" if found.mean < -SMALL_LOSS else "is its point"
    yield (
        f"{row.name} shares features, so composition {verdict}: blocks of two different clients reach "
        f"{percent(mean(swapped for swapped, _ in pairs))}, a client of local with its own two blocks "
        f"{percent(mean(together for _, together in pairs))} ({points(found)} points)."
    )


def _together(run: SeedRun) -> float:
    """The score of a client with its own two blocks, mean over clients."""
    matrix = run.summary.composition
    return run.summary.global_accuracy.mean if matrix is None else mean(np.diagonal(matrix))
