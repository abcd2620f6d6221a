"""FedProx (Li et al., MLSys 2020): FedAvg with a pull towards the global model. A method in one file.

interfuse run examples/fedprox.py --data digits --models cnn --rounds 50 --set mu=0.1
"""

from dataclasses import dataclass
from functools import partial

import interfuse
from interfuse import Client, Clients, Server, on_client
from interfuse.families.holdings import averaged, held, initial_weights
from interfuse.messages import Weights
from interfuse.training import proximal


class Global(interfuse.State):
    weights: interfuse.NamedTensors


@dataclass(frozen=True)
class FedProx(interfuse.Method):
    """Federated averaging where every client stays near the model it received: + (mu/2) times the squared distance."""

    local_epochs: int = 1  # epochs of a client in a round
    lr: float = 0.01  # learning rate
    mu: float = 0.01  # weight of the distance to the global model

    def keeps(self) -> frozenset[str]:
        return interfuse.NOTHING  # of its model, that is: clients begin each round with what they receive

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(initial_weights(server, clients))

    def round(self, server: Server[Global], clients: Clients) -> None:
        replies = clients.call(self.train, held(server.state.weights, clients))
        sent = {client: reply.tensors for client, reply in replies.items()}
        server.state = Global(averaged(server.state.weights, sent, clients.profiles, "samples"))

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        objective = interfuse.total(interfuse.cross_entropy, partial(proximal, anchor=received.tensors, mu=self.mu))
        client.fit(objective, epochs=self.local_epochs, lr=self.lr)
        return Weights(client.tensors())

    def deployed(self, server: Server[Global], clients: Clients) -> dict[int, Weights]:
        return held(server.state.weights, clients)
