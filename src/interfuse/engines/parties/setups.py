"""A federation as each side knows it: a node knows itself, the coordinator what nodes say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.clock import Clock, WallClock
from interfuse.data import (
    IID,
    Classification,
    ClientData,
    Dataset,
    Inputs,
    PublicData,
    Sampling,
    Share,
    Sizes,
    Task,
    Tasks,
    make_shares,
    numbered,
    tasks_of,
)
from interfuse.engines.parties.contract import Contract, Facts, Shapes, labels_digest, names_digest
from interfuse.engines.parties.stopwatch import Stopwatch
from interfuse.engines.parties.vendor import Vendor
from interfuse.errors import ClientError, ConfigError, ModelError, Notice
from interfuse.evaluation import common_test, evaluation_on
from interfuse.handler import Program, programs
from interfuse.messages import Dims
from interfuse.method import Method
from interfuse.models import Builder, Given, Initial, SplitModel, given_digest, initial_key, measure
from interfuse.models.trial import Trial, check_rows, trial
from interfuse.numerics import Numerics
from interfuse.randomness import Key
from interfuse.setup import as_inputs, block_sizes, make_model, with_settings
from interfuse.wire import Codecs


def task_of(contract: Contract) -> Task:
    """What targets and outputs are. Classes of a contract have numbers only."""
    return Classification(numbered(contract.classes))


def dims_of(contract: Contract, clients: int, d: int | None) -> Dims:
    """Sizes bound for the run, as :attr:`interfuse.setup.Setup.dims` has them."""
    return Sizes(task_of(contract), clients=clients, **({} if d is None else {"d": d}))


def programs_between(contract: Contract, labels: Tensor, clients: int, method: Method) -> dict[str, Program]:
    """All programs by path, for a method with these hyperparameters; every client's common test set is the public one.

    Args:
        labels: Of the public test set.
    """
    tests = dict.fromkeys(range(clients), common_test(task_of(contract), labels, contract.public_test))
    return programs(method, "method") | evaluation_on(tests, contract.evaluation)(method)


def own_share(contract: Contract, dataset: Dataset) -> Share:
    """A vendor's rows as training, validation and test share: what a simulation with one data set a client makes."""
    key = ("data set", dataset.name)
    apart = not contract.tasks.in_time
    share = make_shares(dataset, IID(), 1, contract.seed, contract.validation, contract.test, key, apart=apart)[0]
    if contract.tasks.arrival == "dynamic":
        tasks_of(dataset, share)
    return share


@dataclass(frozen=True, eq=False)
class Holdings:
    """What a node has before it is offered a contract.

    Attributes:
        dataset: Its rows, and the public test set.
        public: Loads the public data, where it has some.
        share: Divides its rows.
    """

    dataset: Dataset
    builder: Builder
    public: Callable[[], Dataset | None]
    share: Callable[[Contract, Dataset], Share] = own_share


def vendors_own(vendor: Vendor) -> Holdings:
    """What a vendor's file names."""
    public = partial(vendor.data.load_public, vendor.folder)
    return Holdings(vendor.data.load(vendor.folder), vendor.model.builder(vendor.folder), public)


@dataclass(frozen=True, eq=False)
class _OfContract:
    """What either side has from the contract.

    Attributes:
        public_set: The public data that it names, as this side has it.
    """

    contract: Contract
    public_set: Dataset | None

    @property
    def seed(self) -> int:
        return self.contract.seed

    @property
    def numerics(self) -> Numerics:
        return self.contract.numerics

    @property
    def initial(self) -> Initial:
        return self.contract.initial

    @property
    def task(self) -> Task:
        return task_of(self.contract)

    @property
    def public(self) -> PublicData | None:
        known = self.public_set
        return None if known is None else PublicData(known, partial(as_inputs, known, self.numerics))

    @cached_property
    def codecs(self) -> Codecs:
        return Codecs.parse(self.contract.codecs)

    @cached_property
    def _given(self) -> Given:
        return Given()


