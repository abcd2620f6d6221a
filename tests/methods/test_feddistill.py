"""FedDistill: its loss by hand, its teachers by brute force, and classes that nobody has."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from by_hand import HELD, skewed
from torch import Tensor
from torch.nn import functional
from worlds import (
    alone,
    entries,
    federation,
    in_steps,
    largest_difference,
    same_bits,
    server_copy,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data import Batch
from interfuse.families.prototypes import Taken
from interfuse.federation import Federation
from interfuse.methods.feddistill import FedDistill, taught

FAST: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.1}


def logits_by_class(f: Federation, client: int) -> dict[int, Tensor]:
    """The mean logits of a client's samples under its model as it is, one by one."""
    model = server_copy(f.setup, f.setup.architectures[client], weights_of(f, client)).eval()
    data, found = f.setup.dataset, dict[int, list[Tensor]]()
    for row in f.setup.shares[client].train.tolist():
        found.setdefault(int(data.y_train[row]), []).append(model(data.normalise(data.x_train[row : row + 1]))[0])
    return {y: torch.stack(rows).mean(0).detach() for y, rows in found.items()}


def test_teachers_are_means_over_the_clients_that_have_the_class() -> None:
    f = federation(FedDistill(**FAST), rounds=2, **skewed())
    found = [logits_by_class(f, client) for client in f.clients]
    assert [tuple(sorted(own)) for own in found] == list(HELD)
    for y in range(3):
        expected = torch.stack([own[y] for own in found if y in own]).mean(0)
        torch.testing.assert_close(f.server.state.logits[y], expected, rtol=1e-4, atol=1e-5)
    assert f.server.state.known.tolist() == [True, True, True, False]
    assert not f.server.state.logits[3].any()


@pytest.mark.parametrize("logits", ["after", "during"])
def test_training_is_plain_sgd_on_that_loss_from_the_second_round_on(logits: Taken) -> None:
    f = federation(FedDistill(weight=0.7, logits=logits, **FAST), **skewed())
    first = {client: weights_of(f, client) for client in f.clients}
    f.run_round()
    teacher = f.server.state.logits.clone()
    f.run_round()
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], first[client])
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, (x, y) in enumerate(in_steps(f.setup, client, 6, 8)):
            scores = model(x)
            loss = functional.cross_entropy(scores, y)
            if step >= 3:
                targets = torch.stack([teacher[label].exp() / teacher[label].exp().sum() for label in y.tolist()])
                loss = loss - 0.7 * (targets * scores.log_softmax(1)).sum(1).mean()
            sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
        assert largest_difference(model.tensors(), weights_of(f, client)) < 1e-5


def test_during_are_the_answers_before_each_step() -> None:
    f = federation(FedDistill(logits="during", **FAST), **skewed())
    models = {c: server_copy(f.setup, f.setup.architectures[c], weights_of(f, c)) for c in f.clients}
    f.run_round()
    means: dict[int, list[Tensor]] = {}
    for client, model in models.items():
        gathered: dict[int, list[Tensor]] = {}
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in in_steps(f.setup, client, 3, 8):
            scores = model(x)
            for row, label in zip(scores.detach(), y.tolist(), strict=True):
                gathered.setdefault(label, []).append(row)
            sgd.zero_grad()
            functional.cross_entropy(scores, y).backward()
            sgd.step()
        for label, rows in gathered.items():
            means.setdefault(label, []).append(torch.stack(rows).mean(0))
    for label, rows in means.items():
        torch.testing.assert_close(f.server.state.logits[label], torch.stack(rows).mean(0), rtol=1e-4, atol=1e-5)


def test_without_its_weight_and_in_the_first_round_it_is_local_training() -> None:
    for weight, rounds in ((0.0, 3), (1.0, 1)):
        f = federation(FedDistill(weight=weight, **FAST), rounds=rounds, **skewed())
        local = federation(alone(f.method), rounds=rounds, **skewed())
        assert all(same_bits(weights_of(f, c), weights_of(local, c)) for c in f.clients)
    with_it = federation(FedDistill(**FAST), rounds=3, **skewed())
    assert largest_difference(weights_of(with_it, 0), weights_of(f, 0)) > 1e-4


@pytest.mark.parametrize("known", [0, 2])
def test_the_loss_is_bounded_below_and_classes_without_a_teacher_add_nothing(known: Literal[0, 2]) -> None:
    """With logits in the place of a distribution, as in HtFLlib, it would fall without end as the model's grow."""
    model, data = wide((5,), 3, 8), tiny_dataset()
    x, y = data.x_train[:12], data.y_train[:12]
    table, there = torch.randn(3, 3) * 5, torch.arange(3) < known
    found = taught(model, Batch(x, y), 0, table=table, known=there, weight=1.0)
    plain = functional.cross_entropy(model(x), y)
    assert torch.equal(found, plain) if not known else found > plain
    targets = table.softmax(1)
    entropy = -(targets * targets.log()).sum(1)[y][there[y]].sum() / 12
    for scale in (1.0, 1e3):
        scores = table[y] * scale
        best = taught(lambda _, scores=scores: scores, Batch(x, y), 0, table=table, known=there, weight=1.0)  # type: ignore[arg-type]
        assert best - functional.cross_entropy(scores, y) >= entropy - 1e-5


def test_bytes_are_a_row_of_logits_for_each_class() -> None:
    f = federation(FedDistill(**FAST), rounds=2, **skewed())
    training = [entry for entry in entries(f) if entry.heading == "training"]
    assert [e.raw for e in training if e.direction == "up"] == [len(held) * (4 * 4 + 1) for held in HELD] * 2
    assert [e.raw for e in training if e.direction == "down"] == [0] * 3 + [3 * (4 * 4 + 1)] * 3
