"""IFL with a bank of public images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.errors import ConfigError
from interfuse.families.banks import SharingWithBank
from interfuse.messages import State
from interfuse.server import Server


class Places(State):
    """Which public rows a client draws from, and their classes."""

    places: Int64[Tensor, "images"]
    y: Int64[Tensor, "images"]


@dataclass(frozen=True)
class IFLBankPublic(SharingWithBank):
    """IFL under label skew, with public images of the run's classes in the bank. Not from a paper.

    The bank is the first rows of each class of the run's public data; it is nowhere sent, and discloses nothing.
    """

    def start(self, server: Server, clients: Clients) -> None:
        _ = server.dims["classes"]  # what images are of
        if server.public.task != server.task:
            named = "; ".join(
                f"{len(task.names)} {', '.join(task.names)[:80]}" for task in (server.public.task, server.task)
            )
            raise ConfigError(
                f"the classes of the public data are not those of the task ({named}): public images stand for classes, "
                "so name public data of the same classes, or use ifl-bank"
            )

    def new_client(self, client: Client[Places]) -> Places:
        labels = client.public.labels()
        first = [(labels == y).nonzero().flatten()[: self.bank_rows] for y in range(client.dims["classes"])]
        places = torch.cat(first)
        return Places(places, labels[places])

    def labels_of_bank(self, client: Client[Places]) -> Int64[Tensor, "images"]:
        return client.state.y

    def images_of_bank(self, client: Client[Places], places: Int64[Tensor, "n"]) -> Float[Tensor, "n *sample"]:
        return client.public.rows(client.state.places[places.to(client.state.places.device)]).features
