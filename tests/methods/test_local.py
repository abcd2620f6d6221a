"""Local against plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import (
    entries,
    federation,
    in_epochs,
    in_steps,
    plain_sgd,
    plain_training,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.client import Client
from interfuse.evaluation import evaluate
from interfuse.methods.local import Local


def test_joint_sgd_is_a_plain_loop() -> None:  # half of U1
    f = federation(Local(local_steps=4, batch_size=8, lr=0.1), models=["logistic", wide])
    first = {client: weights_of(f, client) for client in f.clients}
    for _ in range(3):
        f.run_round()
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], first[client])
        assert same_bits(plain_sgd(model, in_steps(f.setup, client, 12, 8), 0.1), weights_of(f, client))


def test_epochs_are_a_plain_loop_over_whole_epochs() -> None:
    f = federation(Local(local_epochs=2, batch_size=7, lr=0.1), models=[wide])
    first = {client: weights_of(f, client) for client in f.clients}
    f.run_round()
    f.run_round()
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], first[client])
        assert same_bits(plain_sgd(model, in_epochs(f.setup, client, 4, 7), 0.1), weights_of(f, client))


@pytest.mark.parametrize("keep", [True, False])
def test_adam_goes_on_between_rounds_only_where_it_is_kept(keep: bool) -> None:
    f = federation(Local(local_steps=3, batch_size=8, lr=0.01, optimizer="adam", keep_optimizer=keep), models=[wide])
    model = server_copy(f.setup, f.setup.architectures[0], weights_of(f, 0))
    adam = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    batches = in_steps(f.setup, 0, 6, 8)
    for round in range(2):
        f.run_round()
        if not keep:
            adam = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        plain_training(model, batches[3 * round : 3 * round + 3], adam)
    assert same_bits(model.tensors(), weights_of(f, 0))


@pytest.mark.parametrize(("turns", "steps"), [(2, 2), ("clients", 3)])
def test_the_blocks_take_turns(turns: Any, steps: int) -> None:
    f = federation(Local(local_steps=4, modular_steps=turns, batch_size=8, lr=0.1, modular_lr=0.3), models=[wide])
    model = server_copy(f.setup, f.setup.architectures[1], weights_of(f, 1))
    f.run_round()
    batches = in_steps(f.setup, 1, 4 + steps, 8)
    for part, drawn, lr in (("base", batches[:4], 0.1), ("modular", batches[4:], 0.3)):
        plain_training(model, drawn, torch.optim.SGD(model.parameters_of(part).values(), lr=lr))
    assert same_bits(model.tensors(), weights_of(f, 1))


def test_nothing_travels() -> None:
    assert entries(federation("local", rounds=2)) == []


def test_a_client_does_not_depend_on_the_others() -> None:
    settings: dict[str, Any] = {"models": ["logistic"], "rounds": 2, "dataset": tiny_dataset()}
    among = federation(Local(local_steps=3, batch_size=4), shares=shares_of(range(20), range(20, 60)), **settings)
    alone = federation(Local(local_steps=3, batch_size=4), shares=shares_of(range(20)), **settings)
    assert same_bits(weights_of(among, 0), weights_of(alone, 0))


@dataclass(frozen=True)
class Lost(Local):
    """Predicts NaN for clients above 0: in all classes, or in one that is not the highest."""

    def predict(self, client: Client, x: Tensor) -> Tensor:
        scores = torch.zeros(len(x), 3) if client.id else super().predict(client, x)
        if client.id:
            scores[:, 0 if client.id == 1 else slice(None)] = torch.nan
        return scores


@pytest.mark.parametrize("full", [True, False])
def test_a_model_that_answers_nan_is_never_right(full: bool) -> None:
    f = federation(Lost(local_steps=20, lr=0.1), rounds=1)
    found = evaluate(f, full=full)
    for accuracies in (found.common, found.own, found.validation):
        assert [accuracy == 0 for accuracy in accuracies if accuracy == accuracy][-2:] == [True, True]
    assert found.common[0] is not None
    assert found.common[0] > 0.5
