"""The plots of a comparison: one colour an entry, mean and standard deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from interfuse.comparison.measures import Row, SeedRun, held, score_of
from interfuse.comparison.notes import some_clients
from interfuse.comparison.recipe import file_name
from interfuse.report.plots import (
    CLASSES,
    HEIGHT,
    MOST_NUMBERS,
    canvas,
    composition_figure,
    drawable,
    logarithmic_axis,
    percent_axis,
    style,
)
from interfuse.runs.words import prefix_of

Series = NDArray[np.float64]

_DASHES = ("-", "--", ":", "-.")
"""With more entries than colours, the same colours again."""
_MOST_BANDS = 8
"""With more curves, bands cover one another; the plot of the last round shows all seeds."""
_LINES_WITHIN = 4
"""With more lines in a legend, the figure is as much higher."""
_LINE = 0.27
"""Height of a line of a legend, as heights of :func:`canvas` are."""
_MOST_DECADES = 3
"""With more on an axis, powers of ten alone are written."""
_OVER: dict[str, tuple[str, Callable[[SeedRun], Series]]] = {
    "rounds": ("round", lambda run: run.curve.rounds.astype(float)),
    "uplink": ("uplink of all clients", lambda run: run.counted.astype(float)),
    "steps": ("gradient steps, clients and server", lambda run: run.steps.astype(float)),
}
_SCORES: dict[str, Callable[[SeedRun], Series]] = {
    "global": lambda run: run.curve.common,
    "composition": lambda run: run.curve.composition,
    "own": lambda run: run.curve.own,
}


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The plots by file name, those that have something to show."""
    found: dict[str, Figure] = {}
    score = score_of(rows)
    for kind, values in _SCORES.items():
        for over, (axis, x) in _OVER.items():
            drawn = [row for row in rows if row.runs and not np.isnan(values(row.runs[0])).all()]
            factor = 1.0
            if over == "uplink":
                factor, prefix = prefix_of(x(row.runs[0])[-1] for row in drawn)
                axis += " on the wire" * any(run.on_the_wire for row in drawn for run in row.runs) + f", {prefix}B"
            if any(x(row.runs[0])[-1] > 0 for row in drawn):
                label = _over(f"{kind} {score}", drawn, "own" if kind == "own" else "global")
                found[f"{kind}-{over}"] = curves(
                    rows, drawn, partial(_scaled, x, factor), values, axis, label, logarithmic=over == "uplink"
                )
    if any(row.values for row in rows):
        found["final"] = finals(rows, score)
    sending = [row for row in rows if row.values and row.mean["uplink_wire"] > 0]
    if any(run.summary.codecs for row in sending for run in row.runs):
        found["frontier"] = frontier(sending, score)
    for row in rows:
        if row.composition is not None and 1 < len(row.composition) <= MOST_NUMBERS:
            found[heat_map_name(row)] = composition_figure(row.composition, row.name)
    return found


def _over(label: str, rows: Sequence[Row], side: str = "global") -> str:
    """A label that says in a second line whom means are over, where not all clients have the figure."""
    some = some_clients(rows, side)
    return f"{label},\n{some}" if some else label


def _scaled(x: Callable[[SeedRun], Series], factor: float, run: SeedRun) -> Series:
    return x(run) / factor


def heat_map_name(row: Row) -> str:
    """The file name of an entry's mean matrix of compositions."""
    return f"composition-of-{file_name(row.name)}"


def _colour(place: int) -> str:
    return CLASSES[place % len(CLASSES)]


