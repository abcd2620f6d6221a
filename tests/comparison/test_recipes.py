"""Every comparison that comes with the package can be planned, in full and as a quick try."""

from __future__ import annotations

import tomllib

import pytest

from interfuse import recipes
from interfuse.comparison.plan import resolve
from interfuse.comparison.recipe import read, smoke

COMPARISONS = [
    path.stem
    for path in sorted(recipes.folder().glob("*.toml"))
    if "comparison" in tomllib.loads(path.read_text(encoding="utf-8"))
]


def test_the_experiments_of_ifl_are_here() -> None:
    wanted = "paper homogeneous noniid width tau cut architectures controls staleness joint domains har"
    wanted += " stragglers late-joiner"
    assert {f"ifl-{name}" for name in wanted.split()} <= set(COMPARISONS)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_quick_try_asks_for_the_same_entries(name: str) -> None:
    path = recipes.find(name)
    assert path is not None
    recipe = read(path)
    plan = resolve(smoke(recipe))
    assert [entry.name for entry in plan.entries] == [entry.name for entry in recipe.entries]
    assert len(plan.asked.seeds) <= 2
    assert recipe.asked.anchor in {entry.name for entry in recipe.entries}
