"""Set up every run of a plan before the first one trains: what cannot work is known then, and not hours later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Unpack

import torch

from interfuse.clients import Answer, Request
from interfuse.comparison.plan import Entry, Plan
from interfuse.comparison.pool import Pool
from interfuse.data import Batch
from interfuse.engines import InProcess
from interfuse.engines.groups import Task
from interfuse.errors import ConfigError, InterfuseError
from interfuse.federation import Federation
from interfuse.models import SplitModel
from interfuse.runs import Given, RunConfig
from interfuse.runs.loop import assemble
from interfuse.setup import check_device
from interfuse.training import FitOptions, Fitted, Objective, OptimizerState, fit

POLL_SECONDS = 0.25


@dataclass(frozen=True, eq=False)
class Trial:
    """A run to set up; ``label`` tells those of an entry apart."""

    entry: Entry
    config: RunConfig
    label: str


@dataclass
class Found:
    """What is known of a plan before anything trains, by entry, then by reason: the labels of the runs it holds for.

    Attributes:
        refused: Why runs cannot work.
        notices: What their methods have to say of these clients.
    """

    refused: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    notices: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def failures(self, entry: str) -> dict[str, str]:
        """Reasons by the runs that have them."""
        return {", ".join(labels): reason for reason, labels in self.refused.get(entry, {}).items()}

    def check(self, plan: Plan, *, skip: bool) -> None:
        """Stop where an entry is refused, unless it is to be skipped and others are left.

        Raises:
            ConfigError: all reasons at once.
        """
        if not self.refused or (skip and len(self.refused) < len(plan.entries)):
            return
        alike: dict[tuple[str, str], list[str]] = {}  # one missing data set may be that of all entries
        for name in self.refused:
            for place in self.failures(name).items():
                alike.setdefault(place, []).append(name)
        lines = [f"- {', '.join(names)}, {runs}: {why}" for (runs, why), names in alike.items()]
        of_all = f"{len(self.refused)} of {len(plan.entries)} entries"
        remedy = "" if len(self.refused) == len(plan.entries) else "; or leave them out with --skip-refused"
        raise ConfigError("\n".join([f"{of_all} cannot work, so nothing was begun{remedy}", *lines]))


def trials(plan: Plan, entry: Entry) -> Iterator[Trial]:
    """Each point of the grid with the seed of the choice, and each seed with the first point."""
    first, *_ = points = entry.points()
    if len(points) > 1:
        rounds = plan.tuning_rounds(entry)
        for point in points:
            yield Trial(entry, entry.run(point, plan.asked.tuning.seed, rounds), entry.label(point))
    for seed in plan.asked.seeds:
        yield Trial(entry, entry.run(first, seed), f"seed {seed}")


class Trying(InProcess):
    """All clients in this process; each training of one of them is a single step."""

    def _run(self, request: Request, groups: Sequence[Sequence[Task]]) -> list[Answer]:
        with self._host.working():
            return [self._host.run(request, *task, trainer=first_step) for group in groups for task in group]


def first_step(
    model: SplitModel,
    losses: Objective | Mapping[str, Objective],
    batches: Iterable[Batch],
    *,
    slots: OptimizerState | None = None,
    round: int = 0,
    autocast: torch.dtype | None = None,
    **options: Unpack[FitOptions],
) -> Fitted:
    """The first step of what :func:`interfuse.training.fit` does."""
    return fit(model, losses, islice(batches, 1), slots=slots, round=round, autocast=autocast, **options)


def attempt(config: RunConfig, given: Given) -> str | None:
    """Set a run up and start its method, as far as nothing is trained. Returns what the method has to say of it.

    Raises:
        InterfuseError: it cannot work.
    """
    check_device(config.device)
    # on the CPU: it is free, and what is checked does not depend on it
    setup = assemble(config.model_copy(update={"device": "cpu"}), given)
    Federation(setup, Trying(setup), rounds=config.rounds).start()
    notice = setup.method.notice(setup.profiles)
    return None if notice is None else f"{notice.text} Try: {notice.remedy}"


def look(plan: Plan, jobs: int, out: Path | None = None) -> Found:
    """Try all set-ups, ``jobs`` side by side, each in a process of its own; not those of what ``out`` has finished."""
    found, waiting = Found(), list[Trial]()
    for entry in plan.entries:
        folder = None if out is None else out / "runs" / entry.name
        if folder is not None and all((folder / f"seed-{seed}" / "summary.json").exists() for seed in plan.asked.seeds):
            continue
        try:
            plan.given(entry)  # loaded once, for all processes
        except InterfuseError as error:
            found.refused[entry.name] = {str(error): ["its data"]}
        else:
            waiting += trials(plan, entry)
    answers: dict[Trial, tuple[str | None, str | None]] = {}

    def work(trial: Trial) -> str | None:
        return attempt(trial.config, plan.given(trial.entry))

    with Pool(work, jobs) as pool:
        pool.add(waiting)
        while pool.busy:
            answers |= {ended.job: (ended.failure, ended.result) for ended in pool.ended(POLL_SECONDS)}
    for trial in waiting:
        for kind, text in zip((found.refused, found.notices), answers[trial], strict=True):
            if text is not None:
                kind.setdefault(trial.entry.name, {}).setdefault(text, []).append(trial.label)
    return found


def said(notices: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[str]:
    """A line for each notice, with the entries that it is of."""
    by_text: dict[str, list[str]] = {}
    for name, texts in notices.items():
        for text in texts:
            by_text.setdefault(text, []).append(name)
    for text, names in by_text.items():
        yield f"{', '.join(names)}: {text}"
