"""IFL whose modular blocks learn from other pairs: controls that show what compositions come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from interfuse.clients import Clients
from interfuse.families.fusion import FusionOutputs, FusionPairs, Late, SharingInRounds
from interfuse.messages import Disclosure
from interfuse.server import Server


@dataclass(frozen=True)
class IFLAblations(SharingInRounds):
    """IFL whose modular blocks learn from other pairs than those of this round. Not from the paper.

    With the control ``own`` a client gets its own pair alone, as often as there are pairs: as many steps, and no
    collaboration. With ``shuffled`` the labels of a pair are those of other rows of it, which can teach nothing; with
    ``late`` the pairs are those of the round before.
    """

    pairs: Literal["all", "own", "shuffled", "late"] = "all"  # of whom, and how

    def start(self, server: Server[Late], clients: Clients) -> Late:
        return Late(FusionPairs(()))

    def round(self, server: Server[Late], clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        outputs = self.outputs(chosen)
        given = FusionPairs(tuple(outputs.values()))
        if self.pairs == "own":
            chosen.call(self.train_modular, {c: FusionPairs((own,) * len(outputs)) for c, own in outputs.items()})
            return
        if self.pairs == "shuffled":
            given = FusionPairs(tuple(shuffled(pair, server.generator) for pair in given.pairs))
        if self.pairs == "late":
            given, server.state = server.state.pairs, Late(given)
        if given.pairs:
            chosen.call(self.train_modular, given)

    def retains(self) -> frozenset[Disclosure]:
        return super().retains() if self.pairs == "late" else frozenset()


def shuffled(outputs: FusionOutputs, generator: torch.Generator) -> FusionOutputs:
    """The same features with the same labels, but who belongs to whom is drawn: a control that can teach nothing."""
    return FusionOutputs(outputs.z, outputs.y[torch.randperm(len(outputs.y), generator=generator)])
