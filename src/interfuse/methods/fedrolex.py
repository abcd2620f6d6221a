"""FedRolex: HeteroFL whose windows of channels roll on, so that every channel is trained by narrow clients too."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.families.averaging import Holding, rolling
from interfuse.method import Count, NonNegative, Steps
from interfuse.methods.heterofl import HeteroFL
from interfuse.training import LearningRate


@dataclass(frozen=True)
class FedRolex(HeteroFL):
    """Rolling sub-model extraction (Alam et al., NeurIPS 2022): HeteroFL with a window that moves by one in each round.

    In round t = 0, 1, … a client of m of n channels holds (i − t) mod n for i = 0 … m − 1, in every layer. The server's
    model is that of the largest client.
    """

    lasting = False  # the same key holds other channels in the next round

    local_epochs: Steps = 1  # E: epochs of a client in a round
    batch_size: Count = 10  # B: samples of a step
    lr: LearningRate = 2e-4  # learning rate
    weight_decay: NonNegative = 1e-3  # of the optimizer

    def holding(self, round: int) -> Holding:
        return rolling(1 - max(round, 1))
