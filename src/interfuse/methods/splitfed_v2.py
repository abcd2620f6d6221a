"""SplitFed v2: one server part, trained with one client after the other; client parts are averaged."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.families.heads import check_common_head
from interfuse.families.split_learning import EndToEnd, Global
from interfuse.server import Server


@dataclass(frozen=True)
class SplitFedV2(EndToEnd):
    """SplitFed version 2 (Thapa et al., AAAI 2022): the server part takes all steps of a client, then of the next.

    The order of clients is drawn anew each round; every client part begins from the mean of the last round. What is
    exchanged is that of version 1. All modular blocks must be alike.
    """

    def start(self, server: Server[Global], clients: Clients) -> Global:
        check_common_head(server, clients)
        return super().start(server, clients)

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, tail = clients.sample(self.participation), self.one_tail(server, clients)
        self.hand_out_fronts(server, chosen)
        for client in self.turns(server, chosen):
            for _ in range(self.steps_of(chosen.profiles[client])):
                self.step(server, chosen.only([client]), {client: tail})
        server.state = Global(self.averaged_fronts(server, chosen), tail.weights())
