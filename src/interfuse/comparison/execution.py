"""Carry out a plan: for each entry the grid first, then all seeds with what was best on the validation shares."""

from __future__ import annotations

import json
import math
import resource
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from interfuse.comparison.flops import flops_of_a_round, import_counter
from interfuse.comparison.plan import Entry, Plan, Point
from interfuse.comparison.pool import Pool
from interfuse.comparison.progress import Amount, Follower, Pace
from interfuse.comparison.recipe import TABLES_ALONE
from interfuse.engines.processes import available_cores, can_fork
from interfuse.errors import ClientError, ConfigError, MessageError, RunError
from interfuse.opening import json_in
from interfuse.runs import Given, RunConfig, Silent, Summary
from interfuse.runs.config import changed_in, differences
from interfuse.runs.folder import RunFolder
from interfuse.runs.loop import begin_or_resume
from interfuse.toml import read_toml
from interfuse.training import DivergedError
from interfuse.writing import write_whole

POLL_SECONDS = 0.25
SHOWN = 3
"""So many differences between two plans are named."""
PLAN = "comparison.toml"
"""What the folder of a comparison calls its plan."""
FAILED = "failed.json"
"""In the folder of a run: that its training failed, so that it need not be tried again."""
FLOPS = "flops.json"
PEAK_MEMORY = "peak-memory.json"
"""In the folder of a run: how much memory its process held at its highest."""


@dataclass(frozen=True, eq=False)
class Job:
    """One process's work: a run, or counting the operations of a round. ``label`` tells those of an entry apart."""

    kind: Literal["tuning", "run", "operations"]
    entry: Entry
    config: RunConfig
    path: Path
    label: str

    @property
    def name(self) -> str:
        """The job in words."""
        return f"{self.entry.name}, {self.label}"

    @property
    def done(self) -> bool:
        """Whether it was finished, now or by an earlier call, or was found to fail."""
        if self.kind == "operations":
            return self.path.exists()
        return any((self.path / name).exists() for name in ("summary.json", FAILED))

    @property
    def summary(self) -> Summary | None:
        """The summary of the run; None while it is not finished."""
        return RunFolder(self.path).summary()

    @property
    def failure(self) -> str | None:
        """Why training failed, where it did."""
        path = self.path / FAILED
        return str(_said(path, "reason")) if path.exists() else None

    @property
    def validation(self) -> float:
        """The best mean validation accuracy; NaN where training failed."""
        best = self.summary.best if self.summary else None
        return best.validation_accuracy if best else math.nan

    @property
    def uplink(self) -> float:
        """Bytes of all clients on the wire; NaN where training failed."""
        return self.summary.uplink_bytes.wire if self.summary else math.nan

    @property
    def rounds_done(self) -> int:
        """Rounds so far, as the metrics tell; their first line is from before the first round."""
        if self.done:
            return self.config.rounds
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0
        return min(self.config.rounds, max(0, lines - 1))

    def check(self) -> None:
        """Check that what lies there is this very run.

        Raises:
            RunError: it is another; names what differs.
        """
        if changed := changed_in(self.path, self.config):
            raise RunError(f"{self.path} holds another run than the plan says: {'; '.join(changed)}; remove it")


@dataclass(frozen=True)
class Tried:
    """A point of a grid, and the best mean validation accuracy it came to; NaN where its training failed."""

    point: Point
    label: str
    validation: float


