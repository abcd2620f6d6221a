"""Classifiers that are calibrated when training is over, on features drawn from Gaussians by class.

CCVR (Luo et al., NeurIPS 2021, arXiv:2106.05001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.families.heads import shuffled
from interfuse.families.moments import Covariance, PooledMoments
from interfuse.families.own_training import OwnTraining
from interfuse.method import Count, NonNegative, Steps
from interfuse.server import Server
from interfuse.training import LearningRate


@dataclass(frozen=True)
class Calibrating(OwnTraining):
    """Moments of every class go up once, after the last round; a Gaussian of each class gives features for the head."""

    origin = "FL-bench's code"

    covariance: Covariance = "full"  # what goes up beside means and counts: covariances, or variances alone
    virtual: Count = 200  # M: features drawn of each class
    ridge: NonNegative = (
        0.01  # times the mean variance, added where a class has fewer samples than features [interfuse]
    )
    calibration_epochs: Steps = 1  # epochs of the head on the features drawn
    calibration_batch_size: Count = 32  # features of a step of the head
    calibration_lr: LearningRate = 0.01  # learning rate of the head

    def pooled(self, server: Server[Any]) -> PooledMoments:
        """What takes up the moments of all clients."""
        return PooledMoments(server.dims["classes"], server.dims["d"], self.covariance)

    def drawn(self, server: Server[Any], moments: PooledMoments) -> Batch:
        """Features of all classes that somebody has."""
        return moments.drawn(self.virtual, self.ridge, server.generator)

    def calibrate(self, party: Server[Any] | Client[Any], rows: Batch, network: str = "model") -> None:
        """Train the modular block of a network on features, from where it is, with plain SGD."""
        batches = shuffled(rows, self.calibration_batch_size, self.calibration_epochs, party.generator)
        party.fit(party.modular_loss, batches, network=network, train="modular", lr=self.calibration_lr)
