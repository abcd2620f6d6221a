"""From a plan to its tables, plots and page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interfuse.comparison.execution import Finished, carry_out, prepare
from interfuse.comparison.measures import rows
from interfuse.comparison.notes import notes
from interfuse.comparison.plan import Plan
from interfuse.comparison.progress import Follower, Nobody
from interfuse.comparison.table import tables, to_csv, to_json, to_latex, to_markdown
from interfuse.errors import RunError
from interfuse.runs.folder import write_whole
from interfuse.runs.summary import without_nan


def compare(plan: Plan, out: Path, *, jobs: int | None = None, follower: Follower | None = None) -> dict[str, Any]:
    """Carry out a comparison, or go on with it, and write what came of it. Returns what ``comparison.json`` says.

    Args:
        jobs: Runs side by side; None: one a core, on a GPU one. Results do not depend on it.

    Raises:
        InterfuseError: a run cannot work, or the folder holds another comparison.
    """
    plan.check()
    prepare(plan, out)
    return write(plan, carry_out(plan, out, jobs, follower or Nobody()), out)


def write(plan: Plan, finished: Sequence[Finished], out: Path) -> dict[str, Any]:
    """Write tables, plots and page. The same runs give the same bytes.

    Raises:
        RunError: a run cannot be read, or the folder cannot be written.
    """
    # here, since a third of the time to import interfuse would otherwise be Matplotlib
    from interfuse.comparison.html import page
    from interfuse.comparison.plots import figures
    from interfuse.report.plots import save

    found, anchor = rows(plan, finished)
    made, said = tables(plan, found, anchor), notes(found)
    values: dict[str, Any] = without_nan(to_json(plan, found, anchor, said, str(out)))
    title, plots = plan.asked.title, out / "plots"
    try:
        write_whole(out / "comparison.json", json.dumps(values, indent=1))
        write_whole(out / "table.md", to_markdown(title, made, said))
        write_whole(out / "table.tex", to_latex(title, made, said))
        write_whole(out / "table.csv", to_csv(found))
        plots.mkdir(exist_ok=True)
        drawn = {name: save(figure, plots, name) for name, figure in figures(found).items()}
        write_whole(out / "report.html", page(plan, found, made, said, drawn, out))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    return values
