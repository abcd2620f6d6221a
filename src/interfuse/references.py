"""Code of a user, named on a command line or in a recipe: ``package.module:name`` or ``path/file.py:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from interfuse.errors import ConfigError, nearest
from interfuse.opening import content, opened

IN_MEMORY = "in-memory:"
"""Begins the name of something that was given as an object and cannot be found again by name."""

HUB = "hf:"
"""Begins the name of a model of transformers: ``hf:FOLDER``, or of a hub, ``hf:NAME?revision=COMMIT``."""
COMMIT = 40
"""Hexadecimal digits of a commit, by which what a hub has is named: branches and tags move."""
_OF_A_MODEL = (".json", ".safetensors", ".gguf")
"""Endings of the files in a folder that make a model of transformers what it is."""


def is_reference(text: str) -> bool:
    """Whether ``text`` is meant as a reference to code rather than as a built-in name."""
    return ":" in text


def is_commit(text: str | None) -> TypeGuard[str]:
    """Whether it is a whole commit, in small letters."""
    return text is not None and len(text) == COMMIT and set(text) <= set("0123456789abcdef")


def whole_path(text: str, folder: Path) -> str:
    """``hf:FOLDER`` with the whole path, where the folder lies in this one; any other name as it is."""
    if not text.startswith(HUB):
        return text
    place, question, options = text.removeprefix(HUB).partition("?")
    try:
        found = (folder / Path(place).expanduser()).resolve()
        return f"{HUB}{found}{question}{options}" if found.is_dir() else text
    except (OSError, RuntimeError, ValueError):  # no home of that name, or no name of a file
        return text


def short_name(reference: str) -> str:
    """A method or data set in one word: ``Class`` of a reference, else the name of the file without its ending."""
    _, colon, name = reference.rpartition(":")
    return name.rpartition(".")[2] if colon else Path(reference).stem


def slug(*references: str) -> str:
    """Their short names as part of the name of a folder: lower case, without blanks."""
    return "-".join("-".join(short_name(reference).lower().split()) for reference in references)


def reference_of(thing: type | Callable[..., object]) -> str:
    """The reference that leads back to a class or function, in this process and in others.

    Where none does, as for a lambda, an object, or what a notebook defines, it begins with ``in-memory:``.
    """
    name: str = getattr(thing, "__qualname__", type(thing).__qualname__)
    module = sys.modules.get(getattr(thing, "__module__", "__main__"), sys.modules["__main__"])
    if module.__name__ != "__main__":
        file = Path(module.__file__ or "")
        place = str(file) if module.__name__ == _module_name(file) else module.__name__
        try:
            if load_reference(f"{place}:{name}") is thing:
                return f"{place}:{name}"
        except ConfigError:
            pass
    return f"{IN_MEMORY}{name}"


def source_of(text: str) -> str | None:
    """The file, or the module, in which the code is that a name names, or the folder in which a model of transformers
    is; None: it names nothing that lies in files."""
    if text.startswith(HUB):
        folder = Path(text.removeprefix(HUB).partition("?")[0])
        return str(folder.resolve()) if folder.is_dir() else None
    place, _, _ = text.rpartition(":")
    if text.startswith(IN_MEMORY):
        return None
    if text.endswith(".py"):
        return text
    return place if place.endswith(".py") or (place and source_digest(place)) else None


def source_digest(source: str) -> str:
    """A hash of what a ``.py`` file, or the file of a module, says, or of the model in a folder; empty where there is
    none."""
    if os.sep in source and Path(source).is_dir():  # no module's name has one
        return _digest_of_model(Path(source))
    path = Path(source) if source.endswith(".py") else _file_of_module(source)
    if path is None or not path.is_file():
        return ""
    return hashlib.blake2b(content(path), digest_size=16).hexdigest()


def _digest_of_model(folder: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in _OF_A_MODEL):
        with opened(path) as file:  # piece by piece: it may be larger than memory
            found.update(f"{path.name} {hashlib.file_digest(file, 'blake2b').hexdigest()}\n".encode())
    return found.hexdigest()


def _file_of_module(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name) if all(part.isidentifier() for part in name.split(".")) else None
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def load_reference(text: str) -> object:
    """The object that ``package.module:name`` or ``path/file.py:name`` names.

    The name may have dots (``module:Class.method``). A file is imported once in a process, as a module of its own;
    what it imports must be installed or on ``PYTHONPATH``, its neighbours included.

    Raises:
        ConfigError: the text has not this form, the module or file cannot be imported, or has not the name.
    """
    place, colon, name = text.rpartition(":")
    if not (colon and place and name):
        raise ConfigError(f"{text!r} is no reference to code: write 'package.module:name' or 'path/file.py:name'")
    found: object = load_file(Path(place)) if place.endswith(".py") else _from_package(place)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [known for known in dir(found) if not known.startswith("_")]
            raise ConfigError(f"{place!r} has no {part!r}: {nearest(part, public)}") from None
    return found


def _from_package(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} is neither the name of a module nor a path that ends in '.py'")
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"cannot import {name!r}: {error}; is it installed, or on PYTHONPATH?") from error


def load_file(path: Path) -> ModuleType:
    """The module in a file, imported once in a process.

    Raises:
        ConfigError: there is no such file, or what it imports is missing.
    """
    path = path.expanduser().resolve()
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and type hints of the file are resolved through this table while it is being imported.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (ImportError, SyntaxError)):
            raise ConfigError(f"cannot import {path}: {error}") from error
        raise
    return module


def modules_of_files() -> list[ModuleType]:
    """The modules that :func:`load_file` has imported in this process: another one does not find them by name."""
    known = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
    return [module for module in known if module.__name__ == _module_name(Path(str(module.__file__)))]


def _module_name(path: Path) -> str:
    """Named after the place: two files of the same name stay two modules, and one file read twice is one module."""
    return f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
