"""IFL whose modular blocks learn of the last rounds' pairs again: more rows a step for the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs, SharingInRounds
from interfuse.families.replay import Replaying
from interfuse.server import Server


@dataclass(frozen=True)
class IFLReplay(SharingInRounds, Replaying):
    """IFL with a replay window. Not from the paper; with ``window = 1`` it is IFL.

    Rounding errors of few bits are other ones in each round, so a window averages them out; it also helps where nothing
    is rounded, so compare with the same window in fp32.
    """

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        outputs = self.outputs(chosen)
        chosen.call(self.train_modular, FusionPairs(tuple(outputs.values())))
