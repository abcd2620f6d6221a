"""Tables by class against loops over all rows, and the statistics of the union of clients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.data import Batch
from interfuse.errors import ClientError
from interfuse.families.class_merging import Merging
from interfuse.families.class_tables import Spread, floored, mean_table, placed, variances

CLASSES, D = 5, 3
SPREADS: tuple[Spread, ...] = ("shared", "diagonal", "scalar", "full")
labels = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


def rows_of(y: list[int]) -> Batch:
    z = torch.randn(len(y), D, generator=torch.Generator().manual_seed(len(y)))
    return Batch(z + 3 * torch.tensor(y)[:, None], torch.tensor(y))


def by_hand(rows: Batch, spread: Spread) -> Tensor:
    """Within-class variances, divided by n, row by row."""
    own = {c: rows.features[rows.y == c].double() for c in range(CLASSES)}
    apart = {c: z - z.mean(0) for c, z in own.items() if len(z)}
    if spread == "shared":
        return torch.cat(list(apart.values())).square().mean(0, keepdim=True)
    full = torch.stack([apart[c].T @ apart[c] / len(own[c]) if c in apart else torch.zeros(D, D) for c in own])
    diagonal = full.diagonal(dim1=1, dim2=2)
    return {"full": full, "diagonal": diagonal, "scalar": diagonal.mean(1, keepdim=True)}[spread]


def sent(rows: Batch, spread: Spread) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    means = mean_table(rows, CLASSES)
    found = variances(rows, means, spread)
    return means.rows[means.y], means.y, means.count[means.y], found if spread == "shared" else found[means.y]


def merged(parts: list[Batch], spread: Spread, rule: Any = "total") -> Merging:
    merging = Merging(CLASSES, D, spread, rule)
    for client, rows in enumerate(parts):
        merging.add(client, *sent(rows, spread))
    return merging


@given(y=labels, spread=st.sampled_from(SPREADS))
@settings(max_examples=40, deadline=None)
def test_variances_are_within_classes(y: list[int], spread: Spread) -> None:
    rows = rows_of(y)
    torch.testing.assert_close(variances(rows, mean_table(rows, CLASSES), spread), by_hand(rows, spread).float())


@given(y=labels, spread=st.sampled_from(SPREADS), data=st.data())
@settings(max_examples=60, deadline=None)
def test_vtc_4_total_is_the_variance_of_the_union(y: list[int], spread: Spread, data: Any) -> None:
    rows = rows_of(y)
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))))
    parts = [Batch(rows.features[owner == k], rows.y[owner == k]) for k in owner.unique()]
    means, variance = merged(parts, spread).result()
    union = mean_table(rows, CLASSES)
    assert torch.equal(means.count, union.count)
    torch.testing.assert_close(means.rows, union.rows)
    torch.testing.assert_close(variance, by_hand(rows, spread).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("rule", ["total", "sq-weight", "pooled"])
def test_vtc_3_one_client_and_clients_that_are_alike_come_out_bit_for_bit(spread: Spread, rule: Any) -> None:
    rows = rows_of([0, 0, 0, 1, 1, 3])
    mean, y, _, variance = sent(rows, spread)
    for clients in (1, 2, 3):
        means, found = merged([rows] * clients, spread, rule).result()
        assert torch.equal(means.rows[y], mean)
        assert means.present.tolist() == [True, True, False, True, False]
        assert torch.equal(found if spread == "shared" else found[y], variance)
        assert not means.rows[[2, 4]].any()
        assert spread == "shared" or not found[[2, 4]].any()


def test_the_three_rules_by_their_formulas() -> None:
    parts = [rows_of([0, 0, 0, 1]), rows_of([0, 1, 1, 2, 2])]
    counts = torch.tensor([[3.0, 1, 0, 0, 0], [1.0, 2, 2, 0, 0]])
    own = torch.stack([variances(rows, mean_table(rows, CLASSES), "diagonal") for rows in parts])
    n = counts.sum(0).clamp(min=1)[:, None]
    pooled = (counts[:, :, None] * own).sum(0) / n
    squared = (counts.square()[:, :, None] * own).sum(0) / counts.square().sum(0).clamp(min=1)[:, None]
    torch.testing.assert_close(merged(parts, "diagonal", "pooled").result()[1], pooled)
    torch.testing.assert_close(merged(parts, "diagonal", "sq-weight").result()[1], squared)
    shared = torch.stack([variances(rows, mean_table(rows, CLASSES), "shared") for rows in parts])
    torch.testing.assert_close(merged(parts, "shared", "pooled").result()[1], (4 * shared[0] + 5 * shared[1]) / 9)
    expected = (16 * shared[0] + 25 * shared[1]) / 41
    torch.testing.assert_close(merged(parts, "shared", "sq-weight").result()[1], expected)


def test_one_sample_a_class_has_no_variance_until_a_floor_is_under_it() -> None:
    rows = rows_of([0, 2])
    for spread in SPREADS:
        _, found = merged([rows], spread).result()
        assert not found.any()
        assert floored(found, 1e-4).amin() == torch.tensor(1e-4)


def test_the_variance_of_far_clients_keeps_its_digits() -> None:
    """Where sums of squares would lose them all."""
    near = rows_of([0] * 10)
    far = Batch(near.features + 1e5, near.y)
    _, found = merged([far, far, far], "diagonal").result()
    torch.testing.assert_close(found[0], variances(far, mean_table(far, CLASSES), "diagonal")[0], rtol=1e-6, atol=0)


HOSTILE = {
    "no class": (torch.zeros(0, D), [], [], torch.zeros(0, D)),
    "twice": (torch.zeros(2, D), [1, 1], [1.0, 1.0], torch.zeros(2, D)),
    "above 0": (torch.zeros(2, D), [0, 1], [1.0, 0.0], torch.zeros(2, D)),
    "counts": (torch.zeros(1, D), [0], [-5.0], torch.zeros(1, D)),
    "below 0": (torch.zeros(1, D), [0], [1.0], torch.full((1, D), -1.0)),
    "shape": (torch.zeros(2, D), [0, 1], [1.0, 1.0], torch.zeros(1, D)),
    "a mean above": (torch.full((1, D), 3e38), [0], [1.0], torch.zeros(1, D)),
    "a variance above": (torch.zeros(1, D), [0], [1.0], torch.full((1, D), 3e38)),
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_rows_are_refused_by_client(words: str) -> None:
    mean, y, count, variance = HOSTILE[words]
    merging = Merging(CLASSES, D, "diagonal")
    merging.add(0, *sent(rows_of([0, 1]), "diagonal"))
    before = merging.result()
    with pytest.raises(ClientError, match=f"client 7 .*{words}") as caught:
        merging.add(7, mean, torch.tensor(y, dtype=torch.uint8), torch.tensor(count), variance)
    assert caught.value.client == 7
    assert torch.equal(before[1], merging.result()[1])


@given(y=labels)
@settings(max_examples=20, deadline=None)
def test_rows_are_placed_at_their_classes(y: list[int]) -> None:
    means = mean_table(rows_of(y), CLASSES)
    table = placed(means.rows[means.y], means.y.to(torch.uint8), CLASSES, means.count[means.y])
    assert torch.equal(table.rows, means.rows)
    assert torch.equal(table.count, means.count)
    assert means.y.tolist() == sorted(set(y))


def test_a_covariance_with_a_negative_diagonal_is_refused() -> None:
    """Off its diagonal it may be negative."""
    mean, y, count, covariance = sent(rows_of([0, 0, 1]), "full")
    merging = Merging(CLASSES, D, "full")
    covariance[0, 0, 1] = covariance[0, 1, 0] = -2.0
    merging.add(0, mean, y, count, covariance)
    covariance[1, 2, 2] = -1e-3
    with pytest.raises(ClientError, match="client 7 .*below 0"):
        merging.add(7, mean, y, count, covariance)
