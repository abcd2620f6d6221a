"""Late joiners: what all methods have in common in which some clients come when the others are trained."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.errors import ConfigError
from interfuse.method import Count


@dataclass(frozen=True)
class LateJoining:
    """Who comes late, and when. From then on nobody else trains, so what a newcomer reaches is its way's own merit."""

    newcomers: Count = 1  # the last so many clients come late; the others are the incumbents
    joins_at: Count = 100  # round in which they come; they train from then on, and nobody else does

    def parted(self, clients: Clients) -> tuple[Clients, Clients]:
        """Incumbents and newcomers.

        Raises:
            ConfigError: all are newcomers.
        """
        if self.newcomers >= len(clients):
            raise ConfigError(f"newcomers = {self.newcomers}: of {len(clients)} clients none is there from the start")
        return clients.only(clients.ids[: -self.newcomers]), clients.only(clients.ids[-self.newcomers :])
