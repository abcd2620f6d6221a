"""Pooled: what handing over costs, and training on the union."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from worlds import (
    entries,
    federation,
    plain_sgd,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.evaluation import evaluate
from interfuse.methods.pooled import Pooled
from interfuse.randomness import generator


@pytest.mark.parametrize(("dtype", "size"), [(torch.uint8, 1), (torch.float32, 4)])
def test_the_uplink_is_the_raw_data_once(dtype: torch.dtype, size: int) -> None:
    f = federation(Pooled(), dataset=tiny_dataset(dtype=dtype, shape=(1, 5, 4)), rounds=3)
    rows = sum(profile.samples for profile in f.clients.profiles.values())
    assert f.exchange.ledger.totals("start").uplink.raw == rows * (20 * size + 1)
    assert {entry.heading for entry in entries(f)} == {"start"}


@pytest.mark.parametrize("steps", [{"local_steps": 5}, {"local_epochs": 1}])
def test_training_is_a_plain_loop_on_the_union(steps: dict[str, int]) -> None:
    shares = shares_of([3, 1, 4], range(10, 30), range(40, 50))
    f = federation(Pooled(**steps, batch_size=8, lr=0.1), models=[wide, "logistic"], shares=shares)
    first = {name: f.server.model(name, name).state_dict() for name in f.setup.architectures}
    first = {name: {k: t.clone() for k, t in tensors.items()} for name, tensors in first.items()}
    f.run_round()
    rows = torch.cat([torch.as_tensor(share.train) for share in shares])
    taken = steps.get("local_steps") or math.ceil(len(rows) / len(shares) / 8)
    draws, x, y = generator(0, "server", "training", 1), f.setup.dataset.x_train, f.setup.dataset.y_train
    for name in dict.fromkeys(f.setup.architectures):
        order = torch.cat([torch.randperm(len(rows), generator=draws) for _ in range(math.ceil(taken * 8 / len(rows)))])
        batches = [(x[rows[index]], y[rows[index]]) for index in order[: taken * 8].split(8)]
        assert len(batches) == taken
        expected = plain_sgd(server_copy(f.setup, name, first[name]), batches, 0.1)
        assert same_bits(expected, f.server.network(name).state_dict())


def test_the_blocks_take_turns() -> None:
    settings: dict[str, Any] = {"local_steps": 2, "batch_size": 4, "lr": 0.1}
    with_turns = federation(Pooled(**settings, modular_steps=3, modular_lr=1e-30), rounds=1).server.network("logistic")
    first = federation(Pooled(**settings)).server.model("logistic", "logistic")
    assert same_bits(first.tensors("modular"), with_turns.tensors("modular"))
    assert not same_bits(first.tensors("base"), with_turns.tensors("base"))


def test_all_clients_of_an_architecture_are_evaluated_with_the_one_model() -> None:
    f = federation(Pooled(local_steps=3), models=["logistic", wide], clients=4, rounds=2)
    accuracy = evaluate(f, full=True).common
    assert accuracy[0] == accuracy[2]
    assert accuracy[1] == accuracy[3]
    with f.evaluating():
        for client in f.clients:
            name = f.setup.architectures[client]
            assert same_bits(resident(f, client).model.tensors(), f.server.network(name).tensors())
