"""The picture of what clients drew of each class, beside samples that they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional

from interfuse.data.reading import listed
from interfuse.report.plots import CLASSES, COLUMN, INK, ORANGE, drawable, shortened, style
from interfuse.runs.drawn import Drawn

LARGEST_SIDE = 64
"""Pixels of a picture that are shown; larger ones are shrunk."""
LONGEST_LINE = 64
"""Points of a signal that are shown, evenly spread."""
MOST_LINES = 3
"""Channels of a signal that are shown, the first ones."""
GAP = 0.1
"""Between samples, in widths of one."""
NAME = 2.2
"""Room for the names of classes, in widths of a sample."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A place for a sample: in a column of its client, in the row of its class; None: there is no such sample."""

    x: float
    row: int
    sample: Tensor | None
    unseen: bool


def columns_of(drawn: Sequence[Drawn]) -> int:
    """How many samples a client has drawn of a class at most."""
    return max(int(one.drawn_y.bincount().max()) for one in drawn)


def classes_of(drawn: Sequence[Drawn]) -> list[int]:
    """Classes of which somebody drew, or has a sample."""
    return sorted({int(c) for one in drawn for c in (*one.drawn_y, *one.real_y)})


def unseen_by(one: Drawn, classes: Sequence[int]) -> list[int]:
    """Those of these classes of which a client has no training row."""
    return [c for c in classes if c not in one.real_y.tolist()]


def cells(drawn: Sequence[Drawn]) -> Iterator[Cell]:
    """All places: for each client a real sample and those drawn, for each class a row."""
    classes, each = classes_of(drawn), columns_of(drawn)
    for place, one in enumerate(drawn):
        left = place * ((1 + each) * (1 + GAP) + 4 * GAP)
        for row, label in enumerate(classes):
            unseen = label in unseen_by(one, classes)
            real, made = one.real[one.real_y == label], one.drawn[one.drawn_y == label]
            yield Cell(left, row, real[0] if len(real) else None, unseen)
            for number in range(each):
                sample = made[number] if number < len(made) else None
                yield Cell(left + (1 + number) * (1 + GAP) + GAP, row, sample, unseen)


@style()
def samples_figure(drawn: Sequence[Drawn], class_names: Sequence[str]) -> Figure:
    """A row for each class; for each client a real sample and those that it drew, framed where it has no such row.

    Images are shown as such, signals and rows of a table as lines.

    Args:
        class_names: A name for each class of the task.
    """
    classes, places = classes_of(drawn), list(cells(drawn))
    width = max(cell.x for cell in places) + 1
    height = len(classes) * (1 + GAP)
    white = white_of(drawn)
    figure = Figure(figsize=(2 * COLUMN, 2 * COLUMN * (height + 1.2) / (width + NAME)))
    axes = figure.subplots()
    axes.set(xlim=(-NAME, width + GAP), ylim=(height, -1.2), aspect="equal")
    axes.set_axis_off()
    for cell in places:
        y = cell.row * (1 + GAP)
        if cell.sample is None:
            axes.text(cell.x + 0.5, y + 0.5, "–", ha="center", va="center", color=INK)
        elif is_image(cell.sample):
            axes.imshow(
                as_pixels(cell.sample, white), extent=(cell.x, cell.x + 1, y + 1, y), cmap="gray", vmin=0, vmax=1
            )
        if cell.unseen and cell.sample is not None:
            axes.add_patch(Rectangle((cell.x, y), 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.2))
    _draw_lines(axes, places)
    axes.set(xlim=(-NAME, width + GAP), ylim=(height, -1.2))  # pictures have set others
    for row, label in enumerate(classes):
        name = shortened(drawable(class_names[label], str(label)), 14)
        axes.text(-2 * GAP, row * (1 + GAP) + 0.5, name, ha="right", va="center")
    for place, one in enumerate(drawn):
        left, each = place * ((1 + columns_of(drawn)) * (1 + GAP) + 4 * GAP), columns_of(drawn)
        axes.text(left + (1 + each) / 2, -0.85, f"client {one.client}", ha="center", va="center")
        axes.text(left + 0.5, -0.3, "real", ha="center", va="center", fontsize=6)
        axes.text(left + 1 + 2 * GAP + each / 2, -0.3, "drawn", ha="center", va="center", fontsize=6)
    return figure


