"""FedAvg: U1, one centralised step, nested depths (U8, U24), the four buffer policies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from worlds import (
    Recorder,
    depth1,
    depth2,
    depth3,
    everything_owned,
    federation,
    in_epochs,
    in_steps,
    largest_difference,
    live_model,
    plain_sgd,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.aggregation import BufferPolicy
from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.local import Local

UNEVEN = [range(0, 7), range(7, 20), range(20, 50)]


def sent_up(f: Federation, round: int) -> dict[int, dict[str, Tensor]]:
    """What every client returned in a round of training."""
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    return {
        client: dict(m.tensors)
        for request, client, m in recorder.up
        if isinstance(m, Weights) and request.round == round and request.heading == "training"
    }


def mean_of(sent: dict[int, dict[str, Tensor]], counts: dict[int, float]) -> dict[str, Tensor]:
    """In float64, key by key over those who sent it: sum of count times value, over the sum of counts."""
    found = {}
    for key in {key for tensors in sent.values() for key in tensors}:
        holders = [client for client in sent if key in sent[client]]
        summed = torch.stack([sent[c][key].double() * counts[c] for c in holders]).sum(0)
        found[key] = summed / sum(counts[c] for c in holders)
    return found


@pytest.mark.parametrize("steps", [{"local_steps": 5}, {"local_epochs": 2}])
def test_one_client_is_local_sgd(steps: dict[str, int]) -> None:  # U1
    settings: dict[str, Any] = {"models": [wide], "clients": 1}
    f = federation(FedAvg(**steps, batch_size=8, lr=0.1), **settings)
    first = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
    name = f.setup.architectures[0]
    local = federation(Local(**steps, batch_size=8, lr=0.1), **settings)
    live_model(local, 0).load(first)
    for _ in range(3):
        f.run_round()
        local.run_round()
    batches = in_steps(f.setup, 0, 15, 8) if "local_steps" in steps else in_epochs(f.setup, 0, 6, 8)
    plain = plain_sgd(server_copy(f.setup, name, first), batches, 0.1)
    assert same_bits(plain, f.server.state.weights)
    assert same_bits(plain, live_model(local, 0).state_dict())


@pytest.mark.parametrize("models", [[wide], ["cnn"]])
def test_full_batches_are_one_centralised_step(models: Any) -> None:
    data = tiny_dataset(rows=50, shape=(1, 4, 4))
    f = federation(FedAvg(batch_size=50, lr=0.1), models=models, dataset=data, shares=shares_of(*UNEVEN))
    for _ in range(3):
        model = server_copy(f.setup, f.setup.architectures[0], f.server.state.weights)
        together = plain_sgd(model, [(data.normalise(data.x_train), data.y_train)], 0.1)
        f.run_round()
        assert largest_difference(together, f.server.state.weights) < 1e-6


@pytest.mark.parametrize("rule", ["samples", "uniform"])
def test_the_server_holds_the_mean_under_either_rule(rule: Any) -> None:
    f = federation(FedAvg(batch_size=8, lr=0.1, weights=rule), models=[wide], shares=shares_of(*UNEVEN), wrap=Recorder)
    counts = {c: float(len(rows)) if rule == "samples" else 1.0 for c, rows in enumerate(UNEVEN)}
    for round in (1, 2):
        f.run_round()
        assert largest_difference(mean_of(sent_up(f, round), counts), f.server.state.weights) < 1e-6


def test_every_client_trains_from_the_mean() -> None:
    f = federation(FedAvg(local_steps=3, batch_size=8, lr=0.1), models=[wide], shares=shares_of(*UNEVEN), wrap=Recorder)
    f.run_round()
    middle = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
    f.run_round()
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[0], middle)
        expected = plain_sgd(model, in_steps(f.setup, client, 6, 8)[3:], 0.1)
        assert same_bits(expected, sent_up(f, 2)[client])


def test_adam_starts_anew_each_round() -> None:
    f = federation(FedAvg(local_steps=2, batch_size=8, lr=0.01, optimizer="adam"), models=[wide], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], f.server.state.weights)
    batches = in_steps(f.setup, 0, 6, 8)
    for round in range(3):
        adam = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        for x, y in batches[2 * round : 2 * round + 2]:
            adam.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            adam.step()
        f.run_round()
    assert same_bits({k: t.detach() for k, t in model.state_dict().items()}, f.server.state.weights)


def test_nested_depths_are_averaged_key_by_key_over_their_holders() -> None:  # U8
    f = federation(
        FedAvg(batch_size=8, lr=0.1), models=[depth1, depth2, depth3], shares=shares_of(*UNEVEN), wrap=Recorder
    )
    for round in (1, 2):
        before = f.server.state.weights
        f.run_round()
        sent = sent_up(f, round)
        assert {c: {key.split(".")[0] for key in tensors} for c, tensors in sent.items()} == {
            0: {"stem", "classifier"},
            1: {"stem", "block1", "classifier"},
            2: {"stem", "block1", "block2", "classifier"},
        }
        after = f.server.state.weights
        assert largest_difference(mean_of(sent, {0: 7, 1: 13, 2: 30}), after) < 1e-6
        own = {key for key in after if key.startswith("block2")}
        assert same_bits({key: sent[2][key] for key in own}, {key: after[key] for key in own})
        assert not any(torch.equal(before[key], after[key]) for key in after)
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        received = {c: m for r, c, m in recorder.down if r.round == round and isinstance(m, Weights)}
        for client, message in received.items():
            assert same_bits(dict(message.tensors), {key: before[key] for key in f.clients.profiles[client].keys})


def test_keys_that_nobody_trained_keep_their_value() -> None:  # U8
    f = federation(FedAvg(participation=0.4, batch_size=8), models=[depth1, depth2, depth3], wrap=Recorder)
    for round in range(1, 9):
        before = f.server.state.weights
        f.run_round()
        (drawn,) = sent_up(f, round)
        for key, tensor in f.server.state.weights.items():
            assert torch.equal(before[key], tensor) == (key not in f.clients.profiles[drawn].keys)


def test_clients_of_one_depth_are_evaluated_equally() -> None:  # U24
    f = federation(FedAvg(batch_size=8, lr=0.3), models=[depth1, depth3], clients=4, rounds=2)
    accuracy = evaluate(f, full=True).common
    assert (accuracy[0], accuracy[1]) == (accuracy[2], accuracy[3])
    with f.evaluating():
        for client in f.clients:
            held = {key: f.server.state.weights[key] for key in f.clients.profiles[client].keys}
            assert same_bits(held, resident(f, client).model.state_dict())


def test_models_that_disagree_on_a_shape_are_refused() -> None:
    def narrow_stem(sample_shape: tuple[int, ...], classes: int, width: int) -> Any:
        return depth1(sample_shape, classes, width - 1)

    with pytest.raises(ModelError, match="clients 0 .* and 1 .* differ in the shape of stem"):
        federation(FedAvg(), models=[depth1, narrow_stem])


# --- buffers --------------------------------------------------------------------------------------


IMAGES = tiny_dataset(rows=48, shape=(1, 6, 6))
HALVES = shares_of(range(0, 16), range(16, 48))


def with_buffers(policy: str, rounds: int = 0, **settings: Any) -> Federation:
    method = FedAvg(batch_size=8, lr=0.05, buffers=BufferPolicy(policy))
    return federation(
        method,
        models=["cnn-bn"],
        width=9,
        dataset=IMAGES,
        wrap=Recorder,
        rounds=rounds,
        **{"shares": HALVES, **settings},
    )


def is_statistic(key: str) -> bool:
    return "running" in key or "num_batches" in key


def travelled(f: Federation) -> set[str]:
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    return {key for _, _, m in recorder.up + recorder.down if isinstance(m, Weights) for key in m.tensors}


@pytest.mark.parametrize("policy", list(BufferPolicy))
def test_running_statistics_travel_under_aggregate_alone(policy: BufferPolicy) -> None:
    f = with_buffers(policy, rounds=2)
    evaluate(f, full=True)
    found = travelled(f)
    assert any("running_mean" in key for key in found) == (policy is BufferPolicy.AGGREGATE)
    assert any(is_statistic(key) for key in f.server.state.weights) == (policy is BufferPolicy.AGGREGATE)
    assert not any("num_batches" in key for key in found)
    assert {key for key in found if not is_statistic(key)} == set(dict(f.setup.build("cnn-bn").named_parameters()))


def test_aggregate_the_server_holds_the_mean_of_the_running_statistics() -> None:
    f = with_buffers("aggregate")
    for round in (1, 2):
        f.run_round()
        sent = sent_up(f, round)
        statistics = {c: {k: t for k, t in tensors.items() if is_statistic(k)} for c, tensors in sent.items()}
        assert len(statistics[0]) == 6
        assert largest_difference(statistics[0], statistics[1]) > 1e-3
        held = {k: t for k, t in f.server.state.weights.items() if is_statistic(k)}
        assert largest_difference(mean_of(statistics, {0: 16, 1: 32}), held) < 1e-6
    plain = with_buffers("aggregate", shares=shares_of(range(48)), rounds=2)
    one = server_copy(
        plain.setup, "cnn-bn", with_buffers("aggregate", shares=shares_of(range(48))).server.state.weights
    )
    trained = plain_sgd(one, in_epochs(plain.setup, 0, 2, 8), 0.05)
    assert same_bits({k: trained[k] for k in plain.server.state.weights}, plain.server.state.weights)


def test_local_statistics_stay_with_their_client_and_go_on_between_rounds() -> None:
    alone = with_buffers("local", shares=shares_of(range(48)))
    model = server_copy(alone.setup, "cnn-bn", alone.server.state.weights)
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            buffer.fill_(1 if key.endswith("var") else 0)
    for _ in range(3):
        alone.run_round()
    trained = plain_sgd(model, in_epochs(alone.setup, 0, 3, 8), 0.05)
    kept = resident(alone, 0).owned()
    assert same_bits(
        {f"networks/model/{k}": t for k, t in trained.items() if is_statistic(k)},
        {k: t for k, t in kept.items() if k.startswith("networks/model/")},
    )
    f = with_buffers("local", rounds=3)
    own = [{k: t for k, t in resident(f, c).owned().items() if "running" in k} for c in f.clients]
    assert largest_difference(own[0], own[1]) > 1e-3
    accuracy = evaluate(f, full=True)
    for client in f.clients:
        model = server_copy(f.setup, "cnn-bn", f.server.state.weights)
        model.load({k.removeprefix("networks/model/"): t for k, t in own[client].items()})
        with model.evaluating():
            hits = model(IMAGES.normalise(IMAGES.x_test)).argmax(1) == IMAGES.y_test
        assert accuracy.common[client] == float(hits.double().mean())


def test_batch_statistics_predict_with_those_of_the_batch() -> None:
    f = with_buffers("batch-statistics", rounds=3)
    model = server_copy(f.setup, "cnn-bn", f.server.state.weights).train()
    x = IMAGES.normalise(IMAGES.x_test)
    with f.evaluating():
        mine = resident(f, 0).model
        for batch in (x, x[:5] * 3 + 1):
            with mine.evaluating():
                predicted = f.method.predict(resident(f, 0), batch)
            assert torch.allclose(model(batch), predicted, atol=1e-6)
            with mine.evaluating():
                assert not torch.allclose(mine(batch), predicted, atol=1e-3)


def test_recalibrate_takes_the_statistics_of_the_clients_own_data() -> None:
    # batches of more than a share: one batch of all data gives the statistics of the data
    method = FedAvg(batch_size=48, lr=0.05, buffers=BufferPolicy.RECALIBRATE)
    f = federation(method, models=["cnn-bn"], width=9, dataset=IMAGES, shares=HALVES, rounds=2)
    with f.evaluating():
        for client in f.clients:
            model = resident(f, client).model
            x = IMAGES.normalise(IMAGES.x_train[torch.from_numpy(HALVES[client].train)])
            convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
            first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
            with torch.no_grad():
                z = convolution(x)
            assert first.running_mean is not None
            assert first.running_var is not None
            assert torch.allclose(first.running_mean, z.mean((0, 2, 3)), atol=1e-6)
            assert torch.allclose(first.running_var, z.var((0, 2, 3)), atol=1e-5)
            assert torch.equal(convolution.weight, f.server.state.weights["cnn-bn.conv1.0.weight"])


# --- groups ---------------------------------------------------------------------------------------


def of_group(f: Federation, name: str) -> dict[str, Tensor]:
    """The server's model of one architecture."""
    return {k.removeprefix(f"{name}:"): t for k, t in f.server.state.weights.items() if k.startswith(f"{name}:")}


