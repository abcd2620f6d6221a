"""Carry out a run: rounds, curve, commits, the last and the best state, and the references beside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from interfuse.client import ClientId
from interfuse.clients import TRAINING, Engine
from interfuse.data import Dataset, Partition, deal, is_read, tasks_of, testing_on_shares
from interfuse.data.inputs import shape_text
from interfuse.engines import Room, local
from interfuse.engines.ray import Joining, on_ray
from interfuse.errors import CallbackError, ConfigError, InterruptedRoundError, RunError, nearest
from interfuse.evaluation import ACROSS_TASKS, OwnMetric, draw, evaluate, evaluation, measure, similarity, try_metrics
from interfuse.federation import Federation, Saved, check
from interfuse.messages import Disclosure
from interfuse.method import Method, check_run, disclosures, own_schedules
from interfuse.methods import built_in, name_of
from interfuse.models import Builder, resolve
from interfuse.references import IN_MEMORY
from interfuse.runs.callbacks import Callback
from interfuse.runs.commits import Best, Commit
from interfuse.runs.config import (
    Execution,
    RunConfig,
    changed_sources,
    complete,
    differences,
    partition_values,
    plain,
    settings_of,
    to_toml,
)
from interfuse.runs.drawn import write_drawn
from interfuse.runs.folder import RunFolder
from interfuse.runs.protocols import said_of
from interfuse.runs.summary import BestRound, Point, Row, Scores, Summary
from interfuse.runs.summing import (
    Facts,
    class_metrics,
    point_of,
    scores_of,
    shown,
    stopped_early,
    summarise,
    untrained,
    with_metrics,
)
from interfuse.runs.verdict import concluded
from interfuse.setup import Serving, Setup, check_device, check_steps, with_class_names, with_settings
from interfuse.wire import Codecs


class Progress(Protocol):
    """Who wants to see how a run goes."""

    def begin(self, config: RunConfig, done: int) -> None:
        """A run begins, or goes on after ``done`` rounds."""

    def advance(self, row: Row) -> None:
        """A line was added to ``metrics.jsonl``."""

    def stage(self, text: str) -> None:
        """What is under way outside the rounds, such as the last evaluation; empty when it is over."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Nobody looks."""

    def begin(self, config: RunConfig, done: int) -> None: ...

    def advance(self, row: Row) -> None: ...

    def stage(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, eq=False)
class Given:
    """Objects that stand in for names of a configuration, or follow the run: what a file cannot say."""

    method: Method | None = None
    dataset: Dataset | Sequence[Dataset] | None = None
    builders: Sequence[Builder] | None = None
    public: Dataset | None = None
    partition: Partition | None = None
    metrics: Mapping[str, OwnMetric] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


REFERENCES = ("local", "pooled")
"""What can run beside a method."""

MOST_RESTARTS = 3
"""Clients that are lost more often than this in one round are taken for ones that cannot do it."""
EngineFactory = Callable[[Setup, int | None, Room], Engine]


