"""Modular blocks that learn of the last rounds' pairs too, not of this round's alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.families.fusion import FusionPairs, TrainingInRounds
from interfuse.handler import on_client
from interfuse.messages import Disclosure, State
from interfuse.method import Count


class Remembered(State):
    """The pairs that a client was given in its last rounds, the oldest first."""

    rounds: tuple[FusionPairs, ...]


@dataclass(frozen=True)
class Replaying(TrainingInRounds):
    """IFL whose modular steps are each on the pairs of one place in the last rounds, in place of this round alone.

    Where all take part a place is a client's. There are as many steps as with IFL, on up to ``window`` times the rows.
    A client keeps what it was given, so nothing travels twice; one that was away has a shorter or an older window.
    """

    window: Count = 4  # W: rounds whose rows a modular step is on, this one among them

    def new_client(self, client: Client[Any]) -> Remembered:
        return Remembered(())

    @on_client
    def train_modular(self, client: Client[Any], fused: FusionPairs) -> None:
        """A step of the modular block for each place among the pairs, on the rows that came there in the window."""
        rounds = (*client.state.rounds, fused)[-self.window :]
        client.state = replace(client.state, rounds=rounds[1 - self.window :] if self.window > 1 else ())
        self.fit_modular(client, joined(rounds), client.modular_loss)

    def retains(self) -> frozenset[Disclosure]:
        kept = {Disclosure.FEATURES, Disclosure.LABELS} if self.window > 1 else set()
        return super().retains() | kept


def joined(rounds: tuple[FusionPairs, ...]) -> list[Batch]:
    """The rows of several rounds as batches: those of the first pairs, of the second, and so on, the newest first."""
    found = defaultdict(list)
    for fused in reversed(rounds):
        for place, pair in enumerate(fused.pairs):
            found[place].append(pair)
    return [
        Batch(torch.cat([p.z for p in pairs]), torch.cat([p.y for p in pairs])) for _, pairs in sorted(found.items())
    ]
