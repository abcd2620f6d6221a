"""The coordinator: waits for nodes, has a run carried out, and goes on from the last commit after whatever happens."""

from __future__ import annotations

import secrets
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from interfuse import report
from interfuse.clock import UNIFORM
from interfuse.coordination.record import Participant, Record, read_record
from interfuse.coordination.watching import Watch
from interfuse.data import Dataset, numbered
from interfuse.engines.parties.carrier import Carrier
from interfuse.engines.parties.contract import (
    LIBRARY,
    MESSAGE,
    WIRE,
    Contract,
    interface,
    labels_digest,
    names_digest,
    rows_digest,
)
from interfuse.engines.parties.hub import Hub, Member
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.remote import Fault, Patience, Remote
from interfuse.engines.parties.setups import RemoteSetup, no_labels
from interfuse.errors import ClientError, ConfigError, InterruptedRoundError, RunError
from interfuse.federation import carries_features, check_codecs, messages_of
from interfuse.messages import Disclosure
from interfuse.method import Method, check_run, disclosures, own_code, retained
from interfuse.models import Builder, resolve
from interfuse.result import Result
from interfuse.runs import NETWORK_FILE, Progress, RunConfig, conduct
from interfuse.runs.config import changed_in, complete, settings_of, to_toml
from interfuse.runs.folder import RunFolder
from interfuse.runs.loop import MOST_RESTARTS
from interfuse.setup import check_fusion, own_shape, with_class_names
from interfuse.wire import Codecs

TEST_ROWS = 1000
"""Rows of a public test set between parties, unless the recipe says otherwise."""


@dataclass(frozen=True)
class Terms:
    """How a run between parties is carried out. Results do not depend on it, unless nodes are lost.

    Attributes:
        carrier: Carries the messages.
        nodes: How many nodes begin.
        minimum: How many must remain; a node that fails is sent away while so many do. None: all.
        classes: Where no public test set says how many there are.
        metrics: ``HOST:PORT`` for Prometheus.
        simulated: The nodes are clients of a simulation, with shares of one data set; the report says so.
    """

    carrier: Carrier
    nodes: int
    minimum: int | None = None
    classes: int | None = None
    patience: Patience = field(default_factory=Patience)
    message_bytes: int = MESSAGE
    metrics: str | None = None
    simulated: bool = False

    @property
    def least(self) -> int:
        """How many nodes must remain."""
        return self.nodes if self.minimum is None else self.minimum


def between_parties(config: RunConfig, nodes: int) -> RunConfig:
    """A recipe as it is carried out between parties: their number, no references beside it, a small public test set.

    Raises:
        ConfigError: the recipe asks for what parties do not do.
    """
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes}: at least one is needed")
    if "others" in config.metrics:
        raise ConfigError(
            "metrics = others: no party's test rows go to another one, so nobody else's model can answer them: leave "
            "it out, or measure it in a simulation"
        )
    if config.metrics:
        raise ConfigError("metrics beyond accuracy need statistics of the parties' own data: use metrics = []")
    if config.devices != UNIFORM:
        raise ConfigError("devices: between parties time is real; virtual devices are for simulations, leave them out")
    if config.numerics.together > 1:
        raise ConfigError(f"numerics.together = {config.numerics.together}: each party trains by itself, use 1")
    if config.execution.engine != "local":
        raise ConfigError(
            f"execution.engine = {config.execution.engine!r}: between parties every client is at its own node; leave "
            "it out, and what belongs to it"
        )
    if config.train_rows is not None:
        raise ConfigError("train_rows: between parties everybody's rows are its own; leave it out")
    _own_test(config)
    if config.client and max(config.client) >= nodes:
        raise ConfigError(f"settings for client {max(config.client)}, but clients are 0 to {nodes - 1}")
    rows = config.test_rows or TEST_ROWS
    return config.model_copy(
        update={"clients": nodes, "beside": (), "test_rows": rows if config.evaluation == "shared" else None}
    )


