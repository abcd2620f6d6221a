"""Local with class-balanced batches: the control for methods that balance classes by what they draw or share."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.balanced import balanced_batches
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
        client.fit(client.loss, balanced_batches(self, client), **self.how())
