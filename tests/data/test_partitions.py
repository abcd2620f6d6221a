from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interfuse.data import (
    IID,
    PARTITIONS,
    Dataset,
    Dirichlet,
    Natural,
    Partition,
    Pathological,
    class_counts,
    make_shares,
    parse_partition,
)
from interfuse.errors import ConfigError, DataError

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(lambda labels: np.array(labels, np.int64))
seeds = st.integers(0, 1000)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def balanced(classes: int = 10, rows: int = 50) -> np.ndarray:
    return rng(5).permutation(np.repeat(np.arange(classes), rows))


def dataset(labels: np.ndarray, groups: np.ndarray | None = None) -> Dataset:
    x = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)
    names = [str(label) for label in range(int(labels.max()) + 1)]
    return Dataset.from_arrays("made", x, labels, x[:0], labels[:0], groups=groups, class_names=names)


def assert_divides(shares: list[np.ndarray], rows: np.ndarray, clients: int) -> None:
    assert len(shares) == clients
    assert np.sort(np.concatenate(shares)).tolist() == rows.tolist()
    for share in shares:
        assert share.dtype == np.int64
        assert (np.diff(share) > 0).all()


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A partition of somebody else's."""

    shares: tuple[tuple[int, ...], ...]

    def split(self, labels: Any, clients: int, rng: np.random.Generator, groups: Any) -> list[np.ndarray]:
        return [np.array(share, np.int64) for share in self.shares]


class TestIID:
    @given(labels=label_lists, clients=st.integers(1, 90), seed=seeds)
    def test_divides_evenly(self, labels: np.ndarray, clients: int, seed: int) -> None:
        shares = IID().split(labels, clients, rng(seed), None)
        assert_divides(shares, np.arange(len(labels)), clients)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1

    def test_at_random(self) -> None:
        first, second = (IID().split(np.sort(balanced()), 2, rng(seed), None)[0] for seed in range(2))
        assert not np.array_equal(first, second)
        assert 100 < (first < 250).sum() < 150


class TestDirichlet:
    @given(labels=label_lists, clients=st.integers(1, 12), alpha=st.floats(0.01, 50), data=st.data(), seed=seeds)
    def test_divides_and_keeps_the_minimum(
        self, labels: np.ndarray, clients: int, alpha: float, data: st.DataObject, seed: int
    ) -> None:
        minimum = data.draw(st.integers(0, len(labels) // clients))
        rule = Dirichlet(alpha, minimum)
        shares = rule.split(labels, clients, rng(seed), None)
        assert_divides(shares, np.arange(len(labels)), clients)
        assert min(len(share) for share in shares) >= minimum
        for share, again in zip(shares, rule.split(labels, clients, rng(seed), None), strict=True):
            np.testing.assert_array_equal(share, again)

    def test_the_minimum_where_no_draw_reaches_it(self) -> None:
        labels = balanced()
        shares = Dirichlet(alpha=0.01, minimum=10).split(labels, 50, rng(), None)
        assert_divides(shares, np.arange(500), 50)
        assert [len(share) for share in shares] == [10] * 50

    @pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
    def test_proportions_have_the_variance_of_the_distribution(self, alpha: float) -> None:
        # One marginal of a symmetric Dirichlet over k clients has mean 1/k and variance (k-1)/(k^2 (k alpha + 1)).
        labels, k = np.repeat(np.arange(10), 1000), 5
        proportions = np.array(
            [
                [
                    np.bincount(labels[share], minlength=10) / 1000
                    for share in Dirichlet(alpha, 0).split(labels, k, rng(seed), None)
                ]
                for seed in range(60)
            ]
        )
        assert proportions.mean(axis=(0, 2)) == pytest.approx(np.full(k, 1 / k), abs=0.06)
        assert proportions.var() == pytest.approx((k - 1) / (k**2 * (k * alpha + 1)), rel=0.15)

    def test_impossible_minimum(self) -> None:
        with pytest.raises(DataError, match="51 clients with at least 10 rows each need 510 rows, but there are 500"):
            Dirichlet().split(balanced(), 51, rng(), None)

    @pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": float("nan")}, {"alpha": -1.0}, {"minimum": -1}])
    def test_impossible_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(options))):
            Dirichlet(**options)


