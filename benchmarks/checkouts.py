"""HtFLlib and PFLlib, which are folders of scripts: their own code, from a checkout, on the benchmark's problem.

Both are built alike. Their ``train()`` runs as it is; nothing in their files changes. What is done from outside:

- What they import and never use here is an empty module where it is not installed (:data:`UNUSED`).
- They begin a round by selecting clients: that call waits for the next request, and ends the loop with the last.
- They read a client's samples from its file at every use: the file is written in the order of the epoch before the
  round, outside the clock, so that their batches are those of all others.
- They evaluate where the round's number is divisible by ``eval_gap``: 1 is their default, and NaN means never.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from driver import Channel, Cohort
from workload import Problem

UNUSED = {
    "h5py": (), "matplotlib": (), "matplotlib.pyplot": (), "sklearn": ("metrics",),
    "sklearn.preprocessing": ("label_binarize",), "torchvision": (),
}  # fmt: skip
"""Modules that they import, with names they import from them."""
DATASET = "benchmark"


class NoRoundError(Exception):
    """No further round is asked for."""


def enter(checkout: Path, scratch: Path) -> None:
    """Make their code importable, and work in a scratch folder laid out as theirs."""
    missing = [name for name in UNUSED if "." not in name and importlib.util.find_spec(name) is None]
    for name, attributes in UNUSED.items():
        if name.partition(".")[0] in missing:
            module = importlib.util.module_from_spec(ModuleSpec(name, None))  # PyTorch asks for specs of modules
            vars(module).update(dict.fromkeys(attributes))
            sys.modules[name] = module
    sys.path.insert(0, str(checkout / "system"))
    (scratch / "system").mkdir()
    os.chdir(scratch / "system")  # they find data by ../dataset


def arguments(given: dict[str, Any], clients: int, **own: Any) -> SimpleNamespace:
    """What their command line would make of the benchmark's settings; the rest is their defaults."""
    return SimpleNamespace(
        device="cpu", dataset=DATASET, num_classes=10, global_rounds=10**6, local_epochs=1,
        batch_size=given["batch_size"], local_learning_rate=given["lr"], num_clients=clients,
        join_ratio=1.0, random_join_ratio=False, few_shot=0, time_select=False, goal="test", time_threthold=10000,
        top_cnt=100, auto_break=False, eval_gap=1 if given["evaluate"] else math.nan, client_drop_rate=0.0,
        train_slow_rate=0.0, send_slow_rate=0.0, save_folder_name="temp", **own,
    )  # fmt: skip


def write_share(problem: Problem, part: str, client: int, rows: Any) -> None:
    """A client's file, as their scripts write it."""
    folder = Path("..") / "dataset" / DATASET / part
    folder.mkdir(parents=True, exist_ok=True)
    share: Any = {"x": problem.x[rows].numpy(), "y": problem.y[rows].numpy()}
    np.savez_compressed(folder / f"{client}.npz", data=share)


def write_shares(problem: Problem) -> None:
    """The files of all clients."""
    for client, (rows, test_rows) in enumerate(zip(problem.rows, problem.test_rows, strict=True)):
        write_share(problem, "train", client, rows)
        write_share(problem, "test", client, test_rows)


def drive(server: Any, problem: Problem, channel: Channel, result: Callable[[Path], dict[str, Any]]) -> None:
    """Run their ``train()``, a round for each request."""
    began = 0.0

    def select_clients() -> list[Any]:
        nonlocal began
        if began:
            channel.answer({"seconds": time.perf_counter() - began})
        cohort: Cohort | None = channel.next_round(result)
        if cohort is None:
            raise NoRoundError
        for client, epoch in cohort:
            write_share(problem, "train", client, problem.rows[client][problem.order[client, epoch]])
        server.current_num_join_clients = len(cohort)
        began = time.perf_counter()
        return [server.clients[client] for client, _ in cohort]

    server.select_clients = select_clients
    channel.ready()
    with contextlib.suppress(NoRoundError):
        server.train()
