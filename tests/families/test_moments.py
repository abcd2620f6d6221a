"""Moments by class: pooled ones are those of the union, and what is drawn has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interfuse.data import Batch
from interfuse.errors import ClientError
from interfuse.families.moments import ClassMoments, Covariance, PooledMoments, class_moments

CLASSES, D = 4, 3
KINDS: Any = pytest.mark.parametrize("covariance", ["full", "diagonal"])


def shares(sizes: list[list[int]], seed: int = 0) -> list[Batch]:
    """Rows by client: so many of each class, in an order that is none."""
    noise = torch.Generator().manual_seed(seed)
    found = []
    for own in sizes:
        y = torch.tensor([c for c, n in enumerate(own) for _ in range(n)])[torch.randperm(sum(own), generator=noise)]
        mix = torch.randn(CLASSES, D, D, generator=noise)
        z = torch.einsum("nd,nde->ne", torch.randn(len(y), D, generator=noise), mix[y]) + 5 * y[:, None]
        found.append(Batch(z, y))
    return found


def pooled(parts: list[Batch], covariance: Covariance) -> PooledMoments:
    moments = PooledMoments(CLASSES, D, covariance)
    for client, rows in enumerate(parts):
        moments.take(client, class_moments(rows, CLASSES, covariance))
    return moments


def by_numpy(z: Tensor) -> np.ndarray:
    return np.atleast_2d(np.cov(z.double().numpy().T, ddof=1))


SIZES = [[5, 1, 0, 0], [1, 1, 0, 0], [0, 7, 1, 0], [12, 3, 0, 0]]


@KINDS
def test_pooled_moments_are_those_of_the_union(covariance: Covariance) -> None:
    parts = shares(SIZES)
    z, y = torch.cat([p.features for p in parts]), torch.cat([p.y for p in parts])
    found = pooled(parts, covariance)
    assert found.count.tolist() == [18, 12, 1, 0]
    table = found.covariance(0.0)
    for c in (0, 1):
        torch.testing.assert_close(found.mean[c], z[y == c].double().mean(0), rtol=1e-6, atol=1e-6)
        expected = torch.from_numpy(by_numpy(z[y == c]))
        own = expected if covariance == "full" else expected.diagonal()
        torch.testing.assert_close(table[c], own, rtol=1e-5, atol=1e-5)
    assert not table[2:].any()  # one sample, and none


@KINDS
def test_one_client_has_its_own_moments_and_order_does_not_matter(covariance: Covariance) -> None:
    own = class_moments(shares(SIZES[:1])[0], CLASSES, covariance)
    assert torch.equal(pooled(shares(SIZES[:1]), covariance).covariance(0.0)[:2].float(), own.covariance.float())
    parts = shares(SIZES)
    one, other = pooled(parts, covariance), pooled(parts[::-1], covariance)
    torch.testing.assert_close(one.covariance(0.0), other.covariance(0.0))


def test_the_diagonal_is_that_of_the_full_form() -> None:
    full, diagonal = (pooled(shares(SIZES), kind).covariance(0.0) for kind in ("full", "diagonal"))
    torch.testing.assert_close(full.diagonal(dim1=1, dim2=2), diagonal)


@KINDS
def test_a_ridge_is_for_classes_of_fewer_samples_than_features(covariance: Covariance) -> None:
    found = pooled(shares([[2, 3, 1, 0]]), covariance)
    plain, ridged = found.covariance(0.0), found.covariance(0.5)
    variances = plain.diagonal(dim1=1, dim2=2) if covariance == "full" else plain
    added = ridged - plain
    expected = 0.5 * variances[0].mean() * (torch.eye(D) if covariance == "full" else torch.ones(D))
    torch.testing.assert_close(added[0], expected.double())
    assert not added[1:].any()


@KINDS
def test_what_is_drawn_has_these_moments(covariance: Covariance) -> None:
    found = pooled(shares([[40, 9, 0, 1]]), covariance)
    drawn = found.drawn(40_000, 0.0, torch.Generator().manual_seed(0))
    assert drawn.y.bincount().tolist() == [40_000, 40_000, 0, 40_000]
    again = class_moments(drawn, CLASSES, covariance)
    torch.testing.assert_close(again.mean[:2].double(), found.mean[:2], rtol=0.05, atol=0.05)
    torch.testing.assert_close(again.covariance[:2].double(), found.covariance(0.0)[:2], rtol=0.05, atol=0.1)
    lonely = drawn.features[drawn.y == 3]
    assert torch.equal(lonely, found.mean[3].float().expand_as(lonely))


def test_features_without_variance_and_covariances_that_are_none_give_numbers() -> None:
    rows = Batch(torch.zeros(5, D), torch.tensor([0, 0, 0, 1, 1]))
    drawn = pooled([rows], "full").drawn(3, 0.01, torch.Generator())
    assert not drawn.features.any()
    negative = PooledMoments(1, 2, "full")
    indefinite = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    negative.take(
        0, ClassMoments(torch.zeros(1, 2), torch.zeros(1, dtype=torch.uint8), torch.tensor([9.0]), indefinite)
    )
    assert negative.drawn(10, 0.0, torch.Generator()).features.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": torch.tensor([1, 1], dtype=torch.uint8)}, "a class twice"),
        ({"count": torch.tensor([3.0, 0.0])}, "less than one sample"),
        ({"count": torch.tensor([-3.0, 2.0])}, "less than one sample"),
        ({"covariance": torch.zeros(2, D)}, r"shape \(3,\), not \(3, 3\)"),
        ({"covariance": torch.zeros(2, D, 1)}, r"shape \(3, 1\), not \(3, 3\)"),
    ],
)
def test_what_no_table_can_be_is_refused(change: dict[str, Tensor], said: str) -> None:
    good = {"y": torch.tensor([0, 2], dtype=torch.uint8), "count": torch.ones(2), "covariance": torch.zeros(2, D, D)}
    with pytest.raises(ClientError, match=f"client 7 .*{said}"):
        PooledMoments(CLASSES, D, "full").take(7, ClassMoments(mean=torch.zeros(2, D), **good | change))
