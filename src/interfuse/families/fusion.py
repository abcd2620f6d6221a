"""Pairs of fusion-layer outputs and labels: which of them go down where all would be too many, with which labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.handler import Program
from interfuse.messages import Disclosure, Features, Message, Targets
from interfuse.method import Count
from interfuse.models import SplitModel
from interfuse.privacy import log_reported, randomised_response
from interfuse.server import Server
from interfuse.training import Objective

Epsilon = Annotated[float, Gt(0), Le(30)]
"""Beyond 30 flips are too rare for the digits of the noise (:func:`interfuse.privacy.randomised_response`)."""


class FusionOutputs(Message):
    """One minibatch of a client at the fusion layer: z = base(x), and its targets."""

    z: Features
    y: Targets


class FusionPairs(Message):
    """The pairs (z, y) of all clients, in the order of clients, or a part of them."""

    pairs: tuple[FusionOutputs, ...]


class Mixtures(Message):
    """Convex mixtures of rows of all clients, and the same mixtures of their one-hot labels."""

    z: Features
    y: Annotated[Float32[Tensor, "batch classes"], Disclosure.LABELS]


@dataclass(frozen=True)
class FusionSharing(Program):
    """What methods that share fusion pairs can choose: how many go down, and how true their labels are."""

    # who learns from a pair corrects for the flips of who sent it
    agreed: ClassVar[Collection[str]] = ("label_epsilon",)

    downlink: Literal["all", "pairs", "rows", "balanced", "mixed"] = "all"  # what goes down of the pairs of all clients
    downlink_rows: Count = 128  # at most so many rows go down, unless all do
    mixed_rows: Count = 2  # rows in a mixture, with downlink = "mixed"
    label_epsilon: Epsilon | None = None  # epsilon of randomised response, the same for all clients; None: true labels

    def most_batches(self, batch_size: int) -> int:
        """At most so many batches go down, fewer where fewer came up, unless they are of mixtures; 0: all that came."""
        if self.downlink == "all":
            return 0
        return self.downlink_rows // batch_size if self.downlink == "pairs" else -(-self.downlink_rows // batch_size)

    def part(self, fused: FusionPairs, server: Server[Any], batch_size: int) -> FusionPairs:
        """What goes down of the pairs. Rows that are drawn one by one are divided into pairs of ``batch_size`` anew."""
        if self.downlink == "all":
            return fused
        if self.downlink == "pairs":
            drawn = torch.randperm(len(fused.pairs), generator=server.generator)[: self.most_batches(batch_size)].sort()
            return FusionPairs(tuple(fused.pairs[place] for place in drawn.values.tolist()))
        draw = balanced if self.downlink == "balanced" else sampled
        rows = draw(rows_of(fused), self.downlink_rows, server.generator)
        pieces = zip(torch.split(rows.features, batch_size), torch.split(rows.y, batch_size), strict=True)
        return FusionPairs(tuple(FusionOutputs(z, y) for z, y in pieces))

    def mixtures(self, fused: FusionPairs, server: Server[Any]) -> Mixtures:
        """What goes down where rows are mixed."""
        z, y = mixed(rows_of(fused), server.dims["classes"], self.downlink_rows, self.mixed_rows, server.generator)
        return Mixtures(z, y)

    def reported(self, client: Client[Any], positions: np.ndarray, y: Tensor) -> Tensor:
        """The labels that are uploaded. A sample always has the same noise: its reports tell no more than the first."""
        if self.label_epsilon is None:
            return y
        noise = client.lasting_noise(client.profile.samples, "labels")
        return randomised_response(
            y, client.dims["classes"], self.label_epsilon, noise[torch.from_numpy(positions)].to(y.device)
        )

    def likelihood(self, client: Client[Any]) -> Objective:
        """How a modular block learns from targets as they were uploaded."""
        epsilon = self.label_epsilon
        return client.modular_loss if epsilon is None else partial(likelihood, epsilon=epsilon)

    def mixed_likelihood(self, labels: Float32[Tensor, "mixtures classes"]) -> Objective:
        """The same for mixed labels."""
        return partial(mixed_likelihood, labels=labels, epsilon=self.label_epsilon)


def likelihood(model: SplitModel, batch: Batch, step: int, *, epsilon: float) -> Tensor:
    """The mean negative log-likelihood of labels reported with this epsilon, from features."""
    return functional.nll_loss(_log_probabilities(model, batch.features, epsilon), batch.y.long())


def mixed_likelihood(
    model: SplitModel, batch: Batch, step: int, *, labels: Float32[Tensor, "mixtures classes"], epsilon: float | None
) -> Tensor:
    """The same for mixed labels; the ``y`` of a batch are places of mixtures in ``labels``."""
    return -(labels[batch.y] * _log_probabilities(model, batch.features, epsilon)).sum(1).mean()


def _log_probabilities(model: SplitModel, z: Tensor, epsilon: float | None) -> Float32[Tensor, "batch classes"]:
    found = functional.log_softmax(model.modular(z), dim=1)
    return found if epsilon is None else log_reported(found, epsilon)


def rows_of(fused: FusionPairs) -> Batch:
    """All pairs as rows."""
    return Batch(torch.cat([pair.z for pair in fused.pairs]), torch.cat([pair.y for pair in fused.pairs]).long())


def shuffled(outputs: FusionOutputs, generator: torch.Generator) -> FusionOutputs:
    """The same features with the same labels, but who belongs to whom is drawn: a control that can teach nothing."""
    return FusionOutputs(outputs.z, outputs.y[torch.randperm(len(outputs.y), generator=generator)])


def sampled(rows: Batch, count: int, generator: torch.Generator) -> Batch:
    """At most ``count`` rows, drawn without repetition."""
    return _taken(rows, torch.randperm(len(rows.y), generator=generator)[:count])


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
    labels = functional.one_hot(rows.y, classes).to(rows.features)
    return (weights[..., None] * rows.features[chosen]).sum(1), (weights[..., None] * labels[chosen]).sum(1)


def _taken(rows: Batch, index: Tensor) -> Batch:
    index = index.to(rows.y.device)
    return Batch(rows.features[index], rows.y[index])