def _own_test(config: RunConfig) -> float:
    """The fraction of its rows that a party tests on."""
    if config.test == "source" or config.divide == "all":
        raise ConfigError(
            "test = 'source' and divide = 'all', which a protocol may set, are for simulations: between parties "
            "everybody's rows are its own. Set divide = 'train', and test to the fraction that a party tests on"
        )
    return config.test


def coordinate(recipe: RunConfig, path: Path, terms: Terms, progress: Progress) -> Result:
    """Carry out a recipe with nodes, or go on with it in its folder, and write the report.

    Raises:
        InterfuseError: the recipe cannot work, the folder holds another run, or too few nodes remain.
    """
    config = between_parties(recipe, terms.nodes)
    method = config.make_method()
    if Disclosure.DATA in disclosures(method):
        raise ConfigError(f"{config.method} brings everybody's data to one place: that is not for parties")
    for name, reference in own_code(method).items():
        raise ConfigError(
            f"{name} = {reference!r}: between parties no code travels; give a number, Exponential or Cosine for a "
            "rate, or the name of a built-in model"
        )
    for client, own in config.client.items():
        for name, value in own_shape(method, own).items():
            raise ConfigError(
                f"client {client}: {name} = {value!r}: between parties all models have the same {name}, since a node "
                "describes its model before it has a number; leave it to the common settings"
            )
    check_codecs(Codecs.parse(config.codecs), method)
    check_run(method, range(terms.nodes), config.rounds)
    if not 1 <= terms.least <= terms.nodes:
        raise ConfigError(f"--minimum {terms.least}: between 1 and the number of nodes, {terms.nodes}")
    folder, record = RunFolder(path), read_record(path)
    if changed := changed_in(path, config):
        vain = record is not None and not record.nodes and folder.last_commit() is None
        remedy = f". No node has begun it: stop its coordinator and remove it (rm -r {shlex.quote(str(path))})"
        advice = remedy if vain else ""
        raise ConfigError(f"{path} holds another run: " + "; ".join(changed) + advice)
    if folder.summary() is None:
        public = Public.of(config, terms.classes)
        if record is None:
            if not (path / "config.toml").exists():
                folder.create(to_toml(complete(config, method)))
            elif folder.last_commit() is not None:
                raise RunError(
                    f"{path / NETWORK_FILE} is gone, so nodes cannot find what they saved: put it back from a copy, or "
                    "begin another run (--out)"
                )
            record = Record(run=secrets.token_hex(8), classes=public.classes, simulated=terms.simulated)
            record.write(path)
        _Coordinator(complete(config, method), method, folder, record, public, terms, progress).carry_out()
        report.write(path)
    return Result(path)


@dataclass(frozen=True)
class Public:
    """What everybody knows: the classes, and where there are any the labels of the public test set and public data."""

    classes: int
    class_names: list[str]
    labels: Tensor
    data: Dataset | None

    @property
    def named(self) -> bool:
        """Whether classes have names, not only numbers."""
        return self.class_names != list(numbered(self.classes))

    @classmethod
    def of(cls, config: RunConfig, classes: int | None) -> Public:
        """What a recipe and ``--classes`` say.

        Raises:
            ConfigError: neither says how many classes there are, or they contradict each other or the public test set.
        """
        stated = list(config.classes)
        if stated and classes not in (None, len(stated)):
            raise ConfigError(f"--classes {classes}, but the recipe names {len(stated)} classes")
        public = None if config.public is None else config.load(config.public).to(config.device)
        if config.evaluation != "shared":
            if not stated and classes is None:
                raise ConfigError(
                    "classes: how many are there? Without a public test set the recipe has to name them, as in classes "
                    '= ["healthy", "ill"], or --classes says their number'
                )
            names = stated or list(numbered(classes or 0))
            return cls(len(names), names, no_labels(), public)
        if len(config.data_names) != 1:
            raise ConfigError("data: name one public test set, or set evaluation = 'own' or 'none'")
        dataset = config.load(config.data_names[0]).with_test_rows(config.test_rows)
        if not len(dataset.y_test):
            raise ConfigError(f"data: {dataset.name} has no test rows; set evaluation = 'own' or 'none'")
        if not dataset.classes:
            raise ConfigError(f"data: the task of {dataset.name} is {dataset.task}; parties need classes so far")
        if classes not in (None, dataset.classes):
            raise ConfigError(f"--classes {classes}, but {dataset.name} has {dataset.classes}")
        return cls(dataset.classes, list(with_class_names(dataset, config.classes).class_names), dataset.y_test, public)