@dataclass(frozen=True)
class Finished:
    """What came of an entry.

    Attributes:
        chosen: The point of its grid that was best on the validation shares; None where all failed.
        runs: Folders of finished runs by seed.
        failures: Reasons by what failed.
        refused: Whether it was left out, since it could not work.
        flops: Floating-point operations of a round, clients and server; NaN is unknown.
    """

    entry: Entry
    tried: Sequence[Tried] = ()
    chosen: Point | None = None
    runs: dict[int, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    flops: float = math.nan
    refused: bool = False


def check_folder(plan: Plan, out: Path) -> None:
    """Make sure that the folder of a comparison, if it is there, has the same plan.

    Raises:
        RunError: it has another one (names what differs), or cannot be read.
    """
    path = out / PLAN
    if not path.exists():
        return
    try:
        old = read_toml(path)
    except ConfigError as error:
        raise RunError(f"{error}; choose another --out") from error
    if changed := _changed(_by_name(old), _by_name(tomllib.loads(plan.to_toml()))):
        some = "; ".join(changed[:SHOWN]) + f"; and {len(changed) - SHOWN} more" * (len(changed) > SHOWN)
        raise RunError(f"{out} holds another comparison; choose another --out. What differs: {some}")


def prepare(plan: Plan, out: Path) -> None:
    """Make the folder of a comparison, or go on with one.

    Raises:
        RunError: it has another plan, or cannot be written.
    """
    check_folder(plan, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / PLAN, plan.to_toml())
    except OSError as error:
        raise RunError(f"cannot write {out / PLAN}: {error.strerror}") from error


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """How two plans differ; an entry that only one of them has is named, not shown."""
    entries, asked = old["entry"], new["entry"]
    found = [f"entry {name!r} is new" for name in asked if name not in entries]
    found += [f"entry {name!r} is gone" for name in entries if name not in asked]
    both = entries.keys() & asked.keys()
    before, after = ({**plan, "entry": {name: plan["entry"][name] for name in both}} for plan in (old, new))
    return found + differences(before, after)


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """A plan whose entries are told apart by name, for differences that can be read; without what tables show."""
    entries = {str(entry.get("name")): {**entry, "place": place} for place, entry in enumerate(values.get("entry", ()))}
    asked = {key: value for key, value in dict(values.get("comparison", {})).items() if key not in TABLES_ALONE}
    return {**values, "comparison": asked, "entry": entries}


def side_by_side(plan: Plan, jobs: int | None) -> int:
    """How many runs go side by side: those asked for, else one a core, on a GPU one.

    Raises:
        ConfigError: none, or this system cannot do it.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: at least 1 is needed")
    if not can_fork():
        raise ConfigError("a comparison forks a process for each run, and this system cannot fork")
    on_gpu = any(entry.config.device != "cpu" for entry in plan.entries)
    return jobs or (1 if on_gpu else available_cores())


def carry_out(
    plan: Plan, out: Path, jobs: int, follower: Follower, refused: Mapping[str, dict[str, str]]
) -> list[Finished]:
    """Do all that is not done yet, ``jobs`` runs side by side.

    Args:
        refused: Entries to leave out, with the reasons.

    A run whose training fails, for instance since it diverges, is a result. What fails otherwise, such as a full disk,
    is tried again by the next call.

    Raises:
        InterfuseError: a run cannot work, or a run folder holds another run than the plan says.
    """
    states = {entry.name: State(plan, entry, out) for entry in plan.entries if entry.name not in refused}
    pace = Pace(jobs)

    def work(job: Job) -> None:
        _work(job, plan.given(job.entry))

    with RunFolder(out).locked(), Pool(work, jobs) as pool:
        for state in states.values():
            pool.add(state.begin())
        while pool.busy:
            for ended in pool.ended(POLL_SECONDS):
                pool.add(states[ended.job.entry.name].after(ended.job, ended.failure))
                pace.ended(ended.job, ended.job.rounds_done)
                follower.ended(ended.job.name, ended.failure or ended.job.failure)
            for job in pool.running:
                if job.kind != "operations":
                    pace.goes_on(job, job.entry.name, job.rounds_done)
            follower.show(pace.standing([state.amount for state in states.values()], [j.name for j in pool.running]))
    return [
        states[entry.name].finished()
        if entry.name in states
        else Finished(entry, failures=refused[entry.name], refused=True)
        for entry in plan.entries
    ]


def _work(job: Job, given: Given) -> None:
    if job.kind == "operations":
        write_whole(job.path, json.dumps({"flops_of_a_round": flops_of_a_round(job.config, given)}))
        return
    try:
        begin_or_resume(job.path, job.config, given, Silent())
        write_whole(job.path / PEAK_MEMORY, json.dumps({"bytes": peak_memory()}))
    except (ClientError, DivergedError, MessageError) as error:
        write_whole(job.path / FAILED, json.dumps({"reason": str(error)}))


def peak_memory() -> int:
    """Resident bytes of this process at its highest, pages that it shares with its parent included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_peak_memory(path: Path) -> float:
    """The peak memory of the run in a folder; NaN where nothing is known of it."""
    file = path / PEAK_MEMORY
    return _number(file, "bytes") if file.exists() else math.nan


def _said(path: Path, key: str) -> Any:
    """What a small JSON file of a comparison says.

    Raises:
        RunError: it cannot be read, or says something else.
    """
    try:
        return json_in(path)[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}): remove it, and the same command makes it again") from None


