"""Similarities of fusion outputs and virtual time in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fake_run import write_page, write_run

from interfuse.report.plots import figures
from interfuse.report.run import load

AFTER = [[1.0, 0.83, None], [0.83, 1.0, 0.71], [None, 0.71, 1.0]]


def test_heat_maps_before_and_after_show_the_values(tmp_path: Path) -> None:
    summary = write_run(tmp_path)
    assert not any(name.startswith("similarity") for name in figures(load(tmp_path)))
    summary["similarity"] = {"before": np.eye(3).tolist(), "after": AFTER}
    summary["virtual_seconds"] = {"devices": 1234.56, "1 Mbit/s": 99.94}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    axes = figures(load(tmp_path))["similarity-after"].axes[0]
    assert np.array_equal(axes.images[0].get_array(), np.array(AFTER, float), equal_nan=True)  # type: ignore[arg-type]
    assert [text.get_text() for text in axes.texts][:2] == ["100.0", "83.0"]
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert page.count("Linear CKA between the outputs of all base blocks") == 4  # captions, and texts of the pictures
    assert "1,234.6 (devices), 99.9 (1 Mbit/s)" in page
