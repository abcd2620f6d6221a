"""IFL with a downlink that does not grow with the clients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ConfigError
from interfuse.families.fusion import FusionOutputs, FusionPairs, SharingInRounds
from interfuse.families.fusion_rows import Mixtures, balanced, mixed, mixed_likelihood, rows_of, sampled
from interfuse.handler import on_client
from interfuse.method import Count
from interfuse.server import Server

Downlink = Literal["pairs", "rows", "balanced", "mixed"]


@dataclass(frozen=True)
class IFLCapped(SharingInRounds):
    """IFL of whose pairs at most so many rows go down, the same to everybody. Not from the paper."""

    downlink: Downlink = "rows"  # what goes down: some pairs, rows, rows of all classes alike, or mixtures
    downlink_rows: Count = 128  # at most so many rows go down
    mixed_rows: Count = 2  # rows in a mixture, with downlink = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.downlink == "pairs" and self.downlink_rows < self.batch_size:
            raise ConfigError(
                f"downlink_rows = {self.downlink_rows}: with downlink = 'pairs' not one pair of batch_size = "
                f"{self.batch_size} rows may go down; allow at least as many rows, or use downlink = 'rows'"
            )

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        given = FusionPairs(tuple(self.outputs(chosen).values()))
        if self.downlink == "mixed":
            classes, rows = server.dims["classes"], rows_of(given)
            z, y = mixed(rows, classes, self.downlink_rows, self.mixed_rows, server.generator)
            chosen.call(self.train_on_mixtures, Mixtures(z, y))
        else:
            chosen.call(self.train_modular, self.part(given, server.generator))

    def part(self, fused: FusionPairs, generator: torch.Generator) -> FusionPairs:
        """What goes down of the pairs. Rows that are drawn one by one are divided into pairs of ``batch_size`` anew."""
        if self.downlink == "pairs":
            drawn = torch.randperm(len(fused.pairs), generator=generator)[: self.most_batches()].sort()
            return FusionPairs(tuple(fused.pairs[place] for place in drawn.values.tolist()))
        draw = balanced if self.downlink == "balanced" else sampled
        rows = draw(rows_of(fused), self.downlink_rows, generator)
        pieces = zip(torch.split(rows.features, self.batch_size), torch.split(rows.y, self.batch_size), strict=True)
        return FusionPairs(tuple(FusionOutputs(z, y) for z, y in pieces))

    def most_batches(self) -> int:
        """At most so many batches go down, fewer where fewer came up, unless they are of mixtures."""
        rows, size = self.downlink_rows, self.batch_size
        return rows // size if self.downlink == "pairs" else -(-rows // size)

    @on_client
    def train_on_mixtures(self, client: Client, mixtures: Mixtures) -> None:
        rows = torch.arange(len(mixtures.z), device=mixtures.z.device)
        batches = [Batch(mixtures.z[part], part) for part in torch.split(rows, self.batch_size)]
        self.fit_modular(client, batches, partial(mixed_likelihood, labels=mixtures.y))

    def alone(self) -> dict[str, Any]:
        most = self.most_batches()
        # as many mixtures as are asked for, of however few clients
        turns = {"modular_steps": most} if self.downlink == "mixed" else {"modular_most": most}
        return super().alone() | turns
