"""Methods for models of several depths and widths in federations that have them: equal models, hard shares, losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from slim import received_for_evaluation
from worlds import (
    Recorder,
    dataset_of,
    everything_owned,
    federation,
    largest_difference,
    same_bits,
    shares_of,
    tiny_dataset,
)

from interfuse.errors import ClientError
from interfuse.evaluation import evaluate
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedin import FedIN
from interfuse.methods.fednova import FedNova
from interfuse.methods.fedprox import FedProx
from interfuse.methods.fedrolex import FedRolex
from interfuse.methods.heterofl import HeteroFL
from interfuse.methods.inclusivefl import InclusiveFL
from interfuse.methods.inco import InCo
from interfuse.methods.moon import MOON
from interfuse.methods.scaffold import SCAFFOLD
from interfuse.methods.scalefl import ScaleFL

DEPTHS = ("resnet10-narrow@0.25", "resnet18-narrow@0.25", "resnet14-narrow@0.25")
WIDTHS = ("resnet14-narrow@0.25", "resnet10-narrow@0.125", "resnet14-narrow@0.0625")
LEVELS = ("resnet10-narrow-exits2@0.25", "resnet10-narrow-exits4@0.25", "resnet10-narrow-exits1@0.125")
SMALL: dict[str, Any] = {"local_steps": 2, "batch_size": 4, "lr": 0.01}

LAYERWISE: list[tuple[Method, Sequence[str]]] = [
    *(
        (kind(**SMALL, participation=1.0), DEPTHS)
        for kind in (FedAvg, FedProx, SCAFFOLD, FedNova, MOON, InclusiveFL, InCo, FedIN)
    ),
    (HeteroFL(**SMALL), WIDTHS),
    (FedRolex(**SMALL), WIDTHS),
    (ScaleFL(**SMALL), LEVELS),
]
each = pytest.mark.parametrize(("method", "models"), LAYERWISE, ids=[type(method).__name__ for method, _ in LAYERWISE])


def hard() -> dict[str, Any]:
    """Client 0 has one class, client 1 one sample, client 2 all classes but one; a fourth class is nowhere."""
    easy = tiny_dataset(rows=48, classes=3, shape=(1, 8, 8))
    of = [torch.nonzero(easy.y_train == c).flatten().tolist() for c in range(3)]
    shares = shares_of(of[0][:7], of[1][:1], [*of[0][7:], *of[2]])
    return {"dataset": dataset_of(easy.x_train, easy.y_train, 4, test_rows=24), "shares": shares}


@each
def test_clients_of_one_architecture_evaluate_equally(method: Method, models: Sequence[str]) -> None:  # U24
    f = federation(method, models=models, clients=6, dataset=tiny_dataset(shape=(1, 8, 8)), wrap=Recorder, rounds=2)
    received = received_for_evaluation(f)
    common = evaluate(f, full=True).common
    for client in range(3):
        assert same_bits(received[client].tensors, received[client + 3].tensors)
        assert common[client] == common[client + 3]
    shared = received[0].tensors.keys() & received[1].tensors.keys()
    assert shared
    if models is DEPTHS and not isinstance(method, InclusiveFL):
        assert all(torch.equal(received[0].tensors[key], received[1].tensors[key]) for key in shared)


@each
def test_one_sample_one_class_and_absent_classes(method: Method, models: Sequence[str]) -> None:  # U23
    f = federation(method, models=models, **hard())
    for _ in range(3):
        f.run_round()
        assert all(math.isfinite(value) for value in evaluate(f, full=True).common)
    owned = everything_owned(f)
    assert all(tensor.isfinite().all() for tensor in owned.values() if tensor.is_floating_point())
    assert all((tensor >= 0).all() for key, tensor in owned.items() if key.endswith("running_var"))


@pytest.mark.parametrize("method", [HeteroFL(**SMALL), FedRolex(**SMALL)], ids=["HeteroFL", "FedRolex"])
def test_rows_of_a_class_that_nobody_has_are_what_they_were(method: Method) -> None:
    f = federation(method, models=WIDTHS, **hard())
    before = {key: tensor.clone() for key, tensor in f.server.state.weights.items()}
    f.run_round()
    f.run_round()
    after = f.server.state.weights
    assert torch.equal(after["fc.weight"][3], before["fc.weight"][3])
    assert after["fc.bias"][3] == before["fc.bias"][3]
    assert largest_difference({"w": after["fc.weight"][:3]}, {"w": before["fc.weight"][:3]}) > 0


@each
def test_when_every_client_is_lost_the_round_is_an_error(method: Method, models: Sequence[str]) -> None:
    astray = replace(method, lr=1e30)
    f = federation(astray, models=models, dataset=tiny_dataset(shape=(1, 8, 8)))
    with pytest.raises(ClientError, match=r"client 0.*train.*round 1.*diverged"):
        f.run_round()
