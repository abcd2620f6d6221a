"""Base blocks that are averaged, in front of modular blocks that are the clients' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.families.heads import check_shared
from interfuse.families.holdings import HeldMean, WeightRule, held, initial_weights, one_a_round
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import Fraction
from interfuse.server import Server


class SharedBase(State):
    """The averaged base block: every tensor that some client holds."""

    base: NamedTensors


@dataclass(frozen=True)
class PersonalHeads(OwnTraining):
    """Methods whose server averages base blocks, key by key over those who hold it, and sees no modular block."""

    origin = "PFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.005}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    weights: WeightRule = "samples"  # clients count by their samples, or uniform

    def keeps(self) -> frozenset[str]:
        return frozenset({"modular"})

    def start(self, server: Server[Any], clients: Clients) -> SharedBase:
        base = initial_weights(server, clients, parts=["base"])
        check_shared(base, clients, "base block", "Give them models with one base block, for instance --models cnn")
        return SharedBase(base)

    def round(self, server: Server[SharedBase], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state.base
        mean = HeldMean(old, chosen.profiles, self.weights)
        chosen.call(self.train, held(old, chosen), each=lambda client, reply: mean.take(client, reply.tensors))
        server.state = SharedBase(mean.result())

    @on_client
    def train(self, client: Client[Any], received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.learn(client)
        return Weights(client.tensors("base"))

    def learn(self, client: Client[Any]) -> None:
        """What a client does in a round, once it has the base block of all."""
        raise NotImplementedError

    def deployed(self, server: Server[SharedBase], clients: Clients) -> Mapping[ClientId, Weights]:
        return held(server.state.base, clients)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation)
