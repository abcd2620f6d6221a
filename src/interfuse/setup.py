"""What a federation is made of, before anything runs: data, shares, models, method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.clock import UNIFORM, Clock, Devices, VirtualClock
from interfuse.data import (
    Classification,
    ClientData,
    DataFacts,
    Dataset,
    Inputs,
    PublicData,
    QuestionAnswering,
    Sampling,
    Shape,
    Share,
    Sizes,
    Task,
    Tasks,
    class_counts,
    describe,
    numbered,
    warnings_of,
)
from interfuse.data.arrival import AT_ONCE
from interfuse.data.batches import EVERY_SAMPLE
from interfuse.data.inputs import each, shape_text
from interfuse.errors import ConfigError, ModelError, Notice, numbers
from interfuse.handler import Program, programs
from interfuse.messages import Dims
from interfuse.method import Method, layered
from interfuse.models import Builder, Given, Initial, SplitModel, given_digest, initial_key, make, measure
from interfuse.models.trial import Trial, check_rows, trial
from interfuse.numerics import DEFAULT, Numerics
from interfuse.randomness import Key
from interfuse.wire import NO_CODECS, Codecs


class Agreed(Protocol):
    """What both sides know of a federation."""

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def numerics(self) -> Numerics: ...

    @property
    def initial(self) -> Initial: ...

    @property
    def task(self) -> Task: ...

    @property
    def public(self) -> PublicData | None:
        """Data that everybody in the run has."""

    @property
    def dims(self) -> Dims: ...

    @property
    def profiles(self) -> Mapping[ClientId, Profile]: ...

    @property
    def codecs(self) -> Codecs: ...

    def build(self, architecture: str, *key: str | int) -> SplitModel: ...


class Hosting(Agreed, Protocol):
    """What a host has to know of the clients that it carries. :class:`Setup` knows it of all clients."""

    @property
    def secret(self) -> int:
        """From which clients draw what others must not derive."""

    @property
    def handler_seed(self) -> int:
        """From which clients draw in handlers: the order of their rows, and whatever else a method has them draw."""

    @property
    def sampling(self) -> Sampling: ...

    @property
    def tasks(self) -> Tasks: ...

    def method_of(self, client: ClientId) -> Method: ...

    def programs_of(self, client: ClientId) -> Mapping[str, Program]: ...

    def data_of(self, client: ClientId) -> ClientData: ...


class Serving(Agreed, Protocol):
    """What the server's side has to know of a federation; it need not have anybody's data or build anybody's model."""

    @property
    def method(self) -> Method: ...

    @property
    def digests(self) -> Mapping[str, str]:
        """Hashes of all data that is known here, by what they are of: a run cannot go on with other data."""

    @property
    def note(self) -> str:
        """What a reader of results must know of the data."""

    @property
    def data_notices(self) -> Sequence[Notice]:
        """What hardly does what was meant with these data; said before a run, and in its report."""

    @property
    def reading_notices(self) -> Sequence[Notice]:
        """What is doubtful in the data as they were read here."""

    @property
    def model_notices(self) -> Sequence[Notice]:
        """The same of the models that are built here."""

    @property
    def class_names(self) -> list[str]: ...

    @property
    def class_counts(self) -> list[list[int]] | None:
        """Rows of each class by client, or None where clients keep that to themselves."""

    def inputs(self, x: Inputs) -> Inputs: ...

    def programs_with(self, method: Method) -> Mapping[str, Program]: ...

    def parameters_of(self, architecture: str) -> dict[str, int] | None:
        """Parameters of base and modular block, or None where clients keep that to themselves."""

    def data_name(self, client: ClientId) -> str: ...

    def groups_of(self, client: ClientId) -> Sequence[str]:
        """Names of the people or tasks that a client's rows are of; empty where nobody knows."""

    def make_clock(self) -> Clock: ...


ExtraPrograms = Callable[["Setup"], Callable[[Method], Mapping[str, Program]]]
"""From the data sets of the clients to programs by path, for a method with these hyperparameters."""


