"""The pictures of what a method shows."""

from __future__ import annotations

import numpy as np
import pytest
from fake_run import FakeRun, summary_of
from matplotlib.colors import to_hex

from interfuse.report.plots import as_svg
from interfuse.report.shown import client_names, file_of, over_rounds, pairs_figure, scale_of


@pytest.mark.parametrize("clients", [1, 2, 16, 17, 40])
def test_a_matrix_of_clients_has_a_picture(clients: int) -> None:
    values = np.random.default_rng(0).uniform(-0.2, 0.6, (clients, clients))
    np.fill_diagonal(values, 1.0)
    axes = pairs_figure(values, "relevance", [f"{i} task" for i in range(clients)]).axes[0]
    assert len(axes.texts) == (clients**2 if clients <= 16 else 0)
    assert [tick.get_text() for tick in axes.get_yticklabels()][:2] == ["0 task", "1 task"][:clients] or clients > 24
    low, high = axes.images[0].get_clim()
    if clients > 2:
        off = values[~np.eye(clients, dtype=bool)]
        assert (low, high) == (off.min(), off.max())
    assert as_svg(pairs_figure(values, "relevance", [str(i) for i in range(clients)]), "x")


def test_numbers_can_be_read_on_their_colours() -> None:
    axes = pairs_figure(np.array([[1.0, -0.25, 0.5], [0.0, 1.0, 0.75], [0.1, 0.2, 1.0]]), "x", ["0", "1", "2"]).axes[0]
    assert [text.get_text() for text in axes.texts][:3] == ["1.00", "−.25", ".50"]
    large = pairs_figure(np.array([[10.5, -20.0], [100.25, 0.0]]), "x", ["0", "1"]).axes[0]
    assert [text.get_text() for text in large.texts] == ["10.50", "−20.00", "100.25", ".00"]
    assert {text.get_text(): to_hex(text.get_color()) for text in axes.texts}["−.25"] == "#10151b"
    assert {text.get_text(): to_hex(text.get_color()) for text in axes.texts}[".75"] == "#ffffff"


def test_a_scale_is_of_what_is_known_off_the_diagonal() -> None:
    nan = np.nan
    assert scale_of(np.array([[1.0, 0.2], [0.4, 1.0]])) == (0.2, 0.4)
    assert scale_of(np.array([[1.0, 0.2], [0.2, 1.0]])) == (0.2, 1.0)
    assert scale_of(np.array([[1.0, nan, 0.1], [nan, nan, nan], [0.3, nan, 1.0]])) == (0.1, 0.3)
    assert scale_of(np.array([[1.0]])) == scale_of(np.full((2, 2), nan)) == (0.0, 1.0)


def test_a_number_over_the_rounds_has_its_spread_over_clients() -> None:
    axes = over_rounds([1, 2, 3], [2.0, 3.0, 4.0], [0.5, np.nan, 1.0], "sources").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [2.0, 3.0, 4.0]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.5, 5.0)


def test_names_of_files_and_clients() -> None:
    assert file_of("effective sources e^H") == "shown-effective-sources-e-h"
    summary = summary_of(FakeRun(clients=2))
    named = summary.model_copy(
        update={"clients": (summary.clients[0].model_copy(update={"groups": ("hue", "bgr")}), summary.clients[1])}
    )
    assert client_names(named) == ["0 hue", "1"]
