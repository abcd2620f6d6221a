"""What memory follows: FedAvg with 20, 100 and 500 participants of 1,000 clients, and how many models are alive.

Every size runs in a process of its own with two workers. Its peak is that of the resident sets of all its processes,
summed, while rounds go on; live models are those that any one process holds when a client has just been trained.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import common
from interfuse import Client, Dataset, SplitModel, on_client
from interfuse.engines import local
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.fedavg import FedAvg
from interfuse.runs import Given, parse_config
from interfuse.runs.loop import assemble

CLIENTS, SIZES, ROUNDS = 1000, (20, 100, 500), 2


@dataclass(frozen=True)
class Watched(FedAvg):
    """FedAvg whose clients note how many models are alive in their process."""

    notes: str = ""

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        reply = FedAvg.train.function(self, client, received)
        alive = sum(issubclass(type(found), SplitModel) for found in gc.get_objects())
        with Path(self.notes).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {alive}\n")
        return reply


def pictures(clients: int) -> Dataset:
    """Eight made pictures a client."""
    noise = torch.Generator().manual_seed(0)
    x, y = torch.randint(256, (8 * clients, 28, 28), generator=noise, dtype=torch.uint8), torch.arange(8 * clients) % 10
    return Dataset.from_arrays("made", x, y, x[:64], y[:64])


def carry_out(participants: int, clients: int, workers: int, model: str) -> dict[str, Any]:
    """Some rounds in this process and its workers, and what they took."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        method = Watched(participation=participants / clients, local_steps=1, batch_size=8, lr=0.01, notes=str(notes))
        values = {"clients": clients, "models": [model], "data": "in-memory:made", "validation": 0, "test": 0}
        config = parse_config({"method": "local", "beside": [], **values}, "benchmark")
        setup = assemble(config, Given(method=method, dataset=pictures(clients)))
        engine = local(setup, workers)
        federation = Federation(setup, engine)
        federation.start()
        before = common.memory_of(os.getpid())
        for _ in range(ROUNDS):
            federation.run_round()
            federation.exchange.ledger.drain()
        found = common.memory_of(os.getpid())
        by_process: dict[str, int] = {}
        for line in notes.read_text(encoding="utf-8").splitlines():
            process, alive = line.split()
            by_process[process] = max(int(alive), by_process.get(process, 0))
        engine.close()
    parameters = sum(tensor.numel() for tensor in federation.server.state.weights.values())
    return {
        "participants": participants, "workers": workers, "parameters": parameters,
        "start_mb": before["peak_memory_mb"], "peak_mb": found["peak_memory_mb"],
        "live_models": sum(by_process.values()),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few clients of a small model, to see that it runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    sizes, clients, model = ((2, 6), 12, "logistic") if given.smoke else (SIZES, CLIENTS, "logistic")
    if given.one is not None:
        print(json.dumps(carry_out(given.one, clients, given.workers, model)))
        return 0
    rows = []
    for size in sizes:
        command = [sys.executable, __file__, "--one", str(size), "--workers", str(given.workers)]
        done = subprocess.run([*command, *["--smoke"] * given.smoke], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    columns = {
        "participants": "participants", "start_mb": "before the first round, MB", "peak_mb": "peak, MB",
        "live_models": "live models of all workers",
    }  # fmt: skip
    print(f"FedAvg, {clients} clients, {rows[0]['parameters']:,} parameters, {given.workers} workers")
    if given.smoke:
        print("smoke: the figures mean nothing")
    print(common.table(rows, columns))
    spread = max(row["peak_mb"] for row in rows) / min(row["peak_mb"] for row in rows)
    print(f"largest peak / smallest: {spread:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
