"""A method with a deadline whose clients remember how often they were asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse import Client, Clients, Disclosure, Message, Method, Server, State, on_client


class Count(Message):
    """How often a client was asked, as far as it remembers."""

    asked: Annotated[Float32[Tensor, ""], Disclosure.STATISTICS]


class Memory(State):
    """What a client remembers."""

    asked: Tensor


@dataclass(frozen=True)
class Hurry(Method):
    """Asks everybody, and waits no longer than the deadline for more than the first two."""

    deadline: float = 1.0
    minimum: int = 2

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.count, deadline=self.deadline, minimum=self.minimum)

    def new_client(self, client: Client[Memory]) -> Memory:
        return Memory(torch.zeros(()))

    @on_client
    def count(self, client: Client[Memory]) -> Count:
        client.state = Memory(client.state.asked + 1)
        return Count(client.state.asked)
