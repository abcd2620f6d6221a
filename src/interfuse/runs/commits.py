"""Commits: states of a run that can be gone back to, and what their manifests say of all other files of its folder.

A manifest has a digest of its own, that of the commit before, and those of packs, of ``metrics.jsonl`` and
``ledger.jsonl`` up to there, of ``config.toml`` and ``data.json``; the last one of a finished run also of what was
written at its end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from interfuse.errors import RunError
from interfuse.federation import Saved
from interfuse.opening import content, opened, to_add_to
from interfuse.wire import FileRecord
from interfuse.wire.sealed import seal_of, sealed

_AT_ONCE = 1 << 20
_CHANGED = {
    "values": "other values",
    "names": "other names of columns or classes",
    "division": "another division between the clients (a partition of one's own draws from the generator that it is "
    "given, and from no other)",
    "given": "models that are given other weights",
}


@dataclass(frozen=True)
class Best:
    """The round with the best mean validation accuracy so far."""

    round: int
    validation_accuracy: float
    saved: Saved


@dataclass(frozen=True)
class Commit:
    """A state of a run that can be gone back to.

    Attributes:
        files: ``metrics.jsonl`` and ``ledger.jsonl`` as they were at the time, which is how they begin later; and
            ``config.toml`` and ``data.json``. Of an earlier version the lengths of the first two alone.
        best: Round of the best mean validation accuracy so far, that accuracy, and the files of its state.
        settings: The configuration that results depend on.
        data: Digests of what is known of the data, by what they are of.
        before: Digest of the manifest of the commit before; empty where there was none.
        end: Of the last one of a finished run: its files as they were at the end, with ``summary.json``.
    """

    round: int
    saved: Saved
    files: tuple[FileRecord, ...]
    settings: Mapping[str, Any]
    data: Mapping[str, str]
    best: Best | None = None
    before: str = ""
    end: tuple[FileRecord, ...] = ()

    @property
    def packs(self) -> list[FileRecord]:
        """All packs that it needs, those of the best round included, each once."""
        best = () if self.best is None else self.best.saved.packs
        return list(dict.fromkeys((*self.saved.packs, *best)))

    @property
    def vouches(self) -> bool:
        """Whether it says more of line files and configuration than their length."""
        return any(record.sha256 for record in self.files)

    def record(self, name: str) -> FileRecord | None:
        """What it says of a file."""
        return next((record for record in self.files if record.name == name), None)

    def check_data(self, now: Mapping[str, str], run: str, names: str) -> None:
        """Check that data are those that the run had.

        Args:
            now: Digests by what they are of, all or some.
            run, names: What an error calls the run, and its data.

        Raises:
            RunError: they were changed since; says in what.
        """
        if changed := [_CHANGED[part] for part, digest in now.items() if self.data.get(part, digest) != digest]:
            raise RunError(f"the data of {run} were changed since the run began: {names} has {' and '.join(changed)}")


_COMMIT = TypeAdapter(Commit)


def manifest_name(round: int) -> str:
    """How the manifest of a commit is called."""
    return f"commit-{round:06d}.json"


def manifest_text(commit: Commit) -> str:
    """What is in it."""
    return sealed(asdict(commit))


def read_manifest(path: Path) -> tuple[Commit, str]:
    """A commit, and the digest of its manifest; that is empty in one of an earlier version.

    Raises:
        RunError: it is damaged, or of another round than its name says.
    """
    try:
        data = content(path, follow=False)
        seal = seal_of(data)
        values = from_json(data)
        if isinstance(values, dict) and "offsets" in values:
            offsets = values.pop("offsets")
            values["files"] = [{"name": f"{name}.jsonl", "bytes": n, "sha256": ""} for name, n in offsets.items()]
        commit = _COMMIT.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(", ".join((*map(str, first["loc"]), first["msg"]))) from None
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(error.strerror if isinstance(error, OSError) else str(error)) from None
    if seal is None and commit.vouches:
        raise RunError("its digest is missing")
    if manifest_name(commit.round) != path.name:
        raise RunError(f"it is of round {commit.round}")
    return commit, seal or ""


def record_of(path: Path) -> FileRecord:
    """A file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    with opened(path, follow=False) as file:
        return FileRecord(path.name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def beginning(path: Path, record: FileRecord) -> hashlib._Hash:
    """The digest of a file up to a length, once it was compared.

    Raises:
        RunError: the file is shorter, or what it begins with was changed.
    """
    digest, left = hashlib.sha256(), record.bytes
    try:
        with opened(path, follow=False) as file:
            while left and (piece := file.read(min(left, _AT_ONCE))):
                digest.update(piece)
                left -= len(piece)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    if left:
        raise RunError(f"{path} has {record.bytes - left} bytes; the last commit needs {record.bytes}")
    if record.sha256 not in ("", digest.hexdigest()):
        raise RunError(f"{path} was changed since it was written: its first {record.bytes} bytes have another SHA-256")
    return digest


class Lines:
    """A file of lines that is added to, and the digest of all that is in it, which costs what is added and no more."""

    def __init__(self, path: Path, record: FileRecord) -> None:
        """Cut a file back to what a commit says of it, and go on behind.

        Raises:
            RunError: it is shorter than that, or was changed.
            OSError: it cannot be opened.
        """
        self._name, self._bytes = path.name, record.bytes
        self._digest = beginning(path, record)
        self._file = to_add_to(path)
        self._file.truncate(record.bytes)

    def add(self, text: str) -> None:
        """Write so many lines; they can be seen at once."""
        data = text.encode()
        self._file.write(data)
        self._file.flush()
        self._digest.update(data)
        self._bytes += len(data)

    def record(self) -> FileRecord:
        """The file as it is, once it is on the disk."""
        os.fsync(self._file.fileno())
        return FileRecord(self._name, self._bytes, self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()
