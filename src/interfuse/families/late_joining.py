"""Late joiners: what all methods have in common in which some clients come when the others are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interfuse.client import ClientId
from interfuse.clients import Clients
from interfuse.errors import ConfigError
from interfuse.families.fusion import FusionPairs, SharingInRounds
from interfuse.method import Count


@dataclass(frozen=True)
class LateJoining(SharingInRounds):
    """Who comes late, and when. From then on nobody else trains, so what a newcomer reaches is its way's own merit.

    ``participation`` is of the incumbents in their rounds; newcomers take part in all of theirs.
    """

    newcomers: Count = 1  # the last so many clients come late; the others are the incumbents
    joins_at: Count = 100  # round in which they come; they train from then on, and nobody else does

    def asked(self) -> ClientId | None:
        """The one client that has to be there before the newcomers, where a setting names it."""
        return None

    def check_run(self, clients: Sequence[ClientId], rounds: int) -> None:
        self._check_clients(clients)
        if self.joins_at > rounds:
            raise ConfigError(
                f"joins_at = {self.joins_at}: a run of {rounds} rounds ends before anybody joins; let newcomers join "
                f"in round {rounds} or earlier, or have {self.joins_at} rounds or more"
            )

    def parted(self, clients: Clients) -> tuple[Clients, Clients]:
        """Incumbents and newcomers.

        Raises:
            ConfigError: all are newcomers, or who is asked is none of the incumbents.
        """
        self._check_clients(clients.ids)
        return clients.only(clients.ids[: -self.newcomers]), clients.only(clients.ids[-self.newcomers :])

    def exchange(self, incumbents: Clients) -> FusionPairs:
        """A round of IFL among those of the incumbents who are drawn; returns their pairs."""
        chosen = incumbents.sample(self.participation)
        pairs = FusionPairs(tuple(self.outputs(chosen).values()))
        chosen.call(self.train_modular, pairs)
        return pairs

    def _check_clients(self, clients: Sequence[ClientId]) -> None:
        if self.newcomers >= len(clients):
            raise ConfigError(f"newcomers = {self.newcomers}: of {len(clients)} clients none is there from the start")
        asked, incumbents = self.asked(), clients[: -self.newcomers]
        if asked is not None and asked not in incumbents:
            there = f"{incumbents[0]} to {incumbents[-1]}"
            raise ConfigError(f"teacher = {asked}: not there from the start; name one of the incumbents, {there}")
