"""Tensors that take a while to make: made once on a machine, then read from interfuse's cache folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interfuse.data.fetch import Places
from interfuse.models.making import digest_of

_FOLDER = "backbones"
_DIGEST = "digest"


def kept(name: str, depends: object, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``make`` makes, which are a function of ``depends`` alone.

    A process that wants the same ones at the same time waits for the first. What is damaged is made anew.

    Args:
        depends: All that they depend on; equal values have equal representations.
    """
    key = hashlib.blake2b(repr(depends).encode(), digest_size=12).hexdigest()
    path = Places.from_environment().cache / _FOLDER / f"{name}-{key}.safetensors"
    if (found := _read(path)) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):  # released by the operating system when a process dies
            if (found := _read(path)) is not None:
                return found
            made = _made(name, make)
            _write(path, made)
            return made
    except OSError as error:
        warnings.warn(
            f"cannot write the cache {path.parent} ({error}); {name} is made anew in every process. Set "
            "INTERFUSE_CACHE to a folder that can be written.",
            RuntimeWarning,
            stacklevel=2,
        )
        return _made(name, make)


def _made(name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    Console(stderr=True).print(f"making {name}, once on this machine", highlight=False)
    return {key: tensor.detach().clone().contiguous() for key, tensor in make().items()}


def _read(path: Path) -> dict[str, Tensor] | None:
    """None where there are none, or not as they were written."""
    try:
        with safe_open(path, "pt") as file:
            found = {key: file.get_tensor(key).clone() for key in file.offset_keys()}
            said = (file.metadata() or {}).get(_DIGEST)
    except (OSError, SafetensorError):
        return None
    return found if said == digest_of(found) else None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file(dict(tensors), temporary, {_DIGEST: digest_of(tensors)})
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
