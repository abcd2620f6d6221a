"""``interfuse compare``: from its words to a plan."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from interfuse import comparison, recipes
from interfuse.cli.configuration import (
    assign,
    changed_partition,
    codecs,
    devices_table,
    given,
    listed,
    method_names,
    numbers,
    one_or_listed,
    partition_of,
    reading,
    table_of_options,
    test_rows,
    toml_or_text,
)
from interfuse.cli.listings import table
from interfuse.cli.options import (
    AFTER,
    HOW,
    WHAT,
    Alpha,
    Arrival,
    Balanced,
    ClassesPerClient,
    CodecTexts,
    DataSets,
    Device,
    Devices,
    Divide,
    EvalEvery,
    Initial,
    Json,
    LastBatch,
    ModelNames,
    Normalise,
    NumberOfClients,
    Order,
    PartitionName,
    Protocol,
    Public,
    Quiet,
    ReadTexts,
    Replay,
    Rounds,
    Settings,
    ShardsPerClient,
    TestRows,
    Width,
    argument,
    option,
)
from interfuse.cli.terminal import exit_code
from interfuse.comparison import Recipe
from interfuse.comparison.outcome import Outcome
from interfuse.comparison.table import Cell, Table
from interfuse.errors import ConfigError, nearest
from interfuse.references import is_reference, short_name
from interfuse.runs.config import absolute_paths

PADDING = 3
"""Letters between two columns in a terminal."""
_GRID = (
    "Choose a setting by validation accuracy, for each method that has it; KEY,KEY=A,B,... gives several settings the "
    "same value. May be repeated."
)
_COLUMNS = (
    "Columns of the first table: own, global, composition, uplink, steps, memory, own-best, ... (default those five)."
)
_CAPTION = "Caption of the first table, in every format."
_SKIP = "Go on without the entries that cannot work, and name them in the tables."
_ENTRY = "Only this entry of a recipe, also one that --small leaves out. May be repeated."
_SMALL = "A recipe for one machine and some hours, as it says itself."


def compare(
    what: Annotated[list[str], argument("RECIPE|METHOD...")],
    protocol: Protocol = None,
    rounds: Rounds = None,
    seeds: Annotated[str | None, option(WHAT, "N,N,...", "Seeds of every entry (default 0,1,2).")] = None,
    assignments: Settings = None,
    grid: Annotated[list[str] | None, option(WHAT, "KEY=A,B,...", _GRID)] = None,
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
    jobs: Annotated[int | None, option(HOW, "N", "Runs side by side (default: one a core, on a GPU one).")] = None,
    smoke: Annotated[bool, option(HOW, None, "A quick try of a recipe, as it says itself.", "--smoke")] = False,
    small: Annotated[bool, option(HOW, None, _SMALL, "--small")] = False,
    entry: Annotated[list[str] | None, option(WHAT, "NAME", _ENTRY)] = None,
    skip_refused: Annotated[bool, option(HOW, None, _SKIP, "--skip-refused")] = False,
    eval_every: EvalEvery = None,
    columns: Annotated[str | None, option(AFTER, "NAME,...", _COLUMNS)] = None,
    caption: Annotated[str | None, option(AFTER, "TEXT", _CAPTION)] = None,
    out: Annotated[Path | None, option(AFTER, "PATH", "Folder (default: comparisons/NAME).")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods over several seeds, each with its own tuned settings, in one table.

    RECIPE: a name such as compare-demo, or a path ending in .toml; options override it.
    METHOD...: names that `interfuse methods` lists, mine.py, or package.module:Class.

    The same command again goes on with what is not finished.
    """
    recipe = named(what)
    if smoke and small:
        raise ConfigError("--smoke and --small: choose one")
    if smoke or small:
        recipe = comparison.quicker(recipe, "smoke" if smoke else "small", all_entries=entry is not None)
    if entry is not None:
        recipe = comparison.only(recipe, entry, "--entry")
    run = absolute_paths(
        given({
            "protocol": protocol, "rounds": rounds,
            "data": one_or_listed(data), "read": reading(read), "public": public, "clients": clients,
            "models": listed(models), "fusion_width": width, "device": device, "eval_every": eval_every,
            "codecs": codecs(codec), "devices": devices_table(devices),
            "test": test_rows(test), "divide": divide, "normalise": normalise, "initial": initial,
            "sampling": table_of_options(order=order, last_batch=last_batch),
            "tasks": table_of_options(arrival=arrival, memory=replay),
        }),
        Path.cwd(),
    )  # fmt: skip
    asked = {
        "name": partition,
        "alpha": alpha,
        "balanced": balanced,
        "classes_per_client": classes,
        "shards_per_client": shards,
    }
    if asked := given(asked):
        before = partition_of({**recipe.run, **run})
        run["partition"] = changed_partition(before, absolute_paths(asked, Path.cwd()))
    for text in assignments or ():
        assign(run, text)
    recipe = comparison.override(recipe, run, axes(grid or ()))
    said = given(
        {
            "seeds": None if seeds is None else tuple(numbers(seeds)),
            "caption": caption,
            "columns": None if columns is None else tuple(listed(columns) or ()),
        }
    )
    recipe = recipe.model_copy(update={"asked": recipe.asked.model_copy(update=said)})
    folder = out or Path("comparisons") / recipe.name
    plan = comparison.resolve(recipe)
    try:
        with comparison.shown(quiet) as follower:
            found = comparison.compare(plan, folder, jobs=jobs, follower=follower, skip_refused=skip_refused)
    except KeyboardInterrupt as interruption:
        typer.echo(f"\ninterrupted; the same command goes on in {folder}", err=True)
        raise typer.Exit(exit_code(interruption)) from None
    if as_json:
        typer.echo(json.dumps(found.values))
    else:
        _show(found, folder)
    for name, reason in found.incomplete.items():
        typer.echo(f"not whole: {name}: {reason}", err=True)
    if found.incomplete:
        raise typer.Exit(1)


