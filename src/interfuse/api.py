"""``interfuse.run``: a federation in one call from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from interfuse import report
from interfuse.clock import named
from interfuse.data import Dataset, load
from interfuse.errors import ConfigError
from interfuse.method import Method
from interfuse.methods import find, name_of
from interfuse.models import Builder, expanded, resolve
from interfuse.references import IN_MEMORY
from interfuse.report.progress import following
from interfuse.runs import Execution, Given, Progress, Result, RunConfig, RunSettings, execute, parse_config
from interfuse.runs import resume as resume_run
from interfuse.runs.config import DataSets, absolute_paths, check_keys, partition_values, settings_of


def run(
    method: str | Method | type[Method] = "ifl",
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **values: Unpack[RunSettings],
) -> Result:
    """Run a federated method and write its folder, with a report.

    Args:
        method: A method object, its class, or a name: built in, ``mine.py``, ``package.module:Class``, an entry point.
        out: The run folder; None: a new one under ``runs/``.
        progress: Who follows the run; None: bars or lines on the standard error stream.
            ``interfuse.Silent()`` shows nothing.
        values: The settings of :class:`interfuse.runs.RunSettings`; defaults are those of a recipe.

    Raises:
        InterfuseError: something cannot work; the text names the client and the field.
    """
    check_keys(values, {*RunSettings.__annotations__, "out", "progress"}, "interfuse.run")
    settings = values.get("settings", {})
    if isinstance(method, Method) and settings:
        raise ConfigError("settings belong to a method that is given by name; this object has its own")
    if not isinstance(method, Method):
        method = (find(method) if isinstance(method, str) else method).configure(settings)
    given = _given(method, values.get("data"), values.get("models"), values.get("public"))
    plain = {key: _PLAIN[key](value) if key in _PLAIN else value for key, value in values.items()}
    plain |= {"method": name_of(type(method)), "settings": settings_of(method)}
    plain["execution"] = {key: plain.pop(key) for key in Execution.model_fields if key in plain}
    config = parse_config(absolute_paths(plain, Path.cwd()), "interfuse.run")
    return carry_out(config, Path(out) if out is not None else new_folder(config), given=given, progress=progress)


run.__doc__ = f"{run.__doc__}\n    {RunSettings.__doc__}"  # so that help(interfuse.run) has all of them


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
    "partition": partition_values,
    "numerics": asdict,
    "devices": lambda devices: asdict(named(devices) if isinstance(devices, str) else devices),
}
"""Settings that may be objects, as plain values."""


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
