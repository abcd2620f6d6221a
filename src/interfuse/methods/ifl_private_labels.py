"""IFL whose labels are reported at random."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.fusion import FusionOutputs, FusionPairs, SharingInRounds, batches_of
from interfuse.handler import on_client
from interfuse.models import SplitModel
from interfuse.privacy import log_reported, randomised_response
from interfuse.server import Server

Epsilon = Annotated[float, Gt(0), Le(30)]
"""Beyond 30 flips are too rare for the digits of the noise (:func:`interfuse.privacy.randomised_response`)."""


def likelihood(model: SplitModel, batch: Batch, step: int, *, epsilon: float) -> Tensor:
    """The mean negative log-likelihood of labels that were reported with this epsilon, from features."""
    found = functional.log_softmax(model.modular(batch.features), dim=1)
    return functional.nll_loss(log_reported(found, epsilon), batch.y.long())


@dataclass(frozen=True)
class IFLPrivateLabels(SharingInRounds):
    """IFL whose clients report labels by randomised response. Not from the paper.

    A sample always has the same noise, so its reports tell no more than the first. Who learns from a pair corrects for
    the flips of who sent it.
    """

    agreed: ClassVar[Collection[str]] = ("label_epsilon",)

    label_epsilon: Epsilon = 4.0  # epsilon of randomised response, the same for all clients

    def start(self, server: Server, clients: Clients) -> None:
        _ = server.dims["classes"]  # what labels are reported as

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        outputs = self.outputs(chosen)
        chosen.call(self.train_modular, FusionPairs(tuple(outputs.values())))

    @on_client
    def train_base(self, client: Client) -> FusionOutputs:
        self.fit_base(client)
        positions = client.order.take(self.batch_size)
        batch = client.data.train(positions)
        noise = client.lasting_noise(client.profile.samples, "labels")[torch.from_numpy(positions)]
        y = randomised_response(batch.y, client.dims["classes"], self.label_epsilon, noise.to(batch.y.device))
        with client.model.evaluating():
            return FusionOutputs(client.model.base(batch.x), y)

    @on_client
    def train_modular(self, client: Client, fused: FusionPairs) -> None:
        self.fit_modular(client, batches_of(fused), partial(likelihood, epsilon=self.label_epsilon))