class _Shown(NamedTuple):
    """What a new model of an architecture shows; ``profile`` is what a client's has of it behind its samples."""

    keys: dict[str, tuple[int, ...]]
    profile: tuple[int | None, Mapping[str, tuple[int, ...]], tuple[str, ...], frozenset[str], Shape]
    trial: Trial
    sizes: dict[str, int]
    given: str


@dataclass(frozen=True, eq=False)
class Setup:
    """A federation ready to be hosted by an engine. It can be pickled where method and builders can.

    Attributes:
        datasets: The data set of each client, in order; those of several clients may be one.
        builders: One model builder a client, in order.
        architectures: Name of the builder of each client; equal names mean equal models before the method adapts them.
        devices: What the virtual clock goes by.
        overrides: Hyperparameters that differ for a client.
        extra_programs: Makes programs beside a method, such as the evaluation, for this set-up.
        codecs: What is done to the method's messages on their way.
        public_set: Its training rows are what everybody has.
        initial: Whose initial values are the same.
        sampling: How clients go through their samples.
        tasks: When these are there.
    """

    method: Method
    datasets: Sequence[Dataset]
    shares: Sequence[Share]
    builders: Sequence[Builder]
    architectures: Sequence[str]
    width: int
    seed: int
    device: str = "cpu"
    numerics: Numerics = DEFAULT
    devices: Devices = UNIFORM
    overrides: Mapping[ClientId, Mapping[str, Any]] = field(default_factory=dict)
    extra_programs: ExtraPrograms | None = None
    codecs: Codecs = NO_CODECS
    public_set: Dataset | None = None
    initial: Initial = "own"
    sampling: Sampling = EVERY_SAMPLE
    tasks: Tasks = AT_ONCE

    @cached_property
    def _given(self) -> Given:
        return Given()

    def build(self, architecture: str, *key: str | int) -> SplitModel:
        """A new model of an architecture; its initial values are a function of seed and key."""
        if architecture not in self.kinds:
            raise ModelError(f"no client has the architecture {architecture!r}")
        client = self.kinds.index(architecture)
        dataset, method = self.datasets[client], with_settings(self.method, self._own_shape(client))

        def build(key: tuple[Key, ...]) -> SplitModel:
            builder, width, seed = self.builders[client], self.width, self.seed
            return make_model(
                method, builder, dataset.shape, dataset.task.outputs, width, seed, key, self.device, self.numerics
            )

        return self._given.built(architecture, build, *initial_key(self.initial, *key))

    @cached_property
    def kinds(self) -> list[str]:
        """The architecture of each client: the name of its builder, and what its own settings make of its model."""
        own = (self._own_shape(client).items() for client in range(len(self.architectures)))
        return [
            " ".join([name, *(f"{setting}={value}" for setting, value in settings)])
            for name, settings in zip(self.architectures, own, strict=True)
        ]

    def _own_shape(self, client: ClientId) -> dict[str, Any]:
        return own_shape(self.method, self.overrides.get(client, {}))

    @cached_property
    def _shown(self) -> dict[str, _Shown]:
        """What one new model of each architecture shows: it is built once, for profiles, trials and sizes."""
        found: dict[str, _Shown] = {}
        for client, architecture in enumerate(self.kinds):
            if architecture in found:
                continue
            dataset = self.datasets[client]
            try:
                model = self.build(architecture, "measure")
                facts = measure(model, dataset.example)
                check_output(dataset, facts.output_shape)
                with self.numerics.applied():
                    tried = trial(model, dataset.example)
            except ModelError as error:
                raise ModelError(f"client {client} ({architecture}): {error}") from error
            keys = {key: tuple(tensor.shape) for key, tensor in model.tensors().items()}
            buffers = frozenset(keys.keys() - model.tensors(buffers=False).keys())
            cuts, stages = facts.cut_shapes, model.stage_names
            profile = (facts.fusion_width, cuts, stages, buffers, dataset.shape)
            found[architecture] = _Shown(keys, profile, tried, block_sizes(model), given_digest(model))
        return found

    @cached_property
    def profiles(self) -> dict[ClientId, Profile]:
        """Profiles of all clients.

        Raises:
            ModelError: a model does not fit the data or cannot be trained on it, or its results could not be repeated;
                names the client.
        """
        found = {}
        for client, (name, backbone, share) in enumerate(zip(self.kinds, self.architectures, self.shares, strict=True)):
            shown = self._shown[name]
            found[client] = Profile(client, name, shown.keys, len(share.train), *shown.profile, backbone)
        return found

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """What a batch in training mode shows of each architecture; raises as :attr:`profiles` does."""
        return {name: one.trial for name, one in self._shown.items()}

    @property
    def model_notices(self) -> tuple[Notice, ...]:
        """State of models that does not last, and clients that cannot make a step."""
        found = (one.notice(architecture) for architecture, one in self.trials.items())
        methods = [self.method_of(client) for client in self.profiles]
        return tuple(notice for notice in (*found, *check_steps(self, methods)) if notice is not None)

    @property
    def task(self) -> Task:
        """What targets and outputs are, of all clients."""
        return self.datasets[0].task

    @cached_property
    def dims(self) -> Dims:
        """Sizes bound for the run: that of the task, such as ``classes``, that of its sums, the number of clients.

        ``d`` is there when all clients agree on the width of the fusion layer.
        """
        widths = {profile.fusion_width for profile in self.profiles.values()}
        width = widths.pop() if len(widths) == 1 else None
        return Sizes(self.task, clients=len(self.shares), **({} if width is None else {"d": width}))

    @property
    def secret(self) -> int:
        """The seed: a simulation has one owner, and nobody to hide anything from."""
        return self.seed

    @property
    def handler_seed(self) -> int:
        """The seed, likewise."""
        return self.seed

    def make_clock(self) -> Clock:
        """A virtual clock at the beginning."""
        return VirtualClock(self.devices, self.seed, len(self.shares))

    @property
    def dataset(self) -> Dataset:
        """The data set of all clients.

        Raises:
            ConfigError: they have several.
        """
        if len(self.domains) > 1:
            names = ", ".join(dataset.name for dataset in self.domains)
            raise ConfigError(f"the clients have several data sets ({names}) where one is needed; give them one")
        return self.datasets[0]

    @cached_property
    def domains(self) -> list[Dataset]:
        """The data sets that differ, in the order of the first client of each."""
        return list({id(dataset): dataset for dataset in self.datasets}.values())

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hashes of all samples and targets, the public ones last; of the names that say what they mean; of shares; and
        of what is given of each architecture's models."""
        known = self.domains if self.public_set is None else [*self.domains, self.public_set]
        names, division = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        for dataset in known:
            names.update(repr((dataset.columns, dataset.task.names)).encode())
        for share in self.shares:
            for rows in (share.train, share.validation, share.test, *(() if share.held is None else (share.held,))):
                division.update(len(rows).to_bytes(8, "little"))
                division.update(np.ascontiguousarray(rows, dtype="<i8").data)
        return {
            "values": ",".join(dataset.digest for dataset in known),
            "names": names.hexdigest(),
            "division": division.hexdigest(),
            "given": ",".join(one.given for one in self._shown.values()),
        }

    @property
    def public(self) -> PublicData | None:
        """Data that everybody in the run has; None: the run has none."""
        return None if self.public_set is None else PublicData(self.public_set, partial(self._inputs, self.public_set))

    @property
    def note(self) -> str:
        """What a reader of results must know of the data sets."""
        notes = [dataset.note for dataset in self.domains if dataset.note]
        if len(self.domains) > 1:
            notes.append(
                "the common test set of a client is that of its own data set, for compositions the base block's"
            )
        return "; ".join(notes)

    @cached_property
    def readings(self) -> list[DataFacts]:
        """How each data set of clients was understood."""
        return [describe(dataset) for dataset in self.domains]

    @property
    def reading_notices(self) -> tuple[Notice, ...]:
        """What the readings warn of."""
        remedy = "Look at the source, and say what is meant: `interfuse describe` shows how it was read."
        return tuple(
            Notice(f"{dataset.name}: {text}.", remedy)
            for dataset, reading in zip(self.domains, self.readings, strict=True)
            for text in warnings_of(reading)
        )

    @property
    def data_notices(self) -> tuple[Notice, ...]:
        """Data sets whose classes have the same numbers and other names."""
        if len({dataset.class_names for dataset in self.domains}) == 1:
            return ()
        each = "; ".join(f"{dataset.name}: {', '.join(dataset.class_names[:3])}, ..." for dataset in self.domains)
        return (
            Notice(
                f"The data sets name their classes differently ({each}), and class k of one is taken for class k of "
                "the others.",
                "Deal data sets with the same classes; where some have numbers only, `classes` in a recipe names them.",
            ),
        )

    @property
    def class_names(self) -> list[str]:
        """The names of classes, or their numbers where data sets name them differently."""
        first, *others = (dataset.class_names for dataset in self.domains)
        return list(first) if all(names == first for names in others) else [str(label) for label in range(len(first))]

    @property
    def class_counts(self) -> list[list[int]] | None:
        """Rows of each class by client; None where there are no classes."""
        if not self.datasets[0].classes:
            return None
        counts: list[list[int]] = class_counts(self.datasets, self.shares).tolist()
        return counts

    def parameters_of(self, architecture: str) -> dict[str, int]:
        """Parameters of base and modular block."""
        return self._shown[architecture].sizes

    def data_name(self, client: ClientId) -> str:
        """The name of a client's data set."""
        return self.datasets[client].name

    def groups_of(self, client: ClientId) -> tuple[str, ...]:
        """Names of the people or tasks that a client's training rows are of; empty where they have none."""
        dataset, rows = self.datasets[client], self.shares[client].train
        if dataset.groups is None or not dataset.group_names:
            return ()
        numbers = set(dataset.groups[torch.from_numpy(np.asarray(rows, np.int64))].tolist())
        return tuple(dict.fromkeys(dataset.group_names[number] for number in sorted(numbers)))

    def data_of(self, client: ClientId) -> ClientData:
        """A client's share of its data set."""
        return ClientData(self.datasets[client], self.shares[client], self.inputs_of(client), self.public)

    def inputs(self, x: Inputs) -> Inputs:
        """What :meth:`inputs_of` gives where all clients have one data set."""
        return self._inputs(self.dataset, x)

    def inputs_of(self, client: ClientId) -> Callable[[Inputs], Inputs]:
        """From samples as the client's data set stores them to normalised inputs, in the memory layout of the run."""
        return partial(self._inputs, self.datasets[client])

    def _inputs(self, dataset: Dataset, x: Inputs) -> Inputs:
        return as_inputs(dataset, self.numerics, x)

    def method_of(self, client: ClientId) -> Method:
        """The method with this client's overrides."""
        return with_settings(self.method, self.overrides.get(client, {}))

    def programs_of(self, client: ClientId) -> dict[str, Program]:
        """All programs by path as this client runs them."""
        return self.programs_with(self.method_of(client))

    def programs_with(self, method: Method) -> dict[str, Program]:
        """All programs by path, for a method with these hyperparameters."""
        return programs(method, "method") | ({} if self._extra is None else dict(self._extra(method)))

    @cached_property
    def _extra(self) -> Callable[[Method], Mapping[str, Program]] | None:
        return None if self.extra_programs is None else self.extra_programs(self)

    def __getstate__(self) -> dict[str, object]:
        """What it was made of, and what is known of its models: another process need not build them to know it, and
        has the given tensors of this one. The rest it works out again."""
        known = {name: vars(self)[name] for name in ("_given", "_shown") if name in vars(self)}
        return {made.name: getattr(self, made.name) for made in fields(self)} | known