def assemble(config: RunConfig, given: Given = Given()) -> Setup:
    """Data, shares, models and method of a configuration, checked.

    Raises:
        InterfuseError: naming the client and the field.
    """
    method = given.method or config.make_method()
    references = _references(config, method)
    check_device(config.device)
    named = [with_class_names(dataset, config.classes) for dataset in _datasets(config, given)]
    whole = [dataset.with_all_rows() if config.divide == "all" else dataset for dataset in named]
    cut = [dataset.with_train_rows(config.train_rows).with_test_rows(config.test_rows) for dataset in whole]
    found = [dataset.normalised(config.normalise).to(config.device) for dataset in cut]
    if len(found) > 1:
        _check_domains(found, [method, *(built_in()[name]() for name in references)])
    if given.builders is None and any(name.startswith(IN_MEMORY) for name in config.models):
        raise RunError("the models of this run were given as objects; give them again: models=[...]")
    if (of_classes := class_metrics(config)) and not found[0].classes:
        names = ", ".join(of_classes)
        raise ConfigError(f"metrics ({names}) are of classes, but the task is {found[0].task}; leave them out")
    metrics = config.own_metrics(given.metrics)
    try_metrics(metrics, found[0].classes)
    for schedule in own_schedules(method).values():
        schedule(0, 0)
    partition = given.partition or config.make_partition()
    datasets, shares = deal(
        found,
        partition,
        config.clients,
        config.seed,
        validation=config.validation,
        test=config.test,
        apart=not config.tasks.in_time,
    )
    if config.divide == "all":
        datasets, shares = testing_on_shares(datasets, shares)
    builders = given.builders or [resolve(name) for name in config.models]
    setup = Setup(
        method, datasets, shares,
        builders=[builders[i % len(builders)] for i in range(config.clients)],
        architectures=_architectures(config, datasets),
        width=config.fusion_width, seed=config.seed, device=config.device, numerics=config.numerics,
        devices=config.devices, overrides=config.client,
        extra_programs=partial(
            evaluation, mode=config.evaluation, own_metrics=metrics, across=ACROSS_TASKS & {*config.metrics}
        ),
        codecs=Codecs.parse(config.codecs), public_set=_public(config, given),
        initial=config.initial, sampling=config.sampling, tasks=config.tasks.within(config.rounds),
    )  # fmt: skip
    check(setup)
    if config.tasks.in_time:
        _check_arrival([method, *(alone for _, alone in references.values())], config.tasks.arrival)
    if "forgetting" in config.metrics or config.tasks.arrival == "dynamic":
        for dataset, share in zip(datasets, shares, strict=True):
            tasks_of(dataset, share)
    for reference, alone in references.values():
        check_steps(setup, [with_settings(alone, reference.client.get(client, {})) for client in setup.profiles])
    check_run(method, list(setup.profiles), config.rounds)
    return setup


def _datasets(config: RunConfig, given: Given) -> Sequence[Dataset]:
    if given.dataset is None:
        if any(name.startswith(IN_MEMORY) for name in config.data_names):
            names = ", ".join(config.data_names)
            raise RunError(f"the data of this run was given as an object ({names}); give it again: data=...")
        if config.read and not any(is_read(one) for one in (*config.data_names, config.public) if one):
            raise ConfigError(f"read says how files are read, but data is {', '.join(config.data_names)}: leave it out")
        return [config.load(name) for name in config.data_names]
    return [given.dataset] if isinstance(given.dataset, Dataset) else given.dataset


def _public(config: RunConfig, given: Given) -> Dataset | None:
    if config.public is None:
        return None
    if given.public is None and config.public.startswith(IN_MEMORY):
        raise RunError(
            f"the public data of this run was given as an object ({config.public}); give it again: public=..."
        )
    return (given.public or config.load(config.public)).normalised(config.normalise).to(config.device)


def _check_arrival(methods: Sequence[Method], arrival: str) -> None:
    """Check that no method takes all rows at once where these come in time.

    Raises:
        ConfigError: one does.
    """
    for method in methods:
        if Disclosure.DATA in disclosures(method):
            raise ConfigError(
                f"{name_of(type(method))} takes all rows before the first round, and with tasks.arrival = {arrival!r} "
                "most have not come by then: leave it out"
            )


def _check_domains(datasets: Sequence[Dataset], methods: Sequence[Method]) -> None:
    """Check that no method brings the data of all clients to one place, which has to be one data set."""
    for method in methods:
        if Disclosure.DATA in disclosures(method):
            names = ", ".join(dataset.name for dataset in datasets)
            raise ConfigError(
                f"{name_of(type(method))} trains on the data of all clients together, but they have several data sets "
                f"({names}); take another method, or leave it out of beside"
            )


def _architectures(config: RunConfig, datasets: Sequence[Dataset]) -> list[str]:
    """Names of the clients' models; on samples of different shapes one builder makes different architectures."""
    names = [config.models[i % len(config.models)] for i in range(config.clients)]
    shapes = [shape_text(dataset.shape) for dataset in datasets]
    if len(set(shapes)) == 1:
        return names
    return [f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)]


def execute(
    config: RunConfig,
    path: Path,
    *,
    given: Given = Given(),
    progress: Progress | None = None,
    engine: EngineFactory | None = None,
) -> Summary:
    """Begin a run in a new folder and carry it out. Returns the summary.

    Raises:
        InterfuseError: the configuration cannot work, a client failed, or the folder cannot be written.
    """
    setup = assemble(config, given)
    folder = RunFolder(path)
    folder.create(to_toml(complete(config, setup.method)), setup.readings)
    return _finish(folder.config(), setup, folder, given, progress or Silent(), engine)


