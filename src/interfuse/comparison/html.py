"""The page of a comparison: HTML without scripts or requests, in the style of a run's report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from interfuse.comparison.measures import Row
from interfuse.comparison.plan import Plan
from interfuse.comparison.plots import heat_map_name
from interfuse.comparison.table import Table
from interfuse.report.html import document, plot_pair
from interfuse.report.text import bare_percent

_PLOTS = {
    "global-rounds": "Mean global accuracy over rounds, on the fixed rows of the curve.",
    "composition-rounds": "Mean accuracy of all compositions over rounds.",
    "global-uplink": "Mean global accuracy over what all clients have sent, raw; dotted is who sends nothing.",
    "composition-uplink": "Mean accuracy of all compositions over what all clients have sent, raw.",
    "global-steps": "Mean global accuracy over gradient steps.",
    "composition-steps": "Mean accuracy of all compositions over gradient steps.",
    "frontier": "Global accuracy at the end over the uplink on the wire; the line joins who beats all that send less.",
    "final": "A dot for each seed after the last round, a stroke at their mean.",
}


def page(
    plan: Plan, rows: Sequence[Row], tables: Sequence[Table], notes: Sequence[str], svgs: Mapping[str, str], out: Path
) -> str:
    """The whole page.

    Args:
        svgs: The plots by name, as :func:`interfuse.report.plots.save` gives them.
    """
    sections = (
        _head(plan, rows),
        _notes(notes),
        *(_table(table) for table in tables),
        f"<h2>Curves</h2>\n{plot_pair(svgs, _PLOTS)}",
        _compositions(rows, svgs),
        _tuning(rows),
        _again(plan, out),
    )
    return document(plan.asked.title, sections)


def _head(plan: Plan, rows: Sequence[Row]) -> str:
    seeds = ", ".join(map(str, plan.asked.seeds))
    lead = f"{len(rows)} entries, seed{'s' if len(plan.asked.seeds) > 1 else ''} {seeds}."
    failed = [row.name for row in rows if not row.values]
    state = f'<p class="state">failed: {escape(", ".join(failed))}</p>\n' if failed else ""
    return f'<h1>{escape(plan.asked.title)}</h1>\n{state}<p class="lead">{escape(lead)}</p>'


def _notes(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    return f'<h2>What to know</h2>\n<div class="card"><ul>\n{lines}</ul></div>' if notes else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_in_lines(text)}</th>' for text in table.heads)
    body = "".join(
        f'<tr><th scope="row"><span class="long">{escape(name)}</span></th>'
        + "".join(f"<td>{_with_spread(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for name, *cells in table.lines
    )
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="card"><p class="caption">{escape(table.caption)}</p>\n'
        f'<div class="scroll"><table class="wide">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div></div>"
    )


def _in_lines(head: str) -> str:
    """A heading no wider than it has to be."""
    return escape(head).replace(", ", ",<br>").replace(" at ", "<br>at ")


def _with_spread(cell: str) -> str:
    value, plus, spread = cell.partition(" ± ")
    return escape(value) + (f"<small>± {escape(spread)}</small>" if plus else "")


def _compositions(rows: Sequence[Row], svgs: Mapping[str, str]) -> str:
    texts = {
        heat_map_name(row): f"{row.name}: accuracy of all compositions after the last round, mean over seeds, %."
        for row in rows
    }
    plots = plot_pair(svgs, texts)
    return f"<h2>Compositions</h2>\n{plots}" if plots else ""


def _tuning(rows: Sequence[Row]) -> str:
    lines = "".join(
        f'<tr{" class=total" if tried.point == row.finished.chosen else ""}><th scope="row">{escape(row.name)}</th>'
        f'<td class="text">{escape(tried.label)}</td><td>{bare_percent(tried.validation)}</td></tr>\n'
        for row in rows
        for tried in row.finished.tried
    )
    if not lines:
        return ""
    return (
        '<h2>Choice of settings</h2>\n<div class="card"><p class="caption">Best mean validation accuracy in % of each '
        'point of the grids; chosen is what is bold. – did not train.</p>\n<div class="scroll"><table>\n<thead><tr>'
        '<th scope="col"></th><th scope="col">settings</th><th scope="col">validation</th></tr></thead>\n'
        f"<tbody>\n{lines}</tbody></table></div></div>"
    )


def _again(plan: Plan, out: Path) -> str:
    command = f"interfuse compare {shlex.quote(f'{out}/comparison.toml')}"
    return (
        f"<h2>How to run it again</h2>\n<pre>{escape(command)}</pre>\n"
        f"<details><summary>The whole plan</summary><pre>{escape(plan.to_toml())}</pre></details>"
    )
