"""MOON: U9, FedAvg without its contrast, and the second round by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from worlds import (
    depth1,
    depth3,
    federation,
    in_steps,
    largest_difference,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.methods.fedavg import FedAvg
from interfuse.methods.moon import MOON, contrast

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 50))


def features(seed: int) -> list[torch.Tensor]:
    return list(torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed)))


def test_nothing_to_be_told_from_is_no_loss() -> None:  # U9
    z, z_global, _ = features(0)
    assert contrast(z, z_global, [], 0.5) == 0


def test_equal_features_cannot_be_told_apart() -> None:  # U9
    z, z_global, _ = features(1)
    assert contrast(z, z_global, [z_global], 0.5) == pytest.approx(0.6931472, abs=1e-6)


@given(st.integers(0, 100), st.floats(0.1, 5), st.floats(0.01, 100))
def test_the_formula_and_its_independence_of_scale(seed: int, temperature: float, scale: float) -> None:
    z, z_global, z_previous = features(seed)
    near, far = (
        torch.exp((z * other).sum(1) / z.norm(dim=1) / other.norm(dim=1) / temperature)
        for other in (z_global, z_previous)
    )
    expected = float((-torch.log(near / (near + far))).mean())
    assert float(contrast(z, z_global, [z_previous], temperature)) == pytest.approx(expected, abs=1e-4)
    assert float(contrast(scale * z, z_global / scale, [z_previous], temperature)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("models", [[wide], [depth1, depth3], ["cnn-bn"]])
def test_without_the_contrast_it_is_fedavg(models: Any) -> None:
    world: dict[str, Any] = {"models": models, "shares": UNEVEN, "dataset": tiny_dataset(rows=50, shape=(1, 4, 4))}
    options: dict[str, Any] = {
        "local_epochs": 2,
        "batch_size": 8,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-5,
    }
    moon = federation(MOON(**options, mu=0), **world, rounds=3).server.state.weights
    assert same_bits(moon, federation(FedAvg(**options), **world, rounds=3).server.state.weights)
    with_it = federation(MOON(**options), **world, rounds=3).server.state.weights
    assert largest_difference(moon, with_it) > 1e-4


@pytest.mark.parametrize("model", [wide, "cnn-bn"])
def test_three_rounds_by_hand(model: Any) -> None:
    """The first has no previous model; the other two models stand still and are in evaluation mode."""
    data = tiny_dataset(shape=(1, 4, 4))
    method = MOON(local_steps=3, batch_size=8, lr=0.1, mu=0.7, temperature=0.3, momentum=0, weight_decay=0)
    f = federation(method, models=[model], clients=1, dataset=data)
    mine, previous = server_copy(f.setup, f.setup.architectures[0], f.server.state.weights), None
    for round in range(3):
        received = copy.deepcopy(mine).eval()
        for x, y in in_steps(f.setup, 0, 3 * (round + 1), 8)[3 * round :]:
            mine.train().zero_grad()
            z = mine.base(x)
            loss = functional.cross_entropy(mine.modular(z), y)
            if previous is not None:
                with torch.no_grad():
                    other, old = received.base(x), previous.base(x)
                near, far = (torch.exp(functional.cosine_similarity(z, t) / 0.3) for t in (other, old))
                loss = loss - 0.7 * torch.log(near / (near + far)).mean()
            loss.backward()
            with torch.no_grad():
                for p in mine.parameters():
                    p -= 0.1 * p.grad
        previous = copy.deepcopy(mine).eval()
        f.run_round()
        assert largest_difference(mine.tensors(), f.server.state.weights) < 1e-5


def test_previous_is_the_last_model_of_the_client_itself_however_long_ago() -> None:
    f = federation(
        MOON(participation=0.5, local_steps=2, batch_size=8, lr=0.05), models=[wide], clients=2
    )  # one is drawn
    last: dict[int, Any] = {}
    for _ in range(12):
        f.run_round()
        for client in f.clients:
            now = vars(resident(f, client)).get("state")  # none before it was first called
            # one client was drawn, so the server has its model; the other's stays as it was
            if now is not None and now.weights and not same_bits(now.weights, last.get(client, {})):
                assert largest_difference(now.weights, f.server.state.weights) < 1e-7
                last[client] = {key: t.clone() for key, t in now.weights.items()}
    assert len(last) == 2


def test_the_bytes_are_those_of_fedavg() -> None:
    both = [federation(kind(local_steps=1), models=["logistic"], rounds=3) for kind in (MOON, FedAvg)]
    totals = [f.exchange.ledger.totals() for f in both]
    assert totals[0].uplink == totals[1].uplink
    assert totals[0].downlink == totals[1].downlink
