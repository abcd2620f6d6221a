"""k-means whose clusters are of so many rows at least."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def k_means(
    x: Float[Tensor, "rows values"], k: int, fewest: int, generator: torch.Generator, most_steps: int = 100
) -> Float[Tensor, "clusters values"]:
    """Centroids of at most ``k`` clusters, each the mean of ``fewest`` rows at least; none where there are fewer rows.

    Lloyd's algorithm (1982) from k-means++ (Arthur and Vassilvitskii, SODA 2007), until nothing changes. In each step
    the smallest cluster is dissolved, its rows going to the nearest others, until none is too small.
    """
    if len(x) < fewest:
        return x[:0]
    centres, before = _spread_out(x, min(k, len(x) // fewest), generator), torch.empty(0)
    for _ in range(most_steps):
        nearest, centres = _large_clusters(x, centres, fewest)
        if torch.equal(nearest, before):
            break
        centres, before = _means(x, nearest, len(centres)), nearest
    return centres


def _large_clusters(
    x: Float[Tensor, "rows values"], centres: Float[Tensor, "k values"], fewest: int
) -> tuple[Int64[Tensor, "rows"], Float[Tensor, "fewer values"]]:
    """The nearest centre of each row, where none has fewer than so many rows, and these centres."""
    squares = torch.cdist(x, centres)
    while True:
        nearest = squares.argmin(1)
        sizes = torch.bincount(nearest, minlength=squares.shape[1])
        if int(sizes.min()) >= fewest:
            return nearest, centres
        others = torch.arange(len(sizes), device=sizes.device) != sizes.argmin()
        squares, centres = squares[:, others], centres[others]


def _means(x: Float[Tensor, "rows values"], nearest: Int64[Tensor, "rows"], k: int) -> Float[Tensor, "k values"]:
    sums = x.new_zeros(k, x.shape[1]).index_add(0, nearest, x)
    return sums / torch.bincount(nearest, minlength=k)[:, None]


def _spread_out(x: Float[Tensor, "rows values"], k: int, generator: torch.Generator) -> Float[Tensor, "k values"]:
    """Rows drawn one after the other, with probabilities as the squares of their distances from those drawn before."""
    place = torch.randint(len(x), (1,), generator=generator).to(x.device)
    chosen = [x[place]]
    squares = torch.cdist(x, chosen[0]).square().flatten()
    for _ in range(k - 1):
        reach = squares.cpu().double().cumsum(0)
        wanted = torch.rand(1, dtype=torch.float64, generator=generator) * reach[-1]
        chosen.append(x[torch.searchsorted(reach, wanted, right=True).clamp(max=len(x) - 1).to(x.device)])
        squares = torch.minimum(squares, torch.cdist(x, chosen[-1]).square().flatten())
    return torch.cat(chosen)
