"""The plots of a run, drawn without any global state of matplotlib's plotting layer.

Colours of ink and paper are markers: :func:`inline_svg` hands them to the style sheet of the page, which knows light
and dark. Files keep dark ink on white.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import Float, Int64
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from interfuse.evaluation import Adaptation, Side
from interfuse.references import short_name
from interfuse.report.run import Curve, Run, curve
from interfuse.report.text import bare_percent, over_clients
from interfuse.runs.summary import NO_COLLABORATION, NOTHING, Matrix, MovedOfKind, Scores
from interfuse.runs.words import prefix_of
from interfuse.writing import write_whole

INK, PAPER = "#1f2329", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE = "#3b82c4", "#d9772b", "#2f9e6e", "#8a6fc0"
CLASSES = (BLUE, ORANGE, GREEN, "#c4504f", PURPLE, "#8c6d4f", "#cf6fb0", "#7f8791", "#a8a432", "#32a3b5")
SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f8fc", "#8fbbe3", "#3b82c4", "#173f6b"])
WIDTH, HEIGHT = 5.0, 3.4  # of figures, in the unit that they are laid out in
COLUMN = 3.3  # inches: a column of a two-column page, and still legible where a telephone shrinks it to 350 pixels
WIDE_RANGE = 20.0  # quotient of the largest and the smallest positive value from which an axis is logarithmic
ON_PAPER = ("accuracy-rounds", "accuracy-uplink", "composition")
"""Plots of a run that are PDFs too: embedding fonts takes longer than drawing."""
MOST_BARS = 2000  # more pieces of stacked bars than this become an image
MOST_NUMBERS = 16  # rows of a matrix that still have room for numbers
MOST_BESIDE = 26  # letters of a legend's label that still leave room for a second column
FONT = "DejaVu Sans"  # comes with matplotlib: the same picture everywhere

_DASHES: Mapping[str, Literal["--", ":"]] = {"local": "--", "pooled": ":"}

_STYLE: Mapping[Any, Any] = {
    "font.family": [FONT],
    "font.size": 8,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.columnspacing": 1.0,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType, as publishers ask for
}


@contextmanager
def style(salt: str = "interfuse") -> Iterator[None]:
    """Our style for a while, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


def figures(run: Run) -> dict[str, Figure]:
    """The plots of a run by file name, those that have something to show."""
    summary, points = run.summary, curve(run.rows)
    found: dict[str, Figure] = {}
    alone = (summary.local or NOTHING).composition
    if summary.composition is not None:
        found["composition"] = composition_figure(summary.composition, short_name(summary.method))
    if alone is not None:
        found["composition-local"] = composition_figure(alone, "Local's blocks")
    for when, values in summary.similarity.items():
        if values is not None:
            title = f"linear CKA, {when} training"
            found[f"similarity-{when}"] = similarity_figure(np.array(values, dtype=float), title)
    if not all(np.isnan(values).all() for values in (points.own, points.common, points.composition)):
        curves = {name: curve(rows) for name, rows in run.beside.items()}
        found["accuracy-rounds"] = score_over_rounds(points, curves, summary.score, over_clients(summary))
        if points.uplink[-1] > 0:
            finals = {name: summary.beside[name] for name in NO_COLLABORATION if name in summary.beside}
            found["accuracy-uplink"] = score_over_uplink(points, finals, summary.score, over_clients(summary))
    titles: dict[Side, str] = {"own": "own test shares", "global": "common test set"}
    for on, counts in summary.confusion.items():
        if np.any(counts):
            found[f"confusion-{on}"] = confusion_figure(np.array(counts), summary.class_names, titles[on])
    if summary.bytes_by_kind:
        found["bytes"] = bytes_figure(summary.bytes_by_kind)
    if summary.class_counts:
        found["classes"] = class_counts_figure(np.array(summary.class_counts), summary.class_names)
    if summary.seconds_by_phase:
        found["time"] = time_figure(summary.seconds_by_phase)
    return found


