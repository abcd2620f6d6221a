"""Options of the command line that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interfuse.clock import NAMED
from interfuse.data import PARTITIONS
from interfuse.runs import RunConfig
from interfuse.runs.protocols import protocols

DEFAULT = RunConfig()
WHAT, DATA, MODELS, HOW, AFTER = "What is trained", "Data", "Models", "How it is carried out", "Results"


def option(panel: str | None, form: str | None, text: str, *names: str, **more: Any) -> Any:
    """An option in a panel of the help; ``form`` is what stands for its value, None where it has none."""
    return typer.Option(*names, metavar=form, help=text, rich_help_panel=panel, **more)


def argument(form: str) -> Any:
    """An argument. The text of its command explains it: Typer 0.20 with Click 8.5 shows no help of arguments."""
    return typer.Argument(metavar=form, show_default=False)


def megabytes(text: str) -> int:
    """Bytes of a whole number of MB."""
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is no whole number of MB (10^6 bytes), such as 4000")
    return int(text) * 10**6


RunArgument = Annotated[Path, argument("RUN")]
Json = Annotated[bool, option(AFTER, None, "Print the result as one JSON object, the last line.", "--json")]
Quiet = Annotated[bool, option(AFTER, None, "Show no progress.", "--quiet", "-q")]
Processes = Annotated[
    int | None, option(HOW, "N", "Processes side by side; results are the same (default: one a core).", "--workers")
]
_ENGINE = "What carries the clients: local, or ray (docs/clusters.md); results are the same (default local)."
Carrier = Annotated[str | None, option(HOW, "NAME", _ENGINE, "--engine")]
_ADDRESS = "With --engine ray: HOST:PORT of a cluster, auto, or local (default RAY_ADDRESS, else local)."
RayAddress = Annotated[str | None, option(HOW, "ADDRESS", _ADDRESS)]
_GPUS = "With --engine ray and --device cuda: of a GPU for each worker, such as 0.25 (default: all are divided)."
RayGpus = Annotated[float | None, option(HOW, "X", _GPUS)]
CommitEvery = Annotated[int | None, option(HOW, "K", "Commit every K rounds (default: every 30 seconds).", min=1)]
_MEMORY = (
    "MB (10^6 bytes) for clients at rest, over all workers; others lie on the disk (default: an eighth of the memory)."
)
ClientMemory = Annotated[int | None, option(HOW, "MB", _MEMORY, parser=megabytes)]
_PROTOCOL = f"Set what other people's experiments set ({', '.join(protocols())}); what is given beside goes before."
Protocol = Annotated[str | None, option(WHAT, "NAME", _PROTOCOL)]
Rounds = Annotated[int | None, option(WHAT, "N", f"Rounds (default {DEFAULT.rounds}).")]
Seed = Annotated[int | None, option(WHAT, "N", f"Seed (default {DEFAULT.seed}).")]
_PATIENCE = "Stop once the validation score has not risen for N points of the curve (default: never)."
Patience = Annotated[int | None, option(WHAT, "N", _PATIENCE, "--patience")]
_SET = "A setting of the method (`interfuse methods NAME` lists them); client.2.KEY=VALUE for client 2 alone."
Settings = Annotated[list[str] | None, option(WHAT, "KEY=VALUE", f"{_SET} May be repeated.", "--set")]
_CODEC = (
    "How messages travel: fp16, bf16, int8, int4, int2 (:tensor), topk:FRACTION, ef, zstd, joined by +; FIELD=CODEC "
    "for one field, such as FusionOutputs.z=int4+zstd. May be repeated."
)
CodecTexts = Annotated[list[str] | None, option(HOW, "CODEC", _CODEC, "--codec")]
_DATA = (
    "Data sets, dealt to the clients in turn: `interfuse datasets` lists them; or a file or folder (rows.csv, images, "
    "rows.npz; `interfuse describe PATH` shows how it is read), package.module:load, file.py:load "
    f"(default {DEFAULT.data})."
)
DataSets = Annotated[str | None, option(DATA, "NAME,...", _DATA)]
_READ = (
    "How a file is read where it does not say it: label=COLUMN,..., classes=NAME,..., group=COLUMN, drop=COLUMN,..., "
    "layout=NAME, task=NAME. May be repeated."
)
ReadTexts = Annotated[list[str] | None, option(DATA, "KEY=VALUE", _READ, "--read")]
Public = Annotated[str | None, option(DATA, "NAME", "A data set that everybody has, for methods that want one.")]
NumberOfClients = Annotated[int | None, option(DATA, "N", f"Number of clients (default {DEFAULT.clients}).")]
_PARTITION = f"How the data is divided: {', '.join(PARTITIONS)} (default {DEFAULT.partition['name']})."
PartitionName = Annotated[str | None, option(DATA, "NAME", _PARTITION)]
Alpha = Annotated[float | None, option(DATA, "X", "Concentration of --partition dirichlet.")]
_BALANCED = "--partition dirichlet as NIID-Bench and PFLlib have it: who has an equal part of all rows gets no more."
Balanced = Annotated[bool | None, option(DATA, None, _BALANCED, "--balanced")]
ClassesPerClient = Annotated[int | None, option(DATA, "K", "Classes a client of --partition pathological.")]
ShardsPerClient = Annotated[int | None, option(DATA, "S", "Shards a client of --partition shards.")]
_TEST = (
    f"A client's own test rows: a fraction of its rows, or `source`: those that the source has for its people, with "
    f"--partition natural (default {DEFAULT.test:g})."
)
TestRows = Annotated[str | None, option(DATA, "X|source", _TEST, "--test")]
_DIVIDE = "Rows that the clients share: train, or all; then own test rows are the common test set (default train)."
Divide = Annotated[str | None, option(DATA, "NAME", _DIVIDE)]
_NORMALISE = (
    "Inputs of models: data, by mean and deviation, or plain: bytes to [-1, 1], else as they come (default data)."
)
Normalise = Annotated[str | None, option(DATA, "NAME", _NORMALISE)]
_INITIAL = "Initial values: each client's own, or common to all of an architecture (default own)."
Initial = Annotated[str | None, option(MODELS, "NAME", _INITIAL)]
_ORDER = "Order of a client's samples: shuffled in each epoch, or as stored (default shuffled)."
Order = Annotated[str | None, option(HOW, "NAME", _ORDER)]
_LAST = "A last batch that is too small: keep, drop, or spread over the others (default keep)."
LastBatch = Annotated[str | None, option(HOW, "NAME", _LAST, "--last-batch")]
_ARRIVAL = (
    "A client's training rows come at-once, dynamic: task after task (a task is a group of the data set), or static: "
    "all tasks mixed, a part a round (default at-once)."
)
Arrival = Annotated[str | None, option(HOW, "NAME", _ARRIVAL)]
_REPLAY = "With --arrival dynamic or static: rows of earlier rounds that are drawn again, 0 for none (default all)."
Replay = Annotated[int | None, option(HOW, "N", _REPLAY)]
_LAYOUT = f"Memory layout: contiguous or channels_last (default {DEFAULT.numerics.layout})."
Layout = Annotated[str | None, option(HOW, "NAME", _LAYOUT)]
_DTYPE = f"Of training: float32, or bfloat16 by autocast (default {DEFAULT.numerics.dtype})."
DType = Annotated[str | None, option(HOW, "NAME", _DTYPE)]
_DENORMALS = f"Numbers below 1.2e-38: flush to zero, or keep (default {DEFAULT.numerics.denormals})."
Denormals = Annotated[str | None, option(HOW, "NAME", _DENORMALS)]
_MODELS = (
    "Models, dealt to the clients in turn: `interfuse models` lists them; or file.py:function "
    f"(default {','.join(DEFAULT.models)})."
)
ModelNames = Annotated[str | None, option(MODELS, "NAME,...", _MODELS)]
Width = Annotated[int | None, option(MODELS, "D", f"Width of the fusion layer (default {DEFAULT.fusion_width}).")]
Device = Annotated[str | None, option(HOW, "NAME", f"cpu, cuda, cuda:1 (default {DEFAULT.device}).")]
_DEVICES = f"What the virtual clock goes by: {', '.join(NAMED)} (default uniform); a recipe's \\[devices] says more."
Devices = Annotated[str | None, option(HOW, "NAME", _DEVICES)]
EvalEvery = Annotated[
    int | None, option(AFTER, "K", f"Measure accuracy every K rounds (default {DEFAULT.eval_every}).")
]
