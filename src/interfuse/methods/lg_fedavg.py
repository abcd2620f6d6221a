"""LG-FedAvg: clients keep their base blocks, the modular block is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.families.heads import check_shared
from interfuse.families.holdings import ONE_HEAD, HeldMean, WeightRule, held, initial_weights, one_a_round
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import NOTHING, Fraction, Steps
from interfuse.server import Server


class Global(State):
    """The averaged modular block, every tensor that some client holds; and base blocks as long as they are averaged."""

    modular: NamedTensors
    base: NamedTensors


class Own(State):
    """A client's base block after rounds in which it was everybody's; where there are none, its model keeps it."""

    base: NamedTensors


@dataclass(frozen=True)
class LGFedAvg(OwnTraining):
    """Local representations, a global head (Liang et al., arXiv:2001.01523): FedAvg of the modular block alone.

    Both blocks train together. Every tensor of the modular block is averaged over the clients that hold its key. The
    authors begin with a model that FedAvg has trained: with ``whole_rounds`` the first rounds are FedAvg's, for which
    clients need models that agree in all that they share.
    """

    origin = "LG-FedAvg's code"
    usual = {"local_epochs": 5, "batch_size": 10, "optimizer": "sgd", "lr": 0.01, "momentum": 0.5}
    agreed = ("whole_rounds",)

    participation: Fraction = 1.0  # fraction of the clients drawn for a round; the authors have 0.1 of 100 [interfuse]
    weights: WeightRule = "uniform"  # clients count by their samples, or uniform
    whole_rounds: Steps = 0  # first rounds in which the whole model is averaged, base blocks too [interfuse]

    def keeps(self) -> frozenset[str]:
        return NOTHING if self.whole_rounds else frozenset({"base"})

    def new_client(self, client: Client[Own]) -> Own:
        return Own({})

    def start(self, server: Server[Global], clients: Clients) -> Global:
        modular = initial_weights(server, clients, parts=["modular"])
        check_shared(
            modular, clients, "modular block", f"Give them models with one head, for instance --models {ONE_HEAD}"
        )
        return Global(modular, initial_weights(server, clients, parts=["base"]) if self.whole_rounds else {})

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        shared = old.modular | old.base
        mean = HeldMean(shared, chosen.profiles, self.weights)
        chosen.call(self.train, held(shared, chosen), each=lambda client, reply: mean.take(client, reply.tensors))
        new = mean.result()
        if server.round == self.whole_rounds:
            clients.call(self.settle, held({key: new[key] for key in old.base}, clients))  # to everybody
        base = {key: new[key] for key in old.base} if server.round < self.whole_rounds else {}
        server.state = Global({key: new[key] for key in old.modular}, base)

    @on_client
    def train(self, client: Client[Own], received: Weights) -> Weights:
        client.model.load(client.state.base | received.tensors)
        self.fit(client, client.loss)
        if client.round <= self.whole_rounds:
            return Weights(client.tensors())
        if self.whole_rounds:
            client.state = Own({key: tensor.clone() for key, tensor in client.tensors("base").items()})
        return Weights(client.tensors("modular"))

    @on_client
    def settle(self, client: Client[Own], received: Weights) -> None:
        """From here on the base block is the client's own."""
        client.state = Own({key: tensor.clone() for key, tensor in received.tensors.items()})

    @on_client
    def deploy(self, client: Client[Own], received: Weights) -> None:
        client.model.load(client.state.base | received.tensors)

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return held(server.state.modular | server.state.base, clients)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation)