def save(figure: Figure, folder: Path, name: str, *, paper: bool = True) -> str:
    """Write a plot as SVG and PNG, and with ``paper`` as PDF. The same figure gives the same bytes. Returns the SVG."""
    text, image = as_svg(figure, name), io.BytesIO()
    with style(name):
        # It is laid out now: doing so again for the others would take as long as all else. For the same reason they are
        # not saved by the figure, which draws once for nothing to have it laid out.
        figure.set_layout_engine("none")
        if paper:
            nobody = {"CreationDate": None, "Creator": None, "Producer": None}
            pdf: Any = FigureCanvasPdf(figure)  # its methods have no types
            page = io.BytesIO()
            pdf.print_pdf(page, metadata=nobody)
            write_whole(folder / f"{name}.pdf", page.getvalue(), durable=False)
        figure.dpi = 300
        png: Any = FigureCanvasAgg(figure)
        png.print_png(image, metadata={"Software": None})
    write_whole(folder / f"{name}.svg", text, durable=False)
    write_whole(folder / f"{name}.png", image.getvalue(), durable=False)
    return text


def as_svg(figure: Figure, name: str) -> str:
    """A plot as SVG, laid out; it is the same for the same figure and name."""
    with style(name):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline_svg(svg: str, name: str, label: str) -> Markup:
    """A plot as an element of the page: ids of its own, the page's ink and paper, a text for who cannot see it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    opening, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]+)"', opening)
    assert box is not None, "matplotlib writes a viewBox"
    rest = re.sub(r'(\bid="|\bxlink:href="#|url\(#)', rf"\g<1>{name}-", rest)
    rest = rest.replace(INK, "var(--ink)").replace(PAPER, "var(--card)")
    return Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], label) + Markup(rest)


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure as wide as all, with axes to draw on; ``height`` where it were ``WIDTH`` wide."""
    figure = Figure(figsize=(COLUMN, COLUMN / WIDTH * height))
    return figure, figure.subplots()


def percent_axis(axis: Axis) -> None:
    """Shares as percentages, each tick with as many digits as it has: 12.5 % is not 12 %."""
    axis.set_major_formatter(lambda value, position: f"{round(100 * value, 6):g}".replace("-", "−") + " %")


@style()
def composition_figure(matrix: Matrix, title: str) -> Figure:
    """Accuracies of all pairs: a row for each base block, a column for each modular block."""
    figure, axes = _shares(matrix)
    axes.set(title=drawable(title, "this run"), xlabel="modular block of client", ylabel="base block of client")
    return figure


@style()
def similarity_figure(matrix: Matrix, title: str) -> Figure:
    """Linear CKA between the fusion-layer outputs of all clients."""
    figure, axes = _shares(matrix)
    axes.set(title=title, xlabel="base block of client", ylabel="base block of client")
    return figure


@style()
def confusion_figure(counts: Int64[np.ndarray, "classes answers"], class_names: Sequence[str], title: str) -> Figure:
    """Answers by class as shares of the samples of the class (row); a class without samples is a row without numbers.

    Args:
        counts: Samples by class (row) and answer (column); the last column, of samples without an answer, is shown
            where there are some.
        class_names: A name for each row.
    """
    shown = counts if counts[:, -1].any() else counts[:, :-1]
    shares = np.divide(
        shown, counts.sum(1, keepdims=True), out=np.full(shown.shape, np.nan), where=counts.any(1, keepdims=True)
    )
    figure, axes = _shares(shares)
    axes.set(title=title, xlabel="answer", ylabel="class")
    if len(shares) <= MOST_NUMBERS:
        names = [shortened(drawable(name, str(index)), 12) for index, name in enumerate(class_names)]
        answers = [*names, "none"][: shares.shape[1]]
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(len(answers)), answers, rotation=90 if max(map(len, answers)) > 2 else 0)
    return figure


