"""From the words of a command line to a configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from interfuse import recipes
from interfuse.clock import named
from interfuse.errors import ConfigError
from interfuse.method import layered
from interfuse.methods import built_in, find, meant
from interfuse.references import is_reference
from interfuse.runs import RunConfig, parse_config, read_config
from interfuse.runs.config import absolute_paths, table_of
from interfuse.runs.protocols import run_under
from interfuse.toml import read_toml
from interfuse.wire.codecs.rules import DEFAULT

OPTION_OF = {
    "alpha": "dirichlet",
    "balanced": "dirichlet",
    "classes_per_client": "pathological",
    "shards_per_client": "shards",
}
"""Which partition an option of the command line belongs to."""


def method_names() -> list[str]:
    """Methods that have a name of their own: built in, or brought by an installed package."""
    return sorted({*built_in(), *(entry.name for entry in entry_points(group="interfuse.methods"))})


def configure(
    what: str,
    options: Mapping[str, Any],
    *,
    partition: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunConfig:
    """The configuration that a method or recipe and the options beside it ask for.

    Args:
        what: A method's name, ``mine.py``, ``package.module:Class``, a recipe's name, or a path ending in ``.toml``.
        options: Values by key of the configuration, tables as mappings; None is not given.
        partition: ``name`` and the partition's own options; None is not given.
        assignments: ``key=value``, or ``client.N.key=value`` for one client.

    Raises:
        ConfigError: something is unknown, impossible, or does not belong together.
    """
    values = _begin_with(what)
    for key, value in absolute_paths(given(options), Path.cwd()).items():
        values[key] = (values.get(key) or {}) | given(value) if isinstance(value, Mapping) else value
    if asked := given(partition or {}):
        values["partition"] = changed_partition(partition_of(values), absolute_paths(asked, Path.cwd()))
    for text in assignments:
        assign(values, text)
    config = parse_config(values, "interfuse run")
    for key in config.settings:
        table = table_of(key)
        if table is not None and key not in {f.name for f in fields(find(config.method))}:
            raise ConfigError(
                f"--set {key}: this is no setting of {config.method}; it belongs into [{table}] of a recipe, "
                "or is an option of its own (interfuse run --help)"
            )
    return config


def _begin_with(what: str) -> dict[str, Any]:
    """The values that the first argument brings. A built-in method goes before a recipe of the same name."""
    if what in built_in():
        return {"method": what}
    path = Path(what) if what.endswith(".toml") else recipes.find(what)
    if path is not None:
        said = read_toml(path)
        # without what a protocol sets: that depends on the options too
        values = {key: value for key, value in read_config(path).model_dump(exclude_unset=True).items() if key in said}
        return absolute_paths(values, path.parent)
    if not (is_reference(what) or what.endswith(".py") or what in method_names()):
        raise ConfigError(f"no method or recipe {what!r}: {meant(what, {*method_names(), *recipes.names()})}")
    return absolute_paths({"method": what}, Path.cwd())


def partition_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The partition of a run with these values: its own, that of its protocol, or the default."""
    name = values.get("protocol")
    usual = {"name": "iid"} if name is None else run_under(name, {})["partition"]
    found: Mapping[str, Any] = values.get("partition", usual)
    return found


def changed_partition(before: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A partition with what was asked changed in it; its options go when another one is asked for."""
    name = asked.get("name", before["name"])
    for option in asked.keys() & OPTION_OF.keys():
        if OPTION_OF[option] != name:
            flag = f"--{option.removesuffix('_per_client')}"
            raise ConfigError(f"{flag} belongs to --partition {OPTION_OF[option]}, but the partition is {name!r}")
    return (dict(before) if name == before["name"] else {}) | {"name": name} | dict(asked)


def assign(values: dict[str, Any], text: str) -> None:
    """Put ``key=value`` or ``client.N.key=value`` into the values of a run."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"--set {text}: write key=value, such as --set local_steps=5")
    if not key.startswith("client."):
        values["settings"] = layered(values.get("settings", {}), {key: toml_or_text(value)})
        return
    _, number, setting = [*key.split(".", 2), ""][:3]
    if not (number.isdecimal() and setting):
        raise ConfigError(f"--set {text}: write client.NUMBER.key=value, such as --set client.2.base_lr=0.001")
    everybody = values.get("client", {})
    own = layered(everybody.get(int(number), {}), {setting: toml_or_text(value)})
    values["client"] = everybody | {int(number): own}


def codecs(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Codecs by what they are for: ``int8+zstd`` is the default, ``FIELD=int8+zstd`` for a field or a kind of message.

    Raises:
        ConfigError: two are for the same.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, codec = text.rpartition("=")
        key = name if equals else DEFAULT
        if key in found:
            raise ConfigError(f"--codec {text}: there is one for {key} already")
        found[key] = codec
    return found or None


def reading(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Options of reading by name, as ``label=diagnosis``; None where there are none.

    Raises:
        ConfigError: a text has another form, or an option is there twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--read {text}: write key=value, such as --read label=diagnosis")
        if key in found:
            raise ConfigError(f"--read {text}: {key} is there already; several names have commas between them")
        found[key] = value
    return found or None


def toml_or_text(text: str) -> Any:
    """A TOML value such as ``0.1``, ``true`` or ``{start = 0.1, rounds = 200}``; the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def listed(text: str | None) -> list[str] | None:
    """The items of a list with commas; None stays None."""
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


def none_or_listed(text: str | None) -> list[str] | None:
    """The same, with the word ``none`` for an empty list."""
    return [] if text == "none" else listed(text)


def one_or_listed(text: str | None) -> str | list[str] | None:
    """The items of a list with commas, or the text itself where it has none."""
    return listed(text) if text and "," in text else text


def numbers(text: str) -> list[int]:
    """Whole numbers with commas.

    Raises:
        ConfigError: an item is no whole number, or one is there twice.
    """
    try:
        found = [int(item) for item in listed(text) or ()]
    except ValueError:
        raise ConfigError(f"--seeds {text}: write whole numbers with commas, such as --seeds 0,1,2") from None
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"--seeds {text}: name at least one seed, and each once")
    return found


def devices_table(name: str | None) -> dict[str, Any] | None:
    """The table of the devices of that name; None stays None."""
    return None if name is None else asdict(named(name))


def table_of_options(**values: Any) -> dict[str, Any] | None:
    """What was said of a table; None: nothing."""
    return given(values) or None


def test_rows(text: str | None) -> float | str | None:
    """A fraction, or a word."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was said: all but None."""
    return {key: value for key, value in values.items() if value is not None}
