"""Protocols by name: all that other people's experiments set, so that a run can be beside theirs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Any

from interfuse.errors import ConfigError, nearest
from interfuse.method import Method, layered
from interfuse.methods import find, name_of

TABLES = ("partition", "sampling")
"""Keys of a run whose values are tables: what is set of them beside a protocol leaves the rest of them."""
_OTHERWISE = "; otherwise than it: "


@cache
def protocols() -> Mapping[str, Mapping[str, Any]]:
    """Everything that ``protocols.toml`` says, by name."""
    return tomllib.loads(resources.files(__package__).joinpath("protocols.toml").read_text("utf-8"))


def settings_under(name: str, kind: type[Method]) -> dict[str, Any]:
    """What a protocol sets of a method's own settings.

    Raises:
        ConfigError: there is no such protocol.
    """
    table, known = _table(name), {f.name for f in fields(kind)}
    own = table.get("method", {}).get(name_of(kind), {})
    return {key: value for key, value in (table["settings"] | own).items() if key in known}


def under_protocol(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values of a run with what their protocol, if they name one, sets where they say nothing themselves.

    Raises:
        ConfigError: there is no such protocol.
    """
    name = values.get("protocol")
    if not isinstance(name, str):
        return dict(values)
    try:
        base = run_under(name, values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    found = {**base, **values}
    for key in TABLES:
        if isinstance(values.get(key), Mapping):
            found[key] = _laid_over(base[key], values[key])
    said = values.get("settings", {})
    if isinstance(said, Mapping):
        set_here = settings_under(name, find(str(values.get("method", "ifl"))))
        unset = values.get("unset", ())
        found["settings"] = layered({key: value for key, value in set_here.items() if key not in unset}, said)
    return found


def run_under(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a protocol sets of a run with these values of its own.

    Raises:
        ConfigError: there is no such protocol.
    """
    table = _table(name)
    partition = values.get("partition") or table["run"]["partition"]
    where = table.get("where", {}).get(partition.get("name") if isinstance(partition, Mapping) else None, {})
    return {**table["run"], **where}


def said_of(values: Mapping[str, Any]) -> str:
    """What its protocol set in a run, and what the run has otherwise, in a sentence; empty where it has none.

    Args:
        values: Of a complete configuration.
    """
    name = values.get("protocol")
    if not isinstance(name, str):
        return ""
    table, base = _table(name), run_under(name, values)
    if base["partition"]["name"] != values["partition"].get("name"):
        base["partition"] = {"name": base["partition"]["name"]}
    settings = {**dict.fromkeys(values["unset"]), **values["settings"]}
    own = {k: v for k, v in (table["settings"] | table["method"].get(values["method"], {})).items() if k in settings}
    wanted, has = {**_flat(base), **own}, {**_flat({key: values[key] for key in base}), **settings}
    kept = [f"{key} = {_shown(value)}" for key, value in wanted.items() if has.get(key) == value]
    other = [f"{key} = {_shown(has.get(key))} ({_shown(v)})" for key, v in wanted.items() if has.get(key) != v]
    text = f"protocol {name} sets {', '.join(kept)}"
    return f"{text}{_OTHERWISE}{', '.join(other)}" if other else text


def departures(said: str) -> tuple[str, list[str]]:
    """The name of a protocol, and what a run has otherwise, from what :func:`said_of` says of the run."""
    head, _, other = said.partition(_OTHERWISE)
    return head.removeprefix("protocol ").split(" ")[0], other.split(", ") if other else []


def _table(name: str) -> Mapping[str, Any]:
    known = protocols()
    if name not in known:
        raise ConfigError(f"unknown protocol {name!r}: {nearest(name, known)}")
    return known[name]


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A table with what is set of it; another partition than the protocol's has none of its options."""
    other = "name" in own and own["name"] != base.get("name")
    return dict(own) if other else {**base, **own}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with the options of a table side by side, as ``partition.alpha``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            {f"{key}.{option}": item for option, item in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return found


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
