"""The run folder: what is written while a run goes on, and how it is read again after a kill."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from interfuse.data import DataFacts
from interfuse.errors import RunError
from interfuse.opening import check_place, content, json_in, opened
from interfuse.runs.commits import Commit, Lines, beginning, manifest_name, manifest_text, read_manifest, record_of
from interfuse.runs.config import NETWORK_FILE, RunConfig, differences, parse_config, read_config
from interfuse.runs.drawn import DRAWN_FILE, Drawn, read_drawn
from interfuse.runs.summary import Row, Summary, read
from interfuse.wire import Entry, FileRecord, Ledger, sync_folder, to_json
from interfuse.wire.sealed import seal_of
from interfuse.writing import write_whole

MOST = 1 << 34
"""Bytes of a line file that is read whole, at most."""


_FACTS: TypeAdapter[tuple[DataFacts, ...]] = TypeAdapter(tuple[DataFacts, ...])


SUMMARY, METRICS, LEDGER, CONFIG, DATA = "summary.json", "metrics.jsonl", "ledger.jsonl", "config.toml", "data.json"


@dataclass(frozen=True)
class Found:
    """The commit that is gone back to, if there is any, and why newer ones are not: nothing where it is the newest."""

    commit: Commit | None
    problems: tuple[str, ...] = ()

    @property
    def notices(self) -> tuple[str, ...]:
        """That an older state is used than the newest."""
        if self.commit is None or not self.problems:
            return ()
        return (
            f"the state after round {self.commit.round} is used, for newer ones cannot be: {'; '.join(self.problems)}",
        )


@dataclass
class RunFolder:
    """The files of one run. Use :meth:`locked` around writing."""

    path: Path
    _lines: dict[str, Lines] = field(default_factory=dict)
    _last: tuple[Commit, str] | None = None
    """The commit after which lines are added, and the digest of its manifest."""
    _beside: tuple[FileRecord, ...] = ()
    """Files that are read when lines begin to be added, and written no more."""

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
            check_place(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunError(f"{self.path} is being written by another process") from None
        try:
            yield
        finally:
            with _explained(self.path), ExitStack() as closing:
                closing.callback(lock.release)
                for file in self._lines.values():
                    closing.callback(file.close)
                self._lines.clear()

    @property
    def between_parties(self) -> bool:
        """Whether the clients of the run are parties, each on a machine of its own."""
        return (self.path / NETWORK_FILE).exists()

    @property
    def simulated(self) -> bool:
        """Whether these parties are clients of a simulation, with shares of one data set."""
        try:
            found = json_in(self.path / NETWORK_FILE)
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("simulated") is True

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
        if not self._is(CONFIG):
            raise RunError(f"{self.path} holds no run: there is no config.toml in it")
        return read_config(self.path / CONFIG, follow=False)

    def create(self, config: str, data: Sequence[DataFacts] = ()) -> None:
        """Make the folder with its configuration, and how each data set was read.

        Raises:
            RunError: there is a run already, or the folder cannot be written.
        """
        if self._is(CONFIG):
            anew = "" if self._is(METRICS) else f"remove it, since nothing was done in it (rm -r {self.path}), "
            raise RunError(f"{self.path} holds a run already: {self.going_on}, {anew}or choose another --out")
        with _explained(self.path):
            self.commits.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / DATA, json.dumps(data, indent=1))
            write_whole(self.path / CONFIG, config)

    def data(self) -> tuple[DataFacts, ...]:
        """How each data set was read; empty where the folder does not say it.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / DATA
        if (found := self._read(DATA)) is None:
            return ()
        try:
            return _FACTS.validate_json(found)
        except ValidationError as error:
            raise RunError(f"{path} is damaged: {error.errors()[0]['msg']}") from None

    def restore_data(self, data: Sequence[DataFacts]) -> str:
        """Write ``data.json`` anew where it is not as it was; returns what there is to say of it.

        Raises:
            RunError: it cannot be written.
        """
        try:
            if self._read(DATA) is not None:
                return ""
            reason = "it is not there"
        except RunError as error:
            reason = str(error)
        with _explained(self.path):
            write_whole(self.path / DATA, json.dumps(data, indent=1))
        return f"{DATA} is written anew: {reason}"

    def open_at(self, commit: Commit | None) -> Ledger:
        """Open the line files for appending, cut back to a commit, and rebuild the ledger's totals.

        Raises:
            RunError: a file is shorter than the commit says, or was changed, or a line of it cannot be read.
        """
        for file in self._lines.values():  # of an attempt that broke off
            file.close()
        for name in (METRICS, LEDGER):
            record = (None if commit is None else commit.record(name)) or FileRecord(name, 0, "")
            with _explained(self.path / name):
                self._lines[name] = Lines(self.path / name, record)
        with _explained(self.path):
            self._beside = tuple(record_of(self.path / name) for name in (CONFIG, DATA) if self._is(name))
        written = opened(self.path / LEDGER, follow=False)
        with io.TextIOWrapper(written, encoding="utf-8", errors="replace") as lines:
            return Ledger.replay(lines)

    def append_entries(self, entries: Sequence[Entry]) -> None:
        """Write what moved."""
        with _explained(self.path):
            self._lines[LEDGER].add("".join(to_json(entry) + "\n" for entry in entries))

    def append(self, row: Row, entries: Sequence[Entry]) -> None:
        """Write a round's line, and what it moved."""
        self.append_entries(entries)
        with _explained(self.path):
            self._lines[METRICS].add(json.dumps(row.values()) + "\n")

    def files(self) -> tuple[FileRecord, ...]:
        """What a commit says of the files beside it, once what they hold is on the disk."""
        with _explained(self.path):
            return (*(lines.record() for lines in self._lines.values()), *self._beside)

    def write_commit(self, commit: Commit) -> None:
        """Make a commit valid: its manifest comes last, and then older ones go, all but the one before."""
        with _explained(self.commits):
            sync_folder(self.commits)
            self._write_manifest(replace(commit, before="" if self._last is None else self._last[1]))
            for old in self._manifests()[:-2]:
                old.unlink()
            kept = {record.name for commit in self._known() for record in commit.packs}
            for file in self.commits.glob("*.safetensors"):
                if file.name not in kept:
                    file.unlink()

    def _write_manifest(self, commit: Commit) -> None:
        path, text = self.commits / manifest_name(commit.round), manifest_text(commit)
        write_whole(path, text)
        sync_folder(self.commits)
        self._last = commit, seal_of(text.encode()) or ""

    def go_back_to(self, commit: Commit) -> None:
        """Remove what a later attempt left behind: manifests newer than the commit, all of them damaged."""
        with _explained(self.commits):
            manifests, own = self._manifests(), self.commits / manifest_name(commit.round)
            whole = manifests[: manifests.index(own) + 1]
            for manifest in manifests:
                if manifest not in whole:
                    manifest.unlink()
            for temporary in self.commits.glob(".*.tmp"):
                temporary.unlink()
            if commit.end:  # lines behind it are written again
                self._write_manifest(replace(commit, end=()))
            else:
                self._last = commit, read_manifest(own)[1]

    def reopen(self, config: str) -> None:
        """Replace the configuration by that of a longer run, which is not finished."""
        with self.locked(), _explained(self.path):
            (self.path / SUMMARY).unlink(missing_ok=True)
            (self.path / DRAWN_FILE).unlink(missing_ok=True)
            write_whole(self.path / CONFIG, config)

    def last_commit(self, rounds: int = 0) -> Commit | None:
        """The commit of :meth:`find_commit`, for whom it does not matter that it is not the newest."""
        return self.find_commit(rounds).commit

    def find_commit(self, rounds: int = 0, *, lines: bool = True) -> Found:
        """The newest commit whose files are all there and unchanged; the one before where the newest is damaged.

        Args:
            rounds: How many the run has: the last round of a shorter one does not count, since a last round does more
                than others.
            lines: Whether it is used to go on with the line files, so that these must be as they were too.

        Raises:
            RunError: there are commits, but none can be used.
        """
        problems: list[str] = []
        shorter: list[str] = []
        before = ""
        for manifest in reversed(self._manifests()):
            try:
                commit, digest = read_manifest(manifest)
            except RunError as error:
                problems.append(f"{manifest.name}: {error}")
                continue
            if before not in ("", digest):
                problems.append(f"{manifest.name}: it is not the one that the next commit was made after")
                continue
            before = commit.before
            if commit.round == commit.settings.get("rounds") and commit.round < rounds:
                shorter = [f"{manifest.name}: of the last round of a shorter run"]
                continue
            try:
                self._check(commit, lines)
            except RunError as error:
                problems.append(f"{manifest.name}: {error}")
                continue
            return Found(commit, tuple(problems))
        if problems or shorter:
            raise RunError(
                f"no commit of {self.path} can be used: {'; '.join(problems + shorter)}. Put the files back from a "
                "copy, or run its config.toml anew"
            )
        return Found(None)

    def _check(self, commit: Commit, lines: bool) -> None:
        """Check that packs and line files are as a commit says.

        Raises:
            RunError: one is not; names it.
        """
        for record in commit.packs:
            record.check(self.commits)
        for record in commit.files:
            if lines and record.name in (METRICS, LEDGER):
                beginning(self.path / record.name, record)

    def _manifests(self) -> list[Path]:
        return sorted(self.commits.glob("commit-*.json"), key=lambda path: (len(path.name), path.name))

    def _known(self) -> Iterator[Commit]:
        """The commits whose manifests can be read, the newest first."""
        for manifest in reversed(self._manifests()):
            with suppress(RunError):
                yield read_manifest(manifest)[0]

    def check_config(self, config: RunConfig, commit: Commit) -> tuple[str, ...]:
        """Check that a configuration is still that of a commit, but for more rounds; returns what there is to say of
        what it may differ in.

        Raises:
            RunError: results depend on what it differs in; names it.
        """
        before = parse_config(commit.settings, f"the last commit of {self.path}")  # an older one may lack what is new
        if changed := differences(before.identity() | {"rounds": max(before.rounds, config.rounds)}, config.identity()):
            raise RunError(f"{self.path / CONFIG} was changed since the run began: " + "; ".join(changed))
        record, _ = self._expected(CONFIG)
        if record is None or record.sha256 == record_of(self.path / CONFIG).sha256:
            return ()
        more = f", but that {before.rounds} rounds became {config.rounds}" if config.rounds > before.rounds else ""
        return (f"{CONFIG} was edited since the last commit, in nothing that results depend on{more}",)

    def notices(self) -> tuple[str, ...]:
        """What nothing vouches for, or is not there any more, of what results are read off.

        Raises:
            RunError: the configuration is not that of the last commit.
        """
        problems: list[str] = []
        newest: Commit | None = None
        for manifest in reversed(self._manifests()):
            try:
                newest = read_manifest(manifest)[0]
                break
            except RunError as error:
                problems.append(f"commits/{manifest.name} is damaged: {error}")
        finished = self._is(SUMMARY)
        if newest is None:
            if finished or problems or self._is(METRICS):
                problems.append("no commit says whether the other files are as they were written")
            return tuple(problems)
        if not newest.vouches:
            problems.append(
                "an earlier version wrote this run: whether its configuration, metrics and summary are as they were "
                "written cannot be told; what goes on from here is protected"
            )
        elif finished and not newest.end:
            problems.append(f"{SUMMARY}: no commit says whether it is as it was written")
        elif newest.end and not finished:
            problems.append(f"{SUMMARY} is not there, though the run came to its end: {self.going_on} makes it again")
        gone = [r.name for r in (newest.end if finished else newest.files) if not self._is(r.name)]
        problems += [f"{name} is not there any more" for name in gone]
        return (*problems, *self.check_config(self.config(), newest))

    def metrics(self) -> list[Row]:
        """The lines of ``metrics.jsonl``; a last line that was cut off is left out.

        Raises:
            RunError: a line is damaged, was changed since it was written, or is of another version of interfuse.
        """
        lines = (self._read(METRICS) or b"").splitlines(keepends=True)
        path = self.path / METRICS
        return [read(Row, line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def ledger(self) -> Ledger:
        """The totals of what ``ledger.jsonl`` says.

        Raises:
            RunError: it is damaged, or was changed since it was written.
        """
        text = (self._read(LEDGER) or b"").decode("utf-8", "replace")
        return Ledger.replay(text.splitlines(keepends=True))

    def summary(self) -> Summary | None:
        """``summary.json``, or None while the run is not finished. It names this folder, wherever it was when the run
        ended.

        Raises:
            RunError: it is damaged, was changed since it was written, or is of another version of interfuse.
        """
        found = self._read(SUMMARY)
        if found is None:
            return None
        return read(Summary, found, str(self.path / SUMMARY)).model_copy(update={"run": str(self.path)})

    def drawn(self) -> Sequence[Drawn]:
        """What clients drew at the end, by client; nothing where there is none.

        Raises:
            RunError: it is damaged.
        """
        found = self._read(DRAWN_FILE)
        return () if found is None else read_drawn(found, self.path / DRAWN_FILE)

    def write_summary(self, summary: Summary) -> Summary:
        """Write ``summary.json``; its presence says that the run is finished. Returns the summary."""
        text = json.dumps(summary.values(), indent=1)
        with _explained(self.path):
            if self._last is not None:  # before the summary: without that it counts for nothing
                drawn = (record_of(self.path / DRAWN_FILE),) if self._is(DRAWN_FILE) else ()
                data = text.encode()
                end = FileRecord(SUMMARY, len(data), hashlib.sha256(data).hexdigest())
                self._write_manifest(replace(self._last[0], end=(*self.files(), end, *drawn)))
            write_whole(self.path / SUMMARY, text)
        return summary

    def _is(self, name: str) -> bool:
        """Whether there is something of this name."""
        return os.path.lexists(self.path / name)

    def _expected(self, name: str) -> tuple[FileRecord | None, bool]:
        """What the newest commit that can be read says of a file, and whether lines may have come behind that: also in
        a finished run, where the last manifest is damaged."""
        newest = next(self._known(), None)
        if newest is None:
            return None, False
        ended = bool(newest.end) and self._is(SUMMARY)
        records = newest.end if ended else newest.files
        found = next((record for record in records if record.name == name and record.sha256), None)
        return found, name in (METRICS, LEDGER) and not ended

    def _read(self, name: str) -> bytes | None:
        """A file that is as the newest commit says: the whole of it, or the beginning of one that lines are added to;
        None where there is none.

        Raises:
            RunError: it is not, or cannot be read.
        """
        path, (record, grows) = self.path / name, self._expected(name)
        try:
            found = content(path, MOST, follow=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        if record is not None:
            size = record.bytes if grows else max(record.bytes, len(found))
            if len(found) < size or hashlib.sha256(memoryview(found)[:size]).hexdigest() != record.sha256:
                raise RunError(
                    f"{path} was changed since it was written: its SHA-256 is not the one that the last commit has"
                )
        return found


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
