"""FedNova: U4, FedAvg where all make the same steps, and the rule key by key where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import (
    Recorder,
    dataset_of,
    depth1,
    depth2,
    federation,
    largest_difference,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.client import Client, ClientId
from interfuse.data import Batch
from interfuse.errors import ConfigError
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fednova import FedNova, Normalised, accumulated
from interfuse.models import SplitModel

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 60))


def test_the_published_value() -> None:  # U4
    assert accumulated(7, 0.9) == pytest.approx(23.046721, abs=1e-9)


@given(st.integers(0, 60), st.floats(0, 0.99))
def test_closed_form_and_the_way_that_momentum_makes(steps: int, momentum: float) -> None:
    closed = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    way = speed = 0.0
    for _ in range(steps):  # gradients of 1 and a rate of 1
        speed = momentum * speed + 1
        way += speed
    assert accumulated(steps, momentum) == pytest.approx(way, rel=1e-9)
    assert accumulated(steps, momentum) == pytest.approx(closed, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("models", [[wide], [depth1, depth2], ["cnn-bn"]])
@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"optimizer": "adam"}, {"aggregation": "group"}])
def test_equal_steps_are_fedavg(models: Any, settings: dict[str, Any]) -> None:
    world: dict[str, Any] = {"models": models, "shares": UNEVEN, "dataset": tiny_dataset(shape=(1, 4, 4)), "rounds": 1}
    options: dict[str, Any] = {"local_steps": 5, "batch_size": 8, "lr": 0.02} | settings
    nova, avg = (federation(kind(**options), **world).server.state.weights for kind in (FedNova, FedAvg))
    assert largest_difference(nova, avg) < 1e-5
    epochs: dict[str, Any] = {**options, "local_steps": None}
    nova, avg = (federation(kind(**epochs), **world).server.state.weights for kind in (FedNova, FedAvg))
    assert largest_difference(nova, avg) > 1e-4


def replies(f: Any, round: int) -> dict[ClientId, Normalised]:
    assert isinstance(f.engine, Recorder)
    return {c: m for r, c, m in f.engine.up if isinstance(m, Normalised) and r.round == round}


def test_the_rule_key_by_key() -> None:
    f = federation(FedNova(batch_size=4, lr=0.1, momentum=0.5), models=[depth1, depth2], shares=UNEVEN, wrap=Recorder)
    for round in (1, 2):
        old = {key: t.double() for key, t in f.server.state.weights.items()}
        f.run_round()
        sent = replies(f, round)
        assert [m.steps for m in sent.values()] == [accumulated(t, 0.5) for t in (3, 5, 9)]
        for key, new in f.server.state.weights.items():
            p: dict[ClientId, float] = {c: len(UNEVEN[c].train) for c in sent if key in sent[c].change}
            p = {c: n / sum(p.values()) for c, n in p.items()}
            tau_eff = sum(p[c] * sent[c].steps for c in p)
            direction = torch.stack([p[c] * sent[c].change[key].double() for c in p]).sum(0)
            assert torch.allclose(old[key] + tau_eff * direction, new.double(), atol=1e-6)


def test_clients_send_their_change_of_a_step() -> None:
    options: dict[str, Any] = {"batch_size": 4, "lr": 0.1, "momentum": 0.5}
    world: dict[str, Any] = {"models": [wide], "shares": shares_of(range(0, 20)), "rounds": 1}
    f = federation(FedNova(**options), **world, wrap=Recorder)
    (sent,) = replies(f, 1).values()
    first = federation(FedNova(**options), **(world | {"rounds": 0})).server.state.weights
    trained = federation(FedAvg(**options), **world).server.state.weights
    expected = {key: (trained[key] - first[key]) / accumulated(5, 0.5) for key in first}
    assert largest_difference(expected, sent.change) < 1e-7


def to_the_mean(model: SplitModel, batch: Batch, step: int) -> Tensor:
    """½ ‖w − mean of x‖²: the optimum of a client is where its data is."""
    return 0.5 * torch.stack([(p - batch.x.mean()).square().sum() for p in model.parameters()]).sum()


def test_the_fixed_point_is_the_weighted_optimum_whatever_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "loss", property(lambda client: to_the_mean))
    x = torch.cat([torch.full((10, 5), 1.0), torch.full((30, 5), -1.0)])
    world: dict[str, Any] = {
        "models": ["logistic"],
        "dataset": dataset_of(x, torch.arange(40) % 3, 3),
        "shares": shares_of(range(10), range(10, 40)),
        "overrides": {0: {"local_steps": 1}, 1: {"local_steps": 9}},
        "rounds": 150,
    }
    options: dict[str, Any] = {"batch_size": 40, "lr": 0.01, "local_steps": 1}
    nova, avg = (federation(kind(**options), **world).server.state.weights for kind in (FedNova, FedAvg))
    optimum = (10 * 1.0 + 30 * -1.0) / 40
    assert all((t - optimum).abs().max() < 0.05 for t in nova.values())
    assert all((t - optimum).abs().min() > 0.3 for t in avg.values())


def test_statistics_of_normalisation_are_averaged_as_they_are() -> None:
    f = federation(
        FedNova(batch_size=4, lr=0.01),
        models=["cnn-bn"],
        shares=UNEVEN,
        dataset=tiny_dataset(shape=(1, 4, 4)),
        wrap=Recorder,
        rounds=2,
    )
    sent = replies(f, 2)
    assert len(sent[0].statistics) == 6
    for key in sent[0].statistics:
        mean = torch.stack([m.statistics[key].double() * len(UNEVEN[c].train) for c, m in sent.items()]).sum(0) / 60
        assert torch.allclose(mean, f.server.state.weights[key].double(), atol=1e-6)


def test_a_client_without_a_step_pulls_nobody() -> None:
    """One sample has no variance, so batch normalisation cannot be trained on it."""
    world: dict[str, Any] = {"models": ["cnn-bn"], "dataset": tiny_dataset(shape=(1, 4, 4))}
    with pytest.raises(ConfigError, match="makes no step"):
        federation(FedNova(batch_size=4, lr=0.05), shares=shares_of([0]), **world)
    f = federation(FedNova(batch_size=4, lr=0.05), shares=shares_of([0], range(1, 30)), **world, rounds=3)
    assert all(t.isfinite().all() for t in f.server.state.weights.values())
