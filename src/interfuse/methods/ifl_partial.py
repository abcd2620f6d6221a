"""IFL in which not everybody takes part in every round."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs, SharingFusionOutputs
from interfuse.method import Fraction, NonNegative
from interfuse.server import Server


@dataclass(frozen=True)
class IFLPartial(SharingFusionOutputs):
    """IFL with some of the clients in each round, drawn, or those that are in time. Not from the paper."""

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    deadline: NonNegative = 0.0  # seconds, virtual in a simulation, that each half of a round waits; 0: for all

    def round(self, server: Server, clients: Clients) -> None:
        deadline = self.deadline or None
        outputs = clients.sample(self.participation).call(self.train_base, deadline=deadline)
        there = clients.only(outputs)  # the others are away, or still at their base blocks
        there.call(self.train_modular, FusionPairs(tuple(outputs.values())), deadline=deadline)
