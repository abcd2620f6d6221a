"""Class means against loops, and the features they are means of."""

from __future__ import annotations

from typing import Any

import torch
from by_hand import fused, means_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from worlds import federation, resident, shares_of, tiny_dataset, weights_of

from interfuse.data import Batch
from interfuse.families.prototypes import by_class, class_means, fused_share
from interfuse.methods.local import Local
from interfuse.models import SplitModel, pair

CLASSES = 5
labels = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


def rows_of(y: list[int]) -> Batch:
    return Batch(torch.randn(len(y), 3, generator=torch.Generator().manual_seed(len(y))), torch.tensor(y))


@given(y=labels)
@settings(max_examples=40, deadline=None)
def test_a_row_for_each_class_there_is_and_none_for_others(y: list[int]) -> None:
    rows = rows_of(y)
    means = class_means(rows, CLASSES)
    expected = means_by_hand(zip(rows.x, y, strict=True))
    assert means.y.tolist() == [label for _, label in expected]
    assert means.count.tolist() == [y.count(label) for _, label in expected]
    torch.testing.assert_close(means.mean, torch.stack([mean for mean, _ in expected]))


@given(y=labels, data=st.data())
@settings(max_examples=40, deadline=None)
def test_means_of_parts_by_their_counts_are_the_mean_of_the_union(y: list[int], data: Any) -> None:
    rows = rows_of(y)
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(y), max_size=len(y))))
    parts = [class_means(Batch(rows.x[owner == k], rows.y[owner == k]), CLASSES) for k in owner.unique()]
    joined = Batch(torch.cat([p.mean for p in parts]), torch.cat([p.y for p in parts]))
    merged, union = class_means(joined, CLASSES, torch.cat([p.count for p in parts])), class_means(rows, CLASSES)
    assert merged.y.tolist() == union.y.tolist()
    assert merged.count.tolist() == union.count.tolist()
    torch.testing.assert_close(merged.mean, union.mean)


@given(y=labels)
@settings(max_examples=20, deadline=None)
def test_a_table_has_the_means_at_their_classes_and_zeros_elsewhere(y: list[int]) -> None:
    means = class_means(rows_of(y), CLASSES)
    table, present = by_class(means, CLASSES)
    assert present.tolist() == [c in y for c in range(CLASSES)]
    assert torch.equal(table[present], means.mean)
    assert not table[~present].any()


def noisy(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """A base block that answers otherwise while it trains."""
    return pair(nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Dropout(0.5)), nn.Linear(width, classes))


def test_features_are_those_of_the_whole_share_in_evaluation_mode() -> None:
    rows = range(3, 1100)  # more than a chunk
    f = federation(Local(local_steps=1), models=[noisy], dataset=tiny_dataset(rows=1200), shares=shares_of(rows))
    f.run_round()
    client = resident(f, 0)
    place = (client.order.epoch, client.order.position)
    share = fused_share(client)
    expected = fused(f, 0, weights_of(f, 0))
    assert (client.order.epoch, client.order.position) == place
    assert share.y.tolist() == [y for _, y in expected]
    torch.testing.assert_close(share.x, torch.stack([z for z, _ in expected]))
