"""FedIN: intermediate layers learn from one batch of another client's features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from interfuse.client import Client
from interfuse.families.imitation import on_intermediate
from interfuse.families.intermediate import IntermediateLearning, ModelAndFeatures


@dataclass(frozen=True)
class FedIN(IntermediateLearning):
    """Intermediate layers learning (Chan et al., arXiv:2304.00759), with its experiments' settings.

    Models have three parts, ``extractor``, ``intermediate`` and ``classifier``, and features of one shape between them.
    Clients train on their data with a proximal term, and their intermediate layers also on imitating what another
    client's made of its features: the mean squared error over a batch S received with the model. They send their
    models and one new batch of features each, drawn at random and taken in evaluation mode; labels never travel. By
    which statistics others' features are normalised the paper leaves open: ``in_normalisation`` names the reading.
    """

    def learn(self, client: Client[Any], received: ModelAndFeatures) -> None:
        local = self.nearby(client.loss, received)
        if not received.features:  # the first round
            self.fit(client, local)
            return
        rule = partial(on_intermediate, rule="simplified", lam=self.lam, per_tensor=False)  # eq. 13
        self.fit(client, {"local": local, "in": self.imitating(received.features)}, combine=rule)
