"""What a comparison says: its tables as plain values, checked key by key, and changed by what is asked beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, Field

from interfuse.errors import ConfigError, nearest
from interfuse.method import ALTERNATIVES, layered
from interfuse.runs import RunConfig
from interfuse.runs.config import M, absolute_paths, check_keys, codec_rules, validated
from interfuse.toml import read_toml

SIZES = ("smallest", "largest")
"""Instead of a list of models: all clients have that one of the federation's models."""
NOT_SHARED = ("method", "seed", "beside", "execution", "sources", "environment")
"""Keys of a run that a comparison sets itself."""
RUN_KEYS = tuple(key for key in RunConfig.model_fields if key not in NOT_SHARED)
TABLES_ALONE = ("columns", "caption")
"""What is asked of tables alone, so that it may change when all runs are finished."""
QUICKER = {"smoke": "a quick try", "small": "the small size"}
"""What a recipe may be besides what it says: a quick try, and what one machine does in some hours."""
LEVELS = {
    "read": 1,
    "settings": 1,
    "client": 2,
    "numerics": 1,
    "codecs": 1,
    "devices": 1,
    "stop": 1,
    "sampling": 1,
    "tasks": 1,
}
"""Tables to which another table adds, and how deep; any other value is replaced."""

Grid = dict[str, list[Any]]


class Tuning(BaseModel):
    """How a value is chosen from a grid: one seed, this fraction of the rounds, the best validation accuracy.

    Attributes:
        tolerance: Accuracy between 0 and 1 that may be given up: of all points within it of the best, the one with the
            smallest uplink on the wire is chosen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: Annotated[float, Gt(0), Le(1)] = 0.25
    seed: int = 0
    tolerance: Annotated[float, Ge(0), Le(1)] = 0.0


class Asked(BaseModel):
    """The table ``[comparison]``.

    Attributes:
        accuracies: Mean global accuracies between 0 and 1: how many bytes until then?
        uplinks: Bytes: which accuracy with these?
        anchor: The entry at whose uplink all are compared: where it first has 95 % of its final global accuracy.
        baseline: The entry whose rounds until an accuracy are the unit of speed.
        columns: Those of the first table, by the names that ``interfuse compare --columns`` knows; none: the usual.
        caption: That of the first table; empty: what it says.
        smoke: Keys of a run, and ``seeds``, that a quick try changes; ``entries``: the names of those that it has.
        small: The same for one machine and some hours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    accuracies: tuple[Annotated[float, Gt(0), Le(1)], ...] = (0.8, 0.9)
    uplinks: tuple[Annotated[float, Gt(0)], ...] = ()
    anchor: str | None = None
    baseline: str | None = None
    columns: tuple[str, ...] = ()
    caption: str = ""
    tuning: Tuning = Tuning()
    smoke: dict[str, Any] = Field(default_factory=dict)
    small: dict[str, Any] = Field(default_factory=dict)


class EntryTable(BaseModel):
    """A table ``[[entry]]``; ``run`` holds the keys of a run that it says itself, ``quicker`` those of other sizes.

    ``grids`` holds the grids of other sizes, where they differ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[\w+][\w+.,=() -]*$", max_length=60)]
    method: str
    run: dict[str, Any] = Field(default_factory=dict)
    grid: Grid = Field(default_factory=dict)
    quicker: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grids: dict[str, Grid] = Field(default_factory=dict)


class Recipe(BaseModel):
    """A whole recipe: what is asked, what all runs share, and what is compared.

    Attributes:
        left_out: Entries that are not compared this time; what all share may be for them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    asked: Asked
    run: dict[str, Any]
    grid: Grid
    entries: tuple[EntryTable, ...]
    left_out: tuple[EntryTable, ...] = ()


def read(path: Path) -> Recipe:
    """Read a recipe, or the ``comparison.toml`` of a comparison.

    Raises:
        ConfigError: the file is missing, is no comparison, or says something unknown or impossible.
    """
    values = read_toml(path)
    if "comparison" not in values:
        raise ConfigError(f"{path} is no comparison, for it has no [comparison]; `interfuse run {path}` runs it")
    return parse(values, path.stem, str(path), path.parent)


