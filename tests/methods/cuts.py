"""One model of three stages, cut at each of its four places, and what a federation of such models holds."""

from __future__ import annotations

import math

from torch import Tensor, nn
from worlds import live_model, shares_of

from interfuse.federation import Federation
from interfuse.models import SplitModel


def _cut_after(stages: int, sample_shape: tuple[int, ...], classes: int) -> SplitModel:
    layers: dict[str, nn.Module] = {
        "first": nn.Sequential(nn.Linear(math.prod(sample_shape), 7), nn.ReLU()),
        "second": nn.Sequential(nn.Linear(7, 6), nn.Tanh()),
        "third": nn.Linear(6, classes),
    }
    names = tuple(layers)
    return SplitModel(layers, {"base": names[:stages], "modular": names[stages:]})


def cut0(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Everything at the server."""
    return _cut_after(0, sample_shape, classes)


def cut1(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """One stage at the client."""
    return _cut_after(1, sample_shape, classes)


def cut2(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Two stages at the client."""
    return _cut_after(2, sample_shape, classes)


def cut3(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Everything at the client."""
    return _cut_after(3, sample_shape, classes)


CUTS = [cut0, cut1, cut2, cut3]
UNEVEN = shares_of(range(0, 9), range(9, 26), range(26, 50))
COUNTS = [9, 17, 24]


def whole(f: Federation, client: int = 0) -> dict[str, Tensor]:
    """A copy of the model that split learning trains for a client: its front, and the server's tail."""
    found = f.server.state.fronts | f.server.state.tails
    if not f.method.average_clients:  # type: ignore[attr-defined]
        found |= live_model(f, client).tensors("base")
    held = f.clients.profiles[client].keys
    return {key: tensor.clone() for key, tensor in found.items() if key in held}
