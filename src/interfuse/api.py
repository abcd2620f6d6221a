"""``interfuse.run``: a federation in one call from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interfuse import report
from interfuse.clock import Devices, named
from interfuse.data import Dataset, Partition, load
from interfuse.errors import ConfigError
from interfuse.method import Method
from interfuse.methods import find, name_of
from interfuse.models import DEFAULT_MODELS, Builder, expanded, resolve
from interfuse.numerics import DEFAULT, Numerics
from interfuse.references import IN_MEMORY
from interfuse.report.progress import following
from interfuse.runs import Given, Progress, Result, RunConfig, execute, parse_config
from interfuse.runs import resume as resume_run
from interfuse.runs.config import absolute_paths, partition_values, settings_of

DataSets = str | Dataset | Sequence[str | Dataset]
"""One data set for all clients, or several that are dealt to them in turn; each by name or as an object."""


def run(
    method: str | Method | type[Method] = "ifl",
    *,
    data: DataSets = "digits",
    public: str | Dataset | None = None,
    partition: str | Partition = "iid",
    clients: int = 4,
    models: Sequence[str | Builder] = DEFAULT_MODELS,
    fusion_width: int = 432,
    rounds: int = 200,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    client_settings: Mapping[int, Mapping[str, Any]] | None = None,
    codecs: str | Mapping[str, str] | None = None,
    beside: Sequence[str] = ("local",),
    metrics: Sequence[str] = (),
    eval_every: int = 10,
    validation: float = 0.1,
    test: float = 0.1,
    device: str = "cpu",
    numerics: Numerics = DEFAULT,
    devices: str | Devices = "uniform",
    workers: int | None = None,
    commit_rounds: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a federated method and write its folder, with a report.

    Args:
        method: A method object, its class, or a name: built in, ``mine.py``, ``package.module:Class``, an entry point.
        data: A data set or its name: built in, a path to an ``.npz``, ``package.module:load``. Several are dealt to the
            clients in turn.
        public: A data set or its name that everybody has, for methods that want one.
        partition: How the training data is dealt to the clients.
        models: Models dealt to the clients in turn: names, or functions of (sample_shape, classes, width).
        settings: Hyperparameters, where the method is given by name.
        client_settings: Hyperparameters that differ for a client, by its number.
        codecs: What is done to messages on their way: ``"int8+zstd"`` for all, or by field or kind of message, such as
            ``{"FusionOutputs.z": "int4:row+zstd"}``; see docs/codecs.md.
        beside: References to run after it on the same data: ``local``, ``pooled``.
        metrics: Beyond accuracy, for the last and the best round: ``balanced-accuracy``, ``recall``, ``auroc``,
            ``calibration-error``.
        numerics: How numbers are computed: dtype, memory layout, denormals.
        devices: What the virtual clock goes by: ``uniform``, ``stragglers``, or :class:`interfuse.Devices`.
        workers: Processes on this machine; None: one a core. Results do not depend on it.
        commit_rounds: Commit every so many rounds instead of every 30 seconds.
        out: The run folder; None: a new one under ``runs/``.
        progress: Who follows the run; None: bars or lines on the standard error stream.
            ``interfuse.Silent()`` shows nothing.

    Raises:
        InterfuseError: something cannot work; the text names the client and the field.
    """
    if isinstance(method, Method) and settings:
        raise ConfigError("settings belong to a method that is given by name; this object has its own")
    if not isinstance(method, Method):
        method = (find(method) if isinstance(method, str) else method).configure(settings or {})
    given = _given(method, data, models, public)
    values = absolute_paths(
        {
            "method": name_of(type(method)),
            "data": _data_name(data) if isinstance(data, str | Dataset) else [_data_name(one) for one in data],
            "public": None if public is None else _data_name(public),
            "clients": clients,
            "models": _names(models),
            "fusion_width": fusion_width,
            "rounds": rounds,
            "seed": seed,
            "eval_every": eval_every,
            "validation": validation,
            "test": test,
            "device": device,
            "codecs": codecs or {},
            "beside": list(beside),
            "metrics": metrics,
            "partition": partition_values(partition),
            "settings": settings_of(method),
            "client": dict(client_settings or {}),
            "numerics": asdict(numerics),
            "devices": asdict(named(devices) if isinstance(devices, str) else devices),
            "execution": {"workers": workers, "commit_rounds": commit_rounds},
        },
        Path.cwd(),
    )
    config = parse_config(values, "interfuse.run")
    return carry_out(config, Path(out) if out is not None else new_folder(config), given=given, progress=progress)


def _names(models: Sequence[str | Builder]) -> list[str]:
    """Names of models. Functions that share one, such as two lambdas, are told apart by a number."""
    names: list[str] = []
    known: dict[str, list[Builder]] = {}
    for model in models:
        if isinstance(model, str):
            names.append(model)
            continue
        name = f"{IN_MEMORY}{model.__module__}:{getattr(model, '__qualname__', type(model).__qualname__)}"
        alike = known.setdefault(name, [])
        if model not in alike:
            alike.append(model)
        number = alike.index(model) + 1
        names.append(name if number == 1 else f"{name}#{number}")
    return names


def _data_name(data: str | Dataset) -> str:
    return f"{IN_MEMORY}{data.name}" if isinstance(data, Dataset) else data


def carry_out(config: RunConfig, path: Path, *, given: Given | None = None, progress: Progress | None = None) -> Result:
    """Carry out a configuration in a new folder, and write its report."""
    with following(progress) as follower:
        execute(config, path, given=given or Given(), progress=follower)
    report.write(path)
    return Result(path, given or Given())


def resume(
    path: str | Path,
    *,
    method: Method | None = None,
    data: DataSets | None = None,
    models: Sequence[str | Builder] | None = None,
    public: str | Dataset | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Go on with a run where its last commit left it, and write its report.

    Args:
        method, data, models, public: What was given to :func:`run` as objects that cannot be found again by name.
        workers: Processes on this machine, where it should be another number than before.

    Raises:
        InterfuseError: there is no run, it was changed, or an object has to be given again.
    """
    given = _given(method, data, models, public)
    with following(progress) as follower:
        resume_run(Path(path), given=given, workers=workers, progress=follower)
    report.write(Path(path))
    return Result(path, given)


def load_run(
    path: str | Path,
    *,
    method: Method | None = None,
    data: DataSets | None = None,
    models: Sequence[str | Builder] | None = None,
    public: str | Dataset | None = None,
) -> Result:
    """Open a run folder, finished or not. For the other arguments see :func:`resume`."""
    return Result(path, _given(method, data, models, public))


def _given(
    method: Method | None,
    data: DataSets | None,
    models: Sequence[str | Builder] | None,
    public: str | Dataset | None,
) -> Given:
    several = () if data is None else (data,) if isinstance(data, str | Dataset) else data
    objects = any(isinstance(one, Dataset) for one in several)
    named = models is None or all(isinstance(model, str) for model in models)
    return Given(
        method=method,
        dataset=[load(one) for one in several] if objects else None,
        builders=None if named else [resolve(model) for model in expanded(models or ())],
        public=public if isinstance(public, Dataset) else None,
    )


def new_folder(config: RunConfig, parent: Path = Path("runs")) -> Path:
    """A folder that does not exist yet, named after what runs in it."""
    words = (Path(text.rpartition(":")[2]).stem.lower() for text in (config.method, *config.data_names))
    name = f"{'-'.join(words)}-seed{config.seed}"
    names = (parent / (name if number == 1 else f"{name}-{number}") for number in range(1, 1_000_000))
    return next(path for path in names if not path.exists())
