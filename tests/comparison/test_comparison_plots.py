"""The plots of a comparison: what is drawn where, and the same bytes for the same runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_made import finished, plan_of, write_run

from interfuse.comparison.execution import Finished
from interfuse.comparison.measures import Row, rows
from interfuse.comparison.plots import figures, heat_map_name
from interfuse.report.plots import CLASSES, as_svg, canvas, percent_axis, save


@pytest.fixture
def found(tmp_path: Path) -> list[Row]:
    """IFL, an entry without compositions, one that failed, and Local, which sends nothing."""
    plan = plan_of("ifl", "fedavg", "broken", "local")
    ifl, fedavg, broken, local = plan.entries
    done = [
        finished(ifl, tmp_path), finished(fedavg, tmp_path, compositions=False), Finished(broken),
        finished(local, tmp_path, upload=0, rise=0.7),
    ]  # fmt: skip
    return rows(plan, done)[0]


def test_every_kind_of_curve_over_every_axis(found: list[Row]) -> None:
    drawn = figures(found)
    curves = {f"{kind}-{over}" for kind in ("global", "composition", "own") for over in ("rounds", "uplink", "steps")}
    assert drawn.keys() == curves | {"final", "composition-of-ifl", "composition-of-local"}


def test_lines_are_means_over_seeds_in_the_colour_of_their_entry(found: list[Row]) -> None:
    axes = figures(found)["global-steps"].axes[0]
    assert [line.get_color() for line in axes.lines] == [CLASSES[0], CLASSES[1], CLASSES[3]]
    for line, row in zip(axes.lines, (found[0], found[1], found[3]), strict=True):
        values = [[run.curve.common[place] for run in row.runs] for place in range(len(row.runs[0].curve.common))]
        assert np.allclose(np.asarray(line.get_ydata()), [sum(at) / 3 for at in values])
        assert list(np.asarray(line.get_xdata())) == list(range(0, 12 * 30 + 1, 60))
    band = axes.collections[0].get_paths()[0].vertices
    first = found[0].runs
    deviations = [np.std([run.curve.common[place] for run in first], ddof=1) for place in range(7)]
    widths = [band[band[:, 0] == 60 * place, 1].max() - band[band[:, 0] == 60 * place, 1].min() for place in range(7)]
    assert np.allclose(widths, 2 * np.array(deviations))


def test_a_seed_that_stopped_early_keeps_its_score(tmp_path: Path) -> None:
    plan = plan_of("ifl")
    runs = {seed: write_run(tmp_path / f"seed-{seed}", seed, rounds=rounds) for seed, rounds in ((0, 12), (1, 5))}
    found, _ = rows(plan, [Finished(plan.entries[0], chosen={}, runs=runs, flops=1.0)])
    (line,) = figures(found)["global-rounds"].axes[0].lines
    assert list(np.asarray(line.get_xdata())) == [0, 2, 4, 5.5, 8, 10, 12]
    long, short = (run.curve.common for run in found[0].runs)
    assert np.asarray(line.get_ydata())[-1] == pytest.approx((long[-1] + short[-1]) / 2)


def test_labels_say_where_means_are_over_some_clients(found: list[Row], tmp_path: Path) -> None:
    assert figures(found)["global-rounds"].axes[0].get_ylabel() == "global accuracy"
    plan = plan_of("ifl")
    path = write_run(tmp_path / "some", 0) / "summary.json"
    summary = json.loads(path.read_text())
    for side in ("own_accuracy", "global_accuracy"):
        summary[side]["per_client"] = summary[side]["per_client"][:3]
    path.write_text(json.dumps(summary | {"evaluated": [0, 1, 2]}))
    some = figures(rows(plan, [Finished(plan.entries[0], chosen={}, runs={0: path.parent}, flops=1.0)])[0])
    assert some["global-rounds"].axes[0].get_ylabel() == "global accuracy,\n3 of 4 clients"
    labels = [text.get_text() for text in some["final"].legends[0].get_texts()]
    assert labels == ["own,\n3 of 4 clients", "global,\n3 of 4 clients"]


@pytest.mark.parametrize("many", [8, 9])
def test_bands_of_many_entries_would_cover_one_another(tmp_path: Path, many: int) -> None:
    plan = plan_of(*(f"entry {number}" for number in range(many)), method="ifl")
    found = rows(plan, [finished(entry, tmp_path) for entry in plan.entries])[0]
    axes = figures(found)["global-rounds"].axes[0]
    assert len(axes.lines) == many
    assert len(axes.collections) == (many if many <= 8 else 0)


@pytest.mark.parametrize("many", [4, 40])
def test_the_legend_leaves_the_curves_their_room(tmp_path: Path, many: int) -> None:
    plan = plan_of(*(f"entry {number} of these" for number in range(many)), method="ifl")
    one = rows(plan, [finished(plan.entries[0], tmp_path)])[0][0]
    figure = figures([replace(one, finished=replace(one.finished, entry=entry)) for entry in plan.entries])[
        "global-rounds"
    ]
    as_svg(figure, "curves")  # lays it out
    curves, legend = figure.axes[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert curves.height > 1.2 * figure.dpi  # inches
    assert legend.y1 < curves.y0


def test_over_uplink_who_sends_nothing_is_a_level_line(found: list[Row]) -> None:
    axes = figures(found)["global-uplink"].axes[0]
    assert axes.get_xscale() == "log"
    level = axes.lines[-1]
    assert level.get_label() == "local, at its end"
    assert set(np.asarray(level.get_ydata())) == {np.mean([run.curve.common[-1] for run in found[3].runs])}
    assert np.allclose(np.asarray(axes.lines[0].get_xdata()), [4 * 1000 * n / 1e3 for n in range(2, 13, 2)])


def test_a_dot_for_each_seed(found: list[Row]) -> None:
    axes = figures(found)["final"].axes[0]
    dots = [line for line in axes.lines if line.get_marker() in ("o", "D") and len(np.asarray(line.get_xdata()))]
    assert list(np.asarray(dots[0].get_xdata())) == [values["own_last"] for values in found[0].values]
    assert len(dots) == 2 * 3
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ifl", "fedavg", "local"]


def test_the_frontier_is_who_is_better_than_all_who_send_less(tmp_path: Path) -> None:
    plan = plan_of("ifl", "cheap", "best", "worse", "silent", seeds=[0])
    cases = {"ifl": (500, 0.6), "cheap": (20, 0.4), "best": (900, 0.9), "worse": (700, 0.3), "silent": (0, 0.95)}
    done = [
        finished(entry, tmp_path, seeds=[0], wire=wire, rise=rise, codec="int4" if entry.name == "ifl" else None)
        for entry, (wire, rise) in zip(plan.entries, cases.values(), strict=True)
    ]
    found = rows(plan, done)[0]
    axes = figures(found)["frontier"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["cheap", "ifl", "best"]
    means = {row.name: row.mean for row in found}
    line = [(means[name]["uplink_wire"] / 1e3, means[name]["global_last"]) for name in ("cheap", "ifl", "best")]
    assert np.allclose(np.stack([axes.lines[-1].get_xdata(), axes.lines[-1].get_ydata()], 1), line)
    assert sum(len(np.asarray(dots.get_xdata())) for dots in axes.lines[:-1]) == 4
    assert "frontier" not in figures([row for row in found if row.name != "ifl"])


def test_names_of_heat_maps_are_fit_for_files_and_identifiers(tmp_path: Path) -> None:
    plan = plan_of("a b.c+d", seeds=[0])
    found, _ = rows(plan, [finished(plan.entries[0], tmp_path, seeds=[0])])
    assert heat_map_name(found[0]) == "composition-of-a-b-c-d"


def test_the_same_runs_give_the_same_bytes(found: list[Row], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(figures(found)["global-uplink"], tmp_path / folder, "plot")
    for name in ("plot.svg", "plot.png", "plot.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_figures_for_paper_are_as_wide_as_a_column_and_embed_their_fonts(found: list[Row], tmp_path: Path) -> None:
    save(figures(found)["final"], tmp_path, "final")
    text = (tmp_path / "final.pdf").read_bytes()
    assert re.search(rb"/MediaBox \[ 0 0 237\.6 ", text)  # 3.3 inches of 72 points
    assert b"/Subtype /Type3" not in text
    assert b"/FontFile2" in text


@pytest.mark.parametrize(("low", "high"), [(0.10, 0.22), (0.1, 0.9), (0.851, 0.8565), (-0.02, 0.03)])
def test_a_tick_says_where_it_is(low: float, high: float) -> None:
    figure, axes = canvas(3.4)
    axes.set_ylim(low, high)
    percent_axis(axes.yaxis)
    figure.draw_without_rendering()
    texts = [text.get_text() for text in axes.get_yticklabels()]
    written = [float(text.removesuffix(" %").replace("−", "-")) / 100 for text in texts]
    assert np.allclose(written, axes.get_yticks(), atol=1e-9)
    assert len(set(texts)) == len(texts) > 2
