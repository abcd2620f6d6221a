"""ResNets of five depths whose stages nest, at any width, with a choice of normalisation and with early exits.

A stage has one name in all depths (``layer2.0`` is the first block of the second group), so the tensors of a shallower
network are a part of those of a deeper one, and those of a narrower network slices of those of a wider one. The parts
are FedIN's: ``extractor`` (the stem), ``intermediate`` (all blocks and the pooling) and ``classifier``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from interfuse.models.layers import CONVOLUTIONS, Shape, grid
from interfuse.models.split import SplitModel

DEPTHS: Mapping[int, tuple[int, ...]] = {
    10: (1, 1, 1, 1), 14: (1, 1, 2, 2), 18: (2, 2, 2, 2), 22: (2, 2, 3, 3), 26: (3, 3, 3, 3)
}  # fmt: skip
"""Blocks in each of the four groups, by the number of layers with weights."""

WIDTHS = {"": 64, "-narrow": 16}
"""Channels of the first group by the ending of the name; each group has twice as many as the one before."""

NormName = Literal["batch", "group", "static"]
Norm = Callable[[int], nn.Module]
"""A normalisation of so many channels."""

_NAME = re.compile(
    r"resnet(?P<depth>10|14|18|22|26)(?P<width>-narrow)?(?:-(?P<norm>group|static))?(?:-exits(?P<exits>[1-4]))?"
    r"(?:@(?P<rate>1|1\.0|0?\.\d*[1-9]\d*))?"
)
_NORMS: Mapping[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_POOLINGS: Mapping[int, type[nn.MaxPool1d | nn.MaxPool2d]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d}


def named(name: str) -> Callable[[Shape, int, int], SplitModel] | None:
    """The builder for such a name as ``resnet18``, ``resnet10-narrow-group``, ``resnet26-exits2@0.7``; None for others.

    Behind the depth come, where wanted and in this order, ``-narrow`` (16 channels at first, not 64), the normalisation
    ``-group`` or ``-static`` instead of batch normalisation, ``-exits1`` to ``-exits4`` (an exit behind each of the
    first so many groups, where the network ends), and ``@`` with the rate at which hidden channels are kept.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return resnet(
        int(found["depth"]),
        width=WIDTHS[found["width"] or ""],
        norm=cast(NormName, found["norm"] or "batch"),
        exits=int(found["exits"] or 0),
        rate=Fraction(found["rate"] or 1),
    )


def resnet(
    depth: int, *, width: int = 64, norm: NormName = "batch", exits: int = 0, rate: Fraction = Fraction(1)
) -> Callable[[Shape, int, int], SplitModel]:
    """A builder of a ResNet of basic blocks (He et al., CVPR 2016) with the stem for large images.

    The features are as wide as the last group, whatever width is asked for: 512 for the full width.

    Args:
        depth: Layers with weights: 10, 14, 18, 22 or 26.
        width: Channels of the first group.
        norm: Batch normalisation, group normalisation, or batch normalisation that has no running statistics and uses
            those of the batch in evaluation too (static: Diao et al., ICLR 2021).
        exits: End behind this group, with an exit (:class:`Exit`) behind it and each before it; 0 for one classifier.
        rate: Every hidden number of channels n becomes ⌈rate · n⌉.
    """
    build = partial(_resnet, depth, width, norm, exits, rate)
    build.__doc__ = (
        f"A ResNet of {depth} layers with {width} to {8 * width} channels; its features are the fused vector."
    )
    return build


