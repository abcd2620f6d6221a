"""Rows of fusion-layer outputs and labels: a part of them, drawn, balanced or mixed; what is learned of mixtures."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from interfuse.data import Batch
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.messages import Disclosure, Features, Message
from interfuse.models import SplitModel


class Mixtures(Message):
    """Convex mixtures of rows of all clients, and the same mixtures of their one-hot labels."""

    z: Features
    y: Annotated[Float32[Tensor, "batch classes"], Disclosure.LABELS]


def mixed_likelihood(
    model: SplitModel, batch: Batch, step: int, *, labels: Float32[Tensor, "mixtures classes"]
) -> Tensor:
    """The mean negative log-likelihood of mixed labels; the ``y`` of a batch are places of mixtures in ``labels``."""
    return -(labels[batch.y] * functional.log_softmax(model.modular(batch.features), dim=1)).sum(1).mean()


def rows_of(fused: FusionPairs) -> Batch:
    """All pairs as rows."""
    return Batch(torch.cat([pair.z for pair in fused.pairs]), torch.cat([pair.y for pair in fused.pairs]))


def sampled(rows: Batch, count: int, generator: torch.Generator) -> Batch:
    """At most ``count`` rows, drawn without repetition."""
    return _taken(rows, torch.randperm(len(rows.y), generator=generator)[:count])


def divided(rows: Batch, parts: int, count: int, generator: torch.Generator) -> FusionPairs:
    """At most ``count`` rows, drawn without repetition, in so many parts of equal size, each in the order of rows."""
    drawn = torch.randperm(len(rows.y), generator=generator)[:count]
    batches = (_taken(rows, places.sort().values) for places in drawn.tensor_split(min(parts, len(drawn))))
    return FusionPairs(tuple(FusionOutputs(batch.features, batch.y) for batch in batches))


def balanced(rows: Batch, count: int, generator: torch.Generator) -> Batch:
    """At most ``count`` rows, drawn so that every class has as many as any other, as far as it has rows.

    Classes come in turn, so each stretch of the result is as balanced as the whole.
    """
    order = torch.randperm(len(rows.y), generator=generator)
    labels = rows.y.cpu()[order]
    turn = torch.empty(len(labels), dtype=torch.int64)
    for label in set(labels.tolist()):
        of_class = labels == label
        turn[of_class] = torch.arange(int(of_class.sum()))
    return _taken(rows, order[turn.argsort(stable=True)][:count])


def mixed(
    rows: Batch, classes: int, count: int, parts: int, generator: torch.Generator
) -> tuple[Float32[Tensor, "mixtures d"], Float32[Tensor, "mixtures classes"]]:
    """Mixtures of ``parts`` rows each, and the same mixtures of their one-hot labels: ``count`` of them.

    The weights of a mixture are uniform numbers over their sum, as in FedRE (arXiv:2511.22265), where class means are
    mixed.
    """
    chosen = torch.stack([torch.randperm(len(rows.y), generator=generator)[:parts] for _ in range(count)])
    weights = 1 - torch.rand(chosen.shape, generator=generator)  # from (0, 1]: a sum is never 0
    weights = (weights / weights.sum(1, keepdim=True)).to(rows.features.device)
    chosen = chosen.to(rows.features.device)
    labels = functional.one_hot(rows.y.long(), classes).to(rows.features)
    return (weights[..., None] * rows.features[chosen]).sum(1), (weights[..., None] * labels[chosen]).sum(1)


def _taken(rows: Batch, index: Tensor) -> Batch:
    index = index.to(rows.y.device)
    return Batch(rows.features[index], rows.y[index])
