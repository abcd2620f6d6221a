"""What is measured of each run, and the mean over seeds."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.clock import LINKS, OWN
from interfuse.comparison.execution import Finished, read_peak_memory
from interfuse.comparison.plan import Plan
from interfuse.errors import RunError
from interfuse.evaluation import ACROSS_TASKS, Evidence, Side
from interfuse.families.late_joining import LateJoining
from interfuse.methods import find
from interfuse.opening import opened
from interfuse.report.run import Curve, curve, load
from interfuse.runs import RunConfig, Summary
from interfuse.runs.summary import NOTHING, Matrix, Scores, mean, std
from interfuse.runs.summing import class_metrics
from interfuse.wire import from_json

OF_FINAL = 0.95
"""The part of its final global accuracy that the anchor has to reach."""

SIDES: tuple[Side, ...] = ("own", "global")
OTHER_EVIDENCE: tuple[Evidence, ...] = ("own", "compositions")
"""What an accuracy may be of, beside the common test set."""

Values = dict[str, float]
"""Measures by key; NaN is unknown."""


@dataclass(frozen=True, eq=False)
class SeedRun:
    """A finished run of an entry.

    Attributes:
        steps: Gradient steps up to each point of the curve, clients and server together.
        first_steps: Those of the first round.
        steps_before: Those of a training before it.
        virtual: Virtual seconds up to each point, on the clients' devices and with links of one rate each.
        sent: Raw bytes of training by client and direction, ``up`` or ``down``; only where they are asked for.
        peak_memory: Resident bytes of the run's process at its highest; NaN is unknown.
    """

    seed: int
    summary: Summary
    curve: Curve
    downlink: NDArray[np.int64]
    uplink_wire: NDArray[np.int64]
    steps: NDArray[np.int64]
    first_steps: int
    steps_before: int
    virtual: Mapping[str, NDArray[np.float64]]
    sent: Counter[tuple[int, str]] = field(default_factory=Counter)
    peak_memory: float = math.nan
    on_the_wire: bool = False

    @property
    def counted(self) -> NDArray[np.int64]:
        """Bytes up by which runs are compared at equal uplink: on the wire where codecs make a difference, else raw."""
        return self.uplink_wire if self.on_the_wire else self.curve.uplink

    @property
    def clients(self) -> int:
        """How many there are."""
        return len(self.summary.clients)


@dataclass(frozen=True)
class Anchor:
    """An uplink at which all are compared: bytes of all clients, and how many clients sent them."""

    uplink: float
    clients: int


@dataclass(frozen=True, eq=False)
class Row:
    """An entry with all its numbers.

    Attributes:
        values: Measures of each run, in the order of ``runs``.
    """

    finished: Finished
    runs: Sequence[SeedRun]
    values: Sequence[Values]

    @property
    def name(self) -> str:
        """That of the entry."""
        return self.finished.entry.name

    @cached_property
    def mean(self) -> Values:
        """Over seeds; NaN where a seed has no value."""
        return {key: float(np.mean([values[key] for values in self.values])) for key in self._keys}

    @cached_property
    def std(self) -> Values:
        """Over seeds, of a sample (n - 1); NaN for a single seed."""
        several = len(self.values) > 1
        return {
            key: float(np.std([values[key] for values in self.values], ddof=1)) if several else math.nan
            for key in self._keys
        }

    def known(self, key: str) -> int:
        """How many seeds have a value."""
        return sum(not math.isnan(values.get(key, math.nan)) for values in self.values)

    @property
    def _keys(self) -> list[str]:
        return list(self.values[0]) if self.values else []

    @cached_property
    def composition(self) -> Matrix | None:
        """The matrix of compositions after the last round, mean over seeds."""
        found = [matrix for run in self.runs if (matrix := run.summary.composition) is not None]
        return np.mean(found, axis=0) if found and len(found) == len(self.runs) else None


def read_run(path: Path, seed: int, *, by_client: bool = False) -> SeedRun:
    """A run folder that is finished; with ``by_client`` the ledger is read as well."""
    run = load(path)
    evaluated = [row for row in run.rows if row.accuracy]
    made = np.cumsum([row.steps.total for row in run.rows])
    places = [place for place, row in enumerate(run.rows) if row.accuracy]
    return SeedRun(
        seed=seed,
        summary=run.summary,
        curve=curve(run.rows),
        uplink_wire=np.array([row.uplink.wire for row in evaluated], dtype=np.int64),
        downlink=np.array([row.downlink.raw for row in evaluated], dtype=np.int64),
        steps=made[places].astype(np.int64),
        first_steps=run.rows[1].steps.total,
        steps_before=run.rows[0].steps.total,
        virtual={
            name: np.array([row.virtual_seconds.get(name, math.nan) for row in evaluated]) for name in (OWN, *LINKS)
        },
        sent=bytes_by_client(path / "ledger.jsonl") if by_client else Counter(),
        peak_memory=read_peak_memory(path),
    )


def bytes_by_client(ledger: Path) -> Counter[tuple[int, str]]:
    """Raw bytes of training by client and direction."""
    found: Counter[tuple[int, str]] = Counter()
    number = 0
    try:
        with io.TextIOWrapper(opened(ledger, follow=False), encoding="utf-8", errors="replace") as lines:
            for entry in map(from_json, lines):
                number += 1
                if entry.heading == "training":
                    found[entry.client, entry.direction] += entry.raw
    except OSError as error:
        raise RunError(f"cannot read {ledger}: {error.strerror}") from error
    except RunError as error:
        raise RunError(f"{ledger}, line {number + 1} is damaged: {error}") from None
    return found


def newcomers_of(plan: Plan) -> int:
    """How many clients, the last ones, come late in some entry; all entries then say what those reach."""
    late = [e.config.settings for e in plan.entries if issubclass(find(e.config.method), LateJoining)]
    return max((settings["newcomers"] for settings in late), default=0)


def rows(plan: Plan, finished: Sequence[Finished]) -> tuple[list[Row], Anchor | None]:
    """The rows of the table in the order of the recipe, and the uplink of the anchor where there is one."""
    late = newcomers_of(plan)
    runs = {
        f.entry.name: [read_run(path, seed, by_client=late > 0) for seed, path in sorted(f.runs.items())]
        for f in finished
    }
    if any(run.summary.codecs for found in runs.values() for run in found):
        runs = {name: [replace(run, on_the_wire=True) for run in found] for name, found in runs.items()}
    anchor = anchor_of(runs.get(plan.asked.anchor or "", []))
    local = {run.seed: run for run in runs.get("local", [])}
    baseline = {run.seed: run for run in runs.get(plan.asked.baseline or "", [])}
    measured = list(dict.fromkeys(metric for f in finished for metric in metrics_of(f.entry.config)))
    across = {metric for f in finished for metric in f.entry.config.metrics} & ACROSS_TASKS
    made = []
    for f in finished:
        found = runs[f.entry.name]
        values = [
            {
                **accuracies(run.summary),
                **metrics(run.summary, measured),
                **across_tasks(run, across),
                **beside_local(run.summary, local[run.seed].summary if run.seed in local else NOTHING),
                **bytes_and_work(run.summary),
                "flops": operations(run, f.flops),
                **(of_newcomers(run, late) if late else {}),
                **bytes_to(run, plan.asked.accuracies),
                **seconds_to(run, plan.asked.accuracies),
                **(rounds_to(run, baseline.get(run.seed), plan.asked.accuracies) if plan.asked.baseline else {}),
                **accuracies_at(run, plan.asked.uplinks, anchor),
                # the last, for they are all that differs between two equal runs
                "peak_memory": run.peak_memory,
                "seconds": run.summary.seconds,
            }
            for run in found
        ]
        made.append(Row(f, found, values))
    return made, anchor


def score_of(rows: Sequence[Row]) -> str:
    """What the score of all runs is called."""
    names = dict.fromkeys(run.summary.score for row in rows for run in row.runs)
    return " or ".join(names) or "accuracy"


def accuracies(summary: Summary) -> Values:
    """Of the last round and of the best on validation: own, global, over all pairs of blocks, over swapped ones."""
    found: Values = {}
    for when, measured in (("last", summary), ("best", summary.best or NOTHING)):
        found |= {
            f"own_{when}": measured.own_accuracy.mean,
            f"global_{when}": measured.global_accuracy.mean,
            f"composition_{when}": measured.mean_composition,
            f"swapped_{when}": measured.mean_swapped,
            f"spread_{when}": spread_of_swapped(measured),
        }
    on_test = summary.best_on_test
    return found | {
        "own_by_samples_last": summary.own_by_samples,
        "own_by_samples_on_test": math.nan if on_test is None else on_test.own_by_samples,
        "own_on_test": math.nan if on_test is None else on_test.own,
        "stability": summary.stability,
    }


def metrics_of(config: RunConfig) -> list[str]:
    """The metrics of a run that have one number a client on each side."""
    return [name for name in class_metrics(config) if name != "recall"]


def metrics(summary: Summary, names: Sequence[str]) -> Values:
    """Of the last round, on both sides; and how many clients lack a class that the common test set has."""
    found = {f"{side}_{name}": summary.metric(name, side).mean for name in names for side in SIDES}
    if "absent-recall" in names:
        found["lacking"] = float(summary.metric("absent-recall", "global").known)
    return found


def across_tasks(run: SeedRun, names: Collection[str]) -> Values:
    """Scores on the test rows of other clients, and forgetting, where they are asked for; and with either the means of
    own scores and those over the evaluated rounds: A_AUC of FedMosaic (arXiv:2506.11024)."""
    if not names:
        return {}
    summary, trained = run.summary, run.curve.rounds > 0
    found: Values = {"own_auc": mean(run.curve.own[trained])}
    if "others" in names:
        found |= {
            "others_last": summary.others_accuracy.mean,
            "others_best": (summary.best or NOTHING).others_accuracy.mean,
            "others_auc": mean(run.curve.others[trained]),
        }
    if "forgetting" in names:
        tasks = [value for of_client in summary.by_task for value in of_client]
        found |= {"by_task_last": mean(tasks), "forgetting": summary.forgetting.mean}
    return found


def spread_of_swapped(found: Scores) -> float:
    """Standard deviation over the modular blocks of other clients behind a base block, mean over base blocks.

    NaN for fewer than three clients, where there is but one such block.
    """
    matrix = found.composition
    if matrix is None or len(matrix) < 3:
        return math.nan
    others = ~np.eye(len(matrix), dtype=bool)
    return mean(std(row[other]) for row, other in zip(matrix, others, strict=True))


def beside_local(found: Scores, local: Scores) -> Values:
    """Differences to the run of Local with the same seed, after the last round."""
    return {
        "own_minus_local": found.own_accuracy.mean - local.own_accuracy.mean,
        "composition_minus_local": found.mean_composition - local.mean_composition,
    }


def of_newcomers(run: SeedRun, late: int) -> Values:
    """The last clients, that come late in some entry: their base blocks behind the modular blocks of the incumbents,
    beside those of the incumbents themselves; and their own bytes."""
    unknown = np.full((run.clients, run.clients), math.nan)
    found: Values = {}
    for when, measured in (("last", run.summary), ("best", run.summary.best or NOTHING)):
        behind = (unknown if measured.composition is None else measured.composition)[:, :-late]
        found |= {f"newcomers_{when}": mean(behind[-late:].flat), f"incumbents_{when}": mean(behind[:-late].flat)}
    found["newcomers_minus_incumbents"] = found["newcomers_last"] - found["incumbents_last"]
    for way in ("up", "down"):
        found[f"newcomers_{way}link"] = float(sum(run.sent[c, way] for c in range(run.clients - late, run.clients)))
    return found


def operations(run: SeedRun, of_first_round: float) -> float:
    """Floating-point operations of all rounds: for each gradient step as many as in the first one, for a round if that
    has none."""
    if not run.first_steps:
        return of_first_round * run.summary.rounds
    return of_first_round * (run.summary.gradient_steps.total - run.steps_before) / run.first_steps


def bytes_and_work(summary: Summary) -> Values:
    """Bytes of training, raw and on the wire, and gradient steps."""
    up, down = summary.uplink_bytes, summary.downlink_bytes
    sizes = {"uplink": up.raw, "downlink": down.raw, "uplink_wire": up.wire, "downlink_wire": down.wire}
    found: Values = {}
    for name, size in sizes.items():
        found |= {name: float(size), f"{name}_per_client": size / len(summary.clients)}
    return found | {
        "uplink_ratio": up.raw / up.wire if up.wire else math.nan,
        "virtual_seconds": summary.virtual_seconds.get(OWN, math.nan),
        "missing": float(sum(summary.missing_replies.values())),
        "steps_clients": float(summary.gradient_steps.clients),
        "steps_server": float(summary.gradient_steps.server),
    }


def first_at(
    run: SeedRun, accuracy: float, values: NDArray[np.int64] | NDArray[np.float64], evidence: Evidence = "global"
) -> float:
    """The value, one of each point, where a mean accuracy on the curve is there for the first time.

    NaN where it never is.
    """
    curves = {"own": run.curve.own, "global": run.curve.common, "compositions": run.curve.composition}
    reached = np.flatnonzero(curves[evidence] >= accuracy)
    return float(values[reached[0]]) if len(reached) else math.nan


def bytes_to(run: SeedRun, accuracies: Sequence[float]) -> Values:
    """Bytes until a global accuracy, and up until the same in own accuracy and over all compositions."""
    found: Values = {}
    ways = {"uplink": run.curve.uplink, "downlink": run.downlink, "uplink_wire": run.uplink_wire}
    for accuracy in accuracies:
        for way, sizes in ways.items():
            size = first_at(run, accuracy, sizes)
            found |= {f"{way}_to_{accuracy:g}": size, f"{way}_to_{accuracy:g}_per_client": size / run.clients}
        for evidence in OTHER_EVIDENCE:
            found[f"uplink_to_{accuracy:g}_{evidence}"] = first_at(run, accuracy, run.curve.uplink, evidence)
    return found


def seconds_to(run: SeedRun, accuracies: Sequence[float]) -> Values:
    """Virtual seconds until an accuracy.

    With links of one rate they are NaN where time has decided who takes part: another rate would have been another run.
    """
    return {
        f"virtual_{name}_to_{accuracy:g}": first_at(run, accuracy, seconds)
        for accuracy in accuracies
        for name, seconds in run.virtual.items()
    }


def rounds_to(run: SeedRun, baseline: SeedRun | None, accuracies: Sequence[float]) -> Values:
    """Rounds until an accuracy, and those of the baseline with the same seed divided by these."""
    found: Values = {}
    for accuracy in accuracies:
        own, unit = (math.nan if r is None else first_at(r, accuracy, r.curve.rounds) for r in (run, baseline))
        found |= {f"rounds_to_{accuracy:g}": own, f"speed_to_{accuracy:g}": unit / own if own else math.nan}
    return found


def accuracies_at(run: SeedRun, uplinks: Sequence[float], anchor: Anchor | None) -> Values:
    """Accuracies on the curve at the last point within an uplink, once that of all clients and once that of each."""
    limits = {f"{uplink:.0f}": (uplink, uplink * run.clients) for uplink in uplinks}
    if anchor is not None:
        limits["anchor"] = (anchor.uplink, anchor.uplink * run.clients / anchor.clients)
    found: Values = {}
    for name, (of_all, of_each) in limits.items():
        for rule, limit in (("", of_all), ("_per_client", of_each)):
            place = int(np.searchsorted(run.counted, limit, side="right")) - 1
            found[f"global_at_{name}{rule}"] = float(run.curve.common[place])
            found[f"composition_at_{name}{rule}"] = float(run.curve.composition[place])
    return found


def anchor_of(runs: Sequence[SeedRun]) -> Anchor | None:
    """Where the global accuracy, mean over seeds, first has 95 % of its final value; None without runs."""
    if not runs:
        return None
    accuracy = held([run.curve.common for run in runs]).mean(0)
    reached = np.flatnonzero(accuracy >= OF_FINAL * accuracy[-1])
    if not len(reached):  # not a number at the end
        return None
    return Anchor(float(held([run.counted for run in runs])[:, reached[0]].max()), runs[0].clients)


def held(series: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Values by run and point, as many points of each: what a run that stopped early had last stays."""
    points = max(map(len, series))
    return np.array([np.pad(values.astype(np.float64), (0, points - len(values)), mode="edge") for values in series])