def _number(path: Path, key: str) -> float:
    try:
        return float(_said(path, key))
    except (TypeError, ValueError):
        raise RunError(f"{path} is damaged: {key} is no number; remove it, and the same command goes on") from None


class State:
    """How far an entry is."""

    def __init__(self, plan: Plan, entry: Entry, out: Path) -> None:
        self.entry, self._plan, self._out = entry, plan, out
        self._points = entry.points()
        rounds = plan.tuning_rounds(entry)
        several = len(self._points) > 1
        self._tuning = [self._tuning_job(point, rounds) for point in self._points if several]
        self._undecided = [job for job in self._tuning if not job.done]
        self._chosen: Point | None = None
        self._runs: list[Job] = []
        self._broken: dict[str, str] = {}

    def _tuning_job(self, point: Point, rounds: int) -> Job:
        path = self._out / "tuning" / self.entry.name / self.entry.folder_name(point)
        config = self.entry.run(point, self._plan.asked.tuning.seed, rounds)
        return Job("tuning", self.entry, config, path, self.entry.label(point))

    def begin(self) -> list[Job]:
        """What can be done at once."""
        for job in self._tuning:
            job.check()
        return list(self._undecided) or self._choose()

    def after(self, job: Job, failure: str | None) -> list[Job]:
        """What can be done now that a job has ended."""
        if failure is not None and job.kind != "operations":
            self._broken[job.label] = failure
        if job not in self._undecided:
            return []
        # counted down: a job may have written all its files while its process has not ended yet
        self._undecided.remove(job)
        return [] if self._undecided or self._broken else self._choose()

    def _choose(self) -> list[Job]:
        """Decide for a point of the grid, the first of equals; returns the runs with it that are not there yet."""
        scores = [job.validation for job in self._tuning] or [0.0]
        if all(math.isnan(score) for score in scores):
            return []
        self._chosen = self._points[self._best(scores)]
        folder, seeds = self._out / "runs" / self.entry.name, self._plan.asked.seeds
        configs = {seed: self.entry.run(self._chosen, seed) for seed in seeds}
        self._runs = [Job("run", self.entry, c, folder / f"seed-{seed}", f"seed {seed}") for seed, c in configs.items()]
        for job in self._runs:
            job.check()
        folder.mkdir(parents=True, exist_ok=True)
        count = Job("operations", self.entry, configs[seeds[0]], folder / FLOPS, "operations of a round")
        if not count.done:
            import_counter()
        return [job for job in (*self._runs, count) if not job.done]

    def _best(self, scores: Sequence[float]) -> int:
        """The best point on the validation shares, or the one with the smallest uplink that is hardly worse."""
        best, tolerance = int(np.nanargmax(scores)), self._plan.asked.tuning.tolerance
        if not tolerance:
            return best
        good = [place for place, score in enumerate(scores) if score >= scores[best] - tolerance]
        return min(good, key=lambda place: self._tuning[place].uplink) if self._tuning else best

    @property
    def amount(self) -> Amount:
        """Rounds done, and rounds to do in all as far as is known: none where nothing could be chosen."""
        given_up = self._chosen is None and not self._undecided
        later = 0 if self._runs or given_up else len(self._plan.asked.seeds)
        jobs = [(job.rounds_done, job.config.rounds) for job in (*self._tuning, *self._runs)]
        jobs += [(0, self.entry.config.rounds)] * later
        done, rounds = (sum(column) for column in zip(*jobs, strict=True)) if jobs else (0, 0)
        return Amount(self.entry.name, done, rounds, max((all - some for some, all in jobs), default=0))

    def finished(self) -> Finished:
        """What came of it."""
        tried = [
            Tried(point, job.label, job.validation) for point, job in zip(self._points, self._tuning, strict=False)
        ]
        failures = dict(self._broken)
        jobs = self._runs if self._chosen is not None else self._tuning
        failures |= {job.label: job.failure for job in jobs if job.failure is not None}
        runs = {job.config.seed: job.path for job in self._runs if job.summary is not None}
        flops = math.nan
        path = self._out / "runs" / self.entry.name / FLOPS
        if path.exists():
            flops = _number(path, "flops_of_a_round")
        return Finished(self.entry, tried, self._chosen, runs, failures, flops)
