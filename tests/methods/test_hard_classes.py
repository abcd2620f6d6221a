"""Classes and features that are hard on statistics by class, for every built-in method.

A client of one class, and a class that nobody has, are among the hard shares of test_every_method.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn
from worlds import ADAPTERS, dataset_of, federation, fitting, resident, shares_of, tiny_dataset

from interfuse.data import Dataset
from interfuse.evaluation import evaluate
from interfuse.families.alignment import Alignment
from interfuse.method import Method
from interfuse.methods import built_in
from interfuse.models import SplitModel, pair

SMALL: dict[str, Any] = {
    "local_steps": 2,
    "batch_size": 4,
    "joins_at": 2,
    "generator_steps": 2,
    "channels": 4,
    "decoder_steps": 2,
    "directions": 2,
    "vtc_steps": 2,
    "finetune_epochs": 1,
    "latents": 2,
    "warm_up": 1,
    "server_epochs": 1,
    "head_epochs": 1,
    "tuning_epochs": 1,
    "virtual": 4,
    "meme": "logistic",
} | ADAPTERS


def small(name: str) -> Method:
    kind = built_in()[name]
    return kind.configure({f.name: SMALL[f.name] for f in fields(kind) if f.name in SMALL})


def plain(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return pair(nn.Sequential(nn.Linear(3, width), nn.ReLU()), nn.Linear(width, classes))


def dead(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """A base block whose ReLU lets nothing through, and no gradient back."""
    base = nn.Linear(3, width)
    nn.init.zeros_(base.weight)
    nn.init.constant_(base.bias, -1.0)
    return pair(nn.Sequential(base, nn.ReLU()), nn.Linear(width, classes))


def rows(per_class: int, classes: int) -> Dataset:
    """So many rows of each of three classes, of more that there are."""
    easy = tiny_dataset(rows=3 * per_class, classes=3, shape=(3,))
    return dataset_of(easy.x_train, easy.y_train, classes, test_rows=6)


def constant() -> Dataset:
    easy = rows(6, 3)
    return dataset_of(torch.full_like(easy.x_train, 0.5), easy.y_train, 3)


World = tuple[Dataset, Any, Any]
WORLDS: dict[str, Callable[[], World]] = {
    "one sample of each class": lambda: (rows(2, 3), shares_of(range(3), range(3, 6)), plain),
    "inputs without variance": lambda: (constant(), shares_of(range(9), range(9, 18)), plain),
    "features that are all 0": lambda: (rows(6, 3), shares_of(range(9), range(9, 18)), dead),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", sorted(built_in()))
def test_results_are_sound(name: str, world: str) -> None:
    """No method refuses any of these: two rounds and what it does to finish leave numbers, and clients answer."""
    dataset, shares, model = WORLDS[world]()
    method = small(name)
    if isinstance(method, Alignment) and world == "inputs without variance":
        method = replace(method, align="none")  # such public data align nothing, and the method says so
    settings: dict[str, Any] = {"models": fitting(method, [model]), "dataset": dataset, "shares": shares, "width": 4}
    f = federation(method, rounds=2, last=2, **settings)
    owned = {f"client {c} {key}": t for c in f.clients for key, t in resident(f, c).owned().items()} | f.server.owned()
    assert not [key for key, tensor in owned.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    assert all(0 <= accuracy <= 1 for accuracy in evaluate(f, full=True).common)
    with f.evaluating():
        x = dataset.normalise(dataset.x_test)
        for client in f.clients:
            with resident(f, client).model.evaluating():
                scores = method.predict(resident(f, client), x)
            assert not scores.isnan().any()  # minus infinity is for what cannot be
            assert (scores.amax(1) > -torch.inf).all()
