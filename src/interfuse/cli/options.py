"""Options of the command line that several commands have."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from interfuse.clock import NAMED
from interfuse.data import PARTITIONS
from interfuse.runs import RunConfig

DEFAULT = RunConfig()
INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
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
Rounds = Annotated[
    int | None, typer.Option(metavar="N", help=f"Rounds (default {DEFAULT.rounds}).", rich_help_panel=WHAT)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the method (`interfuse methods NAME` lists them); client.2.KEY=VALUE for client 2 "
        "alone. May be repeated.",
        rich_help_panel=WHAT,
    ),
]
CodecTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--codec",
        metavar="CODEC",
        help="How messages travel: fp16, bf16, int8, int4, int2 (:tensor), topk:FRACTION, ef, zstd, joined by +; "
        "FIELD=CODEC for one field, such as FusionOutputs.z=int4+zstd. May be repeated.",
        rich_help_panel=HOW,
    ),
]
DataSets = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Data sets, dealt to the clients in turn: `interfuse datasets` lists them; or rows.npz, "
        f"package.module:load, file.py:load (default {DEFAULT.data}).",
        rich_help_panel=DATA,
    ),
]
NumberOfClients = Annotated[
    int | None,
    typer.Option(metavar="N", help=f"Number of clients (default {DEFAULT.clients}).", rich_help_panel=DATA),
]
PartitionName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"How the data is divided: {', '.join(PARTITIONS)} (default {DEFAULT.partition['name']}).",
        rich_help_panel=DATA,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(metavar="X", help="Concentration of --partition dirichlet.", rich_help_panel=DATA),
]
ClassesPerClient = Annotated[
    int | None,
    typer.Option(metavar="K", help="Classes a client of --partition pathological.", rich_help_panel=DATA),
]
ShardsPerClient = Annotated[
    int | None,
    typer.Option(metavar="S", help="Shards a client of --partition shards.", rich_help_panel=DATA),
]
ModelNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Models, dealt to the clients in turn: `interfuse models` lists them; or file.py:function "
        f"(default {','.join(DEFAULT.models)}).",
        rich_help_panel=MODELS,
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        metavar="D", help=f"Width of the fusion layer (default {DEFAULT.fusion_width}).", rich_help_panel=MODELS
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"cpu, cuda, cuda:1 (default {DEFAULT.device}).", rich_help_panel=HOW),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What the virtual clock goes by: {', '.join(NAMED)} (default uniform); a recipe's \\[devices] says more.",
        rich_help_panel=HOW,
    ),
]
EvalEvery = Annotated[
    int | None,
    typer.Option(
        metavar="K", help=f"Measure accuracy every K rounds (default {DEFAULT.eval_every}).", rich_help_panel=AFTER
    ),
]
