"""Classifiers that are calibrated when training is over, on features drawn from Gaussians by class.

CCVR (Luo et al., NeurIPS 2021, arXiv:2106.05001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interfuse.client import Client, ClientId
from interfuse.data import Batch
from interfuse.families.class_merging import Merging
from interfuse.families.heads import shuffled
from interfuse.families.moments import ClassMoments, Covariance, drawn, unbiased
from interfuse.families.own_training import OwnTraining
from interfuse.method import Count, NonNegative, Steps
from interfuse.server import Server
from interfuse.training import LearningRate


class Gaussians(Merging):
    """The moments of the features of all clients, exactly pooled, one client at a time: :meth:`take` is for
    ``clients.call(..., each=)``."""

    def take(self, client: ClientId, sent: ClassMoments) -> None:
        """Add what a client sent.

        Raises:
            ClientError: it is no table of moments; names the client.
        """
        self.add(client, sent.mean, sent.y, sent.count, sent.covariance)


@dataclass(frozen=True)
class Calibrating(OwnTraining):
    """Moments of every class go up once, after the last round; a Gaussian of each class gives features for the head."""

    origin = "FL-bench's code"

    covariance: Covariance = "full"  # what goes up beside means and counts: covariances, or variances alone
    virtual: Count = 200  # M: features drawn of each class
    ridge: NonNegative = 0.01  # of the mean variance, added to classes of fewer samples than features [interfuse]
    calibration_epochs: Steps = 1  # epochs of the head on the features drawn
    calibration_batch_size: Count = 32  # features of a step of the head
    calibration_lr: LearningRate = 0.01  # learning rate of the head

    def gaussians(self, server: Server[Any]) -> Gaussians:
        """What takes up the moments of all clients."""
        return Gaussians(server.dims["classes"], server.dims["d"], self.covariance)

    def drawn(self, server: Server[Any], pooled: Gaussians) -> Batch:
        """Features of all classes that somebody has."""
        means, covariance = pooled.result()
        return drawn(means, unbiased(means, covariance, self.ridge), self.virtual, server.generator)

    def calibrate(self, party: Server[Any] | Client[Any], rows: Batch, network: str = "model") -> None:
        """Train the modular block of a network on features, from where it is, with plain SGD."""
        batches = shuffled(rows, self.calibration_batch_size, self.calibration_epochs, party.generator)
        party.fit(party.modular_loss, batches, network=network, train="modular", lr=self.calibration_lr)
