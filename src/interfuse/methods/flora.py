"""FLoRA: adapters are stacked, so that those of any ranks add up exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.adapters import Adapters
from interfuse.families.averaging import Global, merged, of_each_backbone, under
from interfuse.families.holdings import WeightRule, one_of_each_architecture
from interfuse.families.ranks import AdaptersOfAnyRank, check_factors, factors, pairs
from interfuse.handler import on_client
from interfuse.messages import NamedTensors
from interfuse.method import NOTHING
from interfuse.models.adapters import OWN, RECEIVED, Adapted, MergedLoRALinear
from interfuse.server import Server


@dataclass(frozen=True)
class FLoRA(AdaptersOfAnyRank):
    """Federated LoRA by stacking (Wang et al., NeurIPS 2024, arXiv:2409.05976).

    In each round a client begins with a new A and B = 0, of its own rank. The server puts the A of all who trained
    below each other, each times the client's share p, and their B beside each other: their product is Σ p·s·B A, the
    mean of the updates, without the cross terms of averaged factors. It is added to the weights of all clients with
    that backbone, which answer with these.

    Where the paper sends the stack for clients to multiply out, the server does so here and sends the sum of all rounds
    so far, a matrix of the layer's size: who was not drawn for a while misses nothing, and nobody gets another's
    adapters. A client has it beside the backbone's weights, which all in a process have in common.
    """

    origin = "FLoRA's code"
    usual = {"keep_optimizer": False}

    weights: WeightRule = "samples"  # p: clients count by their samples, or uniform

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        return MergedLoRALinear(base, self.rank, self.scale, self.dropout)

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def start(self, server: Server[Any], clients: Clients) -> Global:
        first = {prefix: one_of_each_architecture(alike)[0] for prefix, alike in of_each_backbone(clients)}
        models = {prefix: server.new_model(profile.architecture) for prefix, profile in first.items()}
        return Global(merged({prefix: model.tensors([RECEIVED]) for prefix, model in models.items()}))

    def round(self, server: Server[Global], clients: Clients) -> None:
        weights, chosen = dict(server.state.weights), clients.sample(self.participation)
        sent: dict[ClientId, dict[str, tuple[Tensor, Tensor]]] = {}

        def take(client: ClientId, adapters: Adapters) -> None:
            check_factors(chosen.profiles[client], adapters.tensors)
            sent[client] = pairs(adapters.tensors)

        chosen.call(self.train, self.messages(weights, chosen), each=take)
        for prefix, alike in of_each_backbone(chosen):
            counts = {c: p.samples if self.weights == "samples" else 1 for c, p in alike.profiles.items()}
            shares = {client: count / sum(counts.values()) for client, count in counts.items()}
            for path, (A, B) in stacked(sent, shares).items():
                key = f"{prefix}{path}.{RECEIVED}"
                weights[key] = weights[key] + B @ A
        server.state = Global(weights)

    def messages(self, weights: NamedTensors, clients: Clients) -> dict[ClientId, Adapters]:
        """What is added to the weights, for each client the very same as for all of its backbone."""
        found: dict[ClientId, Adapters] = {}
        for prefix, alike in of_each_backbone(clients):
            found |= dict.fromkeys(alike, Adapters(under(prefix, weights)))
        return found

    @on_client
    def train(self, client: Client, received: Adapters) -> Adapters:
        client.model.load(received.tensors)
        for module in client.model.modules():
            if isinstance(module, MergedLoRALinear):
                module.own.begin()
        self.fit(client, client.loss)
        return Adapters(factors(client.model))

    def deployed(self, server: Server[Any], clients: Clients) -> Mapping[ClientId, Adapters]:
        return self.messages(server.state.weights, clients)

    @on_client
    def deploy(self, client: Client, message: Adapters) -> None:
        nothing = {key: torch.zeros_like(tensor) for key, tensor in client.model.tensors([OWN]).items()}
        client.model.load(message.tensors | nothing)


def stacked(
    sent: Mapping[ClientId, Mapping[str, tuple[Tensor, Tensor]]], shares: Mapping[ClientId, float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """By linear layer one A and B whose product is Σ_k p_k B_k A_k."""
    return {
        path: (
            torch.cat([share * sent[client][path][0] for client, share in shares.items()]),
            torch.cat([sent[client][path][1] for client in shares], 1),
        )
        for path in sent[next(iter(shares))]
    }
