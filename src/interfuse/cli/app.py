"""The commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from interfuse import api, report, seeds
from interfuse.cli import comparing, listings, network, service, serving
from interfuse.cli.configuration import (
    codecs,
    configure,
    devices_table,
    listed,
    none_or_listed,
    numbers,
    one_or_listed,
    reading,
    table_of_options,
    test_rows,
)
from interfuse.cli.listings import show_result
from interfuse.cli.options import (
    AFTER,
    DEFAULT,
    HOW,
    WHAT,
    Alpha,
    Arrival,
    Balanced,
    Carrier,
    ClassesPerClient,
    ClientMemory,
    CodecTexts,
    CommitEvery,
    DataSets,
    Denormals,
    Device,
    Devices,
    Divide,
    DType,
    EvalEvery,
    Initial,
    Json,
    LastBatch,
    Layout,
    ModelNames,
    Normalise,
    NumberOfClients,
    Order,
    PartitionName,
    Patience,
    Processes,
    Protocol,
    Public,
    Quiet,
    RayAddress,
    RayGpus,
    ReadTexts,
    Replay,
    Rounds,
    RunArgument,
    Seed,
    Settings,
    ShardsPerClient,
    TestRows,
    Width,
    argument,
    option,
)
from interfuse.cli.terminal import carried_out, exit_code
from interfuse.data import ReadOptions, description, load_with
from interfuse.data import describe as described
from interfuse.data.readers import htfllib
from interfuse.errors import ClientError, ConfigError, InterfuseError, MessageError
from interfuse.evaluation import ACROSS_TASKS, METRICS
from interfuse.report.progress import shown
from interfuse.report.tensorboard import TensorBoard
from interfuse.runs import Callback, Given, RunConfig
from interfuse.runs.folder import RunFolder
from interfuse.training import DivergedError

USAGE_ERROR = 2


class _Group(TyperGroup):
    """All commands: their errors become a line on the standard error stream."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InterfuseError as error:
            for line in (f"error: {error}", *getattr(error, "__notes__", ())):
                typer.echo(line, err=True)
            raise typer.Exit(USAGE_ERROR) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Example: [bold]interfuse run demo[/] shows four clients with four architectures learning together. "
        "[bold]interfuse run ifl --data fashion-mnist --seed 1[/] is an experiment of your own."
    ),
)


def main() -> None:
    """What the console script ``interfuse`` calls."""
    sys.exit(carried_out(app))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"interfuse {version('interfuse')}")
        raise typer.Exit


