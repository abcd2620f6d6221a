"""What stale running statistics cost: global accuracy with statistics of normalisation layers computed anew.

    python examples/fedin_statistics.py comparisons/fedin-table1-small [ENTRY ...]

Where few clients with skewed classes take part in a round, and their depths differ, the mean of their running
statistics fits none of their models. For every finished seed of a comparison of averaging methods (or of the entries
named) this takes one client of each architecture, after the last round, and gives its normalisation layers the
statistics of 1,024 training images, 8 batches of 128. Nobody has such a mixture of all clients' images, so this is no
method: it says how much of a difference between two methods is one of weights. All entries are treated alike, also
those that normalise by the batch.

It prints both accuracies on the comparison's test images, mean over architectures, and each seed by itself, and writes
them to FOLDER/statistics/statistics.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import interfuse
from interfuse.aggregation import recalibrate
from interfuse.data import load
from interfuse.errors import RunError
from interfuse.models import SplitModel
from interfuse.references import load_file

finished_runs = load_file(Path(__file__).with_name("finished_runs.py")).finished_runs

IMAGES, BATCH = 1024, 128


def accuracy(model: SplitModel, x: Tensor, y: Tensor) -> float:
    """With the running statistics as they are."""
    with model.evaluating():
        return float((torch.cat([model(part) for part in x.split(BATCH)]).argmax(1) == y).float().mean())


def both(run: Path, images: int = IMAGES) -> tuple[float, float]:
    """Mean accuracy of a run's architectures as its summary has it, and with statistics computed anew."""
    result = interfuse.load_run(run)
    config = result.config
    dataset = load(config.data_names[0]).with_test_rows(config.test_rows)
    x, y = dataset.normalise(dataset.x_test), dataset.y_test
    chosen = torch.randperm(len(dataset.x_train), generator=torch.Generator().manual_seed(0))[:images]
    mixed = dataset.normalise(dataset.x_train[chosen])
    clients = range(min(len(config.models), config.clients))
    as_it_is = result.summary.global_accuracy.per_client
    anew = []
    for client in clients:
        model = result.model(client)
        with torch.no_grad():
            recalibrate(model, mixed.split(BATCH))
        anew.append(accuracy(model, x, y))
    return float(np.mean([as_it_is[client] for client in clients])), float(np.mean(anew))


def main(folder: Path, wanted: Sequence[str], images: int = IMAGES) -> None:
    out = folder / "statistics"
    found: dict[str, dict[str, list[float]]] = {}
    finished = finished_runs(folder, wanted)
    out.mkdir(exist_ok=True)
    for run in finished:
        entry = run.parent.name
        as_it_is, anew = both(run, images)
        values = found.setdefault(entry, {"running": [], "anew": []})
        values["running"].append(as_it_is)
        values["anew"].append(anew)
    print("global accuracy, %: with its own statistics, with those of mixed images (seeds)")
    for entry, values in sorted(found.items(), key=lambda item: -np.mean(item[1]["anew"])):
        own, anew = (100 * np.array(values[key]) for key in ("running", "anew"))
        print(f"{entry:20} {own.mean():5.1f}  {anew.mean():5.1f}  ({', '.join(f'{value:.1f}' for value in anew)})")
    (out / "statistics.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except RunError as error:
        sys.exit(str(error))
