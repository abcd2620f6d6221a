"""The end of a run in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from interfuse.references import short_name
from interfuse.report.text import (
    METRICS,
    UNKNOWN,
    bare_percent,
    by_name,
    by_rows,
    capital,
    measured,
    number,
    over_clients,
    percent,
    sides,
    size,
    told_by,
)
from interfuse.runs import Summary
from interfuse.runs.summary import NOTHING, Matrix, Scores

LARGEST_MATRIX = 12


def console_summary(summary: Summary) -> RenderableType:
    """What a run gave, for people at a terminal: compositions and own score beside Local's, bytes, the report."""
    _, *beside = by_name(summary).items()
    matrix, local = summary.composition, summary.local or NOTHING
    parts: list[RenderableType] = []
    if matrix is not None and matrix.size > 1:
        others = [("of Local's blocks", local.mean_composition)] if local.composition is not None else []
        parts.append(_line("mean over all compositions", summary.mean_composition, others))
    own = [(name, other.own_accuracy.mean) for name, other in beside]
    if summary.evaluation != "none":
        parts.append(_line(f"own {summary.score}", summary.own_accuracy.mean, own))
    if "others" in sides(summary):
        own = [(name, other.others_accuracy.mean) for name, other in beside]
        parts.append(_line(f"{summary.score} on others’ test rows", summary.others_accuracy.mean, own))
    if not math.isnan(summary.forgetting.mean):
        own = [(name, other.forgetting.mean) for name, other in beside]
        parts.append(_line("forgetting of earlier tasks", summary.forgetting.mean, own))
    for name, called in measured(summary).items():
        side = told_by(name)
        mean, alone = (scores.metric(name, side).mean for scores in (summary, local))
        form = percent if name in METRICS else number
        parts.append(_line(f"{side} {called}", mean, [] if math.isnan(alone) else [("Local", alone)], form))
    parts += [_line(name, value, [], "{:.3g}".format) for name, value in summary.shown.means.items()]
    stopped = "" if summary.stopped is None else f"{capital(str(summary.stopped))}.\n"
    parts += [Text(summary.headline.text), Text(stopped)]
    if summary.protocol:
        rows = by_rows(summary)
        counted = f"Own {summary.score}, each test row counting the same: {rows}.\n" if rows else ""
        parts += [Text(f"{counted}{capital(summary.protocol)}.\n", style="dim")]
    for warning in summary.warnings:
        parts += [
            Text.assemble((f"warning: {warning.name}. ", "bold"), f"{warning.text} Try: {warning.remedy}"),
            Text(""),
        ]
    named = ((matrix, short_name(summary.method)), (local.composition, "Local's blocks"))
    matrices = [_matrix(m, title) for m, title in named if m is not None and 1 < len(m) <= LARGEST_MATRIX]
    if matrices:
        text = f"{summary.score} of base block (row) with modular block (column), %"
        parts += [Text(text, style="dim"), Columns(matrices, padding=(0, 4)), Text("")]
    coded, uplink = summary.is_coded, summary.uplink_bytes
    sent = uplink.wire if coded else uplink.raw
    before = summary.start_bytes.uplink.wire if coded else summary.start_bytes.uplink.raw
    each = sent / max(1, len(summary.clients))
    where = f"uplink on the wire ({size(uplink.raw)} before codecs)" if coded else "uplink"
    text = f"{where}: {size(each)} per client, {size(sent)} in sum"
    text += f"; {size(before)} more in sum before the first round" if before else ""
    if summary.evaluation != "none":
        parts += [_scores(summary), Text("")]
    return Group(*parts, Text(text), Text(f"report: {summary.run}/report.html"))


def _line(name: str, value: float, others: list[tuple[str, float]], form: Callable[[float], str] = percent) -> Text:
    line = Text.assemble(f"{name}  ", (form(value), "bold"))
    for other, beside in others:
        line.append(f"   {other}  {form(beside)}")
    return line


def _matrix(matrix: Matrix, title: str) -> Table:
    table = Table(title=Text(title, style="bold"), box=None, padding=(0, 1))
    table.add_column("", justify="right", style="dim")
    for column in range(len(matrix)):
        table.add_column(str(column), justify="right")
    for base, row in enumerate(matrix):
        cells = [Text(bare_percent(float(v)), style="bold" if base == i else "") for i, v in enumerate(row)]
        table.add_row(str(base), *cells)
    return table


def _scores(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 2), title_justify="left")
    table.add_column(f"{summary.score}, % (± over {over_clients(summary)})")
    shown = sides(summary)
    for name in shown:
        table.add_column(name, justify="right")
    for name, values in by_name(summary).items():
        table.add_row(Text(name), *_cells(values, shown))
    return table


def _cells(scores: Scores, shown: Sequence[str]) -> list[str]:
    spreads = {"own": scores.own_accuracy, "others": scores.others_accuracy, "global": scores.global_accuracy}
    cells = {
        side: UNKNOWN if math.isnan(spread.mean) else f"{bare_percent(spread.mean)} ± {bare_percent(spread.std)}"
        for side, spread in spreads.items()
    }
    cells["composition"] = bare_percent(scores.mean_composition)
    return [cells[side] for side in shown]
