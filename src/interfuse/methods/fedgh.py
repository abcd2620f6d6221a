"""FedGH: the server trains one head for all on the clients' class means."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.checks import rows_of_all
from interfuse.families.heads import GlobalHead
from interfuse.families.prototypes import ClassMeans, class_means, fused_share
from interfuse.handler import on_client
from interfuse.messages import Weights
from interfuse.server import Server


@dataclass(frozen=True)
class FedGH(GlobalHead):
    """Generalized global header (Yi et al., ACM MM 2023, arXiv:2303.13137), with the defaults of HtFLlib.

    A round sends the global head to clients, which put it in place of their modular blocks, train their whole
    models, and send the mean feature of each of their classes; on these the server trains the head. Every mean is one
    sample to it, however many samples it stands for. All modular blocks must be alike.
    """

    origin = "HtFLlib's code"
    usual = {
        "local_epochs": 1,
        "batch_size": 10,
        "optimizer": "sgd",
        "lr": 0.01,
        "server_lr": 0.01,
        "server_epochs": 1,
        "server_batch_size": 10,
    }

    def round(self, server: Server, clients: Clients) -> None:
        sent = clients.sample(self.participation).call(self.train, self.head(server))
        self.train_head(server, rows_of_all(sent))

    @on_client
    def train(self, client: Client, head: Weights) -> ClassMeans:
        client.model.load(head.tensors)
        self.fit(client, client.loss)
        means = class_means(fused_share(client), client.dims["classes"])
        return ClassMeans(means.mean, means.y)
