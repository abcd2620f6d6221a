"""Learning from what others answer on public rows: which rows, what goes up, and who learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch, PublicData
from interfuse.errors import ClientError
from interfuse.families.adapters import Adapters, AdapterTraining
from interfuse.families.averaged_adapters import cloned
from interfuse.families.averaging import merged, of_each_architecture, under
from interfuse.families.checks import check_size, check_tensors
from interfuse.families.holdings import one_of_each_architecture
from interfuse.messages import Disclosure, NamedTensors
from interfuse.method import Count
from interfuse.models import run_with
from interfuse.models.adapters import OWN
from interfuse.server import Server
from interfuse.training import Objective

Rows = Annotated[Int64[Tensor, "rows"], Disclosure.STATISTICS]
"""Positions in the public data."""


@dataclass(frozen=True)
class PublicLearning(AdapterTraining):
    """Methods whose models learn, beside their own training, from what others answer on public rows.

    A server that has no backbone cannot train: for each architecture one client that has it (the first of those in the
    round) trains on public rows in its place. What it does there depends on nothing of its own.
    """

    origin = "FedMosaic's release"

    public_rows: Count = 80  # public rows of a round, drawn anew in each; the release takes the first ones always
    public_epochs: Count = 1  # passes over them

    def drawn(self, server: Server[Any]) -> Int64[Tensor, "rows"]:
        """The public rows of this round.

        Raises:
            ConfigError: the run has no public data.
        """
        return torch.randperm(len(server.public), generator=server.generator)[: self.public_rows]

    def public_answers(self, client: Client[Any], tensors: NamedTensors, rows: Tensor) -> Float[Tensor, "rows classes"]:
        """What the client's model answers on public rows, with these adapters in place."""
        with torch.no_grad():
            pieces = [run_with(client.model, tensors, x) for x in inputs_of(client.public, rows)]
        return torch.cat(pieces).float()

    def taught(
        self,
        client: Client[Any],
        start: NamedTensors,
        objective: Objective,
        rows: Tensor,
        targets: Float[Tensor, "..."],
    ) -> NamedTensors:
        """Adapters that begin so and are trained on public rows towards targets, one a row; the client's own stay, and
        so does its optimizer. Without a row they are as they began."""
        own = cloned(client.model.tensors([OWN]))
        client.model.load(start)
        options = self.how() | {"train": (OWN,), "clip": self.clip or None, "keep_optimizer": None}
        client.fit(objective, self._batches(client.public, rows, targets), **options)
        found = cloned(client.model.tensors([OWN]))
        client.model.load(own)
        return found

    def _batches(self, public: PublicData, rows: Tensor, targets: Tensor) -> Iterator[Batch]:
        for _ in range(self.public_epochs):
            for first in range(0, len(rows), self.batch_size):
                some = slice(first, first + self.batch_size)
                yield Batch(public.rows(rows[some].cpu()).x, targets[some])


def inputs_of(public: PublicData, rows: Int64[Tensor, "rows"], size: int = 100) -> Iterator[Any]:
    """Inputs of public rows, so many at a time."""
    return (public.rows(some).x for some in torch.split(rows.cpu(), size))


def hosts(clients: Clients) -> Clients:
    """The first client of each architecture."""
    return clients.only([profile.id for profile in one_of_each_architecture(clients)])


def hosted(clients: Clients, learnt: Mapping[ClientId, Adapters], weights: NamedTensors) -> NamedTensors:
    """What the first client of each architecture made of the adapters of its architecture, as the server has them.

    Raises:
        ClientError: it sent others; names the client.
    """
    found = {}
    for prefix, some in of_each_architecture(clients):
        host = next(client for client in some if client in learnt)
        check_tensors(host, learnt[host].tensors, under(prefix, weights), "the adapters that it taught")
        found[prefix] = learnt[host].tensors
    return merged(found)


def check_answers(client: ClientId, logits: Float[Tensor, "rows classes"], rows: int) -> None:
    """Check that there is an answer to each public row, of no impossible size.

    Raises:
        ClientError: names the client.
    """
    if len(logits) != rows:
        raise ClientError(f"client {client} sent answers to {len(logits)} public rows, expected {rows}", client)
    check_size(client, logits, "a logit")
