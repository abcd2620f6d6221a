"""FedAllRep: the server trains one head for all on all features and labels of the clients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.checks import check_batch
from interfuse.families.heads import GlobalHead
from interfuse.families.prototypes import fused_share
from interfuse.handler import on_client
from interfuse.messages import Features, Labels, Message, Weights
from interfuse.server import Server


class AllFeatures(Message):
    """A client's whole training share at the fusion layer, and its labels."""

    z: Features
    y: Labels


@dataclass(frozen=True)
class FedAllRep(GlobalHead):
    """All representations shared: the ablation of FedRE (Yao et al., CVPR 2026, arXiv:2511.22265), with its defaults.

    A round is that of FedGH, but a client sends the features of all its samples. The closest published relative of
    IFL, which sends one minibatch and leaves every client its own modular block. All modular blocks must be alike.
    """

    origin = "FedRE's code"
    usual = {
        "local_epochs": 1,
        "batch_size": 32,
        "optimizer": "sgd",
        "lr": 0.06,
        "server_lr": 0.01,
        "server_epochs": 1,
        "server_batch_size": 32,
    }

    def round(self, server: Server, clients: Clients) -> None:
        replies = clients.sample(self.participation).call(self.train, self.head(server))
        for client, own in replies.items():
            check_batch(client, own.y, clients.profiles[client].samples)
        sent = replies.values()
        self.train_head(server, Batch(torch.cat([own.z for own in sent]), torch.cat([own.y.long() for own in sent])))

    @on_client
    def train(self, client: Client, head: Weights) -> AllFeatures:
        client.model.load(head.tensors)
        self.fit(client, client.loss)
        share = fused_share(client)
        return AllFeatures(share.features, share.y)
