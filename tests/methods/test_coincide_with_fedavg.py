"""What is left of a method when everything of its own is switched off is FedAvg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from slim import received_for_evaluation
from worlds import Recorder, federation, largest_difference, shares_of, tiny_dataset

from interfuse.messages import Weights
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedet import FedET
from interfuse.methods.fedgen import FedGen
from interfuse.methods.fedin_ablations import FedINAblations
from interfuse.methods.fednova import FedNova
from interfuse.methods.fedprox import FedProx
from interfuse.methods.fedrolex import FedRolex
from interfuse.methods.heterofl import HeteroFL
from interfuse.methods.inclusivefl import InclusiveFL
from interfuse.methods.inco import InCo
from interfuse.methods.lg_fedavg import LGFedAvg
from interfuse.methods.moon import MOON
from interfuse.methods.scaffold import SCAFFOLD
from interfuse.methods.scalefl import ScaleFL
from interfuse.models import Builder, SplitModel, resolve

SAME: dict[str, Any] = {"local_steps": 3, "batch_size": 8, "lr": 0.05}
"""What all of them have."""
PLAIN = {**SAME, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}

ONE = ["resnet10-narrow@0.25"]
DEPTHS = ["resnet18-narrow@0.25", "resnet14-narrow@0.25", "resnet10-narrow@0.25"]


def all_modular(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The whole model behind the fusion cut."""
    model = resolve(ONE[0])(sample_shape, classes, width)
    return model.regrouped({"base": (), "modular": model.stage_names})


# Method with neutral settings, models, rounds, the rule by which clients count. The deepest model comes first: a key
# begins with the values of the first client that has it.
NEUTRAL: dict[str, tuple[Callable[[], Method], Sequence[str | Builder], int, str]] = {
    "fedprox": (lambda: FedProx(**PLAIN, mu=0.0), DEPTHS, 2, "samples"),
    "scaffold": (lambda: SCAFFOLD(**SAME), DEPTHS, 1, "uniform"),  # its control variates are zero in the first round
    "fednova": (lambda: FedNova(**PLAIN), DEPTHS, 1, "samples"),  # equal steps; rounding grows in a second round
    "moon": (lambda: MOON(**PLAIN, mu=0.0), DEPTHS, 2, "samples"),
    "heterofl": (lambda: HeteroFL(**PLAIN, clip=None), DEPTHS, 2, "uniform"),
    "fedrolex": (lambda: FedRolex(**PLAIN, clip=None), DEPTHS, 3, "uniform"),
    "scalefl": (lambda: ScaleFL(**PLAIN), DEPTHS, 2, "uniform"),  # one exit
    "inclusivefl": (lambda: InclusiveFL(**PLAIN, beta=1.0), ONE, 2, "samples"),  # one depth
    "inclusivefl-depths": (
        lambda: InclusiveFL(**PLAIN, exclude_last=False, own_classifier=False),
        DEPTHS,
        2,
        "samples",
    ),
    "fedin-ablations": (
        lambda: FedINAblations(**PLAIN, imitation=False, mu=0.0),
        DEPTHS,
        1,
        "uniform",
    ),
    "fedgen": (
        lambda: FedGen(**PLAIN, alpha=0.0, beta=0.0),
        ONE,
        1,
        "samples",
    ),  # its weights have a floor from the second round on
    "inco": (lambda: InCo(**PLAIN, participation=1.0), ONE, 2, "uniform"),  # no later blocks
    "lg-fedavg": (lambda: LGFedAvg(**PLAIN), [all_modular], 2, "uniform"),
    "fedet": (lambda: FedET(**PLAIN, server_steps=0), ONE, 2, "samples"),
}


def after(method: Method, models: Sequence[str | Builder], rounds: int) -> dict[int, Weights]:
    """What each of three clients of 9, 17 and 34 rows evaluates, every class being with every client."""
    f = federation(
        method,
        models=models,
        rounds=rounds,
        wrap=Recorder,
        dataset=tiny_dataset(shape=(1, 8, 8)),
        shares=shares_of(range(0, 9), range(9, 26), range(26, 60)),
    )
    return received_for_evaluation(f)


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_leave_fedavg(name: str) -> None:  # U2
    make, models, rounds, weights = NEUTRAL[name]
    found, expected = after(make(), models, rounds), after(FedAvg(**PLAIN, weights=weights), models, rounds)
    assert found.keys() == expected.keys() == {0, 1, 2}
    for client, own in found.items():
        assert largest_difference(own.tensors, expected[client].tensors) < 1e-6


def test_the_rows_of_the_table_are_not_all_the_same_run() -> None:
    """Clients do learn, and the rule by which they count matters."""
    first = {key: tensor for key, tensor in after(FedAvg(**PLAIN), ONE, 1)[0].tensors.items() if "running" not in key}
    for other in (FedAvg(**PLAIN, weights="uniform"), FedAvg(**{**PLAIN, "lr": 0.049})):
        own = {key: tensor for key, tensor in after(other, ONE, 1)[0].tensors.items() if "running" not in key}
        assert largest_difference(own, first) > 1e-4
