"""Whoever sends what nobody can have is named; what is far from usual but possible goes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import federation, shares_of, tiny_dataset

from interfuse.errors import ClientError
from interfuse.families.checks import blaming, check_counts, check_rows, check_tensors, rows_of_all
from interfuse.families.class_merging import Merging
from interfuse.families.class_tables import mean_table
from interfuse.families.holdings import HeldMean
from interfuse.families.learning_from_generators import Heads, WeightsAndCounts
from interfuse.families.prototypes import ClassMeans
from interfuse.models import SplitModel

SHAPE = {"w": torch.zeros(2, 3)}


def numbers(*y: int) -> Tensor:
    return torch.tensor(y, dtype=torch.uint8)


REFUSED: dict[str, Callable[[], Any]] = {
    "no class": lambda: check_rows(7, torch.zeros(0, 2), numbers()),
    "a class twice: 1, 1": lambda: check_rows(7, torch.zeros(2, 2), numbers(1, 1)),
    "counts that are not above 0: -1": lambda: check_rows(7, torch.zeros(1, 2), numbers(1), torch.tensor([-1.0])),
    "a count above": lambda: check_rows(7, torch.zeros(1, 2), numbers(1), torch.tensor([3e38])),
    "a mean above": lambda: check_rows(7, torch.full((1, 2), -1e18), numbers(1)),
    "none is above 0": lambda: check_counts(7, torch.zeros(3)),
    "one below it": lambda: check_counts(7, torch.tensor([1.0, -1.0])),
    "nobody can have": lambda: check_counts(7, torch.tensor([1.0, 3e38])),
    "'w' nothing": lambda: check_tensors(7, {}, SHAPE, "its net"),
    "'v' .*expected nothing": lambda: check_tensors(7, SHAPE | {"v": torch.zeros(1)}, SHAPE, "its net"),
    "expected .2, 3.": lambda: check_tensors(7, {"w": torch.zeros(3, 2)}, SHAPE, "its net"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_the_client_is_named(words: str) -> None:
    with pytest.raises(ClientError, match=f"client 7 sent .*{words}") as found:
        REFUSED[words]()
    assert found.value.client == 7


def test_a_long_list_is_told_in_short() -> None:
    with pytest.raises(ClientError) as found:
        check_rows(7, torch.zeros(9999, 2), torch.zeros(9999, dtype=torch.uint8))
    assert len(str(found.value)) < 200
    with pytest.raises(ClientError) as found:
        check_tensors(7, {"k" * 9999: torch.zeros(1)}, {}, "its net")
    assert len(str(found.value)) < 200


def test_rows_of_all_stand_in_the_order_of_clients_and_of_each() -> None:
    sent = {3: ClassMeans(torch.ones(2, 2), numbers(2, 0)), 9: ClassMeans(torch.zeros(1, 2), numbers(1))}
    rows = rows_of_all(sent)
    assert rows.y.tolist() == [2, 0, 1]
    assert rows.features.tolist() == [[1, 1], [1, 1], [0, 0]]
    with pytest.raises(ClientError, match="client 9 .* twice"):
        rows_of_all(sent | {9: ClassMeans(torch.zeros(2, 2), numbers(1, 1))})


def test_the_largest_that_goes_through_stays_finite_in_single_precision() -> None:
    mean, count = torch.full((400, 512), 1e9), torch.full((400,), 1e12)
    rows = rows_of_all({c: ClassMeans(mean[:1], numbers(0)) for c in range(400)})
    found = mean_table(rows, 1, count)
    assert found.rows.isfinite().all()
    assert found.count.isfinite().all()
    assert (rows.features.square().sum(1) * 400).isfinite().all()
    merging = Merging(1, 512, "diagonal")
    for client in range(2):
        merging.add(client, mean[:1] * (-1) ** client, numbers(0), count[:1], torch.full((1, 512), 1e18))
    assert all(t.isfinite().all() for t in (merging.result()[0].rows, merging.result()[1]))


def test_what_does_not_fit_a_mean_is_its_senders_fault() -> None:
    f = federation("fedper", models=["logistic"], dataset=tiny_dataset(), shares=shares_of(range(9), range(9, 18)))
    weights = f.server.state.base
    mean = HeldMean(weights, f.clients.profiles, "uniform")
    mean.take(0, weights)
    for bad in ({}, weights | {"more": torch.zeros(1)}, {key: t[..., :1] for key, t in weights.items()}):
        with pytest.raises(ClientError, match="client 1 sent what is not just what it holds") as found:
            mean.take(1, bad)
        assert found.value.client == 1
    with pytest.raises(ZeroDivisionError), blaming(1, "its meme"):
        _ = 1 / 0


def test_counts_that_have_no_sum_are_refused_before_labels_are_drawn_by_them() -> None:
    """The server drew labels by counts of which two had an infinite sum: PyTorch refused, and the run ended."""
    heads = Heads(SplitModel({"modular": torch.nn.Linear(2, 2)}))
    sent = WeightsAndCounts({}, torch.full((2,), 3e38))
    with pytest.raises(ClientError, match="client 4 sent label counts"):
        heads.take(4, sent)
