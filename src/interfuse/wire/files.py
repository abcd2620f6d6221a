"""Files of commits: each is whole or not there, and is known again by its length and its SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from interfuse.errors import MessageError, RunError
from interfuse.opening import opened
from interfuse.writing import replacing


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as a commit remembers it: its name in the folder, its length in bytes, its SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str

    def check(self, folder: Path) -> None:
        """Check that the file is in a folder as it was written.

        Raises:
            RunError: it is missing or damaged; names it.
        """
        path = folder / self.name
        try:
            with opened(path, follow=False) as file:
                found = os.fstat(file.fileno()).st_size
                if found != self.bytes:
                    raise RunError(f"{path} is damaged: it has {found} bytes, not {self.bytes}")
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RunError(f"cannot read {path}: {error}") from error
        if sha256 != self.sha256:
            raise RunError(f"{path} is damaged: its SHA-256 is {sha256}, not {self.sha256}")


def write_file(path: Path, pieces: Iterable[bytes | memoryview], size: int) -> FileRecord:
    """Write a file of so many bytes under a temporary name, sync it, and rename it to ``path``.

    An older file of that name stays until the new one is complete. The name is durable after `sync_folder` on the
    folder, which the caller does once for all files of a commit. Raises RunError, with the path and the cause, when
    the file cannot be written; nothing of it is left then.
    """
    digest, written = hashlib.sha256(), 0
    try:
        with replacing(path) as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            written = file.tell()
            if written != size:
                raise OSError(f"{written} of {size} bytes were written")
    except (OSError, MessageError) as error:
        raise RunError(f"cannot write {path}: {error}") from error
    return FileRecord(path.name, size, digest.hexdigest())


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
