"""A run folder as the report sees it: typed access to what docs/run-folder.md describes."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from interfuse.errors import RunError

Json = Mapping[str, Any]
Matrix = Float[np.ndarray, "bases modulars"]

NO_COLLABORATION = ("local", "pooled")
"""Methods that are references: they exchange nothing, so nothing is expected of their compositions."""


def mean(values: Iterable[float]) -> float:
    """Mean over the known values; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def std(values: Iterable[float]) -> float:
    """Standard deviation over the known values; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known)) if known else math.nan


def number(value: object) -> float:
    """A number of a JSON file; NaN for null and for what is missing."""
    return float(value) if isinstance(value, int | float) else math.nan


def mean_swapped(matrix: Matrix) -> float:
    """Mean over the pairs whose blocks belong to two clients; NaN where there is one client."""
    return mean(matrix[~np.eye(len(matrix), dtype=bool)])


@dataclass(frozen=True)
class Spread:
    """Accuracies between 0 and 1 over clients; NaN is unknown."""

    mean: float
    std: float
    per_client: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured at one round. ``composition`` has a row for each base and a column for each modular block."""

    own: Spread
    common: Spread
    composition: Matrix | None

    @property
    def mean_composition(self) -> float:
        """Mean over all pairs of a base and a modular block, those of one client included."""
        return math.nan if self.composition is None else mean(self.composition.flat)

    @property
    def mean_swapped(self) -> float:
        """Mean over the pairs whose blocks belong to two clients."""
        return math.nan if self.composition is None else mean_swapped(self.composition)


