"""FedRolex: HeteroFL whose windows of channels roll on, so that every channel is trained by narrow clients too."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.holdings import Holding
from interfuse.families.submodels import MaskedSubModels, rolling


@dataclass(frozen=True)
class FedRolex(MaskedSubModels):
    """Rolling sub-model extraction (Alam et al., NeurIPS 2022): HeteroFL with a window that moves by one in each round.

    In round t = 0, 1, … a client of m of n channels holds (i − t) mod n for i = 0 … m − 1, in every layer. The server's
    model is that of the largest client.
    """

    origin = "FedRolex's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 2e-4, "momentum": 0.9, "weight_decay": 1e-3}
    lasting = False  # the same key holds other channels in the next round

    def holding(self, round: int) -> Holding:
        return rolling(1 - max(round, 1))
