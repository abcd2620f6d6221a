"""The pictures of what a method shows: numbers over the rounds, and matrices of clients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interfuse.report.plots import BLUE, HEIGHT, MOST_NUMBERS, SHADES, WIDTH, canvas, drawable, shortened, style
from interfuse.report.text import capital
from interfuse.runs import Row, Summary
from interfuse.runs.summary import mean, std

MOST_NAMES = 24
"""Clients of a matrix that still have room for names."""
DARK = 0.55
"""From this share of the way between the ends of a scale on, numbers on its colours are white."""


def shown_figures(rows: Sequence[Row], summary: Summary) -> dict[str, Figure]:
    """The plots of what a method shows, by file name."""
    found: dict[str, Figure] = {}
    for name in {name: None for row in rows for name in row.shown.means}:
        known = [(row.round, row.shown) for row in rows if not np.isnan(row.shown.means.get(name, np.nan))]
        if len(known) > 1:
            rounds, values = zip(*known, strict=True)
            spread = [std(one.clients.get(name, ())) for one in values]
            found[file_of(name)] = over_rounds(rounds, [one.means[name] for one in values], spread, name)
    for name, pairs in summary.shown.pairs.items():
        matrix = np.array(pairs, dtype=float)
        if not np.isnan(matrix).all():
            found[file_of(name)] = pairs_figure(matrix, name, client_names(summary))
    return found


def file_of(name: str) -> str:
    """A file's name for what has this name."""
    return "shown-" + re.sub(r"\W+", "-", name.casefold(), flags=re.ASCII).strip("-")


def client_names(summary: Summary) -> list[str]:
    """What clients are called in a picture: by number, and by their people or tasks where these have names."""
    return [" ".join([str(client.id), *client.groups[:1]]) for client in summary.clients]


@style()
def over_rounds(rounds: Sequence[int], means: Sequence[float], spread: Sequence[float], name: str) -> Figure:
    """A number over the rounds; where each client has one their mean, within one standard deviation."""
    figure, axes = canvas(HEIGHT)
    low, high = (np.array(means) + sign * np.nan_to_num(spread) for sign in (-1, 1))
    axes.fill_between(rounds, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(rounds, means, color=BLUE, marker="o" if len(rounds) < 3 else "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="round", ylabel=drawable(name, "shown"))
    return figure


@style()
def pairs_figure(matrix: Float[np.ndarray, "clients clients"], name: str, clients: Sequence[str]) -> Figure:
    """A matrix of clients. Colours go from the smallest to the largest value off the diagonal."""
    low, high = scale_of(matrix)
    figure, axes = canvas(WIDTH * 0.86)
    image = axes.imshow(matrix, cmap=SHADES, vmin=low, vmax=high, interpolation="nearest", aspect="equal")
    axes.grid(visible=False)
    axes.set(title=drawable(name, "shown"))
    if len(matrix) <= MOST_NAMES:
        names = [shortened(drawable(text, str(place)), 20) for place, text in enumerate(clients)]
        size = min(7.0, 110 / len(matrix))
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_xticks(range(len(names)), [text.split(" ")[0] for text in names], fontsize=size)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        axes.set(xlabel="client", ylabel="client")
    if len(matrix) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                colour = "#ffffff" if value > low + DARK * (high - low) else "#10151b"
                text = re.sub("^(-?)0", r"\1", f"{round(value, 2) + 0.0:.2f}").replace("-", "−")
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=min(7.0, 46 / len(matrix)), color=colour
                )
    figure.colorbar(image, ax=axes, shrink=0.7).outline.set_visible(False)
    return figure


def scale_of(matrix: Float[np.ndarray, "clients clients"]) -> tuple[float, float]:
    """The ends of a scale: of the known values off the diagonal, or of all where these are none or alike."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    for values in (off[~np.isnan(off)], matrix[~np.isnan(matrix)]):
        if values.size and values.min() < values.max():
            return float(values.min()), float(values.max())
    return 0.0, 1.0


def shown_texts(summary: Summary, rounds: int) -> Mapping[str, str]:
    """What stands below each picture, for who cannot see it too, by file name.

    Args:
        rounds: How many there were so far.
    """
    shown, after = summary.shown, f"after round {rounds}"
    found = {file_of(name): f"{capital(name)}: {value:.3g} {after}." for name, value in shown.numbers.items()}
    for name, values in shown.clients.items():
        spread = f"{mean(values):.3g} ± {std(values):.2g} {after}"
        found[file_of(name)] = f"{capital(name)}, mean over clients within one standard deviation: {spread}."
    for name, pairs in shown.pairs.items():
        low, high = scale_of(np.array(pairs, dtype=float))
        ends = f"off the diagonal {round(low, 2) + 0.0:.2f} to {high:.2f}, by colour"
        found[file_of(name)] = f"{capital(name)} {after}: a row and a column for each client; {ends}."
    return found
