"""The summary of a run: ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from interfuse.client import ClientId
from interfuse.evaluation import Accuracies, Measurements, metric_values, no_statistics
from interfuse.method import disclosures
from interfuse.runs.config import RunConfig, plain
from interfuse.runs.folder import Best
from interfuse.setup import Setup
from interfuse.wire import Ledger, Volume


@dataclass(frozen=True)
class Final:
    """What was measured on everything at one state; ``measurements`` are empty where no metrics are asked for."""

    accuracies: Accuracies
    measurements: Mapping[ClientId, Measurements]


def summarise(
    config: RunConfig,
    setup: Setup,
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    last: Final,
    best: tuple[Best, Final] | None,
    counts: Int64[np.ndarray, "clients classes"],
) -> dict[str, Any]:
    """What ``summary.json`` says; docs/run-folder.md describes it."""
    training, start, evaluated = (ledger.totals(heading) for heading in ("training", "start", "evaluation"))
    phases: dict[str, float] = {}
    for row in metrics:
        for phase, seconds in row["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return {
        "interfuse": version("interfuse"),
        "method": config.method,
        "data": ", ".join(config.data_names),
        "seed": config.seed,
        "rounds": config.rounds,
        "seconds": round(sum(s for phase, s in phases.items() if phase != "local work, all clients"), 3),
        "run": str(path),
        "note": _note(setup),
        "codecs": config.codecs,
        "discloses": sorted(disclosures(setup.method)),
        "notice": plain(setup.method.notice(setup.profiles)),
        **_measured(config, setup, last),
        "best": None if best is None else {
            "round": best[0].round, "validation_accuracy": best[0].validation_accuracy,
            **_measured(config, setup, best[1]),
        },
        "similarity": {"before": metrics[0].get("similarity"), "after": metrics[-1].get("similarity")},
        "stability": _stability(metrics),
        "gradient_steps": {side: sum(row["steps"][side] for row in metrics) for side in ("clients", "server")},
        "virtual_seconds": metrics[-1].get("virtual_seconds"),
        "missing_replies": {
            kind: sum(failure.get("kind", "failed") == kind for row in metrics for failure in row["failures"])
            for kind in ("failed", "late", "away")
        },
        "uplink_bytes": plain(training.uplink),
        "downlink_bytes": plain(training.downlink) | {
            "raw_broadcast": training.downlink_broadcast.raw, "wire_broadcast": training.downlink_broadcast.wire,
        },
        "start_bytes": _both(start.uplink, start.downlink),
        "evaluation_bytes": _both(evaluated.uplink, evaluated.downlink),
        "bytes_by_kind": {
            kind: _both(t.uplink, t.downlink) | {"downlink_broadcast": plain(t.downlink_broadcast)}
            for kind, t in training.by_kind.items()
        },
        "seconds_by_phase": {phase: round(seconds, 3) for phase, seconds in phases.items()},
        "clients": _clients(setup),
        "class_names": _class_names(setup),
        "class_counts": counts.tolist(),
    }  # fmt: skip


def _both(uplink: Volume, downlink: Volume) -> dict[str, Any]:
    return {"uplink": plain(uplink), "downlink": plain(downlink)}


def _measured(config: RunConfig, setup: Setup, final: Final) -> dict[str, Any]:
    """Accuracies, and the metrics that were asked for with the confusion matrices behind them."""
    if not config.metrics:
        return _accuracies(final.accuracies)
    nobody = no_statistics(setup.dims["classes"])
    everybody = [final.measurements.get(client, Measurements(nobody, nobody)) for client in setup.profiles]
    sides = {"own": [found.own for found in everybody], "global": [found.common for found in everybody]}
    values = {side: [metric_values(found) for found in by_client] for side, by_client in sides.items()}
    return _accuracies(final.accuracies) | {
        "metrics": {name: {side: _by_client(name, values[side]) for side in sides} for name in config.metrics},
        "confusion": {side: torch.stack([f.confusion for f in sides[side]]).sum(0).tolist() for side in sides},
    }


def _by_client(name: str, values: Sequence[Mapping[str, Any]]) -> Any:
    """A metric of all clients with mean and standard deviation; recall, which has a value a class, without."""
    found = [of_client[name] for of_client in values]
    return found if name == "recall" else _spread(found)


def _accuracies(accuracies: Accuracies) -> dict[str, Any]:
    return {
        "global_accuracy": _spread(accuracies.common),
        "own_accuracy": _spread(accuracies.own),
        "composition_matrix": accuracies.composition,
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over the clients that have a value."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return {
        "mean": float(np.mean(known)) if known else math.nan,
        "std": float(np.std(known)) if known else math.nan,
        "per_client": list(values),
    }


def _note(setup: Setup) -> str:
    notes = [dataset.note for dataset in setup.domains if dataset.note]
    if len(setup.domains) > 1:
        notes.append("the common test set of a client is that of its own data set, for compositions the base block's")
    return "; ".join(notes)


def _class_names(setup: Setup) -> list[str]:
    """The names of classes, or their numbers where data sets name them differently."""
    first, *others = (dataset.class_names for dataset in setup.domains)
    return list(first) if all(names == first for names in others) else [str(label) for label in range(len(first))]


def _stability(metrics: Sequence[Mapping[str, Any]], points: int = 10) -> float:
    """Standard deviation of the mean global accuracy over the last points of the curve."""
    curve = [_spread(row["accuracy"]["common"])["mean"] for row in metrics if row.get("accuracy")]
    return float(np.std(curve[-points:])) if curve else math.nan


def _clients(setup: Setup) -> list[dict[str, Any]]:
    parameters: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(setup.architectures):
        model = setup.build(name, "measure")
        parameters[name] = {
            block: sum(p.numel() for p in model.parameters_of(block).values()) for block in ("base", "modular")
        }
    return [
        {
            "id": c, "architecture": p.architecture, "parameters": parameters[p.architecture],
            "data": setup.datasets[c].name, "samples": p.samples,
        }
        for c, p in setup.profiles.items()
    ]  # fmt: skip
