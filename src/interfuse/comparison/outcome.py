"""From a plan to its tables, plots and page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interfuse.comparison import preflight
from interfuse.comparison.execution import Finished, carry_out, check_folder, prepare, side_by_side
from interfuse.comparison.formats import to_csv, to_json, to_latex, to_markdown
from interfuse.comparison.measures import rows
from interfuse.comparison.notes import footnotes, notes
from interfuse.comparison.plan import Plan
from interfuse.comparison.progress import Follower, Nobody
from interfuse.comparison.table import Table, columns_of, tables
from interfuse.errors import RunError
from interfuse.runs.summary import without_nan
from interfuse.writing import write_whole


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison.

    Attributes:
        values: What ``comparison.json`` says.
        tables: Those for people, the one with the chosen columns first.
        notes: What stands under all of them.
        incomplete: Entries that lack a run, since it failed or its process was killed, and why.
    """

    values: dict[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str]
    incomplete: Mapping[str, str]


def compare(
    plan: Plan,
    out: Path,
    *,
    jobs: int | None = None,
    follower: Follower | None = None,
    skip_refused: bool = False,
) -> Outcome:
    """Carry out a comparison, or go on with it, and write what came of it.

    All runs are set up before the first one trains.

    Args:
        jobs: Runs side by side; None: one a core, on a GPU one. Results do not depend on it.
        skip_refused: Go on without entries that cannot work; the tables name them.

    Raises:
        InterfuseError: an entry cannot work (says all reasons), or the folder holds another comparison.
    """
    plan.check()
    columns_of(plan)
    check_folder(plan, out)  # before runs are tried, which may take minutes
    most, follower = side_by_side(plan, jobs), follower or Nobody()
    found = preflight.look(plan, most, out)
    found.check(plan, skip=skip_refused)
    for line in (*preflight.said(found.refused), *preflight.said(found.notices)):
        follower.note(line)
    prepare(plan, out)
    refused = {name: found.failures(name) for name in found.refused}
    return write(plan, carry_out(plan, out, most, follower, refused), out)


def write(plan: Plan, finished: Sequence[Finished], out: Path) -> Outcome:
    """Write tables, plots and page. The same runs give the same bytes.

    Raises:
        RunError: a run cannot be read, or the folder cannot be written.
    """
    # here, since a third of the time to import interfuse would otherwise be Matplotlib
    from interfuse.comparison.html import page
    from interfuse.comparison.plots import figures
    from interfuse.report.plots import save

    found, anchor = rows(plan, finished)
    beside, said = footnotes(found), notes(found)
    made = tables(plan, found, anchor, beside)
    values: dict[str, Any] = without_nan(to_json(plan, found, anchor, beside, said, str(out)))
    title, plots = plan.asked.title, out / "plots"
    try:
        write_whole(out / "comparison.json", json.dumps(values, indent=1))
        write_whole(out / "table.md", to_markdown(title, made, said))
        write_whole(out / "table.tex", to_latex(plan, made, said))
        write_whole(out / "table.csv", to_csv(plan, found, beside))
        plots.mkdir(exist_ok=True)
        drawn = {name: save(figure, plots, name) for name, figure in figures(found).items()}
        write_whole(out / "report.html", page(plan, found, made, said, drawn, out))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    return Outcome(values, made, said, incomplete(plan, finished))


def incomplete(plan: Plan, finished: Sequence[Finished]) -> dict[str, str]:
    """Entries that lack the run of a seed, but for those that were left out on purpose; and the first reason."""
    lacking = [one for one in finished if not one.refused and len(one.runs) < len(plan.asked.seeds)]
    return {one.entry.name: next(iter(one.failures.values()), "it did not run") for one in lacking}
