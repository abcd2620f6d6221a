"""How a summary comes of a run's rows, its ledger and its last evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from interfuse.client import ClientId
from interfuse.clients import is_part
from interfuse.errors import ConfigError, Notice
from interfuse.evaluation import ACROSS_TASKS, MOST_COMPOSED, Accuracies, Measurements, Side, measured_on
from interfuse.method import Method, disclosures
from interfuse.references import short_name
from interfuse.runs.config import RunConfig, plain
from interfuse.runs.folder import RunFolder
from interfuse.runs.protocols import said_of
from interfuse.runs.summary import (
    NOTHING,
    UNSAID,
    BestOnTest,
    BestRound,
    ClientFacts,
    Counts,
    Downlink,
    LeftOut,
    Moved,
    MovedOfKind,
    Point,
    Row,
    Rows,
    Scores,
    Shown,
    Spread,
    Steps,
    Stopped,
    Summary,
    mean,
    std,
)
from interfuse.server import Server
from interfuse.setup import Serving
from interfuse.wire import Ledger, Totals

ON_THE_CURVE = 10
"""The last points of the curve, whose spread is the stability."""
FEWEST_POINTS = 3
"""Fewer have no spread worth a number."""


@dataclass(frozen=True)
class Facts:
    """What is known of a federation beside its configuration. Here it is what a configuration alone says."""

    clients: Sequence[ClientFacts]
    score: str = "accuracy"
    note: str = ""
    discloses: Sequence[str] | None = None
    notice: Notice | None = None
    data_notices: Sequence[Notice] = ()
    reading_notices: Sequence[Notice] = ()
    model_notices: Sequence[Notice] = ()
    class_names: Sequence[str] = ()
    class_counts: Counts | Sequence[Sequence[int]] | None = None

    @classmethod
    def of(cls, setup: Serving) -> Facts:
        """The facts of a federation that was set up."""
        architectures = dict.fromkeys(profile.architecture for profile in setup.profiles.values())
        parameters = {name: setup.parameters_of(name) for name in architectures}
        clients = [
            ClientFacts.model_validate({
                "id": c, "architecture": p.architecture, "parameters": parameters[p.architecture],
                "data": setup.data_name(c), "samples": p.samples, "groups": setup.groups_of(c),
            })
            for c, p in setup.profiles.items()
        ]  # fmt: skip
        return cls(
            clients,
            score=setup.task.score_name,
            note=setup.note,
            discloses=sorted(disclosures(setup.method)),
            notice=setup.method.notice(setup.profiles),
            data_notices=tuple(setup.data_notices),
            reading_notices=tuple(setup.reading_notices),
            model_notices=tuple(setup.model_notices),
            class_names=setup.class_names,
            class_counts=setup.class_counts,
        )

    @classmethod
    def of_config(cls, config: RunConfig, *, parties: bool) -> Facts:
        """The facts of a run that nobody has set up here; of parties only how many they are."""
        if parties:
            unknown = {"architecture": "", "parameters": None, "data": "", "samples": None}
            return cls([ClientFacts.model_validate({"id": i} | unknown) for i in range(config.clients)])
        data, models = config.data_names, config.models
        return cls(
            [
                ClientFacts(
                    id=i, architecture=models[i % len(models)], parameters=None, data=data[i % len(data)], samples=None
                )
                for i in range(config.clients)
            ]
        )


def stopped_early(config: RunConfig, rows: Sequence[Row]) -> Stopped | None:
    """Where early stopping ends a run with these rows before its rounds are over; None: not, or not yet."""
    stopped = None if config.stop is None else config.stop.after(rows)
    return None if stopped is None or stopped.round >= config.rounds else stopped


def summarise(
    config: RunConfig,
    folder: RunFolder,
    rows: Sequence[Row],
    ledger: Ledger,
    facts: Facts,
    last: Scores,
    best: BestRound | None,
) -> Summary:
    """The summary of a run without what runs beside it and what is to be said of it, finished or not."""
    training, start, evaluated = (ledger.totals(heading) for heading in ("training", "start", "evaluation"))
    phases = dict.fromkeys((phase for row in rows for phase in row.seconds), 0.0)
    for row in rows:
        for phase, seconds in row.seconds.items():
            phases[phase] += seconds
    kinds = Counter(failure.kind for row in rows for failure in row.failures)
    parties = folder.between_parties
    asked: dict[str, Any] = {}
    if "forgetting" in config.metrics:
        asked["forgetting"] = Spread.of(forgetting(rows))
    stopped = stopped_early(config, rows)
    return Summary(
        interfuse=config.environment.get("interfuse", version("interfuse")),
        method=config.method,
        data=", ".join(config.data_names) if config.evaluation == "shared" or not parties else "",
        seed=config.seed,
        rounds=config.rounds if stopped is None else stopped.round,
        stopped=stopped,
        seconds=round(sum(seconds for phase, seconds in phases.items() if not is_part(phase)), 3),
        run=str(folder.path),
        evaluation=config.evaluation,
        protocol=said_of(plain(config.model_dump())),
        parties=parties,
        simulated=folder.simulated,
        headline=UNSAID,
        warnings=(),
        codecs=config.codecs,
        **vars(facts),
        **last.model_dump(exclude_unset=True),
        best=best,
        best_on_test=best_on_test(rows),
        similarity={"before": rows[0].similarity if rows else None, "after": rows[-1].similarity if rows else None},
        stability=stability(rows),
        gradient_steps=Steps(
            clients=sum(row.steps.clients for row in rows), server=sum(row.steps.server for row in rows)
        ),
        untrained=untrained(rows, config.clients),
        **asked,
        left_out=left_out(rows),
        shown=rows[-1].shown if rows else Shown(),
        virtual_seconds=rows[-1].virtual_seconds if rows else {},
        missing_replies={kind: kinds[kind] for kind in ("failed", "late", "away")},
        uplink_bytes=training.uplink,
        downlink_bytes=Downlink(
            raw=training.downlink.raw,
            wire=training.downlink.wire,
            raw_broadcast=training.downlink_broadcast.raw,
            wire_broadcast=training.downlink_broadcast.wire,
        ),
        start_bytes=_both(start),
        evaluation_bytes=_both(evaluated),
        bytes_by_kind={
            kind: MovedOfKind(uplink=t.uplink, downlink=t.downlink, downlink_broadcast=t.downlink_broadcast)
            for kind, t in training.by_kind.items()
        },
        seconds_by_phase={phase: round(seconds, 3) for phase, seconds in phases.items()},
    )


def stability(rows: Sequence[Row]) -> float:
    """The standard deviation of the mean global score over the last points of the curve.

    NaN where these begin with the models before training, whose spread is what was learned, or are too few.
    """
    last = [row for row in rows if row.accuracy][-ON_THE_CURVE:]
    known = [mean(row.accuracy.common) for row in last if row.accuracy]
    return math.nan if len(known) < FEWEST_POINTS or last[0].round == 0 else std(known)


def forgetting(rows: Sequence[Row]) -> list[float]:
    """How much of what a client could do with its earlier tasks it has lost at the end (Chaudhry et al., ECCV 2018).

    For each task but the last, in time: the best score at an earlier point of the curve, minus that at the last point;
    the mean over these tasks, of each evaluated client. Below 0, where a task got better to the end. NaN for a client
    with one task.
    """
    points = [row.accuracy.by_task for row in rows if row.accuracy is not None and row.round]
    if len(points) < 2:
        return [math.nan] * len(points[0] if points else ())
    *before, last = points
    return [
        mean(
            max((point[client][task] for point in before), default=math.nan) - end
            for task, end in enumerate(tasks[:-1])
        )
        for client, tasks in enumerate(last)
    ]


def best_on_test(rows: Sequence[Row]) -> BestOnTest | None:
    """The first of the points after the start whose own score by samples is best; None where none is known."""
    points = [(row.round, row.accuracy) for row in rows if row.accuracy is not None and row.round]
    known = [(round, point) for round, point in points if not math.isnan(point.own_by_samples)]
    if not known:
        return None
    round, point = max(known, key=lambda one: one[1].own_by_samples)
    return BestOnTest(round=round, own_by_samples=point.own_by_samples, own=mean(point.own))


def untrained(rows: Iterable[Row], clients: int) -> tuple[ClientId, ...]:
    """Clients that made no gradient step in these rows, which are all from the first one."""
    trained = {client for row in rows for client in row.first_steps}
    return tuple(client for client in range(clients) if client not in trained)


def left_out(rows: Sequence[Row]) -> LeftOut:
    """The rows that were left out of training, all together."""
    clients: Counter[ClientId] = Counter()
    for row in rows:
        clients.update(row.left_out.clients)
    return LeftOut(clients=dict(sorted(clients.items())), server=sum(row.left_out.server for row in rows))


def shown(of: Method, server: Server[Any]) -> Shown:
    """What a method shows of the server's state, to six places behind the point.

    Raises:
        ConfigError: it shows what is no number, nor numbers of clients or of pairs of them.
    """
    count = server.dims["clients"]
    found: tuple[dict[str, Any], ...] = ({}, {}, {})
    for name, values in of.shown(server).items():
        if values.ndim > 2 or any(size != count for size in values.shape):
            shape = f"of shape {tuple(values.shape)}"
            raise ConfigError(
                f"{type(of).__name__}.shown has {name!r} {shape}; it shows numbers [], [{count}] or [{count}, {count}]"
            )
        if values.ndim < 2 or count <= MOST_COMPOSED:
            found[values.ndim][name] = values.detach().double().cpu().numpy().round(6).tolist()
    return Shown.model_validate(dict(zip(("numbers", "clients", "pairs"), found, strict=True)))


def _both(totals: Totals) -> Moved:
    return Moved(uplink=totals.uplink, downlink=totals.downlink)


def scores_of(point: Point | Accuracies | None) -> Scores:
    """The scores of a point of the curve, or of an evaluation of everything."""
    if point is None:
        return NOTHING
    across: dict[str, Any] = {}
    if point.others:
        across["others_accuracy"] = Spread.of(point.others)
    if point.by_task:
        across["by_task"] = tuple(map(tuple, point.by_task))
    if isinstance(point, Accuracies) and point.others_matrix:
        across["others_matrix"] = tuple(map(tuple, point.others_matrix))
    return Scores(
        global_accuracy=Spread.of(point.common),
        own_accuracy=Spread.of(point.own),
        composition_matrix=None if point.composition is None else tuple(map(tuple, point.composition)),
        own_by_samples=point.own_by_samples,
        evaluated=tuple(point.evaluated),
        rows=point.rows,
        **across,
    )


def point_of(found: Accuracies) -> Point:
    """What an evaluation found as a point of the curve; what was not asked for is not there."""
    optional = ("others", "by_task", "others_matrix")
    return Point(**{name: value for name, value in vars(found).items() if value or name not in optional})


def class_metrics(config: RunConfig) -> list[str]:
    """Names of the metrics that follow from the answers of each client by class."""
    return [name for name in map(short_name, config.metrics) if name not in ACROSS_TASKS]


def with_metrics(scores: Scores, config: RunConfig, measured: Mapping[ClientId, Measurements]) -> Scores:
    """The same with the metrics that were asked for, and the confusion matrices behind them."""
    values = [measured_on(found) for found in measured.values()]
    sides: dict[Side, list[Tensor]] = {
        "own": [found.own.confusion for found in measured.values()],
        "global": [found.common.confusion for found in measured.values()],
    }
    found = {
        "metrics": {
            name: {side: _by_client(name, [of_client[side] for of_client in values]) for side in sides}
            for name in class_metrics(config)
        },
        "confusion": {side: torch.stack(by_client).sum(0).tolist() for side, by_client in sides.items()},
    }
    return Scores.model_validate(scores.model_dump(exclude_unset=True) | found)


def _by_client(name: str, values: Sequence[Mapping[str, Any]]) -> Spread | Rows:
    """A metric of all clients; recall has a value a class, so that no spread is made of it."""
    found = [of_client.get(name, math.nan) for of_client in values]
    return tuple(map(tuple, found)) if name == "recall" else Spread.of(found)
