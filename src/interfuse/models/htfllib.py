"""The models of HtFLlib (github.com/TsingZ0/HtFLlib), whose users know them by groups such as HtFE8.

Whatever a network makes of an image, adaptive average pooling brings it to the agreed width, and that is the fusion
layer (``BaseHeadSplit`` there, with a width of 512). The linear modular block is that of the zoo's other models, so
that models of all architectures have it in common. A vision transformer has a hidden layer before it, as there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from interfuse.errors import ModelError
from interfuse.models.layers import Shape, head, two_parts
from interfuse.models.split import SplitModel
from interfuse.models.torchvision_like import NETWORKS, Network, Stages

_CNN, _GOOGLENET, _MOBILENET = "htfl-cnn", "tv-googlenet", "tv-mobilenetv2"
_DEEP = tuple(f"tv-resnet{depth}" for depth in (18, 34, 50, 101, 152))
_HTFE4 = (_CNN, _GOOGLENET, _MOBILENET, _DEEP[0])
_HTFE8 = (*_HTFE4, *_DEEP[1:])
_LINEAR = ("",)
_HTC4 = ("", "-h512", "-h256", "-h128")
"""[512], [512, 512], [512, 256] and [512, 128] there, where the first number is the width of the features."""

_GROUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "HtFE2": ((_CNN, _DEEP[0]), _LINEAR),
    "HtFE3": (("tv-resnet10", *_DEEP[:2]), _LINEAR),
    "HtFE4": (_HTFE4, _LINEAR),
    "HtFE5": ((_GOOGLENET, _MOBILENET, *_DEEP[:3]), _LINEAR),
    "HtFE8": (_HTFE8, _LINEAR),
    "HtFE9": ((*(f"tv-resnet{depth}" for depth in (4, 6, 8, 10)), *_DEEP), _LINEAR),
    "Res34-HtC4": (("tv-resnet34",), _HTC4),
    "HtFE8-HtC4": (_HTFE8, _HTC4),
    "HtM10": ((*_HTFE8, "tv-vit-b16", "tv-vit-b32"), _LINEAR),
}
"""Networks and modular blocks of each group; both are dealt in turn."""

_NARROW = "-narrow"
_DIVISORS = {"": 1, _NARROW: 4}
_VIT_HIDDEN = 768


def groups() -> dict[str, tuple[str, ...]]:
    """The names of the models of each group, and of narrow ones by its name with ``-narrow`` behind it."""
    return {
        f"{group}{ending}": tuple(
            f"{networks[place % len(networks)]}{ending}{heads[place % len(heads)]}"
            for place in range(math.lcm(len(networks), len(heads)))
        )
        for ending in _DIVISORS
        for group, (networks, heads) in _GROUPS.items()
    }


def builders() -> dict[str, Callable[[Shape, int, int], SplitModel]]:
    """The builder of each network at full width."""
    found: dict[str, Callable[[Shape, int, int], SplitModel]] = {}
    for name, network in _NETWORKS.items():
        build = partial(_model, name, "", None)
        block = "linear modular block" if network.patch == 1 else f"{_VIT_HIDDEN} in the modular block"
        build.__doc__ = f"{network.summary}, pooled to the width; {block}."
        found[name] = build
    return found


def named(name: str) -> Callable[[Shape, int, int], SplitModel] | None:
    """The builder for such a name as ``htfl-cnn``, ``tv-resnet34-h256`` or ``tv-googlenet-narrow``; None for others.

    Behind the network come, where wanted and in this order, ``-narrow`` (a quarter of all widths) and ``-h`` with the
    units of a hidden layer of the modular block.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return partial(_model, found["network"], found["narrow"] or "", found["hidden"])


def _cnn(shape: Shape, divisor: int) -> Stages:
    """McMahan et al., AISTATS 2017, without padding."""
    channels, *sides = shape
    area = math.prod(((side - 4) // 2 - 4) // 2 for side in sides)
    few, many, features = (width // divisor for width in (32, 64, 512))
    return {
        "conv1": nn.Sequential(nn.Conv2d(channels, few, 5), nn.ReLU(), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(nn.Conv2d(few, many, 5), nn.ReLU(), nn.MaxPool2d(2)),
        "fc1": nn.Sequential(nn.Flatten(), nn.Linear(many * area, features), nn.ReLU()),
    }


_NETWORKS: Mapping[str, Network] = {
    _CNN: Network("HtFLlib's CNN of four layers", _cnn, least=16),  # 16, 12, 6, 2 and 1 point a side
    **NETWORKS,
}
_NAME = re.compile(rf"(?P<network>{'|'.join(_NETWORKS)})(?P<narrow>{_NARROW})?(?:-h(?P<hidden>[1-9]\d{{0,3}}))?")


def _model(name: str, ending: str, hidden: str | None, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    network, divisor = _NETWORKS[name], _DIVISORS[ending]
    layers = network.stages(_image(name, network, sample_shape), divisor) | {"fusion": nn.AdaptiveAvgPool1d(width)}
    base = {f"{name}{ending}.{key}": layer for key, layer in layers.items()}
    if hidden is not None:
        return two_parts(base, head(f"h{hidden}", (width, int(hidden), classes)))
    if network.patch == 1:
        return two_parts(base, {"classifier": nn.Linear(width, classes)})
    inner = _VIT_HIDDEN // divisor
    return two_parts(
        base,
        {
            f"tv-vit{ending}.head1": nn.Sequential(nn.Linear(width, inner), nn.Tanh()),
            f"tv-vit{ending}.classifier": nn.Linear(inner, classes),
        },
    )


def _image(name: str, network: Network, sample_shape: Shape) -> Shape:
    """The shape of a sample, which must be an image that the network can take.

    Raises:
        ModelError: it is none; the text names the model.
    """
    _, *sides = sample_shape
    if len(sides) != 2 or min(sides) < network.least or any(side % network.patch for side in sides):
        needed = f"at least {network.least}" if network.patch == 1 else f"a multiple of {network.patch}"
        raise ModelError(
            f"model {name!r} takes images (channels, height, width) of {needed} points a side, not samples of shape "
            f"{sample_shape}; cnn and residual take any image and signal, mlp and shallow any quantities"
        )
    return sample_shape
