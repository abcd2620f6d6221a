"""Samples drawn by a generator at the features' place: what it learns from, and what a model learns of them.

Objectives of FedVTC (arXiv:2508.01669). The paper's equations are known from notes of others; which weights and which
distribution matching it has is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.families.class_statistics import ClassStatistics
from interfuse.families.class_tables import ClassTable, floored
from interfuse.families.prototypes import pulled
from interfuse.messages import Disclosure, NamedTensors
from interfuse.models import SplitModel, run_with
from interfuse.models.generators import as_samples
from interfuse.training import Objective

GeneratorTensors = dict[str, Annotated[Float[Tensor, "..."], Disclosure.GENERATORS]]
"""Tensors by key of a generator of samples, which clients train on theirs."""


def gaussian_divergence(
    mean: Float[Tensor, "batch d"],
    variance: Float[Tensor, "#batch d"],
    target: Float[Tensor, "batch d"],
    target_variance: Float[Tensor, "#batch d"],
) -> Float[Tensor, "batch"]:
    """KL(N(mean, diag variance) ‖ N(target, diag target_variance)) of each row, in closed form:

    ½ Σ_j [ln(τ_j²/σ_j²) − 1 + σ_j²/τ_j² + (z_j − c_j)²/τ_j²]. Variances are above 0.

    Training has its gradient alone: see :func:`drawing_to`.
    """
    ratio = variance / target_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - target).square() / target_variance).sum(1)


def precisions(variance: Float[Tensor, "#classes #d"], means: ClassTable) -> Float[Tensor, "classes d"]:
    """1/σ², in units in which its mean over all features of the classes present is 1.

    Features drawn to class means by their own 1/σ² get a smaller σ², and are drawn the more: the mean of 1 bounds how
    strong that can become, as a floor under σ² bounds how uneven.
    """
    found = (1 / variance).expand_as(means.rows)
    return found / found[means.present].mean() if means.present.any() else torch.ones_like(found)


def drawing_to(known: ClassStatistics, floor: float, pull: float) -> Objective:
    """Cross entropy and the pull to the means of classes, weighted by 1/σ² with σ² at least ``floor``: see
    :func:`.pulled` and :func:`precisions`.

    The penalty is 2/d times the part of the :func:`gaussian_divergence` that an extractor can change, in these units.
    """
    means, weights = known.means, precisions(floored(known.variance, floor), known.means)
    return partial(pulled, table=means.rows, present=means.present, pull=pull, weights=weights)


def reconstruction(drawn: Float[Tensor, "batch *sample"], x: Float[Tensor, "batch *sample"]) -> Float[Tensor, ""]:
    """‖x′ − x‖², a sum over the values of a sample, a mean over the batch."""
    return (drawn - x).square().flatten(1).sum(1).mean()


def matching(z: Float[Tensor, "classes latents d"], means: Float[Tensor, "classes d"]) -> Float[Tensor, ""]:
    """‖ mean_v g(ψ(v)) − c_y ‖², a mean over classes: how far features of what is drawn are from their place."""
    return (z.mean(1) - means).square().sum(1).mean()


def learning_to_draw(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    extractor: SplitModel,
    tensors: NamedTensors,
    deviations: Float[Tensor, "classes d"],
    means: Float[Tensor, "present d"],
    spread: Float[Tensor, "present d"],
    targets: Float[Tensor, "present d"],
    bounds: Float[Tensor, "2 channels"] | None,
    latents: int,
    weights: tuple[float, float],
) -> Tensor:
    """What a generator ψ loses: w_1 · reconstruction of x from v = g(x) + σ_k ε, plus w_2 · distribution matching on
    v ~ N(c_y, σ²) of some classes. The extractor g stays as it is.

    Args:
        extractor: The module that the client's model is; ``tensors`` are its values.
        deviations: σ_k of each class.
        means, spread: c_y and σ of the classes that are matched.
        targets: Where the features of what is drawn for these should have their means.
        latents: How many are drawn for each of these.
        weights: w_1 and w_2.
    """
    with torch.no_grad():
        z = run_with(extractor, tensors, batch.x, "base")
    drawn = as_samples(model(z + deviations[batch.y] * torch.randn_like(z)), bounds)
    loss = weights[0] * reconstruction(drawn, batch.features)
    if not (weights[1] and latents and len(means)):
        return loss
    v = means[:, None] + spread[:, None] * torch.randn(len(means), latents, means.shape[1], device=means.device)
    again = run_with(extractor, tensors, as_samples(model(v.flatten(0, 1)), bounds), "base")
    return loss + weights[1] * matching(again.reshape(len(means), latents, -1), targets)


def load_generator(network: SplitModel, tensors: NamedTensors) -> None:
    """Put a generator in place.

    Raises:
        ModelError: it is not just the tensors of this one.
    """
    if lacking := network.tensors().keys() - tensors.keys():
        raise ModelError(f"a generator came without {', '.join(sorted(lacking))}")
    network.load(tensors)


def latents_of(y: Int64[Tensor, "n"], known: ClassStatistics, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """v ~ N(c_y, σ_y²), one for each label."""
    noise = torch.randn(len(y), known.means.rows.shape[1], generator=generator).to(known.means.rows)
    return known.means.rows[y] + known.deviations[y] * noise


def rehearsal(
    client: Client[Any],
    draw: Callable[[Int64[Tensor, "n"]], Tensor],
    y: Int64[Tensor, "n"],
    epochs: int,
    batch_size: int,
    *,
    replay: bool,
) -> Iterator[Batch]:
    """In each epoch a batch after the other of samples drawn for all of ``y``, then, with ``replay``, all own rows.

    Orders are drawn from the client's generator: the order in which it trains on its own rows goes on untouched.
    """
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(y), generator=client.generator).to(y.device), batch_size):
            yield Batch(draw(y[index]), y[index])
        if replay:
            yield from own_rows(client, batch_size)


def own_rows(client: Client[Any], batch_size: int, *, epochs: int = 1, steps: int | None = None) -> Iterator[Batch]:
    """A client's rows for so many epochs, or steps where they are given, in an order drawn anew for each epoch, beside
    that in which it trains its model on them."""

    def positions() -> Iterator[np.ndarray]:
        for _ in range(epochs) if steps is None else count():
            order = torch.randperm(client.profile.samples, generator=client.generator)
            yield from (index.numpy() for index in torch.split(order, batch_size))

    return iter(client.data.batches(islice(positions(), steps)))