def test_groups_are_federations_of_their_own() -> None:  # FedIN, eq. 20 and 21
    method = FedAvg(local_steps=3, batch_size=8, lr=0.1, aggregation="group")
    shares = shares_of(range(0, 7), range(7, 20), range(20, 45), range(45, 60))
    f = federation(method, models=[depth1, depth2], shares=shares, wrap=Recorder)
    counts = {0: 7, 1: 13, 2: 25, 3: 15}
    for round in (1, 2):
        before = {name: of_group(f, name) for name in ("depth1", "depth2")}
        f.run_round()
        sent = sent_up(f, round)
        for client, tensors in sent.items():
            model = server_copy(f.setup, f.setup.architectures[client], before[f.setup.architectures[client]])
            batches = in_steps(f.setup, client, 3 * round, 8)[-3:]
            assert same_bits(plain_sgd(model, batches, 0.1), tensors)
        for name, members in (("depth1", (0, 2)), ("depth2", (1, 3))):
            mean = mean_of({c: sent[c] for c in members}, {c: float(counts[c]) for c in members})
            assert largest_difference(mean, of_group(f, name)) < 1e-6
    assert (
        largest_difference({"": of_group(f, "depth1")["stem.1.bias"]}, {"": of_group(f, "depth2")["stem.1.bias"]}) > 0
    )
    with f.evaluating():
        for client, name in enumerate(f.setup.architectures):
            assert same_bits(of_group(f, name), resident(f, client).model.state_dict())