def make_contract(
    config: RunConfig, method: Method, run: str, public: Public, message_bytes: int = MESSAGE
) -> Contract:
    """What nodes are offered."""
    settings = settings_of(method)
    rule = settings.get("weights")
    shared = config.evaluation == "shared"
    return Contract(
        run=run, library=LIBRARY, wire=WIRE, method=config.method,
        settings={name: value for name, value in settings.items() if value is not None},
        unset=tuple(name for name, value in settings.items() if value is None), client_settings=config.client,
        codecs=config.codecs, interface=interface(method), discloses=tuple(sorted(disclosures(method))),
        retains=tuple(sorted(retained(method))), weights=None if rule is None else str(rule), rounds=config.rounds,
        fusion_width=config.fusion_width, classes=public.classes, seed=config.seed, numerics=config.numerics,
        validation=config.validation, test=_own_test(config), evaluation=config.evaluation,
        public_test=config.data_names[0] if shared else "", test_rows=config.test_rows,
        test_labels=labels_digest(public.labels) if shared else "",
        public_data="" if public.data is None else public.data.name,
        public_digest="" if public.data is None else rows_digest(public.data),
        class_names=names_digest(run, public.class_names) if public.named else "",
        initial=config.initial, sampling=config.sampling, tasks=config.tasks, normalise=config.normalise,
        message_bytes=message_bytes,
    )  # fmt: skip


