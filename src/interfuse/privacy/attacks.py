"""What samples that are drawn, or stand for samples, tell of the rows they were learnt from.

All attacks are on tensors: samples ``[n, *sample]`` of one scale, such as pixels from 0 to 1. Every figure comes with a
95 % interval and the number of rows behind it. An attack that finds nothing shows that this attack finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

_NORMAL = 1.959964
"""Standard deviations on each side of a normal mean that 95 % are within."""
_AT_ONCE = 1 << 24
"""Distances worked out together."""
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
"""Of the structural similarity, as Wang et al. (2004) use them."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and how many rows are behind it; NaN where there is none."""

    value: float
    low: float
    high: float
    rows: int

    def __str__(self) -> str:
        """The figure with its interval."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {self.rows:,} rows"


def median(values: Float[Tensor, "n"]) -> Estimate:
    """Their median, with the interval of order statistics: it holds for any distribution, infinite values included."""
    ordered, n = values.double().sort().values, len(values)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    half = _NORMAL * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half) - 1)
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return Estimate(float(middle), float(ordered[low]), float(ordered[max(low, high)]), n)


def part(hits: Bool[Tensor, "n"]) -> Estimate:
    """The share of rows that are hits, with Wilson's interval (1927), which is none of width 0 where none is a hit."""
    n = len(hits)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    p, z = float(hits.double().mean()), _NORMAL**2 / n
    middle, half = p + z / 2, _NORMAL * math.sqrt(p * (1 - p) / n + z / (4 * n))
    low, high = ((middle + sign * half) / (1 + z) for sign in (-1, 1))
    return Estimate(p, max(0.0, low), min(1.0, high), n)


def area(members: Float[Tensor, "m"], others: Float[Tensor, "n"]) -> Estimate:
    """The area under the ROC curve of scores that should be larger for members: how likely a member has the larger one,
    ties half (Mann and Whitney, 1947). 0.5 is chance.

    The interval is that of DeLong et al. (1988); it has width 0 where all members are above all others, or none is.
    """
    m, n = len(members), len(others)
    if not m or not n:
        return Estimate(math.nan, math.nan, math.nan, m + n)
    wins_of_members = _wins(members.double(), others.double())
    wins_of_others = 1 - _wins(others.double(), members.double())
    value = float(wins_of_members.mean())
    spread = sum(float(w.var()) / len(w) if len(w) > 1 else 0.25 for w in (wins_of_members, wins_of_others))
    half = _NORMAL * math.sqrt(spread)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), m + n)


def _wins(values: Float[Tensor, "m"], over: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    """For each value the share of the others below it, equal ones half."""
    ordered = over.sort().values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * len(over))


