"""The end of a run in the terminal."""

from __future__ import annotations

import math

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from interfuse.report.summary import Json, Matrix, Scores, metric, number, number_of_clients, reference, scores
from interfuse.report.text import METRICS, UNKNOWN, bare_percent, headline, megabytes, method_name, percent

LARGEST_MATRIX = 12


def console_summary(summary: Json) -> RenderableType:
    """What a run gave, for people at a terminal: compositions and own accuracy beside Local's, bytes, the report."""
    found, local = scores(summary), reference(summary, "local")
    alone = scores(local or {})
    parts: list[RenderableType] = []
    if found.composition is not None and found.composition.size > 1:
        lead = Text.assemble("mean over all compositions  ", (percent(found.mean_composition), "bold"))
        if alone.composition is not None:
            lead.append(f"   of Local's blocks  {percent(alone.mean_composition)}")
        parts.append(lead)
    lead = Text.assemble("own accuracy  ", (percent(found.own.mean), "bold"))
    for name in ("local", "pooled"):
        other = reference(summary, name)
        if other is not None:
            lead.append(f"   {name.title()}  {percent(scores(other).own.mean)}")
    parts += [lead, *_metrics(summary, local or {}), Text(headline(summary)), Text("")]
    matrices = [
        _matrix(matrix, title)
        for matrix, title in ((found.composition, method_name(summary)), (alone.composition, "Local's blocks"))
        if matrix is not None and 1 < len(matrix) <= LARGEST_MATRIX
    ]
    if matrices:
        text = "accuracy of base block (row) with modular block (column), %"
        parts += [Text(text, style="dim"), Columns(matrices, padding=(0, 4)), Text("")]
    parts += [_accuracies(summary), Text(""), Text(_uplink(summary)), Text(f"report: {summary.get('run')}/report.html")]
    return Group(*parts)


def _metrics(summary: Json, local: Json) -> list[Text]:
    """A line for each metric beyond accuracy, on own test shares."""
    lines = []
    for name in METRICS:
        if name in (summary.get("metrics") or {}):
            line = Text.assemble(f"own {METRICS[name]}  ", (percent(metric(summary, name, "own").mean), "bold"))
            if not math.isnan(alone := metric(local, name, "own").mean):
                line.append(f"   Local  {percent(alone)}")
            lines.append(line)
    return lines


def _matrix(matrix: Matrix, title: str) -> Table:
    table = Table(title=Text(title, style="bold"), box=None, padding=(0, 1))
    table.add_column("", justify="right", style="dim")
    for column in range(len(matrix)):
        table.add_column(str(column), justify="right")
    for base, row in enumerate(matrix):
        cells = [Text(bare_percent(float(v)), style="bold" if base == i else "") for i, v in enumerate(row)]
        table.add_row(str(base), *cells)
    return table


def _accuracies(summary: Json) -> Table:
    table = Table(box=None, padding=(0, 2), title_justify="left")
    table.add_column("accuracy, % (± over clients)")
    for name in ("own", "global", "composition"):
        table.add_column(name, justify="right")
    rows = {method_name(summary): summary}
    for name in ("local", "pooled"):
        if (other := reference(summary, name)) is not None:
            rows[name.title()] = other
    for name, values in rows.items():
        table.add_row(Text(name), *_cells(scores(values)))
    return table


def _cells(found: Scores) -> list[str]:
    cells = [
        UNKNOWN if math.isnan(spread.mean) else f"{bare_percent(spread.mean)} ± {bare_percent(spread.std)}"
        for spread in (found.own, found.common)
    ]
    return [*cells, bare_percent(found.mean_composition)]


def _uplink(summary: Json) -> str:
    sent = number((summary.get("uplink_bytes") or {}).get("raw"))
    each = sent / max(1, number_of_clients(summary))
    return f"uplink: {megabytes(each)} MB per client, {megabytes(sent)} MB in sum"
