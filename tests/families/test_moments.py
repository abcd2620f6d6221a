"""Moments by class: pooled ones are those of the union, and what is drawn has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interfuse.data import Batch
from interfuse.families.calibration import Gaussians
from interfuse.families.class_tables import ClassTable, mean_table, variances
from interfuse.families.moments import ClassMoments, Covariance, drawn, unbiased

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


def sent(rows: Batch, covariance: Covariance) -> ClassMoments:
    means = mean_table(rows, CLASSES)
    y = means.y
    return ClassMoments(means.rows[y], y.to(torch.uint8), means.count[y], variances(rows, means, covariance)[y])


def pooled(parts: list[Batch], covariance: Covariance, ridge: float = 0.0) -> tuple[ClassTable, Tensor]:
    found = Gaussians(CLASSES, D, covariance)
    for client, rows in enumerate(parts):
        found.take(client, sent(rows, covariance))
    means, of = found.result()
    return means, unbiased(means, of, ridge)


SIZES = [[5, 1, 0, 0], [1, 1, 0, 0], [0, 7, 1, 0], [12, 3, 0, 0]]


@KINDS
@pytest.mark.parametrize("clients", [1, 4])
def test_pooled_moments_are_those_of_the_union(covariance: Covariance, clients: int) -> None:
    """NumPy's unbiased covariance of all samples together; and by the formula of CCVR's authors."""
    parts = shares(SIZES[:clients])
    z, y = torch.cat([p.features for p in parts]), torch.cat([p.y for p in parts])
    means, table = pooled(parts, covariance)
    assert means.count.tolist() == y.bincount(minlength=CLASSES).tolist()
    for c in (c for c in range(CLASSES) if means.count[c] > 1):
        torch.testing.assert_close(means.rows[c], z[y == c].mean(0), rtol=1e-5, atol=1e-5)
        expected = torch.from_numpy(np.cov(z[y == c].double().numpy().T, ddof=1))
        torch.testing.assert_close(
            table[c], expected if covariance == "full" else expected.diagonal(), rtol=1e-4, atol=1e-4
        )
    assert not table[means.count < 2].any()
    if covariance == "full" and clients > 1:
        torch.testing.assert_close(table[0], by_formula(parts, 0), rtol=1e-4, atol=1e-4)


def by_formula(parts: list[Batch], c: int) -> Tensor:
    """Sum of (n_k - 1) / (n - 1) cov_k + n_k / (n - 1) m_k m_k', less n / (n - 1) m m'."""
    own = [rows.features[rows.y == c].double() for rows in parts]
    n, mean = sum(map(len, own)), torch.cat(own).mean(0)
    found = -n / (n - 1) * torch.outer(mean, mean)
    for z in own:
        if len(z):
            found += len(z) / (n - 1) * torch.outer(z.mean(0), z.mean(0))
        if len(z) > 1:
            found += (len(z) - 1) / (n - 1) * torch.from_numpy(np.cov(z.numpy().T, ddof=1))
    return found


def test_the_diagonal_is_that_of_the_full_form() -> None:
    (_, full), (_, diagonal) = (pooled(shares(SIZES), kind) for kind in ("full", "diagonal"))
    torch.testing.assert_close(full.diagonal(dim1=1, dim2=2), diagonal)


@KINDS
def test_a_ridge_is_for_classes_of_fewer_samples_than_features(covariance: Covariance) -> None:
    parts = shares([[2, 3, 1, 0]])
    (_, plain), (_, ridged) = pooled(parts, covariance), pooled(parts, covariance, 0.5)
    scale = (plain[0].diagonal() if covariance == "full" else plain[0]).mean()
    added = ridged - plain
    expected = 0.5 * scale * (torch.eye(D) if covariance == "full" else torch.ones(D))
    torch.testing.assert_close(added[0], expected.double(), rtol=1e-6, atol=1e-6)
    assert not added[1:].any()


@KINDS
def test_what_is_drawn_has_these_moments(covariance: Covariance) -> None:
    means, table = pooled(shares([[40, 9, 0, 1]]), covariance)
    rows = drawn(means, table, 40_000, torch.Generator().manual_seed(0))
    assert rows.y.bincount().tolist() == [40_000, 40_000, 0, 40_000]
    again = mean_table(rows, CLASSES)
    torch.testing.assert_close(again.rows[:2], means.rows[:2], rtol=0.05, atol=0.05)
    spread = variances(Batch(rows.features.double(), rows.y), again, covariance)[:2]
    torch.testing.assert_close(spread, table[:2], rtol=0.05, atol=0.1)
    lonely = rows.features[rows.y == 3]
    assert torch.equal(lonely, means.rows[3].expand_as(lonely))


def test_features_without_variance_and_covariances_that_are_none_give_numbers() -> None:
    means, table = pooled([Batch(torch.zeros(5, D), torch.tensor([0, 0, 0, 1, 1]))], "full", 0.01)
    assert not drawn(means, table, 3, torch.Generator()).features.any()
    one = ClassTable(torch.zeros(1, 2), torch.tensor([9.0]))
    indefinite = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    rows = drawn(one, unbiased(one, indefinite, 0.0), 2000, torch.Generator().manual_seed(0)).features
    torch.testing.assert_close(rows[:, 0], rows[:, 1])  # what is left is the eigenvector of 3
