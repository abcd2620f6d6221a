"""What the recipes of FedIN's experiments hold. That they run is tested with those of all comparisons."""

from __future__ import annotations

import pytest
import torch

from interfuse import comparison, recipes
from interfuse.comparison.recipe import Recipe, read
from interfuse.models import resolve

TABLES = [name for name in recipes.names() if name.startswith("fedin-")]


def recipe(name: str) -> Recipe:
    path = recipes.find(name)
    assert path is not None
    return read(path)


def test_every_table_is_here() -> None:
    assert {"fedin-figure6", *(f"fedin-table{number}" for number in range(1, 7))} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_the_small_size_fits_its_models_and_leaves_out_what_would_be_another_entry(name: str) -> None:
    asked = recipe(name)
    plan = comparison.resolve(comparison.quicker(asked, "small"))
    small = name in ("fedin-table1", "fedin-table3", "fedin-table4")
    # where all clients take equally many steps FedNova is FedAvg
    assert [entry.name for entry in plan.entries] == [
        entry.name for entry in asked.entries if not (small and entry.method == "fednova")
    ]
    assert asked.asked.small
    if name != "fedin-table2":  # which trains nothing to speak of
        assert all("-narrow" in model for entry in plan.entries for model in entry.config.models)


def test_table_1_has_all_that_the_paper_compares_and_what_it_should_have() -> None:
    names = {entry.name for entry in recipe("fedin-table1").entries}
    paper = "fedavg fedprox scaffold fednova moon heterofl fedgen fedet inclusivefl fedrolex scalefl incoavg fedin"
    assert {*paper.split(), "fedin+noise"} | {"local", "incoprox", "fedavg, smallest", "fedavg, largest"} <= names


def test_models_of_several_widths_are_as_large_as_those_of_several_depths() -> None:
    plan = comparison.resolve(recipe("fedin-table1"))
    entries = {entry.name: entry.config for entry in plan.entries}

    def parameters(name: str) -> float:
        with torch.device("meta"):  # shapes only
            found = [resolve(model)((3, 32, 32), 10, 512) for model in entries[name].models]
        return sum(p.numel() for model in found for p in model.parameters()) / len(found)

    for name in ("heterofl", "fedrolex"):
        assert parameters(name) == pytest.approx(parameters("fedin"), rel=0.01)
    assert parameters("heterofl, a to e") == pytest.approx(4.65e6, rel=0.01)
    assert parameters("scalefl") == pytest.approx(5.14e6, rel=0.01)
