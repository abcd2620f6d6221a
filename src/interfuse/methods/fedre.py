"""FedRE: the server trains one head for all on one random mixture of each client's class means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ClientError
from interfuse.families.heads import GlobalHead
from interfuse.families.prototypes import class_means, fused_share
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, Weights
from interfuse.models import SplitModel
from interfuse.server import Server


class Entangled(Message):
    """A mixture of class means, and the same mixture of their one-hot labels: entangled representation and label."""

    z: Annotated[Float32[Tensor, "d"], Disclosure.PROTOTYPES]
    y: Annotated[Float32[Tensor, "classes"], Disclosure.LABELS]


@dataclass(frozen=True)
class FedRE(GlobalHead):
    """Representation entanglement (Yao et al., CVPR 2026, arXiv:2511.22265), as in the code of its authors.

    A round is that of FedGH, but a client sends a single vector: its class means mixed by random weights that sum to 1
    and are drawn anew each round, with its labels mixed by the same weights. All modular blocks must be alike.
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
        for client, mixture in replies.items():
            check_mixture(client, mixture.y)
        sent = replies.values()
        labels = torch.stack([mixture.y for mixture in sent])
        rows = Batch(torch.stack([mixture.z for mixture in sent]), torch.arange(len(sent)))
        self.train_head(server, rows, partial(entangled_cross_entropy, labels=labels))

    @on_client
    def train(self, client: Client, head: Weights) -> Entangled:
        client.model.load(head.tensors)
        self.fit(client, client.loss)
        classes = client.dims["classes"]
        means = class_means(fused_share(client), classes)
        # drawn from (0, 1]: a weight of 0 in a client with one class could not be normalised
        weights = 1 - torch.rand(len(means.y), generator=client.generator).to(means.mean)
        weights = weights / weights.sum()
        return Entangled(weights @ means.mean, weights @ functional.one_hot(means.y, classes).to(weights))


def check_mixture(client: ClientId, y: Float32[Tensor, "classes"]) -> None:
    """Check that labels are mixed by weights.

    Raises:
        ClientError: one is below 0, or their sum is not 1; names the client.
    """
    if bool((y < 0).any()) or not abs(float(y.double().sum()) - 1) < 1e-3:
        raise ClientError(f"client {client} sent mixed labels that are below 0, or do not add up to 1", client)


def entangled_cross_entropy(
    model: SplitModel, batch: Batch, step: int, *, labels: Float32[Tensor, "rows classes"]
) -> Tensor:
    """−Σ_k Σ_c y_kc log softmax(h(z_k))_c over the rows k of a batch; its ``y`` are their numbers in ``labels``."""
    return functional.cross_entropy(model.modular(batch.x), labels[batch.y], reduction="sum")
