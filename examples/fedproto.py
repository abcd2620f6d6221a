"""FedProto (Tan et al., AAAI 2022): clients share the mean feature of each class. A method in one file.

interfuse run examples/fedproto.py --data digits --width 64 --rounds 50
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from interfuse import Batch, ClassCounts, Client, Clients, Disclosure, Message, Method, Prototypes, Server, SplitModel
from interfuse import State, cross_entropy, on_client, total


class Table(Message):
    mean: Prototypes  # mean feature of each class; any value where the count is 0
    count: ClassCounts


class Global(State):
    table: Table


@dataclass(frozen=True)
class FedProto(Method):
    """Pull the features of a class towards its mean over all clients; predict by the nearest mean."""

    discloses = frozenset({Disclosure.PROTOTYPES, Disclosure.STATISTICS})

    local_epochs: int = 1  # epochs of a client in a round
    batch_size: int = 32  # samples of a step
    lr: float = 0.01  # learning rate
    pull: float = 1.0  # lambda: weight of the distance to the prototypes

    def start(self, server: Server[Global], clients: Clients) -> Global:
        classes, width = server.dims["classes"], server.dims["d"]
        return Global(Table(torch.zeros(classes, width), torch.zeros(classes)))

    def round(self, server: Server[Global], clients: Clients) -> None:
        tables = clients.call(self.train, server.state.table).values()
        count = torch.stack([t.count for t in tables]).sum(0)
        mean = torch.stack([t.mean * t.count[:, None] for t in tables]).sum(0) / count.clamp(min=1)[:, None]
        server.state = Global(Table(mean, count))

    @on_client
    def train(self, client: Client, known: Table) -> Table:
        def distance(model: SplitModel, batch: Batch) -> Tensor:
            z, present = model.base(batch.x), known.count[batch.y] > 0
            return self.pull * functional.mse_loss(torch.where(present[:, None], known.mean[batch.y], z.detach()), z)

        client.fit(total(cross_entropy, distance), epochs=self.local_epochs, batch_size=self.batch_size, lr=self.lr)
        table = Table(torch.zeros_like(known.mean), torch.zeros_like(known.count))
        with client.model.evaluating():
            for batch in client.data.train_batches(self.batch_size):
                table.mean.index_add_(0, batch.y, client.model.base(batch.x))
                table.count.index_add_(0, batch.y, torch.ones(len(batch.y)))
        return Table(table.mean / table.count.clamp(min=1)[:, None], table.count)

    def prepare_evaluation(self, server: Server[Global], clients: Clients) -> None:
        clients.call(self.receive, server.state.table)

    @on_client
    def receive(self, client: Client, known: Table) -> None:
        client.scratch["known"] = known

    def predict(self, client: Client, x: Tensor) -> Tensor:
        known: Table = client.scratch["known"]
        distances = torch.cdist(client.model.base(x), known.mean)
        return client.model(x) if not known.count.any() else -distances.masked_fill(known.count == 0, torch.inf)
