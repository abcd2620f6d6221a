"""IFL with a late joiner who learns from pairs that the server kept."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs
from interfuse.families.late_joining import LateJoining
from interfuse.handler import on_client
from interfuse.messages import Message, State
from interfuse.method import Count
from interfuse.server import Server


class Replay(Message):
    """Pairs of the incumbents that the server kept, by round, the oldest first."""

    rounds: tuple[FusionPairs, ...]


class Kept(State):
    """The same at the server."""

    rounds: tuple[FusionPairs, ...]


@dataclass(frozen=True)
class IFLLateReplay(LateJoining):
    """IFL whose server keeps the pairs of the last R rounds and replays them to newcomers. Not from the paper.

    A newcomer trains its modular block on them, round by round as the incumbents did, and then its base block alone,
    through that modular block: its outputs come to lie where any modular block expects them.
    """

    retention: Count = 10  # R: rounds whose pairs the server keeps
    passes: Count = 10  # times that a newcomer goes through them

    def start(self, server: Server[Kept], clients: Clients) -> Kept:
        return Kept(())

    def round(self, server: Server[Kept], clients: Clients) -> None:
        incumbents, newcomers = self.parted(clients)
        kept = server.state.rounds
        if server.round < self.joins_at:
            server.state = Kept((*kept, self.exchange(incumbents))[-self.retention :])
            return
        if server.round == self.joins_at:
            newcomers.call(self.rehearse, Replay(kept))
            server.state = Kept(())  # nobody needs them any more
        newcomers.call(self.catch_up)

    @on_client
    def rehearse(self, client: Client, replay: Replay) -> None:
        for pairs in replay.rounds * self.passes:
            self.train_modular(client, pairs)

    @on_client
    def catch_up(self, client: Client) -> None:
        self.fit_base(client)
