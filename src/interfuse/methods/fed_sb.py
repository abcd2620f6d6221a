"""Fed-SB: one small square matrix between frozen factors, averaged exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.adapters import Basis
from interfuse.families.averaged_adapters import AnsweringAverages, AveragingAdapters
from interfuse.families.averaging import Global
from interfuse.handler import on_client
from interfuse.models.adapters import BASIS, Adapted, SquareLinear
from interfuse.server import Server


@dataclass(frozen=True)
class FedSB(AveragingAdapters, AnsweringAverages):
    """Federated Silver Bullet (Singhal et al., arXiv:2502.15436): W + s·B R A, of which clients train R alone.

    The clients of an architecture get one A and B before the first round. So a mean of their R is the mean of their
    updates, exactly, and rank² values of each linear layer go up whatever its width. It is Co-LoRA with one
    architecture, every layer a carrier, no Q, no gate, and one mean for all.

    Reconstructed: A and B are random and orthonormal and R begins as 0. In the paper they are singular vectors of the
    first gradient of the full weights, which clients would have to send, or of a sample of public data, and R begins as
    its singular values.
    """

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        return SquareLinear(base, self.rank, self.scale, self.dropout)

    def start(self, server: Server[Any], clients: Clients) -> Global:
        factors = self.adapters(self.initial(server, clients, BASIS), clients)
        clients.call(self.begin, {client: Basis(own.tensors) for client, own in factors.items()})
        return super().start(server, clients)

    @on_client
    def begin(self, client: Client[Any], basis: Basis) -> None:
        client.model.load(basis.tensors)