def resume(
    path: Path,
    *,
    given: Given = Given(),
    rounds: int | None = None,
    execution: Mapping[str, Any] = {},
    progress: Progress | None = None,
    engine: EngineFactory | None = None,
) -> Summary:
    """Go on with a run as if nothing had happened. Returns the summary.

    Args:
        execution: What is carried out otherwise than before, by the names of :class:`Execution`; None: as before.
        rounds: Of the whole run, where it should have more than it was begun with, finished or not. It becomes the run
            that had so many from its beginning, to the bit: it goes on from the last commit before its former last
            round, whose finish and last evaluation a longer run does not have there.

    Raises:
        RunError: there is no run, its configuration or a file of its code was changed since (names the difference), or
            it cannot be extended.
    """
    folder = RunFolder(path)
    written = folder.config()
    if folder.between_parties:
        raise RunError(f"{path} is carried out between parties: `interfuse coordinate` with its recipe goes on with it")
    config = written if rounds is None else _with_rounds(written, rounds, path)
    config = config.model_copy(update={"execution": config.execution.but(execution)})
    progress = progress or Silent()
    finished, found = folder.summary(), folder.find_commit()
    commit = found.commit
    longer = config.rounds > written.rounds
    damaged = finished is not None and bool(found.notices)
    if commit is not None:
        folder.check_config(config, commit)
        longer = config.rounds > commit.settings["rounds"]
    for text in folder.notices():
        progress.note(text)
    if given.method is not None:
        settings = config.settings | dict.fromkeys(config.unset)
        if changed := differences(settings, settings_of(given.method), "settings."):
            raise RunError(f"the given method is not that of {path / 'config.toml'}: " + "; ".join(changed))
    if given.partition is not None and (
        changed := differences(config.partition, plain(partition_values(given.partition)), "partition.")
    ):
        raise RunError(f"the given partition is not that of {path / 'config.toml'}: " + "; ".join(changed))
    if finished is not None and not longer and not damaged:
        return finished
    if damaged and not longer:
        progress.note(f"what is damaged is made again, from round {0 if commit is None else commit.round} on")
    if changed := changed_sources(config):
        raise RunError(
            f"{', '.join(changed)} changed since {path} began, so it would go on as another run: put back what was "
            "there, or begin a new run"
        )
    if longer:
        _check_extension(folder, config, finished)
    setup = assemble(config, given)
    if longer or damaged:
        folder.reopen(to_toml(config))
    if said := folder.restore_data(setup.readings):
        progress.note(said)
    return _finish(config, setup, folder, given, progress, engine)


def _with_rounds(config: RunConfig, rounds: int, path: Path) -> RunConfig:
    if rounds < config.rounds:
        raise RunError(
            f"{path} has {config.rounds} rounds, and none is taken back: rounds = {rounds} should be the number of all "
            f"rounds, those that it has included, such as {config.rounds + rounds}"
        )
    return config.model_copy(update={"rounds": rounds})


def _check_extension(folder: RunFolder, config: RunConfig, finished: Summary | None) -> None:
    """Check that further rounds make of a run the one that had them from its beginning.

    Raises:
        RunError: they do not, or no commit is left to go on from.
    """
    if finished is not None and finished.stopped is not None:
        raise RunError(
            f"{folder.path} cannot be extended: {finished.stopped}, and it would be with more rounds too; "
            "run it anew without stop, or with more patience"
        )
    commit = folder.last_commit(config.rounds)
    if commit is not None and commit.saved.rounds_read:
        raise RunError(
            f"{folder.path} cannot be extended: its method goes by the number of all rounds (server.rounds), so that a "
            f"run of {config.rounds} rounds is another one from its beginning; run it anew"
        )


