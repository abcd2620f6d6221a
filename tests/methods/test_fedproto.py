"""FedProto against prototypes, losses and answers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from by_hand import HELD, Row, fused, means_by_hand, skewed
from torch import Tensor
from torch.nn import functional
from worlds import (
    alone,
    entries,
    everything_owned,
    federation,
    in_steps,
    largest_difference,
    live_model,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data import Batch, EpochOrder
from interfuse.evaluation import evaluate
from interfuse.families.prototypes import ClassMeans, by_class, pulled
from interfuse.federation import Federation
from interfuse.methods.fedproto import FedProto
from interfuse.models import SplitModel

FAST: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.1}


def hetero() -> dict[str, Any]:
    """:func:`skewed` with models that differ in both blocks."""
    return skewed() | {"models": ["logistic", wide]}


def prototypes_of(f: Federation) -> dict[int, Tensor]:
    known = f.server.state.prototypes
    return dict(zip(known.y.tolist(), known.mean, strict=True))


def pulled_loss(model: SplitModel, x: Tensor, y: Tensor, prototypes: dict[int, Tensor], pull: float) -> Tensor:
    """Cross entropy and λ · mean squared distance, sample by sample and coordinate by coordinate."""
    z = model.base(x)
    squares = [
        (z[i, j] - prototypes[label][j]) ** 2
        for i, label in enumerate(y.tolist())
        for j in range(z.shape[1])
        if label in prototypes
    ]
    distance = torch.stack(squares).sum() / z.numel() if squares else torch.zeros(())
    return functional.cross_entropy(model.modular(z), y) + pull * distance


@pytest.mark.parametrize("predict_by", ["model", "prototype"])
def test_without_a_pull_models_are_those_of_local_training(predict_by: Literal["model", "prototype"]) -> None:
    method = FedProto(pull=0.0, predict_by=predict_by, optimizer="adam", **FAST | {"lr": 0.01})
    together, apart = federation(method, **hetero()), federation(alone(method), **hetero())
    for _ in range(3):
        together.run_round()
        apart.run_round()
        assert all(same_bits(weights_of(together, c), weights_of(apart, c)) for c in together.clients)
    measured, local = evaluate(together, full=True), evaluate(apart, full=True)
    assert (measured.common == local.common) == (predict_by == "model")


def test_prototypes_taken_during_training_are_of_all_steps_before_each() -> None:
    """A plain loop, whose features are gathered sample by sample over both epochs, as HtFLlib does."""
    method = FedProto(prototypes="during", local_epochs=2, batch_size=8, lr=0.1, pull=2.0)
    f = federation(method, **hetero())
    known: dict[int, Tensor] = {}
    models = {c: server_copy(f.setup, f.setup.architectures[c], weights_of(f, c)) for c in f.clients}
    orders = {client: EpochOrder(f.setup.seed, client, len(f.setup.shares[client].train)) for client in f.clients}
    data = f.setup.dataset
    for _ in range(2):
        f.run_round()
        gathered: list[Row] = []
        for client, model in models.items():
            for positions in orders[client].epochs(2, 8):
                rows = f.setup.shares[client].train[positions]
                x, y = data.normalise(data.x_train[rows]), data.y_train[rows]
                gathered += zip(model.base(x).detach(), y.tolist(), strict=True)
                gradients = torch.autograd.grad(pulled_loss(model, x, y, known, 2.0), list(model.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter -= 0.1 * gradient
        known = {y: mean for mean, y in means_by_hand(gathered)}
        found = prototypes_of(f)
        assert found.keys() == known.keys()
        assert all(torch.allclose(found[y], known[y], rtol=1e-4, atol=1e-5) for y in known)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_round_averages_class_means_of_the_trained_models_by_samples(rounds: int) -> None:
    f = federation(FedProto(**FAST), rounds=rounds, **hetero())
    everything = [row for client in f.clients for row in fused(f, client, weights_of(f, client))]
    expected = {y: mean for mean, y in means_by_hand(everything)}
    assert list(prototypes_of(f)) == [0, 1, 2]  # nobody has class 3
    assert largest_difference({str(y): z for y, z in expected.items()}, as_names(f)) < 1e-6


def test_uniform_weights_are_a_mean_over_the_clients_that_have_the_class() -> None:
    f = federation(FedProto(weights="uniform", **FAST), rounds=1, **hetero())
    means = [row for client in f.clients for row in means_by_hand(fused(f, client, weights_of(f, client)))]
    expected = {str(y): mean for mean, y in means_by_hand(means)}
    assert largest_difference(expected, as_names(f)) < 1e-6
    by_samples = federation(FedProto(**FAST), rounds=1, **hetero())
    assert largest_difference(as_names(by_samples), as_names(f)) > 1e-4


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_one_client_gets_its_own_means_back(weights: Literal["samples", "uniform"]) -> None:
    world = hetero()
    f = federation(FedProto(weights=weights, **FAST), rounds=1, **world | {"shares": world["shares"][:1]})
    own = {str(y): mean for mean, y in means_by_hand(fused(f, 0, weights_of(f, 0)))}
    assert largest_difference(own, as_names(f)) < 1e-6


def as_names(f: Federation) -> dict[str, Tensor]:
    return {str(y): mean for y, mean in prototypes_of(f).items()}


def test_loss_and_gradient_are_those_of_a_loop_over_samples() -> None:
    model, data = wide((5,), 4, 8), tiny_dataset(classes=4)
    x, y = data.x_train[:16], data.y_train[:16]
    known = ClassMeans(torch.randn(2, 8), torch.tensor([3, 1], dtype=torch.uint8))
    passes: list[None] = []
    next(model.children()).register_forward_hook(lambda *_: passes.append(None))
    table, present = by_class(known, 4)
    by_label = {3: known.mean[0], 1: known.mean[1]}
    mine = pulled(model, Batch(x, y), 0, table=table, present=present, pull=2.5)
    assert len(passes) == 1  # one pass serves both terms
    expected = pulled_loss(model, x, y, by_label, 2.5)
    torch.testing.assert_close(mine, expected)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(mine, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_classes_without_a_prototype_are_not_pulled() -> None:
    model, data = wide((5,), 4, 8), tiny_dataset(classes=4)
    known = ClassMeans(torch.randn(1, 8), torch.tensor([2], dtype=torch.uint8))
    others = data.y_train != 2
    x, y = data.x_train[others], data.y_train[others]
    table, present = by_class(known, 4)
    loss = pulled(model, Batch(x, y), 0, table=table, present=present, pull=10.0)
    plain = functional.cross_entropy(model(x), y)
    parameters = list(model.parameters())
    assert torch.equal(loss, plain)
    for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert torch.equal(one, other)


def test_training_is_plain_sgd_on_that_loss_from_the_second_round_on() -> None:
    f = federation(FedProto(pull=3.0, **FAST), **hetero())
    first = {client: weights_of(f, client) for client in f.clients}
    f.run_round()
    known = prototypes_of(f)
    f.run_round()
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], first[client])
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, (x, y) in enumerate(in_steps(f.setup, client, 6, 8)):
            sgd.zero_grad()
            pulled_loss(model, x, y, known if step >= 3 else {}, 3.0).backward()  # type: ignore[no-untyped-call]
            sgd.step()
        assert largest_difference(model.tensors(), weights_of(f, client)) < 1e-5


def test_clients_answer_with_the_nearest_prototype() -> None:
    f = federation(FedProto(**FAST), rounds=3, **hetero())
    known, data = prototypes_of(f), f.setup.dataset
    measured = evaluate(f, full=True)
    for client in f.clients:
        right = 0
        for x, y in zip(data.normalise(data.x_test), data.y_test.tolist(), strict=True):
            z = live_model(f, client).base(x[None])[0].detach().double()
            right += min(known, key=lambda c: float((z - known[c].double()).square().sum())) == y
        assert measured.common[client] == right / len(data.y_test)
    assert len(set(measured.common)) > 1


def test_a_class_that_nobody_has_is_never_answered() -> None:
    f = federation(FedProto(**FAST), rounds=1, **hetero())
    known = f.server.state.prototypes
    f.server.state = type(f.server.state)(ClassMeans(known.mean + 1e6, known.y))  # a row of zeros would be nearer
    method: Any = f.method
    with f.evaluating() as clients:
        for client in clients:
            inside = resident(f, client)
            with inside.model.evaluating():
                scores = method.predict(inside, f.setup.dataset.x_test)
            assert (scores[:, 3] == -torch.inf).all()
            assert scores[:, :3].isfinite().all()


def test_before_the_first_round_a_client_answers_with_its_model() -> None:
    f = federation(FedProto(**FAST), **hetero())
    measured = evaluate(f, full=True)
    assert measured.composition is not None
    assert measured.common == [measured.composition[client][client] for client in f.clients]


def test_bytes_are_a_row_for_each_class_up_and_for_each_class_of_anybody_down() -> None:
    f = federation(FedProto(**FAST), rounds=2, **hetero())
    for direction, expected in (
        ("up", [len(held) * (4 * 8 + 1 + 4) for held in HELD] * 2),
        ("down", [0] * 3 + [3 * (4 * 8 + 1)] * 3),
    ):
        assert [entry.raw for entry in entries(f) if entry.direction == direction] == expected


def test_scalars_down_are_those_of_htfllib() -> None:
    dataset, shares = tiny_dataset(rows=200, classes=100), shares_of(*(range(k, k + 10) for k in range(0, 200, 10)))
    f = federation(FedProto(local_steps=1), width=512, dataset=dataset, shares=shares, rounds=2)
    down = sum(entry.raw for entry in entries(f) if entry.direction == "down")
    labels = 20 * 100
    assert (down - labels) / 4 == 1_024_000  # 20 clients, 100 classes, width 512 (FedKTL, Table 5)


def test_a_resumed_run_goes_on_with_the_prototypes(tmp_path: Path) -> None:
    straight = federation(FedProto(**FAST), rounds=2, **hetero())
    resumed = federation(FedProto(**FAST), start=False, **hetero())
    resumed.load(tmp_path, 2, straight.save(tmp_path))
    for f in (straight, resumed):
        f.run_round()
    assert same_bits(everything_owned(straight), everything_owned(resumed))
    assert evaluate(straight, full=True) == evaluate(resumed, full=True)
