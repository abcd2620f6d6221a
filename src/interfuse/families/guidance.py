"""Vectors that guide training, and how they learn to: through the gradient of a step that they guide.

Objectives of FedL2G (Zhang et al., arXiv:2410.06490).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from interfuse.data import Batch
from interfuse.models import SplitModel, run_with

Form = Literal["logits", "features"]
"""What is guided."""


def guided(
    model: SplitModel, batch: Batch, step: int, *, vectors: Float[Tensor, "classes width"], form: Form, weight: float
) -> Tensor:
    """CE + ω MSE between outputs, or features, and the guiding vectors of the labels (FedL2G, eq. 2)."""
    z = model.base(batch.x)
    logits = model.modular(z)
    distance = functional.mse_loss(logits if form == "logits" else z, vectors[batch.y])
    return functional.cross_entropy(logits, batch.y) + weight * distance


def meta_gradient(
    model: SplitModel,
    study: Batch,
    quiz: Batch,
    vectors: Float32[Tensor, "classes width"],
    *,
    lr: float,
    form: Form,
    weight: float,
) -> Float32[Tensor, "classes width"]:
    """∂/∂v CE(θ − η ∇_θ guided(θ, v; study); quiz), through the gradient of that step.

    In evaluation mode; the model stays as it is.
    """
    leaf = vectors.detach().clone().requires_grad_()
    parameters = model.parameters_of()
    with model.in_evaluation_mode():
        loss = guided(model, study, 0, vectors=leaf, form=form, weight=weight)
        found = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
    after = {key: parameter - lr * own for (key, parameter), own in zip(parameters.items(), found, strict=True)}
    (meta,) = torch.autograd.grad(
        functional.cross_entropy(run_with(model, after, quiz.x), quiz.y),
        leaf,
        allow_unused=True,
        materialize_grads=True,
    )
    return meta