def make_model(
    method: Method,
    builder: Builder,
    shape: Shape,
    outputs: int,
    width: int,
    seed: int,
    key: Sequence[str | int],
    device: str,
    numerics: Numerics,
) -> SplitModel:
    """A new model for samples of a shape, as a method trains it; its initial values are a function of seed and key."""

    def build() -> SplitModel:
        return method.fused(method.adapted(builder(shape, outputs, width)), width, seed)

    return make(build, seed, "model", *key, device=device, numerics=numerics)


def as_inputs(dataset: Dataset, numerics: Numerics, x: Inputs) -> Inputs:
    """From samples as a data set stores them to normalised inputs in the memory layout of the run."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=numerics.memory_format) if tensor.ndim == 4 else tensor

    return each(laid_out, dataset.normalise(x))


def check_output(dataset: Dataset, shape: tuple[int, ...]) -> None:
    """Check the shape of what a model makes of one sample.

    Raises:
        ModelError: the task needs another.
    """
    wanted = dataset.task.output_shape(tuple(dataset.y_train.shape[1:]))
    if shape != wanted:
        found, needed = ("×".join(map(str, sizes)) or "no" for sizes in (shape, wanted))
        raise ModelError(f"the model has {found} outputs, but {dataset.name} has {needed} {dataset.task.unit}")


def with_settings(method: Method, own: Mapping[str, Any]) -> Method:
    """The method with some hyperparameters of a client's own.

    Raises:
        ConfigError: one of them is impossible, or is for all clients to agree on.
    """
    if not own:
        return method
    everybody = {f.name: getattr(method, f.name) for f in fields(method)}
    for name in method.agreed:
        if own.get(name, everybody[name]) != everybody[name]:
            raise ConfigError(f"{name} = {own[name]!r}: all clients must have the same, {everybody[name]!r}")
    return type(method).configure(layered(everybody, own))


def own_shape(method: Method, own: Mapping[str, Any]) -> dict[str, Any]:
    """Of a client's own settings those that make another model of its backbone than the method's.

    Raises:
        ConfigError: as :func:`with_settings`.
    """
    values = vars(with_settings(method, own))
    return {name: values[name] for name in method.shaping if values[name] != vars(method)[name]}


def block_sizes(model: SplitModel) -> dict[str, int]:
    """Parameters of base and modular block."""
    return {block: sum(p.numel() for p in model.parameters_of(block).values()) for block in ("base", "modular")}


def check_fusion(profiles: Mapping[ClientId, Profile]) -> None:
    """Check that all fusion layers have one width, for methods whose messages carry features of it.

    Raises:
        ModelError: naming two clients that differ.
    """
    first = next(iter(profiles.values()))
    for profile in profiles.values():
        if profile.fusion_width is None:
            raise ModelError(
                f"client {profile.id} ({profile.architecture}): its fusion layer is no vector; give it a width"
            )
        if profile.fusion_width != first.fusion_width:
            raise ModelError(
                f"fusion width d: client {first.id} ({first.architecture}) has {first.fusion_width}, client "
                f"{profile.id} ({profile.architecture}) has {profile.fusion_width}; all must agree"
            )


def with_class_names(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with these names of its classes, if there are any; classes that have numbers only get them.

    Raises:
        ConfigError: it names its classes otherwise.
    """
    task, given = dataset.task, tuple(names)
    if len(set(given)) < len(given):
        raise ConfigError(f"classes = {', '.join(given)} has a name twice")
    if not given or dataset.class_names == given:
        return dataset
    if not isinstance(task, Classification | QuestionAnswering) or dataset.class_names != numbered(len(given)):
        known = ", ".join(dataset.class_names) or "none"
        raise ConfigError(f"classes = {', '.join(given)}: {dataset.name} has {known}; name the same, in the same order")
    if set(given) == set(dataset.class_names):
        raise ConfigError(
            f"classes = {', '.join(given)}: {dataset.name} has these numbers in their order; name them so"
        )
    return replace(dataset, task=replace(task, names=given))


