"""Built-in methods, a file each, found by looking into this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from interfuse.errors import ConfigError, nearest
from interfuse.method import Method
from interfuse.references import IN_MEMORY, is_reference, load_file, load_reference, reference_of


@cache
def built_in() -> dict[str, type[Method]]:
    """The methods of this folder by the names that their files give them."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {name_of(kind): kind for module in modules for kind in _methods_in(module)}


def name_of(kind: type[Method]) -> str:
    """A method's name on the command line: that of its file, with hyphens; where it is not built in, a reference."""
    if kind.__module__.startswith(__name__ + "."):
        return kind.__module__.rpartition(".")[2].replace("_", "-")
    return reference_of(kind)


def in_memory(kind: type[Method] | Method) -> str:
    """The name of a method that cannot be found again by one."""
    return f"{IN_MEMORY}{(kind if isinstance(kind, type) else type(kind)).__qualname__}"


_IN_HTFLLIB = {"fd": "feddistill", "fedl2g-logit": "fedl2g", "fedl2g-feat": "fedl2g"}
"""Names of methods there that are none here, in small letters."""


def meant(name: str, valid: Iterable[str]) -> str:
    """The end of an error text about an unknown method: what it is called here, or :func:`.nearest`."""
    here = _IN_HTFLLIB.get(name.casefold())
    return nearest(name, valid) if here is None else f"HtFLlib's {name} is {here!r} here"


def find(reference: str) -> type[Method]:
    """A method by built-in name, by the name of an entry point, by ``file.py``, or by ``package.module:Class``.

    Raises:
        ConfigError: nothing of that name is a method.
    """
    if reference.startswith(IN_MEMORY):
        raise ConfigError(f"the method of this run was given as an object ({reference}); give it again: method=...")
    if reference in built_in():
        return built_in()[reference]
    if reference.endswith(".py"):
        found = _methods_in(load_file(Path(reference)))
        if len(found) != 1:
            names = ", ".join(kind.__name__ for kind in found) or "none"
            raise ConfigError(f"{reference} should define one method, but has {names}; name one: {reference}:Class")
        return found[0]
    entries = {entry.name: entry for entry in entry_points(group="interfuse.methods")}
    if reference in entries:
        kind = entries[reference].load()
    elif is_reference(reference):
        kind = load_reference(reference)
    else:
        raise ConfigError(f"no method {reference!r}: {meant(reference, {*built_in(), *entries})}")
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(f"{reference} is no subclass of interfuse.Method")
    return kind


def _methods_in(module: ModuleType) -> list[type[Method]]:
    """The methods that a module defines itself."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
