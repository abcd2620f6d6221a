"""FedProx: without its term FedAvg, and with it the step that the formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from worlds import (
    depth1,
    depth3,
    federation,
    in_steps,
    largest_difference,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedprox import FedProx

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 50))


@pytest.mark.parametrize("models", [[wide], [depth1, depth3], ["cnn-bn"]])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_without_the_term_it_is_fedavg(models: Any, optimizer: Any) -> None:
    settings: dict[str, Any] = {"models": models, "shares": UNEVEN, "dataset": tiny_dataset(rows=50, shape=(1, 4, 4))}
    options: dict[str, Any] = {"local_epochs": 2, "batch_size": 8, "lr": 0.05, "optimizer": optimizer}
    prox = federation(FedProx(**options, mu=0), **settings, rounds=3)
    assert same_bits(
        prox.server.state.weights, federation(FedAvg(**options), **settings, rounds=3).server.state.weights
    )
    other = federation(FedProx(**options, mu=1), **settings, rounds=3)
    assert largest_difference(prox.server.state.weights, other.server.state.weights) > 1e-3


def test_the_first_step_is_that_of_fedavg() -> None:
    """It begins at the anchor, where the term has no gradient."""
    options: dict[str, Any] = {"batch_size": 8, "lr": 0.1}
    one, two = (
        [federation(kind, models=[wide], shares=UNEVEN, rounds=1).server.state.weights for kind in (prox, avg)]
        for prox, avg in (
            (FedProx(local_steps=steps, mu=5, **options), FedAvg(local_steps=steps, **options)) for steps in (1, 2)
        )
    )
    assert largest_difference(*one) < 1e-7
    assert largest_difference(*two) > 1e-4


def test_every_step_pulls_to_what_was_received() -> None:
    f = federation(FedProx(local_steps=4, batch_size=6, lr=0.1, mu=0.7), models=[wide], clients=1)
    for round in range(3):
        anchor = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
        model = server_copy(f.setup, f.setup.architectures[0], anchor)
        for x, y in in_steps(f.setup, 0, 4 * (round + 1), 6)[4 * round :]:
            model.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for key, p in model.named_parameters():
                    assert p.grad is not None
                    p -= 0.1 * (p.grad + 0.7 * (p - anchor[key]))
        f.run_round()
        assert largest_difference(model.state_dict(), f.server.state.weights) < 1e-6


def test_a_product_of_rate_and_weight_of_one_forgets_the_way_so_far() -> None:
    """w ← w − η (g + μ (w − w̄)) is w̄ − η g for ημ = 1: only the last gradient counts."""
    f = federation(FedProx(local_steps=3, batch_size=6, lr=0.1, mu=10), models=[wide], clients=1)
    anchor = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
    model = server_copy(f.setup, f.setup.architectures[0], anchor)
    for x, y in in_steps(f.setup, 0, 3, 6):
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for key, p in model.named_parameters():
                assert p.grad is not None
                p.copy_(anchor[key] - 0.1 * p.grad)
    f.run_round()
    assert largest_difference(model.state_dict(), f.server.state.weights) < 1e-6