def _resnet(
    depth: int, width: int, norm: NormName, exits: int, rate: Fraction, sample_shape: Shape, classes: int, _width: int
) -> SplitModel:
    inputs, *sides = grid(f"resnet{depth}", sample_shape)
    norm_of = _norm(norm, len(sides))
    channels = math.ceil(rate * width)
    stages: dict[str, nn.Module] = {"stem": Stem(len(sides), inputs, channels, norm_of)}
    for group, blocks in enumerate(DEPTHS[depth][: exits or None], 1):
        outputs = math.ceil(rate * width * 2 ** (group - 1))
        for block in range(blocks):
            stride = 2 if group > 1 and block == 0 else 1
            stages[f"layer{group}.{block}"] = BasicBlock(len(sides), channels, outputs, stride, norm_of)
            channels = outputs
        if exits:
            stages[f"exit{group}"] = Exit(channels, classes, last=group == exits)
    if not exits:
        stages |= {"pool": Mean(), "fc": nn.Linear(channels, classes)}
    first, *middle, last = stages
    return SplitModel(stages, {"extractor": (first,), "intermediate": tuple(middle), "classifier": (last,)})


class Exit(nn.Module):
    """A classifier of a feature map. In the middle of a model it hands its input on to the next stage."""

    def __init__(self, channels: int, classes: int, *, last: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        self.last = last

    def forward(self, x: Float[Tensor, "batch channels *sides"]) -> Tensor:
        return self.logits(x) if self.last else x

    def logits(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch classes"]:
        scores: Tensor = self.fc(x.flatten(2).mean(2))
        return scores


def exit_logits(model: SplitModel, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
    """The logits of every exit, from input to output; of a model without exits the one it has, its output."""
    early: list[Tensor] = []
    for name in model.stage_names:
        stage = model.get_submodule(name)
        if isinstance(stage, Exit) and not stage.last:
            early.append(stage.logits(x))
        x = stage(x)
    return [*early, x]


class Stem(nn.Module):
    """Convolution of 7 (by 7) and maximum pooling, each of stride 2."""

    def __init__(self, sides: int, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.conv = bias_free(sides, inputs, outputs, 7, stride=2)
        self.norm = norm(outputs)
        self.pool = _POOLINGS[sides](3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "batch inputs *sides"]) -> Float[Tensor, "batch outputs *smaller"]:
        # ReLU and the maximum commute, and behind pooling there is a quarter of the values: see `arranging`
        return functional.relu(self.pool(self.norm(self.conv(x))))


class BasicBlock(nn.Module):
    """Two convolutions of 3 (by 3) beside the identity, or beside a convolution of 1 where the shape changes."""

    def __init__(self, sides: int, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = bias_free(sides, inputs, outputs, 3, stride), norm(outputs)
        self.conv2, self.norm2 = bias_free(sides, outputs, outputs, 3), norm(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1:  # the same blocks at every rate, however few channels are left
            self.shortcut.add_module("conv", bias_free(sides, inputs, outputs, 1, stride))
            self.shortcut.add_module("norm", norm(outputs))

    def forward(self, x: Float[Tensor, "batch inputs *sides"]) -> Float[Tensor, "batch outputs *smaller"]:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Mean(nn.Module):
    """The mean over all sides: one vector a sample."""

    def forward(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch channels"]:
        return x.flatten(2).mean(2)


class _StaticNorm(nn.Module):
    """Batch normalisation by the statistics of the batch, in training and in evaluation. One value alone becomes 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch channels *sides"]:
        # not functional.batch_norm: it refuses one value
        return torch.batch_norm(
            x, self.weight, self.bias, None, None, True, 0.0, 1e-5, torch.backends.cudnn.enabled
        )  # fmt: skip


class _TwoGroups(nn.GroupNorm):
    """Group normalisation that takes one value alone too, which becomes 0.

    Two groups, or one where channels are odd in number, so that they are large: at the end of the network, where a map
    has shrunk to a point, a group of one channel would be normalised to nothing.
    """

    def forward(self, input: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch channels *sides"]:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _norm(name: NormName, sides: int) -> Norm:
    kinds: dict[str, Norm] = {
        "batch": _NORMS[sides],
        "group": lambda channels: _TwoGroups(math.gcd(channels, 2), channels),
        "static": _StaticNorm,
    }
    assert set(kinds) == set(get_args(NormName))
    return kinds[name]


def bias_free(sides: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """A convolution without bias that keeps the sides, but for the stride; drawn as by He et al. (ICCV 2015)."""
    layer = CONVOLUTIONS[sides](inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
