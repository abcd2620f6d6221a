"""IFL without rounds: every client goes on as soon as it is done, with the pairs that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.fusion import FusionOutputs, FusionPairs, Late, SharingFusionOutputs
from interfuse.handler import on_client
from interfuse.method import STREAMED, Steps
from interfuse.server import Server


@dataclass(frozen=True)
class IFLAsync(SharingFusionOutputs):
    """Asynchronous IFL: the server keeps the latest pair of each client, and nobody waits for anybody.

    A client is given the latest pairs, trains its modular block on them, then its base block, and sends a new pair. A
    round ends after so many replies; what is still on its way comes in a later one. Not from the paper.
    """

    replies: Steps = 0  # that make a round; 0 is as many as there are clients

    def start(self, server: Server[Late], clients: Clients) -> Late:
        nothing = FusionOutputs(torch.zeros(0, server.dims["d"]), torch.zeros(0, dtype=torch.uint8))
        return Late(FusionPairs((nothing,) * len(clients)))

    def round(self, server: Server[Late], clients: Clients) -> None:
        latest = list(server.state.pairs.pairs)

        def known(client: ClientId) -> FusionPairs:
            return FusionPairs(tuple(pair for pair in latest if len(pair.y)))

        for arrival in islice(clients.stream(self.work, known), self.replies or len(clients)):
            self.check_pair(clients.profiles[arrival.client], arrival.reply)
            latest[arrival.client] = arrival.reply
        server.state = Late(FusionPairs(tuple(latest)))

    def calls_of_a_round(self, samples: int) -> Mapping[str, int]:
        return {"work": STREAMED}

    @on_client
    def work(self, client: Client, fused: FusionPairs) -> FusionOutputs:
        if fused.pairs:
            self.train_modular(client, fused)
        return self.train_base(client)
