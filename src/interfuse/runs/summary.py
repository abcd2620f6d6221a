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

from interfuse.client import ClientId
from interfuse.evaluation import Accuracies, Measurements, metric_values, no_statistics
from interfuse.method import disclosures
from interfuse.runs.config import RunConfig, plain
from interfuse.runs.folder import Best
from interfuse.setup import Serving
from interfuse.wire import Ledger, Volume


@dataclass(frozen=True)
class Final:
    """What was measured on everything at one state; ``measurements`` are empty where no metrics are asked for."""

    accuracies: Accuracies
    measurements: Mapping[ClientId, Measurements]


def summarise(
    config: RunConfig,
    setup: Serving,
    path: Path,
    metrics: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    last: Final,
    best: tuple[Best, Final] | None,
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
        "note": setup.note,
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
        "class_names": setup.class_names,
        "class_counts": setup.class_counts,
    }  # fmt: skip


def _both(uplink: Volume, downlink: Volume) -> dict[str, Any]:
    return {"uplink": plain(uplink), "downlink": plain(downlink)}


def _measured(config: RunConfig, setup: Serving, final: Final) -> dict[str, Any]:
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


def _stability(metrics: Sequence[Mapping[str, Any]], points: int = 10) -> float:
    """Standard deviation of the mean global accuracy over the last points of the curve."""
    curve = [_spread(row["accuracy"]["common"])["mean"] for row in metrics if row.get("accuracy")]
    return float(np.std(curve[-points:])) if curve else math.nan


def _clients(setup: Serving) -> list[dict[str, Any]]:
    architectures = dict.fromkeys(profile.architecture for profile in setup.profiles.values())
    parameters = {name: setup.parameters_of(name) for name in architectures}
    return [
        {
            "id": c, "architecture": p.architecture, "parameters": parameters[p.architecture],
            "data": setup.data_name(c), "samples": p.samples,
        }
        for c, p in setup.profiles.items()
    ]  # fmt: skip
