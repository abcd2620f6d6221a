"""IFL in which a round does not wait for everybody."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs, SharingInRounds
from interfuse.method import NonNegative
from interfuse.server import Server


@dataclass(frozen=True)
class IFLPartial(SharingInRounds):
    """IFL with those of a round's clients that are in time. Not from the paper."""

    deadline: NonNegative = 0.0  # seconds, virtual in a simulation, that each half of a round waits; 0: for all

    def round(self, server: Server, clients: Clients) -> None:
        deadline = self.deadline or None
        outputs = self.outputs(clients.sample(self.participation), deadline)
        there = clients.only(outputs)  # the others are away, or still at their base blocks
        there.call(self.train_modular, FusionPairs(tuple(outputs.values())), deadline=deadline)
