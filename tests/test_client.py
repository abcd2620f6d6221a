"""What a handler can do: the order of samples, data shares, ``fit`` on them, tensors that travel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import federation, resident, same_bits, setup_of, shares_of, tiny_dataset, wide

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client
from interfuse.data import Batch, ClientData, EpochOrder, Sampling, Share
from interfuse.errors import ConfigError
from interfuse.methods.local import Local
from interfuse.training import Exponential, cross_entropy

order = st.builds(EpochOrder, seed=st.integers(0, 5), client=st.integers(0, 3), size=st.integers(1, 20))


@given(order, st.lists(st.integers(1, 25), max_size=12))
def test_every_epoch_has_every_sample_once(order: EpochOrder, sizes: list[int]) -> None:
    taken = np.concatenate([np.empty(0, np.int64), *(order.take(count) for count in sizes)])
    assert len(taken) == sum(min(count, order.size) for count in sizes)
    assert order.epoch * order.size + order.position == len(taken)
    for start in range(0, len(taken) - order.size + 1, order.size):
        assert sorted(taken[start : start + order.size]) == list(range(order.size))


@given(order, st.lists(st.integers(1, 25), max_size=6), st.lists(st.integers(1, 25), max_size=6))
def test_epoch_and_position_are_all_there_is_to_keep(order: EpochOrder, past: list[int], future: list[int]) -> None:
    for count in past:
        order.take(count)
    resumed = EpochOrder(order.seed, order.client, order.size, order.epoch, order.position)
    for count in future:
        assert np.array_equal(order.take(count), resumed.take(count))


@given(order, st.integers(0, 3), st.integers(1, 25), st.integers(0, 19))
def test_epochs_begin_with_a_new_one_and_keep_the_last_batch(
    order: EpochOrder, count: int, batch: int, begun: int
) -> None:
    if begun:
        order.take(min(begun, order.size))
    first = order.epoch + (order.position > 0)
    batches = list(order.epochs(count, batch))
    assert [len(b) for b in batches] == count * [
        min(batch, order.size - start) for start in range(0, order.size, batch)
    ]
    for epoch in range(count):
        per_epoch = -(-order.size // batch)
        rows = np.concatenate(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        expected = EpochOrder(order.seed, order.client, order.size, first + epoch).take(order.size)
        assert np.array_equal(rows, expected)
    if count:
        assert (order.epoch, order.position) == (first + count, 0)


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from(["shuffled", "stored"]))
def test_a_last_batch_is_dropped_or_spread_and_a_small_share_is_one_batch(size: int, batch: int, order: Any) -> None:
    def batches(last: Any) -> list[np.ndarray]:
        return list(EpochOrder(3, 1, size, sampling=Sampling(order, last)).epochs(1, batch))

    kept, dropped, spread = batches("keep"), batches("drop"), batches("spread")
    whole = size // batch
    if not whole:
        assert [b.tolist() for b in kept] == [b.tolist() for b in dropped] == [b.tolist() for b in spread]
        return
    assert [b.tolist() for b in dropped] == [b.tolist() for b in kept[:whole]]
    assert np.array_equal(np.concatenate(spread), np.concatenate(kept))
    assert len(spread) == whole
    assert {len(b) - size // whole for b in spread} <= {0, 1}
    if order == "stored":
        assert np.array_equal(np.concatenate(kept), np.arange(size))


def test_orders_of_clients_epochs_and_seeds_differ() -> None:
    orders = [
        tuple(EpochOrder(seed, client, 30, epoch).take(30).tolist())
        for seed in range(3)
        for client in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 27


# --- data -----------------------------------------------------------------------------------------


def test_shares_are_rows_of_the_data_set_normalised() -> None:
    data = tiny_dataset(rows=40, dtype=torch.uint8, shape=(1, 4, 4))
    share = Share(np.array([3, 7, 9]), np.array([11, 12]), np.array([20]))
    setup = setup_of(Local(), dataset=data, shares=[share])
    mine = ClientData(data, share, setup.inputs)
    batch = mine.train(np.array([2, 0]))
    assert torch.equal(batch.x, data.normalise(data.x_train[[9, 3]]))
    assert torch.equal(batch.y, data.y_train[[9, 3]])
    assert batch.x.dtype == torch.float32
    raw = mine.raw()
    assert raw.x.dtype == torch.uint8
    assert torch.equal(raw.x, data.x_train[[3, 7, 9]])
    rows = {"validation": [11, 12], "test": [20]}
    for name, wanted in rows.items():
        (found,) = getattr(mine, name)()
        assert torch.equal(found.y, data.y_train[wanted])
        assert torch.equal(found.x, data.normalise(data.x_train[wanted]))
    assert [len(b.y) for b in mine.validation(limit=1)] == [1]
    assert [len(b.y) for b in mine.common_test(chunk=10)] == [10, 10, 4]
    assert torch.cat([b.y for b in mine.common_test(torch.tensor([5, 1]))]).tolist() == data.y_test[[5, 1]].tolist()


def test_an_empty_share_of_validation_has_no_batches() -> None:
    f = federation(Local(), shares=shares_of(range(10)))
    assert list(resident(f, 0).data.validation()) == []


# --- fit ------------------------------------------------------------------------------------------


def client_of(**settings: Any) -> Client[Any]:
    return resident(federation(Local(), models=[wide], **settings), 0)


@pytest.mark.parametrize("given_", [{}, {"steps": 1, "epochs": 1}, {"steps": 1, "batches": []}])
def test_fit_wants_one_of_steps_epochs_and_batches(given_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exactly one of steps, epochs and batches"):
        client_of().fit(cross_entropy, lr=0.1, **given_)


def test_steps_go_on_where_the_last_call_stopped() -> None:
    long, short = client_of(), client_of()
    long.round = short.round = 1
    settings: dict[str, Any] = {"lr": 0.1, "batch_size": 7, "optimizer": "adam", "keep_optimizer": "it"}
    long.fit(cross_entropy, steps=5, **settings)
    for steps in (2, 0, 3):
        short.fit(cross_entropy, steps=steps, **settings)
    assert same_bits(long.model.tensors(), short.model.tensors())
    assert (long.order.epoch, long.order.position) == (short.order.epoch, short.order.position)
    assert same_bits(
        {f"{k}/{s}": t for k, kept in long.optimizers["it"].items() for s, t in kept.items()},
        {f"{k}/{s}": t for k, kept in short.optimizers["it"].items() for s, t in kept.items()},
    )


def test_optimizers_are_kept_by_name_and_only_where_asked() -> None:
    client = client_of()
    client.round = 1
    client.fit(cross_entropy, steps=1, lr=0.1, optimizer="adam")
    assert client.optimizers == {}
    client.fit(cross_entropy, steps=1, lr=0.1, optimizer="adam", train="base", keep_optimizer="one")
    client.fit(cross_entropy, steps=2, lr=0.1, optimizer="adam", train="modular", keep_optimizer="two")
    assert client.optimizers.keys() == {"one", "two"}
    assert client.optimizers["one"].keys() == client.model.tensors("base").keys()
    assert {int(kept["step"]) for kept in client.optimizers["two"].values()} == {2}


def test_schedules_count_rounds_from_0() -> None:
    client = client_of()
    sums = []
    for client.round in (1, 2, 3):
        sums.append(client.fit(cross_entropy, steps=2, lr=Exponential(0.8, 0.5)).learning_rate_sum)
    assert sums == [pytest.approx(1.6), pytest.approx(0.8), pytest.approx(0.4)]


def test_given_batches_leave_the_order_alone() -> None:
    client = client_of()
    client.round = 1
    done = client.fit(cross_entropy, batches=[Batch(torch.ones(3, 5), torch.tensor([0, 1, 2]))], lr=0.1)
    assert (done.steps, done.samples) == (1, 3)
    assert (client.order.epoch, client.order.position) == (0, 0)


def test_tensors_are_those_that_travel_under_a_policy() -> None:
    client = resident(federation(Local(), models=["cnn-bn"], dataset=tiny_dataset(shape=(1, 4, 4))), 0)
    trainable = {key for key, _ in client.model.named_parameters()}
    assert client.tensors(buffers=BufferPolicy.LOCAL).keys() == trainable
    everything = client.tensors().keys()
    assert {key.rsplit(".", 1)[1] for key in everything - trainable} == {"running_mean", "running_var"}
    assert client.tensors("modular").keys() == {"classifier.weight", "classifier.bias"}


def test_recalibration_does_not_touch_the_order() -> None:
    client = resident(federation(Local(), models=["cnn-bn"], dataset=tiny_dataset(shape=(1, 4, 4))), 0)
    client.batch(5)
    before = {key: buffer.clone() for key, buffer in client.model.named_buffers()}
    client.recalibrate(8)
    assert (client.order.epoch, client.order.position) == (0, 5)
    assert not same_bits(before, dict(client.model.named_buffers()))
