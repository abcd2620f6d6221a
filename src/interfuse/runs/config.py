"""The configuration of a run: what a recipe says, what ``config.toml`` keeps, and what bits may depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, cast

import tomli_w
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from interfuse.clock import Devices
from interfuse.data import (
    AT_ONCE,
    DRAWN_BEFORE,
    PARTITIONS,
    Dataset,
    Divide,
    Divided,
    Normalise,
    Partition,
    ReadOptions,
    Sampling,
    Tasks,
    Test,
    family_of,
    is_path,
    is_read,
    load_with,
    parse_partition,
)
from interfuse.errors import ConfigError, RunError, nearest
from interfuse.evaluation import ACROSS_TASKS, METRICS, Mode, OwnMetric
from interfuse.method import Method
from interfuse.methods import find, in_memory
from interfuse.models import DEFAULT_MODELS, Builder, Initial, expanded
from interfuse.numerics import Numerics
from interfuse.references import (
    IN_MEMORY,
    is_reference,
    load_reference,
    reference_of,
    short_name,
    source_digest,
    source_of,
    whole_path,
)
from interfuse.runs.protocols import under_protocol
from interfuse.runs.stopping import EarlyStopping
from interfuse.toml import read_toml
from interfuse.wire import Codecs
from interfuse.wire.codecs.rules import DEFAULT as DEFAULT_CODEC

M = TypeVar("M", bound=BaseModel)
NETWORK_FILE = "network.json"
"""In the folder of a run between parties: who they are."""


FOR_RAY = frozenset({"ray_address", "ray_gpus"})
"""Keys of ``[execution]`` that other engines have no use for."""


class Execution(BaseModel):
    """How a run is carried out. Results do not depend on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["local", "ray"] = "local"
    workers: Annotated[int, Ge(1)] | None = None
    ray_address: str | None = None
    ray_gpus: Annotated[float, Gt(0), Le(1)] | None = None
    commit_seconds: Annotated[float, Ge(0)] = 30.0
    commit_rounds: Annotated[int, Ge(1)] | None = None
    client_memory: Annotated[int, Ge(0)] | None = None

    def but(self, changes: Mapping[str, Any]) -> Execution:
        """The same with what is given otherwise; None: as it is.

        What other engines have no use for goes with the engine that had it.

        Raises:
            ConfigError: a value is impossible, or belongs to another engine.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        made = validated(Execution, self.model_dump() | given, "execution")
        if made.engine == "local":
            made = made.model_copy(update=dict.fromkeys(FOR_RAY - given.keys()))
        made.check("execution")
        return made

    def check(self, source: str) -> None:
        """Check that keys and engine belong together.

        Raises:
            ConfigError: they do not.
        """
        for_ray = sorted(key for key in FOR_RAY if getattr(self, key) is not None)
        if self.engine == "local" and for_ray:
            names = " and ".join(for_ray)
            raise ConfigError(f"{source}: {names}: for engine = 'ray' alone: set that too, or leave it out")


DataSets = str | Dataset | Sequence[str | Dataset]
"""One data set for all clients, or several that are dealt to them in turn; each by name or as an object."""


Rows = Literal["train", "all"]
"""Which rows of a data set are divided between clients."""


class RunSettings(TypedDict, total=False):
    """What :func:`interfuse.run` takes beside a method; each is a key of a recipe, those of ``[execution]`` included.

    Attributes:
        data: A data set or its name: built in, the path of a file or folder (docs/data.md), ``package.module:load``.
            Several are dealt to the clients in turn.
        read: How files of data are read, where they do not say it: ``{"label": "diagnosis"}``, see
            :class:`interfuse.data.ReadOptions`. Also for public data of the same kind of file.
        public: A data set or its name that everybody has, for methods that want one; None: there is none.
        clients: How many there are.
        models: Models dealt to the clients in turn: names, or functions of (sample_shape, classes, width). That of a
            federation becomes those of its models.
        fusion_width: Width d of the fusion layer.
        rounds, seed: How long, and where all randomness begins.
        eval_every: Rounds between two points of the curve.
        curve: Each point is on ``some`` of the clients' own rows, at most 250 of a share, or on ``all`` of them.
        protocol: The name of other people's protocol, such as ``htfllib``: it sets what is not set here, and
            ``config.toml`` has all of it.
        stop: :class:`interfuse.EarlyStopping` ends the run once the validation score rises no more, and what runs
            beside it has as many rounds as it had; None: all rounds.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        beside: References that run after the method on the same data, seed and models: ``local``, ``pooled``.
        metrics: Beyond accuracy, for the last and the best round: ``balanced-accuracy``, ``recall``, ``absent-recall``,
            ``present-recall``, ``accuracy-with-prior``, ``auroc``, ``calibration-error``; or functions of
            (scores ``[n, classes]``, labels ``[n]``) to a number, also ``file.py:function``. Of any task, and at every
            point of the curve: ``others``, the score on the test rows of the other clients; ``forgetting``, what is
            lost of the best score on earlier ones of several tasks in time.
        validation, test: Fractions of each client's share. With ``test = "source"`` its own test rows are those that
            the source has for its groups, and none are taken from its share.
        divide: Which rows the clients share: the ``train`` rows of the data set, or ``all``; then the common test set
            is made of the clients' own test rows.
        normalise: ``data``: by mean and deviation of the training rows; ``plain``: bytes mapped to [-1, 1], other
            numbers as they come.
        initial: Initial values of a client's networks are its ``own``, or ``common`` to all of an architecture.
        sampling: How a client goes through its samples, :class:`interfuse.data.Sampling`: in which order, and what
            becomes of a last batch that is too small.
        tasks: When a client's training rows are there, :class:`interfuse.data.Tasks`: at once, task after task, or
            mixed in equal parts; and how those that came are replayed.
        evaluation: ``shared``: on the common test set too; ``own``: clients count on their own shares; ``none``.
        classes: Names of the classes in their order: the data has to have these, or numbers only; empty: its own.
        train_rows: The training rows are cut down to so many fixed rows, every class in its proportion, before they are
            dealt; None: all.
        test_rows: The common test set is cut down to so many fixed rows, every class in its proportion; None: all.
        partition: How the training data is dealt to the clients: a name, an object such as ``Dirichlet(0.5)``, or a
            function of (labels, clients, rng) or (labels, clients, rng, groups) to the rows of each client, also
            ``file.py:function``.
        settings: Hyperparameters of the method, where it is given by name. A learning rate is a number, a schedule
            such as ``Cosine(0.1, rounds=50)``, or a function of (round, step), also ``file.py:function``.
        client: Hyperparameters that differ for a client, by its number.
        codecs: What is done to the method's messages on their way: ``"int8+zstd"`` for all, or by field or kind of
            message, such as ``{"FusionOutputs.z": "int4:row+zstd"}``; see docs/codecs.md.
        numerics: How numbers are computed: dtype, memory layout, denormals, clients together.
        devices: What the virtual clock goes by: ``uniform``, ``stragglers``, or :class:`interfuse.Devices`.
        engine: What carries the clients: ``local``, processes of this machine, or ``ray``, actors of Ray on this
            machine or a cluster of one owner; see docs/clusters.md. Results do not depend on it.
        workers: Processes on this machine, or of Ray; None: one a core. Results do not depend on it.
        ray_address: ``HOST:PORT`` of a cluster of Ray, ``auto`` for the one that this machine is part of, ``local`` for
            a new one on this machine; None: what RAY_ADDRESS says, else ``local``.
        ray_gpus: Of a GPU for each worker of Ray, where the device is one; None: all GPUs are divided.
        commit_seconds, commit_rounds: Commit after so many seconds (30), or every so many rounds instead.
        client_memory: Bytes of memory for what clients at rest own, over all workers; beyond it they lie in a file
            without a name in the run's folder. None: an eighth of the memory that is there.
    """

    data: DataSets
    read: Mapping[str, Any]
    public: str | Dataset | None
    clients: int
    models: Sequence[str | Builder]
    fusion_width: int
    rounds: int
    seed: int
    eval_every: int
    curve: Literal["some", "all"]
    protocol: str | None
    stop: EarlyStopping | None
    device: str
    beside: Sequence[str]
    metrics: Sequence[str | OwnMetric]
    validation: float
    test: Test
    divide: Rows
    normalise: Normalise
    initial: Initial
    sampling: Mapping[str, str] | Sampling
    tasks: Mapping[str, str | int | float] | Tasks
    evaluation: Mode
    classes: Sequence[str]
    train_rows: int | None
    test_rows: int | None
    partition: str | Partition | Divide
    settings: Mapping[str, Any]
    client: Mapping[int, Mapping[str, Any]]
    codecs: str | Mapping[str, str]
    numerics: Numerics
    devices: str | Devices
    engine: Literal["local", "ray"]
    workers: int | None
    ray_address: str | None
    ray_gpus: float | None
    commit_seconds: float
    commit_rounds: int | None
    client_memory: int | None


class RunConfig(BaseModel):
    """Everything that decides a run's results, and how it is carried out. :class:`RunSettings` says what a key means.

    Attributes:
        unset: Hyperparameters that are None, which TOML cannot say.
        sources: Digests of the files of the code that it names, as they were when the run began; of what these import
            nothing is known.
        environment: What the run was begun with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "ifl"
    data: str | tuple[str, ...] = "digits"
    read: dict[str, str | list[str]] = Field(default_factory=dict)
    public: str | None = None
    clients: int = 4
    models: tuple[str, ...] = DEFAULT_MODELS
    fusion_width: Annotated[int, Ge(1)] = 432
    rounds: Annotated[int, Ge(1)] = 200
    seed: int = 0
    eval_every: Annotated[int, Ge(1)] = 10
    curve: Literal["some", "all"] = "some"
    protocol: str | None = None
    stop: EarlyStopping | None = None
    device: str = "cpu"
    beside: tuple[str, ...] = ("local",)
    metrics: tuple[str, ...] = ()
    validation: Annotated[float, Ge(0), Lt(1)] = 0.1
    test: Annotated[float, Ge(0), Lt(1)] | Literal["source"] = 0.1
    divide: Rows = "train"
    normalise: Normalise = "data"
    initial: Initial = "own"
    sampling: Sampling = Sampling()
    tasks: Tasks = AT_ONCE
    evaluation: Mode = "shared"
    classes: tuple[str, ...] = ()
    train_rows: Annotated[int, Ge(1)] | None = None
    test_rows: Annotated[int, Ge(1)] | None = None
    partition: dict[str, Any] = Field(default_factory=lambda: {"name": "iid"})
    settings: dict[str, Any] = Field(default_factory=dict)
    unset: tuple[str, ...] = ()
    client: dict[int, dict[str, Any]] = Field(default_factory=dict)
    codecs: dict[str, str] = Field(default_factory=dict)
    numerics: Numerics = Numerics()
    devices: Devices = Devices()
    execution: Execution = Execution()
    sources: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("codecs", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return codec_rules(given)

    @field_validator("read", mode="before")
    @classmethod
    def _as_options(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        try:
            return ReadOptions.of(given).values()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("classes")
    @classmethod
    def _different(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("a name is there twice")
        return classes

    @field_validator("models")
    @classmethod
    def _expanded(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(expanded(models))

    @property
    def data_names(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def load(self, name: str) -> Dataset:
        """A data set of the run, by name; ``read`` goes for the files of ``data``, and for others of their kind.

        Raises:
            InterfuseError: as for :func:`interfuse.load`.
        """
        options = ReadOptions.of(self.read)
        if name in self.data_names:
            return load_with(name, options if is_read(name) else ReadOptions())
        own = [one for one in self.data_names if is_read(one)] or [name]
        alike = is_read(name) and family_of(name) in map(family_of, own)
        return load_with(name, options.for_others() if alike else ReadOptions())

    def make_partition(self) -> Partition:
        """The partition that ``partition`` names."""
        options = {key: value for key, value in self.partition.items() if key != "name"}
        name = str(self.partition.get("name", "iid"))
        if name.startswith(IN_MEMORY):
            raise RunError(f"the partition of this run was given as an object ({name}); give it again: partition=...")
        if not is_reference(name):
            return parse_partition(name, **options)
        found: Any = load_reference(name)
        if isinstance(found, type) and callable(getattr(found, "split", None)):
            try:
                return cast(Partition, found(**options))
            except TypeError as error:
                raise ConfigError(f"partition: {error}") from None
        if isinstance(found, type) or not callable(found):
            raise ConfigError(f"partition: {name!r} is no function, and no class with a method `split`")
        if options:
            raise ConfigError(f"partition: {name!r} is a function, which has no options: {', '.join(options)}")
        return Divided(found)

    def own_metrics(self, given: Mapping[str, OwnMetric]) -> dict[str, OwnMetric]:
        """The user's metrics by what they are called in results.

        Args:
            given: Those that were given as objects, by what the configuration calls them.

        Raises:
            ConfigError: a name leads to no function.
            RunError: one was given as an object, and has to be again.
        """
        found: dict[str, OwnMetric] = {}
        for name in filter(is_reference, self.metrics):
            if name.startswith(IN_MEMORY) and name not in given:
                raise RunError(f"a metric of this run was given as an object ({name}); give it again: metrics=[...]")
            metric: Any = given[name] if name in given else load_reference(name)
            if not callable(metric):
                raise ConfigError(f"metrics: {name} is no function of (scores, labels)")
            found[short_name(name)] = metric
        return found

    def make_method(self) -> Method:
        """The method with its hyperparameters."""
        return find(self.method).configure(dict.fromkeys(self.unset) | self.settings)

    def identity(self) -> dict[str, Any]:
        """What results depend on, as plain values."""
        values: dict[str, Any] = plain(self.model_dump(exclude={"execution", "environment", "protocol"}))
        return values


_OF_DATACLASSES = {
    "numerics": Numerics,
    "devices": Devices,
    "stop": EarlyStopping,
    "sampling": Sampling,
    "tasks": Tasks,
}
TABLES: Mapping[str, Sequence[str]] = {"execution": tuple(Execution.model_fields)} | {
    table: tuple(f.name for f in fields(kind)) for table, kind in _OF_DATACLASSES.items()
}
"""Tables of a recipe whose keys are the same for every method, and these keys."""

GIVEN_APART = {"method", "unset", "execution", "sources", "environment"}
if RunSettings.__annotations__.keys() != {*RunConfig.model_fields, *Execution.model_fields} - GIVEN_APART:
    raise TypeError("RunSettings has to have the keys of RunConfig and of Execution, no others")


def parse_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Make a configuration of plain values.

    Raises:
        ConfigError: a key is unknown (with the nearest valid one) or a value impossible.
    """
    check_keys(values, RunConfig.model_fields, source)
    values = under_protocol(values, source)
    for table, keys in TABLES.items():
        if isinstance(values.get(table), Mapping):
            check_keys(values[table], keys, f"{source}, [{table}]")
    config = validated(RunConfig, values, source)
    if config.clients < 1:
        raise ConfigError(f"{source}: clients = {config.clients}: a federation needs at least one client")
    if not config.data_names:
        raise ConfigError(f"{source}: data is empty: name at least one data set")
    if not config.models:
        raise ConfigError(f"{source}: models is empty: name at least one model")
    cut = 0.0 if config.test == "source" else config.test
    if config.validation + cut >= 1:
        raise ConfigError(f"{source}: validation + test = {config.validation + cut}: nothing is left to train on")
    if config.test == "source" and config.divide == "all":
        raise ConfigError(f"{source}: test = 'source' takes the test rows as they are: leave out divide = 'all'")
    if config.test_rows is not None and (config.test == "source" or config.divide == "all"):
        of = "test = 'source'" if config.test == "source" else "divide = 'all'"
        raise ConfigError(f"{source}: {of} makes own test rows and common ones the same: leave out test_rows")
    if config.divide == "all" and not cut and config.evaluation == "shared":
        raise ConfigError(f"{source}: divide = 'all' leaves clients' own test rows alone to test on: set test above 0")
    config.execution.check(source)
    if config.stop is not None and (config.validation == 0 or config.evaluation == "none"):
        raise ConfigError(
            f"{source}: stop goes by validation shares: set validation above 0, and evaluation to another than 'none'"
        )
    try:
        texts = Codecs.parse(config.codecs).texts
    except ConfigError as error:
        raise ConfigError(f"{source}: codecs: {error}") from None
    if {*config.metrics} - ACROSS_TASKS and config.evaluation != "shared":
        raise ConfigError(f"{source}: metrics are measured with evaluation = 'shared', not {config.evaluation!r}")
    if config.metrics and config.evaluation == "none":
        raise ConfigError(
            f"{source}: metrics = {', '.join(config.metrics)}: nothing is measured, as evaluation = 'none'"
        )
    known = {*METRICS, *ACROSS_TASKS}
    measured = [short_name(metric) for metric in config.metrics]
    for metric in measured:
        if measured.count(metric) > 1:
            raise ConfigError(f"{source}: metrics: two are called {metric!r}; give one of them another name")
    for metric in filter(is_reference, config.metrics):
        if short_name(metric) in known:
            raise ConfigError(f"{source}: metrics: {metric!r} is called like a built-in one; give it another name")
    for metric in config.metrics:
        if metric not in known and not is_reference(metric):
            raise ConfigError(f"{source}: metrics: {metric!r} is no metric: {nearest(metric, known)}")
    for client in config.client:
        if client not in range(config.clients):
            raise ConfigError(f"{source}: [client.{client}], but clients are 0 to {config.clients - 1}")
    if config.tasks.in_time and config.sampling.order == "stored":
        raise ConfigError(
            f"{source}: sampling.order = 'stored' goes through rows as they lie, and with tasks.arrival = "
            f"{config.tasks.arrival!r} they are drawn by how often they were used: leave one of them out"
        )
    config = config.model_copy(update={"codecs": texts, "tasks": config.tasks.within(config.rounds)})
    try:
        to_toml(config)
    except TypeError as error:
        raise ConfigError(f"{source}: a value cannot be written to a config.toml: {error}") from None
    return config


def codec_rules(given: Any) -> Any:
    """Codecs by name; a single text is the default."""
    return {DEFAULT_CODEC: given} if isinstance(given, str) else given


def table_of(key: str) -> str | None:
    """The table that a key belongs into; None where it is a key of none."""
    return next((table for table, keys in TABLES.items() if key in keys), None)


def check_keys(values: Iterable[str], names: Iterable[str], source: str) -> None:
    """Check that all keys are known.

    Raises:
        ConfigError: one is not; names the table that it belongs into, or the nearest.
    """
    for key in values:
        if key not in names:
            table = table_of(str(key))
            if table is not None and table in names:
                raise ConfigError(f"{source}: unknown key {key!r}: it belongs into [{table}]")
            raise ConfigError(f"{source}: unknown key {key!r}: {nearest(str(key), names)}")


def validated(kind: type[M], values: Mapping[str, Any], source: str) -> M:
    """A model of these values.

    Raises:
        ConfigError: one is impossible.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: {place} = {first['input']!r} is impossible: {first['msg']}") from None


def read_config(path: Path, *, follow: bool = True) -> RunConfig:
    """Read a recipe or a run's ``config.toml``.

    Args:
        follow: Whether a link to a file will do.

    Raises:
        ConfigError: the file is missing, is no TOML, or says something unknown or impossible.
    """
    values = read_toml(path, follow=follow)
    if "comparison" in values:
        raise ConfigError(f"{path} is a comparison of several runs: `interfuse compare {path}` carries it out")
    return parse_config(values, str(path))


_BESIDE = ("transformers", "tokenizers")
"""Packages whose version results of some models depend on, where they are installed."""


def complete(config: RunConfig, method: Method) -> RunConfig:
    """The same configuration with every default written out, so that it does not change with the defaults."""
    values = settings_of(method)
    return config.model_copy(
        update={
            "method": config.method if _written_whole(method, config.method, values) else in_memory(method),
            "settings": {name: value for name, value in values.items() if value is not None},
            "unset": tuple(name for name, value in values.items() if value is None),
            "sources": sources_of(config),
            "environment": {
                "interfuse": version("interfuse"),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                **{name: version(name) for name in _BESIDE if find_spec(name) is not None},
            },
        }
    )


def run_key(config: RunConfig) -> str:
    """A digest of all that results depend on but the number of rounds: runs that have it in common are one run."""
    values = {name: value for name, value in config.identity().items() if name != "rounds"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


NAMING_CODE = ("method", "data", "public", "models", "partition", "metrics", "settings", "client")


def sources_of(config: RunConfig) -> dict[str, str]:
    """Digests of the files of all code that a configuration names, by file or module."""
    named = (source_of(text) for key in NAMING_CODE for text in _texts(getattr(config, key)))
    return {source: source_digest(source) for source in sorted({source for source in named if source is not None})}


def changed_sources(config: RunConfig) -> list[str]:
    """The files and modules of code that are not any more as they were when the run began."""
    return [source for source, digest in config.sources.items() if source_digest(source) != digest]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def settings_of(method: Method) -> dict[str, Any]:
    """All hyperparameters of a method as plain values."""
    return {f.name: plain(getattr(method, f.name)) for f in fields(method)}


def _written_whole(method: Method, name: str, values: Mapping[str, Any]) -> bool:
    """Whether name and plain values give the method again: not so where it wraps another."""
    if name.startswith(IN_MEMORY):
        return True
    try:
        return find(name).configure(values) == method
    except ConfigError:
        return False


def to_toml(config: RunConfig) -> str:
    """A configuration as TOML. TOML has no null: what is None is left out, which means the same."""
    return tomli_w.dumps(without_none(plain(config.model_dump())))


def absolute_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same values with every file they name as an absolute path, so that a run can be resumed from anywhere.

    Args:
        values: Of a configuration, or of its table ``partition``.
        folder: Where relative paths begin: that of a recipe, or the working directory.
    """
    changed = dict(values)
    for key in {"settings", "client"} & changed.keys():
        changed[key] = _functions(changed[key], folder)
    for key in ("method", "data", "public", "name", "models", "metrics"):
        if changed.get(key) is not None:
            whole = _absolute_data if key in ("data", "public") else _absolute
            several = isinstance(changed[key], list | tuple)
            changed[key] = (
                [whole(str(name), folder) for name in changed[key]] if several else whole(str(changed[key]), folder)
            )
    names = changed["read"].get("tokenizer") if isinstance(changed.get("read"), Mapping) else None
    listed = names.split(",") if isinstance(names, str) else names
    if isinstance(listed, list | tuple) and all(isinstance(name, str) for name in listed):
        changed["read"] = {**changed["read"], "tokenizer": [whole_path(name, folder) for name in listed]}
    if isinstance(changed.get("partition"), Mapping):
        changed["partition"] = absolute_paths(changed["partition"], folder)
    return changed


def _absolute_data(name: str, folder: Path) -> str:
    """A file or folder with its whole path; a name, or code, as it is."""
    return str((folder / Path(name).expanduser()).resolve()) if is_path(name, folder) else _absolute(name, folder)


def _absolute(name: str, folder: Path) -> str:
    """``mine.py``, ``mine.py:Class`` or ``hf:FOLDER`` with the whole path; any other name as it is."""
    place, colon, _ = name.rpartition(":")
    file = place if colon and place.endswith(".py") else name
    if not file.endswith(".py"):
        return whole_path(name, folder)
    return str((folder / Path(file).expanduser()).resolve()) + name[len(file) :]


def _functions(value: Any, folder: Path) -> Any:
    """Settings in which ``mine.py:function`` has the whole path, at any depth."""
    if isinstance(value, Mapping):
        return {key: _functions(item, folder) for key, item in value.items()}
    return _absolute(value, folder) if isinstance(value, str) and is_reference(value) else value


def partition_values(partition: Partition | Divide | str) -> dict[str, Any]:
    """A partition as plain values. An object that has options and is no dataclass, so that they are unknown, has no
    name that leads back to it."""
    if isinstance(partition, str):
        return {"name": partition}
    rule = partition_of(partition)
    if isinstance(rule, Divided):
        return {"name": reference_of(rule.rule)}
    kind: type = type(rule)
    names = [known for known, other in PARTITIONS.items() if other is kind]
    found = is_dataclass(kind) or not signature(kind).parameters
    name = names[0] if names else reference_of(kind) if found else f"{IN_MEMORY}{kind.__qualname__}"
    return {"name": name} | (asdict(rule) if is_dataclass(rule) else {})


def partition_of(given: Partition | Divide) -> Partition:
    """What was given as a partition, a function as one."""
    rule: Any = given
    return cast(Partition, rule) if callable(getattr(rule, "split", None)) else Divided(rule)


def metric_names(metrics: Iterable[str | OwnMetric]) -> list[str]:
    """Names of metrics, which functions of the user have too."""
    return [metric if isinstance(metric, str) else reference_of(metric) for metric in metrics]


def changed_in(path: Path, asked: RunConfig, method: Method | None = None) -> list[str]:
    """How the run in a folder differs from the one that is asked for; nothing where there is none yet.

    Args:
        method: Where it was given as an object.
    """
    file = path / "config.toml"
    if not file.exists():
        return []
    before = read_config(file)
    if (path / NETWORK_FILE).exists() and "draws_from" not in read_toml(file).get("sampling", {}):
        before = before.model_copy(update={"sampling": replace(before.sampling, draws_from=DRAWN_BEFORE)})
    return differences(before.identity(), complete(asked, method or asked.make_method()).identity())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested mappings, one line each."""
    found = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        before, after = ({} if value is None else value for value in (a, b))
        if isinstance(before, Mapping) and isinstance(after, Mapping) and (before or after):
            found += differences(before, after, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} became {b!r}")
    return found


def plain(value: Any) -> Any:
    """Values as JSON and TOML know them: dataclasses become mappings, tuples lists, enumerations their text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def without_none(value: Any) -> Any:
    """Plain values without those that are None, in tables at any depth: TOML has no null."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return value
