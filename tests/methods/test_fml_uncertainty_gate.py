"""FML with an uncertainty gate: closed it is Local, open FML; and prediction sets cover what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from worlds import alone, federation, largest_difference, same_bits, tiny_dataset, weights_of, wide

from interfuse.data import Share
from interfuse.methods.fml import FML
from interfuse.methods.fml_uncertainty_gate import FMLUncertaintyGate, is_open, threshold

OPTIONS: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.1, "meme": "logistic"}


def world() -> dict[str, Any]:
    """Two clients, each with rows for validation; another whose share has none."""
    rows, none = np.arange(90), np.empty(0, np.int64)
    shares = [Share(rows[:25], rows[25:35], none), Share(rows[35:60], rows[60:66], none), Share(rows[66:], none, none)]
    return {"dataset": tiny_dataset(rows=90), "shares": shares, "models": ["logistic", wide]}


def test_always_closed_the_model_trains_alone() -> None:
    f = federation(FMLUncertaintyGate(**OPTIONS, alpha=0.2, largest_set=0), rounds=3, **world())
    local = federation(alone(f.method), rounds=3, **world())
    assert all(largest_difference(weights_of(f, c), weights_of(local, c)) < 1e-6 for c in f.clients)


def test_always_open_it_is_fml() -> None:
    settings = OPTIONS | {"alpha": 0.2, "beta": 0.7}
    for over in ("batch", "elements"):
        fml = federation(FML(**settings, divergence=over), rounds=3, **world())
        gate = FMLUncertaintyGate(**settings, divergence=over, miscoverage=0, largest_set=3)
        f = federation(gate, rounds=3, **world())
        assert largest_difference(f.server.state.weights, fml.server.state.weights) < 1e-5
        assert all(largest_difference(weights_of(f, c), weights_of(fml, c)) < 1e-5 for c in f.clients)


def test_without_distillation_memes_are_fedavgs_and_the_gate_does_not_matter() -> None:
    """FML without its divergences is FedAvg of the memes, as its own test shows by hand."""
    settings = OPTIONS | {"alpha": 1.0, "beta": 1.0}
    fml = federation(FML(**settings), rounds=2, **world())
    for largest in (0, 1, 3):
        f = federation(FMLUncertaintyGate(**settings, largest_set=largest), rounds=2, **world())
        assert largest_difference(f.server.state.weights, fml.server.state.weights) < 1e-6


def test_in_between_only_those_who_can_judge_the_meme_learn_from_it() -> None:
    """A client without rows for validation has sets of all classes, so its gate is closed."""
    f = federation(FMLUncertaintyGate(**OPTIONS, miscoverage=0.5), rounds=4, **world())
    local = federation(alone(f.method), rounds=4, **world())
    apart = [largest_difference(weights_of(f, client), weights_of(local, client)) for client in f.clients]
    assert apart[0] > 1e-3
    assert apart[2] < 1e-6


@pytest.mark.parametrize("miscoverage", [0.0, 0.1, 0.37, 0.9, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 9, 40])
def test_a_set_has_the_right_class_often_enough(miscoverage: float, rows: int) -> None:
    """Of n + 1 rows, each in turn left out and judged by the others: coverage is at least 1 - delta, by exchangeability
    exactly so; and the sizes are those of sets by hand."""
    noise = torch.Generator().manual_seed(rows)
    logits, y = 2 * torch.randn(rows + 1, 4, generator=noise), torch.randint(4, (rows + 1,), generator=noise)
    p, covered = logits.softmax(1), 0
    for left_out in range(rows + 1):
        others = torch.arange(rows + 1) != left_out
        most = threshold(logits[others], y[others], miscoverage)
        members = [c for c in range(4) if 1 - p[left_out, c] <= most]
        covered += int(y[left_out]) in members
        for largest in range(5):
            found = is_open(logits[left_out : left_out + 1], most, largest)
            assert found.tolist() == [float(1 <= len(members) <= largest)]
    assert covered >= (rows + 1) * (1 - miscoverage) - 1e-9


def test_a_run_is_the_same_twice() -> None:
    one, other = (federation(FMLUncertaintyGate(**OPTIONS), rounds=2, **world()) for _ in range(2))
    assert same_bits(one.server.state.weights, other.server.state.weights)
