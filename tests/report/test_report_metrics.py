"""Metrics beyond accuracy on the page, in the plots and in the terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import LOCAL, POOLED, FakeRun, write_run
from rich.console import Console

from interfuse import report
from interfuse.report.html import page
from interfuse.report.plots import confusion_figure, figures, save
from interfuse.report.run import load

NAMES = ("cat", "<b>dog</b>", "owl")
HEADING = "Metrics beyond accuracy"


def spread(*values: float | None) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)), "std": float(np.std(known)), "per_client": list(values)}


METRICS: dict[str, Any] = {
    "auroc": {"own": spread(0.91, 0.93), "global": spread(0.81, None)},
    "recall": {"own": [[0.5, 0.25, None], [0.7, 0.35, None]], "global": [[0.1, 0.2, 0.3], [None, None, None]]},
}
LOCAL_METRICS: dict[str, Any] = {
    "auroc": {"own": spread(0.61, 0.63), "global": spread(0.51, 0.53)},
    "recall": {"own": [[0.11, 0.12, 0.13]] * 2, "global": [[0.14, 0.15, 0.16]] * 2},
}
ALONE = replace(LOCAL, clients=2)
CONFUSION = [[3, 1, 0, 0], [0, 2, 0, 2], [0, 0, 0, 0]]


def measured(folder: Path, names: Sequence[str] = tuple(METRICS), beside: Sequence[FakeRun] = (ALONE,)) -> Any:
    """Write a run that measured these metrics, as Local beside it did, but not Pooled. Returns its summary."""
    write_run(folder, FakeRun(clients=2, classes=3, class_names=NAMES), beside)
    summary = json.loads((folder / "summary.json").read_text())
    for values, found in ((summary, METRICS), (summary["beside"].get("local", {}), LOCAL_METRICS)):
        values["metrics"] = {name: found[name] for name in names}
        values["confusion"] = {"own": CONFUSION, "global": [[0] * 4] * 3}
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def section(folder: Path) -> str:
    """The page, without plots, from the heading of the metrics to the next."""
    return page(load(folder), {}).partition(f"<h2>{HEADING}</h2>")[2].partition("<h2>")[0]


def words(html: str) -> str:
    """The text of a part of the page."""
    return " ".join(unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", html, flags=re.DOTALL)).split())


def test_the_page_shows_the_method_beside_local(tmp_path: Path) -> None:
    measured(tmp_path, beside=(ALONE, replace(POOLED, clients=2)))
    found = section(tmp_path)
    text = words(found)
    assert "AUROC own global ifl 92.0 ± 1.0 81.0 ± 0.0 1 of 2 Local 62.0 ± 1.0 52.0 ± 1.0 Pooled – –" in text
    assert "calibration error own" not in text
    by_class = text.partition("with samples of it")[2]
    assert "ifl Local own global own global cat 60.0 10.0 11.0 14.0" in by_class
    assert "<b>dog</b> 30.0 20.0 12.0 15.0 owl – 30.0 13.0 16.0" in by_class
    assert "Pooled" not in by_class
    assert "<b>dog" not in found


@pytest.mark.parametrize(("names", "there"), [(["recall"], [False, True]), (["auroc"], [True, False])])
def test_the_page_shows_what_was_asked_for(names: list[str], there: list[bool], tmp_path: Path) -> None:
    measured(tmp_path, names)
    text = words(section(tmp_path))
    assert ["AUROC" in text, "Recall by class" in text] == there
    assert "confusion-own" in figures(load(tmp_path))


def test_without_metrics_there_is_no_section(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert HEADING not in page(load(tmp_path), {})
    assert not {"confusion-own", "confusion-global"} & set(figures(load(tmp_path)))


def test_the_confusion_matrix_is_drawn_where_there_are_samples(tmp_path: Path) -> None:
    measured(tmp_path)
    found = figures(load(tmp_path))
    assert "confusion-global" not in found
    svg = save(found["confusion-own"], tmp_path, "confusion-own")
    assert "samples of all clients together" in page(load(tmp_path), {"confusion-own": svg})
    drawn = found["confusion-own"].axes[0]
    np.testing.assert_array_equal(
        drawn.images[0].get_array().filled(np.nan),  # type: ignore[union-attr]
        [[0.75, 0.25, 0, 0], [0, 0.5, 0, 0.5], [np.nan] * 4],
    )
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["cat", "<b>dog</b>", "owl"]
    assert [label.get_text() for label in drawn.get_xticklabels()] == ["cat", "<b>dog</b>", "owl", "none"]


def test_a_column_without_answers_is_shown_only_where_there_are_some() -> None:
    counts = np.array([[3, 1, 0], [0, 2, 0]])
    axes = confusion_figure(counts, ["a class with a very long name", "b"], "title").axes[0]
    assert axes.images[0].get_array().shape == (2, 2)  # type: ignore[union-attr]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a class wit…", "b"]
    assert {text.get_position(): text.get_text() for text in axes.texts}[1, 0] == "25.0"
    many = np.eye(100, 101, dtype=int)
    assert not confusion_figure(many, [str(label) for label in range(100)], "title").axes[0].texts


def test_the_terminal_has_a_line_for_each(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    measured(tmp_path)
    console.print(report.console_summary(load(tmp_path).summary))
    text = console.export_text()
    assert "own AUROC  92.0 %   Local  62.0 %" in text
    assert "calibration" not in text
