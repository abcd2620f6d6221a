"""The page of a comparison: HTML without scripts or requests, in the style of a run's report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from interfuse.comparison.measures import Row, score_of
from interfuse.comparison.plan import Plan
from interfuse.comparison.plots import heat_map_name
from interfuse.comparison.table import Table
from interfuse.report.html import render


def page(
    plan: Plan, rows: Sequence[Row], tables: Sequence[Table], notes: Sequence[str], svgs: Mapping[str, str], out: Path
) -> str:
    """The whole page.

    Args:
        svgs: The plots by name, as :func:`interfuse.report.plots.save` gives them.
    """
    score = score_of(rows)
    text = f"{score} of all compositions after the last round, mean over seeds, %."
    maps = {heat_map_name(row): f"{row.name}: {text}" for row in rows}
    return render(
        "comparison.html",
        title=plan.asked.title,
        rows=rows,
        seeds=plan.asked.seeds,
        failed=[row.name for row in rows if not row.values],
        notes=notes,
        tables=tables,
        curves=_curves(score),
        compositions={name: text for name, text in maps.items() if name in svgs},
        tried=[(row.name, tried, tried.point == row.finished.chosen) for row in rows for tried in row.finished.tried],
        svgs=svgs,
        score=score,
        command=f"interfuse compare {shlex.quote(f'{out}/comparison.toml')}",
        plan=plan.to_toml(),
    )


def _curves(score: str) -> dict[str, str]:
    """Captions by plot."""
    over_bytes = "over what all clients have sent, raw"
    return {
        "global-rounds": f"Mean global {score} over rounds, on the fixed rows of the curve.",
        "composition-rounds": f"Mean {score} of all compositions over rounds.",
        "own-rounds": f"Mean own {score} over rounds, on the clients’ own test rows, as many as the curve has.",
        "global-uplink": f"Mean global {score} {over_bytes}; dotted is who sends nothing.",
        "composition-uplink": f"Mean {score} of all compositions {over_bytes}.",
        "own-uplink": f"Mean own {score} {over_bytes}.",
        "global-steps": f"Mean global {score} over gradient steps.",
        "composition-steps": f"Mean {score} of all compositions over gradient steps.",
        "own-steps": f"Mean own {score} over gradient steps.",
        "frontier": f"Global {score} at the end over the uplink on the wire; the line joins whose mean is above that "
        "of all that send less. Steps within what the seeds tell are none.",
        "final": "A dot for each seed after the last round, a stroke at their mean.",
    }
