"""The commands."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from interfuse import api, report
from interfuse.cli import listings, seeds
from interfuse.cli.configuration import configure, listed, numbers, one_or_listed
from interfuse.data import PARTITIONS
from interfuse.errors import ClientError, ConfigError, DataError, InterfuseError, MessageError, RunError
from interfuse.report.progress import shown
from interfuse.runs import Result, RunConfig
from interfuse.training import DivergedError

USAGE_ERROR, INTERRUPTED = 2, 128 + signal.SIGINT
DEFAULT = RunConfig()


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
    app()


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


WHAT, DATA, MODELS, HOW, AFTER = "What is trained", "Data", "Models", "How it is carried out", "Results"

# Arguments are explained in the text of their command, not here: Typer 0.20 with Click 8.5 shows no help of arguments.
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", show_default=False)]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, the last line.", rich_help_panel=AFTER)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=AFTER)]
Processes = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes side by side; results are the same (default: one a core).",
        rich_help_panel=HOW,
    ),
]


@app.command(no_args_is_help=True)
def run(
    what: Annotated[
        str,
        typer.Argument(metavar="METHOD|RECIPE", show_default=False),
    ],
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help=f"Rounds (default {DEFAULT.rounds}).", rich_help_panel=WHAT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help=f"Seed (default {DEFAULT.seed}).", rich_help_panel=WHAT)
    ] = None,
    several: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="N,N,...",
            help="Several seeds, each in OUT/seed-N; the same command again goes on with what is not finished.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the method (`interfuse methods NAME` lists them); client.2.KEY=VALUE for client 2 "
            "alone. May be repeated.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME|none",
            help=f"References to run on the same data: local, pooled (default {','.join(DEFAULT.beside)}).",
            rich_help_panel=WHAT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Data sets, dealt to the clients in turn: `interfuse datasets` lists them; or rows.npz, "
            f"package.module:load, file.py:load (default {DEFAULT.data}).",
            rich_help_panel=DATA,
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Number of clients (default {DEFAULT.clients}).", rich_help_panel=DATA),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"How the data is divided: {', '.join(PARTITIONS)} (default {DEFAULT.partition['name']}).",
            rich_help_panel=DATA,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(metavar="X", help="Concentration of --partition dirichlet.", rich_help_panel=DATA),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(metavar="K", help="Classes a client of --partition pathological.", rich_help_panel=DATA),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(metavar="S", help="Shards a client of --partition shards.", rich_help_panel=DATA),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Models, dealt to the clients in turn: `interfuse models` lists them; or file.py:function "
            f"(default {','.join(DEFAULT.models)}).",
            rich_help_panel=MODELS,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            metavar="D", help=f"Width of the fusion layer (default {DEFAULT.fusion_width}).", rich_help_panel=MODELS
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"cpu, cuda, cuda:1 (default {DEFAULT.device}).", rich_help_panel=HOW),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Memory layout: contiguous or channels_last (default {DEFAULT.numerics.layout}).",
            rich_help_panel=HOW,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Of training: float32, or bfloat16 by autocast (default {DEFAULT.numerics.dtype}).",
            rich_help_panel=HOW,
        ),
    ] = None,
    denormals: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Numbers below 1.2e-38: flush to zero, or keep (default {DEFAULT.numerics.denormals}).",
            rich_help_panel=HOW,
        ),
    ] = None,
    workers: Processes = None,
    commit_every: Annotated[
        int | None,
        typer.Option(metavar="K", help="Commit every K rounds (default: every 30 seconds).", rich_help_panel=HOW),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            metavar="K", help=f"Measure accuracy every K rounds (default {DEFAULT.eval_every}).", rich_help_panel=AFTER
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Run folder (default: a new one in runs/).", rich_help_panel=AFTER),
    ] = None,
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
            "rounds": rounds, "seed": seed, "data": one_or_listed(data), "clients": clients, "models": listed(models),
            "fusion_width": width, "device": device, "eval_every": eval_every,
            "beside": [] if beside == "none" else listed(beside),
            "numerics": {"layout": layout, "dtype": dtype, "denormals": denormals},
            "execution": {"workers": workers, "commit_rounds": commit_every},
        },
        partition={"name": partition, "alpha": alpha, "classes_per_client": classes, "shards_per_client": shards},
        assignments=assignments or (),
    )  # fmt: skip
    if several is not None:
        _run_seeds(config, numbers(several), out, as_json=as_json, quiet=quiet)
        return
    path = out or api.new_folder(config)
    with _resumable(path), shown(quiet) as progress:
        result = api.carry_out(config, path, progress=progress)
    _show(result, as_json=as_json)


def _run_seeds(config: RunConfig, several: list[int], out: Path | None, *, as_json: bool, quiet: bool) -> None:
    parent = out or seeds.default_folder(config, several)
    seeds.check(config, several, parent)
    summaries = []
    with shown(quiet) as progress:
        for seed in several:
            progress.note(f"seed {seed}: {seeds.folder_of(parent, seed)}")
            with _resumable(seeds.folder_of(parent, seed)):
                summaries.append(seeds.run(config, seed, parent, progress))
    means, deviations = seeds.over_seeds(summaries)
    if as_json:
        typer.echo(json.dumps({"seeds": summaries, "mean": means, "std": deviations}))
    else:
        _print(seeds.overview(summaries))
        for seed in several:
            typer.echo(f"report: {seeds.folder_of(parent, seed) / 'report.html'}")


@app.command()
def resume(folder: RunArgument, workers: Processes = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Go on with the run in the folder RUN where its last commit left it."""
    with _resumable(folder), shown(quiet) as progress:
        result = api.resume(folder, workers=workers, progress=progress)
    _show(result, as_json=as_json)


