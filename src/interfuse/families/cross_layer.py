"""Cross-layer gradients: at the server, later blocks of a stage take over a part of the first block's change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interfuse.clients import Clients
from interfuse.method import Method, NonNegative
from interfuse.server import Server

_LATER_CONVOLUTION = re.compile(r"(?P<group>.*layer\d+)\.[1-9]\d*\.conv\d+\.weight")
_SMALL = 1e-7

Change = Float[Tensor, "out in *kernel"]


def crossed(change: Change, first: Change, largest_weight: float, largest_change: float) -> Change:
    """G' from the change G of a convolution and the change G₀ of its stage's first block, kernel by kernel.

    With the norms n and n₀ and w = min(|⟨G₀, G⟩| / ⟨G₀, G₀⟩, ``largest_weight``), it is (G/n + w · G₀/n₀) · (n + n₀)/2,
    of which no element gets beyond ± ``largest_change``.
    """
    kernel = tuple(range(2, change.dim()))
    n, n0 = (g.square().sum(kernel, keepdim=True).sqrt() for g in (change, first))
    inner, square = ((first * g).sum(kernel, keepdim=True) for g in (change, first))
    w = (inner.abs() / (square + _SMALL)).clamp(max=largest_weight)
    mixed = (change / (n + _SMALL) + w * first / (n0 + _SMALL)) * (n + n0) / 2
    return mixed.clamp(-largest_change, largest_change)


@dataclass(frozen=True)
class CrossLayer(Method):
    """What InCo adds to any method whose server has ``weights``: ``class Mine(CrossLayer, SCAFFOLD)`` is InCo on it."""

    origin = "InCo's code"

    largest_weight: NonNegative = 5.0  # of the first block's change, a quotient of norms
    largest_change: NonNegative = 0.1  # of an element of a convolution in a later block, in a round

    def round(self, server: Server[Any], clients: Clients) -> None:
        before = server.state.weights
        super().round(server, clients)  # that of the method it stands before
        server.state = replace(server.state, weights=self.crossed(before, server.state.weights))

    def crossed(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The server's tensors after a round, the convolutions of later blocks with the change of InCo."""
        weights = dict(after)
        for key in after:
            if (later := _LATER_CONVOLUTION.fullmatch(key)) is not None:
                first = f"{later['group']}.0.conv2.weight"
                change, of_first = (after[k] - before[k] for k in (key, first))
                weights[key] = before[key] + crossed(change, of_first, self.largest_weight, self.largest_change)
        return weights
