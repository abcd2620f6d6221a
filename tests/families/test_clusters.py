"""k-means against brute force; clusters are never smaller than asked."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from interfuse.families.clusters import k_means


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def best(x: Tensor, k: int, fewest: int) -> Tensor:
    """The centroids of the division into at most k clusters of so many rows that has the least squared distances."""
    found, least = x, float("inf")
    for chosen in product(range(k), repeat=len(x)):
        groups = [x[[place for place, own in enumerate(chosen) if own == one]] for one in sorted(set(chosen))]
        if min(map(len, groups)) < fewest or len(groups) < k:
            continue
        loss = sum(float((group - group.mean(0)).square().sum()) for group in groups)
        if loss < least:
            least, found = loss, torch.stack([group.mean(0) for group in groups])
    return found


def in_order(x: Tensor) -> Tensor:
    return x[x[:, 0].argsort()]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_that_lie_apart_are_those_of_brute_force(seed: int) -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 5.0]])
    x = centres.repeat(3, 1)[:7] + torch.rand(7, 2, generator=seeded(seed))
    torch.testing.assert_close(in_order(k_means(x, 3, 2, seeded(seed))), in_order(best(x, 3, 2)))


def test_what_is_too_small_goes_to_its_neighbours() -> None:
    """Without a bound the far row would be a centroid by itself, and so be sent as it is."""
    x = torch.tensor([[0.0], [1.0], [2.0], [30.0], [31.0], [32.0], [1000.0]])
    assert in_order(k_means(x, 3, 1, seeded())).flatten().tolist() == [1.0, 31.0, 1000.0]
    for seed in range(5):
        found = in_order(k_means(x, 3, 2, seeded(seed)))
        assert found.flatten().tolist() in ([1.0, 273.25], [pytest.approx(1096 / 7)])


@pytest.mark.parametrize("fewest", [1, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_every_centroid_is_a_mean_of_so_many_rows(fewest: int, seed: int) -> None:
    x = torch.randn(60, 4, generator=seeded(seed)) ** 3  # with rows far out
    found = k_means(x, 12, fewest, seeded(seed))
    nearest = torch.cdist(x, found).argmin(1)
    sizes = torch.bincount(nearest, minlength=len(found))
    assert 1 <= len(found) <= 60 // fewest
    assert int(sizes.min()) >= fewest
    means = torch.stack([x[nearest == one].mean(0) for one in range(len(found))])
    torch.testing.assert_close(found, means)


def test_too_few_rows_and_equal_rows() -> None:
    assert k_means(torch.randn(9, 3), 20, 10, seeded()).shape == (0, 3)
    assert k_means(torch.ones(30, 3), 20, 10, seeded()).tolist() == [[1.0, 1.0, 1.0]]
    one = torch.randn(10, 3, generator=seeded())
    torch.testing.assert_close(k_means(one, 20, 10, seeded()), one.mean(0, keepdim=True))


def test_a_seed_decides_all() -> None:
    x = torch.randn(200, 5, generator=seeded(1))
    assert torch.equal(k_means(x, 8, 10, seeded(3)), k_means(x, 8, 10, seeded(3)))
