"""Run folders as a run leaves them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from summaries import summary_values

from interfuse import report
from interfuse.report.plots import as_svg
from interfuse.runs import Row, Summary
from interfuse.runs.verdict import concluded

ARCHITECTURES = ("cnn", "mlp", "mixed", "deep-head")
SIZES = {"cnn": (18_672, 4_330), "mlp": (623_536, 113_418), "mixed": (678_016, 56_714), "deep-head": (816, 127_946)}


@dataclass(frozen=True)
class FakeRun:
    """What a fake run is like. Accuracies rise to ``swapped`` off the diagonal and ``together`` on it."""

    method: str = "ifl"
    clients: int = 4
    classes: int = 10
    rounds: int = 200
    eval_every: int = 10
    together: float = 0.95
    swapped: float = 0.945
    compositions: bool = True
    upload: int = 32 * (4 * 432 + 1)
    architectures: Sequence[str] = ARCHITECTURES
    class_names: Sequence[str] | None = None
    note: str = ""
    discloses: Sequence[str] = ("features", "labels")
    score: str = "accuracy"

    def architecture(self, client: int) -> str:
        return self.architectures[client % len(self.architectures)]


LOCAL = FakeRun(method="local", together=0.88, swapped=0.11, upload=0, discloses=())
POOLED = FakeRun(
    method="pooled", together=0.97, swapped=0.1, upload=0, compositions=False, discloses=("data", "labels")
)


def write_run(
    folder: Path, fake: FakeRun = FakeRun(), beside: Sequence[FakeRun] = (LOCAL, POOLED), *, done: int | None = None
) -> dict[str, Any]:
    """Write a run folder. ``done`` rounds of an unfinished one leave no summary. Returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds = fake.rounds if done is None else done
    (folder / "config.toml").write_text(_config(fake), encoding="utf-8")
    rows = [_row(fake, index) for index in range(rounds + 1)]
    _write_lines(folder / "metrics.jsonl", rows)
    counted = rounds if done is not None else min(rounds, 3)  # of a finished run nobody adds the ledger up
    _write_lines(folder / "ledger.jsonl", [line for index in range(1, counted + 1) for line in _ledger(fake, index)])
    summary = _summary(fake, folder, rows)
    for other in beside:
        summary["beside"][other.method] = write_run(folder / "beside" / other.method, other, ())
    if done is None:
        ended = concluded(Summary.model_validate(summary), [Row.model_validate(row) for row in rows])
        (folder / "summary.json").write_text(json.dumps(ended.values()), encoding="utf-8")
    return summary


