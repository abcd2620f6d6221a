"""FedPer, FedRep, FedBABU and Ditto against plain SGD and means by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import COUNTS, UNEVEN
from torch import Tensor
from worlds import (
    Recorder,
    depth1,
    depth2,
    federation,
    in_epochs,
    in_steps,
    largest_difference,
    linear_head,
    live_model,
    plain_sgd,
    resident,
    same_bits,
    server_copy,
    tensors_in,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.errors import ModelError
from interfuse.federation import Federation
from interfuse.methods.ditto import Ditto
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedbabu import FedBABU
from interfuse.methods.fedper import FedPer
from interfuse.methods.fedrep import FedRep

SGD: dict[str, Any] = {"local_steps": 3, "batch_size": 6, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
PERSONAL: Any = pytest.mark.parametrize("kind", [FedPer, FedRep, FedBABU])


def mean_of(models: list[dict[str, Tensor]], keys: Any) -> dict[str, Tensor]:
    return {k: sum(n * m[k].double() for n, m in zip(COUNTS, models, strict=True)) / sum(COUNTS) for k in keys}  # type: ignore[misc]


def test_fedper_averages_bases_and_leaves_heads() -> None:
    f = federation(FedPer(**SGD), models=[wide], shares=UNEVEN)
    heads = [weights_of(f, client, "modular") for client in f.clients]
    assert not torch.equal(heads[0]["modular.0.weight"], heads[1]["modular.0.weight"])
    for round in range(2):
        base, trained = f.server.state.base, []
        for client in f.clients:
            model = server_copy(f.setup, "wide", base | heads[client])
            trained.append(plain_sgd(model, in_steps(f.setup, client, 6, 6)[3 * round : 3 * round + 3], 0.1))
        f.run_round()
        heads = [{key: own[key] for key in heads[0]} for own in trained]
        assert all(same_bits(heads[client], weights_of(f, client, "modular")) for client in f.clients)
        assert largest_difference(mean_of(trained, base), f.server.state.base) < 1e-6


def test_fedrep_trains_the_head_first_and_then_the_base() -> None:
    """A round by hand: epochs of the head, then steps of the base block, each with the other block frozen."""
    f = federation(FedRep(**SGD, head_epochs=2), models=["logistic"], shares=UNEVEN, clients=3)
    base, heads = f.server.state.base, [weights_of(f, client, "modular") for client in f.clients]
    trained = []
    for client in f.clients:
        model = server_copy(f.setup, "logistic", base | heads[client])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in base)
        plain_sgd(model, in_epochs(f.setup, client, 2, 6), 0.1)
        for parameter in model.parameters():
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.grad = None
        share = len(f.setup.shares[client].train)
        rows = in_steps(f.setup, client, 2 * share + 3 * 6, 1)[2 * share :]  # what comes after two epochs, one by one
        batches = [tuple(torch.cat(own) for own in zip(*rows[i : i + 6], strict=True)) for i in range(0, 18, 6)]
        trained.append(plain_sgd(model, batches, 0.1))
    f.run_round()
    for client in f.clients:
        own = weights_of(f, client, "modular")
        assert largest_difference({key: trained[client][key] for key in own}, own) < 1e-6
    assert largest_difference(mean_of(trained, base), f.server.state.base) < 1e-6


def test_fedrep_without_steps_of_the_base_leaves_it_bit_for_bit_and_without_head_epochs_the_head() -> None:
    only_heads = federation(FedRep(**SGD | {"local_steps": 0}, head_epochs=2), models=["cnn-bn"], **pictures())
    base = {key: tensor.clone() for key, tensor in only_heads.server.state.base.items()}
    before = weights_of(only_heads, 0, "modular")
    only_heads.run_round()
    assert same_bits(base, only_heads.server.state.base)  # its statistics too
    assert not torch.equal(before["classifier.weight"], weights_of(only_heads, 0)["classifier.weight"])
    only_base = federation(FedRep(**SGD, head_epochs=0), models=["cnn-bn"], **pictures())
    before = weights_of(only_base, 0, "modular")
    only_base.run_round()
    assert same_bits(before, weights_of(only_base, 0, "modular"))
    assert largest_difference(base, only_base.server.state.base) > 1e-4


def pictures() -> dict[str, Any]:
    return {"dataset": tiny_dataset(shape=(1, 6, 6)), "clients": 2}


def test_fedbabus_head_is_everybodys_and_stays_and_clients_answer_with_a_tuned_copy() -> None:
    method = FedBABU(**SGD, tuning_epochs=2)
    f = federation(method, models=["logistic"], shares=UNEVEN, last=3)
    heads = [resident(f, client).state.head for client in f.clients]
    assert all(same_bits(heads[0], own) for own in heads)
    models = [server_copy(f.setup, "logistic", f.server.state.base | heads[0]) for _ in f.clients]
    for _ in range(3):
        f.run_round()
    base = {key: tensor.clone() for key, tensor in f.server.state.base.items()}
    assert all(same_bits(heads[0], resident(f, client).state.head) for client in f.clients)
    assert not f.server.state.base.keys() & heads[0].keys()
    with f.evaluating():
        for client, model in zip(f.clients, models, strict=True):
            answers = live_model(f, client).tensors()
            model.load(base | heads[0])
            assert largest_difference(answers, model.tensors()) > 1e-3
            assert same_bits(answers, resident(f, client).state.tuned)
    assert same_bits(base, f.server.state.base)


@pytest.mark.parametrize(("tuned", "same"), [("base", {"classifier.weight", "classifier.bias"}), ("modular", None)])
def test_fedbabu_tunes_one_block_if_told_so(tuned: Any, same: set[str] | None) -> None:
    f = federation(FedBABU(**SGD, tuning_epochs=1, tuned=tuned), models=["logistic"], shares=UNEVEN, rounds=1, last=1)
    start = f.server.state.base | resident(f, 0).state.head
    own = resident(f, 0).state.tuned
    unchanged = {key for key in own if torch.equal(own[key], start[key])}
    assert unchanged == (same or set(f.server.state.base))


@PERSONAL
def test_only_base_blocks_travel(kind: Any) -> None:
    f = federation(kind(**SGD), models=["logistic"], clients=2, wrap=Recorder, rounds=2, last=2)
    assert isinstance(f.engine, Recorder)
    head = 8 * 3 + 3
    floats = sum(tensor.numel() for tensor in f.server.state.base.values())
    ups, downs = ([t.numel() for _, _, m in some for t in tensors_in([m])] for some in (f.engine.up, f.engine.down))
    assert sum(ups) == 2 * 2 * floats
    # the head of FedBABU once in the beginning, the base block once more in the end
    assert sum(downs) == 2 * (2 * floats + (head + floats if kind is FedBABU else 0))


@PERSONAL
def test_bases_of_nobody_else_are_refused_and_nested_ones_are_averaged(kind: Any) -> None:
    with pytest.raises(ModelError, match="tensor of the base block in common.*--models cnn"):
        federation(kind(), models=["logistic", linear_head], clients=2)
    f = federation(kind(**SGD), models=[depth1, depth2], clients=4, rounds=1)
    assert all(tensor.isfinite().all() for tensor in f.server.state.base.values())


def own_models(f: Federation) -> list[dict[str, Tensor]]:
    return [resident(f, client).state.personal for client in f.clients]


def test_dittos_server_has_fedavgs_model_and_without_a_pull_clients_are_alone() -> None:
    world: dict[str, Any] = {"models": [wide], "shares": UNEVEN}
    ditto = federation(Ditto(**SGD, lam=0.0), **world)
    avg = federation(FedAvg(**SGD), **world)
    first = {key: tensor.clone() for key, tensor in ditto.server.state.weights.items()}
    for _ in range(3):
        ditto.run_round()
        avg.run_round()
        assert same_bits(ditto.server.state.weights, avg.server.state.weights)
    for client, own in enumerate(own_models(ditto)):
        alone = plain_sgd(server_copy(ditto.setup, "wide", first), in_steps(ditto.setup, client, 9, 6), 0.1)
        assert largest_difference(alone, own) < 1e-6
    with ditto.evaluating():
        for client in ditto.clients:
            assert same_bits(live_model(ditto, client).tensors(), resident(ditto, client).state.personal)


def test_dittos_pull_is_that_of_the_squared_distance() -> None:
    """A step is on the gradient plus λ (v − w̄), for a w̄ that is another than v."""
    f = federation(Ditto(**SGD | {"local_steps": 1}, lam=0.7), models=["logistic"], shares=UNEVEN, rounds=1)
    received, before = dict(f.server.state.weights), own_models(f)
    f.run_round()
    for client, own in enumerate(own_models(f)):
        plain = plain_sgd(server_copy(f.setup, "logistic", before[client]), in_steps(f.setup, client, 2, 6)[1:], 0.1)
        expected = {key: plain[key] - 0.1 * 0.7 * (before[client][key] - received[key]) for key in plain}
        assert largest_difference(expected, own) < 1e-6
        assert largest_difference(plain, own) > 1e-4
