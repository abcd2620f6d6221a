"""Networks that draw samples from vectors, and the one way from what they put out to samples as models take them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interfuse.data import Shape
from interfuse.data.inputs import shape_text
from interfuse.errors import ModelError
from interfuse.models.layers import TRANSPOSED, Cut
from interfuse.models.split import SplitModel

_LEAK = 0.2


def vtc(latent: int, sample_shape: Shape, channels: int = 64) -> SplitModel:
    """A variational transposed convolution: vectors ``[batch, latent]`` to outputs ``[batch, *sample]``.

    The layers of a third-party reconstruction of FedVTC (arXiv:2508.01669), sized to the samples: a linear layer to
    ``channels`` maps of a quarter of each side, then two transposed convolutions that double it, with group
    normalisation: it has no statistics, of which a mean over unlike clients would fit nobody. Images
    ``(channels, height, width)`` are made by two-dimensional layers, signals ``(channels, time)`` by one-dimensional
    ones, and what goes beyond a side that is no multiple of 4 is cut off at both ends. Columns of a table
    ``(columns,)`` come of linear layers.

    Outputs are without bounds: :func:`as_samples` makes samples of them.

    Args:
        channels: Maps behind the linear layer, an even number; the next layer has half of them.

    Raises:
        ModelError: samples of another kind, or no even number of channels.
    """
    if not isinstance(sample_shape, tuple) or not 1 <= len(sample_shape) <= 3:
        raise ModelError(
            "a generator draws images (channels, height, width), signals (channels, time) and rows of a table, not "
            f"samples of shape {shape_text(sample_shape)}; take another data set or another method"
        )
    if channels < 2 or channels % 2:
        raise ModelError(f"a generator of {channels} channels: its second layer has half of them; give an even number")
    half = channels // 2
    if len(sample_shape) == 1:
        first = nn.Sequential(nn.Linear(latent, channels), nn.LeakyReLU(_LEAK))
        second = nn.Sequential(nn.Linear(channels, half), nn.LeakyReLU(_LEAK))
        return SplitModel({"first": first, "second": second, "last": nn.Linear(half, *sample_shape)})
    colours, *sides = sample_shape
    quarters, doubled = [math.ceil(side / 4) for side in sides], TRANSPOSED[len(sides)]
    maps = nn.Linear(latent, channels * math.prod(quarters))
    first = nn.Sequential(maps, nn.Unflatten(1, (channels, *quarters)), *_normed(channels))
    second = nn.Sequential(doubled(channels, half, 4, 2, 1, bias=False), *_normed(half))
    last = nn.Sequential(doubled(half, colours, 4, 2, 1, bias=False), Cut(sides))
    return SplitModel({"first": first, "second": second, "last": last})


def _normed(channels: int) -> tuple[nn.Module, nn.Module]:
    """Normalisation in eight groups, or as many as have two maps: a single point by itself has no variance."""
    return nn.GroupNorm(math.gcd(8, channels // 2) if channels > 1 else 1, channels), nn.LeakyReLU(_LEAK)


def as_samples(
    output: Float[Tensor, "batch *sample"], bounds: Float[Tensor, "2 channels"] | None
) -> Float[Tensor, "batch *sample"]:
    """Outputs of a generator as normalised samples, as models take them.

    Args:
        bounds: The least and the largest value of each channel, such as :attr:`.ClientData.bounds`: then the hyperbolic
            tangent of an output, from -1 to 1, is a place between them. None: samples have no bounds, and an output is
            a sample.
    """
    if bounds is None:
        return output
    low, high = bounds.reshape(2, -1, *(1,) * (output.dim() - 2)).unbind()
    return torch.lerp(low, high, (output.tanh() + 1) / 2)
