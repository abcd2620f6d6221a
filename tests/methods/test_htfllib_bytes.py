"""What a round costs in HtFLlib's family: the formulas of FedTGP's Table 5, from the ledger, at its sizes.

20 clients, C = 100 classes, d = 512 features, images 3x32x32; ``held`` classes at a client. A figure that does not
depend on the base block is taken with a tiny one. Counted are the numbers of the methods themselves; what travels
beside them (labels of a byte, counts, statistics of normalisation) is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from worlds import dataset_of, entries, federation, shares_of

from interfuse.methods import built_in
from interfuse.models import SplitModel, resolve

CLIENTS, C, D, IMAGE = 20, 100, 512, (3, 32, 32)
HELD = [5 * (1 + client % 8) for client in range(CLIENTS)]
"""How many classes each client has, C_i; together they have all."""
CNN = 2_432 + 51_264 + 819_712
"""Of HtFLlib's CNN without its modular block: two convolutions of 32 and 64 channels, and 1,600 by 512."""
HEAD = D * C + C
GENERATOR = (32 + C) * 512 + 512 + 2 * 512 + 512 * D + D
"""Of FedGen: noise and label to 512, normalised, to features."""


@dataclass(frozen=True)
class Cost:
    """Numbers of float32 that a client with so many classes sends and gets in a round, and bytes beside them."""

    up: Callable[[int], int]
    down: Callable[[int], int]
    settings: dict[str, Any] = field(default_factory=dict)
    beside_up: Callable[[int], int] = lambda held: 0
    beside_down: int = 0
    published: int | None = None
    """Both ways over all clients, where it does not depend on who has which classes."""


def always(numbers: int) -> Callable[[int], int]:
    return lambda held: numbers


MEME = {"meme": "htfl-cnn", "meme_width": D}
COSTS = {
    "lg-fedavg": Cost(always(HEAD), always(HEAD), published=2_052_000),
    "fml": Cost(always(CNN + HEAD), always(CNN + HEAD), MEME, published=36_988_320),
    "fedkd": Cost(
        always(CNN + HEAD), always(CNN + HEAD), MEME | {"energy_start": 1.0, "energy_end": 1.0},
        beside_down=8, published=36_988_320,  # the energy; times the ratio r of its ranks below 1
    ),
    "fedmrl": Cost(always(CNN + 128 * C + C), always(CNN + 128 * C + C), {"meme": "htfl-cnn", "meme_width": 128}),
    "fedproto": Cost(lambda held: D * held, always(D * C), beside_up=lambda held: (1 + 4) * held, beside_down=C),
    "fedtgp": Cost(
        lambda held: D * held, always(D * C), {"server_epochs": 1}, beside_up=lambda held: held, beside_down=C
    ),
    "feddistill": Cost(lambda held: C * held, always(C * C), beside_up=lambda held: held, beside_down=C),
    "fedgen-heads": Cost(
        always(HEAD), always(HEAD + GENERATOR), {"generator_steps": 1},
        beside_up=always(4 * C), beside_down=4 * (C + 2 * 512), published=CLIENTS * (51_300 + 383_076),
    ),
    "fedgh": Cost(lambda held: D * held, always(HEAD), beside_up=lambda held: held),
}  # fmt: skip


def tiny(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The modular block of HtFLlib's models behind the smallest of base blocks."""
    base = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sample_shape[0], width), nn.ReLU())
    return SplitModel({"tiny": base, "classifier": nn.Linear(width, classes)})


@pytest.mark.parametrize("name", COSTS)
def test_a_round_costs_what_the_formula_says(name: str) -> None:
    cost, rows = COSTS[name], torch.arange(C)
    noise = torch.Generator().manual_seed(0)
    data = dataset_of(torch.randn(C, *IMAGE, generator=noise), rows, C)
    shares = shares_of(*([(7 * client + j) % C for j in range(held)] for client, held in enumerate(HELD)))
    assert {row for share in shares for row in share.train.tolist()} == {*range(C)}
    method = built_in()[name].configure({"local_steps": 0} | cost.settings)
    f = federation(method, dataset=data, shares=shares, models=[tiny], width=D, rounds=2)
    second = {(e.client, e.direction): e.raw for e in entries(f) if e.round == 2 and e.heading == "training"}
    for client, held in enumerate(HELD):
        assert second[client, "up"] == 4 * cost.up(held) + cost.beside_up(held)
        assert second[client, "down"] == 4 * cost.down(held) + cost.beside_down
    if cost.published is not None:
        beside = sum(map(cost.beside_up, HELD)) + CLIENTS * cost.beside_down
        assert (sum(second.values()) - beside) / 4 == cost.published


def test_sizes_of_networks_are_htfllibs() -> None:
    sizes = [math.prod(tensor.shape) for tensor in resolve("htfl-cnn")(IMAGE, C, D).tensors().values()]
    assert [sizes[i] + sizes[i + 1] for i in range(0, 8, 2)] == [2_432, 51_264, 819_712, 51_300]
    assert sum(sizes) == 924_708