def named(what: Sequence[str]) -> Recipe:
    """The recipe that the words name; of methods, one with an entry for each.

    Raises:
        ConfigError: a word names nothing, or a recipe stands beside something else.
    """
    paths = [_path(word) for word in what]
    if len(what) == 1 and paths[0] is not None:
        return comparison.read(paths[0])
    for word, path in zip(what, paths, strict=True):
        if path is not None:
            raise ConfigError(f"{word} is a recipe; name one recipe, or methods only")
        if not (is_reference(word) or word.endswith(".py") or word in method_names()):
            raise ConfigError(f"no method {word!r}: {nearest(word, {*method_names(), *recipes.names()})}")
    names = [short_name(word) for word in what]
    entries = [{"name": name, "method": word} for name, word in zip(names, what, strict=True)]
    return comparison.parse({"entry": entries}, "-".join(names).lower(), "interfuse compare", Path.cwd())


def _path(word: str) -> Path | None:
    """The file of a recipe. A method goes before a recipe of the same name."""
    if word in method_names():
        return None
    return Path(word) if word.endswith(".toml") else recipes.find(word)


def axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The axes of a grid: ``key=a,b`` or ``key,key=a,b`` each.

    Raises:
        ConfigError: a text has not this form.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        axis, _, choices = text.partition("=")
        if not (axis and choices):
            raise ConfigError(f"--grid {text}: write key=a,b,c, such as --grid lr=0.01,0.1")
        if axis in found:
            raise ConfigError(f"--grid {axis} is there twice; name each setting once")
        found[axis] = _choices(choices)
    return found


def _choices(text: str) -> list[Any]:
    """Values with commas, which are TOML, or words."""
    try:
        return list(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return [toml_or_text(word) for word in listed(text) or ()]


def _show(found: Outcome, folder: Path) -> None:
    """The first table and the differences, cut into blocks where the terminal is narrow, and all that is to be said."""
    console = Console(markup=False, emoji=False, highlight=False)
    for made in (made for made in found.tables if made.leading):
        for part in made.parts(_fitting(made, console.width)):
            lines = [[_in_terminal(cell) for cell in line] for line in part.lines]
            console.print(table(["", *part.heads[1:]], lines, title=part.title))
        for text in (made.caption, *made.notes):
            if text:
                console.print(text)
        console.print()
    for note in found.notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(f"all tables: {folder / 'table.md'}\nreport: {folder / 'report.html'}", soft_wrap=True)


def _in_terminal(cell: Cell) -> Text:
    return Text(cell.text + f" [{cell.marks}]" * bool(cell.marks), style="bold" if cell.bold else "")


def _fitting(made: Table, width: int) -> Callable[[Sequence[int]], bool]:
    """Whether columns of a table fit into so many letters, with the names of entries before them."""
    columns = zip(*([Cell(head) for head in made.heads], *made.lines), strict=True)
    widths = [max(_in_terminal(cell).cell_len for cell in column) + PADDING for column in columns]
    return lambda chosen: widths[0] + sum(widths[column] for column in chosen) <= width
