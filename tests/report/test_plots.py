from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fake_run import FakeRun, matrix, write_run
from matplotlib.figure import Figure
from PIL import Image

from interfuse import report
from interfuse.report import plots
from interfuse.report.plots import as_svg, composition_figure, figures, save
from interfuse.report.run import load

PLOTS = {"composition", "composition-local", "accuracy-rounds", "accuracy-uplink", "bytes", "classes", "time"}
SVG = "{http://www.w3.org/2000/svg}"


def test_the_same_folder_gives_the_same_bytes_and_these_are_pictures(tmp_path: Path) -> None:
    write_run(tmp_path)

    def files() -> dict[Path, bytes]:
        report.write(tmp_path)
        return {path: path.read_bytes() for path in (tmp_path / "report.html", *(tmp_path / "plots").iterdir())}

    first = files()
    drawn = {f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png")}
    for_paper = {"accuracy-rounds.pdf", "accuracy-uplink.pdf", "composition.pdf"}
    assert {path.name for path in first} == drawn | for_paper | {"report.html"}
    assert files() == first
    for path, content in first.items():
        if path.suffix == ".svg":
            assert ET.fromstring(content).tag == f"{SVG}svg"
        elif path.suffix == ".pdf":
            assert content.startswith(b"%PDF-")
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.width >= 900
                assert len(image.convert("L").getcolors(256)) > 10, "the picture is empty"


def words(figure: Figure) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(as_svg(figure, "plot")).iter(f"{SVG}text")]


def heights(figure: Figure) -> np.ndarray:
    """By client and class, as drawn."""
    (axes,) = figure.axes
    return np.array([[bar.get_height() for bar in bars] for bars in axes.containers]).T


def test_class_counts_stack_to_the_samples() -> None:
    counts = np.array([[3, 4, 0], [5, 6, 7]])
    figure = plots.class_counts_figure(counts, ["cat", "dog", "owl"])
    assert (heights(figure) == counts).all()
    tops = [bar.get_y() + bar.get_height() for bar in figure.axes[0].containers[-1]]
    assert tops == [7, 18]
    assert {"cat", "dog", "owl"} <= set(words(figure))


def test_names_that_cannot_be_drawn_become_numbers() -> None:
    figure = plots.class_counts_figure(np.ones((2, 4), int), ["お", "$\\frac{$", "a\nb", ""])
    assert {"0", "$\\frac{$", "2", "3"} <= set(words(figure))


def test_many_pieces_become_an_image() -> None:
    counts = np.arange(100 * 100).reshape(100, 100)
    axes = plots.class_counts_figure(counts, list(map(str, range(100)))).axes[0]
    assert not axes.containers
    assert (axes.images[0].get_array() == counts.T).all()


def test_composition_has_bases_as_rows() -> None:
    values = np.array([[0.9, 0.2], [0.3, 0.8]])
    axes = composition_figure(values, "title").axes[0]
    assert (axes.images[0].get_array() == values).all()
    assert axes.get_ylabel().startswith("base block")
    assert {text.get_position(): text.get_text() for text in axes.texts}[1, 0] == "20.0"


def test_curves_show_the_metrics(tmp_path: Path) -> None:
    write_run(tmp_path)
    run = load(tmp_path)
    axes = figures(run)["accuracy-rounds"].axes[0]
    points = {row.round: row.accuracy for row in run.rows if row.accuracy}
    curves = {line.get_label(): line for line in axes.lines}
    assert np.array(curves["own"].get_xdata()).tolist() == list(points)
    for label, name in (("own", "own"), ("composition", "composition"), ("global, ± std over clients", "common")):
        assert curves[label].get_ydata() == pytest.approx([np.mean(getattr(point, name)) for point in points.values()])
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 3
    ends = [line.get_ydata()[-1] for line in dashed]  # type: ignore[index]
    assert ends == pytest.approx(
        [np.mean(getattr(run.beside["local"][-1].accuracy, n)) for n in ("common", "own", "composition")]
    )


def test_the_legend_says_whom_the_spread_is_over(tmp_path: Path) -> None:
    write_run(tmp_path)
    run = load(tmp_path)
    some = replace(run, summary=run.summary.model_copy(update={"evaluated": (0, 2)}))
    drawn = figures(some)
    for name in ("accuracy-rounds", "accuracy-uplink"):
        labels = [text.get_text() for text in drawn[name].legends[0].get_texts()]
        assert labels[0] == "global, ± std over 2 of 4 clients"


def test_uplink_is_in_megabytes_of_all_clients(tmp_path: Path) -> None:
    fake = FakeRun()
    write_run(tmp_path, fake)
    axes = figures(load(tmp_path))["accuracy-uplink"].axes[0]
    assert axes.get_xscale() == "log"
    assert np.array(axes.lines[0].get_xdata()).max() == fake.rounds * fake.clients * fake.upload / 1e6
    write_run(tmp_path / "short", FakeRun(rounds=50))
    assert figures(load(tmp_path / "short"))["accuracy-uplink"].axes[0].get_xscale() == "linear"


def test_settings_of_the_user_change_nothing_and_stay(tmp_path: Path) -> None:
    values = np.array(matrix(FakeRun()))

    def drawn() -> str:
        return save(composition_figure(values, "a $title$"), tmp_path, "plot")

    plain, mine = drawn(), {"font.size": 33.0, "svg.fonttype": "path", "axes.facecolor": "red", "text.usetex": True}
    with matplotlib.rc_context(mine):
        assert drawn() == plain
        assert matplotlib.rcParams["font.size"] == 33.0


def test_figure_can_be_saved_by_its_user() -> None:
    stream = io.BytesIO()
    plots.class_counts_figure(np.array([[3, 4], [5, 6]]), ["0", "1"]).savefig(stream, format="png")
    stream.seek(0)
    with Image.open(stream) as image:
        assert image.size == (330, 224)
