"""A conditional variational autoencoder of images, signals and table rows, and what draws samples with its decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from interfuse.data import Batch
from interfuse.models.layers import CONVOLUTIONS, TRANSPOSED, Cut, Shape
from interfuse.models.split import SplitModel

_CHANNELS = (16, 32)
"""Of the layers, from a sample inwards."""
_HIDDEN = 128
"""Units of the hidden layer for rows of a table."""


def autoencoder(shape: Shape, classes: int, latent: int) -> SplitModel:
    """Stages ``encoder`` and ``decoder``, both of which are told the class (Sohn et al., NeurIPS 2015).

    Args:
        shape: Of a sample: an image ``[channels, height, width]``, a signal ``[channels, time]``, or ``[columns]``.
        latent: Width of the latent code.
    """
    return SplitModel({"encoder": _Encoder(shape, classes, latent), "decoder": _decoder(shape, latent + classes)})


class _Encoder(nn.Module):
    """Samples ``x`` and one-hot labels ``y`` to mean and logarithm of the variance of the code, side by side."""

    def __init__(self, shape: Shape, classes: int, latent: int) -> None:
        super().__init__()
        inputs, *sides = shape
        layers: list[nn.Module] = [nn.Linear(inputs, _HIDDEN), nn.ReLU()]
        if sides:
            kind = CONVOLUTIONS[len(sides)]
            pairs = pairwise((inputs, *_CHANNELS))
            layers = [part for ends in pairs for part in (kind(*ends, 3, stride=2, padding=1), nn.ReLU())]
        self.inner = nn.Sequential(*layers, nn.Flatten())
        width = _CHANNELS[-1] * math.prod(_quarters(sides)) if sides else _HIDDEN
        self.code = nn.Linear(width + classes, 2 * latent)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = self.code(torch.cat([self.inner(x["x"]), x["y"]], 1))
        return found


def _decoder(shape: Shape, inputs: int) -> nn.Sequential:
    """From code and one-hot label, side by side, to a sample; of pixels the logits."""
    channels, *sides = shape
    if not sides:
        return nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, channels))
    kind, (outer, inner), start = TRANSPOSED[len(sides)], _CHANNELS, _quarters(sides)
    return nn.Sequential(
        nn.Linear(inputs, inner * math.prod(start)),
        nn.ReLU(),
        nn.Unflatten(1, (inner, *start)),
        kind(inner, outer, 4, stride=2, padding=1),
        nn.GroupNorm(4, outer),
        nn.ReLU(),
        kind(outer, channels, 4, stride=2, padding=1),
        Cut(sides),
    )


def _quarters(sides: list[int]) -> list[int]:
    return [-(-side // 4) for side in sides]


def lower_bound(model: SplitModel, batch: Batch, step: int, *, classes: int, pixels: bool) -> Float[Tensor, ""]:
    """−ELBO, the mean over a batch of −log p(x | z, y) + KL(q(z | x, y) ‖ N(0, 1)), summed over a sample.

    A pixel in [0, 1] has a Bernoulli likelihood (Kingma and Welling, ICLR 2014), another value a Gaussian one of
    variance 1.

    Args:
        batch: ``x`` is a mapping of samples ``x`` and the noise ``[batch, latent]`` of the codes.
    """
    assert not isinstance(batch.x, Tensor)
    x, y = batch.x["x"], functional.one_hot(batch.y, classes).to(batch.x["x"])
    mean, log_variance = model.run({"x": x, "y": y}, "encoder").chunk(2, 1)
    z = mean + batch.x["noise"] * (log_variance / 2).exp()
    made = model.run(torch.cat([z, y], 1), "decoder")
    if pixels:
        misfit = functional.binary_cross_entropy_with_logits(made, x, reduction="sum")
    else:
        misfit = (made - x).square().sum() / 2
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return (misfit + divergence) / len(x)


def codes(
    y: Int64[Tensor, "batch"], classes: int, latent: int, generator: torch.Generator
) -> Iterator[Float32[Tensor, "part inputs"]]:
    """Inputs of a decoder for these classes, drawn, in parts of at most 500."""
    for part in torch.split(y, 500):
        z = torch.randn(len(part), latent, generator=generator)
        yield torch.cat([z, functional.one_hot(part, classes).to(z)], 1)