def test_groups_of_one_are_local_training() -> None:
    settings: dict[str, Any] = {"models": [depth1, depth2, depth3], "shares": shares_of(*UNEVEN)}
    f = federation(FedAvg(local_steps=4, batch_size=8, lr=0.1, aggregation="group"), **settings)
    models = [server_copy(f.setup, name, of_group(f, name)) for name in f.setup.architectures]
    for _ in range(2):
        f.run_round()
    for client, (name, model) in enumerate(zip(f.setup.architectures, models, strict=True)):
        assert same_bits(plain_sgd(model, in_steps(f.setup, client, 8, 8), 0.1), of_group(f, name))


def test_one_architecture_is_one_group() -> None:
    settings: dict[str, Any] = {"models": [wide], "shares": shares_of(*UNEVEN), "rounds": 3}
    group = federation(FedAvg(participation=0.7, lr=0.1, aggregation="group"), **settings)
    assert same_bits(
        of_group(group, "wide"), federation(FedAvg(participation=0.7, lr=0.1), **settings).server.state.weights
    )


def test_a_group_nobody_was_drawn_from_keeps_its_model() -> None:
    f = federation(FedAvg(participation=0.5, local_steps=1, aggregation="group"), models=[depth1, depth2], clients=2)
    seen = set()
    for _ in range(8):
        before = {name: of_group(f, name) for name in ("depth1", "depth2")}
        f.run_round()
        changed = tuple(name for name in before if not same_bits(before[name], of_group(f, name)))
        assert len(changed) == 1
        seen.add(changed)
    assert len(seen) == 2


