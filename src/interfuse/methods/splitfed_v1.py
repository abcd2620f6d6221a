"""SplitFed v1: the model is cut between client and server, and both parts are averaged."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.clients import Clients
from interfuse.families.split_learning import EndToEnd, Global
from interfuse.server import Server


@dataclass(frozen=True)
class SplitFedV1(EndToEnd):
    """SplitFed version 1 (Thapa et al., AAAI 2022): a server copy per client, averaged with the client parts.

    The cut is the fusion layer. Each step costs an exchange: features and labels up, their gradient down. Without
    averaging of the client parts (``average_clients=False``, parallel split learning) nothing else is exchanged.
    """

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        self.hand_out_fronts(server, chosen)
        tails = self.tail_of_each(server, chosen)
        steps = {client: self.steps_of(profile) for client, profile in chosen.profiles.items()}
        for step in range(max(steps.values())):
            self.step(server, chosen.only(client for client in chosen if step < steps[client]), tails)
        server.optimizers.clear()
        fronts = self.averaged_fronts(server, chosen)
        server.state = Global(fronts, self.averaged_tails(server, chosen, tails))
