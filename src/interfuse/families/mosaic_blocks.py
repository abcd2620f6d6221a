"""FedMosaic's exchange where some layers of every model carry P and Q, in bases that are aligned before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.families.adapters import carrying
from interfuse.families.alignment import Alignment
from interfuse.families.mosaic import Mosaic, MosaicLearning
from interfuse.server import Server


@dataclass(frozen=True)
class BlockMosaic(MosaicLearning, Alignment):
    """Methods in which the last layer of each of ``blocks`` pieces of a transformer carries P and Q."""

    agreed: ClassVar[tuple[str, ...]] = (*MosaicLearning.agreed, "blocks")

    @property
    def core_shape(self) -> tuple[int, int, int]:
        return self.blocks, len(self.linears), self.rank

    def carriers_of(self, client: Client[Any]) -> list[list[str]]:
        return carrying(client.model, self.blocks, self.linears)

    def start(self, server: Server[Any], clients: Clients) -> Mosaic:
        self.hand_bases(clients, self.align_bases(server, clients))
        return super().start(server, clients)
