"""FedProto (Tan et al., AAAI 2022): clients share the mean feature of each class. A method in one file.

interfuse run examples/fedproto.py --data digits --width 64 --rounds 50 --set lr=0.1
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

import interfuse
from interfuse import Client, Clients, Disclosure, Server, on_client


class Table(interfuse.Message):
    mean: interfuse.Prototypes  # mean feature of each class, 0 where its count is
    count: interfuse.ClassCounts


class Global(interfuse.State):
    table: Table


@dataclass(frozen=True)
class FedProto(interfuse.Method):
    """Pull the features of a class towards its mean over all clients; predict by the nearest mean."""

    discloses = frozenset({Disclosure.PROTOTYPES, Disclosure.STATISTICS})

    epochs: int = 1  # epochs of a client in a round
    lr: float = 0.01  # learning rate
    pull: float = 1.0  # lambda: weight of the distance to the prototypes

    def start(self, server: Server[Global], clients: Clients) -> Global:
        classes = server.dims["classes"]
        return Global(Table(torch.zeros(classes, server.dims["d"]), torch.zeros(classes)))

    def round(self, server: Server[Global], clients: Clients) -> None:
        tables = clients.call(self.train, server.state.table).values()
        sums, counts = sum(t.mean * t.count[:, None] for t in tables), sum(t.count for t in tables)
        server.state = Global(Table(sums / counts.clamp(min=1)[:, None], counts))

    @on_client
    def train(self, client: Client, known: Table) -> Table:
        def distance(model, batch):
            z, present = model.base(batch.x), known.count[batch.y] > 0
            return self.pull * functional.mse_loss(z, torch.where(present[:, None], known.mean[batch.y], z.detach()))

        client.fit(interfuse.total(interfuse.cross_entropy, distance), epochs=self.epochs, lr=self.lr)
        sums, counts = torch.zeros_like(known.mean), torch.zeros_like(known.count)
        with client.model.evaluating():
            for batch in client.data.train_batches(500):
                sums.index_add_(0, batch.y, client.model.base(batch.x))
                counts += batch.y.bincount(minlength=len(counts))
        return Table(sums / counts.clamp(min=1)[:, None], counts)

    def prepare_evaluation(self, server: Server[Global], clients: Clients) -> None:
        clients.call(self.receive, server.state.table)

    @on_client
    def receive(self, client: Client, known: Table) -> None:
        client.scratch["known"] = known

    def predict(self, client: Client, x: torch.Tensor) -> torch.Tensor:
        known = client.scratch["known"]
        return -torch.cdist(client.model.base(x), known.mean).masked_fill(known.count == 0, torch.inf)