@style()
def curves(
    rows: Sequence[Row],
    drawn: Sequence[Row],
    x: Callable[[SeedRun], Series],
    score: Callable[[SeedRun], Series],
    axis: str,
    label: str,
    *,
    logarithmic: bool,
) -> Figure:
    """The score over rounds, bytes or steps, as mean over seeds; of few entries with a band of one standard deviation.

    Args:
        rows: All entries, whose places give the colours.
        logarithmic: On such an axis, an entry that never leaves zero is a level line where it ends.
    """
    names = [drawable(row.name, f"entry {list(rows).index(row)}") for row in drawn]
    level = [logarithmic and x(row.runs[0])[-1] == 0 for row in drawn]
    names = [f"{name}, at its end" if flat else name for name, flat in zip(names, level, strict=True)]
    longest = max(map(len, names))
    columns = 3 if longest <= 11 else 2 if longest <= 20 else 1
    lines = math.ceil(len(names) / columns)
    figure, axes = canvas(HEIGHT * 1.15 + max(0, lines - _LINES_WITHIN) * _LINE)
    banded = sum(not logarithmic or x(row.runs[0])[-1] > 0 for row in drawn) <= _MOST_BANDS
    for row, name, flat in zip(drawn, names, level, strict=True):
        place = list(rows).index(row)
        # of those that are not over yet: a run that stopped early keeps its score, and not its place
        at = np.nanmean(list(zip_longest(*map(x, row.runs), fillvalue=math.nan)), axis=1)
        values = held([score(run) for run in row.runs])
        mean, std = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        dashes = _DASHES[place // len(CLASSES) % len(_DASHES)]
        if flat:
            axes.axhline(mean[-1], linestyle=":", color=_colour(place), linewidth=1.2, label=name)
            continue
        shown = at > 0 if logarithmic else np.ones(len(at), bool)
        low, high = (mean - std)[shown], (mean + std)[shown]
        if banded:
            axes.fill_between(at[shown], low, high, color=_colour(place), alpha=0.15, linewidth=0)
        marker = "o" if shown.sum() < 3 else ""
        axes.plot(at[shown], mean[shown], linestyle=dashes, marker=marker, color=_colour(place), label=name)
    if logarithmic:
        logarithmic_axis(axes, _MOST_DECADES)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set(xlabel=axis, ylabel=label)
    percent_axis(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=columns)
    return figure


@style()
def finals(rows: Sequence[Row], score: str) -> Figure:
    """A dot for each seed after the last round, own and global score, and a stroke at the mean.

    Colours are the entries' elsewhere, so the two scores differ in grey and mark.
    """
    shown = [row for row in rows if row.values]
    figure, axes = canvas(1.1 + 0.42 * len(shown))
    places = np.arange(len(shown))
    for side, mark, grey, shift in (("own", "o", "0.55", -0.15), ("global", "D", "0.25", 0.15)):
        key = f"{side}_last"
        for place, row in zip(places, shown, strict=True):
            values = [found[key] for found in row.values]
            axes.plot(values, np.full(len(values), place + shift), mark, color=grey, markersize=3.5)
            axes.plot([row.mean[key]] * 2, place + shift + np.array([-0.14, 0.14]), color=grey, linewidth=1.3)
        axes.plot([], [], mark, color=grey, label=_over(side, shown, side))
    axes.set_yticks(places, [drawable(row.name, f"entry {place}") for place, row in enumerate(shown)])
    axes.set_ylim(len(shown) - 0.55, -0.45)
    axes.tick_params(axis="y", length=0)
    percent_axis(axes.xaxis)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set(xlabel=f"{score} after the last round")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@style()
def frontier(rows: Sequence[Row], score: str) -> Figure:
    """A dot for each entry: its uplink on the wire, and its global score after the last round; means over seeds.

    The line joins, by name, the entries that are better than all who send less.
    """
    figure, axes = canvas(HEIGHT * 1.3)
    axes.margins(x=0.15)  # room for names
    factor, prefix = prefix_of(row.mean["uplink_wire"] for row in rows)
    methods = list(dict.fromkeys(row.finished.entry.config.method for row in rows))
    for place, method in enumerate(methods):
        own = [row.mean for row in rows if row.finished.entry.config.method == method]
        uplinks, accuracies = [m["uplink_wire"] / factor for m in own], [m["global_last"] for m in own]
        axes.plot(uplinks, accuracies, "os^D"[place // len(CLASSES) % 4], color=_colour(place), label=method)
    best = better_than_all_who_send_less(rows)
    line = [(row.mean["uplink_wire"] / factor, row.mean["global_last"]) for row in best]
    axes.plot(*zip(*line, strict=True), color="0.5", linewidth=1, zorder=0)
    for row, point in zip(best, line, strict=True):
        axes.annotate(drawable(row.name, "?"), point, xytext=(3, -9), textcoords="offset points", fontsize="x-small")
    logarithmic_axis(axes, _MOST_DECADES)
    axes.set(xlabel=f"uplink of all clients on the wire, {prefix}B", ylabel=_over(f"global {score}", rows))
    percent_axis(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def better_than_all_who_send_less(rows: Sequence[Row]) -> list[Row]:
    """The frontier: from the smallest uplink on the wire up, who has a better global accuracy than all before."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: row.mean["uplink_wire"]):
        if not found or row.mean["global_last"] > found[-1].mean["global_last"]:
            found.append(row)
    return found
