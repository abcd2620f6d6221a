"""FedBABU: a head that nobody trains until the base block is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.holdings import held, initial_weights
from interfuse.families.shared_base import PersonalHeads, SharedBase
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import NOTHING, Steps
from interfuse.server import Server


class Own(State):
    """The head as everybody's was made, and the model that the client tuned in the end; before that there is none."""

    head: NamedTensors
    tuned: NamedTensors


@dataclass(frozen=True)
class FedBABU(PersonalHeads):
    """Body aggregation and body update (Oh et al., ICLR 2022, arXiv:2106.06042), with PFLlib's defaults.

    All clients begin with the modular block of one random model, which stays as it is: a round trains and averages base
    blocks alone. After the last round every client tunes the model on its own samples, and answers with it. The base
    block that was averaged stays at the server.
    """

    tuning_epochs: Steps = 10  # epochs of the tuning after the last round
    tuned: Literal["all", "base", "modular"] = "all"  # what is tuned: the whole model, or one block

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def new_client(self, client: Client[Own]) -> Own:
        return Own({}, {})

    def start(self, server: Server[SharedBase], clients: Clients) -> SharedBase:
        clients.call(self.begin, held(initial_weights(server, clients, parts=["modular"]), clients))
        return super().start(server, clients)

    @on_client
    def begin(self, client: Client[Own], head: Weights) -> None:
        client.state = Own({key: tensor.clone() for key, tensor in head.tensors.items()}, {})

    def learn(self, client: Client[Own]) -> None:
        client.state = Own(client.state.head, {})
        client.model.load(client.state.head)
        self.fit(client, client.loss, train="base")

    def finish(self, server: Server[SharedBase], clients: Clients) -> None:
        clients.call(self.tune, held(server.state.base, clients))

    @on_client
    def tune(self, client: Client[Own], received: Weights) -> None:
        client.model.load(received.tensors | client.state.head)
        how = self.how() | {"keep_optimizer": None, "batch_size": self.batch_size}
        client.fit(client.loss, epochs=self.tuning_epochs, train=self.tuned, **how)
        client.state = Own(client.state.head, {key: tensor.clone() for key, tensor in client.tensors().items()})

    @on_client
    def deploy(self, client: Client[Own], received: Weights) -> None:
        client.model.load(received.tensors | client.state.head | client.state.tuned)
