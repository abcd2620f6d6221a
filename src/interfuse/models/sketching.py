"""A narrow fusion layer for wide blocks: features are projected onto few fixed directions, which all blocks know."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from interfuse.errors import ModelError
from interfuse.models.split import SplitModel
from interfuse.randomness import generator

Directions = Float32[Tensor, "k d"]
MOST = 1 << 22
"""Numbers of all directions at most: to make more orthonormal takes minutes."""


@lru_cache(maxsize=8)
def directions(count: int, width: int, seed: int) -> Directions:
    """R: orthonormal rows, drawn uniformly among all such from the seed alone."""
    drawn = torch.randn(width, count, generator=generator(seed, "sketch", count, width), dtype=torch.float64)
    orthonormal, upper = torch.linalg.qr(drawn)
    # the sign of the diagonal is the library's choice; made positive, the distribution is uniform
    found: Tensor = orthonormal * upper.diagonal().sign()
    return found.T.contiguous().float()


class Sketch(nn.Module):
    """z to z Rᵀ, ``[batch, d]`` to ``[batch, k]``. It has nothing that is trained, sent or saved."""

    along: Tensor

    def __init__(self, along: Directions) -> None:
        super().__init__()
        self.register_buffer("along", along, persistent=False)

    def forward(self, z: Float32[Tensor, "batch d"]) -> Float32[Tensor, "batch k"]:
        return z @ self.along.T


class Unsketch(Sketch):
    """z Rᵀ to z Rᵀ R, ``[batch, k]`` to ``[batch, d]``."""

    def forward(self, z: Float32[Tensor, "batch k"]) -> Float32[Tensor, "batch d"]:
        return z @ self.along


def sketched(model: SplitModel, count: int, width: int, seed: int) -> SplitModel:
    """A model whose blocks meet in ``count`` numbers instead of ``width``.

    Raises:
        ModelError: there are not so many directions.
    """
    if count > width:
        raise ModelError(
            f"a sketch of {count} numbers of a fusion layer {width} wide: at most {width} directions exist"
        )
    if count * width > MOST:
        raise ModelError(f"{count} directions of {width} numbers: at most {MOST // width} can be drawn; take fewer")
    along = directions(count, width, seed)
    return model.crossed_by(Sketch(along), Unsketch(along))
