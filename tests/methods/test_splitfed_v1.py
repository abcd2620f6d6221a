"""SplitFed v1 against FedAvg and centralised training: SL-1 to SL-3 of the sheet, and U19."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import COUNTS, CUTS, UNEVEN, cut0, cut1, cut3, whole
from worlds import (
    Recorder,
    federation,
    in_steps,
    largest_difference,
    live_model,
    plain_sgd,
    plain_training,
    resident,
    same_bits,
    server_copy,
    shares_of,
    wide,
)

from interfuse.methods.fedavg import FedAvg
from interfuse.methods.splitfed_v1 import SplitFedV1


@pytest.mark.parametrize("cut", CUTS)
def test_one_client_is_centralised_sgd_step_by_step(cut: Any) -> None:  # SL-1, U19
    f = federation(SplitFedV1(local_steps=1, batch_size=8, lr=0.1), models=[cut], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], whole(f))
    batches = in_steps(f.setup, 0, 9, 8)
    for batch in batches:
        f.run_round()
        assert same_bits(plain_sgd(model, [batch], 0.1), dict(whole(f)))
    assert all(t.isfinite().all() for t in whole(f).values())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_client_is_centralised_training_over_whole_rounds(cut: Any, optimizer: Any) -> None:  # SL-1, U19
    f = federation(SplitFedV1(local_steps=4, batch_size=8, lr=0.05, optimizer=optimizer), models=[cut], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], whole(f))
    batches = in_steps(f.setup, 0, 12, 8)
    for round in range(3):
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        plain_training(model, batches[4 * round : 4 * round + 4], kind(model.parameters(), lr=0.05, fused=True))
        f.run_round()
    assert same_bits(model.tensors(), dict(whole(f)))


@pytest.mark.parametrize("cut", CUTS)
def test_full_batches_are_fedavg(cut: Any) -> None:  # SL-2, U19
    settings: dict[str, Any] = {"models": [cut], "shares": shares_of(range(0, 20), range(20, 40), range(40, 60))}
    split = federation(SplitFedV1(local_steps=1, batch_size=20, lr=0.1), **settings)
    average = federation(FedAvg(local_steps=1, batch_size=20, lr=0.1), **settings)
    assert same_bits(dict(whole(split)), average.server.state.weights)
    for _ in range(3):
        split.run_round()
        average.run_round()
        assert largest_difference(whole(split), average.server.state.weights) < 1e-6


@pytest.mark.parametrize("cut", [cut0, cut3])
def test_a_cut_at_either_end_averages_whole_copies(cut: Any) -> None:  # SL-3
    # uneven shares and several steps: with an empty part on one side the other is all of FedAvg's model
    settings: dict[str, Any] = {"models": [cut], "shares": UNEVEN}
    split = federation(SplitFedV1(local_steps=4, batch_size=6, lr=0.1), **settings)
    average = federation(FedAvg(local_steps=4, batch_size=6, lr=0.1), **settings)
    for _ in range(3):
        split.run_round()
        average.run_round()
    assert largest_difference(whole(split), average.server.state.weights) < 1e-6
    parts = (len(split.server.state.fronts), len(split.server.state.tails))
    assert parts == ((0, 6) if cut is cut0 else (6, 0))


def test_clients_leave_the_round_when_their_epoch_is_over() -> None:
    f = federation(SplitFedV1(batch_size=6, lr=0.1), models=[wide], shares=UNEVEN, wrap=Recorder, rounds=1)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    calls = [client for request, client, _ in recorder.up if request.handler == "forward"]
    assert [calls.count(client) for client in f.clients] == [2, 3, 4]


def test_the_same_rows_as_fedavg_in_a_round_of_one_epoch() -> None:
    f = federation(SplitFedV1(batch_size=6, lr=0.1), models=[wide], shares=UNEVEN, rounds=1)
    drawn = [(resident(f, c).order.epoch, resident(f, c).order.position) for c in f.clients]
    assert drawn == [(1, 3), (1, 1), (1, 0)]  # the last batch is filled from the next epoch


def test_the_server_trains_a_copy_for_each_client() -> None:
    f = federation(SplitFedV1(local_steps=3, batch_size=6, lr=0.1), models=[cut1], shares=UNEVEN)
    first = dict(whole(f))
    f.run_round()
    trained = []
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[0], first)
        trained.append(plain_sgd(model, in_steps(f.setup, client, 3, 6), 0.1))
    mean = {
        k: torch.stack([n * t[k].double() for n, t in zip(COUNTS, trained, strict=True)]).sum(0) / 50 for k in first
    }
    assert largest_difference(mean, whole(f)) < 1e-6


def test_without_averaging_of_clients_only_the_server_copies_are_averaged() -> None:
    method = SplitFedV1(local_steps=3, batch_size=6, lr=0.1, average_clients=False)
    f = federation(method, models=[cut1], shares=UNEVEN)
    models = [server_copy(f.setup, f.setup.architectures[0], whole(f, client)) for client in f.clients]
    for round in range(3):
        f.run_round()
        trained = [
            plain_sgd(model, in_steps(f.setup, client, 9, 6)[3 * round : 3 * round + 3], 0.1)
            for client, model in enumerate(models)
        ]
        for key, tail in f.server.state.tails.items():
            mean = sum(n * t[key].double() for n, t in zip(COUNTS, trained, strict=True)) / 50
            assert float((tail - mean).abs().max()) < 1e-6
        for client, model in enumerate(models):
            assert largest_difference(model.tensors("base"), live_model(f, client).tensors("base")) < 1e-6
            model.load(f.server.state.tails)
