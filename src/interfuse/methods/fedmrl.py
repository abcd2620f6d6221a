"""FedMRL: a small common network and the own one see each other's features, of which the former reads a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from interfuse.client import Client, Profile
from interfuse.clients import Clients
from interfuse.data import Batch, Inputs
from interfuse.errors import ConfigError
from interfuse.families.memes import MEME, MODEL, AveragedMemes, MemeWeights
from interfuse.handler import on_client
from interfuse.messages import Dims
from interfuse.method import Count, Network
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Objective

PROJECTOR = "projector"


def fused(model: SplitModel, meme: SplitModel, projector: SplitModel, x: Inputs) -> Float[Tensor, "batch d"]:
    """The projection of both networks' features side by side, as wide as those of the model."""
    z: Tensor = projector(torch.cat([meme.base(x), model.base(x)], 1))
    return z


def nested(model: SplitModel, batch: Batch, step: int, *, prefix: int) -> Tensor:
    """CE of the model's modular block on fused features, plus CE of the meme's on the first of them."""
    own, meme = model.inner(MODEL), model.inner(MEME)
    z = fused(own, meme, model.inner(PROJECTOR), batch.x)
    of_model = functional.cross_entropy(own.modular(z), batch.y)
    return of_model + functional.cross_entropy(meme.modular(z[:, :prefix]), batch.y)


@dataclass(frozen=True)
class FedMRL(AveragedMemes):
    """Matryoshka representations (Yi et al., NeurIPS 2024, arXiv:2406.00488), with the defaults of HtFLlib.

    Model, meme and a projector of each client's own train in one step, on the sum of two losses of equal weight. The
    memes, modular blocks included, are averaged. A client answers with its model's modular block on fused features, of
    the newest meme.

    Not taken over: HtFLlib never stores the projector that it trained, so there each round begins with the first one.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01, "weights": "uniform"}

    meme_width: Count | None = None  # features of the meme, and the prefix it reads; none: a quarter of the model's

    def width(self, dims: Dims) -> int:
        return self.meme_width or max(1, super().width(dims) // 4)

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None:
            return {}
        d, prefix = owner.fusion_width, self.width(dims)
        if d is None or d < prefix:
            raise ConfigError(
                f"client {owner.id} ({owner.architecture}): of {'no vector' if d is None else f'{d} features'} at its "
                f"fusion layer the meme cannot read {prefix}; give it a width, or the meme less: --set meme_width=..."
            )
        return {**super().networks(owner, dims), PROJECTOR: Network(partial(projector, d + prefix, d))}

    def objective(self, client: Client[Any]) -> Objective:
        return partial(nested, prefix=self.width(client.dims))

    def deployed(self, server: Server[Any], clients: Clients) -> MemeWeights:
        return MemeWeights(server.state.weights)

    @on_client
    def deploy(self, client: Client[Any], message: MemeWeights) -> None:
        client.network(MEME).load(message.tensors)

    def predict(self, client: Client[Any], x: Inputs) -> Tensor:
        meme, own = client.network(MEME), client.network(PROJECTOR)
        with meme.evaluating():
            return client.model.modular(fused(client.model, meme, own, x))


def projector(inputs: int, outputs: int) -> SplitModel:
    """One linear layer."""
    return SplitModel({PROJECTOR: nn.Linear(inputs, outputs)})
