"""Features of others in front of intermediate layers and behind them: layers that learn to make these of those.

Objectives and the gradient rule of FedIN (Chan et al., arXiv:2304.00759).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from interfuse.aggregation import use_batch_statistics
from interfuse.data import Batch, Task
from interfuse.models import SplitModel
from interfuse.training import Gradients

Rule = Literal["simplified", "exact", "sum", "projected"]
Normalisation = Literal["eval", "batch", "train"]


def noisy(s: Tensor, noise: float) -> Tensor:
    """Features with Gaussian noise of ``noise`` times their standard deviation, where there is any."""
    return s + noise * s.detach().std(correction=0) * torch.randn_like(s) if noise else s


def noisy_loss(model: SplitModel, batch: Batch, step: int, *, noise: float, task: Task) -> Tensor:
    """The task's loss of the whole model, with noise at both cuts."""
    s_in = noisy(model.run(batch.x, "extractor"), noise)
    s_out = noisy(model.run(s_in, "intermediate"), noise)
    return task.loss(model.run(s_out, "classifier"), batch.y)


def imitation(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    s_in: Float32[Tensor, "pairs rows ..."],
    s_out: Float32[Tensor, "pairs rows ..."],
    normalisation: Normalisation,
    weight: float,
) -> Tensor:
    """The IN loss (eq. 7) on one of the batches received, drawn for each step; the own batch plays no part.

    Args:
        normalisation: Which statistics normalise others' features; only ``train`` lets these move the running ones.
    """
    drawn = torch.randint(len(s_in), (1,))
    modes: dict[Normalisation, Callable[[], AbstractContextManager[None]]]
    modes = {"eval": model.in_evaluation_mode, "batch": partial(use_batch_statistics, model), "train": nullcontext}
    with modes[normalisation]():
        made = model.run(s_in[drawn].flatten(0, 1), "intermediate")
    return weight * functional.mse_loss(made, s_out[drawn].flatten(0, 1))


def stacked(batches: Sequence[Float32[Tensor, "_ ..."]]) -> Float32[Tensor, "pairs rows ..."]:
    """All batches as one tensor of at least two rows each; those of fewer rows than the largest repeat theirs."""
    rows = max(2, *map(len, batches))
    return torch.stack([batch[torch.arange(rows, device=batch.device) % len(batch)] for batch in batches])


def on_intermediate(
    gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor], *, rule: Rule, lam: float, per_tensor: bool
) -> Gradients:
    """The local gradient on extractor and classifier, Z on the intermediate layers: as a whole, or tensor by tensor."""
    local, foreign = gradients["local"], gradients["in"]
    z: Gradients = {}
    for keys in ([key] for key in foreign) if per_tensor else [list(foreign)]:
        own, others = ({key: g[key] for key in keys} for g in (local, foreign))
        z |= alleviated(own, others, rule, lam)
    return local | z


def alleviated(local: Gradients, foreign: Gradients, rule: Rule, lam: float) -> Gradients:
    """Z = G_IN + f · G_local, the gradient of the intermediate layers, from gradients of the same tensors.

    The factor f is λ/2 for ``simplified`` (eq. 13), and for ``exact`` (eq. 12) λ*/2 with the λ* that minimises
    ‖G_IN − Z‖ under ⟨Z, G_local⟩ ≥ 0: max(0, −2b/a), with a = ⟨G_local, G_local⟩ and b = ⟨G_local, G_IN⟩. It is 1 for
    ``sum``, which leaves the conflict as it is, and 1 + λ*/2 for ``projected``, which adds the exact Z to G_local.
    """
    a = torch.stack([g.square().sum() for g in local.values()]).sum()
    b = torch.stack([(g * foreign[key]).sum() for key, g in local.items()]).sum()
    least = torch.finfo(a.dtype).tiny  # no local gradient: nothing to be in conflict with
    half = (-b).clamp(min=0) / a.clamp(min=least)
    factors: dict[Rule, float | Tensor] = {"simplified": lam / 2, "exact": half, "sum": 1.0, "projected": 1 + half}
    return {key: g + factors[rule] * local[key] for key, g in foreign.items()}
