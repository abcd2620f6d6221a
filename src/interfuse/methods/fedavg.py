"""FedAvg: average parameters, key by key over the clients that hold them."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.averaging import Averaging, Global
from interfuse.handler import on_client
from interfuse.messages import Weights
from interfuse.server import Server


@dataclass(frozen=True)
class FedAvg(Averaging):
    """Federated averaging (McMahan et al., AISTATS 2017), layer-wise where clients hold different depths of one model.

    A round hands the server's model to a fraction of the clients, which train it on their data; the mean of what they
    send, weighted by their samples, is the server's model. With one architecture this is the published method.
    """

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, weights = clients.sample(self.participation), server.state.weights
        mean = self.means(weights, chosen)
        chosen.call(self.train, self.models(weights, chosen), each=lambda client, sent: mean.take(client, sent.tensors))
        server.state = Global(mean.result())

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.fit(client, client.loss)
        return Weights(client.tensors(buffers=self.buffers))
