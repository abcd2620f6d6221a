"""Models far from the default four, and from each other: how far apart may parties be that learn together?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from interfuse.models.layers import CONVOLUTIONS, Shape, grid, head, two_parts
from interfuse.models.split import SplitModel

_DEPTH = 10  # layers with weights in the base block of "deep"
_TOKEN_WIDTH = 48


def residual(sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """Three residual blocks (16, 32, 64 channels) with group normalisation, linear modular block."""
    inputs, *sides = grid("residual", sample_shape)
    layer = CONVOLUTIONS[len(sides)]
    base = {
        "residual.stem": nn.Sequential(layer(inputs, 16, 3, stride=2, padding=1), nn.ReLU()),
        "residual.block1": _ResidualBlock(layer, 16, 16, stride=2),
        "residual.block2": _ResidualBlock(layer, 16, 32, stride=2),
        "residual.block3": _ResidualBlock(layer, 32, 64, stride=1),
        "residual.fc1": nn.Sequential(_MeanOver(2), nn.Linear(64, width), nn.ReLU()),
    }
    return two_parts(base, {"classifier": nn.Linear(width, classes)})


def transformer(sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """A transformer of two layers on 16 patches of an image or windows of a signal, linear modular block."""
    inputs, *sides = grid("transformer", sample_shape)
    most = {1: 16, 2: 4}[len(sides)]  # tokens a side
    patch = tuple(math.ceil(side / most) for side in sides)
    layer = nn.TransformerEncoderLayer(
        _TOKEN_WIDTH, nhead=4, dim_feedforward=2 * _TOKEN_WIDTH, dropout=0.0, batch_first=True, norm_first=True
    )
    base = {
        "transformer.tokens": _Tokens(inputs, sides, patch, _TOKEN_WIDTH),
        "transformer.encoder": nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False),
        "transformer.fc1": nn.Sequential(
            _MeanOver(1), nn.LayerNorm(_TOKEN_WIDTH), nn.Linear(_TOKEN_WIDTH, width), nn.ReLU()
        ),
    }
    return two_parts(base, {"classifier": nn.Linear(width, classes)})


def shallow(sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """One linear layer in the base block; 256 and 64 in the modular block."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), width), nn.ReLU())
    return two_parts({"shallow.fc1": base}, head("shallow", (width, 256, 64, classes)))


def deep(sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """Ten layers in the base block, nine of them convolutions with group normalisation; linear modular block."""
    channels, *sides = grid("deep", sample_shape)
    base: dict[str, nn.Module] = {}
    for number in range(1, _DEPTH):
        halves = number in (1, 3, 5)
        outputs = 16 if number < 5 else 32
        convolution = CONVOLUTIONS[len(sides)](channels, outputs, 3, 2 if halves else 1, padding=1, bias=False)
        # Without normalisation the signal shrinks at every layer, and SGD at usual rates learns nothing.
        base[f"deep.conv{number}"] = nn.Sequential(convolution, nn.GroupNorm(4, outputs), nn.ReLU())
        channels, sides = outputs, [math.ceil(side / 2) if halves else side for side in sides]
    base["deep.fc1"] = nn.Sequential(nn.Flatten(), nn.Linear(channels * math.prod(sides), width), nn.ReLU())
    return two_parts(base, {"classifier": nn.Linear(width, classes)})


def cut_after(layers: int) -> Callable[[Shape, int, int], SplitModel]:
    """A builder of five linear layers as wide as the fusion layer; the base block has the first so many.

    Its tensors have the same keys and shapes wherever the cut is.
    """
    build = partial(_cut_after, layers)
    build.__doc__ = f"Five linear layers as wide as the fusion layer, {layers} of them in the base block."
    return build


def _cut_after(layers: int, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    stages: dict[str, nn.Module] = {"five.fc1": nn.Linear(math.prod(sample_shape), width)}
    stages |= {f"five.fc{number}": nn.Linear(width, width) for number in range(2, 5)}
    stages = {name: nn.Sequential(nn.Flatten(), layer, nn.ReLU()) for name, layer in stages.items()}
    behind = dict(list(stages.items())[layers:]) | {"classifier": nn.Linear(width, classes)}
    return two_parts(dict(list(stages.items())[:layers]), behind)


class _ResidualBlock(nn.Module):
    """Two convolutions of 3 (by 3) beside the identity, or beside a convolution of 1 where the shape changes."""

    def __init__(self, layer: type[nn.Conv1d | nn.Conv2d], inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            layer(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.GroupNorm(4, outputs),
            nn.ReLU(),
            layer(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(4, outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else layer(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "batch inputs *sides"]) -> Float[Tensor, "batch outputs *smaller"]:
        return functional.relu(self.layers(x) + self.shortcut(x))


class _Tokens(nn.Module):
    """Patches of an image or windows of a signal, each mapped linearly to a token, with its learned position."""

    def __init__(self, inputs: int, sides: Sequence[int], patch: tuple[int, ...], width: int) -> None:
        super().__init__()
        # Zeros around the sample where it is no whole number of patches, rather than a border that nobody sees.
        padding = tuple(math.ceil(-side % size / 2) for side, size in zip(sides, patch, strict=True))
        self.project = CONVOLUTIONS[len(sides)](inputs, width, patch, stride=patch, padding=padding)  # type: ignore[arg-type]
        count = math.prod(math.ceil(side / size) for side, size in zip(sides, patch, strict=True))
        self.position = nn.Parameter(0.02 * torch.randn(count, width))

    def forward(self, x: Float[Tensor, "batch inputs *sides"]) -> Float[Tensor, "batch tokens width"]:
        projected: Tensor = self.project(x)
        return projected.flatten(2).transpose(1, 2) + self.position


class _MeanOver(nn.Module):
    """The mean over one axis, where all sides of a sample are one axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Float[Tensor, "batch a *b"]) -> Float[Tensor, "batch c"]:
        return x.flatten(2).mean(self.axis)