@app.command("report")
def write_report(folder: RunArgument) -> None:
    """Write the report of the run in the folder RUN anew, finished or not, and print its path."""
    typer.echo(report.write(folder))


@app.command()
def predict(
    folder: RunArgument,
    samples: Annotated[
        Path,
        typer.Argument(metavar="INPUT.npy", show_default=False),
    ],
    base: Annotated[int, typer.Option(metavar="CLIENT", help="Whose base block.", show_default=False)],
    modular: Annotated[int, typer.Option(metavar="CLIENT", help="Whose modular block.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="SCORES.npy", help="Write the scores to a file.", rich_help_panel=AFTER)
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify samples with the base block of one client and the modular block of another.

    RUN: a run folder.
    INPUT.npy: samples as the data set stores them, batch first.
    """
    result = api.load_run(folder)
    scores = result.compose(base, modular)(_samples(samples)).numpy()
    names = result.class_names(base)
    found = [names[best] for best in scores.argmax(axis=1)]
    if out is not None:
        _write_scores(out, scores)
    if as_json:
        typer.echo(json.dumps({"classes": found, "scores": scores.tolist()}))
    else:
        typer.echo("\n".join(found))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
) -> None:
    """List the methods and what they disclose; with a name, its settings and messages."""
    _print(listings.methods() if name is None else listings.method(name))


@app.command()
def datasets() -> None:
    """List the data sets and whether they are on this machine."""
    _print(listings.datasets())


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
    except KeyboardInterrupt:
        begun = (path / "config.toml").exists()
        typer.echo(f"\ninterrupted; to go on: {command}" if begun else "\ninterrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ClientError, DivergedError, MessageError) as error:
        error.add_note(f"hint: once the cause is removed, `{command}` goes on from the last commit")
        raise


def _show(result: Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.summary))
    else:
        _print(report.console_summary(result.summary))


def _print(content: RenderableType) -> None:
    Console(markup=False, emoji=False, highlight=False).print(content)


def _samples(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as an array of numbers (.npy): {error}") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} holds several arrays; save one with numpy.save")
    return found


def _write_scores(path: Path, scores: np.ndarray) -> None:
    try:
        with open(path, "wb") as file:
            np.save(file, scores)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
