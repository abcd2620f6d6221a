"""What the recipes of FedIN's experiments hold. That they run is tested with those of all comparisons."""

from __future__ import annotations

import pytest

from interfuse import comparison, recipes
from interfuse.comparison.recipe import Recipe, read

TABLES = [name for name in recipes.names() if name.startswith("fedin-")]


def recipe(name: str) -> Recipe:
    path = recipes.find(name)
    assert path is not None
    return read(path)


def test_every_table_is_here() -> None:
    assert {"fedin-figure6", *(f"fedin-table{number}" for number in range(1, 7))} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
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