def check_device(device: str) -> None:
    """Check that tensors can be made on a device.

    Raises:
        ConfigError: they cannot, with PyTorch's reason.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device = {device!r} cannot be used here: {reason}") from None


def check_setup(setup: Setup) -> None:
    """Everything that can be known to be wrong before training.

    Raises:
        ConfigError, ModelError: naming the client and the field.
    """
    if not setup.shares:
        raise ConfigError("clients = 0: a federation needs at least one client")
    first = setup.datasets[0]
    for client, dataset in enumerate(setup.datasets):
        if not first.task.fits(dataset.task):
            raise ConfigError(
                f"client {client} has {dataset.name} with {dataset.task.outputs} {dataset.task.unit}, but client 0 "
                f"{first.name} with {first.task.outputs} {first.task.unit}; all data sets of a federation must have "
                "one task, a regression one mean and deviation of its targets"
            )
    for client, (dataset, share) in enumerate(zip(setup.datasets, setup.shares, strict=True)):
        y = dataset.y_train[torch.from_numpy(np.asarray(share.train, np.int64)).to(dataset.y_train.device)]
        if len(y) and not setup.task.counted(y):
            raise ConfigError(
                f"client {client} has {len(y)} training rows of {dataset.name}, but none has a target that counts, so "
                "it has nothing to learn from: give it other rows, or longer ones (read.length), or leave it out"
            )
    numbers: dict[str, tuple[int, str]] = {}
    for dataset in setup.domains:
        for number, name in enumerate(dataset.task.names):
            known, where = numbers.setdefault(name, (number, dataset.name))
            if known != number:
                raise ConfigError(
                    f"{name!r} is number {number} of {dataset.name}, but number {known} of {where}; all data sets of a "
                    f"federation must have their {dataset.task.unit} in one order"
                )
    if (public := setup.public_set) is not None:
        for dataset in setup.domains:
            if shape_text(public.shape) != shape_text(dataset.shape):
                raise ConfigError(
                    f"public = {public.name!r} has samples of {shape_text(public.shape)}, but {dataset.name} of "
                    f"{shape_text(dataset.shape)}; models take samples of one shape"
                )
    for client in setup.overrides:
        if client not in range(len(setup.shares)):
            raise ConfigError(f"settings for client {client}, but clients are 0 to {len(setup.shares) - 1}")
        try:
            setup.method_of(client)
        except ConfigError as error:
            raise ConfigError(f"client {client}: {error}") from error
    _ = setup.profiles
    check_steps(setup, [setup.method_of(client) for client in setup.profiles])


def check_steps(setup: Setup, methods: Sequence[Method]) -> list[Notice]:
    """What to say of clients that cannot make a step with their methods, where others can; one for each architecture.

    Raises:
        ConfigError, ModelError: it is a matter of a setting, or nobody can; names a client.
    """
    idle: dict[str, tuple[list[ClientId], Notice]] = {}
    for profile, method in zip(setup.profiles.values(), methods, strict=True):
        trial, rows = setup.trials[profile.architecture], method.rows_of_a_step(profile.samples)
        try:
            notice = check_rows(trial, rows, profile.samples)
        except ConfigError as error:
            raise ConfigError(f"client {profile.id} ({profile.architecture}): {error}") from None
        if notice is not None:
            idle.setdefault(profile.architecture, ([], notice))[0].append(profile.id)
    if sum(len(clients) for clients, _ in idle.values()) == len(setup.profiles):
        (first, *_), notice = next(iter(idle.values()))
        raise ConfigError(f"client {first}, as all others: {notice.text}. {notice.remedy}")
    return [
        Notice(f"{numbers(clients).capitalize()} ({architecture}): {notice.text}.", notice.remedy)
        for architecture, (clients, notice) in idle.items()
    ]
