"""``interfuse.compare`` in Python: the comparison of the command line, with rows to go on with."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from worlds import tiny_dataset

import interfuse
from interfuse import ComparisonResult
from interfuse.errors import ConfigError
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.ifl import IFL


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none."""
    monkeypatch.setattr("interfuse.comparison.plots.figures", lambda rows: {})


@pytest.fixture
def data(tmp_path: Path) -> str:
    import numpy as np

    made = tiny_dataset(rows=120)
    arrays = {name: getattr(made, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "rows.npz", **arrays)
    return str(tmp_path / "rows.npz")


def few(data: str) -> dict[str, Any]:
    return {
        "data": data, "clients": 2, "models": ["logistic"], "fusion_width": 8, "rounds": 2, "seeds": [0, 1],
        "quiet": True, "jobs": 1,
    }  # fmt: skip


def test_methods_in_one_table(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid = {"lr": [0.01, 0.1]}
    found = interfuse.compare(["ifl", FedAvg, "local"], grid=grid, out="out", settings={"local_steps": 2}, **few(data))
    assert [row.name for row in found.rows] == ["ifl", "fedavg", "local"]
    assert found["fedavg"].chosen in ({"lr": 0.01}, {"lr": 0.1})
    assert found["ifl"].chosen is None or found["ifl"].chosen == {}
    for row in found.rows:
        assert sorted(row.seeds) == [0, 1]
        own = [found.result(row.name, seed).summary.own_accuracy.mean for seed in (0, 1)]
        assert [row.seeds[seed]["own_last"] for seed in (0, 1)] == own
        assert row.mean["own_last"] == pytest.approx(sum(own) / 2)
        assert found.result(row.name, 0).config.settings["local_steps"] == 2
    assert found.table == Path("out/table.md").read_text(encoding="utf-8")
    assert list(found.notes) == json.loads(Path("out/comparison.json").read_text(encoding="utf-8"))["notes"]
    shown, page = repr(found), found._repr_html_()
    for part in ("own, %", "fedavg", f"{100 * found['local'].mean['own_last']:.1f}"):
        assert part in shown
        assert part in page
    with pytest.raises(ConfigError, match="no entry 'ifle': did you mean 'ifl'"):
        found["ifle"]
    with pytest.raises(ConfigError, match="ifl has no run with seed 7"):
        found.result("ifl", 7)
    before = Path("out/runs/ifl/seed-0/summary.json").stat().st_mtime_ns
    interfuse.compare(["ifl", FedAvg, "local"], grid=grid, out="out", settings={"local_steps": 2}, **few(data))
    assert Path("out/runs/ifl/seed-0/summary.json").stat().st_mtime_ns == before


def test_objects_have_settings_and_names_of_their_own(data: str, tmp_path: Path) -> None:
    methods = {"slow": IFL(base_lr=0.001), "fast": IFL(base_lr=0.1)}
    found = interfuse.compare(methods, out=tmp_path / "out", **few(data) | {"seeds": [0], "rounds": 1})
    assert [found.result(name, 0).config.settings["base_lr"] for name in methods] == [0.001, 0.1]
    assert math.isnan(found["slow"].std["own_last"])


def test_a_recipe_can_be_compared_too(data: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[comparison]\nseeds = [4]\n[[entry]]\nname = "alone"\nmethod = "local"\n', encoding="utf-8")
    settings = {key: value for key, value in few(data).items() if key != "seeds"}
    found = interfuse.compare(file, out=tmp_path / "out", **settings)
    assert isinstance(found, ComparisonResult)
    assert [*found["alone"].seeds] == [4]


@pytest.mark.parametrize(
    ("methods", "values", "told"),
    [
        (["ifl"], {"data": tiny_dataset()}, "tiny is here only in memory, and a comparison has to find it by name"),
        (["ifl"], {"partition": lambda labels, clients, rng: []}, "<lambda> is here only in memory"),
        (["fedavg"], {"settings": {"lr": lambda round, step: 0.1}}, "<lambda> is here only in memory"),
        ([FedAvg(lr=lambda round, step: 0.1)], {}, "interfuse.compare, fedavg: "),
        ("nowhere", {}, "no recipe 'nowhere': "),
        (["ifl"], {"seeds": []}, "interfuse.compare: seeds = () is impossible"),
        (["ifl"], {"seeds": [1, 1]}, "interfuse.compare: seeds = [1, 1]: name each once"),
        (["ifll"], {}, "no method 'ifll': did you mean 'ifl'"),
        ([], {}, "there is nothing to compare"),
        (["ifl", IFL()], {}, "two entries are called 'ifl'"),
    ],
)
def test_what_has_no_name_is_refused(methods: Any, values: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        interfuse.compare(methods, out=tmp_path / "out", quiet=True, **values)
    assert not (tmp_path / "out").exists()