class _Coordinator:
    """A run under way."""

    def __init__(
        self, config: RunConfig, method: Method, folder: RunFolder, record: Record, public: Public, terms: Terms,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._config, self._method, self._folder = config, method, folder
        self._record, self._public, self._terms = record, public, terms
        self._contract = make_contract(config, method, record.run, public, terms.message_bytes)
        self._events = Events(folder.path / "coordinator.jsonl", progress.note)
        known = {name: node.facts for name, node in record.nodes.items()}
        self._hub = Hub(
            self._contract, method, terms.nodes, terms.carrier, self._events,
            message_bytes=terms.message_bytes, known=known, builders=self._builders(),
        )  # fmt: skip
        self._watch = Watch(config, folder.path, record, self._hub, progress)
        self._restarts: Counter[tuple[int, int]] = Counter()
        self._again = 0

    def carry_out(self) -> None:
        """Attempt after attempt, until the run is finished or cannot be."""
        reason, finished = "the coordinator stopped", False
        try:
            if self._terms.metrics is not None:
                self._watch.serve(self._terms.metrics)
            for name, node in self._record.nodes.items():
                if node.gone is not None:
                    self._hub.ban(name, node.gone)
            self._events.add("listens", address=self._hub.carrier.address, run=self._record.run)
            members = self._gather(None)
            while not self._attempt(members):
                members = self._gather(self._terms.patience.back)
            reason, finished = "the run is finished", True
            self._events.add("finished", rounds=self._config.rounds, attempts=self._record.attempt)
        except RunError as error:
            reason = "the coordinator stopped; its log says why"
            self._events.add("stops", reason=error)
            raise
        finally:
            self._watch.enter("finished" if finished else "stopped")
            self._hub.close(reason, finished=finished)
            self._events.close()

    def _gather(self, seconds: float | None) -> dict[int, Member]:
        """Wait until everybody who takes part is there, or has been away for so long."""
        began = time.monotonic()
        shown: list[str] = []
        self._watch.enter("waiting for nodes")
        while True:
            self._hub.note_unheard()
            there = self._hub.connected()
            wanted = sorted(self._record.there()) or None
            if there != shown:
                shown = there
                missing = [] if wanted is None else sorted(set(wanted) - set(there))
                self._events.add(
                    "nodes", there=f"{len(there)}/{self._terms.nodes if wanted is None else len(wanted)}",
                    names=", ".join(there), missing=", ".join(missing),
                )  # fmt: skip
                self._watch.update(at_once=True)
            if wanted is None and len(there) >= self._terms.nodes:
                self._admit(there)
                continue
            if wanted is not None and set(wanted) <= set(there):
                return self._members(wanted)
            if wanted is not None and seconds is not None and time.monotonic() - began > seconds:
                for name in sorted(set(wanted) - set(there)):
                    self._send_away(name, "lost", f"not back within {seconds:g} seconds")
                continue
            time.sleep(0.02)

    def _admit(self, names: list[str]) -> None:
        """Give clients their numbers, in the order of their names; from now on nobody else joins."""
        with self._hub.lock:
            facts = {name: self._hub.members[name].facts for name in names}
        for client, name in enumerate(sorted(facts)):
            self._record.nodes[name] = Participant(client=client, facts=facts[name])
        self._record.write(self._folder.path)
        self._hub.began(facts)

    def _members(self, names: list[str]) -> dict[int, Member]:
        with self._hub.lock:
            members = {self._record.nodes[name].client: self._hub.members[name] for name in names}
        for client, member in members.items():
            member.client = client
        return members

    def _attempt(self, members: Mapping[int, Member]) -> bool:
        """Carry the run on from its last commit; whether it is finished."""
        self._record.attempt += 1
        self._record.write(self._folder.path)
        setup = self._setup()
        if carries_features(messages_of(self._method)):
            check_fusion(setup.profiles)
        engine = Remote(
            self._hub, setup, members, self._record.attempt, self._terms.patience,
            message_bytes=self._terms.message_bytes, watch=self._watch.update, marked=self._marked,
        )  # fmt: skip
        self._watch.engine = engine
        try:
            engine.begin()
            conduct(self._config, setup, self._folder, engine, self._watch, again=self._again)
            return True
        except (InterruptedRoundError, ClientError) as error:
            if isinstance(error, ClientError) and error.client is not None:
                engine.faults.setdefault(error.client, Fault("failed", str(error)))
            if not engine.faults:
                raise
            self._events.add("interrupted", round=self._watch.round, reason=error)
            self._again = self._watch.round + 1
            for client, fault in sorted(engine.faults.items()):
                self._judge(client, members[client].name, fault)
            return False

    def _marked(self, marks: Mapping[int, str]) -> None:
        """Keep how far the nodes' audit logs are, as they say with a commit."""
        for node in self._record.there().values():
            if node.client in marks:
                node.audit = marks[node.client]
        self._record.write(self._folder.path)

    def _judge(self, client: int, name: str, fault: Fault) -> None:
        """What becomes of a node that failed: one that was started anew goes back with everybody, others go."""
        self._watch.failed(name, fault.kind)
        if fault.kind == "restarted":
            self._restarts[client, self._watch.round] += 1
            if self._restarts[client, self._watch.round] <= MOST_RESTARTS:
                self._events.add("goes back", node=name, reason=fault.reason)
                return
        self._send_away(name, fault.kind, fault.reason)

    def _send_away(self, name: str, kind: str, reason: str) -> None:
        """Go on without a node.

        Raises:
            RunError: too few would remain.
        """
        remaining = len(self._record.there()) - 1
        if remaining < self._terms.least:
            raise RunError(
                f"node {name}: {reason}. {remaining} nodes remain, at least {self._terms.least} are needed "
                "(--minimum). Nothing that was committed is lost: once this is mended, the same command goes on"
            )
        self._record.nodes[name].gone = f"{kind}: {reason}"
        self._record.write(self._folder.path)
        self._events.add("goes on without", node=name, kind=kind, reason=reason)
        self._hub.ban(name, reason)

    def _setup(self) -> RemoteSetup:
        facts = {node.client: node.facts for node in self._record.nodes.values()}
        return RemoteSetup(
            self._contract, self._public.data, self._method, facts, self._public.labels, self._builders(),
            self._public.class_names, self._config.device,
        )  # fmt: skip

    def _builders(self) -> dict[str, Callable[[], Builder]]:
        """What the server can build, by the name of the architecture."""
        return {name: partial(resolve, name) for name in self._config.models}