def parse(values: Mapping[str, Any], name: str, source: str, folder: Path) -> Recipe:
    """Make a recipe of plain values.

    Args:
        source: What error texts call it.
        folder: Where the relative paths in it begin.

    Raises:
        ConfigError: a key is unknown (with the nearest valid one) or a value impossible.
    """
    _known(values, ("comparison", "run", "grid", "entry"), source)
    asked = _asked(values.get("comparison", {}), f"{source}, [comparison]")
    for size in QUICKER:
        changed = {key: value for key, value in getattr(asked, size).items() if key not in ("seeds", "entries")}
        _run(changed, f"{source}, [comparison.{size}]")
    run = _run(values.get("run", {}), f"{source}, [run]")
    tables = values.get("entry", [])
    if not isinstance(tables, Sequence) or not tables or isinstance(tables, str):
        raise ConfigError(f"{source}: there is nothing to compare: write an [[entry]] with name and method for each")
    entries = tuple(_entry(table, f"{source}, [[entry]] {number}", folder) for number, table in enumerate(tables, 1))
    taken = [file_name(entry.name) for entry in entries]
    for entry in entries:
        if taken.count(file_name(entry.name)) > 1:
            raise ConfigError(f"{source}: two entries are called {entry.name!r} or much alike; their files would clash")
    grid = _grid(values.get("grid", {}), f"{source}, [grid]")
    return Recipe(name=name, asked=asked, run=absolute_paths(run, folder), grid=grid, entries=entries)


def seeded(recipe: Recipe, seeds: Sequence[int], source: str) -> Recipe:
    """A recipe with other seeds.

    Raises:
        ConfigError: there is none, or one is there twice.
    """
    return recipe.model_copy(update={"asked": _asked(recipe.asked.model_dump() | {"seeds": tuple(seeds)}, source)})


def _asked(values: object, source: str) -> Asked:
    asked = _table(Asked, values, source)
    if len(set(asked.seeds)) < len(asked.seeds):
        raise ConfigError(f"{source}: seeds = {list(asked.seeds)}: name each once")
    return asked


def _run(values: object, source: str) -> dict[str, Any]:
    """Keys of a run, known ones; tables are tables, and clients go by their numbers as text, as TOML has them."""
    run = _mapping(values, source)
    _known(run, RUN_KEYS, source)
    if "codecs" in run:
        run["codecs"] = codec_rules(run["codecs"])
    for key in LEVELS.keys() & run.keys():
        run[key] = _mapping(run[key], f"{source}, {key}")
    if "client" in run:
        run["client"] = {str(client): _mapping(own, f"{source}, client") for client, own in run["client"].items()}
    return run


def _entry(values: object, source: str, folder: Path) -> EntryTable:
    table = _mapping(values, source)
    for key in ("name", "method"):
        if key not in table:
            raise ConfigError(f"{source} has no {key}; it needs name and method")
    _known(table, ("name", "method", "grid", *QUICKER, *RUN_KEYS), source)
    run = _run({key: value for key, value in table.items() if key in RUN_KEYS}, source)
    both = absolute_paths(run | {"method": table["method"]}, folder)
    grid = _grid(table.get("grid", {}), f"{source}, grid")
    for key in (key for axis in grid for key in keys_of(axis)):
        if key in run.get("settings", {}):
            raise ConfigError(f"{source}: {key} is a setting and in the grid; say it once")
    values = {"name": table["name"], "method": both.pop("method"), "run": both, "grid": grid}
    quicker = {size: _mapping(table[size], f"{source}, {size}") for size in QUICKER if size in table}
    grids = {size: _grid(own.pop("grid"), f"{source}, {size}, grid") for size, own in quicker.items() if "grid" in own}
    quicker = {size: _run(own, f"{source}, {size}") for size, own in quicker.items()}
    return _table(EntryTable, values | {"quicker": quicker, "grids": grids}, source)


def _grid(values: object, source: str) -> Grid:
    grid = _mapping(values, source)
    for axis, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{source}: {axis} = {choices!r}: write the values to try as a list, such as [0.01, 0.1]")
        if any(choices.count(choice) > 1 for choice in choices):
            raise ConfigError(f"{source}: {axis} = {choices!r}: name each value once")
    keys = [key for axis in grid for key in keys_of(axis)]
    for key in keys:
        if keys.count(key) > 1 or not key:
            raise ConfigError(f"{source}: {key or 'a setting without a name'} is there twice; name each setting once")
    return grid


def file_name(entry: str) -> str:
    """The name of an entry for a file, also where file systems know no case, and for an identifier of a page."""
    return re.sub(r"[\W_]+", "-", entry.lower())


CODECS = "codecs"
"""An axis of a grid that is no setting of a method: how messages travel."""


def keys_of(axis: str) -> tuple[str, ...]:
    """The settings that take the same value: ``base_lr,modular_lr`` has two."""
    return tuple(key.strip() for key in axis.split(","))


def only(recipe: Recipe, names: Sequence[str], source: str) -> Recipe:
    """A recipe with these of its entries, in its own order.

    Args:
        source: Who asks for them, for an error.

    Raises:
        ConfigError: one is no entry of it.
    """
    known = [entry.name for entry in recipe.entries]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{source}: {unknown[0]!r} is no entry: {nearest(unknown[0], known)}")
    kept = tuple(entry for entry in recipe.entries if entry.name in names)
    others = tuple(entry for entry in recipe.entries if entry.name not in names)
    return recipe.model_copy(update={"entries": kept, "left_out": (*recipe.left_out, *others)})


