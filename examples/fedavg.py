"""Federated averaging (McMahan et al., AISTATS 2017): a method in one file.

interfuse run examples/fedavg.py --data digits --models cnn --rounds 50
"""

from dataclasses import dataclass

from interfuse import NOTHING, Client, Clients, Mean, Method, Server, Weights, on_client


@dataclass(frozen=True)
class FedAvg(Method):
    lr: float = 0.01  # learning rate

    def keeps(self) -> frozenset[str]:
        return NOTHING  # of its model, that is: clients begin each round with what they receive

    def deployed(self, server: Server, clients: Clients) -> Weights:
        return Weights(server.model("global", clients.architecture).tensors())

    def round(self, server: Server, clients: Clients) -> None:
        given = self.deployed(server, clients)
        mean = Mean(given.tensors)
        clients.call(self.train, given, each=lambda c, reply: mean.add(reply.tensors, clients.profiles[c].samples))
        server.network("global").load(mean.result())

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        client.fit(client.loss, epochs=1, lr=self.lr)
        return Weights(client.tensors())
