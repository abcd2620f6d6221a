"""What holds for SplitFed v1 and v2, with and without averaging of the clients: SL-1 and SL-4 of the sheet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import CUTS, UNEVEN, cut1, whole
from worlds import (
    Recorder,
    entries,
    federation,
    in_steps,
    largest_difference,
    linear_head,
    live_model,
    plain_sgd,
    same_bits,
    server_copy,
    tensors_in,
    weights_of,
    wide,
)

from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.splitfed_v1 import SplitFedV1
from interfuse.methods.splitfed_v2 import SplitFedV2

both = pytest.mark.parametrize("kind", [SplitFedV1, SplitFedV2])
averaging = pytest.mark.parametrize("average", [True, False])


@both
@averaging
@pytest.mark.parametrize("cut", CUTS)
def test_one_client_is_centralised_sgd(kind: Any, average: bool, cut: Any) -> None:  # SL-1
    f = federation(kind(local_steps=2, batch_size=8, lr=0.1, average_clients=average), models=[cut], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], whole(f))
    batches = in_steps(f.setup, 0, 6, 8)
    for round in range(3):
        f.run_round()
        assert same_bits(plain_sgd(model, batches[2 * round : 2 * round + 2], 0.1), whole(f))


def raw_by_kind(f: Federation) -> dict[str, tuple[int, int]]:
    totals = f.exchange.ledger.totals().by_kind
    return {kind: (t.uplink.raw, t.downlink.raw) for kind, t in totals.items()}


@both
@averaging
@pytest.mark.parametrize(("steps", "batch"), [(2, 4), (4, 4), (2, 8)])
def test_only_the_part_without_weights_grows_with_samples(  # SL-4
    kind: Any, average: bool, steps: int, batch: int
) -> None:
    method = kind(local_steps=steps, batch_size=batch, average_clients=average)
    f = federation(method, models=[wide], rounds=2)
    clients, width, rounds, samples = 3, 8, 2, steps * batch
    front = 4 * sum(t.numel() for t in wide((5,), 3, width).tensors("base").values())
    weights = {"Weights": (rounds * clients * front, rounds * clients * front)}
    assert raw_by_kind(f) == (weights if average else {}) | {
        "Smashed": (rounds * clients * samples * (4 * width + 1), 0),
        "CutGradient": (0, rounds * clients * samples * 4 * width),
    }
    assert not [entry for entry in entries(f) if entry.heading == "start"]


@both
def test_fronts_that_are_not_averaged_never_travel(kind: Any) -> None:
    f = federation(
        kind(local_steps=2, batch_size=6, lr=0.1, average_clients=False), models=[wide], shares=UNEVEN, wrap=Recorder
    )
    first = [weights_of(f, client) for client in f.clients]
    assert largest_difference(first[0], first[1]) > 0.1
    for _ in range(2):
        f.run_round()
        evaluate(f, full=True)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    sent = {key for _, _, m in recorder.up + recorder.down if isinstance(m, Weights) for key in m.tensors}
    assert sent == set(f.server.state.tails)
    fronts = [live_model(f, client).tensors("base") for client in f.clients]
    travelled = {t.numpy().tobytes() for t in tensors_in(m for _, _, m in recorder.up + recorder.down)}
    assert not any(t.numpy().tobytes() in travelled for front in fronts for t in front.values())
    assert not any(torch.equal(first[0][key], t) for key, t in fronts[0].items())


@both
@averaging
def test_different_fronts_before_one_tail(kind: Any, average: bool) -> None:
    method = kind(local_steps=3, batch_size=6, lr=0.1, average_clients=average)
    f = federation(method, models=["logistic", linear_head], shares=UNEVEN, rounds=2)
    assert set(f.server.state.tails) == {"classifier.weight", "classifier.bias"}
    composition = evaluate(f, full=True).composition
    assert composition is not None
    assert all(row == row[:1] * 3 for row in composition)  # one tail, whoever's
    assert composition[0] != composition[1]
    assert (composition[0] == composition[2]) == average  # clients 0 and 2 have one front where it is averaged


@both
@averaging
def test_adam_starts_anew_where_its_part_was_averaged(kind: Any, average: bool) -> None:
    method = kind(local_steps=2, batch_size=8, lr=0.05, optimizer="adam", average_clients=average)
    f = federation(method, models=[cut1], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], whole(f))
    batches, anew = in_steps(f.setup, 0, 6, 8), []
    front, tail = (
        torch.optim.Adam(model.parameters_of(part).values(), lr=0.05, fused=True) for part in ("base", "modular")
    )
    for round in range(3):
        if average and round:
            anew = [front := torch.optim.Adam(model.parameters_of("base").values(), lr=0.05, fused=True)]
        if kind is SplitFedV1 and round:
            anew = [tail := torch.optim.Adam(model.parameters_of("modular").values(), lr=0.05, fused=True)]
        for x, y in batches[2 * round : 2 * round + 2]:
            for optimizer in (front, tail):
                optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            for optimizer in (front, tail):
                optimizer.step()
        f.run_round()
        assert same_bits({key: t.detach() for key, t in model.state_dict().items()}, whole(f))
    assert bool(anew) == (average or kind is SplitFedV1)
