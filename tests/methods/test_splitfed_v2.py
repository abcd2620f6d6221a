"""SplitFed v2 against a loop in plain PyTorch; the order of clients; bytes; which models can be cut so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import COUNTS, CUTS, UNEVEN, cut1, cut3, whole
from worlds import (
    Recorder,
    depth1,
    entries,
    federation,
    in_steps,
    largest_difference,
    live_model,
    plain_training,
    same_bits,
    server_copy,
    wide,
)

from interfuse.errors import ModelError
from interfuse.federation import Federation
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.splitfed_v1 import SplitFedV1
from interfuse.methods.splitfed_v2 import SplitFedV2


def orders(f: Federation) -> list[list[int]]:
    """The clients of every round in the order in which the server trained with them."""
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    found: dict[int, list[int]] = {}
    for request, client, _ in recorder.up:
        turns = found.setdefault(request.round, [])
        if request.handler == "forward" and turns[-1:] != [client]:
            turns.append(client)
    return list(found.values())


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_the_server_part_goes_from_client_to_client(cut: Any, average: bool) -> None:
    method = SplitFedV2(local_steps=2, batch_size=6, lr=0.1, average_clients=average)
    f = federation(method, models=[cut], shares=UNEVEN, wrap=Recorder)
    models = [server_copy(f.setup, f.setup.architectures[0], whole(f, client)) for client in f.clients]
    for round in range(3):
        f.run_round()
        tail = models[0].tensors("modular")
        for client in orders(f)[-1]:
            models[client].load(tail)
            batches = in_steps(f.setup, client, 6, 6)[2 * round : 2 * round + 2]
            plain_training(models[client], batches, torch.optim.SGD(models[client].parameters(), lr=0.1))
            tail = models[client].tensors("modular")
        assert same_bits(tail, f.server.state.tails)
        for model in models:
            model.load(tail)
        if average:
            for key, front in f.server.state.fronts.items():
                mean = sum(n * m.tensors()[key].double() for n, m in zip(COUNTS, models, strict=True)) / 50
                assert float((front - mean).abs().max()) < 1e-6
            for model in models:
                model.load(f.server.state.fronts)
        else:
            for client, model in enumerate(models):
                assert same_bits(model.tensors("base"), live_model(f, client).tensors("base"))


def test_a_cut_at_the_output_is_fedavg() -> None:  # SL-3
    settings: dict[str, Any] = {"models": [cut3], "shares": UNEVEN}
    split = federation(SplitFedV2(local_steps=4, batch_size=6, lr=0.1), **settings)
    average = federation(FedAvg(local_steps=4, batch_size=6, lr=0.1), **settings)
    for _ in range(3):
        split.run_round()
        average.run_round()
    assert largest_difference(whole(split), average.server.state.weights) < 1e-6
    assert not split.server.state.tails


def test_the_order_is_drawn_in_every_round() -> None:
    f = federation(SplitFedV2(local_steps=1, batch_size=4), models=[cut1], clients=4, rounds=8, wrap=Recorder)
    drawn = orders(f)
    assert all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    assert len({tuple(order) for order in drawn}) > 4
    again = federation(SplitFedV2(local_steps=1, batch_size=4), models=[cut1], clients=4, rounds=8, wrap=Recorder)
    assert orders(again) == drawn


def test_a_client_takes_its_whole_epoch_in_its_turn() -> None:
    f = federation(SplitFedV2(batch_size=6), models=[wide], shares=UNEVEN, wrap=Recorder, rounds=1)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    calls = [client for request, client, _ in recorder.up if request.handler == "forward"]
    assert calls == [client for client in orders(f)[0] for _ in range([2, 3, 4][client])]


@pytest.mark.parametrize("average", [True, False])
def test_the_payload_is_that_of_version_1(average: bool) -> None:
    settings: dict[str, Any] = {"local_steps": 3, "batch_size": 4, "average_clients": average}
    one, two = (
        federation(kind(**settings), models=[wide], shares=UNEVEN, rounds=2) for kind in (SplitFedV1, SplitFedV2)
    )

    def volume(f: Federation) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for e in entries(f):
            place = (e.round, e.handler, e.client, e.direction, e.kind)
            found[place] = found.get(place, 0) + e.raw
        return found

    assert volume(one) == volume(two)


def test_clients_need_one_modular_block() -> None:
    with pytest.raises(ModelError, match="modular blocks differ: client 0 .*wide.* client 1 .*depth1.*--models cnn,"):
        federation(SplitFedV2(), models=[wide, depth1])
    federation(SplitFedV1(), models=[wide, depth1])
