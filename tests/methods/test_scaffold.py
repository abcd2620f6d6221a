"""SCAFFOLD: U3, its first round, and what it is with one client."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    depth1,
    depth2,
    federation,
    in_steps,
    largest_difference,
    plain_sgd,
    resident,
    same_bits,
    server_copy,
    shares_of,
    tiny_dataset,
    wide,
)

from interfuse.aggregation import BufferPolicy
from interfuse.federation import Federation
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.scaffold import SCAFFOLD, ModelAndControl
from interfuse.models import resolve

UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 50))


def own_controls(f: Federation) -> list[dict[str, Tensor]]:
    return [resident(f, client).state.control for client in f.clients]


@pytest.mark.parametrize("steps", [{"local_steps": 3}, {"local_epochs": 2}])
def test_the_servers_control_is_the_mean_of_the_clients(steps: dict[str, int]) -> None:  # U3
    f = federation(SCAFFOLD(**steps, batch_size=6, lr=0.1), models=[wide], shares=UNEVEN)
    for _ in range(4):
        f.run_round()
        own = own_controls(f)
        mean = {key: torch.stack([c[key].double() for c in own]).mean(0) for key in own[0]}
        assert largest_difference(mean, f.server.state.control) < 1e-6
        assert max(float(t.abs().max()) for t in mean.values()) > 1e-3


def test_a_clients_control_is_the_mean_of_the_gradients_it_saw() -> None:  # U3
    f = federation(SCAFFOLD(local_steps=4, batch_size=6, lr=0.1), models=[wide], shares=UNEVEN)
    for round in range(3):
        start, control, own = f.server.state.weights, f.server.state.control, None
        before = own_controls(f) if round else [{key: torch.zeros_like(t) for key, t in control.items()}] * 3
        f.run_round()
        for client in f.clients:
            own = before[client]
            model = server_copy(f.setup, f.setup.architectures[0], start)
            seen: list[dict[str, Tensor]] = []
            for x, y in in_steps(f.setup, client, 4 * (round + 1), 6)[4 * round :]:
                model.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                with torch.no_grad():
                    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
                    seen.append({key: g.clone() for key, g in gradients.items()})
                    for key, p in model.named_parameters():
                        p -= 0.1 * (gradients[key] - own[key] + control[key])
            mean = {key: torch.stack([g[key].double() for g in seen]).mean(0) for key in own}
            assert largest_difference(mean, own_controls(f)[client]) < 2e-6


@pytest.mark.parametrize("settings", [{"optimizer": "adam", "lr": 0.01}, {"momentum": 0.9, "lr": 0.05}])
def test_a_control_is_a_gradient_behind_any_optimizer(settings: dict[str, Any]) -> None:
    f = federation(SCAFFOLD(local_steps=4, batch_size=6, **settings), models=[wide], shares=UNEVEN)
    c = [{key: torch.zeros(()) for key in f.server.state.control}] * 3
    for round in range(2):
        start, control = f.server.state.weights, f.server.state.control
        f.run_round()
        for client in f.clients:
            model = server_copy(f.setup, f.setup.architectures[0], start)
            parameters = dict(model.named_parameters())
            kind = torch.optim.Adam if "optimizer" in settings else torch.optim.SGD
            torchs = kind(parameters.values(), **{key: value for key, value in settings.items() if key != "optimizer"})
            seen: list[dict[str, Tensor]] = []
            for x, y in in_steps(f.setup, client, 4 * (round + 1), 6)[4 * round :]:
                gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), list(parameters.values()))
                seen.append(dict(zip(parameters, gradients, strict=True)))
                for key, p in parameters.items():
                    p.grad = seen[-1][key] - c[client][key] + control[key]
                torchs.step()
            mean = {key: torch.stack([g[key].double() for g in seen]).mean(0) for key in parameters}
            assert largest_difference(mean, own_controls(f)[client]) < 2e-6
        c = own_controls(f)


@pytest.mark.parametrize("steps", [{"local_steps": 5}, {"local_epochs": 2}])
@pytest.mark.parametrize("models", [[wide], ["cnn"]])
def test_the_first_round_is_fedavg(steps: dict[str, int], models: Any) -> None:
    settings: dict[str, Any] = {"models": models, "shares": UNEVEN, "dataset": tiny_dataset(rows=50, shape=(1, 4, 4))}
    scaffold = federation(SCAFFOLD(**steps, batch_size=8, lr=0.1), **settings)
    fedavg = federation(FedAvg(**steps, batch_size=8, lr=0.1, weights="uniform"), **settings)
    assert same_bits(scaffold.server.state.weights, fedavg.server.state.weights)
    scaffold.run_round()
    fedavg.run_round()
    assert largest_difference(scaffold.server.state.weights, fedavg.server.state.weights) < 1e-6
    scaffold.run_round()
    fedavg.run_round()
    assert largest_difference(scaffold.server.state.weights, fedavg.server.state.weights) > 1e-4


def test_one_client_is_plain_sgd() -> None:
    f = federation(SCAFFOLD(local_steps=4, batch_size=8, lr=0.1), models=[wide], clients=1)
    model = server_copy(f.setup, f.setup.architectures[0], f.server.state.weights)
    for _ in range(3):
        f.run_round()
    assert largest_difference(plain_sgd(model, in_steps(f.setup, 0, 12, 8), 0.1), f.server.state.weights) < 1e-6


def test_the_servers_rate_scales_the_step() -> None:
    f, half = (federation(SCAFFOLD(local_steps=2, lr=0.1, server_lr=rate), models=[wide]) for rate in (1.0, 0.5))
    first = f.server.state.weights
    f.run_round()
    half.run_round()
    expected = {key: (first[key] + f.server.state.weights[key]) / 2 for key in first}
    assert largest_difference(expected, half.server.state.weights) < 1e-6


def test_those_who_were_not_drawn_count_as_unchanged() -> None:
    f = federation(SCAFFOLD(participation=0.5, local_steps=2, batch_size=4, lr=0.1), clients=4, wrap=Recorder)
    drawn: set[int] = set()
    for _ in range(6):
        f.run_round()
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        last = {c for r, c, m in recorder.up if r.round == f.round and isinstance(m, ModelAndControl)}
        assert len(last) == 2
        drawn |= last
        control = f.server.state.control
        own = [resident(f, client).state for client in sorted(drawn)]
        summed = {key: torch.stack([state.control[key] for state in own]).sum(0) / 4 for key in control}
        assert largest_difference(summed, control) < 1e-6


def test_a_key_counts_the_clients_that_hold_it() -> None:
    f = federation(SCAFFOLD(local_steps=2, batch_size=6, lr=0.1), models=[depth1, depth2], clients=4, rounds=3)
    for key, tensor in f.server.state.control.items():
        holders = [own[key] for own in own_controls(f) if key in own]
        assert len(holders) == (2 if key.startswith("block") else 4)
        assert torch.allclose(torch.stack(holders).mean(0), tensor, atol=1e-6)


def test_twice_the_bytes_of_fedavg() -> None:
    both = [federation(kind(local_steps=1), models=["logistic"], rounds=2) for kind in (SCAFFOLD, FedAvg)]
    up = [f.exchange.ledger.totals().uplink.raw for f in both]
    assert up[0] == 2 * up[1]
    parameters = sum(p.numel() for p in resolve("logistic")((5,), 3, 8).parameters())
    assert up[1] == 2 * 3 * 4 * parameters


def test_the_servers_rate_leaves_normalisation_statistics_alone() -> None:
    images = tiny_dataset(rows=50, shape=(1, 4, 4))
    f = federation(
        SCAFFOLD(local_steps=3, batch_size=8, lr=0.01, server_lr=3),
        models=["cnn-bn"],
        shares=UNEVEN,
        dataset=images,
        wrap=Recorder,
    )
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    for _ in range(4):
        recorder.up.clear()
        f.run_round()
        weights = f.server.state.weights
        statistics = {key: t for key, t in weights.items() if "running" in key}
        assert len(statistics) == 6
        sent = [m.weights for _, _, m in recorder.up if isinstance(m, ModelAndControl)]
        mean = {key: torch.stack([w[key].double() for w in sent]).mean(0) for key in statistics}
        assert largest_difference(mean, statistics) < 1e-6
        assert all((t > 0).all() for key, t in statistics.items() if key.endswith("running_var"))


def test_a_client_that_made_no_step_changes_no_control() -> None:
    """One sample has no variance, so batch normalisation cannot be trained on it."""
    images = tiny_dataset(rows=50, shape=(1, 4, 4))
    shares = shares_of([0], range(1, 20), range(20, 50))
    f = federation(
        SCAFFOLD(local_steps=3, batch_size=8, lr=0.01), models=["cnn-bn"], shares=shares, dataset=images, rounds=3
    )
    own = own_controls(f)
    assert all((t == 0).all() for t in own[0].values())
    assert all(max(float(t.abs().max()) for t in control.values()) > 1e-3 for control in own[1:])
    mean = {key: torch.stack([c[key].double() for c in own]).mean(0) for key in own[0]}
    assert largest_difference(mean, f.server.state.control) < 1e-6


def test_groups_have_controls_of_their_own() -> None:
    method = SCAFFOLD(local_steps=2, batch_size=6, lr=0.1, aggregation="group")
    f = federation(method, models=[depth1, depth2], clients=4, rounds=3)
    own = own_controls(f)
    for name, members in (("depth1", (0, 2)), ("depth2", (1, 3))):
        control = {k.removeprefix(f"{name}:"): t for k, t in f.server.state.control.items() if k.startswith(f"{name}:")}
        mean = {key: torch.stack([own[c][key] for c in members]).mean(0) for key in own[members[0]]}
        assert largest_difference(mean, control) < 1e-6
        assert max(float(t.abs().max()) for t in control.values()) > 1e-3
    assert largest_difference(own[0], {key: own[1][key] for key in own[0]}) > 1e-4


def test_statistics_that_stay_with_clients_do_not_travel() -> None:
    images = tiny_dataset(rows=50, shape=(1, 4, 4))
    f = federation(
        SCAFFOLD(local_steps=1, batch_size=8, buffers=BufferPolicy.LOCAL),
        models=["cnn-bn"],
        shares=UNEVEN,
        dataset=images,
        rounds=1,
    )
    assert f.server.state.weights.keys() == f.server.state.control.keys()
