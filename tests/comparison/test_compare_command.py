"""``interfuse compare``, from its words to its files."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from interfuse.cli import app
from interfuse.cli.comparing import axes
from interfuse.comparison import execution, plots
from interfuse.errors import ConfigError
from interfuse.runs import RunConfig

TINY = ["--clients", "2", "--models", "logistic", "--width", "8", "--rounds", "2", "--seeds", "0", "--jobs", "2"]
FIGURES = plots.figures


@pytest.fixture(autouse=True)
def _in_a_new_folder_with_one_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other plots take longer than the runs here, and have a test file of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "figures", lambda rows: {"final": FIGURES(rows)["final"]})


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def good(*arguments: str) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert not Path("comparisons").exists()
    return result.stderr


def test_methods_side_by_side() -> None:
    result = good("ifl", "local", *TINY, "--set", "batch_size=16", "--grid", "base_lr,lr=0.1,0.2")
    folder = Path("comparisons/ifl-local")
    plan = tomllib.loads((folder / "comparison.toml").read_text())
    assert plan["comparison"]["title"] == "ifl, local on digits"
    assert [entry["settings"]["batch_size"] for entry in plan["entry"]] == [16, 16]
    assert [entry["grid"] for entry in plan["entry"]] == [{"base_lr": [0.1, 0.2]}, {"lr": [0.1, 0.2]}]
    for name in ("comparison.json", "table.md", "table.tex", "table.csv", "report.html", "plots/final.png"):
        assert (folder / name).stat().st_size > 0
    text = " ".join(result.stdout.split())
    assert "comparisons/ifl-local/report.html" in text
    assert "own global composition uplink client steps" in text
    assert "One seed tells no difference" in text
    assert "ifl, seed 0: done" in result.stderr
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "Choice of settings" in page


def test_json_is_what_the_file_says_and_quiet_is_quiet() -> None:
    result = good("local", *TINY, "--json", "--quiet", "--out", "here")
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == json.loads(Path("here/comparison.json").read_text())
    assert found["entries"][0]["mean"]["uplink"] == 0
    assert result.stderr == ""


def test_the_plan_that_was_written_is_a_recipe_of_the_same_comparison() -> None:
    good("local", *TINY, "--out", "here")
    before = Path("here/runs/local/seed-0/summary.json").stat().st_mtime_ns
    good("here/comparison.toml", "--out", "here")
    assert Path("here/runs/local/seed-0/summary.json").stat().st_mtime_ns == before
    result = call("here/comparison.toml", "--out", "here", "--rounds", "3")
    assert result.exit_code == 2
    assert "choose another --out. What differs: entry.local.rounds: 2 became 3" in " ".join(result.stderr.split())


def test_the_shipped_recipe_in_its_quick_try() -> None:
    good("compare-demo", "--smoke", "--seeds", "0", "--rounds", "2")
    found = json.loads(Path("comparisons/compare-demo-smoke/comparison.json").read_text())
    assert [entry["name"] for entry in found["entries"]] == ["ifl", "fedproto", "fedavg", "local"]
    assert all(entry["failures"] == {} and len(entry["tuning"]) == 2 for entry in found["entries"])
    assert all(0 < entry["mean"]["global_last"] < 1 and entry["mean"]["flops"] > 0 for entry in found["entries"])
    assert found["entries"][2]["models"] == ["cnn"]


def test_mistakes() -> None:
    assert "no method 'ilf': did you mean 'ifl'?" in refused("ilf", "local")
    assert "compare-demo is a recipe; name one recipe, or methods only" in refused("ifl", "compare-demo")
    assert "demo.toml is no comparison, for it has no [comparison]" in refused("demo")
    assert "two entries are called 'ifl'" in refused("ifl", "ifl")
    assert "no method of ifl-local has a setting 'lrr': did you mean 'lr'?" in refused("ifl", "local", "--set", "lrr=1")
    assert "no method of ifl has a setting 'lr'" in refused("ifl", "--grid", "lr=0.1,0.2")
    assert "write key=a,b,c" in refused("ifl", "--grid", "base_lr")
    assert "write whole numbers" in refused("ifl", "--seeds", "a")
    assert "add [comparison.smoke]" in refused("ifl", "--smoke")
    assert "the partition is 'iid'" in refused("ifl", "--alpha", "0.5")
    assert "cannot read none.toml" in refused("none.toml")


def test_axes_of_the_command_line() -> None:
    assert axes(["lr=0.1,1e-2", "base_lr,modular_lr=1,2", "optimizer=sgd,adam", "keep=true,false"]) == {
        "lr": [0.1, 0.01], "base_lr,modular_lr": [1, 2], "optimizer": ["sgd", "adam"], "keep": [True, False],
    }  # fmt: skip
    assert axes(["lr={ start = 0.5, rounds = 3 },0.1"]) == {"lr": [{"start": 0.5, "rounds": 3}, 0.1]}
    with pytest.raises(ConfigError, match="lr is there twice"):
        axes(["lr=1", "lr=2"])


def test_an_entry_whose_run_was_killed_is_told_by_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are written, and a script that calls the command knows that they are not whole; the next call goes on."""
    begin_or_resume = execution.begin_or_resume

    def killed(path: Path, config: RunConfig, *more: Any) -> object:
        if config.method == "fedavg":
            os.kill(os.getpid(), signal.SIGKILL)
        return begin_or_resume(path, config, *more)

    monkeypatch.setattr(execution, "begin_or_resume", killed)
    result = call("local", "fedavg", *TINY, "--set", "batch_size=16")
    assert result.exit_code == 1, result.output
    assert "not whole: fedavg: " in result.stderr
    assert "local" not in result.stderr.split("not whole: ")[1]
    assert Path("comparisons/local-fedavg/table.md").stat().st_size > 0
