"""FedMD (Li and Wang, arXiv:1910.03581): models of any kind agree on their logits of public samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional

from interfuse import Batch, Client, Clients, Disclosure, Logits, Message, Method, Server, SplitModel, on_client

Rows = Annotated[Int64[Tensor, "batch"], Disclosure.STATISTICS]


class Chosen(Message):
    """The public rows of a round."""

    rows: Rows


class Scores(Message):
    """Logits of the public rows of a round."""

    logits: Logits


class Consensus(Message):
    """The mean logits of all clients."""

    rows: Rows
    logits: Logits


def distance(model: SplitModel, batch: Batch, step: int) -> Tensor:
    """How far a model is from the consensus."""
    return functional.mse_loss(model(batch.x), batch.y)


@dataclass(frozen=True)
class FedMD(Method):
    """Clients share logits of public samples, which are their own affair to have."""

    public_rows: int = 64  # public samples of a round
    digest_steps: int = 4  # steps towards the consensus
    local_epochs: int = 1  # "revisit": epochs on own samples
    batch_size: int = 32  # samples of a step
    lr: float = 0.05  # learning rate

    def round(self, server: Server, clients: Clients) -> None:
        rows = torch.randperm(len(server.public), generator=server.generator)[: self.public_rows]
        logits = [reply.logits for reply in clients.call(self.score, Chosen(rows)).values()]
        clients.call(self.learn, Consensus(rows, torch.stack(logits).mean(0)))

    @on_client
    def score(self, client: Client, chosen: Chosen) -> Scores:
        with client.model.evaluating():
            return Scores(client.model(client.public.rows(chosen.rows).x))

    @on_client
    def learn(self, client: Client, consensus: Consensus) -> None:
        taught = Batch(client.public.rows(consensus.rows).x, consensus.logits)
        client.fit(distance, batches=[taught] * self.digest_steps, lr=self.lr)
        client.fit(client.loss, epochs=self.local_epochs, batch_size=self.batch_size, lr=self.lr)