def is_image(sample: Tensor) -> bool:
    """Whether it is ``[channels, height, width]``; signals and rows of a table are lines."""
    return sample.ndim == 3


def as_pixels(sample: Tensor, white: float = 255) -> Float[np.ndarray, "height width ..."]:
    """An image as it is shown: from 0 to 1, grey ``[height, width]`` or with three colours last.

    Args:
        white: The brightest that there is, of images of bytes.
    """
    x = (sample.float() / white).clamp(max=1) if sample.dtype == torch.uint8 else _stretched(sample)
    if len(x) != 3:
        x = x.mean(0, keepdim=True)
    height, width = (min(side, LARGEST_SIDE) for side in x.shape[1:])
    x = functional.adaptive_avg_pool2d(x[None], (height, width))[0]
    shown: np.ndarray = (x[0] if len(x) == 1 else x.permute(1, 2, 0)).numpy()
    return shown


def white_of(drawn: Sequence[Drawn]) -> float:
    """255, or the largest of the real values shown where all are far below it: some sets of bytes go to 16 or so."""
    largest = max((float(one.real.max()) for one in drawn if one.real.numel()), default=255.0)
    return largest if 0 < largest < 128 else 255.0


def _stretched(x: Tensor) -> Tensor:
    low, high = x.min(), x.max()
    return (x.float() - low) / (high - low).clamp(min=1e-12)


def _draw_lines(axes: Axes, places: Sequence[Cell]) -> None:
    """Signals and rows, all on one scale: nearly that of all values shown, whose outliers are cut off."""
    lines_of = [(cell, cell.sample) for cell in places if cell.sample is not None and not is_image(cell.sample)]
    shown = [(cell, as_lines(sample)) for cell, sample in lines_of]
    if not shown:
        return
    together = np.concatenate([lines.ravel() for _, lines in shown])
    low, high = np.percentile(together, [1, 99])
    for channel in range(min(MOST_LINES, max(len(lines) for _, lines in shown))):
        pieces = []
        for cell, lines in shown:
            if channel >= len(lines):
                continue
            y = np.clip((lines[channel] - low) / max(high - low, 1e-12), 0, 1)
            x = np.linspace(cell.x + 0.04, cell.x + 0.96, len(y))
            pieces.append(np.stack([x, cell.row * (1 + GAP) + 0.96 - 0.92 * y], 1))
        axes.add_collection(LineCollection(pieces, colors=CLASSES[channel], linewidths=0.5))


def as_lines(sample: Tensor) -> Float[np.ndarray, "channels points"]:
    """A signal ``[channels, time]`` as it is shown; a row of a table ``[columns]`` is one line."""
    x = sample.float().reshape(-1, sample.shape[-1])[:MOST_LINES]
    points = torch.linspace(0, x.shape[1] - 1, min(x.shape[1], LONGEST_LINE)).round().long()
    found: np.ndarray = x[:, points].numpy()
    return found


def samples_text(drawn: Sequence[Drawn], class_names: Sequence[str], clients: int) -> str:
    """What the picture shows, for who cannot see it too."""
    classes = classes_of(drawn)
    some = f"{len(drawn)} of {clients:,} clients" if len(drawn) < clients else f"{len(drawn)} clients"
    of = f"{len(classes)} of {len(class_names):,} classes" if len(classes) < len(class_names) else "all classes"
    real = "a real training row of the client (mind whom you show it)"
    text = f"Samples of {of} by {some}: {real}, and beside it what it draws"
    channels = max((one.drawn.shape[1] for one in drawn if one.drawn.ndim == 3), default=0)
    if channels > MOST_LINES:
        text += f"; of {channels} channels the first {MOST_LINES} are shown"
    lacking = {one.client: [class_names[c] for c in unseen_by(one, classes)] for one in drawn}
    said = [f"client {client} {listed(names, 10)}" for client, names in lacking.items() if names]
    return f"{text}. Framed: classes of which the client has no training row: {'; '.join(said) or 'none'}."
