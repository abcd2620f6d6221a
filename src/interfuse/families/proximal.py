"""Averaging whose clients do not go far from where they began."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from interfuse.client import Client
from interfuse.families.averaging import AveragingModels
from interfuse.messages import Weights
from interfuse.method import NonNegative
from interfuse.training import Objective, proximal, total


@dataclass(frozen=True)
class AveragingNearby(AveragingModels):
    """Clients minimise their loss plus (mu/2) ‖w − w̄‖² over the trainable parameters, w̄ being what they received."""

    origin = "FedIN's paper"

    mu: NonNegative = 0.1  # weight of the proximal term (mu/2) ‖w − w̄‖²; 0.001 to 1 in published code

    def objective(self, client: Client[Any], received: Weights) -> Objective:
        return total(client.loss, partial(proximal, anchor=received.tensors, mu=self.mu))
