"""Pieces of the zoo's models: the same for images, by two-dimensional layers, and signals, by one-dimensional ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from interfuse.errors import ModelError
from interfuse.models.split import TOKENS, SplitModel

Shape = tuple[int, ...]
"""Channels, then height and width of an image or the length of a signal, or of a layer's output."""

CONVOLUTIONS: Mapping[int, type[nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
"""By the number of sides of a sample."""
TRANSPOSED: Mapping[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_BATCH_NORMS: Mapping[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_POOLINGS: Mapping[int, type[nn.MaxPool1d | nn.MaxPool2d]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
_SMALLEST_SIDE = 4


def convolution(
    shape: Shape, channels: int, *, kernel: int = 3, padding: int = 1, batch_norm: bool = False
) -> tuple[nn.Sequential, Shape]:
    """Convolution, ReLU and, while all sides have two points, maximum pooling by 2; with the shape of its output."""
    inputs, *sides = shape
    layers: list[nn.Module] = [CONVOLUTIONS[len(sides)](inputs, channels, kernel, padding=padding)]
    if batch_norm:
        layers.append(_BATCH_NORMS[len(sides)](channels))
    layers.append(nn.ReLU())
    sides = [side + 2 * padding - kernel + 1 for side in sides]
    if _pools(sides):
        layers.append(_POOLINGS[len(sides)](2))
        sides = [side // 2 for side in sides]
    return nn.Sequential(*layers), (channels, *sides)


def last_convolution(
    shape: Shape, channels: int, width: int, *, batch_norm: bool = False
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The convolution of 3 (by 3) before the fusion layer, flattened, and the stages after it.

    Where the width is a multiple of its output's area (or length) it has as many channels as fill the width; elsewhere
    it has ``channels``, and a stage ``fc1`` brings its output to the width.
    """
    _, *sides = shape
    area = math.prod(side // 2 for side in sides) if _pools(sides) else math.prod(sides)
    fits = width % area == 0
    layers, _ = convolution(shape, width // area if fits else channels, batch_norm=batch_norm)
    layers.append(nn.Flatten())
    return layers, {} if fits else {"fc1": nn.Sequential(nn.Linear(channels * area, width), nn.ReLU())}


def _pools(sides: Sequence[int]) -> bool:
    return min(sides) >= 2


def head(name: str, widths: tuple[int, ...]) -> dict[str, nn.Module]:
    """Linear layers of these widths, with ReLU between them: one stage each, the last one the classifier."""
    *hidden, last = pairwise(widths)
    stages: dict[str, nn.Module] = {
        f"{name}.head{number}": nn.Sequential(nn.Linear(*ends), nn.ReLU()) for number, ends in enumerate(hidden, 1)
    }
    return stages | {f"{name}.classifier": nn.Linear(*last)}


def two_parts(base: Mapping[str, nn.Module], modular: Mapping[str, nn.Module]) -> SplitModel:
    """A model of the stages of its two blocks."""
    return SplitModel({**base, **modular}, {"base": tuple(base), "modular": tuple(modular)})


def grid(name: str, sample_shape: tuple[int, ...]) -> Shape:
    """The shape of a sample, which must be an image or a signal of at least 4 points a side.

    Raises:
        ModelError: it is neither; the text names the model.
    """
    if len(sample_shape) not in (2, 3) or min(sample_shape[1:]) < _SMALLEST_SIDE:
        raise ModelError(
            f"model {name!r} takes images (channels, height, width) and signals (channels, time) of at least "
            f"{_SMALLEST_SIDE} points a side, not samples of shape {sample_shape}; "
            "quantities of any shape fit mlp, mlp-linear, shallow and logistic: --models mlp,shallow "
            f'(models=["mlp", "shallow"]); {TOKENS}'
        )
    return sample_shape


class Cut(nn.Module):
    """The middle of maps, of these sides."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        for axis, side in enumerate(self.sides, 2):
            x = x.narrow(axis, (x.shape[axis] - side) // 2, side)
        return x
