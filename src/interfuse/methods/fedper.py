"""FedPer: base blocks are averaged, heads stay at home; both train together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interfuse.client import Client
from interfuse.families.shared_base import PersonalHeads


@dataclass(frozen=True)
class FedPer(PersonalHeads):
    """Federated learning with personalisation layers (Arivazhagan et al., arXiv:1912.00818), with PFLlib's defaults.

    A round hands the averaged base block to clients, which train it together with their own modular block, and averages
    what they send. LG-FedAvg is the opposite.
    """

    def learn(self, client: Client[Any]) -> None:
        self.fit(client, client.loss)
