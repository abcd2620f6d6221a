"""Rows that are mixed of own ones and of a bank: labels, chances, places; who contributes how much to a bank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interfuse.errors import ClientError
from interfuse.families.banks import apportioned, mixture, one_of

MANY = 40_000


def drawn(own: list[int], bank: list[int], m: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return mixture(torch.tensor(own).long(), torch.tensor(bank).long(), 6, MANY, m, noise)


def test_labels_are_uniform_over_the_classes_that_are_anywhere() -> None:
    y, _ = drawn([0] * 90 + [1], [1, 2, 2, 4], 50.0)
    share = torch.bincount(y, minlength=6) / MANY
    assert share[[3, 5]].tolist() == [0, 0]  # nobody has them
    assert (share[[0, 1, 2, 4]] - 0.25).abs().max() < 4 * (0.25 * 0.75 / MANY) ** 0.5


@pytest.mark.parametrize("m", [0.0, 1.0, 50.0])
def test_an_own_row_has_probability_n_over_n_plus_m(m: float) -> None:
    own = [0] * 150 + [1] * 10 + [2]
    y, mine = drawn(own, [0, 1, 2, 3], m)
    for label, n in enumerate((150, 10, 1, 0)):
        expected = n / (n + m) if n else 0.0
        found = float(mine[y == label].double().mean())
        assert abs(found - expected) <= 4 * (expected * (1 - expected) / (MANY / 4)) ** 0.5


def test_a_class_that_the_bank_lacks_comes_from_own_rows() -> None:
    y, mine = drawn([0, 1], [1], 50.0)
    assert mine[y == 0].all()
    y, mine = drawn([0, 1], [], 50.0)
    assert mine.all()


def test_places_are_of_rows_of_the_class_each_as_likely() -> None:
    labels = torch.tensor([2, 0, 2, 5, 2])
    y = torch.tensor([2, 5, 0]).repeat(6000)
    places = one_of(labels, y, torch.Generator().manual_seed(0))
    assert torch.equal(labels[places], y)
    times = torch.bincount(places, minlength=5) / 6000
    assert times[[1, 3]].tolist() == [1, 1]
    assert (times[[0, 2, 4]] - 1 / 3).abs().max() < 4 * (2 / 9 / 6000) ** 0.5


def test_nothing_is_drawn_of_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert len(one_of(none, none, torch.Generator())) == 0


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        # in proportion; all of one client; of nobody; equal remainders, in the order of clients
        ([[60, 7, 0, 1], [30, 0, 0, 1], [10, 0, 0, 1]], 100, [[60, 100, 0, 34], [30, 0, 0, 33], [10, 0, 0, 33]]),
        ([[1, 0, 0, 0], [999, 0, 0, 0]], 10, [[0, 0, 0, 0], [10, 0, 0, 0]]),
    ],
)
def test_clients_contribute_in_proportion(counts: list[list[int]], total: int, expected: list[list[int]]) -> None:
    found = apportioned({i: torch.tensor(own).float() for i, own in enumerate(counts)}, total)
    tables = [torch.bincount(found.get(i, torch.empty(0).long()), minlength=4).tolist() for i in range(len(counts))]
    assert tables == expected
    assert all(len(own) for own in found.values())


@pytest.mark.parametrize("bad", [[-1.0, 3.0], [0.0, 0.0]])
def test_impossible_counts_are_refused_by_name(bad: list[float]) -> None:
    with pytest.raises(ClientError, match="client 4 sent label counts") as found:
        apportioned({2: torch.tensor([1.0, 2.0]), 4: torch.tensor(bad)}, 10)
    assert found.value.client == 4