@app.callback()
def _top(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning between parties whose models differ, without handing over their data."""


_SEEDS = "Several seeds, each in OUT/seed-N; the same command again goes on with what is not finished."
_BESIDE = f"References to run on the same data: local, pooled (default {','.join(DEFAULT.beside)})."
_TOGETHER = (
    "Clients of one model whose linear layers are trained in one computation; it rounds otherwise, and on a processor "
    'pays for small heads of many. Other layers: layers_together = "all" in a recipe\'s \\[numerics]; what cannot be '
    f"computed so is trained one by one, see docs/model.md (default {DEFAULT.numerics.together})."
)
_MORE = "Rounds of the whole run, more than it was begun with: as if it had had so many from its beginning."
_TRACKED = "Write scores, bytes and steps as TensorBoard reads them, while the run goes on."
Tracked = Annotated[Path | None, option(AFTER, "DIR", _TRACKED)]
_METRICS = (
    f"Measure more than accuracy at the last and the best round: {', '.join(METRICS)}; at every point of the curve: "
    f"{', '.join(sorted(ACROSS_TASKS))} (default none)."
)


@app.command(no_args_is_help=True)
def run(
    what: Annotated[str, argument("METHOD|RECIPE")],
    protocol: Protocol = None,
    rounds: Rounds = None,
    patience: Patience = None,
    seed: Seed = None,
    several: Annotated[str | None, option(WHAT, "N,N,...", _SEEDS, "--seeds")] = None,
    assignments: Settings = None,
    beside: Annotated[str | None, option(WHAT, "NAME,NAME|none", _BESIDE)] = None,
    data: DataSets = None,
    read: ReadTexts = None,
    public: Public = None,
    clients: NumberOfClients = None,
    partition: PartitionName = None,
    alpha: Alpha = None,
    balanced: Balanced = None,
    classes: ClassesPerClient = None,
    shards: ShardsPerClient = None,
    test: TestRows = None,
    divide: Divide = None,
    normalise: Normalise = None,
    models: ModelNames = None,
    width: Width = None,
    initial: Initial = None,
    codec: CodecTexts = None,
    device: Device = None,
    devices: Devices = None,
    order: Order = None,
    last_batch: LastBatch = None,
    arrival: Arrival = None,
    replay: Replay = None,
    layout: Layout = None,
    dtype: DType = None,
    denormals: Denormals = None,
    together: Annotated[int | None, option(HOW, "N", _TOGETHER, min=1)] = None,
    engine: Carrier = None,
    workers: Processes = None,
    ray_address: RayAddress = None,
    ray_gpus: RayGpus = None,
    commit_every: CommitEvery = None,
    client_memory: ClientMemory = None,
    eval_every: EvalEvery = None,
    metrics: Annotated[str | None, option(AFTER, "NAME,...|none", _METRICS)] = None,
    out: Annotated[Path | None, option(AFTER, "PATH", "Run folder (default: a new one in runs/).")] = None,
    tensorboard: Tracked = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a federation, and write its folder and report.

    METHOD: a name that `interfuse methods` lists, mine.py, or package.module:Class.
    RECIPE: a name such as demo, or a path ending in .toml; options override it.
    """
    if seed is not None and several is not None:
        raise ConfigError("--seed and --seeds together: give one of them")
    config = configure(
        what,
        {
            "protocol": protocol, "rounds": rounds, "seed": seed,
            "stop": None if patience is None else {"patience": patience},
            "data": one_or_listed(data), "read": reading(read), "public": public, "clients": clients,
            "models": listed(models), "fusion_width": width, "device": device,
            "eval_every": eval_every, "codecs": codecs(codec), "devices": devices_table(devices),
            "test": test_rows(test), "divide": divide, "normalise": normalise, "initial": initial,
            "sampling": table_of_options(order=order, last_batch=last_batch),
            "tasks": table_of_options(arrival=arrival, memory=replay),
            "beside": none_or_listed(beside), "metrics": none_or_listed(metrics),
            "numerics": {"layout": layout, "dtype": dtype, "denormals": denormals, "together": together},
            "execution": {
                "engine": engine, "workers": workers, "ray_address": ray_address, "ray_gpus": ray_gpus,
                "commit_rounds": commit_every, "client_memory": client_memory,
            },
        },
        partition={
            "name": partition, "alpha": alpha, "balanced": balanced,
            "classes_per_client": classes, "shards_per_client": shards,
        },
        assignments=assignments or (),
    )  # fmt: skip
    if several is not None:
        _run_seeds(config, numbers(several), out, tensorboard, as_json=as_json, quiet=quiet)
        return
    path = out or api.new_folder(config)
    given = Given(callbacks=_trackers(tensorboard))
    with _resumable(path), shown(quiet) as progress:
        result = api.carry_out(config, path, given=given, progress=progress)
    show_result(result, as_json=as_json)


def _trackers(folder: Path | None) -> list[Callback]:
    return [] if folder is None else [TensorBoard(folder)]


def _run_seeds(
    config: RunConfig, several: list[int], out: Path | None, tensorboard: Path | None, *, as_json: bool, quiet: bool
) -> None:
    parent = out or seeds.default_folder(config, several)
    seeds.check(config, several, parent)
    results = []
    with shown(quiet) as progress:
        for seed in several:
            with _resumable(seeds.folder_of(parent, seed)):
                given = Given(callbacks=_trackers(tensorboard and seeds.folder_of(tensorboard, seed)))
                results.append(api.run_seed(config, seed, parent, given=given, progress=progress))
    found = seeds.SeedResults(parent, tuple(results)).write()
    if as_json:
        typer.echo(json.dumps(found.values()))
    else:
        _print(listings.table(found.heads, found.lines(), title=found.title))
        for note in found.notes:
            typer.echo(note)
        for seed in several:
            typer.echo(f"report: {seeds.folder_of(parent, seed) / 'report.html'}")


app.command(no_args_is_help=True)(comparing.compare)
app.command(no_args_is_help=True)(serving.export)
app.command(no_args_is_help=True)(serving.predict)
app.add_typer(serving.registry, name="registry")
app.command(no_args_is_help=True)(service.serve)
app.command("api-key", no_args_is_help=True)(service.api_key)
for command in (network.keys, network.node, network.coordinate, network.status, network.audit):
    app.command(no_args_is_help=True)(command)
app.command("flower-app", no_args_is_help=True)(network.flower_app)


@app.command()
def resume(
    folder: RunArgument,
    rounds: Annotated[int | None, option(None, "N", _MORE)] = None,
    engine: Carrier = None,
    workers: Processes = None,
    ray_address: RayAddress = None,
    ray_gpus: RayGpus = None,
    tensorboard: Tracked = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with the run in the folder RUN where its last commit left it."""
    with _resumable(folder), shown(quiet) as progress:
        result = api.resume(
            folder, rounds=rounds, workers=workers, engine=engine, ray_address=ray_address,
            ray_gpus=ray_gpus, progress=progress, callbacks=_trackers(tensorboard),
        )  # fmt: skip
    show_result(result, as_json=as_json)


@app.command("report")
def write_report(folder: RunArgument) -> None:
    """Write the report of the run in the folder RUN anew, finished or not, and print its path."""
    typer.echo(report.write(folder))
    for text in RunFolder(folder).notices():
        typer.echo(f"notice: {text}", err=True)


@app.command(no_args_is_help=True)
def convert(source: Annotated[Path, argument("SOURCE")], out: Annotated[Path, argument("OUT.npz")]) -> None:
    """Write a folder of HtFLlib or PFLlib as one file of arrays, for `--data OUT.npz --partition natural`.

    SOURCE: the folder with train/0.npz, test/0.npz and so on. They hold pickles, of which nothing is run.
    OUT.npz: the file to write.
    """
    for fact in htfllib.convert(source, out):
        typer.echo(fact)
    typer.echo(f"wrote {out}")


@app.command()
def methods(name: Annotated[str | None, argument("NAME")] = None) -> None:
    """List the methods and what they disclose; with a name, its settings and messages."""
    _print(listings.methods() if name is None else listings.method(name))


@app.command()
def datasets() -> None:
    """List the data sets and whether they are on this machine."""
    _print(listings.datasets())


@app.command(no_args_is_help=True)
def describe(
    what: Annotated[str, argument("DATA")],
    read: ReadTexts = None,
    as_json: Json = False,
) -> None:
    """Show how a data set is read: its rows, columns, classes, what was left out, and what may not be meant.

    DATA: a file or folder, or what else --data of a run takes.
    """
    dataset = load_with(what, ReadOptions.of(reading(read) or {}))
    if as_json:
        typer.echo(json.dumps(description(dataset)))
    else:
        _print(listings.facts(described(dataset)))


@app.command()
def models() -> None:
    """List the models."""
    _print(listings.zoo())


@contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """Say how a run goes on that stops before its end."""
    command = f"interfuse resume {shlex.quote(str(path))}"
    try:
        yield
    except KeyboardInterrupt as interruption:
        begun = (path / "config.toml").exists()
        typer.echo(f"\ninterrupted; to go on: {command}" if begun else "\ninterrupted", err=True)
        raise typer.Exit(exit_code(interruption)) from None
    except (ClientError, DivergedError, MessageError) as error:
        error.add_note(f"hint: once the cause is removed, `{command}` goes on from the last commit")
        raise


def _print(content: RenderableType) -> None:
    Console(markup=False, emoji=False, highlight=False).print(content)
