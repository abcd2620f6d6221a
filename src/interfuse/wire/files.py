"""Commit files: named tensors in a safetensors file that is either whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from interfuse.errors import MessageError, RunError
from interfuse.wire.body import Limits, chunks, layout, read, signature
from interfuse.wire.pieces import Pieces

# A run trusts its own files: the bounds only keep shapes inside what 64-bit strides can express.
_OWN = Limits(max_bytes=2**62, max_tensors=2**31, max_header_bytes=2**31, max_name=2**16)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as a commit remembers it: its name in the folder, its length in bytes, its SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> FileRecord:
    """Write a safetensors file under a temporary name, sync it, and rename it to ``path``.

    An older file of that name stays until the new one is complete. The name is durable after `sync_folder` on the
    folder, which the caller does once for all files of a commit. Raises RunError, with the path and the cause, when
    the file cannot be written; nothing of it is left then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        plan = layout(path.name, signature(tensors), tuple((metadata or {}).items()))
        try:
            sha256 = _write(temporary, chunks(path.name, tensors, plan), plan.size)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, MessageError) as error:
        raise RunError(f"cannot write {path}: {error}") from error
    return FileRecord(path.name, plan.size, sha256)


def load_tensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, NaN and infinities included; its metadata is skipped.

    Raises RunError, naming the file, when it cannot be read, is not a whole safetensors file, or does not have the
    given SHA-256 (hexadecimal).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error}") from error
    found = hashlib.sha256(data).hexdigest() if sha256 is not None else None
    if found != sha256:
        raise RunError(f"{path} is damaged: its SHA-256 is {found}, not {sha256}; go back to an older commit")
    try:
        return read(path.name, Pieces([data]), None, _OWN, finite=False, metadata=True)
    except MessageError as error:
        raise RunError(f"{path} is damaged: {error}; go back to an older commit") from error


def sync_folder(path: str | Path) -> None:
    """Make the names in a folder durable. Raises RunError when the folder cannot be synced."""
    try:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunError(f"cannot sync the folder {path}: {error}") from error


def _write(path: Path, pieces: Iterable[bytes | memoryview], size: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        written = os.fstat(file.fileno()).st_size
    if written != size:
        raise OSError(f"{written} of {size} bytes were written")
    return digest.hexdigest()