def nearest(
    x: Shaped[Tensor, "n *sample"], rows: Shaped[Tensor, "m *sample"]
) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
    """The distance of each sample to the row nearest to it, and which it is.

    Distances are root mean squares over the values of a sample; 0 is the very same sample.
    """
    if not len(rows):
        return torch.full((len(x),), torch.inf, dtype=torch.float64), torch.zeros(len(x), dtype=torch.int64)
    flat, others = x.flatten(1).double(), rows.flatten(1).double()
    squares, places = others.square().sum(1), []
    for piece in torch.split(flat, max(1, _AT_ONCE // len(others))):
        places.append((squares - 2 * piece @ others.T).argmin(1))
    place = torch.cat(places)
    # anew: the product rounds, so that of a copy it leaves a little
    return (flat - others[place]).square().mean(1).sqrt(), place


def nearest_of_class(
    x: Shaped[Tensor, "n *sample"], y: Int64[Tensor, "n"], rows: Shaped[Tensor, "m *sample"], of: Int64[Tensor, "m"]
) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
    """The same among the rows of a sample's own class; infinite where there is none.

    Args:
        y: Classes of the samples.
        of: Classes of the rows.
    """
    distance = torch.full((len(x),), torch.inf, dtype=torch.float64)
    place = torch.zeros(len(x), dtype=torch.int64)
    for label in sorted(set(y.tolist())):
        own, there = (y == label).nonzero().flatten(), (of == label).nonzero().flatten()
        if len(there):
            distance[own], found = nearest(x[own], rows[there])
            place[own] = there[found]
    return distance, place


@dataclass(frozen=True)
class Copies:
    """How near samples come to training rows, beside fresh rows that nobody has trained on.

    Attributes:
        distance: Median distance of a sample to the nearest training row of its class.
        reference: The same of a fresh row: what two unlike samples of one class are apart.
        verbatim: Share of samples that are a training row.
        nearly: Share that is nearer to a training row than 99 % of the fresh rows are; nothing where none is fresh.
    """

    distance: Estimate
    reference: Estimate
    verbatim: Estimate
    nearly: Estimate


def copies(
    x: Shaped[Tensor, "n *sample"],
    y: Int64[Tensor, "n"],
    train: tuple[Shaped[Tensor, "m *sample"], Int64[Tensor, "m"]],
    fresh: tuple[Shaped[Tensor, "k *sample"], Int64[Tensor, "k"]],
) -> Copies:
    """Whether samples with classes ``y`` are training rows, or nearly; samples of a class without any are left out."""
    own, _ = nearest_of_class(x, y, *train)
    others, _ = nearest_of_class(*fresh, *train)
    own, others = own[own.isfinite()], others[others.isfinite()]
    nearly = own < torch.quantile(others, 0.01) if len(others) else own[:0].bool()
    return Copies(median(own), median(others), part(own == 0), part(nearly))


def psnr(x: Float[Tensor, "n *sample"], y: Float[Tensor, "n *sample"], span: float = 1.0) -> Float[Tensor, "n"]:
    """10 log10 (span² / mean squared error) of each pair, in dB; infinite for equal ones.

    Args:
        span: From the least to the largest value that there can be.
    """
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * (span**2 / error).log10()


def ssim(
    x: Float[Tensor, "n channels height width"], y: Float[Tensor, "n channels height width"], span: float = 1.0
) -> Float[Tensor, "n"]:
    """The structural similarity of each pair of images, a mean over places and channels: 1 for equal ones.

    (2 μ_x μ_y + C_1)(2 σ_xy + C_2) / ((μ_x² + μ_y² + C_1)(σ_x² + σ_y² + C_2)) under a Gaussian window of 11 pixels
    with σ = 1.5, C_1 = (0.01 span)², C_2 = (0.03 span)², at all places where the window lies inside (Wang et al., IEEE
    Transactions on Image Processing, 2004). The window of a smaller image is the largest odd one that it holds.
    """
    side = min(_WINDOW, *x.shape[2:])
    side -= 1 - side % 2
    line = torch.exp(-(torch.arange(side).double() - side // 2).square() / (2 * _SIGMA**2))
    line = line / line.sum()
    window = torch.outer(line, line)[None, None]

    def mean(values: Tensor) -> Tensor:
        return functional.conv2d(values.flatten(0, 1)[:, None], window)

    a, b = x.double(), y.double()
    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    together = mean(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * together + c2)
    bottom = (mean_a.square() + mean_b.square() + c1) * (spread_a + spread_b + c2)
    return (top / bottom).flatten(1).mean(1).reshape(x.shape[:2]).mean(1)


def membership_by_draws(
    members: tuple[Shaped[Tensor, "m *sample"], Int64[Tensor, "m"]],
    others: tuple[Shaped[Tensor, "n *sample"], Int64[Tensor, "n"]],
    draws: tuple[Shaped[Tensor, "k *sample"], Int64[Tensor, "k"]],
) -> Estimate:
    """Whether rows that something was learnt from are nearer to what it draws of their class than other rows: the area
    under the ROC curve. Needs nothing but draws (Chen et al., GAN-Leaks, CCS 2020, full black-box)."""
    inside, outside = (nearest_of_class(*rows, *draws)[0] for rows in (members, others))
    return area(-inside[inside.isfinite()], -outside[outside.isfinite()])


def search_errors(
    decode: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n *sample"],
    starts: Sequence[Float[Tensor, "n latent"]],
    steps: int = 200,
    lr: float = 0.05,
) -> Float[Tensor, "n"]:
    """How well each sample can be made: the least root mean square error of ``decode(z)`` that Adam finds over z.

    Needs the decoder, and no encoder (Chen et al., GAN-Leaks, CCS 2020, white-box).

    Args:
        decode: From latent vectors to samples, differentiable; one row depends on one row.
        starts: Where the searches begin; the best of them counts.
    """
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for start in starts:
        z = start.detach().clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=lr)
        for step in range(steps + 1):
            errors = (decode(z) - x).square().flatten(1).mean(1)
            best = torch.minimum(best, errors.detach().double().sqrt())
            if step < steps:
                (z.grad,) = torch.autograd.grad(errors.sum(), [z])
                adam.step()
    return best
