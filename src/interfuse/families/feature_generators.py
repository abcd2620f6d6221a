"""Generators of features: a network that makes features of labels, and what it and the clients learn from each other.

Objectives of FedGen (Zhu et al., ICML 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from interfuse.data import Batch
from interfuse.messages import NamedTensors
from interfuse.models import SplitModel, run_with


def network(classes: int, d: int, noise: int, hidden: int) -> SplitModel:
    """G: noise and the one-hot label, side by side ``[batch, noise + classes]``, to features ``[batch, d]``."""
    inner = nn.Sequential(nn.Linear(noise + classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
    return SplitModel({"hidden": inner, "features": nn.Linear(hidden, d)})


def alike(noise: Float[Tensor, "batch n"], z: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """exp(− mean over pairs of (mean squared distance of noise · mean absolute distance of features)): 1 where all
    features are the same, and the less the more these follow the noise."""
    of_noise = (noise[:, None] - noise[None]).square().mean(2)
    of_features = (z[:, None] - z[None]).abs().mean(2)
    return torch.exp(-(of_noise * of_features).mean())


def recognised(
    scores: Sequence[Float[Tensor, "batch classes"]], y: Int64[Tensor, "batch"], counts: Float32[Tensor, "k classes"]
) -> Float[Tensor, ""]:
    """Σ_k mean_i ω_k(y_i) CE(h_k(z_i), y_i), with ω_k(y) the part of client k in all samples that have label y."""
    omega = counts / counts.sum(0).clamp(min=1)
    losses = [functional.cross_entropy(own, y, reduction="none") for own in scores]
    return (omega[:, y] * torch.stack(losses)).sum(0).mean()


def generating(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    head: SplitModel,
    heads: Sequence[NamedTensors],
    counts: Float32[Tensor, "k classes"],
    diversity: float,
) -> Tensor:
    """How badly the clients' heads recognise what the generator makes, plus η times its diversity loss.

    Args:
        head: The module that all heads are; its own values play no part.
    """
    z = model(batch.x)
    scores = [run_with(head, own, z) for own in heads]
    noise = batch.features[:, : batch.features.shape[1] - counts.shape[1]]
    return recognised(scores, batch.y, counts) + diversity * alike(noise, z)


def regularised(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    generator: NamedTensors,
    counts: Float32[Tensor, "classes"],
    alpha: float,
    beta: float,
    steps: int,
) -> Tensor:
    """CE(f(x), y) + α_t CE(h(G(ỹ)), ỹ) + β_t KL(h(G(y)) ‖ f(x)), with the client's head h as it is now.

    The latter two in the first so many steps, and where there is a generator.
    """
    logits = model(batch.x)
    entropy = functional.cross_entropy(logits, batch.y)
    if not generator or step >= steps:
        return entropy
    y = torch.multinomial(counts, len(batch.y), replacement=True)
    generated = functional.cross_entropy(model.modular(made(generator, y, len(counts))), y)
    with torch.no_grad():
        teacher = model.modular(made(generator, batch.y, len(counts))).softmax(1)
    distance = functional.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
    return entropy + alpha * generated + beta * distance


def made(generator: NamedTensors, y: Int64[Tensor, "batch"], classes: int) -> Float[Tensor, "batch d"]:
    """Features of these labels by a generator with these tensors."""
    (d, hidden), inputs = generator["features.weight"].shape, generator["hidden.0.weight"].shape[1]
    return run_with(_shape(classes, d, inputs - classes, hidden), generator, labelled(y, classes, inputs - classes))


@cache
def _shape(classes: int, d: int, noise: int, hidden: int) -> SplitModel:
    with torch.device("meta"):
        return network(classes, d, noise, hidden)


def labelled(
    y: Int64[Tensor, "batch"], classes: int, noise: int, generator: torch.Generator | None = None
) -> Float32[Tensor, "batch inputs"]:
    """Uniform noise and the one-hot label."""
    drawn = torch.rand(len(y), noise, generator=generator)
    return torch.cat([drawn.to(y.device), torch.eye(classes, device=y.device)[y]], 1)
