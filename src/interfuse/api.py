"""``interfuse.run``: a federation in one call from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

from interfuse import report
from interfuse.clock import named
from interfuse.data import Dataset, Divide, Partition, Sampling, Tasks, load
from interfuse.errors import ConfigError
from interfuse.evaluation import OwnMetric
from interfuse.method import Method, layered
from interfuse.methods import find, name_of
from interfuse.models import Builder, expanded, resolve
from interfuse.references import IN_MEMORY, reference_of, slug
from interfuse.report.progress import following
from interfuse.result import Result
from interfuse.runs import Callback, Execution, Given, Progress, RunConfig, RunSettings, execute, parse_config
from interfuse.runs import resume as resume_run
from interfuse.runs.config import (
    DataSets,
    absolute_paths,
    check_keys,
    metric_names,
    partition_of,
    partition_values,
    plain,
    settings_of,
)
from interfuse.runs.protocols import settings_under
from interfuse.seeds import SeedResults, check, default_folder, folder_of
from interfuse.training import Cosine, Exponential, OwnSchedule


@overload
def run(
    method: str | Method | type[Method] = "ifl",
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    seeds: None = None,
    **values: Unpack[RunSettings],
) -> Result: ...


@overload
def run(
    method: str | Method | type[Method] = "ifl",
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    seeds: Sequence[int],
    **values: Unpack[RunSettings],
) -> SeedResults: ...


def run(
    method: str | Method | type[Method] = "ifl",
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    seeds: Sequence[int] | None = None,
    **values: Unpack[RunSettings],
) -> Result | SeedResults:
    """Run a federated method and write its folder, with a report.

    Args:
        method: A method object, its class, or a name: built in, ``mine.py``, ``package.module:Class``, an entry point.
        out: The run folder; None: a new one under ``runs/``.
        progress: Who follows the run; None: bars or lines on the standard error stream.
            ``interfuse.Silent()`` shows nothing.
        callbacks: Hooks of your own, see :class:`interfuse.Callback`; results do not depend on them.
        seeds: Several runs, each in ``out/seed-N``, and one summary over them. What is finished is kept, what was begun
            goes on.
        values: The settings of :class:`interfuse.runs.RunSettings`; defaults are those of a recipe.

    Raises:
        InterfuseError: something cannot work; the text names the client and the field.
    """
    check_keys(values, {*RunSettings.__annotations__, "out", "progress", "callbacks", "seeds"}, "interfuse.run")
    settings = values.get("settings", {})
    if isinstance(method, Method) and settings:
        raise ConfigError("settings belong to a method that is given by name; this object has its own")
    if not isinstance(method, Method):
        kind = find(method) if isinstance(method, str) else method
        protocol = values.get("protocol")
        set_here = {} if protocol is None else settings_under(protocol, kind)
        method = kind.configure(layered(set_here, settings))
    objects = {key: value for key, value in values.items() if key in Objects.__annotations__}
    given = _given(cast(Objects, objects | {"method": method}), callbacks)
    plain_values = plain_settings(values)
    plain_values |= {"method": name_of(type(method)), "settings": settings_of(method)}
    plain_values["execution"] = {key: plain_values.pop(key) for key in Execution.model_fields if key in plain_values}
    config = parse_config(absolute_paths(plain_values, Path.cwd()), "interfuse.run")
    path = None if out is None else Path(out)
    if seeds is None:
        return carry_out(config, path or new_folder(config), given=given, progress=progress)
    if "seed" in values:
        raise ConfigError("seed and seeds together: give one of them")
    parent = path or default_folder(config, seeds, method)
    check(config, seeds, parent, method)
    with following(progress) as follower:
        found = [run_seed(config, seed, parent, given=given, progress=follower) for seed in seeds]
    return SeedResults(parent, tuple(found)).write()


run.__doc__ = f"{run.__doc__}\n    {RunSettings.__doc__}"  # so that help(interfuse.run) has all of them


def plain_settings(values: RunSettings) -> dict[str, Any]:
    """Settings as a recipe has them: objects by their names, schedules and methods' settings as plain values."""
    return {key: _PLAIN[key](value) if key in _PLAIN else value for key, value in values.items()}


def _plain_setting(value: Any) -> Any:
    """A setting as a recipe has it; a function is a learning rate's."""
    known = isinstance(value, Exponential | Cosine) or not callable(value)
    return plain(value if known else OwnSchedule.of(value))


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


def _data_names(data: DataSets) -> str | list[str]:
    if isinstance(data, str | Dataset):
        return f"{IN_MEMORY}{data.name}" if isinstance(data, Dataset) else data
    return [str(_data_names(one)) for one in data]