class TestPathological:
    @given(
        clients=st.integers(1, 30), classes=st.integers(1, 8), k=st.integers(1, 8), rows=st.integers(30, 40), seed=seeds
    )
    def test_exactly_k_classes_held_equally_often(
        self, clients: int, classes: int, k: int, rows: int, seed: int
    ) -> None:
        assume(k <= classes)
        labels = balanced(classes, rows)
        rule = Pathological(k)
        shares = rule.split(labels, clients, rng(seed), None)
        held = np.array([np.bincount(labels[share], minlength=classes) for share in shares])
        assert ((held > 0).sum(axis=1) == k).all()
        holders = (held > 0).sum(axis=0)
        assert holders.max() - holders.min() <= 1
        if clients * k >= classes:
            assert (holders > 0).all()
        assert_divides(shares, np.flatnonzero(holders[labels] > 0), clients)
        for of_class in held.T:
            sizes = of_class[of_class > 0]
            assert len(sizes) == 0 or sizes.max() - sizes.min() <= 1
        for share, again in zip(shares, rule.split(labels, clients, rng(seed), None), strict=True):
            np.testing.assert_array_equal(share, again)

    def test_the_pairs_are_not_always_the_same(self) -> None:
        labels = balanced()
        shares = Pathological(2).split(labels, 40, rng(), None)
        assert len({tuple(np.unique(labels[share])) for share in shares}) > 5

    def test_more_classes_than_there_are(self) -> None:
        with pytest.raises(ConfigError, match="11 classes per client, but the data has 10"):
            Pathological(11).split(balanced(), 3, rng(), None)

    def test_more_holders_than_rows(self) -> None:
        with pytest.raises(DataError, match="has 3 rows for 4 clients"):
            Pathological(1).split(np.array([0, 0, 0]), 4, rng(), None)

    def test_no_classes(self) -> None:
        with pytest.raises(ConfigError, match="classes_per_client"):
            Pathological(0)


class TestNatural:
    def test_one_group_a_client(self) -> None:
        groups = np.array([7, 3, 3, 9, 7])
        shares = Natural().split(np.zeros(5, np.int64), 3, rng(), groups)
        assert [share.tolist() for share in shares] == [[1, 2], [0, 4], [3]]

    def test_fewer_clients_are_dealt_several_groups_in_turn(self) -> None:
        shares = Natural().split(np.zeros(5, np.int64), 2, rng(), np.array([4, 3, 2, 1, 0]))
        assert [share.tolist() for share in shares] == [[0, 2, 4], [1, 3]]

    @given(groups=label_lists, clients=st.integers(1, 6))
    def test_groups_stay_whole(self, groups: np.ndarray, clients: int) -> None:
        assume(clients <= len(np.unique(groups)))
        shares = Natural().split(np.zeros(len(groups), np.int64), clients, rng(), groups)
        assert_divides(shares, np.arange(len(groups)), clients)
        owners = [set(groups[share].tolist()) for share in shares]
        assert sum(map(len, owners)) == len(set().union(*owners))
        assert max(map(len, owners)) - min(map(len, owners)) <= 1

    def test_too_many_clients(self) -> None:
        with pytest.raises(DataError, match="3 clients, but the data has 2 groups"):
            Natural().split(np.zeros(4, np.int64), 3, rng(), np.array([0, 0, 1, 1]))

    def test_no_groups(self) -> None:
        with pytest.raises(DataError, match="no natural clients"):
            Natural().split(np.zeros(4, np.int64), 2, rng(), None)


class TestParse:
    def test_good(self) -> None:
        assert parse_partition("iid") == IID()
        assert parse_partition("dirichlet", alpha=0.1, minimum=3) == Dirichlet(0.1, 3)
        assert parse_partition("pathological", classes_per_client=3) == Pathological(3)
        assert parse_partition("natural") == Natural()
        assert set(PARTITIONS) == {"iid", "dirichlet", "pathological", "natural"}

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'dirichlet'"):
            parse_partition("dirchlet")
        with pytest.raises(ConfigError, match="did you mean 'alpha'"):
            parse_partition("dirichlet", alpa=0.1)
        with pytest.raises(ConfigError, match="'iid' has no option 'alpha': it has no options"):
            parse_partition("iid", alpha=0.1)


