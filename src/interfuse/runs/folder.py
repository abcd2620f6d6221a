"""The run folder: what is written while a run goes on, and how it is read again after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from interfuse.data import DataFacts
from interfuse.errors import RunError
from interfuse.federation import Saved
from interfuse.runs.config import RunConfig, read_config
from interfuse.runs.drawn import DRAWN_FILE
from interfuse.runs.summary import Row, Summary, read
from interfuse.wire import Entry, FileRecord, Ledger, sync_folder, to_json

NETWORK_FILE = "network.json"
"""Lies in the folder of a run between parties."""


_FACTS: TypeAdapter[tuple[DataFacts, ...]] = TypeAdapter(tuple[DataFacts, ...])


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
        offsets: Length of ``metrics.jsonl`` and ``ledger.jsonl`` at the time.
        best: Round of the best mean validation accuracy so far, that accuracy, and the files of its state.
        settings: The configuration that results depend on.
        data: Digests of what is known of the data, by what they are of.
    """

    round: int
    saved: Saved
    offsets: Mapping[str, int]
    settings: Mapping[str, Any]
    data: Mapping[str, str]
    best: Best | None = None

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


@dataclass
class RunFolder:
    """The files of one run. Use :meth:`locked` around writing."""

    path: Path
    _files: dict[str, IO[str]] = field(default_factory=dict)

    @property
    def commits(self) -> Path:
        return self.path / "commits"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make sure that one process at a time writes this run.

        Raises:
            RunError: another process does.
        """
        lock = FileLock(self.path / ".lock")
        with _explained(self.path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunError(f"{self.path} is being written by another process") from None
        try:
            yield
        finally:
            with _explained(self.path), ExitStack() as closing:
                closing.callback(lock.release)
                for file in self._files.values():
                    closing.callback(file.close)
                self._files.clear()

    @property
    def between_parties(self) -> bool:
        """Whether the clients of the run are parties, each on a machine of its own."""
        return (self.path / NETWORK_FILE).exists()

    @property
    def going_on(self) -> str:
        """What goes on with the run."""
        if self.between_parties:
            return f"`interfuse coordinate` with its recipe and --out {self.path}"
        return f"`interfuse resume {self.path}`"

    def config(self) -> RunConfig:
        """The complete configuration.

        Raises:
            RunError: there is no run.
            ConfigError: its configuration is damaged or of another version of interfuse.
        """
        if not (self.path / "config.toml").exists():
            raise RunError(f"{self.path} holds no run: there is no config.toml in it")
        return read_config(self.path / "config.toml")

    def create(self, config: str, data: Sequence[DataFacts] = ()) -> None:
        """Make the folder with its configuration, and how each data set was read.

        Raises:
            RunError: there is a run already, or the folder cannot be written.
        """
        if (self.path / "config.toml").exists():
            raise RunError(f"{self.path} holds a run already: {self.going_on}, or choose another --out")
        with _explained(self.path):
            self.commits.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "data.json", json.dumps(data, indent=1))
            write_whole(self.path / "config.toml", config)

    def data(self) -> tuple[DataFacts, ...]:
        """How each data set was read; empty where the folder does not say it.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / "data.json"
        if not path.exists():
            return ()
        try:
            return _FACTS.validate_json(path.read_bytes())
        except ValidationError as error:
            raise RunError(f"{path} is damaged: {error.errors()[0]['msg']}") from None

    def open_at(self, offsets: Mapping[str, int]) -> Ledger:
        """Open the line files for appending, cut back to a commit, and rebuild the ledger's totals.

        Raises:
            RunError: a file is shorter than the commit says, or a line of it cannot be read.
        """
        for name in ("metrics", "ledger"):
            path, length = self.path / f"{name}.jsonl", offsets.get(name, 0)
            with _explained(path):
                path.touch()
                if path.stat().st_size < length:
                    raise RunError(f"{path} has {path.stat().st_size} bytes; the last commit needs {length}")
                os.truncate(path, length)
                self._files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `locked`)
        with open(self.path / "ledger.jsonl", encoding="utf-8") as lines:
            return Ledger.replay(lines)

    def append_entries(self, entries: Sequence[Entry]) -> None:
        """Write what moved."""
        with _explained(self.path):
            self._files["ledger"].writelines(to_json(entry) + "\n" for entry in entries)
            self._files["ledger"].flush()

    def append(self, row: Row, entries: Sequence[Entry]) -> None:
        """Write a round's line, and what it moved."""
        self.append_entries(entries)
        with _explained(self.path):
            self._files["metrics"].write(json.dumps(row.values()) + "\n")
            self._files["metrics"].flush()

    def offsets(self) -> dict[str, int]:
        """The lengths of the line files, once what they hold is on the disk."""
        for file in self._files.values():
            with _explained(self.path):
                file.flush()
                os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def write_commit(self, commit: Commit) -> None:
        """Make a commit valid: its manifest comes last, and then older ones go, all but the one before."""
        with _explained(self.commits):
            sync_folder(self.commits)
            write_whole(self._manifest(commit.round), json.dumps(asdict(commit), indent=1))
            sync_folder(self.commits)
            for old in self._manifests()[:-2]:
                old.unlink()
            kept = {record.name for manifest in self._manifests() for record in _records(_read_commit(manifest))}
            for file in self.commits.glob("*.safetensors"):
                if file.name not in kept:
                    file.unlink()

    def go_back_to(self, commit: Commit) -> None:
        """Remove what a later attempt left behind: manifests newer than the commit, all of them damaged."""
        with _explained(self.commits):
            manifests = self._manifests()
            whole = manifests[: manifests.index(self._manifest(commit.round)) + 1]
            for manifest in manifests:
                if manifest not in whole:
                    manifest.unlink()
            for temporary in self.commits.glob(".*.tmp"):
                temporary.unlink()

    def reopen(self, config: str) -> None:
        """Replace the configuration by that of a longer run, which is not finished."""
        with self.locked(), _explained(self.path):
            (self.path / "summary.json").unlink(missing_ok=True)
            (self.path / DRAWN_FILE).unlink(missing_ok=True)
            write_whole(self.path / "config.toml", config)

    def last_commit(self, rounds: int = 0) -> Commit | None:
        """The newest commit whose files are all there and unchanged; the one before where the newest is damaged.

        Args:
            rounds: How many the run has: the last round of a shorter one does not count, since a last round does more
                than others.

        Raises:
            RunError: there are commits, but none can be used.
        """
        problems = []
        for manifest in reversed(self._manifests()):
            try:
                commit = _read_commit(manifest)
            except ValidationError as error:
                first = error.errors()[0]
                problems.append(f"{manifest.name}: {': '.join((*map(str, first['loc']), first['msg']))}")
                continue
            except (OSError, ValueError) as error:
                problems.append(f"{manifest.name}: {error}")
                continue
            if commit.round == commit.settings.get("rounds") and commit.round < rounds:
                problems.append(f"{manifest.name}: of the last round of a shorter run")
                continue
            damage = []
            for record in dict.fromkeys(_records(commit)):
                try:
                    record.check(self.commits)
                except RunError as error:
                    damage.append(str(error))
            if not damage:
                return commit
            problems.append(f"{manifest.name}: {', '.join(damage)}")
        if problems:
            raise RunError(f"no commit of {self.path} can be used: " + "; ".join(problems))
        return None

    def _manifest(self, round: int) -> Path:
        return self.commits / f"commit-{round:06d}.json"

    def _manifests(self) -> list[Path]:
        return sorted(self.commits.glob("commit-*.json"), key=lambda path: (len(path.name), path.name))

    def metrics(self) -> list[Row]:
        """The lines of ``metrics.jsonl``; a last line that was cut off is left out.

        Raises:
            RunError: a line is damaged or of another version of interfuse.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [read(Row, line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.endswith("\n")]

    def summary(self) -> Summary | None:
        """``summary.json``, or None while the run is not finished.

        Raises:
            RunError: it is damaged or of another version of interfuse.
        """
        path = self.path / "summary.json"
        return read(Summary, path.read_text(encoding="utf-8"), str(path)) if path.exists() else None

    def write_summary(self, summary: Summary) -> Summary:
        """Write ``summary.json``; its presence says that the run is finished. Returns the summary."""
        with _explained(self.path):
            write_whole(self.path / "summary.json", json.dumps(summary.values(), indent=1))
        return summary


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the disk as ours, with the path and what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. Nothing that was committed is lost; "
            "once this is mended, the run goes on from its last commit"
        ) from error


def _records(commit: Commit) -> list[FileRecord]:
    return [*commit.saved.packs, *([] if commit.best is None else commit.best.saved.packs)]


_COMMIT = TypeAdapter(Commit)


def _read_commit(path: Path) -> Commit:
    return _COMMIT.validate_json(path.read_text(encoding="utf-8"))
