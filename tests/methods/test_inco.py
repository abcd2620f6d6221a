"""InCo: U7, its ablations, and the server of any base method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import federation, largest_difference, same_bits, tiny_dataset

from interfuse.families.cross_layer import CrossLayer, crossed
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedin import FedIN
from interfuse.methods.fednova import FedNova
from interfuse.methods.fedprox import FedProx
from interfuse.methods.inco import InCo
from interfuse.methods.moon import MOON
from interfuse.methods.scaffold import SCAFFOLD

DATA = tiny_dataset(rows=60, classes=3, shape=(1, 8, 8))
OPTIONS: dict[str, Any] = {"local_steps": 2, "batch_size": 8, "lr": 0.02, "participation": 1.0, "optimizer": "sgd"}


def changes(seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, 3, 3, generator=noise), torch.randn(5, 4, 3, 3, generator=noise)


def test_no_change_of_the_first_block_halves_that_of_the_later() -> None:  # U7
    g, _ = changes(0)
    assert torch.allclose(crossed(g, torch.zeros_like(g), 5, torch.inf), g / 2, atol=1e-6)


def test_equal_changes_are_doubled() -> None:  # U7
    g, _ = changes(1)
    assert torch.allclose(crossed(g, g, 5, torch.inf), 2 * g, atol=1e-5)


@given(st.integers(0, 200), st.floats(0.1, 10))
def test_twice_the_changes_are_twice_the_result(seed: int, scale: float) -> None:  # U7
    g, first = changes(seed)
    scaled = crossed(scale * g, scale * first, 5, torch.inf)
    assert torch.allclose(scaled, scale * crossed(g, first, 5, torch.inf), rtol=1e-3, atol=1e-4)


def test_kernel_by_kernel_in_plain_numbers() -> None:
    g, first = changes(2)
    first = first * torch.logspace(-2, 1, 5)[:, None, None, None]  # so that some weights are beyond 5
    found, weights = crossed(g, first, 5, 0.1), []
    for o in range(5):
        for i in range(4):
            a, b = first[o, i].double().flatten(), g[o, i].double().flatten()
            n, n0 = float(b.norm()), float(a.norm())
            weights.append(abs(float(a @ b)) / float(a @ a))
            expected = (b / n + min(weights[-1], 5) * a / n0) * (n + n0) / 2
            assert torch.allclose(found[o, i].double().flatten(), expected.clamp(-0.1, 0.1), atol=1e-5)
    assert max(weights) > 5 > min(weights)


def test_a_base_that_only_has_first_blocks_is_left_alone() -> None:
    world: dict[str, Any] = {"models": ["resnet10-narrow"], "dataset": DATA, "clients": 2, "rounds": 2}
    inco, avg = (
        federation(kind(**OPTIONS, weights="uniform"), **world).server.state.weights for kind in (InCo, FedAvg)
    )
    assert same_bits(inco, avg)


@pytest.mark.parametrize("group", ["layerwise", "group"])
def test_a_round_changes_later_convolutions_and_nothing_else(group: Any) -> None:
    world: dict[str, Any] = {"models": ["resnet10-narrow", "resnet18-narrow"], "dataset": DATA, "clients": 4}
    options: dict[str, Any] = {**OPTIONS, "aggregation": group, "weights": "uniform"}
    inco, prox = federation(InCo(**options, mu=0.5), **world), federation(FedProx(**options, mu=0.5), **world)
    before = inco.server.state.weights
    inco.run_round()
    prox.run_round()
    after, plain = inco.server.state.weights, prox.server.state.weights
    touched = {key for key in after if not torch.equal(after[key], plain[key])}
    prefix = "" if group == "layerwise" else "resnet18-narrow:"
    assert touched == {f"{prefix}layer{n}.1.conv{c}.weight" for n in (1, 2, 3, 4) for c in (1, 2)}
    for key in touched:
        first = f"{key.rsplit('.', 3)[0]}.0.conv2.weight"
        expected = before[key] + crossed(plain[key] - before[key], plain[first] - before[first], 5, 0.1)
        assert torch.equal(after[key], expected)


@dataclass(frozen=True)
class InCoScaffold(CrossLayer, SCAFFOLD):
    """On SCAFFOLD."""


@dataclass(frozen=True)
class InCoNova(CrossLayer, FedNova):
    """On FedNova."""


@dataclass(frozen=True)
class InCoMoon(CrossLayer, MOON):
    """On MOON."""


@dataclass(frozen=True)
class InCoFedIN(CrossLayer, FedIN):
    """On FedIN."""


@pytest.mark.parametrize("kind", [InCoScaffold, InCoNova, InCoMoon, InCoFedIN])
def test_any_base_may_stand_behind_it(kind: type[Method]) -> None:
    base = kind.__mro__[2]
    assert issubclass(base, Method)
    world: dict[str, Any] = {"models": ["resnet18-narrow"], "dataset": DATA, "clients": 2, "rounds": 1}
    inco, plain = (federation(k.configure(OPTIONS), **world).server.state.weights for k in (kind, base))
    later = {key for key in plain if ".1.conv" in key}
    assert len(later) == 8
    assert all(torch.equal(inco[key], plain[key]) == (key not in later) for key in plain)
    assert largest_difference(inco, plain) > 1e-4
