"""Run folders written by hand, with accuracies that nothing trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from summaries import summary_values

from interfuse.comparison.execution import Finished
from interfuse.comparison.plan import Entry, Plan, resolve
from interfuse.comparison.recipe import parse


def plan_of(
    *names: str,
    method: str = "local",
    grid: dict[str, list[Any]] | None = None,
    clients: int = 4,
    metrics: Sequence[str] = (),
    **asked: Any,
) -> Plan:
    """A plan whose entries have these names; ``ifl`` and ``fedavg`` are what they say, others ``method``."""
    entries = [{"name": name, "method": name if name in ("ifl", "fedavg") else method} for name in names]
    shared = {"models": ["logistic"], "fusion_width": 8, "clients": clients, "metrics": metrics}
    values = {"comparison": asked, "run": shared, "grid": grid or {}, "entry": entries}
    return resolve(parse(values, "test", "test.toml", Path("/nowhere")))


def write_run(
    folder: Path,
    seed: int,
    *,
    clients: int = 4,
    rounds: int = 12,
    every: int = 2,
    upload: int = 1000,
    wire: int = 80,
    codec: str | None = None,
    rise: float = 0.9,
    method: str = "ifl",
    discloses: Sequence[str] = ("features", "labels"),
    compositions: bool = True,
    protocol: str = "",
) -> Path:
    """A finished run of random accuracies that rise to about ``rise``. Every client sends ``upload`` bytes a round."""
    random = np.random.default_rng([seed, clients, rounds, upload, round(1000 * rise)])
    lines = []
    for number in range(rounds + 1):
        line: dict[str, Any] = {
            "round": number, "failures": [], "outstanding": 0, "seconds": {"calls": 0.5},
            "uplink": {"raw": number * upload * clients, "wire": number * wire * clients},
            "downlink": {"raw": 3 * number * upload * clients, "wire": 2 * number * wire * clients},
            "virtual_seconds": {"devices": 1.5 * number * clients, "10 Mbit/s": 0.5 * number},
            "steps": {"clients": 0 if number == 0 else 7 * clients, "server": 0 if number == 0 else 2},
        }  # fmt: skip
        if number % every == 0 or number == rounds:
            line["accuracy"] = accuracy(random, clients, rise * number / rounds, compositions)
        lines.append(line)
    last, best = (accuracy(random, clients, rise, compositions) for _ in range(2))
    down = {"raw": 3 * rounds * upload * clients, "wire": 2 * rounds * wire * clients}
    summary = summary_values() | {
        "method": method, "seed": seed, "rounds": rounds, "seconds": 0.5 * (rounds + 1), "discloses": list(discloses),
        "protocol": protocol,
        **final(last), "best": {"round": rounds - every, "validation_accuracy": 0.5, **final(best)},
        "stability": float(random.uniform(0, 0.1)),
        "own_by_samples": 0.25 + seed / 100,
        "best_on_test": {"round": 2, "own_by_samples": 0.5 + seed / 100, "own": 0.375},
        "virtual_seconds": {"devices": 1.5 * rounds * clients},
        "missing_replies": {"failed": 0, "late": rounds, "away": seed},
        "gradient_steps": {"clients": 7 * clients * rounds, "server": 2 * rounds},
        "uplink_bytes": {"raw": rounds * upload * clients, "wire": rounds * wire * clients},
        "downlink_bytes": down | {f"{form}_broadcast": size // clients for form, size in down.items()},
        "codecs": {} if codec is None else {"default": codec},
        "clients": [
            {"id": i, "architecture": "logistic", "data": "digits", "parameters": None, "samples": None}
            for i in range(clients)
        ],
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'method = "{method}"\nrounds = {rounds}\nclients = {clients}\n')
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "peak-memory.json").write_text(json.dumps({"bytes": 1_000_000 * (seed + 1)}))
    return folder


def accuracy(random: np.random.Generator, clients: int, level: float, compositions: bool) -> dict[str, Any]:
    """Accuracies around a level."""
    values = {name: random.uniform(level, level + 0.05, clients).tolist() for name in ("own", "validation", "common")}
    matrix = random.uniform(level / 2, level, (clients, clients)).tolist() if compositions else None
    return {**values, "composition": matrix}


def final(found: dict[str, Any]) -> dict[str, Any]:
    """The same in the form of a summary."""
    return {
        "own_accuracy": spread(found["own"]), "global_accuracy": spread(found["common"]),
        "composition_matrix": found["composition"],
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "per_client": values}


def finished(entry: Entry, folder: Path, seeds: Sequence[int] = (0, 1, 2), **values: Any) -> Finished:
    """An entry of which these seeds have finished, their runs written to ``folder``."""
    runs = {seed: write_run(folder / entry.name / f"seed-{seed}", seed, **values) for seed in seeds}
    return Finished(entry, chosen=entry.points()[0], runs=runs, flops=1000.0)
