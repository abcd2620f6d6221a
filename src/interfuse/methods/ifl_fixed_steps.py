"""IFL whose modular steps do not grow with the clients: joint ones on all pairs, or mixed ones on rows of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interfuse.clients import Clients
from interfuse.families.fusion import FusionPairs, SharingInRounds
from interfuse.families.fusion_rows import divided, rows_of
from interfuse.method import Count, Steps
from interfuse.server import Server


@dataclass(frozen=True)
class IFLFixedSteps(SharingInRounds):
    """IFL with a fixed number of modular steps a round, on minibatches of rows of all clients. Not from the paper.

    IFL takes a step for each client's pair, so N clients take N² steps a round. Here the rows of all pairs are divided
    anew into ``modular_steps`` minibatches that mix clients, the same for everybody. By default every row is in one of
    them: a step is on more rows the more clients there are, and ``modular_steps = 1`` is the joint step, whose gradient
    is the mean over all pairs. With ``modular_batch_size`` the rows of a step are so many, drawn without repetition;
    then neither the work of a client nor its downlink grows with the clients.
    """

    modular_steps: Count = 10  # steps of the modular block in a round; fewer only where there are fewer rows
    modular_batch_size: Steps = 0  # rows of a modular step; 0: all rows, divided by the steps

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        rows = rows_of(FusionPairs(tuple(self.outputs(chosen).values())))
        most = self.modular_steps * self.modular_batch_size or len(rows.y)
        chosen.call(self.train_modular, divided(rows, self.modular_steps, most, server.generator))

    def alone(self) -> dict[str, Any]:
        return super().alone() | {"modular_steps": self.modular_steps}
