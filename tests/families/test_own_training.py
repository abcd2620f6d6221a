"""How much a client trains: one of epochs and steps, the one that was said last, and the method's usual amount else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from worlds import alone, everything_owned, federation, same_bits

from interfuse.client import Client
from interfuse.comparison.recipe import merged
from interfuse.errors import ConfigError
from interfuse.families.own_training import OwnTraining
from interfuse.method import layered, settings
from interfuse.methods import built_in
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedgen import FedGen
from interfuse.methods.heterofl import HeteroFL
from interfuse.methods.local import Local
from interfuse.setup import with_settings
from interfuse.training import Fitted

TRAINING = sorted(name for name, kind in built_in().items() if issubclass(kind, OwnTraining))


@pytest.mark.parametrize("name", TRAINING)
def test_both_are_refused_and_neither_is_the_usual_amount(name: str) -> None:
    kind = built_in()[name]
    with pytest.raises(ConfigError, match=rf"{kind.__name__}: local_epochs = 2 and local_steps = 3: .* leave"):
        kind.configure({"local_epochs": 2, "local_steps": 3})
    usual: Any = kind()
    assert (usual.local_epochs is None) != (usual.local_steps is None)
    assert {s.name: s.default for s in settings(kind)}["lr"] == usual.lr
    for amount in ({"local_epochs": 2}, {"local_steps": 3}):
        method: Any = kind.configure(amount)
        assert {"local_epochs": method.local_epochs, "local_steps": method.local_steps} == (
            {"local_epochs": None, "local_steps": None} | amount
        )
        if name != "pooled":
            local = alone(method)
            assert (local.local_epochs, local.local_steps) == (method.local_epochs, method.local_steps)


def test_the_usual_amounts_are_the_methods_own() -> None:
    assert [(m.local_epochs, m.local_steps) for m in (FedAvg(), HeteroFL(), FedGen(), Local())] == [
        (1, None),
        (5, None),
        (None, 20),
        (None, 10),
    ]


def test_a_client_of_its_own_takes_what_it_says_in_place_of_what_all_have() -> None:
    method: Any = with_settings(HeteroFL(), {"local_steps": 7, "lr": 0.5})
    assert (method.local_epochs, method.local_steps, method.lr) == (None, 7, 0.5)
    method = with_settings(FedAvg(local_steps=3), {"local_epochs": 2})
    assert (method.local_epochs, method.local_steps) == (2, None)


def test_of_layers_of_settings_the_last_one_decides() -> None:
    assert layered({"local_epochs": 5, "lr": 0.1}, {"local_steps": 3}) == {"lr": 0.1, "local_steps": 3}
    assert layered({"local_steps": 3}, {"lr": 0.2}, {}) == {"local_steps": 3, "lr": 0.2}
    below = {"settings": {"local_epochs": 5}, "client": {1: {"local_steps": 2, "lr": 0.1}}}
    above = {"settings": {"local_steps": 20}, "client": {1: {"local_epochs": 1}}}
    assert merged(below, above) == {"settings": {"local_steps": 20}, "client": {1: {"lr": 0.1, "local_epochs": 1}}}


def test_a_method_changes_defaults_that_it_inherits_by_name() -> None:
    @dataclass(frozen=True)
    class Slow(FedAvg):
        usual = {"lr": 0.001, "local_steps": 4}

    assert (Slow().lr, Slow().local_steps, Slow().local_epochs) == (0.001, 4, None)
    assert (FedAvg().lr, replace(Slow(), lr=0.1).lr) == (0.01, 0.1)
    with pytest.raises(ConfigError, match="lr = -1"):
        Slow(lr=-1)
    with pytest.raises(ConfigError, match=r"Fast.usual: 'lrr' is no setting it inherits: .*lr"):
        type("Fast", (FedAvg,), {"usual": {"lrr": 1.0}})


@dataclass(frozen=True)
class ByPositions(FedAvg):
    """FedAvg, where a client is asked beforehand what it will train on."""

    def fit(self, client: Client[Any], losses: Any, **options: Any) -> Fitted:
        batches = client.data.batches(self.positions(client))
        return super().fit(client, losses, batches=batches, steps=None, epochs=None)


@pytest.mark.parametrize("amount", [{"local_epochs": 2}, {"local_steps": 3}])
def test_positions_are_those_of_the_batches_that_a_client_trains_on(amount: dict[str, int]) -> None:
    runs = [federation(kind.configure({**amount, "batch_size": 7}), rounds=2) for kind in (FedAvg, ByPositions)]
    assert same_bits(*map(everything_owned, runs))
