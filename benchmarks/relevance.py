"""What gradients of a probe tell of tasks: are two clients with one task more alike than two with different ones?

    python benchmarks/relevance.py vqa-s vqa-s-random

The ten tasks of easy-VQA in visual domains, two clients each, with other rows of it. Of so many examples of each client
the mean gradient is taken, as RELA does it, and the area under the ROC curve of same task against different tasks by
the relevance of every pair: 0.5 is chance. A second table: how many effective sources (e^H) a temperature leaves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import common
from interfuse.data import Batch, Dataset, load
from interfuse.data.easy_vqa import DOMAINS, UNSEEN
from interfuse.data.inputs import each, split
from interfuse.families.probes import frozen_probe, kept_rows, probe_gradient, probed_weight, sanitised
from interfuse.families.weighing import Similarity, effective_sources, relevance, weights

TASKS = [f"{domain}/{kind}" for domain in DOMAINS if domain != UNSEEN for kind in ("colour", "shape")]
TAUS = (0.5, 0.2, 0.1, 0.05)
Samples = Float[Tensor, "clients examples rows columns"]


@dataclass(frozen=True)
class How:
    """How gradients are made coarse and compared; the noise is in their standard deviations."""

    noise: float = 0.0
    kept: float = 0.4
    similarity: Similarity = "columns"


VARIANTS = {
    "": How(),
    "flat cosine": How(similarity="flat"),
    "all rows kept": How(kept=1.0),
    "a tenth kept": How(kept=0.1),
    "noise of a tenth": How(noise=0.1),
    "noise of 1": How(noise=1.0),
    "noise of 10": How(noise=10.0),
}


def gradients(data: Dataset, probe: str, examples: int, shuffled: bool) -> Samples:
    """Of each client the gradient of each of its first examples by itself.

    Args:
        shuffled: Answers are those of other examples, of any client: what is left is questions and pictures.
    """
    assert data.groups is not None
    model, task = frozen_probe(probe, data.shape, data.task.outputs, 64), data.task
    key, noise = probed_weight(model), torch.Generator().manual_seed(1)
    rows = torch.stack([(data.groups == g).nonzero().flatten()[:examples] for g in range(2 * len(TASKS))])
    y = data.y_train[rows.flatten()]
    if shuffled:
        y = y[torch.randperm(len(y), generator=noise)]
    x = data.normalise(each(lambda tensor: tensor[rows.flatten()], data.x_train))
    batches = map(Batch, split(x, 1), torch.split(y, 1))
    found = [probe_gradient(model, batch, task, key) for batch in batches]
    return torch.stack(found).reshape(*rows.shape, *found[0].shape)


def drawn(samples: Samples, count: int, draws: int, how: How) -> Iterator[Float[Tensor, "clients clients"]]:
    """The relevance by so many examples of each client, other ones in each draw."""
    noise, index = torch.Generator().manual_seed(0), kept_rows(samples.shape[2], how.kept)
    for _ in range(draws):
        means = []
        for own in samples:
            chosen = own[torch.randperm(len(own), generator=noise)[:count]]
            means.append(torch.stack([sanitised(g, index, how.noise, "relative", noise) for g in chosen]).mean(0))
        yield relevance(torch.stack(means), how.similarity)


def area(matrix: Float[Tensor, "clients clients"], same: Bool[Tensor, "clients clients"]) -> float:
    """How often, of a pair with one task and one without, the former is more alike; ties count half."""
    pairs = torch.ones_like(same).triu(1)
    yes, no = matrix[pairs & same][:, None], matrix[pairs & ~same]
    return float(((yes > no).double() + 0.5 * (yes == no)).mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probes", nargs="+", help="models of the zoo")
    parser.add_argument("--examples", type=int, default=90, help="of each client")
    parser.add_argument("--draws", type=int, default=20, help="of examples")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = load("easy-vqa-domains", tasks=(*TASKS, *TASKS))
    tasks = torch.arange(2 * len(TASKS)) % len(TASKS)
    rows, sources = [], []
    for probe, shuffled in [(probe, shuffled) for probe in given.probes for shuffled in (False, True)]:
        samples = gradients(data, probe, given.examples, shuffled)
        for variant, how in {"answers shuffled": How()}.items() if shuffled else VARIANTS.items():
            row, line = {"probe": ", ".join(filter(None, (probe, variant)))}, {}
            for count in (1, 10, given.examples):
                found = [*drawn(samples, count, 1 if count == given.examples else given.draws, how)]
                areas = [area(matrix, tasks[:, None] == tasks) for matrix in found]
                row[str(count)] = f"{np.mean(areas):.2f}" + (f" ± {np.std(areas):.2f}" if len(areas) > 1 else "")
                if not shuffled and not variant:
                    left = {t: np.mean([float(effective_sources(weights(m, t)).mean()) for m in found]) for t in TAUS}
                    line = {"probe": probe, "examples": count} | {str(t): f"{n:.1f}" for t, n in left.items()}
                    sources.append(line)
            rows.append(row)
    counts = {str(n): f"{n} example{'s' * (n > 1)}" for n in (1, 10, given.examples)}
    print("Area under the curve, same task against different tasks; ± over draws of examples\n")
    print(common.table(rows, {"probe": "probe"} | counts))
    print(f"\nEffective sources e^H of {2 * len(TASKS) - 1} by temperature, mean over clients\n")
    print(common.table(sources, {"probe": "probe", "examples": "examples"} | {str(t): f"τ {t}" for t in TAUS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