@dataclass(frozen=True)
class ClientFacts:
    """A line of the table of clients; None is unknown."""

    id: int
    architecture: str
    base: int | None
    modular: int | None
    samples: int | None

    @property
    def parameters(self) -> int | None:
        """Parameters of the whole model."""
        return None if self.base is None or self.modular is None else self.base + self.modular


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracies over the evaluated rounds: means (and a standard deviation) over clients, NaN where unknown."""

    rounds: NDArray[np.int64]
    uplink: NDArray[np.int64]
    own: NDArray[np.float64]
    common: NDArray[np.float64]
    common_std: NDArray[np.float64]
    composition: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, finished or not.

    Attributes:
        summary: ``summary.json``; while the run is not finished, what the other files say in the same form.
        beside: The metrics of the references.
        rounds: Rounds done, and rounds asked for.
    """

    path: Path
    config: Json
    config_text: str
    summary: Json
    metrics: Sequence[Json]
    beside: Mapping[str, Sequence[Json]]
    finished: bool
    rounds: tuple[int, int]


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: there is no run, or a file of it cannot be read.
    """
    try:
        return _load(folder)
    except OSError as error:
        raise RunError(f"cannot read the run in {folder}: {error.strerror}: {error.filename}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"a file of the run in {folder} is damaged: {error!r}") from error


def _load(folder: Path) -> Run:
    text = (folder / "config.toml").read_text(encoding="utf-8")
    config, metrics = tomllib.loads(text), _lines(folder / "metrics.jsonl")
    summary = _finished(folder)
    references = sorted(path for path in (folder / "beside").glob("*") if path.is_dir())
    return Run(
        path=folder,
        config=config,
        config_text=text,
        summary=_partial(folder, config, metrics, references) if summary is None else summary,
        metrics=metrics,
        beside={path.name: _lines(path / "metrics.jsonl") for path in references},
        finished=summary is not None,
        rounds=(_rounds_done(metrics), int((summary or config)["rounds"])),
    )


def _finished(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that is still growing: a last one that was cut off is left out."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


def _rounds_done(metrics: Sequence[Json]) -> int:
    return int(metrics[-1]["round"]) if metrics else 0


def _partial(folder: Path, config: Json, metrics: Sequence[Json], references: Iterable[Path]) -> dict[str, Any]:
    """A summary of what is there so far. A reference counts once it is finished: half of one compares to nothing."""
    accuracy: Json = next((row["accuracy"] for row in reversed(metrics) if row.get("accuracy")), {})
    phases: dict[str, float] = {}
    for row in metrics:
        for phase, seconds in row["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    models, moved = config["models"], _bytes(_lines(folder / "ledger.jsonl"))
    finished = {path.name: _finished(path) for path in references}
    return {
        **{key: config[key] for key in ("method", "seed", "rounds")},
        "data": config["data"] if isinstance(config["data"], str) else ", ".join(config["data"]),
        "run": str(folder),
        "global_accuracy": _spread(accuracy.get("common", ())),
        "own_accuracy": _spread(accuracy.get("own", ())),
        "composition_matrix": accuracy.get("composition"),
        "uplink_bytes": metrics[-1]["uplink"] if metrics else {},
        **moved,
        "downlink_bytes": (metrics[-1]["downlink"] if metrics else {}) | _once(moved["bytes_by_kind"]),
        "seconds_by_phase": phases,
        "clients": [{"id": i, "architecture": models[i % len(models)]} for i in range(config["clients"])],
        "beside": {name: summary for name, summary in finished.items() if summary is not None},
    }


def _spread(values: Sequence[object]) -> dict[str, Any]:
    numbers = [number(value) for value in values]
    return {"mean": mean(numbers), "std": std(numbers), "per_client": numbers}


def _bytes(ledger: Iterable[Json]) -> dict[str, Any]:
    """Bytes by heading and, under *training*, by kind, as ``summary.json`` has them."""
    headings: dict[str, dict[str, dict[str, int]]] = {"start": _nothing(), "evaluation": _nothing()}
    kinds: dict[str, dict[str, dict[str, int]]] = {}
    broadcasts = set()
    for entry in ledger:
        training = entry["heading"] == "training"
        totals = kinds.setdefault(entry["kind"], _nothing()) if training else headings.get(entry["heading"], _nothing())
        copies = (entry["round"], entry["heading"], entry["call"])
        down = entry["direction"] == "down"
        repeated = entry["casting"] == "broadcast" and copies in broadcasts
        if down and entry["casting"] == "broadcast":
            broadcasts.add(copies)
        for size in ("raw", "wire"):
            totals["downlink" if down else "uplink"][size] += entry[size]
            if down and not repeated:
                totals["downlink_broadcast"][size] += entry[size]
    return {f"{heading}_bytes": totals for heading, totals in headings.items()} | {"bytes_by_kind": kinds}


def _once(kinds: Mapping[str, Json]) -> dict[str, int]:
    """What came down in all if a broadcast counts once."""
    return {
        f"{size}_broadcast": sum(totals["downlink_broadcast"][size] for totals in kinds.values())
        for size in ("raw", "wire")
    }


def _nothing() -> dict[str, dict[str, int]]:
    return {way: {"raw": 0, "wire": 0} for way in ("uplink", "downlink", "downlink_broadcast")}


def scores(values: Json) -> Scores:
    """The accuracies of a summary, of its ``best``, or of a reference."""
    matrix = values.get("composition_matrix")
    return Scores(
        own=_to_spread(values.get("own_accuracy")),
        common=_to_spread(values.get("global_accuracy")),
        composition=None if not matrix else np.array(matrix, dtype=float),
    )


def _to_spread(values: Json | None) -> Spread:
    values = values or {}
    per_client = tuple(number(value) for value in values.get("per_client") or ())
    return Spread(number(values.get("mean")), number(values.get("std")), per_client)


def metric(values: Json, name: str, on: str) -> Spread:
    """A metric beyond accuracy on ``own`` test shares or the ``global`` test set; unknown where it was not measured."""
    return _to_spread(((values.get("metrics") or {}).get(name) or {}).get(on))


def mean_recalls(values: Json, on: str) -> list[float]:
    """Recall of each class, a mean over the clients with samples of it; empty where it was not measured."""
    by_client = ((values.get("metrics") or {}).get("recall") or {}).get(on) or ()
    return [mean(map(number, of_class)) for of_class in zip(*by_client, strict=True)]


def confusion(values: Json, on: str) -> Int64[np.ndarray, "classes answers"] | None:
    """Samples of all clients by class and answer, the last column without an answer; None where not measured."""
    found = (values.get("confusion") or {}).get(on)
    return None if found is None else np.array(found, dtype=np.int64)


def best_scores(values: Json) -> Scores | None:
    """The accuracies at the best round on validation, where there is one."""
    best = values.get("best")
    return scores(best) if best else None


def reference(summary: Json, name: str) -> Json | None:
    """What ran beside: ``local`` or ``pooled``."""
    found: Json | None = (summary.get("beside") or {}).get(name)
    return found


def clients(summary: Json) -> list[ClientFacts]:
    """The clients in order, their data set behind the architecture where it is not the same for all."""
    several = len({client.get("data") for client in summary.get("clients") or ()}) > 1
    return [
        ClientFacts(
            id=int(client["id"]),
            architecture=f"{client['architecture']}, {client['data']}" if several else str(client["architecture"]),
            base=(client.get("parameters") or {}).get("base"),
            modular=(client.get("parameters") or {}).get("modular"),
            samples=client.get("samples"),
        )
        for client in summary.get("clients") or ()
    ]


def composes(summary: Json) -> bool:
    """Whether blocks of different clients are meant to work together: the method shares features, and no parameters."""
    discloses = summary.get("discloses")
    return discloses is None or ("features" in discloses and "parameters" not in discloses)


def number_of_clients(summary: Json) -> int:
    """How many clients there are, as far as the summary says."""
    return len(summary.get("clients") or ()) or len(scores(summary).common.per_client)


def curve(metrics: Sequence[Json]) -> Curve:
    """The evaluated rounds of ``metrics.jsonl``."""
    rows = [row for row in metrics if row.get("accuracy")]
    values = [row["accuracy"] for row in rows]

    def over_clients(name: str) -> list[list[float]]:
        return [[number(value) for value in accuracy[name]] for accuracy in values]

    return Curve(
        rounds=np.array([row["round"] for row in rows], dtype=np.int64),
        uplink=np.array([row["uplink"]["raw"] for row in rows], dtype=np.int64),
        own=np.array([mean(row) for row in over_clients("own")]),
        common=np.array([mean(row) for row in over_clients("common")]),
        common_std=np.array([std(row) for row in over_clients("common")]),
        composition=np.array(
            [mean(np.array(v["composition"], float).flat) if v.get("composition") else math.nan for v in values]
        ),
    )