_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "data": _data_names,
    "public": lambda public: None if public is None else _data_names(public),
    "models": _names,
    "metrics": metric_names,
    "partition": partition_values,
    "settings": lambda settings: {key: _plain_setting(value) for key, value in settings.items()},
    "client": lambda own: {c: {key: _plain_setting(v) for key, v in values.items()} for c, values in own.items()},
    "numerics": asdict,
    "sampling": lambda sampling: asdict(sampling) if isinstance(sampling, Sampling) else sampling,
    "tasks": lambda tasks: asdict(tasks) if isinstance(tasks, Tasks) else tasks,
    "stop": lambda stop: None if stop is None else asdict(stop),
    "devices": lambda devices: asdict(named(devices) if isinstance(devices, str) else devices),
}
"""Settings that may be objects, as plain values."""


def carry_out(config: RunConfig, path: Path, *, given: Given | None = None, progress: Progress | None = None) -> Result:
    """Carry out a configuration in a new folder, and write its report."""
    with following(progress) as follower:
        execute(config, path, given=given or Given(), progress=follower)
    report.write(path)
    return Result(path, given or Given())


def run_seed(config: RunConfig, seed: int, out: Path, *, given: Given | None = None, progress: Progress) -> Result:
    """Carry out a configuration with one seed in ``out/seed-S``. What is finished is kept, what was begun goes on."""
    path, given = folder_of(out, seed), given or Given()
    progress.note(f"seed {seed}: {path}")
    if not (path / "config.toml").exists():
        return carry_out(config.model_copy(update={"seed": seed}), path, given=given, progress=progress)
    resume_run(path, given=given, progress=progress)
    report.write(path)
    return Result(path, given)


class Objects(TypedDict, total=False):
    """What was given to :func:`interfuse.run` as objects that cannot be found again by name."""

    method: Method | None
    data: DataSets | None
    models: Sequence[str | Builder] | None
    public: str | Dataset | None
    partition: str | Partition | Divide | None
    metrics: Sequence[str | OwnMetric]


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    workers: int | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
    ray_gpus: float | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    **objects: Unpack[Objects],
) -> Result:
    """Go on with a run where its last commit left it, and write its report.

    Args:
        rounds: Of the whole run, where it should have more than it was begun with, finished or not. It becomes the run
            that had so many from its beginning, to the bit, with what runs beside it.
        workers: Processes, where it should be another number than before.
        engine, ray_address, ray_gpus: As for :func:`run`, where it should go on elsewhere than before.
        callbacks: As for :func:`run`.
        objects: What was given to :func:`run` as an object that cannot be found again by name: ``method``, ``data``,
            ``models``, ``public``, ``partition``, ``metrics``.

    Raises:
        InterfuseError: there is no run, it was changed, an object has to be given again, or it cannot be extended.
    """
    check_keys(objects, Objects.__annotations__, "interfuse.resume")
    given = _given(objects, callbacks)
    execution = {"workers": workers, "engine": engine, "ray_address": ray_address, "ray_gpus": ray_gpus}
    with following(progress) as follower:
        resume_run(Path(path), given=given, rounds=rounds, execution=execution, progress=follower)
    report.write(Path(path))
    return Result(path, given)


def load_run(path: str | Path, **objects: Unpack[Objects]) -> Result:
    """Open a run folder, finished or not. For ``objects`` see :func:`resume`."""
    check_keys(objects, Objects.__annotations__, "interfuse.load_run")
    return Result(path, _given(objects))


def _given(objects: Objects, callbacks: Sequence[Callback] = ()) -> Given:
    data, models, public = objects.get("data"), objects.get("models"), objects.get("public")
    partition, metrics = objects.get("partition"), objects.get("metrics", ())
    several = () if data is None else (data,) if isinstance(data, str | Dataset) else data
    in_memory = any(isinstance(one, Dataset) for one in several)
    named = models is None or all(isinstance(model, str) for model in models)
    return Given(
        method=objects.get("method"),
        dataset=[load(one) for one in several] if in_memory else None,
        builders=None if named else [resolve(model) for model in expanded(models or ())],
        public=public if isinstance(public, Dataset) else None,
        partition=None if partition is None or isinstance(partition, str) else partition_of(partition),
        metrics={reference_of(metric): metric for metric in metrics if not isinstance(metric, str)},
        callbacks=callbacks,
    )


def new_folder(config: RunConfig, parent: Path = Path("runs")) -> Path:
    """A folder that does not exist yet, named after what runs in it."""
    name = f"{slug(config.method, *config.data_names)}-seed{config.seed}"
    names = (parent / (name if number == 1 else f"{name}-{number}") for number in range(1, 1_000_000))
    return next(path for path in names if not path.exists())
