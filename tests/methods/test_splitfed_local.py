"""Split learning with a local loss against a loop in plain PyTorch; SL-5; what travels; what predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import COUNTS, UNEVEN
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    depth1,
    federation,
    in_steps,
    largest_difference,
    linear_head,
    live_model,
    plain_training,
    resident,
    server_copy,
    tensors_in,
    weights_of,
    wide,
)

from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.families.split_learning import Smashed
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.ifl import IFL
from interfuse.methods.splitfed_local import SplitFedLocal
from interfuse.models import SplitModel
from interfuse.randomness import generator

TAU, BATCH = 3, 6


def optimizer_of(name: str, parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr) if name == "sgd" else torch.optim.Adam(parameters, lr=lr, fused=True)


def order_of(f: Federation, round: int) -> list[int]:
    """The order of the server's turns, from the generator that every round has."""
    return torch.randperm(len(f.clients), generator=generator(f.setup.seed, "server", "training", round)).tolist()


def step_on(head: SplitModel, z: Tensor, y: Tensor, stepper: torch.optim.Optimizer) -> None:
    stepper.zero_grad()
    functional.cross_entropy(head.modular(z), y).backward()
    stepper.step()


def mean_of(models: list[SplitModel], part: str) -> dict[str, Tensor]:
    """Of the models' tensors, by samples, in float64."""
    counts = dict(zip(models, COUNTS, strict=True))
    return {
        key: (sum(n * m.tensors()[key].double() for m, n in counts.items()) / sum(COUNTS)).float()
        for key in models[0].tensors(part)
    }


@pytest.mark.parametrize("copies", ["each", "one"])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_is_local_training_and_a_step_of_the_server_on_what_is_uploaded(
    copies: Any, average: bool, optimizer: Any
) -> None:
    method = SplitFedLocal(
        local_steps=TAU,
        batch_size=BATCH,
        lr=0.05,
        server_lr=0.1,
        server_copies=copies,
        optimizer=optimizer,
        average_clients=average,
    )
    f = federation(method, models=[wide], shares=UNEVEN)
    name, state = f.setup.architectures[0], f.server.state
    clients = [server_copy(f.setup, name, weights_of(f, c) | state.fronts) for c in f.clients]
    heads = [server_copy(f.setup, name, state.tails) for _ in f.clients] if copies == "each" else []
    heads = heads or [server_copy(f.setup, name, state.tails)] * 3
    steppers = [optimizer_of(optimizer, m.parameters(), 0.05) for m in clients]
    by_head = {head: optimizer_of(optimizer, head.parameters_of("modular").values(), 0.1) for head in heads}
    for round in range(3):
        if average:
            steppers = [optimizer_of(optimizer, m.parameters(), 0.05) for m in clients]
        uploads = []
        for client, model in enumerate(clients):
            *batches, (x, y) = in_steps(f.setup, client, 3 * (TAU + 1), BATCH)[: (round + 1) * (TAU + 1)]
            plain_training(model, batches[-TAU:], steppers[client])
            uploads.append((model.base(x).detach(), y))
        for client in order_of(f, round + 1) if copies == "one" else range(3):
            step_on(heads[client], *uploads[client], by_head[heads[client]])
        tail = mean_of(heads, "modular") if copies == "each" else heads[0].tensors("modular")
        f.run_round()
        assert largest_difference(tail, f.server.state.tails) < 2e-6
        for head in set(heads) if copies == "each" else ():
            head.load(tail)
        if average:
            front = mean_of(clients, "base")
            assert largest_difference(front, f.server.state.fronts) < 2e-6
            for model in clients:
                model.load(front)
        for client, model in enumerate(clients):
            part = "modular" if average else None
            assert largest_difference(model.tensors(part), live_model(f, client).tensors(part)) < 2e-6


@pytest.mark.parametrize(("tau", "batch"), [(1, 4), (3, 4), (3, 8)])
def test_the_uplink_is_that_of_ifl(tau: int, batch: int) -> None:  # SL-5
    found = []
    for method in (SplitFedLocal(local_steps=tau, batch_size=batch), IFL(local_steps=tau, batch_size=batch)):
        f = federation(method, models=["logistic", wide], shares=UNEVEN, rounds=3)
        totals = f.exchange.ledger.totals()
        found.append((totals.uplink.raw, totals.downlink.raw))
    assert found[0][0] == found[1][0] == 3 * 3 * batch * (4 * 8 + 1)
    assert found[0][1] == 0 < found[1][1]


def test_averaged_fronts_cost_their_weights_each_way() -> None:
    f = federation(SplitFedLocal(batch_size=4, average_clients=True), models=[wide], rounds=2)
    kinds = f.exchange.ledger.totals().by_kind
    front = 2 * 3 * 4 * sum(t.numel() for t in live_model(f, 0).tensors("base").values())
    assert {k: (t.uplink.raw, t.downlink.raw) for k, t in kinds.items()} == {
        "Smashed": (2 * 3 * 4 * (4 * 8 + 1), 0),
        "Weights": (front, front),
    }


@pytest.mark.parametrize("average", [False, True])
def test_the_auxiliary_head_never_leaves_its_client(average: bool) -> None:
    f = federation(SplitFedLocal(batch_size=4, lr=0.1, average_clients=average), models=[wide], wrap=Recorder)
    recorder, own = f.engine, []
    assert isinstance(recorder, Recorder)
    for _ in range(2):
        f.run_round()
        evaluate(f, full=True)
        own += [t.numpy().tobytes() for c in f.clients for t in weights_of(f, c, "modular").values()]
    travelled = {t.numpy().tobytes() for t in tensors_in(m for _, _, m in recorder.up + recorder.down)}
    assert not travelled & set(own)
    assert {type(m) for r, _, m in recorder.up if r.program == "method"} == (
        {Smashed, Weights} if average else {Smashed}
    )


@pytest.mark.parametrize("average", [False, True])
def test_a_client_predicts_with_the_head_of_the_server(average: bool) -> None:
    f = federation(SplitFedLocal(lr=0.1, batch_size=4, average_clients=average), models=[wide], shares=UNEVEN, rounds=2)
    data = f.setup.dataset
    x = data.normalise(data.x_test)
    models = []
    for client in f.clients:
        fronts = f.server.state.fronts or weights_of(f, client, "base")
        models.append(server_copy(f.setup, f.setup.architectures[0], fronts | f.server.state.tails))
    before = [weights_of(f, client) for client in f.clients]
    with f.evaluating():
        for client, model in enumerate(models):
            mine = resident(f, client)
            with mine.model.evaluating():
                scores = f.method.predict(mine, x)
                assert torch.equal(scores, model(x))
                assert not torch.allclose(scores, mine.model(x), atol=1e-2)
    common = evaluate(f, full=True).common
    assert common == [float((m(x).argmax(1) == data.y_test).double().mean()) for m in models]
    if not average:
        assert [largest_difference(b, weights_of(f, c)) for c, b in enumerate(before)] == [0, 0, 0]


def test_one_head_needs_one_modular_block_and_copies_do_not() -> None:
    with pytest.raises(ModelError, match="modular blocks differ: .*--models cnn,"):
        federation(SplitFedLocal(server_copies="one"), models=[wide, depth1])
    f = federation(SplitFedLocal(batch_size=4), models=[wide, depth1], rounds=1)
    assert {"classifier.weight", "modular.0.weight"} < set(f.server.state.tails)
    federation(SplitFedLocal(server_copies="one", batch_size=4), models=["logistic", linear_head], rounds=1)
