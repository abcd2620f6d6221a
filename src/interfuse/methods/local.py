"""Local: no collaboration. The line that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.own_training import TrainingInTurns
from interfuse.handler import on_client
from interfuse.server import Server


@dataclass(frozen=True)
class Local(TrainingInTurns):
    """Every client trains by itself and sends nothing.

    With ``modular_steps`` the two blocks take turns, as in IFL: the base block for ``local_steps``, then the modular
    block on the client's own samples. Otherwise all steps train the whole model.
    """

    def round(self, server: Server, clients: Clients) -> None:
        clients.sample(self.participation).call(self.train)

    @on_client
    def train(self, client: Client) -> None:
        turns = self.turns(client.dims["clients"])
        self.fit(client, client.loss, train="base" if turns else "all", **self.how("base"))
        if turns:
            how = self.how("modular") | {"lr": self.modular_lr, "batch_size": self.batch_size}
            client.fit(client.loss, train="modular", steps=turns, **how)
