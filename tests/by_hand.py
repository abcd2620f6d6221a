"""Class means and head steps worked out by hand: oracles for methods that share features or prototypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from worlds import dataset_of, linear_head, server_copy, shares_of, tiny_dataset

from interfuse.federation import Federation
from interfuse.randomness import generator

Row = tuple[Tensor, int]
"""Features and label of one sample, or of one class."""


def skewed() -> dict[str, Any]:
    """Three clients with one linear head behind two kinds of base; client 1 has one class, class 3 nobody."""
    easy = tiny_dataset(rows=48, classes=3)
    of = [torch.nonzero(easy.y_train == c).flatten().tolist() for c in range(3)]
    shares = shares_of([*of[0][:10], *of[1][:7]], of[1][7:12], [*of[2], *of[0][10:]])
    data = dataset_of(easy.x_train, easy.y_train, 4, test_rows=30)
    return {"dataset": data, "shares": shares, "models": ["logistic", linear_head]}


HELD = ((0, 1), (1,), (0, 2))
"""The classes of the clients of :func:`skewed`."""


@torch.no_grad()
def fused(f: Federation, client: int, weights: Mapping[str, Tensor]) -> list[Row]:
    """Features of each sample of a client's share, one by one, under a model with these weights."""
    model = server_copy(f.setup, f.setup.architectures[client], weights).eval()
    data, rows = f.setup.dataset, f.setup.shares[client].train.tolist()
    return [(model.base(data.normalise(data.x_train[r : r + 1]))[0], int(data.y_train[r])) for r in rows]


def means_by_hand(rows: Iterable[Row]) -> list[Row]:
    """The mean of the rows of each class, by classes."""
    found: dict[int, list[Tensor]] = {}
    for z, y in rows:
        found.setdefault(y, []).append(z)
    return [(torch.stack(found[y]).double().mean(0).float(), y) for y in sorted(found)]


def softmax_steps(
    head: Mapping[str, Tensor], z: Tensor, labels: Tensor, batches: Iterable[Tensor], lr: float
) -> dict[str, Tensor]:
    """Gradient descent on a linear head, in closed form; ``labels`` are distributions over classes, by row.

    A step is on the mean of the cross entropies of a batch.
    """
    w, b = head["classifier.weight"].double(), head["classifier.bias"].double()
    for index in batches:
        x, target = z[index].double(), labels[index].double()
        error = (torch.softmax(x @ w.T + b, dim=1) - target) / len(index)
        w, b = w - lr * error.T @ x, b - lr * error.sum(0)
    return {"classifier.weight": w, "classifier.bias": b}


def one_hot(labels: Sequence[int], classes: int) -> Tensor:
    return functional.one_hot(torch.tensor(labels), classes)


def server_batches(f: Federation, round: int, rows: int, batch_size: int, epochs: int) -> list[Tensor]:
    """The batches in which the server visits so many rows in a round: each row once an epoch, in a new order."""
    drawn = generator(f.setup.seed, "server", "training", round)
    orders = [torch.randperm(rows, generator=drawn) for _ in range(epochs)]
    assert all(sorted(order.tolist()) == list(range(rows)) for order in orders)
    return [batch for order in orders for batch in order.split(batch_size)]


def global_head(f: Federation) -> dict[str, Tensor]:
    """A copy of the global head."""
    return {key: tensor.clone() for key, tensor in f.server.network("head").tensors("modular").items()}
