"""FedBuff against its algorithm written down once more, and FedAvg as its synchronous case."""

from __future__ import annotations

import heapq
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import (
    Recorder,
    federation,
    in_steps,
    largest_difference,
    plain_sgd,
    server_copy,
    setup_of,
    tiny_dataset,
)

from interfuse.aggregation import counted_mean, moved
from interfuse.clock import Devices, devices_of
from interfuse.messages import Change
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedbuff import FedBuff

SECONDS: dict[str, Any] = {"step_seconds": 1.0, "uplink": math.inf, "downlink": math.inf}
FAST: dict[str, Any] = {"batch_size": 4, "lr": 0.1}


def by_hand(
    devices: Devices, rounds: int, replies: int, steps: int, damping: float, server_lr: float
) -> dict[str, Tensor]:
    """Algorithm 1 of the paper, with plain SGD and a queue of events."""
    setup = setup_of(FedBuff(), clients=4, devices=devices)
    seconds = [device.step_seconds * steps for device in devices_of(devices, 0, 4)]
    weights = {k: t.detach().clone() for k, t in setup.build("logistic", "server", "new").tensors().items()}
    drawn = [in_steps(setup, client, 120, 4) for client in range(4)]

    def train(client: int) -> dict[str, Tensor]:
        mine, drawn[client] = drawn[client][:steps], drawn[client][steps:]
        trained = plain_sgd(server_copy(setup, "logistic", weights), mine, 0.1)
        return {key: trained[key] - weights[key] for key in weights}

    version, queue = 1, [(seconds[client], client, 1, train(client)) for client in range(4)]
    heapq.heapify(queue)
    for version in range(1, rounds + 1):
        buffer: list[dict[str, Tensor]] = []
        again: list[tuple[float, int]] = []
        while len(buffer) < replies:
            for moment, client in again:
                heapq.heappush(queue, (moment + seconds[client], client, version, train(client)))
            moment, client, begun, change = heapq.heappop(queue)
            buffer.append({key: t / (1 + version - begun) ** damping for key, t in change.items()})
            again = [(moment, client)]
        weights = {key: t + server_lr * sum(b[key] for b in buffer) / replies for key, t in weights.items()}
        for moment, client in again:  # it begins with the new model
            heapq.heappush(queue, (moment + seconds[client], client, version + 1, train(client)))
    return weights


@pytest.mark.parametrize(("replies", "damping", "server_lr"), [(1, 0.5, 1.0), (3, 0.5, 1.0), (2, 0.0, 0.5)])
def test_the_model_is_that_of_the_algorithm_by_hand(replies: int, damping: float, server_lr: float) -> None:
    devices = Devices(slow=0.5, slowdown=3.0, spread=0.2, **SECONDS)
    method = FedBuff(replies=replies, damping=damping, server_lr=server_lr, local_steps=3, **FAST)
    f = federation(method, clients=4, rounds=6, devices=devices)
    wanted = by_hand(devices, 6, replies, 3, damping, server_lr)
    assert largest_difference(f.server.state.weights, wanted) < 1e-5


def test_with_equal_devices_and_a_buffer_for_all_it_is_fedavg() -> None:
    devices = Devices(**SECONDS)
    fedbuff = federation(FedBuff(local_steps=3, **FAST), clients=4, rounds=1, devices=devices)
    fedavg = federation(FedAvg(local_steps=3, weights="uniform", **FAST), clients=4, rounds=1, devices=devices)
    assert largest_difference(fedbuff.server.state.weights, fedavg.server.state.weights) < 1e-6


def test_clients_send_what_training_changed() -> None:
    f = federation(FedBuff(local_steps=2, **FAST), clients=2, rounds=1, wrap=Recorder)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    _, client, change = recorder.up[0]
    assert isinstance(change, Change)
    received = next(m for _, c, m in recorder.down if c == client)
    start = server_copy(f.setup, "logistic", received.tensors)  # type: ignore[attr-defined]
    trained = plain_sgd(start, in_steps(f.setup, client, 2, 4), 0.1)
    for key, tensor in change.change.items():
        torch.testing.assert_close(tensor, trained[key] - received.tensors[key])  # type: ignore[attr-defined]


def test_two_changes_of_a_variance_make_no_variance_below_zero() -> None:
    """Two clients that took it from 1.0 to 0.1, one of them a model late: as a sum of changes it would be −0.536."""
    old, late = {"running_var": torch.tensor([1.0])}, 2**-0.5
    first = counted_mean(old, [({"running_var": None}, moved(old, {}, {"running_var": torch.tensor([0.1])}), 1.0)])
    second = moved(first, {}, {"running_var": torch.tensor([0.1])}, mix=late)
    assert second["running_var"].item() == pytest.approx(0.1)


VARIANCES = st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=5)


@given(st.floats(0, 1e4, width=32), VARIANCES, st.lists(st.integers(0, 40), min_size=5, max_size=5), st.floats(0, 3))
def test_statistics_stay_between_the_old_ones_and_those_that_were_sent(
    old: float, sent: list[float], staleness: list[int], damping: float
) -> None:
    server = {"running_var": torch.tensor([old])}
    scales = [(1 + late) ** -damping for late in staleness[: len(sent)]]
    received = [{"running_var": torch.tensor([variance])} for variance in sent]
    new = [moved(server, {}, own, 4.0 * s, s) for own, s in zip(received, scales, strict=True)]
    mean = counted_mean(server, [({"running_var": None}, own, 1.0) for own in new])["running_var"].item()
    low, high = min(old, *sent), max(old, *sent)
    assert low - 1e-6 * high <= mean <= high + 1e-6 * high


def test_running_variances_are_those_of_the_clients_however_long_the_servers_step() -> None:
    devices = Devices(slow=0.5, slowdown=5.0, **SECONDS)
    method = FedBuff(replies=2, server_lr=3.0, local_steps=3, batch_size=4, lr=0.01)
    world: dict[str, Any] = {"models": ["cnn-bn"], "dataset": tiny_dataset(shape=(1, 6, 6)), "devices": devices}
    f = federation(method, clients=4, wrap=Recorder, **world)
    first = f.server.state.weights
    for _ in range(8):
        f.run_round()
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        sent = [m.statistics for _, _, m in recorder.up if isinstance(m, Change)]
        assert sent[0]
        for key in sent[0]:
            known, new = torch.stack([first[key], *(own[key] for own in sent)]), f.server.state.weights[key]
            assert (known.amin(0) - 1e-6 <= new).all()
            assert (new <= known.amax(0) + 1e-6).all()
