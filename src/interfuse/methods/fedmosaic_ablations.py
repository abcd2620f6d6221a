"""FedMosaic whose mixtures are weighed otherwise, or are of others: controls that show what carries its gain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import ConfigError
from interfuse.families.adapters import BlockAdapters
from interfuse.families.mosaic import Mixture, Mosaic
from interfuse.families.mosaic_blocks import BlockMosaic
from interfuse.families.weighing import Matrix
from interfuse.handler import on_client
from interfuse.messages import Message
from interfuse.models.adapters import Adapted, CoLoRALinear, DualLoRALinear, carriers, make_gate
from interfuse.server import Server


class Task(Message):
    """The number of the task that most of a client's rows are of, of several the lowest; -1: there are none."""

    number: int


class Told(Mosaic):
    """What the server holds, and the task of each client."""

    tasks: Int64[Tensor, "clients"]


@dataclass(frozen=True)
class FedMosaicAblations(BlockMosaic):
    """FedMosaic with one part of it changed. Not from the paper, whose authors have told none of these.

    Clients are weighed by relevance, all alike (``uniform``), by relevances that are dealt anew to pairs of clients
    (``random``: as selective, and meaningless), by the negative of theirs (``anti``), or all weight is on those with
    the same task (``oracle``; who has no such peer gets its own). For that clients tell the server their task once,
    whatever the control, which takes eight bytes. ``partners`` are those of whom a client gets P and Q: all,
    those with a model like its own, or nobody, so that it has its own twice. With ``reversed_blocks`` its first block
    gets what others have in their last one, and so on. A gate that is fixed at one half is ``gate = "half"``, A and B
    that are not aligned ``align = "none"``.
    """

    weigh: Literal["relevance", "uniform", "random", "anti", "oracle"] = "relevance"  # by what clients are weighed
    partners: Literal["all", "alike", "none"] = "all"  # of whom a client gets P and Q
    reversed_blocks: bool = False  # P and Q of the first block go to the last one

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        kind = CoLoRALinear if layer in carriers(layers, self.blocks) else DualLoRALinear
        return kind(base, self.rank, self.scale, make_gate(self.gate, base.in_features), self.dropout)

    def start(self, server: Server[Any], clients: Clients) -> Told:
        begun, told = super().start(server, clients), clients.call(self.tell)
        tasks = torch.tensor([told[client].number for client in clients], device=server.device)
        return Told(begun.sent, begun.relevance, tasks)

    @on_client
    def tell(self, client: Client[Any]) -> Task:
        data = client.data.dataset
        if data.groups is None:
            return Task(-1)
        groups = torch.as_tensor(data.groups[client.data.share.train])
        names = data.group_names or tuple(map(str, range(int(groups.max()) + 1)))
        alike = torch.tensor([names.index(name) for name in names])  # several groups may be one task
        return Task(int(torch.bincount(alike[groups]).argmax()))

    def scores(self, server: Server[Any], matrix: Matrix) -> Matrix:
        if self.weigh == "oracle":
            tasks = server.state.tasks
            if bool((tasks < 0).any()):
                lacking = int((tasks < 0).nonzero()[0])
                text = (
                    f"weigh = 'oracle' goes by tasks, but the data of client {lacking} have none: take one with groups"
                )
                raise ConfigError(text)
            return torch.where(tasks[:, None] == tasks, 0.0, torch.nan)
        if self.weigh == "random":
            return dealt_anew(matrix, server.generator)
        return {"relevance": matrix, "uniform": 0 * matrix, "anti": -matrix}[self.weigh]

    def sharers(self, same: Bool[Tensor, "clients clients"]) -> Bool[Tensor, "clients clients"] | None:
        return {"all": None, "alike": same, "none": torch.zeros_like(same)}[self.partners]

    def mixtures(
        self, known: Mosaic, profiles: Mapping[ClientId, Profile], clients: Iterable[ClientId]
    ) -> dict[ClientId, Mixture]:
        found = super().mixtures(known, profiles, clients)
        if not self.reversed_blocks:
            return found
        return {c: Mixture(BlockAdapters(m.cores.P.flip(0), m.cores.Q.flip(0)), m.others) for c, m in found.items()}


def dealt_anew(matrix: Matrix, generator: torch.Generator) -> Matrix:
    """The known values above the diagonal in another order, and the same below it."""
    found, known = torch.full_like(matrix, torch.nan), ~matrix.isnan() & torch.ones_like(matrix).triu(1).bool()
    values = matrix[known]
    found[known] = values[torch.randperm(len(values), generator=generator).to(values.device)]
    return torch.where(known.T, found.T, found)
