"""SFT: adapters trained alone. What Local is where models have adapters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.adapters import AdapterTraining
from interfuse.handler import on_client
from interfuse.method import Fraction
from interfuse.models.adapters import Adapted, LoRALinear
from interfuse.server import Server


@dataclass(frozen=True)
class SFT(AdapterTraining):
    """Supervised fine-tuning: every client trains LoRA adapters (Hu et al., arXiv:2106.09685) and sends nothing."""

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        return LoRALinear(base, self.rank, self.scale, self.dropout)

    def round(self, server: Server, clients: Clients) -> None:
        clients.sample(self.participation).call(self.train)

    @on_client
    def train(self, client: Client) -> None:
        self.fit(client, client.loss)
