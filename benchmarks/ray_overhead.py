"""What Ray costs beside the local engine: seconds of a round and memory of all processes, 4 to 1,000 clients.

``trivial``: two calls a round in which clients send 1,024 numbers back. ``work``: FedAvg, two steps of a convolutional
network on batches of 16 at each client. Both engines have two workers. Each cell is a process of its own; they are
measured in turn. Needs the extra ``ray``::

    python benchmarks/ray_overhead.py --out benchmarks/results/ray_overhead.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import common
from driver import descendants
from echo import Echo
from interfuse.data import Classification, Dataset, Normalisation
from interfuse.engines import local
from interfuse.engines.ray import on_ray
from interfuse.federation import Federation
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.runs import Given, parse_config
from interfuse.runs.loop import assemble

SIZES = (4, 40, 1000)
ENGINES = {"local": local, "ray": on_ray}
COLUMNS = (
    "workload", "clients", "local, ms a round", "Ray, ms a round", "ratio", "local, processor ms a round",
    "Ray, processor ms a round", "local, MB", "Ray, MB", "local, s to start", "Ray, s to start",
)  # fmt: skip
ROWS = 40
"""Of a client."""


@dataclass(frozen=True)
class Workload:
    """What is run, and how many rounds of it are measured after the first."""

    method: Method
    model: str
    shape: tuple[int, ...]
    rounds: int


WORKLOADS = {
    "trivial": Workload(Echo(), "logistic", (4,), 20),
    "work": Workload(FedAvg(local_steps=2, batch_size=16), "cnn", (1, 28, 28), 5),
}


def measured(engine: str, name: str, clients: int, workers: int) -> dict[str, float]:
    """One cell: seconds to start, milliseconds of a round by the clock and of processors, MB of all processes."""
    workload = WORKLOADS[name]
    rounds = workload.rounds if clients < max(SIZES) else 2
    noise, rows = torch.Generator().manual_seed(0), ROWS * clients
    x, y = torch.randn(rows, *workload.shape, generator=noise), torch.arange(rows) % 10
    task = Classification(tuple(f"class {label}" for label in range(10)))
    data = Dataset("made up", x, y, x[:10], y[:10], task, {"x": Normalisation(1.0, (0.0,), (1.0,))})
    config = parse_config(
        {
            "method": "local", "data": "in-memory:made up", "clients": clients, "models": [workload.model],
            "fusion_width": 16, "validation": 0, "test": 0, "beside": [],
        }
    )  # fmt: skip
    setup = assemble(config, Given(method=workload.method, dataset=data))
    began = time.perf_counter()
    hosted = ENGINES[engine](setup, workers)
    federation = Federation(setup, hosted)
    federation.start()
    started = time.perf_counter() - began
    federation.run_round()
    seconds, before = [], processor_seconds()
    for _ in range(rounds):
        began = time.perf_counter()
        federation.run_round()
        federation.exchange.ledger.drain()
        seconds.append(time.perf_counter() - began)
    used = (processor_seconds() - before) / rounds
    memory = common.memory_of(os.getpid())
    hosted.close()
    found = {"start": started, "round": median(seconds) * 1e3, "processor": used * 1e3}
    return found | {"memory": memory.get("shared_once_mb", 0.0)}


def processor_seconds() -> float:
    """Of this process and all that it started, so far: what does not grow with what else the machine does."""
    ticks = 0
    for one in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):  # it ended meanwhile
            ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("ray_overhead.md"))
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.cell:
        engine, name, clients = given.cell.split(",")
        print(json.dumps(measured(engine, name, int(clients), given.workers)))
        return 0
    lines = [
        f"{given.workers} workers, {common.cores()} cores; median of {given.repetitions} processes of each, in turn.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * len(COLUMNS) + "|",
    ]
    for name in WORKLOADS:
        for clients in map(int, given.sizes.split(",")):
            found: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
            for _ in range(given.repetitions):
                for engine, cells in found.items():
                    cells.append(child(f"{engine},{name},{clients}", given.workers))
            ours, theirs = ({key: median(cell[key] for cell in cells) for key in cells[0]} for cells in found.values())
            shown = [f"{ours['round']:.1f}", f"{theirs['round']:.1f}", f"{theirs['round'] / ours['round']:.2f}"]
            shown += [f"{one['processor']:.1f}" for one in (ours, theirs)]
            shown += [f"{one['memory']:.0f}" for one in (ours, theirs)]
            shown += [f"{one['start']:.1f}" for one in (ours, theirs)]
            lines.append(f"| {name} | {clients} | {' | '.join(shown)} |")
            print(lines[-1], flush=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def child(cell: str, workers: int) -> Any:
    """What a process of its own has measured."""
    command = [sys.executable, __file__, "--cell", cell, "--workers", str(workers)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