def quicker(recipe: Recipe, size: str, *, all_entries: bool = False) -> Recipe:
    """A recipe in one of the sizes of ``QUICKER``: what it says of this for all, then what an entry says itself.

    Args:
        all_entries: Also those that this size leaves out.

    Raises:
        ConfigError: the recipe says nothing of it.
    """
    overrides = dict(getattr(recipe.asked, size))
    if not overrides:
        raise ConfigError(
            f"{recipe.name} says nothing of {QUICKER[size]}; add [comparison.{size}] with, say, rounds = 4"
        )
    seeds = overrides.pop("seeds", recipe.asked.seeds)
    own = overrides.pop("entries", None)
    recipe = recipe if own is None or all_entries else only(recipe, own, f"{recipe.name}, [comparison.{size}]")
    title = f"{recipe.asked.title or recipe.name}: {QUICKER[size]}"
    asked = _asked(recipe.asked.model_dump() | {"seeds": seeds, "title": title}, f"{recipe.name}, [comparison.{size}]")
    changed = override(recipe.model_copy(update={"name": f"{recipe.name}-{size}", "asked": asked}), overrides, {})
    least = size == "smoke"
    entries = tuple(
        entry.model_copy(
            update={
                "run": merged(entry.run, entry.quicker.get(size, {})),
                "grid": _tried(entry.grids.get(size, entry.grid), least),
            }
        )
        for entry in changed.entries
    )
    return changed.model_copy(update={"entries": entries, "grid": _tried(changed.grid, least)})


def _tried(grid: Grid, least: bool) -> Grid:
    """The grid, or two choices of each axis: enough to see that there is one."""
    return {axis: choices[:2] for axis, choices in grid.items()} if least else grid


def override(recipe: Recipe, run: Mapping[str, Any], grid: Grid) -> Recipe:
    """The recipe with keys of a run and axes of the grid changed, for all runs and in every entry.

    ``models = "smallest"`` and ``"largest"`` of an entry stay: they speak of the models of the federation. A setting
    that is given here is in no grid any more, and one that is put into the grid here is fixed nowhere.
    """
    run, checked = _run(run, "options"), _grid(grid, "--grid")
    fixed, free = set(run.get("settings", {})), {key for axis in checked for key in keys_of(axis)}
    free |= set(ALTERNATIVES) if free & set(ALTERNATIVES) else set()
    if fixed & free:
        raise ConfigError(f"{', '.join(sorted(fixed & free))}: given as a setting and in the grid; say it once")

    def without(values: Mapping[str, Any]) -> dict[str, Any]:
        settings = {key: value for key, value in values.get("settings", {}).items() if key not in free}
        return {**values, "settings": settings} if "settings" in values else dict(values)

    entries = []
    for entry in recipe.entries:
        relative = {"models"} if entry.run.get("models") in SIZES else set()
        said = run.keys() & entry.run.keys() - relative
        own = {key: _said(entry.run[key], run[key], LEVELS.get(key, 0)) for key in said}
        entries.append(
            entry.model_copy(
                update={"run": merged(without(entry.run), own), "grid": _without_keys(entry.grid, fixed | free)}
            )
        )
    return recipe.model_copy(
        update={
            "run": merged(without(recipe.run), run),
            "grid": _without_keys(recipe.grid, fixed | free) | checked,
            "entries": tuple(entries),
        }
    )


def _without_keys(grid: Grid, keys: set[str]) -> Grid:
    found = {",".join(key for key in keys_of(axis) if key not in keys): choices for axis, choices in grid.items()}
    return {axis: choices for axis, choices in found.items() if axis}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a run with others over them; tables of settings add up, key by key."""
    both = below.keys() & above.keys()
    return {**below, **above, **{key: _added(below[key], above[key], LEVELS.get(key, 0)) for key in both}}


def _added(below: Any, above: Any, levels: int) -> Any:
    if not levels:
        return above
    both = below.keys() & above.keys()
    return layered(below, {**above, **{key: _added(below[key], above[key], levels - 1) for key in both}})


def _said(below: Any, above: Any, levels: int) -> Any:
    """What ``above`` says of the keys that are in ``below``."""
    if not levels:
        return above
    alternatives = set(ALTERNATIVES) if below.keys() & set(ALTERNATIVES) else set()
    shared = above.keys() & (below.keys() | alternatives)
    return {key: _said(below.get(key), above[key], levels - 1) for key in shared}


def _known(values: Mapping[str, Any], names: Sequence[str], source: str) -> None:
    for key in values:
        if key in NOT_SHARED and key not in names:
            raise ConfigError(f"{source}: {key} is not for a comparison to say here; it is set for every run")
    check_keys(values, names, source)


def _mapping(values: object, source: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected a table, found {values!r}")
    return dict(values)


def _table(kind: type[M], values: object, source: str) -> M:
    table = _mapping(values, source)
    _known(table, tuple(kind.model_fields), source)
    return validated(kind, table, source)
