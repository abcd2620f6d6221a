"""From rows as stored to a model's inputs, and back: by mean and deviation of each channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from interfuse.errors import DataError

_FAR = 100.0
"""Standard deviations between a mean and 0 from which it is subtracted first."""


@dataclass(frozen=True)
class Normalisation:
    """``(x / scale - mean) / std`` as float32.

    :param scale: ``x / scale`` maps a row to [0, 1]: 255 for usual images, 1 for floats that need none.
    :param mean: of the scaled training rows, one number a channel (axis 1), or one for all channels.
    :param std: as ``mean``; positive.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Shaped[Tensor, "batch *sample"]) -> Float[Tensor, "batch *sample"]:
        """The rows normalised, a new tensor on the device of ``x``."""
        factors = [1 / (self.scale * std) for std in self.std]
        offsets = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        out = x.to(torch.float32, copy=True)
        if max(map(abs, offsets)) > _FAR:
            # the product would round away what the sum is to tell apart
            mean = torch.tensor(self.mean, dtype=torch.float64).mul_(self.scale).float().to(x.device)
            factor = torch.tensor(factors, device=x.device)
            shape = (-1, *[1] * (x.ndim - 2)) if len(factors) > 1 else (1,)
            return out.sub_(mean.reshape(shape)).mul_(factor.reshape(shape))
        # One multiplication and one addition in place beat the formula as written and torch.addcmul two to four times.
        if len(factors) == 1:
            return out.mul_(factors[0]).add_(offsets[0])
        per_channel = (-1, *[1] * (x.ndim - 2))
        factor, offset = torch.tensor([factors, offsets], device=x.device).reshape(2, *per_channel)
        return out.mul_(factor).add_(offset)

    def undone(self, x: Float[Tensor, "batch *sample"]) -> Float64[Tensor, "batch *sample"]:
        """The rows that normalised ones are of: the inverse, up to rounding."""
        numbers = torch.tensor([self.std, self.mean], dtype=torch.float64, device=x.device)
        std, mean = numbers.reshape(2, -1, *[1] * (x.ndim - 2)).unbind()
        return x.double().mul(std).add(mean).mul(self.scale)

    def check(self, channels: int) -> None:
        """Check that it fits so many channels.

        Raises:
            DataError: it does not.
        """
        require(math.isfinite(self.scale) and self.scale > 0, f"scale is {self.scale}, must be positive")
        for name, values in (("mean", self.mean), ("std", self.std)):
            many = f"{name} has {len(values)} numbers; {channels} channels need as many, or 1"
            require(len(values) in (1, channels), many)
            require(all(map(math.isfinite, values)), f"{name} is not finite")
        require(min(self.std) > 0, "std must be positive; give 1 for a constant channel")


def normalisation_of(
    x: Tensor, scale: float | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalisation:
    """The normalisation of training rows: by what is given, and else by their own moments.

    Args:
        scale: 255 for bytes and 1 for other numbers where it is not given.
    """
    if scale is None:
        scale = 255.0 if x.dtype == torch.uint8 else 1.0
    if mean is None or std is None:
        found_mean, found_std = _moments(x, scale)
        mean = found_mean if mean is None else mean
        std = found_std if std is None else std
    return Normalisation(scale, tuple(mean), tuple(std))


def _moments(x: Tensor, scale: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of ``x / scale`` per channel (axis 1), summed in float64."""
    channels = x.transpose(0, 1).flatten(1) if x.ndim > 1 and x.numel() else torch.zeros(1, 1)
    variance, mean = zip(*(_variance_mean(channel) for channel in channels), strict=True)
    std = [math.sqrt(v) / scale for v in variance]
    return [m / scale for m in mean], [s if s > 0 else 1.0 for s in std]


def _variance_mean(values: Tensor) -> tuple[float, float]:
    if values.dtype == torch.uint8:
        # Counting the 256 values needs no float copy of a large image set.
        counts = torch.bincount(values, minlength=256).double()
        grey = torch.arange(256, dtype=torch.float64)
        mean = (counts @ grey) / counts.sum()
        return float((counts @ (grey - mean) ** 2) / counts.sum()), float(mean)
    variance, mean = torch.var_mean(values.double(), correction=0)
    return float(variance), float(mean)


def require(condition: bool, problem: str) -> None:
    """Check what must hold of data.

    Raises:
        DataError: it does not; the text is ``problem``.
    """
    if not condition:
        raise DataError(problem)
