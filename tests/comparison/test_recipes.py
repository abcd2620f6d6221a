"""Every comparison that comes with the package can be planned, and runs from end to end as a quick try."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interfuse import recipes
from interfuse.cli import app
from interfuse.comparison import plots
from interfuse.comparison.plan import resolve
from interfuse.comparison.preflight import attempt, trials
from interfuse.comparison.recipe import Recipe, quicker, read
from interfuse.data import available
from interfuse.runs import RunConfig

COMPARISONS = [
    path.stem
    for path in sorted(recipes.folder().glob("*.toml"))
    if "comparison" in tomllib.loads(path.read_text(encoding="utf-8"))
]


def recipe_named(name: str) -> Recipe:
    path = recipes.find(name)
    assert path is not None
    return read(path)


def test_the_experiments_of_ifl_are_here() -> None:
    wanted = (
        "paper homogeneous noniid width tau cut architectures controls staleness joint domains har "
        "codecs scaling label-privacy stragglers late-joiner many-clients thousand-clients banks"
    )
    assert {f"ifl-{name}" for name in wanted.split()} <= set(COMPARISONS)


def test_the_experiments_of_fedvtc_are_here() -> None:
    assert {f"fedvtc-{name}" for name in ("small", "ablations", "paper", "har", "usps")} <= set(COMPARISONS)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_quick_try_asks_for_the_same_entries(name: str) -> None:
    recipe = recipe_named(name)
    plan = resolve(quicker(recipe, "smoke"))
    assert [entry.name for entry in plan.entries] == [entry.name for entry in recipe.entries]
    assert len(plan.asked.seeds) <= 2
    assert plan.asked.title.endswith(": a quick try")
    assert recipe.asked.anchor in {entry.name for entry in recipe.entries}


@pytest.mark.parametrize("name", [name for name in COMPARISONS if recipe_named(name).asked.small])
def test_the_small_size_can_be_planned(name: str) -> None:
    plan = resolve(quicker(recipe_named(name), "small"))
    assert plan.asked.anchor in {entry.name for entry in plan.entries}


# one each of: clients that come late, virtual time; several methods with test_compare_command.py
WHOLE = ("ifl-late-joiner", "ifl-stragglers")


def skip_without(recipe: Recipe) -> None:
    states = {info.name: info.state for info in available()}
    tables = [recipe.run, *(entry.run for entry in recipe.entries)]
    for data in (table.get("data", "digits") for table in tables):
        for one in [data] if isinstance(data, str) else data:
            if states[one] not in ("shipped", "installed", "found", "cached"):
                pytest.skip(f"the files of {one} are not in INTERFUSE_DATA")


@pytest.mark.parametrize("name", [name for name in COMPARISONS if name not in WHOLE])
def test_every_run_of_a_quick_try_can_be_set_up(name: str) -> None:
    recipe = quicker(recipe_named(name), "smoke")
    skip_without(recipe)
    plan = resolve(recipe)
    plan.check()
    # of entries that differ in settings alone the first: `check` has read the others
    firsts = {kind_of(next(trials(plan, entry)).config): entry for entry in reversed(plan.entries)}
    for entry in firsts.values():
        attempt(next(trials(plan, entry)).config, plan.given(entry))


def kind_of(config: RunConfig) -> str:
    """A run's configuration without its settings and numbers."""
    return re.sub(r"\b[0-9][0-9.e-]*\b", "", str(config.model_copy(update={"settings": {}, "client": {}})))


@pytest.mark.parametrize("name", WHOLE)
def test_a_quick_try_ends_in_a_table_of_all_entries(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_named(name)
    skip_without(quicker(recipe, "smoke"))
    monkeypatch.setattr(plots, "figures", lambda rows: {})  # they have tests of their own
    result = CliRunner().invoke(app, ["compare", name, "--smoke", "--quiet", "--jobs", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert [entry["name"] for entry in table["entries"]] == [entry.name for entry in recipe.entries]
    means = [entry["mean"] for entry in table["entries"]]  # with a few rows a client, there is no test share
    assert all(0 < (mean["own_last"] or mean["global_last"]) <= 1 for mean in means)
    assert not any(entry["failures"] for entry in table["entries"])
