"""When rows of a client's tasks are there, and how they are drawn: against exact counts and probabilities."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from interfuse.data import ClientData, Dataset, EpochOrder, Natural, Sampling, Tasks, arriving, make_shares
from interfuse.data.arrival import ReplayOrder, arrived
from interfuse.errors import ConfigError, DataError

SIZES = [7, 4, 5]
GROUPS = np.repeat([0, 1, 2], SIZES)[np.random.default_rng(0).permutation(16)]
X = np.arange(32.0).reshape(16, 2)
DATA = Dataset.from_arrays("made", X, np.arange(16) % 2, X[:4], np.arange(4) % 2, groups=GROUPS, class_names=["a", "b"])


def client(rounds: int = 6, data: Dataset = DATA, **options: Any) -> tuple[ClientData, ReplayOrder]:
    """All rows with one client, and how it visits them."""
    (share,) = make_shares(data, Natural(), 1, 0, validation=0.0, test=0.0)
    whole = ClientData(data, share, data.normalise)
    found, order = arriving(whole, Tasks(**{"arrival": "dynamic", "over_rounds": rounds} | options), Sampling(), 3, 0)
    assert isinstance(order, ReplayOrder)
    return found, order


@pytest.mark.parametrize("sizes", [[4, 4], [7, 4, 5], [1, 9], [3], [2, 2, 2, 2, 2]])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 20])
def test_each_task_has_an_equal_number_of_rounds_and_its_rows_come_in_equal_parts(
    sizes: list[int], rounds: int
) -> None:
    span, wanted = Fraction(rounds, len(sizes)), []
    for round in range(rounds + 1):
        done = [min(max((round - task * span) / span, Fraction(0)), Fraction(1)) for task in range(len(sizes))]
        wanted.append(sum(math.ceil(part * size) for part, size in zip(done, sizes, strict=True)))
    assert arrived(np.array(sizes), rounds).tolist() == wanted
    assert (wanted[0], wanted[-1]) == (0, sum(sizes))
    assert wanted[1] > 0


def test_tasks_come_in_the_order_of_their_numbers_and_may_share_a_round() -> None:
    data, order = client(rounds=2)  # a task and a half each
    groups = GROUPS[data.share.train]
    assert groups.tolist() == sorted(GROUPS)
    assert order.enter(1) == 7 + 2
    assert {*groups[order.take(99)]} == {0, 1}
    assert order.enter(2) == 16
    assert sorted(data.share.train) == list(range(16)), "every row once"
    assert data.share.train.tolist() != sorted(data.share.train), "in random order within a task"


def test_static_mixes_tasks_in_equal_parts_and_needs_none() -> None:
    data, order = client(rounds=4, arrival="static")
    assert [order.enter(round) for round in range(6)] == [4, 4, 8, 12, 16, 16]
    assert len({*GROUPS[data.share.train[:8]]}) == 3
    bare = Dataset.from_arrays("bare", X, np.arange(16) % 2, X[:4], np.arange(4) % 2, class_names=["a", "b"])
    share = make_shares(DATA, Natural(), 1, 0, validation=0.0, test=0.0)[0]
    arriving(ClientData(bare, share, bare.normalise), Tasks("static", 4), Sampling(), 0, 0)
    with pytest.raises(DataError, match="does not say which task a row is of"):
        arriving(ClientData(bare, share, bare.normalise), Tasks("dynamic", 4), Sampling(), 0, 0)


def test_at_once_is_the_order_of_epochs_over_the_same_rows() -> None:
    (share,) = make_shares(DATA, Natural(), 1, 0, validation=0.0, test=0.0)
    data = ClientData(DATA, share, DATA.normalise)
    same, order = arriving(data, Tasks(), Sampling(last_batch="drop"), 3, 0)
    assert same is data
    assert order == EpochOrder(3, 0, 16, sampling=Sampling(last_batch="drop"))
    assert order.enter(5) == 16


def test_a_client_sees_no_row_that_has_not_come() -> None:
    data, order = client(rounds=3)
    for round, rows in ((0, 7), (1, 7), (2, 11), (3, 16)):
        data.arrived = order.enter(round)
        assert data.arrived == rows
        there = DATA.y_train[torch.from_numpy(data.share.train[:rows])]
        assert torch.equal(data.labels(), there)
        assert torch.equal(torch.cat([batch.y for batch in data.train_batches(4)]), there)
        assert torch.equal(data.raw().y, there)
        assert order.take(99).max() < rows


@pytest.mark.parametrize("memory", [None, 0, 3, 99])
def test_a_round_draws_from_what_came_last_and_from_the_memory(memory: int | None) -> None:
    _, order = client(rounds=3, memory=memory)
    order.enter(1)
    assert sorted(order.take(99)) == list(range(7))
    for round, before, now in ((2, 7, 11), (3, 11, 16)):
        order.enter(round)
        hand = {*order.take(99).tolist()}
        assert {*range(before, now)} <= hand < {*range(now)} | {-1}
        assert len(hand) == now - before + min(before, 99 if memory is None else memory)
    order.enter(9)
    assert {*order.take(99).tolist()} == hand, "rounds after the last are as it"


def test_what_is_kept_is_any_subset_of_what_came_and_never_comes_back() -> None:
    kept: Counter[tuple[int, ...]] = Counter()
    for seed in range(600):
        order = ReplayOrder(seed, 0, np.array([0, 4, 5, 6]), Tasks("dynamic", 3, memory=2), Sampling())
        order.enter(2)
        first = {*order.take(9).tolist()} - {4}
        order.enter(3)
        assert ({*order.take(9).tolist()} - {5}) & {*range(4)} <= first
        kept[tuple(sorted(first))] += 1
    assert len(kept) == 6
    assert all(abs(count - 100) < 40 for count in kept.values()), "more than four standard deviations"


def test_a_round_without_new_rows_draws_from_the_last_that_brought_some() -> None:
    order = ReplayOrder(0, 0, arrived(np.array([2]), 5), Tasks("dynamic", 5, memory=0), Sampling())
    found = [(order.enter(round), order.take(9).tolist()) for round in range(1, 6)]
    assert found == [(1, [0])] * 2 + [(2, [1])] * 3


def test_uses_decay_with_every_batch_and_grow_with_every_draw() -> None:
    _, order = client(rounds=1, decay=0.5)
    order.enter(1)
    uses = np.zeros(16)
    for _ in range(5):
        drawn = order.take(3)
        assert len({*drawn}) == 3
        uses = uses * 0.5
        uses[drawn] += 1
        assert order.saved()["uses"].tolist() == uses.tolist()


def test_rows_are_drawn_one_after_the_other_by_the_softmax_of_their_uses() -> None:
    uses, temperature = np.array([0.0, 0.05, 0.2, 0.1]), 0.125
    weights = dict(enumerate(np.exp(-uses / temperature)))
    wanted = {}
    for first, second in permutations(weights, 2):
        rest = sum(weights.values()) - weights[first]
        wanted[first, second] = weights[first] / sum(weights.values()) * weights[second] / rest
    order = ReplayOrder(1, 0, np.array([0, 4]), Tasks("static", 1), Sampling())
    order.enter(1)
    found: Counter[tuple[int, int]] = Counter()
    for draw in range(4000):
        order.restore({"uses": torch.from_numpy(uses), "draws": torch.tensor(draw)})
        found[tuple(order.take(2).tolist())] += 1
    for pair, p in wanted.items():
        assert abs(found[pair] / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000), pair


def test_rows_that_were_not_used_come_first() -> None:
    _, order = client(rounds=1, decay=1.0)
    order.enter(1)
    epoch = np.concatenate([*order.epochs(1, 4)])
    assert len({*epoch}) >= 15, "nearly every row once in a pass"


def test_an_epoch_has_as_many_draws_as_rows_are_at_hand_and_batches_as_asked() -> None:
    (share,) = make_shares(DATA, Natural(), 1, 0, validation=0.0, test=0.0)
    whole = ClientData(DATA, share, DATA.normalise)
    for last_batch, sizes in (("keep", [3, 3, 1]), ("drop", [3, 3]), ("spread", [4, 3])):
        _, order = arriving(whole, Tasks("dynamic", 3), Sampling(last_batch=last_batch), 0, 0)
        order.enter(1)
        assert [len(batch) for batch in order.epochs(2, 3)] == sizes * 2


def test_what_is_saved_is_all_there_is() -> None:
    _, order = client(rounds=3, memory=3)
    _, other = client(rounds=3, memory=3)
    order.enter(1)
    for _ in range(4):
        order.take(3)
    other.enter(2)
    other.take(5)
    other.restore(order.saved())
    for round in (1, 2, 3):
        order.enter(round)
        other.enter(round)
        assert [order.take(4).tolist() for _ in range(3)] == [other.take(4).tolist() for _ in range(3)]
        assert torch.equal(order.saved()["uses"], other.saved()["uses"])


def test_the_stored_order_is_none_of_rows_that_come_in_time() -> None:
    (share,) = make_shares(DATA, Natural(), 1, 0, validation=0.0, test=0.0)
    with pytest.raises(ConfigError, match="sampling.order = 'stored' .* leave one of them out"):
        arriving(ClientData(DATA, share, DATA.normalise), Tasks("static", 2), Sampling("stored"), 0, 0)


def test_tasks_are_divided_each_by_itself_and_people_whole() -> None:
    groups = np.repeat([0, 1], 50)
    made = Dataset.from_arrays(
        "two", np.zeros((100, 1)), groups, np.zeros((1, 1)), [0], groups=groups, class_names="ab"
    )
    (mixed,) = make_shares(made, Natural(), 1, 0, validation=0.2, test=0.2, apart=False)
    assert [len(rows) for rows in (mixed.train, mixed.validation, mixed.test)] == [60, 20, 20]
    assert all({*groups[rows]} == {0, 1} for rows in (mixed.train, mixed.validation, mixed.test))
    (whole,) = make_shares(made, Natural(), 1, 0, validation=0.2, test=0.0)
    assert len({*groups[whole.validation]}) == 1