class TestShares:
    @given(
        rows=st.integers(1, 60),
        clients=st.integers(1, 10),
        validation=st.floats(0, 0.6),
        test=st.floats(0, 0.39),
        seed=seeds,
    )
    def test_sizes_follow_the_rule(self, rows: int, clients: int, validation: float, test: float, seed: int) -> None:
        assume(rows >= clients)
        made = dataset(np.arange(rows) % 3)
        shares = make_shares(made, IID(), clients, seed, validation, test)
        assert_divides([share.rows for share in shares], np.arange(rows), clients)
        for share in shares:
            assert_divides([share.train, share.validation, share.test], share.rows, 3)
            n = len(share.rows)
            assert len(share.train) >= 1
            if len(share.train) > 1:
                assert len(share.validation) == int(n * validation + 0.5)
                assert len(share.test) == int(n * test + 0.5)

    @pytest.mark.parametrize(
        ("n", "sizes"), [(1, (1, 0, 0)), (2, (2, 0, 0)), (5, (3, 1, 1)), (15, (11, 2, 2)), (100, (80, 10, 10))]
    )
    def test_default_sizes(self, n: int, sizes: tuple[int, int, int]) -> None:
        share = make_shares(dataset(np.zeros(n, np.int64)), IID(), 1, 0)[0]
        assert (len(share.train), len(share.validation), len(share.test)) == sizes

    def test_test_rows_give_way_before_validation_rows(self) -> None:
        share = make_shares(dataset(np.zeros(2, np.int64)), IID(), 1, 0, validation=0.45, test=0.45)[0]
        assert (len(share.train), len(share.validation), len(share.test)) == (1, 1, 0)

    def test_the_division_of_a_share_does_not_depend_on_the_other_clients(self) -> None:
        made = dataset(np.zeros(40, np.int64))
        first = tuple(range(20))
        one = make_shares(made, Fixed((first,)), 1, 3)[0]
        three = make_shares(made, Fixed((first, tuple(range(20, 25)), (30,))), 3, 3)[0]
        other_order = make_shares(made, Fixed((first[::-1],)), 1, 3)[0]
        for other in (three, other_order):
            for part in ("train", "validation", "test"):
                np.testing.assert_array_equal(getattr(one, part), getattr(other, part))

    def test_the_seed_changes_partition_and_division(self) -> None:
        made = dataset(balanced())
        a, again, b = (make_shares(made, IID(), 4, seed) for seed in (0, 0, 1))
        for first, second in zip(a, again, strict=True):
            np.testing.assert_array_equal(first.train, second.train)
            np.testing.assert_array_equal(first.test, second.test)
        assert not np.array_equal(a[0].rows, b[0].rows)
        whole = [make_shares(made, IID(), 1, seed)[0] for seed in (0, 1)]
        assert not np.array_equal(whole[0].test, whole[1].test)

    def test_clients_of_equal_rows_would_divide_differently(self) -> None:
        made = dataset(np.zeros(200, np.int64))
        shares = make_shares(made, Fixed((tuple(range(100)), tuple(range(100, 200)))), 2, 0)
        assert not np.array_equal(shares[0].test + 100, shares[1].test)

    def test_natural_clients_come_from_the_data_set(self) -> None:
        made = dataset(np.zeros(6, np.int64), groups=np.array([2, 0, 1, 0, 2, 1]))
        assert [share.rows.tolist() for share in make_shares(made, Natural(), 3, 0)] == [[1, 3], [2, 5], [0, 4]]

    def test_an_empty_share(self) -> None:
        with pytest.raises(DataError, match="client 3 of 4 has no rows; take fewer clients"):
            make_shares(dataset(np.zeros(3, np.int64)), IID(), 4, 0)

    @pytest.mark.parametrize("shares", [((0, 1), (1, 2)), ((0, 0), (1,)), ((0,), (5,)), ((0,), (-1,))])
    def test_a_partition_that_breaks_its_promise(self, shares: tuple[tuple[int, ...], ...]) -> None:
        with pytest.raises(DataError, match="two clients, or a row outside"):
            make_shares(dataset(np.zeros(5, np.int64)), Fixed(shares), 2, 0)

    def test_a_partition_of_another_number_of_clients(self) -> None:
        with pytest.raises(DataError, match="gave 1 shares for 2 clients"):
            make_shares(dataset(np.zeros(5, np.int64)), Fixed(((0,),)), 2, 0)

    @pytest.mark.parametrize(
        "options",
        [
            {"clients": 0},
            {"clients": -1},
            {"validation": -0.1},
            {"validation": 0.5, "test": 0.5},
            {"test": float("nan")},
        ],
    )
    def test_impossible_settings(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            make_shares(dataset(balanced()), IID(), **{"clients": 2, "seed": 0} | options)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.3), Pathological(3)])
def test_class_counts(partition: Partition) -> None:
    made = dataset(balanced())
    shares = make_shares(made, partition, 6, 0)
    counts = class_counts(made, shares)
    assert (counts.shape, counts.dtype) == ((6, 10), np.int64)
    assert counts.sum(axis=0).tolist() == [50] * 10
    for share, row in zip(shares, counts, strict=True):
        for label, count in enumerate(row):
            assert count == sum(
                int(made.y_train[i]) == label for part in (share.train, share.validation, share.test) for i in part
            )


def test_class_counts_of_nobody() -> None:
    assert class_counts(dataset(balanced()), []).shape == (0, 10)