def _finish(
    config: RunConfig, setup: Setup, folder: RunFolder, given: Given, progress: Progress, engine: EngineFactory | None
) -> Summary:
    with folder.locked():
        make = engine or _engine_of(config.execution, progress)
        hosted = make(setup, config.execution.workers, Room(config.execution.client_memory, folder.path))
        try:
            summary = _carried_out(config, setup, folder, progress, hosted, given.callbacks)
        finally:
            hosted.close()
        if summary.stopped is not None:
            progress.note(str(summary.stopped))
        same = config.model_copy(update={"rounds": summary.rounds, "stop": None})
        beside = {
            name: begin_or_resume(
                folder.path / "beside" / name, one, replace(given, method=method, callbacks=()), progress, engine
            )
            for name, (one, method) in _references(same, setup.method).items()
        }
        summary = summary.model_copy(update={"beside": beside})
        summary = folder.write_summary(concluded(summary, folder.metrics()))
    for callback in given.callbacks:
        with _naming(callback, "on_end", "The run is finished"):
            callback.on_end(summary)
    return summary


def _engine_of(execution: Execution, progress: Progress) -> EngineFactory:
    """What carries the clients of a run."""
    if execution.engine == "local":
        return local
    return partial(on_ray, joining=Joining(execution.ray_address, execution.ray_gpus, say=progress.note))


def _carried_out(
    config: RunConfig,
    setup: Setup,
    folder: RunFolder,
    progress: Progress,
    engine: Engine,
    callbacks: Sequence[Callback],
) -> Summary:
    """Carry a run out. Where its engine lost clients, it goes on from the last commit, as after a kill."""
    lost: Counter[int] = Counter()
    while True:
        run = _Run(config, setup, folder, progress, engine, callbacks)
        error: InterruptedRoundError | None = None
        try:
            return run.carry_out()
        except InterruptedRoundError as found:
            error = found
        at = run.federation.round
        while error is not None:
            lost[at] += 1
            if lost[at] > MOST_RESTARTS:
                raise RunError(
                    f"{error}. That was time {lost[at]} in round {at}: is there enough memory for "
                    "so many workers? What was committed is kept; the run can be resumed, with fewer workers too"
                ) from error
            progress.note(f"{error}; everybody goes back to the last commit")
            error = _gone_back(engine)


def _gone_back(engine: Engine) -> InterruptedRoundError | None:
    """Put all clients back to their beginning; returns what was lost meanwhile."""
    try:
        engine.restore({})
    except InterruptedRoundError as error:
        return error
    return None


@contextmanager
def _naming(callback: Callback, hook: str, standing: str) -> Iterator[None]:
    """Say which callback an exception comes from, and how the run stands."""
    try:
        yield
    except Exception as error:
        text = f"{type(callback).__name__}.{hook} failed: {type(error).__name__}: {error}"
        raise CallbackError(f"callback {text}. {standing}") from error


def conduct(
    config: RunConfig, setup: Serving, folder: RunFolder, engine: Engine, progress: Progress, *, again: int = 0
) -> Summary:
    """Carry out a run whose clients live elsewhere, or go on with it from its last commit. Returns the summary.

    No references run beside it.

    Args:
        again: Up to this round everything was begun before: each round is committed, so that none is done a third time.
    """
    with folder.locked():
        summary = _Run(config, setup, folder, progress, engine, again=again).carry_out()
        summary = summary.model_copy(update={"beside": {}})
        return folder.write_summary(concluded(summary, folder.metrics()))


def _references(config: RunConfig, method: Method) -> dict[str, tuple[RunConfig, Method]]:
    """The runs beside a method, with their own: the same data, seed and models, the steps and rates of the method.

    Raises:
        ConfigError: a reference is unknown, or cannot take what it should share with the method.
    """
    found = {}
    for name in config.beside:
        if name not in REFERENCES:
            raise ConfigError(f"beside: {name!r} is no reference: {nearest(name, REFERENCES)}")
        stands_in = method.references.get(name, name)
        kind = built_in()[stands_in]
        known = {f.name for f in fields(kind)}

        def shared(values: Mapping[str, Any], known: set[str] = known) -> dict[str, Any]:
            return {key: value for key, value in values.items() if key in known}

        settings = shared({f.name: getattr(method, f.name) for f in fields(method)} | dict(method.alone()))
        try:
            reference = kind.configure(settings)
        except ConfigError as error:
            text = f"beside = {name!r} takes settings of equal names from the method: {error}; or use beside = []"
            raise ConfigError(text) from None
        own = {client: shared(values) for client, values in config.client.items()}
        alike = {"method": stands_in, "settings": settings_of(reference), "client": own, "beside": (), "codecs": {}}
        # whatever a protocol sets is in what is shared
        found[name] = config.model_copy(update=alike | {"unset": (), "protocol": None}), reference
    return {name: (run, own) for name, (run, own) in found.items() if run.method != config.method}