def write_page(folder: Path) -> Path:
    """The report with its plots for the page alone: their files for paper and slides take twice as long as that."""

    def svg(figure: Any, folder: Path, name: str, *, paper: bool = True) -> str:
        return as_svg(figure, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interfuse.report.plots.save", svg)
        return report.write(folder)


def summary_of(fake: FakeRun = FakeRun(), references: Sequence[FakeRun] = (), **changes: Any) -> Summary:
    """The summary of a fake run with some values changed, references beside it as summaries."""
    values = _summary(fake, Path("run"), [_row(fake, index) for index in range(fake.rounds + 1)])
    values["beside"] = {other.method: summary_of(other) for other in references}
    return concluded(Summary.model_validate(values | changes), [])


def _config(fake: FakeRun) -> str:
    models = ", ".join(json.dumps(name) for name in fake.architectures)
    return (
        f'method = {json.dumps(fake.method)}\ndata = "digits"\nclients = {fake.clients}\nmodels = [{models}]\n'
        f"rounds = {fake.rounds}\nseed = 0\neval_every = {fake.eval_every}\n\n"
        '[environment]\ninterfuse = "0.1.0"\ntorch = "2.13.0"\npython = "3.11.2"\nmachine = "x86_64"\n'
    )


def matrix(fake: FakeRun, share: float = 1.0) -> list[list[float]] | None:
    """Compositions after a share of the way from chance to the end."""
    if not fake.compositions:
        return None
    n = fake.clients
    ends = np.where(np.eye(n, dtype=bool), fake.together, fake.swapped)
    ends = ends - 0.004 * np.arange(n)[:, None] / n - 0.002 * (np.arange(n)[None, :] % 3)
    return np.round(0.1 + (ends - 0.1) * share, 4).tolist()


def accuracies(fake: FakeRun, share: float = 1.0) -> dict[str, list[float]]:
    reached = fake.together - 0.01 * np.arange(fake.clients) / fake.clients
    common = np.round(0.1 + (reached - 0.1) * share, 4)
    return {"own": (common + 0.013 * share).round(4).tolist(), "common": common.tolist()}


def _row(fake: FakeRun, index: int) -> dict[str, Any]:
    up = index * fake.clients * fake.upload
    row: dict[str, Any] = {
        "round": index,
        "uplink": {"raw": up, "wire": up + 200 * index},
        "downlink": {"raw": up * fake.clients, "wire": up * fake.clients + 900 * index},
        "steps": {"clients": 10 if index else 0, "server": 0},
        "failures": [],
        "outstanding": 0,
        "virtual_seconds": {},
    }
    if index % fake.eval_every == 0 or index == fake.rounds:
        share = 1 - np.exp(-6 * index / fake.rounds)
        values = accuracies(fake, share)
        row["accuracy"] = {**values, "validation": values["own"], "composition": matrix(fake, share)}
    row["seconds"] = {
        "calls": 0.05,
        "local work, all clients": 0.09,
        "server": 0.004,
        "evaluation": 0.02,
        "commit": 0.001,
    }
    return row


def _ledger(fake: FakeRun, index: int) -> list[dict[str, Any]]:
    entry = {
        "round": index,
        "heading": "training",
        "handler": "train_base",
        "raw": fake.upload,
        "wire": fake.upload + 203,
    }
    up = [
        {**entry, "call": 1, "client": c, "direction": "up", "kind": "FusionOutputs", "casting": "unicast"}
        for c in range(fake.clients)
    ]
    size = fake.upload * fake.clients
    down = [
        {
            **line,
            "call": 2,
            "handler": "train_modular",
            "direction": "down",
            "casting": "broadcast",
            "raw": size,
            "wire": size,
        }
        for line in up
    ]
    evaluated = {**up[0], "heading": "evaluation", "call": 3, "kind": "Hits", "raw": 48, "wire": 160}
    return [*up, *down, evaluated]


def _summary(fake: FakeRun, folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = list(fake.class_names or map(str, range(fake.classes)))
    counts = np.random.default_rng(0).dirichlet([0.5] * fake.clients, len(names)) * 400
    up, down = rows[-1]["uplink"], rows[-1]["downlink"]
    once = {"raw": down["raw"] // fake.clients, "wire": down["wire"] // fake.clients}
    return summary_values() | {
        "method": fake.method, "rounds": fake.rounds, "score": fake.score, "seconds": 31.2,
        "run": f"runs/{folder.name}", "note": fake.note, "discloses": list(fake.discloses),
        **_accuracies(fake, 1.0),
        "best": {"round": fake.rounds - fake.eval_every, "validation_accuracy": 0.96, **_accuracies(fake, 0.998)},
        "stability": 0.0042, "gradient_steps": {"clients": 10 * fake.rounds, "server": 0},
        "uplink_bytes": up,
        "downlink_bytes": {**down, "raw_broadcast": once["raw"], "wire_broadcast": once["wire"]},
        "evaluation_bytes": {
            "uplink": {"raw": 1_234_567, "wire": 1_300_000}, "downlink": {"raw": 7_654_321, "wire": 8_000_000},
        },
        "bytes_by_kind": {
            "FusionOutputs": {"uplink": up, "downlink": down, "downlink_broadcast": once},
        } if fake.upload else {},
        "seconds_by_phase": {
            "calls": 10.2, "local work, all clients": 18.1, "server": 0.8, "evaluation": 4.2, "commit": 0.3,
        },
        "clients": [
            {
                "id": c, "architecture": fake.architecture(c), "samples": 290 + c, "data": "digits",
                "parameters": _parameters(fake.architecture(c)),
            }
            for c in range(fake.clients)
        ],
        "class_names": names, "class_counts": counts.T.round().astype(int).tolist(),
    }  # fmt: skip


def _parameters(architecture: str) -> dict[str, int]:
    base, modular = SIZES.get(architecture, (90_000, 9_000))
    return {"base": base, "modular": modular}


def _accuracies(fake: FakeRun, share: float) -> dict[str, Any]:
    values = accuracies(fake, share)
    return {
        "global_accuracy": _spread(values["common"]),
        "own_accuracy": _spread(values["own"]),
        "composition_matrix": matrix(fake, share),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "per_client": list(values)}


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
