"""Clients trained in one computation beside one after the other, on a processor or a GPU: `--device cpu` or `cuda`.

The workloads are those of `small.py`, `fedavg.py` and `fedproto.py` with fewer images, and IFL at several numbers of
clients, each in this process. Rounds are taken in turn. The peak is that of a square matrix product in float32 on the
device. Not part of `make bench`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import common
import ours
import problems
import workload
from interfuse.engines import local
from interfuse.federation import Federation

IFL_CLIENTS = (16, 64, 256)


@dataclass(frozen=True)
class Work:
    """A workload: its configuration, its layers that are computed together, and the network whose operations count."""

    name: str
    config: Mapping[str, Any]
    together: int
    layers: str
    participants: int
    network: str | None = None


def works(*, smoke: bool) -> Iterator[Work]:
    """What is measured."""

    def config(method: str, clients: int, model: str, width: int, **settings: Any) -> dict[str, Any]:
        named_model = model if model == "logistic" else f"{ours.HERE}:{model}"
        return {
            "method": method, "clients": clients, "models": [named_model], "fusion_width": width,
            "validation": 0, "test": 0, "settings": settings,
        }  # fmt: skip

    some = 2 if smoke else 10
    yield Work("small", config("fedavg", some, "mlp", 200, batch_size=10, lr=0.05), some, "linear", some, "mlp")
    yield Work("fedavg", config("fedavg", some, "cnn", 150, batch_size=32, lr=0.05), some, "all", some, "cnn")
    proto = config("fedproto", 2 * some, "htfl_cnn", 512, batch_size=10, lr=0.01, pull=1.0)
    yield Work("fedproto", proto, some, "all", 2 * some, "htfl_cnn")
    for clients in (4,) if smoke else IFL_CLIENTS:
        yield Work(f"ifl, {clients} clients", config("ifl", clients, "logistic", 432), 64, "linear", clients)


@contextmanager
def at_work(work: Work, data: str, device: str, together: int) -> Iterator[Federation]:
    """A federation that has begun."""
    numerics = {"together": together, "layers_together": work.layers}
    setup = ours.setup_of({**work.config, "data": data, "device": device, "numerics": numerics})
    federation = Federation(setup, local(setup, 1))
    try:
        federation.start()
        yield federation
    finally:
        federation.engine.close()


def seconds_of(federation: Federation, device: str) -> float:
    """Of a round."""
    began = time.perf_counter()
    federation.run_round()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(device: str, side: int) -> float:
    """GFLOP/s of a square matrix product, by one thread of a processor."""
    torch.set_num_threads(1)
    a = torch.rand(side, side, device=device)
    found = []
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return 2 * side**3 / min(found) / 1e9


def measured(work: Work, data: str, samples: int, device: str, repetitions: int, best: float) -> dict[str, Any]:
    """Seconds of both, in turns after a round to warm up."""
    with at_work(work, data, device, 1) as alone, at_work(work, data, device, work.together) as together:
        courses: dict[str, list[float]] = {"alone": [], "together": []}
        for number in range(1 + repetitions):
            for name, federation in (("alone", alone), ("together", together)):
                seconds = seconds_of(federation, device)
                if number:
                    courses[name].append(seconds)
    row = {"name": work.name, "clients": work.participants, "group": work.together, "seconds": courses}
    row |= {name: median(found) for name, found in courses.items()}
    row["ratio"] = common.ratio(courses["alone"], courses["together"])
    if work.network is not None:
        flops = (
            workload.training_flops(workload.MODELS[work.network](), torch.rand(samples, 1, 28, 28)) * work.participants
        )
        row |= {f"share_{name}": flops / median(found) / 1e9 / best for name, found in courses.items()}
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = common.arguments(__doc__ or "", argv, device={"choices": ["cpu", "cuda"], "default": "cpu"})
    samples, side = (20, 256) if given.smoke else (200, 1024 if given.device == "cpu" else 8192)
    best = peak(given.device, side)
    rows, source = [], ""
    for work in works(smoke=given.smoke):
        with tempfile.TemporaryDirectory() as folder:
            data, source = problems.images(Path(folder), work.participants * samples)
            rows.append(measured(work, data, samples, given.device, given.repetitions, best))
    columns = {
        "name": "workload", "clients": "clients", "group": "together", "alone": "s a round, one by one",
        "together": "s a round, together", "ratio": "times as fast", "share_alone": "of peak, one by one",
        "share_together": "of peak, together",
    }  # fmt: skip
    parameters = {"device": given.device, "data": source, "peak_gflops": best, "repetitions": given.repetitions}
    title = f"{given.device}, {source}, peak {best:.0f} GFLOP/s"
    common.publish("batched", given, parameters, {title: common.table(rows, columns)}, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
