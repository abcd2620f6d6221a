"""FedRep (Collins et al., ICML 2021): one base block for all, a head for each, trained one after the other.

interfuse run examples/fedrep.py --data digits --models cnn --partition pathological --rounds 50
"""

from dataclasses import dataclass

from interfuse import Client, Clients, Mean, Method, Server, Weights, on_client


@dataclass(frozen=True)
class FedRep(Method):
    """Clients keep their heads. A round trains the head behind the frozen base block, then the base block alone."""

    head_epochs: int = 1  # epochs of the head in a round
    base_epochs: int = 1  # epochs of the base block in a round
    lr: float = 0.01  # learning rate of both

    def keeps(self) -> frozenset[str]:
        return frozenset({"modular"})

    def deployed(self, server: Server, clients: Clients) -> Weights:
        return Weights(server.model("global", clients.architecture).tensors("base"))

    def round(self, server: Server, clients: Clients) -> None:
        given = self.deployed(server, clients)
        mean = Mean(given.tensors)
        clients.call(self.train, given, each=lambda c, reply: mean.add(reply.tensors, clients.profiles[c].samples))
        server.network("global").load(mean.result())

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        client.fit(client.loss, train="modular", epochs=self.head_epochs, lr=self.lr)
        client.fit(client.loss, train="base", epochs=self.base_epochs, lr=self.lr)
        return Weights(client.tensors("base"))
