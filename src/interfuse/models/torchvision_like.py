"""Networks of torchvision's shape, from image to feature vector: ResNets, GoogLeNet, MobileNetV2, vision transformers.

Written from the papers and from what torchvision documents of its models; with a linear layer to 1,000 classes they
have the published numbers of parameters and multiplications at 224 by 224. Initial values are drawn as there. ResNets
of 4, 6 and 8 layers end behind one, two and three groups (HtFLlib's).

A function here takes the shape of a sample and how many times narrower all layers are to be, and returns stages in
order; the output of the last is a vector a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from interfuse.models.layers import Shape
from interfuse.models.resnets import BasicBlock, Mean, Stem, bias_free

Stages = dict[str, nn.Module]


@dataclass(frozen=True)
class Network:
    """A network from image to feature vector."""

    summary: str
    stages: Callable[[Shape, int], Stages]
    """From the shape of a sample and the divisor of all widths."""
    least: int = 4
    """Points a side that an image must have."""
    patch: int = 1
    """Points a side of the patches that an image is cut into."""


_RESNETS: Mapping[int, tuple[tuple[int, ...], bool]] = {
    4: ((1,), False),
    6: ((1, 1), False),
    8: ((1, 1, 1), False),
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
"""Blocks in each group, and whether they are bottlenecks, by the number of layers with weights."""


def _resnet(depth: int, shape: Shape, divisor: int) -> Stages:
    """He et al., CVPR 2016; the stride of a bottleneck is at its 3x3 convolution."""
    groups, bottlenecks = _RESNETS[depth]
    block, expansion = (_Bottleneck, 4) if bottlenecks else (_basic, 1)
    channels = 64 // divisor
    stages: Stages = {"stem": Stem(2, shape[0], channels, nn.BatchNorm2d)}
    for number, blocks in enumerate(groups):
        inner = (64 << number) // divisor
        layers = []
        for place in range(blocks):
            layers.append(block(channels, inner, 2 if number and not place else 1))
            channels = expansion * inner
        stages[f"layer{number + 1}"] = nn.Sequential(*layers)
    return stages | {"pool": Mean()}


def _basic(inputs: int, channels: int, stride: int) -> nn.Module:
    return BasicBlock(2, inputs, channels, stride, nn.BatchNorm2d)


class _Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1, the last to four times the channels, beside the identity or a convolution of 1."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * channels
        self.conv1, self.norm1 = bias_free(2, inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = bias_free(2, channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.norm3 = bias_free(2, channels, outputs, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.add_module("conv", bias_free(2, inputs, outputs, 1, stride))
            self.shortcut.add_module("norm", nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        inner = functional.relu(self.norm1(self.conv1(x)))
        inner = functional.relu(self.norm2(self.conv2(inner)))
        return functional.relu(self.norm3(self.conv3(inner)) + self.shortcut(x))


_INCEPTIONS: Mapping[str, tuple[int, ...]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Channels of the four branches (two have a convolution of 1 first), by table 1 of the paper."""


def _googlenet(shape: Shape, divisor: int) -> Stages:
    """Szegedy et al., CVPR 2015, with batch normalisation and 3x3 in the place of 5x5, and without the two auxiliary
    classifiers, as torchvision has it."""

    def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        return _normalised(inputs, outputs, kernel, stride, eps=1e-3)

    wide, thin = 192 // divisor, 64 // divisor
    stages: Stages = {
        "conv1": nn.Sequential(layer(shape[0], thin, 7, 2), _pooling(3)),
        "conv2": nn.Sequential(layer(thin, thin, 1), layer(thin, wide, 3), _pooling(3)),
    }
    inputs = wide
    for name, widths in _INCEPTIONS.items():
        one, before_three, three, before_five, five, pooled = (width // divisor for width in widths)
        stages[f"inception{name}"] = _Branches(
            layer(inputs, one, 1),
            nn.Sequential(layer(inputs, before_three, 1), layer(before_three, three, 3)),
            nn.Sequential(layer(inputs, before_five, 1), layer(before_five, five, 3)),
            nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), layer(inputs, pooled, 1)),
        )
        inputs = one + three + five + pooled
        if name in ("3b", "4e"):
            stages[f"pool{name[0]}"] = _pooling(3 if name == "3b" else 2)
    for module in (module for stage in stages.values() for module in stage.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.01)
    return stages | {"pool": nn.Sequential(Mean(), nn.Dropout(0.2))}


