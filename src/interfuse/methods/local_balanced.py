"""Local with class-balanced batches: the control for methods that balance classes by what they draw or share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.method import Fraction
from interfuse.server import Server


@dataclass(frozen=True)
class LocalBalanced(OwnTraining):
    """Every client trains by itself, on batches in which each of its classes is as likely as any other.

    Class-balanced sampling (Kang et al., ICLR 2020): a class is drawn, then one of its rows, with replacement. Batches
    are as many and as large as Local's, so an epoch is as many steps, not every row once.
    """

    usual = {"local_steps": 10}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round, as the method beside it draws them

    def round(self, server: Server, clients: Clients) -> None:
        _ = server.dims["classes"]  # what is balanced
        clients.sample(self.participation).call(self.train)

    @on_client
    def train(self, client: Client) -> None:
        labels = client.data.labels()
        size = min(self.batch_size, len(labels))
        epoch = math.ceil(len(labels) / self.batch_size)
        steps = self.local_steps or (self.local_epochs or 0) * epoch
        weights = 1 / labels.bincount().double()[labels]
        drawn = torch.multinomial(weights, steps * size, replacement=True, generator=client.generator)
        batches = client.data.batches(iter(drawn.view(steps, size).numpy()))
        client.fit(client.loss, batches, **self.how())
