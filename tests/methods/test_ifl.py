"""IFL-1 to IFL-9 of the method's sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    alone,
    dataset_of,
    federation,
    in_steps,
    largest_difference,
    linear_head,
    live_model,
    plain_sgd,
    resident,
    run_handler,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.clock import Devices
from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.federation import Federation
from interfuse.messages.encoding import encode
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_ablations import IFLAblations
from interfuse.methods.ifl_fixed_steps import IFLFixedSteps
from interfuse.methods.ifl_partial import IFLPartial
from interfuse.methods.ifl_private_labels import IFLPrivateLabels
from interfuse.methods.local import Local
from interfuse.models import SplitModel, resolve

MIXED = ("logistic", wide, linear_head)
FAST: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "base_lr": 0.1, "modular_lr": 0.1}
make = partial(IFL, **FAST)
control = partial(IFLAblations, **FAST)
joint = partial(IFLFixedSteps, **FAST, modular_steps=1)
UPDATES = {"sequential": make, "joint": joint, "mixed": partial(IFLFixedSteps, **FAST, modular_steps=4)}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_phase_leaves_the_other_block_as_it_is(optimizer: Any) -> None:  # IFL-1
    f = federation(make(optimizer=optimizer), models=MIXED)
    for client in f.clients:
        before = weights_of(f, client)
        own = run_handler(f, f.method.train_base, client=client)  # type: ignore[attr-defined]
        between = weights_of(f, client)
        run_handler(f, f.method.train_modular, FusionPairs((own, own)), client=client)  # type: ignore[attr-defined]
        after = weights_of(f, client)
        base = set(live_model(f, client).tensors("base"))
        assert {key for key in before if not torch.equal(before[key], between[key])} == base
        assert {key for key in before if not torch.equal(between[key], after[key])} == before.keys() - base


def exchanged(models: Any, width: int, **settings: Any) -> tuple[int, int, int]:
    """Raw bytes of one round: up, down by unicast, down by broadcast."""
    f = federation(make(**settings), models=models, width=width, rounds=1)
    totals = f.exchange.ledger.totals("training")
    assert f.exchange.ledger.totals("start").uplink.raw == 0
    return totals.uplink.raw, totals.downlink.raw, totals.downlink_broadcast.raw


@pytest.mark.parametrize(("width", "batch"), [(8, 4), (8, 8), (20, 8)])
def test_bytes_depend_on_clients_batch_and_width_alone(width: int, batch: int) -> None:  # IFL-2
    clients, one = 3, batch * (4 * width + 1)
    expected = (clients * one, clients * clients * one, clients * one)
    for models in (["logistic"], ["mlp"], MIXED):  # P differs
        for local_steps in (0, 1, 7):  # tau
            assert exchanged(models, width, batch_size=batch, local_steps=local_steps) == expected


def test_labels_take_two_bytes_beyond_256_classes() -> None:  # IFL-2
    f = federation(make(batch_size=8), dataset=tiny_dataset(rows=600, classes=300), width=8, rounds=1)
    assert f.exchange.ledger.totals().uplink.raw == 3 * 8 * (4 * 8 + 2)


def test_an_upload_is_the_fusion_outputs_of_a_fresh_batch_and_nothing_else() -> None:  # IFL-3
    f = federation(make(), models=MIXED, wrap=Recorder)
    f.run_round()
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    assert [type(m) for _, _, m in recorder.up] == [FusionOutputs] * 3
    for _, client, sent in recorder.up:
        assert isinstance(sent, FusionOutputs)
        # a round's base phase takes three batches, the upload the fourth; the base block is not trained after it
        x, y = in_steps(f.setup, client, 4, 8)[3]
        with torch.no_grad():
            assert torch.equal(sent.z, live_model(f, client).base(x))
        assert torch.equal(sent.y.long(), y)
    assert sum(len(m.pairs) for _, _, m in recorder.down if isinstance(m, FusionPairs)) == len(recorder.down) * 3
    for _, _, down in recorder.down:
        for pair, (_, _, up) in zip(down.pairs, recorder.up, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(pair.z, up.z)  # type: ignore[attr-defined]
            assert torch.equal(pair.y, up.y)  # type: ignore[attr-defined]


def test_no_message_holds_a_parameter_or_a_gradient() -> None:  # IFL-3
    f = federation(make(), models=MIXED, wrap=Recorder)
    secrets: list[Tensor] = []
    for _ in range(3):
        before = {client: weights_of(f, client) for client in f.clients}
        secrets += [t for weights in before.values() for t in weights.values()]
        f.run_round()
        for client in f.clients:
            after = weights_of(f, client)
            secrets += [*after.values(), *(after[key] - before[client][key] for key in after)]
            model = server_copy(f.setup, f.setup.architectures[client], after)
            x, y = in_steps(f.setup, client, 4 * f.round, 8)[-1]
            functional.cross_entropy(model(x), y).backward()
            secrets += [p.grad for p in model.parameters() if p.grad is not None]
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    traffic = b"|".join(encode(m) for _, _, m in recorder.up + recorder.down)
    # the rows of the secret tensors are looked for, whatever the shape in which they might travel
    rows = [row for t in secrets for row in t.detach().reshape(t.shape[0], -1) if row.unique().numel() > 2]
    assert len(rows) > 100
    assert not any(row.numpy().tobytes() in traffic for row in rows)


def test_what_arrives_is_detached_from_the_base_block() -> None:  # IFL-4
    f = federation(make(), models=MIXED)
    sent = {client: run_handler(f, f.method.train_base, client=client) for client in f.clients}  # type: ignore[attr-defined]
    for client in f.clients:
        model = live_model(f, client)
        loss = torch.stack([functional.cross_entropy(model.modular(s.z), s.y.long()) for s in sent.values()]).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        reached = {key for (key, _), g in zip(model.named_parameters(), gradients, strict=True) if g is not None}
        assert reached == set(model.tensors("modular"))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_equal_modular_blocks_stay_equal(update: Any, optimizer: Any) -> None:  # IFL-5
    f = federation(UPDATES[update](optimizer=optimizer), models=MIXED)
    live_model(f, 2).load(weights_of(f, 0, "modular"))
    for _ in range(3):
        f.run_round()
        assert same_bits(weights_of(f, 0, "modular"), weights_of(f, 2, "modular"))
        matrix = evaluate(f, full=True).composition
        assert matrix is not None
        assert [row[0] for row in matrix] == [row[2] for row in matrix]
    assert not torch.equal(weights_of(f, 0)["logistic.fc1.1.bias"], torch.zeros(8))
    assert [row[0] for row in matrix] != [row[1] for row in matrix]  # an unrelated modular block answers otherwise


def ordered(order: tuple[int, ...], update: str, rounds: int = 3) -> dict[int, dict[str, Tensor]]:
    """The models of three parties that join as clients in this order, by party. Batches are whole shares."""
    data, parts = tiny_dataset(rows=30), [range(0, 8), range(8, 18), range(18, 30)]
    method = UPDATES[update](batch_size=30, modular_lr=0.5)
    f = federation(method, dataset=data, shares=shares_of(*(parts[p] for p in order)), models=[MIXED[p] for p in order])
    for client, party in enumerate(order):
        first = federation(method, dataset=data, shares=shares_of(*parts), models=MIXED)
        live_model(f, client).load(weights_of(first, party))
    for _ in range(rounds):
        f.run_round()
    return {party: weights_of(f, client) for client, party in enumerate(order)}


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_only_the_joint_update_does_not_depend_on_the_order_of_clients(order: tuple[int, ...]) -> None:  # IFL-6
    def gap(update: str) -> float:
        straight, permuted = ordered((0, 1, 2), update), ordered(order, update)
        return max(largest_difference(straight[party], permuted[party]) for party in straight)

    assert gap("joint") < 2e-6
    assert gap("sequential") > 1e-3


def test_one_client_is_local_alternating_training() -> None:  # IFL-6
    settings: dict[str, Any] = {"models": [wide], "clients": 1, "rounds": 4}
    at_once, sequential = federation(joint(), **settings), federation(make(), **settings)
    local = federation(Local(local_steps=3, modular_steps=1, batch_size=8, lr=0.1, modular_lr=0.1), **settings)
    assert same_bits(weights_of(at_once, 0), weights_of(sequential, 0))
    assert same_bits(weights_of(at_once, 0), weights_of(local, 0))


@pytest.mark.parametrize(("update", "turns"), [("sequential", 3), ("joint", 1), ("mixed", 4)])
def test_what_a_client_would_do_alone_takes_as_many_steps(update: Any, turns: int) -> None:
    method = UPDATES[update]()
    together, local = federation(method, rounds=2), federation(alone(method), rounds=2)
    for client in together.clients:
        assert samples_drawn(together, client) == 2 * 8 * (3 + 1)  # the fourth batch of a round is the upload
        assert samples_drawn(local, client) == 2 * 8 * (3 + turns)


def samples_drawn(f: Federation, client: int) -> int:
    order = resident(f, client).order
    return order.epoch * order.size + order.position


def test_without_local_steps_the_modular_block_learns_on_fixed_features() -> None:  # IFL-7
    f = federation(make(local_steps=0), models=MIXED)
    before = {client: weights_of(f, client) for client in f.clients}
    for _ in range(3):
        f.run_round()
    for client in f.clients:
        assert same_bits({k: before[client][k] for k in weights_of(f, client, "base")}, weights_of(f, client, "base"))
        assert all(not torch.equal(before[client][key], t) for key, t in weights_of(f, client, "modular").items())


def test_the_diagonal_of_the_composition_matrix_is_own_model_accuracy() -> None:  # IFL-8
    f = federation(make(), models=MIXED, rounds=3)
    measured = evaluate(f, full=True)
    assert measured.composition is not None
    x, y = f.setup.dataset.normalise(f.setup.dataset.x_test), f.setup.dataset.y_test
    for base in f.clients:
        for modular in f.clients:
            scores = live_model(f, modular).modular(live_model(f, base).base(x))
            assert measured.composition[base][modular] == float((scores.argmax(1) == y).double().mean())
        assert measured.composition[base][base] == measured.common[base]
    assert len({value for row in measured.composition for value in row}) > 2


def test_different_fusion_widths_are_refused_before_anything_runs() -> None:  # IFL-8
    def narrower(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        return resolve("logistic")(sample_shape, classes, width - 1)

    with pytest.raises(ModelError, match=r"client 0 \(logistic\) has 8, client 1 \(.*narrower\) has 7; all must agree"):
        federation(make(), models=["logistic", narrower], start=False)


def softmax_regression_step(weights: Mapping[str, Tensor], z: Tensor, y: Tensor, lr: float) -> dict[str, Tensor]:
    """One step of gradient descent on the mean cross entropy of a linear layer, in closed form."""
    w, b = weights["classifier.weight"].double(), weights["classifier.bias"].double()
    p = torch.softmax(z.double() @ w.T + b, dim=1)
    error = (p - functional.one_hot(y, len(b)).double()) / len(y)
    return {"classifier.weight": w - lr * error.T @ z.double(), "classifier.bias": b - lr * error.sum(0)}


@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_a_linear_modular_block_takes_the_closed_form_step(update: Any) -> None:  # IFL-9
    f = federation(UPDATES[update](), models=["logistic", linear_head], wrap=Recorder)
    before = {client: weights_of(f, client, "modular") for client in f.clients}
    f.run_round()
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    pairs = [m for _, _, m in recorder.up if isinstance(m, FusionOutputs)]
    for client in f.clients:
        expected: Mapping[str, Tensor] = before[client]
        if update == "joint":
            z, y = torch.cat([p.z for p in pairs]), torch.cat([p.y.long() for p in pairs])
            expected = softmax_regression_step(expected, z, y, 0.1)
        else:
            for p in pairs:
                expected = softmax_regression_step(expected, p.z, p.y.long(), 0.1)
        assert largest_difference(expected, weights_of(f, client, "modular")) < 1e-6


def loss_of_reports(model: SplitModel, z: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """The mean negative log-likelihood of reported labels, from the matrix of how often which label is reported."""
    classes, e = 3, math.exp(epsilon)
    flips = (torch.ones(classes, classes) + (e - 1) * torch.eye(classes)) / (e + classes - 1)
    p = torch.softmax(model.modular(z), dim=1) @ flips
    return -p[torch.arange(len(y)), y].log().mean()


def test_the_modular_loss_is_corrected_for_flipped_labels() -> None:
    z, y = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    pairs = [(z[:5], y[:5]), (z[5:], y[5:])]
    method = IFLPrivateLabels(modular_lr=0.5, label_epsilon=1.0)
    f = federation(method, models=[wide], clients=1)
    by_hand, plain = (server_copy(f.setup, f.setup.architectures[0], weights_of(f, 0)) for _ in range(2))
    run_handler(f, method.train_modular, FusionPairs(tuple(FusionOutputs(*pair) for pair in pairs)))
    for model, loss in (
        (by_hand, lambda z, y: loss_of_reports(by_hand, z, y, 1.0)),
        (plain, lambda z, y: functional.cross_entropy(plain.modular(z), y)),
    ):
        optimizer = torch.optim.SGD(model.parameters_of("modular").values(), lr=0.5)
        for batch in pairs:
            optimizer.zero_grad()
            loss(*batch).backward()
            optimizer.step()
    trained = weights_of(f, 0)
    assert largest_difference(trained, dict(by_hand.tensors())) < 1e-6
    assert largest_difference(trained, dict(plain.tensors())) > 1e-2


def test_the_base_phase_is_plain_sgd_through_the_frozen_modular_block() -> None:
    f = federation(make(), models=[wide])
    first = {client: weights_of(f, client) for client in f.clients}
    f.run_round()
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], first[client])
        for parameter in model.parameters_of("modular").values():
            parameter.requires_grad_(False)
        trained = plain_sgd(model, in_steps(f.setup, client, 3, 8), 0.1)
        assert same_bits({k: trained[k] for k in weights_of(f, client, "base")}, weights_of(f, client, "base"))


def test_a_share_smaller_than_a_batch_is_sent_whole() -> None:
    x, y = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    f = federation(make(), dataset=dataset_of(x, y, 3), shares=shares_of(range(8), [8]), rounds=1)
    assert f.exchange.ledger.totals().uplink.raw == (8 + 1) * (4 * 8 + 1)


def pairs_by_round(f: Federation, rounds: int) -> tuple[list[list[FusionOutputs]], dict[tuple[int, int], FusionPairs]]:
    """Uploads of each round, and what came down by round and client."""
    for _ in range(rounds):
        f.run_round()
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    up: list[list[FusionOutputs]] = [[] for _ in range(rounds)]
    for request, _, sent in recorder.up:
        assert isinstance(sent, FusionOutputs)
        up[request.round - 1].append(sent)
    down = {(r.round, client): sent for r, client, sent in recorder.down if isinstance(sent, FusionPairs)}
    return up, down


def test_one_round_late_hands_out_the_pairs_of_the_round_before() -> None:  # E10
    f = federation(control(pairs="late"), models=MIXED, wrap=Recorder)
    first = weights_of(f, 0, "modular")
    f.run_round()
    assert same_bits(weights_of(f, 0, "modular"), first)
    up, down = pairs_by_round(federation(control(pairs="late"), models=MIXED, wrap=Recorder), 3)
    assert {round for round, _ in down} == {2, 3}
    for (round, _), sent in down.items():
        assert all(same_bits({"z": a.z}, {"z": b.z}) for a, b in zip(sent.pairs, up[round - 2], strict=True))


def test_the_control_with_own_pairs_gives_everybody_as_many_steps_on_its_own_alone() -> None:  # E3
    up, down = pairs_by_round(federation(control(pairs="own"), models=MIXED, wrap=Recorder), 2)
    assert len(down) == 6
    for (round, client), sent in down.items():
        assert [torch.equal(pair.z, up[round - 1][client].z) for pair in sent.pairs] == [True] * 3


def test_the_control_with_shuffled_pairs_keeps_all_but_who_belongs_to_whom() -> None:  # E3
    up, down = pairs_by_round(federation(control(pairs="shuffled"), models=MIXED, wrap=Recorder), 3)
    moved = 0
    for (round, _), sent in down.items():
        for pair, own in zip(sent.pairs, up[round - 1], strict=True):
            assert torch.equal(pair.z, own.z)
            assert torch.equal(pair.y.sort().values, own.y.sort().values)
            moved += not torch.equal(pair.y, own.y)
    assert moved > len(down)


def test_those_who_are_drawn_share_and_learn_and_the_others_rest() -> None:
    method = make(participation=0.5)
    f = federation(method, clients=6, wrap=Recorder)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    drawn = set()
    for round in (1, 2, 3, 4):
        before = {client: weights_of(f, client) for client in f.clients}
        f.run_round()
        sent = [client for r, client, _ in recorder.up if r.round == round]
        taught = {client: m for r, client, m in recorder.down if r.round == round}
        assert len(sent) == 3
        assert sorted(taught) == sent
        assert all(len(m.pairs) == 3 for m in taught.values())  # type: ignore[attr-defined]
        for client in f.clients:
            assert same_bits(before[client], weights_of(f, client)) == (client not in sent)
        drawn |= set(sent)
    assert len(drawn) > 3
    # Local beside it: the same clients, as many steps on either block
    assert federation(alone(method), clients=6, rounds=4).exchange.steps.total() == f.exchange.steps.total()


def test_who_misses_the_deadline_is_as_if_never_asked() -> None:
    devices = Devices(step_seconds=1.0, slow=0.5, slowdown=10.0)
    f = federation(IFLPartial(**FAST, deadline=4.0), clients=4, rounds=3, devices=devices)
    untrained = federation(make(), clients=4)
    slow = [client for client, device in enumerate(f.exchange.clock.devices) if device.step_seconds == 10]
    assert len(slow) == 2
    for client in f.clients:
        assert same_bits(weights_of(f, client), weights_of(untrained, client)) == (client in slow)
    assert [(failure.client, failure.kind) for failure in f.exchange.failures] == [(c, "late") for c in slow] * 3
    assert f.exchange.clock.now == pytest.approx(3 * (4 + 2), abs=0.1)  # two pairs are two modular steps
