"""FedBABU (Oh et al., ICLR 2022): the head stays as it was drawn; clients tune their models when all rounds are over.

interfuse run examples/fedbabu.py --data digits --models cnn --partition pathological --rounds 50
"""

from dataclasses import dataclass

from interfuse import Client, Clients, Mean, Method, Server, Weights, on_client


@dataclass(frozen=True)
class FedBABU(Method):
    """Rounds average base blocks trained behind one random head; ``finish`` then tunes every client's whole model."""

    local_epochs: int = 1  # epochs of the base block in a round
    tuning_epochs: int = 1  # epochs of the whole model after the last round
    lr: float = 0.01  # learning rate

    def round(self, server: Server, clients: Clients) -> None:
        model = server.model("global", clients.architecture)
        mean = Mean(model.tensors("base"))
        clients.call(
            self.train,
            Weights(model.tensors()),
            each=lambda c, reply: mean.add(reply.tensors, clients.profiles[c].samples),
        )
        model.load(mean.result())
        clients.call(self.adopt, Weights(model.tensors()))

    def finish(self, server: Server, clients: Clients) -> None:
        clients.call(self.tune)

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        client.fit(client.loss, train="base", epochs=self.local_epochs, lr=self.lr)
        return Weights(client.tensors("base"))

    @on_client
    def adopt(self, client: Client, received: Weights) -> None:
        client.model.load(received.tensors)

    @on_client
    def tune(self, client: Client) -> None:
        client.fit(client.loss, epochs=self.tuning_epochs, lr=self.lr)