def begin_or_resume(
    path: Path, config: RunConfig, given: Given, progress: Progress, engine: EngineFactory | None = None
) -> Summary:
    """Carry out a configuration, or go on with it where it was begun, with fewer rounds too. Returns the summary."""
    if (path / "config.toml").exists():
        return resume(
            path,
            given=given,
            rounds=config.rounds,
            execution=config.execution.model_dump(),
            progress=progress,
            engine=engine,
        )
    return execute(config, path, given=given, progress=progress, engine=engine)


@dataclass
class _Run:
    """A run under way."""

    config: RunConfig
    setup: Serving
    folder: RunFolder
    progress: Progress
    engine: Engine
    callbacks: Sequence[Callback] = ()
    points: list[Row] = field(default_factory=list)
    best: Best | None = None
    committed: float = 0.0
    committed_round: int = -1
    idle: set[ClientId] = field(default_factory=set)
    """Clients that made no step so far."""
    again: int = 0
    """Up to this round each is committed."""

    def carry_out(self) -> Summary:
        """All rounds that are left, then the full evaluation of the last and the best state."""
        found = self.folder.find_commit(self.config.rounds)
        if (commit := found.commit) is not None:
            commit.check_data(self.setup.digests, str(self.folder.path), ", ".join(self.config.data_names))
            self.folder.go_back_to(commit)
        for text in found.notices:
            self.progress.note(text)
        ledger = self.folder.open_at(commit)
        self.federation = Federation(self.setup, self.engine, ledger, self.config.rounds)
        done = 0 if commit is None else commit.round
        self.idle = {*untrained(self.folder.metrics(), self.config.clients)}
        self.progress.begin(self.config, done)
        for callback in self.callbacks:
            with _naming(callback, "on_start", self._standing(done)):
                callback.on_start(self.config, done)
        if commit is None:
            self._round(self.federation.start, first=True)  # a method that refuses these clients has better advice
            fits = self.setup.method.notice(self.setup.profiles)
            data = (*self.setup.data_notices, *self.setup.reading_notices)
            if said := said_of(plain(self.config.model_dump())):
                self.progress.note(said)
            for notice in (*([] if fits is None else [fits]), *data, *self.setup.model_notices):
                self.progress.note(f"{notice.text} Try: {notice.remedy}")
        else:
            self._go_back(commit)
        while self.federation.round < self.federation.rounds:
            self._round(self.federation.run_round)
        if self.committed_round != self.federation.round:
            self._commit()
        if self.config.evaluation != "none":
            self.progress.stage("evaluating the last and the best round on everything")
        last = self._measure()
        self._draw()
        best = self._measure_best(last)
        self.progress.stage("")
        self.folder.append_entries(ledger.drain())
        return summarise(self.config, self.folder, self.folder.metrics(), ledger, Facts.of(self.setup), last, best)

    def _go_back(self, commit: Commit) -> None:
        self.federation.load(self.folder.commits, commit.round, commit.saved)
        self.best = commit.best
        self._take(*self.folder.metrics())
        self.committed, self.committed_round = time.monotonic(), commit.round

    def _round(self, work: Callable[[], None], *, first: bool = False) -> None:
        exchange = self.federation.exchange
        exchange.seconds.clear()
        exchange.failures.clear()
        exchange.steps.clear()
        exchange.left_out.clear()
        began = time.perf_counter()
        work()
        worked = time.perf_counter() - began
        seconds = {"server": worked - exchange.seconds["calls"], **exchange.seconds}
        seconds |= {f"{TRAINING}{name}, server": spent for name, spent in self.federation.server.training.items()}
        totals = exchange.ledger.totals()
        row: dict[str, object] = {
            "round": self.federation.round,
            "uplink": totals.uplink,
            "downlink": totals.downlink,
            "steps": {"clients": exchange.steps.total(), "server": self.federation.server.steps},
            "first_steps": sorted(self.idle & {client for client, steps in exchange.steps.items() if steps}),
            "left_out": {
                "clients": {client: rows for client, rows in sorted(exchange.left_out.items()) if rows},
                "server": self.federation.server.left_out,
            },
            "failures": [{"client": f.client, "kind": f.kind, "reason": f.reason} for f in exchange.failures],
            "outstanding": len(exchange.outstanding),
            "virtual_seconds": dict(exchange.clock.times),
        }
        evaluated = time.perf_counter()
        last, improved = self.federation.round == self.federation.rounds, False
        if first or last or self.federation.round % self.config.eval_every == 0:
            point = row["accuracy"] = point_of(
                evaluate(self.federation, full=False, all_own=self.config.curve == "all")
            )
            improved = not first and self._improves(point)
        if first or last:
            row["similarity"] = similarity(self.federation)
        if type(self.setup.method).shown is not Method.shown:
            row["shown"] = shown(self.setup.method, self.federation.server)
        written = time.perf_counter()
        if improved:
            assert self.best is not None
            self.best = replace(self.best, saved=self.federation.save(self.folder.commits))
        seconds |= {"evaluation": written - evaluated, "commit": time.perf_counter() - written}
        line = Row.model_validate(row | {"seconds": {name: round(value, 6) for name, value in seconds.items()}})
        self.folder.append(line, exchange.ledger.drain())
        self.idle -= {*line.first_steps}
        self._take(line)
        self.progress.advance(line)
        if first or self._commit_is_due():
            self._commit()
        for callback in self.callbacks:
            try:
                with _naming(callback, "on_round", self._standing(line.round)):
                    callback.on_round(line)
            except CallbackError:
                if self.committed_round != self.federation.round:
                    self._commit()
                raise

    def _standing(self, done: int) -> str:
        return f"What was done is kept: {self.folder.going_on} goes on after round {done}"

    def _take(self, *rows: Row) -> None:
        """Take points of the curve, which may tell that the next round is the last."""
        self.points += [row for row in rows if row.accuracy]
        if stopped := stopped_early(self.config, self.points):
            self.federation.rounds = stopped.round

    def _improves(self, point: Point) -> bool:
        known = [value for value in point.validation if value == value]
        mean = sum(known) / len(known) if known else 0.0
        if known and (self.best is None or mean > self.best.validation_accuracy):
            self.best = Best(self.federation.round, mean, Saved((), {}))
            return True
        return False

    def _commit_is_due(self) -> bool:
        execution = self.config.execution
        if self.federation.round <= self.again:
            return True
        if execution.commit_rounds is not None:
            return self.federation.round % execution.commit_rounds == 0
        return time.monotonic() - self.committed >= execution.commit_seconds

    def _commit(self) -> None:
        commit = Commit(
            self.federation.round, self.federation.save(self.folder.commits), self.folder.files(),
            self.config.identity(), self.setup.digests, self.best,
        )  # fmt: skip
        self.folder.write_commit(commit)
        self.committed, self.committed_round = time.monotonic(), self.federation.round

    def _measure(self) -> Scores:
        """Evaluate the state as it is on everything."""
        scores = scores_of(evaluate(self.federation, full=True))
        if not class_metrics(self.config):
            return scores
        return with_metrics(scores, self.config, measure(self.federation))

    def _draw(self) -> None:
        """Write what clients draw of each class, in the state as it is."""
        pictures, failed = ({}, []) if self.config.evaluation == "none" else draw(self.federation)
        write_drawn(self.folder.path, pictures)
        for text in failed:
            self.progress.note(text)

    def _measure_best(self, last: Scores) -> BestRound | None:
        """Evaluate the best state on everything."""
        if self.best is None:
            return None
        if self.best.round != self.federation.round:
            self.federation.load(self.folder.commits, self.best.round, self.best.saved)
            last = self._measure()
        return BestRound(
            round=self.best.round,
            validation_accuracy=self.best.validation_accuracy,
            **last.model_dump(exclude_unset=True),
        )
