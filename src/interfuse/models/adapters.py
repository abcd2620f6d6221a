"""Low-rank adapters on the linear layers of a transformer: LoRA, and Co-LoRA's matrices of one shape for all models.

A linear layer W becomes a module whose ``base`` it is; what is added to its output is s·(the adapter's update). A
transformer's layers are found by the names of their modules, so any model of a known family can have adapters.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from interfuse.errors import ModelError, nearest
from interfuse.models.split import SplitModel

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
"""The linear layers of a transformer's layer, by the names that all families share here."""
_LLAMA = {name: f"self_attn.{name}_proj" for name in "qkvo"}
_TWO = {"up": "mlp.fc1", "down": "mlp.fc2"}
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "Llama, Qwen, Mistral, Gemma": _LLAMA | {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    "BERT": {
        **{full[0]: f"attention.self.{full}" for full in ("query", "key", "value")},
        **{"o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"},
    },
    "ViT": {name: f"attention.{name}_proj" for name in "qkvo"} | _TWO,
    "CLIP": _LLAMA | {"o": "self_attn.out_proj"} | _TWO,
}
"""Where the linear layers are inside a layer, by family."""
OWN, CORES, RECEIVED, GATE, BASIS, BACKBONE = "own", "cores", "received", "gate", "basis", "backbone"
"""Groups of keys: what a client trains; of that P and Q; such from others, frozen; how the two are mixed; frozen A and
B; all the rest."""
GateName = Literal["scalar", "input", "half"]


