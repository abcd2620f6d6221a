"""FedTGP: the margin by brute force, the server's prototypes by PyTorch's own loop, and clients that are FedProto's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from by_hand import HELD, fused, means_by_hand, server_batches, skewed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from worlds import Recorder, alone, entries, federation, resident, same_bits, weights_of

from interfuse.clients import Request
from interfuse.data import Batch
from interfuse.errors import ClientError
from interfuse.evaluation import evaluate
from interfuse.families.class_tables import ClassTable, placed
from interfuse.families.prototypes import ClassMeans
from interfuse.federation import Federation
from interfuse.methods.fedproto import FedProto
from interfuse.methods.fedtgp import FedTGP, apart, generator, widest_gap

FAST: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.1}
EVERYBODY = torch.tensor([True] * 4)


def loss_at(margin: float, known: Tensor = EVERYBODY, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    torch.default_generator.manual_seed(seed)
    rows = Batch(3 * torch.randn(6, 5, generator=noise), torch.tensor([0, 1, 2, 0, 1, 2]))
    return apart(generator(4, 5, 7), rows, 0, known=known, margin=torch.tensor(margin))


def test_without_a_margin_it_is_classification_by_distance() -> None:
    torch.default_generator.manual_seed(0)
    made = generator(4, 5, 7)(torch.arange(4))
    noise = torch.Generator().manual_seed(0)
    rows, y = 3 * torch.randn(6, 5, generator=noise), [0, 1, 2, 0, 1, 2]
    by_hand = []
    for row, label in zip(rows, y, strict=True):
        likely = torch.stack([(-(row - one).square().sum().sqrt()).exp() for one in made])
        by_hand.append(-(likely[label] / likely.sum()).log())
    torch.testing.assert_close(loss_at(0.0), torch.stack(by_hand).mean())


@given(st.integers(0, 20), st.floats(0, 50), st.floats(0.1, 50))
def test_a_larger_margin_is_a_larger_loss(seed: int, margin: float, more: float) -> None:
    assert loss_at(margin + more, seed=seed).item() > loss_at(margin, seed=seed).item()


def test_a_class_that_nobody_has_had_is_not_in_the_sum() -> None:
    three = torch.tensor([True, True, True, False])
    found = loss_at(1.0, three)
    assert found.item() < loss_at(1.0).item()
    assert found.isfinite()


@given(st.integers(0, 50), st.integers(1, 6), st.sampled_from([0.0, 2.0, 100.0]))
def test_the_margin_is_the_largest_distance_between_neighbours(seed: int, present: int, most: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    rows = torch.randn(present, 3, generator=noise)
    y = torch.randperm(6, generator=noise)[:present]
    apart_by = [[(a - b).norm().item() for j, b in enumerate(rows) if j != i] for i, a in enumerate(rows)]
    nearest = [min(own, default=most) for own in apart_by]
    found = widest_gap(placed(rows, y, 6), most)
    assert found.item() == pytest.approx(min(max(nearest), most), abs=1e-5)


def test_prototypes_that_lie_on_each_other_or_at_zero_have_gradients_that_are_numbers() -> None:
    model = generator(3, 4, 4)
    made = model(torch.arange(3)).detach()
    for rows in (made, torch.zeros(3, 4)):
        apart(model, Batch(rows, torch.arange(3)), 0, known=EVERYBODY[:3], margin=torch.tensor(0.0)).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert widest_gap(ClassTable(torch.zeros(3, 4), torch.ones(3)), 100.0) == 0


def test_a_round_is_local_training_and_steps_of_the_prototypes() -> None:
    """Two rounds: means of trained models alone, the margin of these, plain SGD in the server's order of rows."""
    settings: dict[str, Any] = {"server_lr": 0.05, "server_epochs": 4, "server_batch_size": 3, "hidden": 6}
    f = federation(FedTGP(**FAST, **settings), **skewed())
    model = copy.deepcopy(f.server.network("prototypes"))
    for round in (1, 2):
        f.run_round()
        per_client = [means_by_hand(fused(f, client, weights_of(f, client))) for client in f.clients]
        sent = [row for own in per_client for row in own]
        rows, labels = torch.stack([z for z, _ in sent]), torch.tensor([y for _, y in sent])
        assert labels.tolist() == [0, 1, 1, 0, 2]
        centres = {c: rows[labels == c].mean(0) for c in (0, 1, 2)}
        gaps = [min((centres[a] - centres[b]).norm() for b in centres if b != a) for a in centres]
        margin = min(float(max(gaps)), 100.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for index in server_batches(f, round, 5, 3, 4):
            made = model(torch.arange(4))
            distances = torch.stack([(rows[index] - made[c]).norm(dim=1) for c in (0, 1, 2)], 1)
            scores = -(distances + margin * functional.one_hot(labels[index], 3))
            optimizer.zero_grad()
            functional.cross_entropy(scores, labels[index]).backward()
            optimizer.step()
        prototypes = f.server.state.prototypes
        assert prototypes.y.tolist() == [0, 1, 2]  # nobody has class 3
        torch.testing.assert_close(prototypes.mean, model(torch.arange(4))[:3].detach(), rtol=1e-4, atol=1e-5)


def test_clients_train_as_fedprotos_do() -> None:
    """In the first round there are no prototypes; without a pull none matter."""
    for pull, rounds in ((10.0, 1), (0.0, 3)):
        tgp, proto = (federation(kind(pull=pull, **FAST), rounds=rounds, **skewed()) for kind in (FedTGP, FedProto))
        assert all(same_bits(weights_of(tgp, c), weights_of(proto, c)) for c in tgp.clients)
        local = federation(alone(tgp.method), rounds=rounds, **skewed())
        assert all(same_bits(weights_of(tgp, c), weights_of(local, c)) for c in tgp.clients)


def test_a_class_that_nobody_has_is_never_answered_and_one_that_is_away_keeps_its_prototype() -> None:
    f = federation(FedTGP(participation=0.3, **FAST), rounds=1, **skewed())
    seen = set(f.server.state.prototypes.y.tolist())
    for _ in range(6):
        f.run_round()
        now = set(f.server.state.prototypes.y.tolist())
        assert seen <= now <= {0, 1, 2}
        seen = now
    assert len(seen) > 1
    assert all(0 <= accuracy <= 1 for accuracy in evaluate(f, full=True).common)
    with f.evaluating() as clients:
        for client in clients:
            scores = f.method.predict(resident(f, client), torch.randn(9, 5))
            assert not set(scores.argmax(1).tolist()) - seen


def test_bytes_are_a_row_for_each_class_without_counts() -> None:
    f = federation(FedTGP(**FAST), rounds=2, **skewed())
    training = [entry for entry in entries(f) if entry.heading == "training"]
    assert [e.raw for e in training if e.direction == "up"] == [len(held) * (4 * 8 + 1) for held in HELD] * 2
    assert [e.raw for e in training if e.direction == "down"] == [0] * 3 + [3 * (4 * 8 + 1)] * 3


class Twice(Recorder):
    """An engine whose client 1 sends its class twice."""

    def call(self, request: Request, messages: Any) -> Any:
        for answer in super().call(request, messages):
            if answer.client == 1 and isinstance(answer.reply, ClassMeans):
                mean, y = answer.reply.mean, answer.reply.y
                answer = type(answer)(1, ClassMeans(torch.cat([mean, mean]), torch.cat([y, y])), 0.0)
            yield answer


def test_a_class_twice_is_refused_by_name() -> None:
    f: Federation = federation(FedTGP(**FAST), wrap=Twice, **skewed())
    with pytest.raises(ClientError, match="client 1 sent statistics of a class twice"):
        f.run_round()
