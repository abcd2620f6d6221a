"""The experiments of FedIN's paper, as quick tries: Table 1 as a whole, of the others what it has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from interfuse import comparison, recipes
from interfuse.comparison import plots
from interfuse.comparison.recipe import Recipe, read

ONCE_MORE = {
    "fedin-table1": None, "fedin-table2": ["heterofl", "fedin"], "fedin-table3": ["fedavg", "scaffold", "fedin"],
    "fedin-table4": [
        "fedavg", "equal, fednova", "fedin", "fedin, exact by tensor", "fedin, IN after", "fedin, batch statistics",
    ],
    "fedin-table5": ["fedavg, 100", "inclusivefl, 20", "fedin, 100"],
    "fedin-table6": ["fedavg", "noise 0", "noise 0.8, both"],
    "fedin-figure6": ["batch 16", "50 batches received"],
}  # fmt: skip


def recipe(name: str) -> Recipe:
    path = recipes.find(name)
    assert path is not None
    return read(path)


def test_every_table_is_here() -> None:
    assert set(ONCE_MORE) == {name for name in recipes.names() if name.startswith("fedin-")}


@pytest.mark.parametrize("name", ONCE_MORE)
def test_a_quick_try_ends_without_a_failure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "figures", lambda rows: {})
    quick, kept = comparison.quicker(recipe(name), "smoke"), ONCE_MORE[name]
    entries = tuple(entry for entry in quick.entries if kept is None or entry.name in kept)
    assert len(entries) == len(kept or quick.entries)
    with comparison.shown(True) as follower:
        plan = comparison.resolve(quick.model_copy(update={"entries": entries}))
        found = comparison.compare(plan, tmp_path / name, jobs=2, follower=follower)
    assert [entry["name"] for entry in found["entries"]] == [entry.name for entry in entries]
    assert all(entry["mean"]["global_last"] >= 0 for entry in found["entries"])


@pytest.mark.parametrize("name", ONCE_MORE)
def test_the_small_size_keeps_every_entry_and_fits_its_models(name: str) -> None:
    asked = recipe(name)
    plan = comparison.resolve(comparison.quicker(asked, "small"))
    assert [entry.name for entry in plan.entries] == [entry.name for entry in asked.entries]
    assert asked.asked.small
    if name != "fedin-table2":  # which trains nothing to speak of
        assert all("-narrow" in model for entry in plan.entries for model in entry.config.models)


def test_table_1_has_all_that_the_paper_compares_and_what_it_should_have() -> None:
    names = {entry.name for entry in recipe("fedin-table1").entries}
    paper = "fedavg fedprox scaffold fednova moon heterofl fedgen fedet inclusivefl fedrolex scalefl incoavg fedin"
    assert {*paper.split(), "fedin+noise"} | {"local", "incoprox", "fedavg, smallest", "fedavg, largest"} <= names
