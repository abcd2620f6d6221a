"""How alike the models of different depth are, stage by stage (FedIN, Figures 6a, 6b and 7): linear CKA.

    python examples/fedin_similarity.py comparisons/fedin-table1-small [ENTRY ...]

Of every entry (or those named) with a finished seed, it takes the model of one client of each architecture, as the
method evaluates it, and compares all pairs on test images that no client has. Into FOLDER/similarity it writes
similarity.json, a curve over the stages, mean over the pairs, and for each entry a heat map of every stage. It leaves
out entries whose clients all have one architecture.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import interfuse
from interfuse.data import load
from interfuse.errors import RunError
from interfuse.evaluation import similarity_by_group
from interfuse.references import load_file

finished_runs = load_file(Path(__file__).with_name("finished_runs.py")).finished_runs

ROWS = 500
"""Test images."""

Matrices = dict[str, list[list[float]]]
"""By group of stages, a row and a column for each architecture."""


def compared(run: Path, rows: int = ROWS) -> tuple[list[str], Matrices]:
    """Architectures of a run and how alike their models are."""
    result = interfuse.load_run(run)
    names = result.config.models
    dataset = load(result.config.data_names[0])
    models = [result.model(client) for client in range(min(len(names), result.config.clients))]
    found = similarity_by_group(models, dataset.normalise(dataset.x_test[:rows]))
    return list(names[: len(models)]), {group: matrix.tolist() for group, matrix in found.items()}


def between_models(matrix: Sequence[Sequence[float]]) -> float:
    """The mean over pairs of two different models."""
    values = np.array(matrix)
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def main(folder: Path, wanted: Sequence[str], rows: int = ROWS) -> None:
    out = folder / "similarity"
    finished = finished_runs(folder, wanted)
    out.mkdir(exist_ok=True)
    first = {run.parent.name: run for run in reversed(finished)}
    curves, everything = Figure(figsize=(6, 4), layout="constrained"), {}
    axes = curves.add_subplot(xlabel="stage", ylabel="linear CKA, mean over pairs of models", ylim=(0, 1.02))
    for entry, run in sorted(first.items()):
        names, found = compared(run, rows)
        if len(names) < 2:
            print(f"{entry}: one architecture, nothing to compare")
            continue
        print(f"{entry}: " + ", ".join(f"{group} {between_models(matrix):.2f}" for group, matrix in found.items()))
        everything[entry] = {"models": names, "similarity": found}
        axes.plot(list(found), [between_models(matrix) for matrix in found.values()], marker="o", label=entry)
        maps = Figure(figsize=(2 * len(found) + 1, 2.6))
        panels = maps.subplots(1, len(found), sharey=True)
        for panel, (group, matrix) in zip(panels, found.items(), strict=True):
            image = panel.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
            panel.set_title(group)
            panel.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            panel.set_yticks(range(len(names)), names, fontsize=6)
        maps.colorbar(image, ax=panels, label="linear CKA", shrink=0.8, pad=0.01)
        maps.savefig(out / f"{entry}.png", dpi=150, bbox_inches="tight")
    axes.legend(fontsize=7)
    curves.savefig(out / "curves.png", dpi=150)
    (out / "similarity.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    print(f"mean linear CKA between two architectures; pictures: {out}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except RunError as error:
        sys.exit(str(error))
