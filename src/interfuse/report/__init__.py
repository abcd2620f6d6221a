"""The report of a run: one page that needs nothing else, its plots as files, and its warnings."""

from __future__ import annotations

from pathlib import Path

from interfuse.errors import RunError
from interfuse.report.console import console_summary
from interfuse.report.diagnosis import Diagnosis, diagnose
from interfuse.report.run import load
from interfuse.report.text import scores
from interfuse.writing import write_whole

__all__ = ["Diagnosis", "console_summary", "diagnose", "load", "scores", "write"]


def write(folder: Path) -> Path:
    """Write ``report.html`` and ``plots/`` of a run folder, finished or not. Returns the page's path.

    The same run folder gives the same bytes.

    Raises:
        RunError: there is no run in the folder, a file of it is damaged, or the report cannot be written.
    """
    # here, since a third of the time to import interfuse would otherwise be Matplotlib
    from interfuse.report.html import page
    from interfuse.report.plots import ON_PAPER, figures, save
    from interfuse.report.samples import samples_figure
    from interfuse.report.shown import shown_figures

    run = load(folder)
    plots, report = folder / "plots", folder / "report.html"
    try:
        plots.mkdir(exist_ok=True)
        made = figures(run) | shown_figures(run.rows, run.summary)
        if run.drawn:
            made["samples"] = samples_figure(run.drawn, run.summary.class_names)
        drawn = {name: save(figure, plots, name, paper=name in ON_PAPER) for name, figure in made.items()}
        write_whole(report, page(run, drawn), durable=False)
    except OSError as error:
        raise RunError(f"cannot write the report in {folder}: {error.strerror}") from error
    return report
