"""Features of one class from three architectures, as points of a plane (FedIN, Figure 8).

    pip install scikit-learn
    python examples/fedin_clusters.py comparisons/fedin-table1-small [ENTRY ...]

Of every entry (or those named) with a finished seed, it takes the model of one client of each of the first three
architectures, as the method evaluates it, and what these make of the same test images of one class, in front of the
classifier. Into FOLDER/clusters it writes a picture of each entry and clusters.json with the number behind the picture:
the mean distance between two models' features of one image over that between two images under one model. It is near 0
where the models agree and above 1 where each has a cluster of its own. The picture is by t-SNE, or by principal
components where scikit-learn is not installed; its title says which.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import interfuse
from interfuse.data import load
from interfuse.errors import RunError
from interfuse.references import load_file

finished_runs = load_file(Path(__file__).with_name("finished_runs.py")).finished_runs

ARCHITECTURES = 3
IMAGES = 200
"""At most so many test images."""


def features(run: Path, label: int, most: int = IMAGES) -> dict[str, Tensor]:
    """By architecture, what a model of it makes of the test images of a class: ``[images, d]``."""
    result = interfuse.load_run(run)
    names = result.config.models[: min(ARCHITECTURES, result.config.clients)]
    dataset = load(result.config.data_names[0])
    x = dataset.normalise(dataset.x_test[dataset.y_test == label][:most])
    found = {}
    for client, name in enumerate(names):
        model = result.model(client)
        with model.evaluating():
            found[name] = model.base(x).flatten(1)
    return found


def separation(groups: Sequence[Tensor]) -> float:
    """Distance between models' features of the same image, over that between images under the same model."""
    between = [(a - b).norm(dim=1).mean() for i, a in enumerate(groups) for b in groups[:i]]
    within = [torch.pdist(group).mean() for group in groups]
    return float(torch.stack(between).mean() / torch.stack(within).mean())


def in_the_plane(points: Tensor) -> tuple[Tensor, str]:
    """Two coordinates for each point, and how they were found."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        centred = points - points.mean(0)
        return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T, "principal components"
    perplexity = min(30.0, (len(points) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, random_state=0).fit_transform(points.numpy())), "t-SNE"


def main(folder: Path, wanted: Sequence[str], label: int = 0, most: int = IMAGES) -> None:
    out = folder / "clusters"
    finished = finished_runs(folder, wanted)
    out.mkdir(exist_ok=True)
    first = {run.parent.name: run for run in reversed(finished)}
    everything = {}
    for entry, run in sorted(first.items()):
        found = features(run, label, most)
        if len(found) < 2 or len({z.shape[1] for z in found.values()}) > 1:
            print(f"{entry}: left out, for its features are not of one width or from one architecture alone")
            continue
        places, how = in_the_plane(torch.cat([*found.values()]))
        everything[entry] = {"models": [*found], "class": label, "separation": separation([*found.values()])}
        print(f"{entry}: distance between models over that between images {everything[entry]['separation']:.2f}")
        picture = Figure(figsize=(4, 4), layout="constrained")
        axes = picture.add_subplot(title=f"{entry}: class {label}, {how}", xticks=[], yticks=[])
        for name, part in zip(found, places.split([len(z) for z in found.values()]), strict=True):
            axes.scatter(*part.T.numpy(), s=6, label=name)
        axes.legend(fontsize=7)
        picture.savefig(out / f"{entry}.png", dpi=150)
    (out / "clusters.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    print(f"pictures: {out}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except RunError as error:
        sys.exit(str(error))