def _shares(matrix: Float[np.ndarray, "rows columns"]) -> tuple[Figure, Axes]:
    """Numbers between 0 and 1 as colours, and written out where there is room."""
    figure, axes = canvas(WIDTH * 0.86)
    image = axes.imshow(matrix, cmap=SHADES, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    if len(matrix) <= MOST_NUMBERS:
        size = min(8.0, 48 / len(matrix))
        for (row, column), value in np.ndenumerate(matrix):
            colour = "#ffffff" if value > 0.55 else "#10151b"
            axes.text(column, row, bare_percent(float(value)), ha="center", va="center", fontsize=size, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    percent_axis(bar.ax.yaxis)
    bar.outline.set_visible(False)
    return figure, axes


@style()
def score_over_rounds(points: Curve, beside: Mapping[str, Curve], score: str, clients: str) -> Figure:
    """Mean scores over the rounds, with the standard deviation of the global one over clients; Local dashed.

    Args:
        clients: Whom means are over, in words.
    """
    figure, axes = canvas(HEIGHT * 1.1)
    handles = _lines(axes, points.rounds, points, np.ones(len(points.rounds), bool), clients)
    for name, other in beside.items():
        if name in _DASHES and len(other.rounds):
            for values, colour in _coloured(other):
                if not np.isnan(values).all() and (name == "local" or colour != GREEN):
                    axes.plot(other.rounds, values, _DASHES[name], color=colour, linewidth=1.0, alpha=0.85)
            handles.append(_reference(name, name.title()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    last = max(1, *points.rounds, *(round for other in beside.values() for round in other.rounds))
    axes.set_xlim(-0.03 * last, 1.03 * last)
    _finish(figure, axes, "round", score, handles)
    return figure


@style()
def adaptation_figure(found: Adaptation) -> Figure:
    """Scores on an unseen task over gradient steps, a line for each start."""
    figure, axes = canvas(HEIGHT * 1.1)
    handles: list[Line2D] = []
    for place, (start, scores) in enumerate(found.curves.items()):
        dash = "--" if start.startswith("new") else "-"
        label, colour = drawable(start, f"start {place}"), CLASSES[place % len(CLASSES)]
        handles += axes.plot(found.steps, scores, dash, color=colour, marker="o", markersize=3, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _finish(figure, axes, "gradient steps on the unseen task", found.score, handles)
    return figure


@style()
def score_over_uplink(points: Curve, finals: Mapping[str, Scores], score: str, clients: str) -> Figure:
    """Mean scores over the bytes that all clients sent; where the references end as level lines.

    Args:
        finals: The final scores of the references, which send nothing.
        clients: Whom means are over, in words.
    """
    figure, axes = canvas(HEIGHT * 1.1)
    factor, prefix = prefix_of(points.uplink)
    sent = points.uplink / factor
    positive = sent[sent > 0]
    logarithmic = bool(positive.max() / positive.min() >= WIDE_RANGE)
    handles = _lines(axes, sent, points, sent > 0 if logarithmic else np.ones(len(sent), bool), clients)
    if logarithmic:
        logarithmic_axis(axes)
    for name, final in finals.items():
        spreads = (final.global_accuracy, final.own_accuracy, final.others_accuracy)
        ends = (*(spread.mean for spread in spreads), final.mean_composition)
        for value, colour in zip(ends, (BLUE, ORANGE, PURPLE, GREEN), strict=True):
            if not math.isnan(value) and (name == "local" or colour != GREEN):
                axes.axhline(value, linestyle=_DASHES[name], color=colour, linewidth=1.0, alpha=0.85)
        handles.append(_reference(name, f"{name.title()}, at its end"))
    _finish(figure, axes, f"uplink of all clients, {prefix}B", score, handles)
    return figure


def logarithmic_axis(axes: Axes, decades: float = math.inf) -> None:
    """A horizontal axis in powers of ten with their doubles and halves, these up to so many decades."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if math.log10(high / low) > decades else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _coloured(points: Curve) -> list[tuple[Float[np.ndarray, "points"], str]]:
    return [(points.common, BLUE), (points.own, ORANGE), (points.others, PURPLE), (points.composition, GREEN)]


def _reference(name: str, label: str) -> Line2D:
    return Line2D([], [], linestyle=_DASHES[name], color=INK, linewidth=1.2, label=label)


def _lines(
    axes: Axes, x: NDArray[np.int64] | NDArray[np.float64], points: Curve, shown: NDArray[np.bool_], clients: str
) -> list[Line2D]:
    """The curves of the run itself."""
    marker = "o" if shown.sum() < 3 else ""
    low, high = (points.common - points.common_std)[shown], (points.common + points.common_std)[shown]
    axes.fill_between(x[shown], low, high, color=BLUE, alpha=0.18, linewidth=0)
    handles = []
    for values, colour, label in (
        (points.common, BLUE, f"global, ± std over {clients}"),
        (points.own, ORANGE, "own"),
        (points.others, PURPLE, "on others’ test rows"),
        (points.composition, GREEN, "composition"),
    ):
        if not np.isnan(values).all():
            handles += axes.plot(x[shown], values[shown], color=colour, marker=marker, label=label)
    return handles


def _finish(figure: Figure, axes: Axes, label: str, score: str, handles: Sequence[Line2D]) -> None:
    axes.set(xlabel=label, ylabel=score)
    percent_axis(axes.yaxis)
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=2 if longest <= MOST_BESIDE else 1)


@style()
def bytes_figure(kinds: Mapping[str, MovedOfKind]) -> Figure:
    """Raw bytes of each kind of message: up, and down as one copy a client and as one for all."""
    moved = kinds.values()
    ways = (
        ("up", BLUE, [of_kind.uplink for of_kind in moved]),
        ("down, unicast", ORANGE, [of_kind.downlink for of_kind in moved]),
        ("down, broadcast", GREEN, [of_kind.downlink_broadcast for of_kind in moved]),
    )
    figure, axes = canvas(1.6 + 0.62 * len(kinds))
    places = np.arange(len(kinds))
    factor, prefix = prefix_of(volume.raw for _, _, volumes in ways for volume in volumes)
    for index, (label, colour, volumes) in enumerate(ways):
        sizes = [volume.raw / factor for volume in volumes]
        axes.barh(places + (index - 1) * 0.27, sizes, height=0.25, color=colour, label=label)
    _name_rows(axes, [drawable(kind, f"kind {i}") for i, kind in enumerate(kinds)])
    axes.set(xlabel=f"{prefix}B")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@style()
def time_figure(phases: Mapping[str, float]) -> Figure:
    """Seconds of each phase of the run."""
    figure, axes = canvas(1.0 + 0.34 * len(phases))
    axes.barh(np.arange(len(phases)), list(phases.values()), height=0.6, color=BLUE)
    _name_rows(axes, [drawable(phase, f"phase {i}") for i, phase in enumerate(phases)])
    axes.set(xlabel="seconds")
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


@style()
def class_counts_figure(counts: Int64[np.ndarray, "clients classes"], class_names: Sequence[str]) -> Figure:
    """Samples of each class by client: stacked bars, or an image where there are too many pieces.

    Args:
        counts: Samples by client (row) and class (column).
        class_names: A name for each column.
    """
    figure, axes = canvas(HEIGHT)
    names = [drawable(name, str(index)) for index, name in enumerate(class_names)]
    if counts.size > MOST_BARS:
        image = axes.imshow(counts.T, cmap=SHADES, aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xlabel="client", ylabel="class")
        figure.colorbar(image, ax=axes, label="samples").outline.set_visible(False)
        return figure
    _stack(axes, counts)
    axes.set(xlabel="client", ylabel="samples")
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    if len(names) <= 2 * len(CLASSES):
        handles = axes.get_legend_handles_labels()[0]
        columns = 5 if max(map(len, names)) <= 6 else 3 if max(map(len, names)) <= 14 else 2
        short = [shortened(name, 22) for name in names]
        figure.legend(handles, short, loc="outside lower center", ncols=columns, handlelength=1.0)
    return figure


def _stack(axes: Axes, counts: Int64[np.ndarray, "clients classes"]) -> None:
    places = np.arange(len(counts))
    bottom = np.zeros(len(counts))
    width, line = (0.8, 0.5) if len(counts) <= 40 else (1.0, 0.0)
    for index, column in enumerate(counts.T):
        look: dict[str, Any] = {"color": _class_colour(index), "edgecolor": PAPER, "linewidth": line}
        axes.bar(places, column, bottom=bottom, width=width, label=str(index), **look)
        bottom += column


def _class_colour(index: int) -> tuple[float, float, float]:
    """Ten colours, then the same ones lighter and lighter."""
    red, green, blue = matplotlib.colors.to_rgb(CLASSES[index % len(CLASSES)])
    light = 0.45 * (index // len(CLASSES) % 2)
    return red + (1 - red) * light, green + (1 - green) * light, blue + (1 - blue) * light


def shortened(text: str, letters: int) -> str:
    """A text cut off where it has more letters than there is room for."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def drawable(text: str, otherwise: str) -> str:
    """A text for a plot: another one where the font lacks a letter (Japanese class names, control characters)."""
    glyphs = FT2Font(font_manager.findfont(FONT)).get_charmap()
    return text if text and all(ord(letter) in glyphs for letter in text) else otherwise