def test_groups_may_disagree_on_shapes() -> None:
    def narrow(sample_shape: tuple[int, ...], classes: int, width: int) -> Any:
        return depth1(sample_shape, classes, width - 1)

    narrow.__qualname__ = "models/mine.py:narrow"
    f = federation(FedAvg(aggregation="group"), models=[depth1, narrow], clients=4, rounds=1)
    assert len(f.server.state.weights) == 2 * 4
    assert len([key for key in everything_owned(f) if key.startswith("server:")]) == 2 * 4


@pytest.mark.parametrize(
    ("models", "clients", "aggregation", "expected"),
    [
        (["mlp", "logistic"], 2, "layerwise", "No two clients have a tensor in common"),
        (["mlp", "logistic"], 2, "group", "No two clients have one architecture"),
        (["mlp", "logistic"], 3, "layerwise", None),
        (["mlp", "logistic"], 3, "group", None),
        ([depth1, depth2], 2, "layerwise", None),
        ([depth1, depth2], 2, "group", "No two clients have one architecture"),
        (["mlp"], 1, "layerwise", None),
    ],
)
def test_a_federation_without_anything_to_average_says_so(
    models: Any, clients: int, aggregation: Any, expected: str | None
) -> None:
    f = federation(FedAvg(aggregation=aggregation), models=models, clients=clients, start=False)
    notice = f.method.notice(f.clients.profiles)
    assert (notice is None) == (expected is None)
    if notice is not None:
        assert expected in notice.text  # type: ignore[operator]
        assert "--models cnn" in notice.remedy
