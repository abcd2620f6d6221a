"""The models of HtFLlib (github.com/TsingZ0/HtFLlib), whose users know them by groups such as HtFE8.

Whatever a network makes of an image, adaptive average pooling brings it to the agreed width, and that is the fusion
layer (``BaseHeadSplit`` there, with a width of 512). The linear modular block is that of the zoo's other models, so
that models of all architectures have it in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from interfuse.errors import ModelError
from interfuse.models.layers import Shape, two_parts
from interfuse.models.split import SplitModel

_LEAST = 16
"""Points a side that two unpadded convolutions of 5 by 5 with pooling by 2 need: 16, 12, 6, 2, 1."""


def htfl_cnn(sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """HtFLlib's CNN of four layers (McMahan et al., 2017): two 5x5 convolutions, 512, linear modular block."""
    channels, *sides = _image("htfl-cnn", sample_shape, least=_LEAST)
    area = math.prod(((side - 4) // 2 - 4) // 2 for side in sides)
    layers = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
        "fc1": nn.Sequential(nn.Flatten(), nn.Linear(64 * area, 512), nn.ReLU()),
    }
    return _pooled("htfl-cnn", layers, classes, width)


def _pooled(name: str, layers: Mapping[str, nn.Module], classes: int, width: int) -> SplitModel:
    """Layers that end in a vector, pooled to the width, and the linear modular block."""
    base = {f"{name}.{key}": layer for key, layer in {**layers, "fusion": nn.AdaptiveAvgPool1d(width)}.items()}
    return two_parts(base, {"classifier": nn.Linear(width, classes)})


def _image(name: str, sample_shape: Shape, *, least: int) -> Shape:
    """The shape of a sample, which must be an image of so many points a side.

    Raises:
        ModelError: it is none; the text names the model.
    """
    if len(sample_shape) != 3 or min(sample_shape[1:]) < least:
        raise ModelError(
            f"model {name!r} takes images (channels, height, width) of at least {least} points a side, not samples of "
            f"shape {sample_shape}; images of any size, signals and other quantities fit cnn, mlp and shallow"
        )
    return sample_shape
