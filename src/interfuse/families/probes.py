"""What a client's data do to a small frozen network that all have in common: a gradient, made coarse before it is sent.

The network, the probe, stands beside the model, has the same weights everywhere and is never trained, so the gradient
depends on the data alone (RELA, FedMosaic: Seo et al., ICLR 2026, arXiv:2506.11024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interfuse.data import Batch, Shape, Task
from interfuse.errors import ModelError
from interfuse.models import SplitModel, resolve, run_with
from interfuse.models.adapters import transformer_layers
from interfuse.randomness import generator as generator_of
from interfuse.randomness import seeded

PROBE = "probe"
"""The name of the network."""
Jacobian = Literal["exact", "diagonal"]
"""How a gradient passes the last normalisation: exactly, or as if its Jacobian were diagonal (FedMosaic's release)."""
Rows = Literal["first", "random"]
Unit = Literal["absolute", "relative"]
"""Of noise: as it is, or in standard deviations of the gradient's values."""


def frozen_probe(name: str, sample: Shape, classes: int, width: int) -> SplitModel:
    """A model of the zoo, of which all is given; the same initial values wherever it is made."""
    with seeded(0, PROBE, name):
        return resolve(name)(sample, classes, width).grouped({}, given="backbone")


def probed_weight(probe: SplitModel) -> str:
    """The key of the weight whose gradient is taken: the MLP's down-projection in the last transformer layer.

    Raises:
        ModelError: the probe has no such layer.
    """
    return transformer_layers(probe)[-1]["down"] + ".weight"


def probe_gradient(
    probe: SplitModel, batch: Batch, task: Task, key: str, jacobian: Jacobian = "exact"
) -> Float[Tensor, "d hidden"]:
    """∂(mean loss of the batch)/∂(the weight under this key), by autograd; nothing of the probe changes.

    Raises:
        ModelError: ``diagonal``, and the probe's last normalisation is no RMSNorm.
    """
    weight = probe.parameters_of()[key].detach().requires_grad_()
    with torch.enable_grad():
        if jacobian == "diagonal":
            return _by_diagonal(probe, batch, task, key, weight)
        (gradient,) = torch.autograd.grad(task.loss(run_with(probe, {key: weight}, batch.x), batch.y), weight)
    return gradient


def _by_diagonal(probe: SplitModel, batch: Batch, task: Task, key: str, weight: Tensor) -> Float[Tensor, "d hidden"]:
    """As FedMosaic's release: γ s^(-1/2) (1 - h²/(s d)), s = mean h² + ε, in place of the RMSNorm's Jacobian.

    The layer's output must come to the normalisation by a residual connection alone.
    """
    norm, seen = _last_rms_norm(probe), dict[str, Tensor]()

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[f"{name} in"], seen[f"{name} out"] = inputs[0], output

    modules = {"norm": norm, "down": probe.get_submodule(key.removesuffix(".weight"))}
    hooks: list[RemovableHandle] = [m.register_forward_hook(partial(note, name)) for name, m in modules.items()]
    try:
        loss = task.loss(run_with(probe, {key: weight}, batch.x), batch.y)
    finally:
        for hook in hooks:
            hook.remove()
    (behind,) = torch.autograd.grad(loss, seen["norm out"])
    h, z, gamma = seen["norm in"].detach(), seen["down in"].detach(), norm.weight
    s = h.square().mean(-1, keepdim=True) + float(vars(norm).get("variance_epsilon", vars(norm).get("eps") or 0.0))
    before: Tensor = behind * gamma * s.rsqrt() * (1 - h.square() / (s * h.shape[-1]))
    found: Tensor = before.detach().flatten(0, -2).T @ z.flatten(0, -2)
    return found


def _last_rms_norm(probe: SplitModel) -> Any:
    norms = [m for m in probe.modules() if m._parameters.get("weight") is not None and "Norm" in type(m).__name__]
    if not norms or not type(norms[-1]).__name__.endswith("RMSNorm"):
        found = type(norms[-1]).__name__ if norms else "no normalisation"
        raise ModelError(f'the probe ends with {found}, and the diagonal form is of RMSNorm: take jacobian = "exact"')
    return norms[-1]


def kept_rows(rows: int, kept: float, which: Rows = "first", seed: int = 0) -> Int64[Tensor, "kept"]:
    """⌊kept·rows⌋ rows, one at least, the same for all clients: the first, or drawn from a seed that all know."""
    count = max(1, int(kept * rows + 1e-9))
    if which == "first":
        return torch.arange(count)
    return torch.randperm(rows, generator=generator_of(seed, "kept rows", rows))[:count].sort().values


def sanitised(
    gradient: Float[Tensor, "d hidden"],
    index: Int64[Tensor, "kept"],
    noise: float,
    unit: Unit,
    generator: torch.Generator,
) -> Float[Tensor, "kept hidden"]:
    """These rows of a gradient, with normal noise. Without clipping it is no differential privacy.

    Args:
        noise: Its standard deviation, in this unit.
    """
    coarse = gradient[index.to(gradient.device)]
    if not noise:
        return coarse
    drawn = torch.randn(coarse.shape, generator=generator).to(coarse)
    return coarse + drawn * (noise * (coarse.std(correction=0) if unit == "relative" else 1.0))


def mean_of(gradients: Iterable[Tensor], shape: Sequence[int]) -> Tensor:
    """Their mean; zeros of this shape where there is none."""
    found = [*gradients]
    return torch.stack(found).mean(0) if found else torch.zeros(*shape)


def sketched(gradient: Float[Tensor, "rows columns"], size: int, seed: int = 0) -> Float[Tensor, "1 size"]:
    """A random projection, the same for all who know the seed: each value, with a random sign, is added to one of
    ``size`` places (Charikar, Chen and Farach-Colton, ICALP 2002). Inner products stay what they are in the mean, with
    a variance of at most (‖x‖² ‖y‖² + ⟨x, y⟩²) / size; sums of gradients are sums of sketches."""
    values, drawn = gradient.flatten(), generator_of(seed, "sketch", gradient.numel())
    places = torch.randint(size, values.shape, generator=drawn).to(values.device)
    signs = 2 * torch.randint(2, values.shape, generator=drawn).to(values) - 1
    return values.new_zeros(size).index_add(0, places, signs * values)[None]
