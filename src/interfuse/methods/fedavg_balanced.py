"""FedAvg with class-balanced batches: the plain rival of methods that bring in images of absent classes."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.averaging import AveragingModels, Global
from interfuse.families.balanced import balanced_batches
from interfuse.handler import on_client
from interfuse.messages import Weights
from interfuse.server import Server


@dataclass(frozen=True)
class FedAvgBalanced(AveragingModels):
    """Federated averaging (McMahan et al., AISTATS 2017) whose clients see each of their classes as often as any other.

    Not from a paper. Batches are as many and as large as FedAvg's, drawn as those of ``local-balanced``.
    """

    def round(self, server: Server[Global], clients: Clients) -> None:
        _ = server.dims["classes"]  # what is balanced
        super().round(server, clients)

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        client.fit(client.loss, balanced_batches(self, client), **self.how())
        return Weights(client.tensors(buffers=self.buffers))