class Gate(nn.Module):
    """β: how much of the received update is in the mix."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "..."]:
        """From inputs of the linear layer to β, one number or one a sample ``[batch, 1, 1]``."""


class ScalarGate(Gate):
    """One learnable number a linear layer, ½ in the beginning (FedMosaic's paper)."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
        return self.beta.sigmoid()


class HalfGate(Gate):
    """Always ½: a control."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(0.5), persistent=False)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
        return torch.as_tensor(self.beta)


class InputGate(Gate):
    """σ(mean over tokens of x·w + ε), one number a sample (FedMosaic's release). In training ε is normal with the
    deviation ln 2, to which the release's noise weights, which no gradient reaches, always amount."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "..."]:
        scores = x @ self.w
        if self.training:
            scores = scores + torch.randn_like(scores) * math.log(2)
        return scores.flatten(1).mean(1).sigmoid().reshape(-1, *(1,) * (x.dim() - 1))


def make_gate(name: GateName, width: int) -> Gate:
    """A gate of a linear layer whose inputs are so wide."""
    return {"scalar": ScalarGate, "half": HalfGate}[name]() if name != "input" else InputGate(width)


class LowRank(nn.Module):
    """B A, with A ``[rank, in]`` random and B ``[out, rank]`` zero in the beginning (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.empty(base.out_features, rank))
        self.begin()

    def begin(self) -> None:
        """A random and B zero, as in the beginning."""
        nn.init.zeros_(self.B)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return functional.linear(functional.linear(x, self.A), self.B)


class Core(nn.Module):
    """P h + Q, with P ``[rank, rank]`` and Q ``[rank]`` zero in the beginning (Co-LoRA): of one shape in all models."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.zeros(rank, rank))
        self.Q = nn.Parameter(torch.zeros(rank))

    def forward(self, h: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch rank"]:
        return functional.linear(h, self.P, self.Q)


class Square(nn.Module):
    """R h, with R ``[rank, rank]`` zero in the beginning."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.R = nn.Parameter(torch.zeros(rank, rank))

    def forward(self, h: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch rank"]:
        return functional.linear(h, self.R)


class Adapted(nn.Module):
    """A linear layer with an adapter: h = W x + s·update(x).

    Args:
        scale: s, alpha over rank.
        dropout: On what the adapter is given, in training.
    """

    def __init__(self, base: nn.Linear, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @abstractmethod
    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """What the adapter adds, without the scale."""

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        found: Tensor = self.base(x)
        return found.add(self.update(x), alpha=self.scale)


class LoRALinear(Adapted):
    """LoRA (Hu et al., arXiv:2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, scale, dropout)
        self.own = LowRank(base, rank)

    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        found: Tensor = self.own(self.dropout(x))
        return found


class MergedLoRALinear(Adapted):
    """LoRA beside what was merged into the layer: h = W x + M x + s·B A x. M ``[out, in]`` is from others, frozen, and
    zero in the beginning; W stays as it was given."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, scale, dropout)
        self.own = LowRank(base, rank)
        self.received = nn.Parameter(torch.zeros_like(base.weight), requires_grad=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return super().forward(x).add(functional.linear(x, self.received))

    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        found: Tensor = self.own(self.dropout(x))
        return found


class DualLoRALinear(Adapted):
    """Two LoRA adapters: the client's own one, and a frozen one from others, mixed: (1 − β)·own + β·received."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, gate: Gate, dropout: float = 0.0) -> None:
        super().__init__(base, scale, dropout)
        self.own, self.gate = LowRank(base, rank), gate
        self.received = copy.deepcopy(self.own).requires_grad_(False)

    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        beta = self.gate(x)
        if beta.dim() or not isinstance(self.dropout, nn.Identity):
            return torch.lerp(self.own(self.dropout(x)), self.received(self.dropout(x)), beta)
        A = torch.cat([self.own.A, self.received.A])
        B = torch.cat([(1 - beta) * self.own.B, beta * self.received.B], 1)
        return functional.linear(functional.linear(x, A), B)  # the same in half the steps


class _InBasis(Adapted):
    """An adapter between A ``[rank, in]`` and B ``[out, rank]``, which are frozen and orthonormal in the beginning."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, scale, dropout)
        if rank > min(base.in_features, base.out_features):
            raise ModelError(
                f"rank {rank} is above the width of a linear layer of {base.in_features} inputs and "
                f"{base.out_features} outputs: take a rank of at most {min(base.in_features, base.out_features)}"
            )
        self.A = nn.Parameter(orthonormal(base.in_features, rank).T.contiguous(), requires_grad=False)
        self.B = nn.Parameter(orthonormal(base.out_features, rank), requires_grad=False)


class CoreLinear(_InBasis):
    """B (P A x + Q)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        self.own = Core(rank)

    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return functional.linear(self.own(functional.linear(self.dropout(x), self.A)), self.B)


class SquareLinear(_InBasis):
    """B R A x (Fed-SB)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        self.own = Square(rank)

    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return functional.linear(self.own(functional.linear(self.dropout(x), self.A)), self.B)


class CoLoRALinear(_InBasis):
    """B (P A x + Q) with own P, Q and such from others, mixed (Co-LoRA)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, gate: Gate, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        self.own, self.received, self.gate = Core(rank), Core(rank).requires_grad_(False), gate

    def update(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        beta, own, received = self.gate(x), self.own, self.received
        if beta.dim() or not isinstance(self.dropout, nn.Identity):
            h, g = (core(functional.linear(self.dropout(x), self.A)) for core in (own, received))
            return functional.linear(torch.lerp(h, g, beta), self.B)
        P, Q = torch.lerp(own.P, received.P, beta), torch.lerp(own.Q, received.Q, beta)
        return functional.linear(functional.linear(functional.linear(x, self.A), P, Q), self.B)


def orthonormal(rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    """Random orthonormal columns: those of the polar factor of a random matrix, so their signs are not a library's."""
    u, _, vt = torch.linalg.svd(torch.randn(rows, columns, dtype=torch.float64), full_matrices=False)
    found: Tensor = u @ vt
    return found.float()


def carriers(layers: int, blocks: int) -> tuple[int, ...]:
    """The layers, from 0, that carry what all models share: the last of each of so many pieces of equal depth.

    Raises:
        ModelError: fewer layers than blocks.
    """
    if not 1 <= blocks <= layers:
        raise ModelError(f"a model of {layers} layers cannot have {blocks} blocks: take blocks = {layers} or fewer")
    step = layers // blocks
    return (*(k * step - 1 for k in range(1, blocks)), layers - 1)


def transformer_layers(model: nn.Module) -> list[dict[str, str]]:
    """The linear layers of each layer of a transformer, from input to output: by their names in :data:`LINEARS`, the
    paths of their modules in the model. Of several transformers in a model (a vision tower) the last one's.

    Raises:
        ModelError: no list of layers has the modules of a known family.
    """
    found: list[dict[str, str]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        for inside in FAMILIES.values():
            paths = [{name: f"{path}.{i}.{place}" for name, place in inside.items()} for i in range(len(module))]
            if all(_is_linear(model, place) for layer in paths for place in layer.values()):
                found = paths
    if not found:
        raise ModelError(
            "the model has no transformer layers with the modules of a known family (" + "; ".join(FAMILIES) + "): "
            "an adapter method needs a transformers model, such as hf:FOLDER"
        )
    return found


def _is_linear(model: nn.Module, path: str) -> bool:
    place: nn.Module | None = model
    for name in path.split("."):
        place = place._modules.get(name) if place is not None else None
    return isinstance(place, nn.Linear | Adapted)


def chosen(layer: Mapping[str, str], linears: tuple[str, ...]) -> dict[str, str]:
    """Of a layer's linears those named, in this order.

    Raises:
        ModelError: the layer has not one of them.
    """
    for name in linears:
        if name not in layer:
            raise ModelError(
                f"the model's layers have no {name!r}: {nearest(name, layer)}; take linears = {tuple(layer)}, "
                "and where models are to share, those that all have"
            )
    return {name: layer[name] for name in linears}


Make = Callable[[int, int, str, nn.Linear], Adapted]
"""From the number of a layer, the number of layers, and a linear layer's name and itself to it with an adapter."""


def adapt(model: SplitModel, linears: tuple[str, ...], make: Make) -> SplitModel:
    """The same model with adapters on some linear layers of all its transformer's layers; all else is given.

    Groups of its keys are :data:`OWN`, :data:`RECEIVED`, :data:`GATE`, :data:`BASIS`, :data:`CORES` and
    :data:`BACKBONE`.

    Raises:
        ModelError: as :func:`transformer_layers` and :func:`chosen`.
    """
    layers = transformer_layers(model)
    groups: dict[str, list[str]] = {OWN: [], RECEIVED: [], GATE: [], BASIS: []}
    for number, layer in enumerate(layers):
        for linear, path in chosen(layer, linears).items():
            base = model.get_submodule(path)
            if not isinstance(base, nn.Linear):
                raise ModelError(f"{path} has an adapter already")
            made = make(number, len(layers), linear, base)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
            for key, _ in made.named_parameters():
                first = key.partition(".")[0]
                if first != "base":
                    groups[first if first in groups else BASIS].append(f"{path}.{key}")
    groups[CORES] = [key for key in groups[OWN] if key.endswith((".P", ".Q"))]
    return model.grouped(groups, given=BACKBONE)
