"""IFL: share fusion-layer outputs, never parameters."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs, SharingInRounds
from interfuse.server import Server


@dataclass(frozen=True)
class IFL(SharingInRounds):
    """Interoperable federated learning (Krouka and Bennis, arXiv:2509.22823).

    Every client owns a base block and a modular block; they agree on the width of the fusion layer between them. A
    round trains the base blocks alone, shares one minibatch of fusion-layer outputs of each client, and trains every
    modular block on all of them. Any base block then works with any modular block.
    """

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        outputs = self.outputs(chosen)
        chosen.call(self.train_modular, FusionPairs(tuple(outputs.values())))