def _pooling(size: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(size, stride=2, ceil_mode=True)


class _Branches(nn.Module):
    """Several layers beside each other; their outputs are joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        return torch.cat([branch(x) for branch in self.branches], 1)


_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and first stride of each group, by table 2 of the paper."""


def _mobilenetv2(shape: Shape, divisor: int) -> Stages:
    """Sandler et al., CVPR 2018."""
    channels = 32 // divisor
    stages: Stages = {"stem": _normalised(shape[0], channels, 3, 2, activation=nn.ReLU6)}
    for number, (expansion, outputs, blocks, first) in enumerate(_INVERTED, 1):
        widths = [channels, *[outputs // divisor] * blocks]
        strides = [first, *[1] * (blocks - 1)]
        layers = [_Inverted(*ends, expansion, stride) for ends, stride in zip(pairwise(widths), strides, strict=True)]
        stages[f"layer{number}"] = nn.Sequential(*layers)
        channels = widths[-1]
    stages["last"] = _normalised(channels, 1280 // divisor, 1, activation=nn.ReLU6)
    for module in (module for stage in stages.values() for module in stage.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return stages | {"pool": nn.Sequential(Mean(), nn.Dropout(0.2))}


class _Inverted(nn.Module):
    """To more channels, a convolution of each by itself, and back without a nonlinearity; beside the identity where
    the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        layers = [_normalised(inputs, inner, 1, activation=nn.ReLU6)] if expansion != 1 else []
        layers += [
            _normalised(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6),
            _normalised(inner, outputs, 1, activation=nn.Identity),
        ]
        self.layers = nn.Sequential(*layers)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        found: Tensor = self.layers(x)
        return x + found if self.same else found


def _vit(patch: int, shape: Shape, divisor: int) -> Stages:
    """Dosovitskiy et al., ICLR 2021, size B: 12 layers of 768, 12 heads; the features are those of the class token."""
    width = 768 // divisor
    return {
        "tokens": _Tokens(shape, patch, width),
        "encoder": nn.Sequential(*(_encoder_layer(width, 12 // divisor) for _ in range(12))),
        "token": nn.Sequential(_ClassToken(), nn.LayerNorm(width, eps=1e-6)),  # of one token: the others are not used
    }


def _encoder_layer(width: int, heads: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    for linear in (layer.linear1, layer.linear2):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(linear.bias, std=1e-6)
    return layer


class _Tokens(nn.Module):
    """The patches of an image, each mapped linearly, behind a class token; all with learned positions."""

    def __init__(self, shape: Shape, patch: int, width: int) -> None:
        super().__init__()
        channels, *sides = shape
        count = math.prod(side // patch for side in sides)
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        nn.init.trunc_normal_(self.project.weight, std=(channels * patch**2) ** -0.5)
        assert self.project.bias is not None
        nn.init.zeros_(self.project.bias)
        self.first = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(0.02 * torch.randn(1 + count, width))

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch tokens width"]:
        patches: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(x.shape[0], 1, -1), patches], 1) + self.position


class _ClassToken(nn.Module):
    """The first token of each sample."""

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        return x[:, 0]


def _normalised(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    eps: float = 1e-5,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A convolution without bias that keeps the sides (but for the stride), batch normalisation, a nonlinearity."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, eps=eps), activation())


NETWORKS: Mapping[str, Network] = {
    **{f"tv-resnet{depth}": Network(f"ResNet of {depth} layers", partial(_resnet, depth)) for depth in _RESNETS},
    "tv-googlenet": Network("GoogLeNet without auxiliary classifiers", _googlenet, least=15),
    "tv-mobilenetv2": Network("MobileNetV2", _mobilenetv2),
    **{
        f"tv-vit-b{patch}": Network(f"Vision transformer ViT-B/{patch}", partial(_vit, patch), least=patch, patch=patch)
        for patch in (16, 32)
    },
}
"""By name, in torchvision's form."""