@dataclass(frozen=True, eq=False)
class Own(_OfContract):
    """What a vendor brings to a contract: its rows, their division, and its model."""

    method: Method
    dataset: Dataset
    share: Share
    builder: Builder
    device: str

    def build(self, architecture: str, *key: str | int) -> SplitModel:
        """The vendor's model; its initial values are a function of seed and key."""
        return self._given.built(architecture, self._model, *initial_key(self.initial, *key))

    def _model(self, key: tuple[Key, ...]) -> SplitModel:
        at, shape = self.contract, self.dataset.shape
        return make_model(
            self.method, self.builder, shape, at.classes, at.fusion_width, at.seed, key, self.device, at.numerics
        )

    @cached_property
    def trial(self) -> Trial:
        """What a batch in training mode shows of the model.

        Raises:
            ModelError: none can be trained on, or results could not be repeated.
        """
        with self.numerics.applied():
            return trial(self._model(("measure",)), self.dataset.example)

    def facts(self, architecture: str) -> Facts:
        """What the node knows of itself; ``architecture`` is what it calls its model.

        Raises:
            ModelError: the model does not fit the data.
            ConfigError: it could not make a step.
        """
        samples = len(self.share.train)
        if (idle := check_rows(self.trial, self.method.rows_of_a_step(samples), samples)) is not None:
            raise ConfigError(f"{idle.text}. {idle.remedy}")
        model = self.build(architecture, "measure")
        measured = measure(model, self.dataset.example)
        keys = {key: tuple(tensor.shape) for key, tensor in model.tensors().items()}
        buffers = tuple(sorted(keys.keys() - model.tensors(buffers=False).keys()))
        shape, cuts = self.dataset.shape, dict(measured.cut_shapes)
        sample = dict(shape) if isinstance(shape, Mapping) else shape
        return Facts(
            architecture=architecture,
            classes=measured.output_shape[-1],
            fusion_width=measured.fusion_width,
            samples=samples,
            test_labels=labels_digest(self.dataset.y_test) if self.contract.evaluation == "shared" else "",
            class_names=names_digest(self.contract.run, self.dataset.class_names),
            given=names_digest(self.contract.run, [given_digest(model)]),
            shapes=Shapes(
                sample=sample,
                keys=keys,
                cuts=cuts,
                stages=model.stage_names,
                buffers=buffers,
                given=tuple(sorted(model.given_keys)),
            ),
        )

    def hosted(self, profile: Profile, dims: Dims, secret: int, watch: Stopwatch) -> NodeSetup:
        """The same once the run's sizes are known, and this client's number."""
        mine = {made.name: getattr(self, made.name) for made in fields(self)}
        return NodeSetup(**mine, profile=profile, dims=dims, secret=secret, watch=watch)


@dataclass(frozen=True, eq=False)
class NodeSetup(Own):
    """One client, on its own machine. See :class:`interfuse.setup.Hosting`.

    Attributes:
        secret: The node's own; everybody knows the contract's seed.
        watch: Looked at whenever rows are taken.
    """

    profile: Profile
    dims: Dims
    secret: int = field(repr=False)
    watch: Stopwatch

    @property
    def profiles(self) -> dict[ClientId, Profile]:
        return {self.profile.id: self.profile}

    @property
    def handler_seed(self) -> int:
        """The secret, or what everybody knows, where both sides agreed on it."""
        return self.secret if self.contract.sampling.draws_from == "secret" else self.contract.seed

    def method_of(self, client: ClientId) -> Method:
        """The method with this client's own settings."""
        return with_settings(self.method, self.contract.client_settings.get(client, {}))

    @property
    def sampling(self) -> Sampling:
        return self.contract.sampling

    @property
    def tasks(self) -> Tasks:
        return self.contract.tasks

    @cached_property
    def _programs(self) -> dict[str, Program]:
        method = self.method_of(self.profile.id)
        return programs_between(self.contract, self.dataset.y_test, self.dims["clients"], method)

    def programs_of(self, client: ClientId) -> Mapping[str, Program]:
        """All programs by path."""
        return self._programs

    def data_of(self, client: ClientId) -> ClientData:
        """The vendor's share."""
        return ClientData(self.dataset, self.share, self._taken, self.public)

    def _taken(self, x: Inputs) -> Inputs:
        self.watch.check()
        return as_inputs(self.dataset, self.numerics, x)


