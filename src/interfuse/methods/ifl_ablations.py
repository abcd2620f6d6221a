"""IFL with one part of it changed: controls that show what compositions come from, and readings of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.fusion import FusionOutputs, FusionPairs, Late, SharingFusionOutputs, batches_of
from interfuse.handler import on_client
from interfuse.messages import Disclosure
from interfuse.server import Server


@dataclass(frozen=True)
class IFLAblations(SharingFusionOutputs):
    """IFL whose modular blocks learn from other pairs than those of this round, or otherwise. Not from the paper.

    With the control ``own`` a client gets its own pair alone, as often as there are pairs: as many steps, and no
    collaboration. With ``shuffled`` the labels of a pair are those of other rows of it, which can teach nothing; with
    ``late`` the pairs are those of the round before. The paper leaves open whether there is a step for each pair, or a
    ``joint`` one on all.
    """

    pairs: Literal["all", "own", "shuffled", "late"] = "all"  # of whom, and how
    modular_update: Literal["sequential", "joint"] = "sequential"  # a step for each client's pair, or one on all

    def start(self, server: Server[Late], clients: Clients) -> Late:
        return Late(FusionPairs(()))

    def round(self, server: Server[Late], clients: Clients) -> None:
        outputs = clients.call(self.train_base)
        given = FusionPairs(tuple(outputs.values()))
        if self.pairs == "own":
            clients.call(self.train_modular, {c: FusionPairs((own,) * len(outputs)) for c, own in outputs.items()})
            return
        if self.pairs == "shuffled":
            given = FusionPairs(tuple(shuffled(pair, server.generator) for pair in given.pairs))
        if self.pairs == "late":
            given, server.state = server.state.pairs, Late(given)
        if given.pairs:
            clients.call(self.train_modular, given)

    @on_client
    def train_modular(self, client: Client, fused: FusionPairs) -> None:
        batches = batches_of(fused)
        if self.modular_update == "joint":
            batches = [Batch(torch.cat([b.features for b in batches]), torch.cat([b.y for b in batches]))]
        self.fit_modular(client, batches, client.modular_loss)

    def retains(self) -> frozenset[Disclosure]:
        return super().retains() if self.pairs == "late" else frozenset()

    def alone(self) -> dict[str, Any]:
        return super().alone() | ({"modular_steps": 1} if self.modular_update == "joint" else {})


def shuffled(outputs: FusionOutputs, generator: torch.Generator) -> FusionOutputs:
    """The same features with the same labels, but who belongs to whom is drawn: a control that can teach nothing."""
    return FusionOutputs(outputs.z, outputs.y[torch.randperm(len(outputs.y), generator=generator)])
