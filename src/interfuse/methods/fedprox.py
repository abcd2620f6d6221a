"""FedProx: FedAvg whose clients do not go far from where they began."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from interfuse.client import Client
from interfuse.handler import on_client
from interfuse.messages import Weights
from interfuse.method import NonNegative
from interfuse.methods.fedavg import FedAvg
from interfuse.training import cross_entropy, proximal, total


@dataclass(frozen=True)
class FedProx(FedAvg):
    """Federated optimization with a proximal term (Li et al., MLSys 2020), with the weight of FedIN (arXiv:2304.00759).

    Clients minimise their loss plus (mu/2) ‖w − w̄‖² over the trainable parameters, w̄ being what they received.
    """

    mu: NonNegative = 0.1  # weight of the proximal term

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.fit(client, total(cross_entropy, partial(proximal, anchor=received.tensors, mu=self.mu)))
        return Weights(client.tensors(buffers=self.buffers))
