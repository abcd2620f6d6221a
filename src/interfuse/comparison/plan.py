"""The complete plan of a comparison: every default written out, every grid expanded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import tomli_w

from interfuse.comparison.recipe import (
    CODECS,
    NOT_SHARED,
    QUICKER,
    SIZES,
    Asked,
    EntryTable,
    Grid,
    Recipe,
    keys_of,
    merged,
)
from interfuse.data import Dataset
from interfuse.errors import ConfigError, InterfuseError, nearest
from interfuse.method import layered
from interfuse.methods import find
from interfuse.models import DEFAULT_MODELS
from interfuse.runs import Execution, Given, RunConfig, parse_config
from interfuse.runs.config import codec_rules, complete, plain, without_none
from interfuse.runs.loop import assemble
from interfuse.wire import Codecs

LONGEST_NAME = 200
"""Characters of a folder's name, with room under the 255 bytes of file systems."""

Point = Mapping[str, Any]
"""Settings that a grid decides, by name."""


@dataclass(frozen=True)
class Entry:
    """A row of the table to be.

    Attributes:
        config: A run of it, complete but for the settings of the grid.
        grid: Values to try by axis; the settings of one axis take the same value.
    """

    name: str
    config: RunConfig
    grid: Grid

    def points(self) -> list[Point]:
        """All combinations of the grid; a single empty one where there is none."""
        axes = [[dict.fromkeys(keys_of(axis), choice) for choice in choices] for axis, choices in self.grid.items()]
        return [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*axes)]

    def run(self, point: Point, seed: int, rounds: int | None = None) -> RunConfig:
        """The configuration of a run with these values of the grid."""
        values = {
            "settings": layered(self.config.settings, {k: value for k, value in point.items() if k != CODECS}),
            "seed": seed, "rounds": rounds or self.config.rounds,
            "unset": tuple(key for key in self.config.unset if key not in point),
        }  # fmt: skip
        if CODECS in point:
            values[CODECS] = Codecs.parse(self.config.codecs | codec_rules(point[CODECS])).texts
        return self.config.model_copy(update=values)

    def label(self, point: Point) -> str:
        """A point in words: ``base_lr,modular_lr=0.01; local_steps=5``."""
        parts = (f"{axis}={point[keys_of(axis)[0]]}" for axis in self.grid)
        return "; ".join(parts)

    def folder_name(self, point: Point) -> str:
        """A point as the name of a folder."""
        return re.sub(r"[^\w.+=,-]+", "-", self.label(point).replace("; ", "_")) or "default"


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison will do."""

    name: str
    asked: Asked
    entries: tuple[Entry, ...]

    def values(self) -> dict[str, Any]:
        """The plan as a recipe: plain values that say all of it."""
        entries = [
            {
                "name": entry.name, "method": entry.config.method,
                **{k: v for k, v in without_none(entry.config.identity()).items() if k not in NOT_SHARED},
                "grid": entry.grid,
            }
            for entry in self.entries
        ]  # fmt: skip
        asked = {k: v for k, v in plain(self.asked.model_dump(exclude=set(QUICKER))).items() if v is not None}
        return {"comparison": asked, "entry": entries}

    def to_toml(self) -> str:
        """The plan as a recipe in TOML."""
        return tomli_w.dumps(self.values())

    @cached_property
    def _loaded(self) -> dict[tuple[str, str, str], Dataset]:
        return {}

    def given(self, entry: Entry) -> Given:
        """The data sets of an entry and its public one, each loaded once for all entries.

        Raises:
            InterfuseError: one of them cannot be loaded.
        """
        config = entry.config

        def once(name: str) -> Dataset:
            # how a set is read that is public alone depends on those of clients
            key = (name, "" if name in config.data_names else str(config.data_names), str(config.read))
            if key not in self._loaded:
                self._loaded[key] = config.load(name)
            return self._loaded[key]

        public = None if config.public is None else once(config.public)
        return Given(dataset=[once(name) for name in config.data_names], public=public)

    def tuning_rounds(self, entry: Entry) -> int:
        """Rounds of a run by which a value of the grid is chosen."""
        return max(1, round(self.asked.tuning.fraction * entry.config.rounds))

    def check(self) -> None:
        """Check what the plan alone tells; :func:`.preflight.look` sets up its runs.

        Raises:
            ConfigError: an entry cannot be carried out; a note names it.
        """
        for entry in self.entries:
            points, names = entry.points(), [entry.folder_name(point) for point in entry.points()]
            with _naming(entry.name):
                for name in names:
                    if names.count(name) > 1 or len(name) > LONGEST_NAME:
                        raise ConfigError(f"the values of the grid make no folder names of their own: {name}")
                if len(points) > 1 and entry.config.validation == 0:
                    raise ConfigError("validation = 0: a grid needs validation shares to choose by")


@contextmanager
def _naming(entry: str) -> Iterator[None]:
    """Say which entry an error belongs to."""
    try:
        yield
    except InterfuseError as error:
        error.add_note(f"in the entry {entry!r}")
        raise


def resolve(recipe: Recipe) -> Plan:
    """The plan of a recipe.

    Settings and axes of the grid that all entries share are skipped where a method lacks them.

    Raises:
        InterfuseError: a value is impossible, or no method has a shared setting.
    """
    known = {entry.name: _settings_of(entry) for entry in recipe.entries}
    everything = set().union(*known.values(), *map(_settings_of, recipe.left_out))
    of_clients = [key for own in recipe.run.get("client", {}).values() for key in own]
    axes = [key for axis in recipe.grid for key in keys_of(axis)]
    for key in (*recipe.run.get("settings", {}), *of_clients, *axes):
        if key not in everything:
            raise ConfigError(f"no method of {recipe.name} has a setting {key!r}: {nearest(key, everything)}")
    entries = []
    for entry in recipe.entries:
        with _naming(entry.name):
            entries.append(_entry(recipe, entry, known[entry.name]))
    asked, names = recipe.asked, [entry.name for entry in entries]
    for key, name in (("anchor", asked.anchor), ("baseline", asked.baseline)):
        if name is not None and name not in names:
            raise ConfigError(f"{recipe.name}: {key} = {name!r} is no entry: {nearest(name, names)}")
    if asked.anchor is None and "ifl" in names:
        asked = asked.model_copy(update={"anchor": "ifl"})
    title = asked.title or f"{', '.join(names)} on {', '.join(dict.fromkeys(_data(e) for e in entries))}"
    return Plan(
        recipe.name, asked.model_copy(update={"title": title, **{size: {} for size in QUICKER}}), tuple(entries)
    )


def _data(entry: Entry) -> str:
    return " and ".join(name.rpartition("/")[2] for name in entry.config.data_names)


def _settings_of(entry: EntryTable) -> set[str]:
    with _naming(entry.name):
        return {CODECS, *(f.name for f in fields(find(entry.method)))}


def _entry(recipe: Recipe, entry: EntryTable, known: Collection[str]) -> Entry:
    source = f"{recipe.name}, entry {entry.name!r}"
    for axis in entry.grid:
        for key in keys_of(axis):
            if key not in known:
                raise ConfigError(f"{source}, grid: {entry.method} has no setting {key!r}: {nearest(key, known)}")
    shared = dict(recipe.run)
    for table, filtered in (("settings", _only), ("client", _only_of_clients)):
        if table in shared:
            shared[table] = filtered(shared[table], known)
    values = merged(shared, entry.run) | {"method": entry.method}
    models = values.get("models", DEFAULT_MODELS)
    if isinstance(models, str):
        if models not in SIZES:
            raise ConfigError(f"{source}: models = {models!r}: a list of names, {' or '.join(map(repr, SIZES))}")
        values["models"] = [_by_size(values | {"models": recipe.run.get("models", DEFAULT_MODELS)}, models, source)]
    grid = {axis: choices for axis, choices in _axes(recipe.grid, entry, known)} | entry.grid
    tried = {key: choices[0] for axis, choices in grid.items() for key in keys_of(axis) if key != CODECS}
    values["settings"] = layered(values.get("settings", {}), tried)
    values["unset"] = [key for key in values.get("unset", ()) if key not in values["settings"]]
    config = parse_config(values, source)
    whole = complete(config, config.make_method())
    update = {
        "settings": {key: value for key, value in whole.settings.items() if key not in tried},
        "sources": {}, "environment": {}, "beside": (), "execution": Execution(workers=1),
    }  # fmt: skip
    return Entry(entry.name, whole.model_copy(update=update), grid)


def _axes(shared: Grid, entry: EntryTable, known: Collection[str]) -> Iterator[tuple[str, list[Any]]]:
    """What is left of the shared grid: the settings that the method has and the entry does not decide itself."""
    decided = {*entry.run.get("settings", {}), *(key for axis in entry.grid for key in keys_of(axis))}
    for axis, choices in shared.items():
        kept = [key for key in keys_of(axis) if key in known and key not in decided]
        if kept:
            yield ",".join(kept), choices


def _only(settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in known}


def _only_of_clients(clients: Mapping[str, Mapping[str, Any]], known: Collection[str]) -> dict[str, Any]:
    return {client: _only(own, known) for client, own in clients.items()}


def _by_size(values: Mapping[str, Any], size: str, source: str) -> str:
    """The smallest or the largest model that a client of the federation has, by parameters; the first of equals."""
    shared = {key: value for key, value in values.items() if key not in ("settings", "client", "unset", CODECS)}
    config = parse_config(shared | {"method": "local", "device": "cpu", "beside": []}, source)
    setup = assemble(config)
    built = {name: setup.build(name, "measure").parameters() for name in dict.fromkeys(setup.architectures)}
    parameters = {name: sum(p.numel() for p in of_model) for name, of_model in built.items()}
    sizes: dict[str, int] = {}
    for client, architecture in enumerate(setup.architectures):
        name = config.models[client % len(config.models)]
        sizes[name] = max(sizes.get(name, 0), parameters[architecture])
    return (min if size == "smallest" else max)(sizes, key=lambda name: sizes[name])