@dataclass(frozen=True, eq=False)
class RemoteSetup(_OfContract):
    """All clients as the coordinator knows them. See :class:`interfuse.setup.Serving`.

    Attributes:
        facts: Of every node, by its number.
        labels: Of the public test set; none where there is none.
        builders: What the coordinator can build, by the name of the architecture.
    """

    method: Method
    facts: Mapping[ClientId, Facts]
    labels: Tensor
    builders: Mapping[str, Callable[[], Builder]]
    class_names: list[str]
    device: str = "cpu"

    class_counts = None
    reading_notices = ()

    @property
    def note(self) -> str:
        """Whose data the run is on."""
        tested = f"; the common test set, {self.contract.public_test}, is public" if self.contract.public_test else ""
        return f"every party has data of its own{tested}"

    @property
    def data_notices(self) -> tuple[Notice, ...]:
        """Where no party names its classes, nothing says that they have the same."""
        contract = self.contract
        nameless = names_digest(contract.run, numbered(contract.classes))
        if contract.public_test or contract.class_names or any(f.class_names != nameless for f in self.facts.values()):
            return ()
        return (
            Notice(
                "No party names its classes, so nothing shows that a number means the same class to all of them.",
                "State `classes` in the recipe, and under [data] in every vendor's file.",
            ),
        )

    @property
    def digests(self) -> dict[str, str]:
        """Of what is public: the coordinator has no other data."""
        return {"values": ",".join(filter(None, (self.contract.test_labels, self.contract.public_digest)))}

    @cached_property
    def profiles(self) -> dict[ClientId, Profile]:
        """Profiles of all clients. Those of one architecture share one mapping of keys."""
        found: dict[ClientId, Profile] = {}
        for client, facts in sorted(self.facts.items()):
            mine = facts.profile(client)
            alike = next((p for p in found.values() if p.architecture == mine.architecture), None)
            if alike is not None:
                other = "tensors" if alike.keys != mine.keys else "frozen weights"
                if alike.keys != mine.keys or self.facts[alike.id].given != facts.given:
                    raise ModelError(
                        f"clients {alike.id} and {client} call their architecture {mine.architecture!r}, but their "
                        f"{other} differ; give one of them another name"
                    )
            keys = mine.keys if alike is None else alike.keys
            found[client] = replace(mine, keys=keys)
        return found

    @cached_property
    def dims(self) -> Dims:
        """Sizes bound for the run."""
        widths = {facts.fusion_width for facts in self.facts.values()}
        return dims_of(self.contract, len(self.facts), widths.pop() if len(widths) == 1 else None)

    @property
    def model_notices(self) -> tuple[Notice, ...]:
        """Nothing: nodes say it to their vendors."""
        return ()

    def build(self, architecture: str, *key: str | int) -> SplitModel:
        """A model of the server.

        Raises:
            ModelError: no node has the architecture.
            ClientError: that of a node is not public, or the recipe does not name it; names the node's client.
        """
        client, owner = next((one for one in self.facts.items() if one[1].architecture == architecture), (0, None))
        if owner is None:
            raise ModelError(f"no node has the architecture {architecture!r}, which the method has the server build")
        if owner.shapes is None or architecture not in self.builders:
            raise ClientError(
                f"the method has the server build {architecture!r} of client {client}: the recipe must name it under "
                "models, and the vendor's file must have the same name and `public = true` under [model]",
                client,
            )
        shapes, classes, width = owner.shapes, owner.classes, self.contract.fusion_width

        def build(key: tuple[Key, ...]) -> SplitModel:
            builder = self.builders[architecture]()
            return make_model(
                self.method, builder, shapes.sample, classes, width, self.seed, key, self.device, self.numerics
            )

        return self._given.built(architecture, build, *initial_key(self.initial, *key))

    def inputs(self, x: Inputs) -> Inputs:
        """Raw samples stay with their vendors.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a method that brings raw samples to the server cannot run between parties")

    def programs_with(self, method: Method) -> dict[str, Program]:
        """All programs by path, for a method with these hyperparameters."""
        return programs_between(self.contract, self.labels, len(self.facts), method)

    def programs_of(self, client: ClientId) -> Mapping[str, Program]:
        """All programs by path, with a client's own settings."""
        own = self.contract.client_settings.get(client, {})
        return self.programs_with(with_settings(self.method, own)) if own else self._programs

    @cached_property
    def _programs(self) -> dict[str, Program]:
        return self.programs_with(self.method)

    def parameters_of(self, architecture: str) -> dict[str, int] | None:
        """Parameters of base and modular block, where the server can build the architecture."""
        try:
            return block_sizes(self.build(architecture, "measure"))
        except (ModelError, ClientError):
            return None

    def make_clock(self) -> Clock:
        """The real time."""
        return WallClock()

    def data_name(self, client: ClientId) -> str:
        """Nothing: what a vendor calls its data is its own affair."""
        return ""

    def groups_of(self, client: ClientId) -> tuple[str, ...]:
        """Nothing, likewise."""
        return ()


def no_labels() -> Tensor:
    """The labels where there is no public test set."""
    return torch.zeros(0, dtype=torch.int64)
