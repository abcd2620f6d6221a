"""HetLoRA: adapters of any rank are padded with zeros and averaged, clients take the first rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interfuse.aggregation import Mean
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.adapters import Adapters
from interfuse.families.averaging import Global, merged, of_each_backbone, under
from interfuse.families.holdings import WeightRule
from interfuse.families.ranks import AdaptersOfAnyRank, check_factors, factors, pairs, take_factors
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State
from interfuse.method import NOTHING, Fraction, NonNegative
from interfuse.models import SplitModel
from interfuse.models.adapters import OWN, Adapted, LoRALinear
from interfuse.server import Server
from interfuse.training import total


class Rank(State):
    """How many rows of A, and columns of B, a client still has; the others are 0."""

    rank: int


@dataclass(frozen=True)
class HetLoRA(AdaptersOfAnyRank):
    """Heterogeneous LoRA (Cho et al., EMNLP 2024, arXiv:2401.06432).

    The server's A and B have the largest rank of a backbone's clients, a client gets the first rows and columns. What
    comes back is padded with zeros and averaged, each linear layer by itself, by the size of the update, ‖B A‖. While
    it trains, a client makes its last rows and columns small; where they are smaller than they came, it gives them up
    for good (rank self-pruning). As in FedIT, A and B are averaged each by itself.

    Reconstructed: the norms that decide on pruning are summed over all linear layers, so a client has one rank. Rows
    that are given up are sent, as zeros. A layer whose updates are all 0 stays as it is. The paper does not say by how
    much adapters count at different ranks.
    """

    usual = {"keep_optimizer": False}

    weights: WeightRule | Literal["norm"] = "norm"  # by ||B A||; or samples, uniform [HetLoRA's paper]
    prune_decay: Fraction = 0.99  # gamma: of its rank a client keeps this part when it prunes; 1: it never does
    prune_weight: NonNegative = 0.01  # lambda: weight of the norms of what would be pruned

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        return LoRALinear(base, self.rank, self.scale, self.dropout)

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def new_client(self, client: Client[Rank]) -> Rank:
        return Rank(self.rank)

    def start(self, server: Server[Any], clients: Clients) -> Global:
        largest = {prefix: max(some.profiles.values(), key=size) for prefix, some in of_each_backbone(clients)}
        return Global(merged({prefix: factors(server.new_model(p.architecture)) for prefix, p in largest.items()}))

    def round(self, server: Server[Global], clients: Clients) -> None:
        weights, chosen = server.state.weights, clients.sample(self.participation)
        means = {prefix: Mean(under(prefix, weights)) for prefix, _ in of_each_backbone(chosen)}
        mean_of = {client: means[prefix] for prefix, some in of_each_backbone(chosen) for client in some}

        def take(client: ClientId, adapters: Adapters) -> None:
            profile, mean = chosen.profiles[client], mean_of[client]
            check_factors(profile, adapters.tensors)
            for path, (A, B) in pairs(adapters.tensors).items():
                sent = {f"{path}.{OWN}.A": A, f"{path}.{OWN}.B": B}
                if weight := self.weight(profile, A, B):
                    mean.add({key: padded(tensor, mean.server[key]) for key, tensor in sent.items()}, weight)

        chosen.call(self.train, self.truncated(weights, chosen), each=take)
        server.state = Global(weights | merged({prefix: mean.result() for prefix, mean in means.items()}))

    def weight(self, profile: Profile, A: Float[Tensor, "rank in"], B: Float[Tensor, "out rank"]) -> float:
        """How much an adapter of a client counts."""
        if self.weights == "norm":
            return float(((B.T @ B).double() * (A @ A.T).double()).sum().clamp(min=0).sqrt())
        return float(profile.samples) if self.weights == "samples" else 1.0

    def truncated(self, weights: NamedTensors, clients: Clients) -> dict[ClientId, Adapters]:
        """The first rows of A and columns of B for each client: as many as its model has."""
        return {
            client: Adapters({k: t[tuple(map(slice, p.keys[k]))] for k, t in under(prefix, weights).items()})
            for prefix, some in of_each_backbone(clients)
            for client, p in some.profiles.items()
        }

    @on_client
    def train(self, client: Client[Rank], received: Adapters) -> Adapters:
        rank, model = client.state.rank, client.model
        kept = max(1, int(self.prune_decay * rank))
        place(client, received.tensors, rank)
        tail = torch.zeros(self.rank, device=next(iter(received.tensors.values())).device)
        tail[kept:rank] = 1.0
        before = tail_size(model.tensors([OWN]), tail)
        self.fit(client, total(client.loss, partial(of_tail, tail=tail, weight=self.prune_weight)))
        if tail_size(model.tensors([OWN]), tail) < before:
            client.state = Rank(kept)
            place(client, factors(model), kept)
        return Adapters(factors(model))

    def deployed(self, server: Server[Any], clients: Clients) -> Mapping[ClientId, Adapters]:
        return self.truncated(server.state.weights, clients)

    @on_client
    def deploy(self, client: Client[Rank], message: Adapters) -> None:
        place(client, message.tensors, client.state.rank)


def size(profile: Profile) -> int:
    """Of a client's model, for :func:`max`."""
    return profile.size


def place(client: Client[Rank], tensors: Mapping[str, Tensor], rank: int) -> None:
    """Put adapters in place, of which so many rows of A and columns of B are not 0."""
    of = {key: (slice(rank),) if key.endswith(".A") else (slice(None), slice(rank)) for key in tensors}
    take_factors(client.model, {key: padded(tensor[of[key]], tensor) for key, tensor in tensors.items()})


def padded(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor in the corner of zeros."""
    found = torch.zeros_like(like)
    found[tuple(map(slice, tensor.shape))] = tensor
    return found


def tail_size(tensors: Mapping[str, Tensor], tail: Float[Tensor, "rank"]) -> Float[Tensor, ""]:
    """Σ over linear layers of ‖B_tail‖ ‖A_tail‖, of the columns and rows for which ``tail`` is 1."""
    norms = [(A * tail[:, None]).norm() * (B * tail).norm() for A, B in pairs(tensors).values()]
    return torch.stack(norms).sum()


def of_tail(model: SplitModel, batch: Batch, step: int, *, tail: Float[Tensor, "rank"], weight: float) -> Tensor:
    """The penalty of what would be pruned."""
    return weight * tail_size(dict(model.named_parameters()), tail)
