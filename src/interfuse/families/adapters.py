"""Training low-rank adapters on frozen transformers: what clients train, and what of it travels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from interfuse.client import Client, ClientId
from interfuse.errors import ClientError
from interfuse.families.own_training import OwnTraining
from interfuse.messages import Disclosure, Message, NamedTensors, Precision
from interfuse.method import Count, NonNegative
from interfuse.models import SplitModel
from interfuse.models.adapters import GATE, LINEARS, OWN, RECEIVED, Adapted, adapt, carriers, chosen, transformer_layers
from interfuse.training import Fitted, Objective


class Adapters(Message):
    """Adapters of models that are alike, by the keys that they have where they are trained."""

    tensors: Annotated[NamedTensors, Disclosure.ADAPTERS]


class Basis(Message):
    """Frozen A and B by key. They arrive as they were sent, so that all have the same ones and A stays orthonormal."""

    tensors: Annotated[NamedTensors, Disclosure.ADAPTERS, Precision.EXACT]


class BlockAdapters(Message):
    """Co-LoRA's P and Q of every linear layer of the layers that carry them: of one shape for all models."""

    P: Annotated[Float32[Tensor, "blocks linears rank rank"], Disclosure.ADAPTERS]
    Q: Annotated[Float32[Tensor, "blocks linears rank"], Disclosure.ADAPTERS]


@dataclass(frozen=True)
class AdapterTraining(OwnTraining):
    """Methods whose clients train adapters on the linear layers of a transformer, which is given: frozen, and in memory
    once for all clients of an architecture.

    Defaults of sizes and rates are those of FedMosaic's release for DRAKE, whose models have a billion parameters;
    small ones want a lower rank and a higher rate. Beside such a method Local is ``sft``: adapters trained alone.
    """

    origin = "FedMosaic's release"
    shaping: ClassVar[tuple[str, ...]] = ("rank", "alpha", "dropout", "linears")
    references: ClassVar[Mapping[str, str]] = {"local": "sft"}
    usual: ClassVar[Mapping[str, Any]] = {
        "local_steps": 100,
        "batch_size": 4,
        "optimizer": "adamw",
        "lr": 2e-5,
        "weight_decay": 0.0,
        "keep_optimizer": True,
    }

    rank: Count = 128  # r: rows of A, columns of B
    alpha: NonNegative = 256.0  # adapters count alpha / rank times
    dropout: NonNegative = 0.05  # of the inputs of adapters, in training
    linears: tuple[str, ...] = LINEARS  # which linear layers of a transformer's layer have adapters
    clip: NonNegative = 1.0  # largest norm of a gradient; 0: none

    @property
    def scale(self) -> float:
        """s: what adapters are multiplied with."""
        return self.alpha / self.rank

    @abstractmethod
    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        """A linear layer, of this name in this layer of so many, with what the method adds to it."""

    def adapted(self, model: SplitModel) -> SplitModel:
        return adapt(model, self.linears, self.adapter)

    def fit(self, client: Client[Any], losses: Objective | Mapping[str, Objective], **options: Any) -> Fitted:
        usual = {"train": (OWN, GATE), "clip": self.clip or None}
        return super().fit(client, losses, **usual | options)


def received(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapters under the keys where a model has such from others."""
    return {key.replace(f".{OWN}.", f".{RECEIVED}."): tensor for key, tensor in tensors.items()}


def carrying(model: SplitModel, blocks: int, linears: tuple[str, ...]) -> list[list[str]]:
    """The paths of the modules that carry P and Q, by block and linear layer.

    Raises:
        ModelError: the model has fewer layers than blocks, or not these linear layers.
    """
    layers = transformer_layers(model)
    return [list(chosen(layers[number], linears).values()) for number in carriers(len(layers), blocks)]


def own_cores(model: SplitModel, paths: list[list[str]], shape: tuple[int, int, int]) -> BlockAdapters:
    """A client's own P and Q, as they travel.

    Args:
        shape: Blocks, linear layers, rank.
    """
    live = model.live(f"{path}.{OWN}.{name}" for block in paths for path in block for name in "PQ")
    P, Q = ([live[f"{path}.{OWN}.{name}"] for block in paths for path in block] for name in "PQ")
    rank, empty = shape[2], torch.zeros(0)
    return BlockAdapters(
        (torch.stack(P) if P else empty).reshape(*shape, rank), (torch.stack(Q) if Q else empty).reshape(shape)
    )


def load_cores(model: SplitModel, paths: list[list[str]], cores: BlockAdapters, group: str = RECEIVED) -> None:
    """Put P and Q in place: as received ones, or as the client's own."""
    places = [(b, i, path) for b, block in enumerate(paths) for i, path in enumerate(block)]
    model.load({f"{path}.{group}.P": cores.P[b, i] for b, i, path in places})
    model.load({f"{path}.{group}.Q": cores.Q[b, i] for b, i, path in places})


def check_cores(client: ClientId, cores: BlockAdapters, shape: tuple[int, int, int]) -> None:
    """Check P and Q of a client.

    Args:
        shape: Blocks, linear layers, rank.

    Raises:
        ClientError: they have other shapes; names the client.
    """
    blocks, linears, rank = shape
    found = tuple(cores.P.shape), tuple(cores.Q.shape)
    if found != ((blocks, linears, rank, rank), (blocks, linears, rank)):
        text = f"client {client} sent P and Q of shapes {found[0]} and {found[1]}, expected {blocks} blocks, "
        raise ClientError(text + f"{linears} linear layers and rank {rank}", client)
