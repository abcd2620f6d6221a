"""FedProto in the way of HtFLlib: a re-statement of its loop from its description, for where no checkout of it is.

What it restates: every object goes through ``torch.save`` and ``torch.load`` whenever it is used; each client's
``.npz`` is read again each time; targets and features by class are gathered sample by sample; the test accuracy of all
clients is taken every round. Batches follow the order of the benchmark, so that all contenders see the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from driver import Channel, Cohort, options, serve
from workload import MODELS, Problem

Prototypes = dict[int, Tensor]


def main() -> None:
    channel, given = Channel(), options()
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    library = Library(Problem.read(Path(given["problem"])), given, Path(given["scratch"]))

    def run_round(cohort: Cohort) -> None:
        if given["evaluate"]:
            library.evaluate()
        for client, epoch in cohort:
            library.train(client, epoch)
        library.aggregate([client for client, _ in cohort])

    serve(run_round, lambda path: {"accuracy": library.evaluate()}, channel)


class Library:
    """Server and clients, whose every object lies in a folder between two uses."""

    def __init__(self, problem: Problem, given: dict[str, Any], folder: Path) -> None:
        self.given, self.folder, self.clients, self.order = given, folder, len(problem.rows), problem.order
        for client in range(self.clients):
            model = MODELS[given["model"]]()
            model.load_state_dict(problem.initial(client))
            torch.save(model, folder / f"model-{client}.pt")
            for part, rows in (("train", problem.rows[client]), ("test", problem.test_rows[client])):
                np.savez_compressed(
                    folder / f"{part}-{client}.npz", x=problem.x[rows].numpy(), y=problem.y[rows].numpy()
                )

    def data(self, part: str, client: int, order: Tensor | None = None) -> DataLoader[Any]:
        """The client's samples, read from its file and listed one by one."""
        with np.load(self.folder / f"{part}-{client}.npz", allow_pickle=False) as file:
            x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
        samples = list(zip(x, y, strict=True))
        if order is not None:
            samples = [samples[position] for position in order.tolist()]
        return DataLoader(samples, self.given["batch_size"], drop_last=part == "train")  # type: ignore[arg-type]

    def load(self, name: str) -> Any:
        path = self.folder / f"{name}.pt"
        return torch.load(path, weights_only=False) if path.exists() else None

    def save(self, value: object, name: str) -> None:
        torch.save(value, self.folder / f"{name}.pt")

    def loss(self, model: nn.Sequential, x: Tensor, y: Tensor, prototypes: Prototypes | None) -> tuple[Tensor, Tensor]:
        """Cross entropy and the distance to the prototypes, gathered sample by sample; and the features."""
        z = model[:-1](x)
        loss = functional.cross_entropy(model[-1](z), y)
        if prototypes is not None:
            targets = z.detach().clone()
            for position, label in enumerate(y):
                if label.item() in prototypes:
                    targets[position] = prototypes[int(label.item())]
            loss = loss + functional.mse_loss(targets, z) * self.given["pull"]
        return loss, z

    def train(self, client: int, epoch: int) -> None:
        loader = self.data("train", client, self.order[client, epoch])
        model, prototypes = self.load(f"model-{client}"), self.load("global")
        optimizer = torch.optim.SGD(model.parameters(), lr=self.given["lr"])
        model.train()
        features: dict[int, list[Tensor]] = defaultdict(list)
        for x, y in loader:
            loss, z = self.loss(model, x, y, prototypes)
            for position, label in enumerate(y):
                features[int(label.item())].append(z[position].detach())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.save({label: torch.stack(rows).mean(0) for label, rows in features.items()}, f"prototypes-{client}")
        self.save(model, f"model-{client}")

    def aggregate(self, clients: list[int]) -> None:
        gathered: dict[int, list[Tensor]] = defaultdict(list)
        for client in clients:
            for label, prototype in self.load(f"prototypes-{client}").items():
                gathered[label].append(prototype)
        self.save({label: torch.stack(rows).mean(0) for label, rows in gathered.items()}, "global")

    def evaluate(self) -> float:
        """Mean test accuracy of the clients by the nearest global prototype."""
        right = []
        for client in range(self.clients):
            model, prototypes = self.load(f"model-{client}"), self.load("global")
            model.eval()
            hits, total = 0, 0
            with torch.no_grad():
                for x, y in self.data("test", client):
                    hits, total = hits + self.nearest(model[:-1](x), y, prototypes), total + len(y)
            right.append(hits / total)
        return sum(right) / len(right)

    def nearest(self, z: Tensor, y: Tensor, prototypes: Prototypes | None) -> int:
        """How many answers of the nearest prototype are right, pair by pair of a sample and a prototype."""
        if prototypes is None:
            return 0
        distances = torch.full((len(y), 10), torch.inf)
        for position, row in enumerate(z):
            for label, prototype in prototypes.items():
                distances[position, label] = functional.mse_loss(row, prototype)
        return int((distances.argmin(1) == y).sum())


if __name__ == "__main__":
    main()
