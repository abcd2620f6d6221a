from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interfuse.data import (
    IID,
    PARTITIONS,
    Dataset,
    Dirichlet,
    Natural,
    Partition,
    Pathological,
    Shards,
    class_counts,
    deal,
    make_shares,
    parse_partition,
    partitions,
)
from interfuse.data.partitions import apportioned
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
    @settings(deadline=None)
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

    @pytest.mark.parametrize(
        "options", [{"alpha": 0.0}, {"alpha": float("nan")}, {"alpha": -1.0}, {"minimum": -1}, {"balanced": 1}]
    )
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
        with pytest.raises(ConfigError, match="alike is 1, must be true or false"):
            parse_partition("pathological", alike=1)

    @given(st.integers(1, 5), st.integers(2, 24), seeds)
    def test_alike_clients_come_in_groups_of_the_same_classes(self, k: int, clients: int, seed: int) -> None:
        labels = balanced(10, 60)
        shares = Pathological(k, alike=True).split(labels, clients, rng(seed), None)
        held = [frozenset(labels[share].tolist()) for share in shares]
        assert all(len(classes) <= k for classes in held)
        if (clients * k) % 10 == 0 and clients % max(1, clients * k // 10) == 0 and 10 % k == 0:
            assert all(len(classes) == k for classes in held)
            assert len(set(held)) == 10 // k
            assert {held.count(classes) for classes in held} == {clients * k // 10}

    def test_it_divides_as_the_scripts_of_htfllib_and_pflib_do(self) -> None:
        """Beside a re-derivation: sizes by place in their order, classes by client, over many draws."""
        labels, clients, k = np.repeat(np.arange(10), 600), 20, 2
        theirs, ours = np.zeros((200, clients)), np.zeros((200, clients))
        for draw in range(200):
            noise, classes_left, sizes = rng(draw), np.full(clients, k), np.zeros(clients)
            for _ in range(10):
                chosen = np.flatnonzero(classes_left)[: math.ceil(clients / 10 * k)]
                each = 600 / len(chosen)
                drawn = noise.integers(int(max(each / 10, 40 / 10)), int(each), len(chosen) - 1)
                sizes[chosen] += [*drawn, 600 - drawn.sum()]
                classes_left[chosen] -= 1
            theirs[draw] = np.sort(sizes)
            shares = Pathological(k, alike=True, uneven=True).split(labels, clients, rng(1000 + draw), None)
            assert all(len(np.unique(labels[share])) == k for share in shares)
            ours[draw] = np.sort([len(share) for share in shares])
        assert np.allclose(ours.sum(axis=1), 6000)
        # who gets the rest of a class is drawn here, and always the same client there: their largest are larger
        assert theirs[:, -1].mean() > ours[:, -1].mean() > 1.5 * 6000 / clients
        assert abs(np.median(ours) - np.median(theirs)) < 0.25 * 6000 / clients

    def test_uneven_parts_are_within_their_bounds(self) -> None:
        labels = np.zeros(1000, np.int64)
        for draw in range(50):
            sizes = sorted(len(s) for s in Pathological(1, uneven=True).split(labels, 5, rng(draw), None))
            assert sum(sizes) == 1000
            assert sizes[0] >= 20
            assert sizes[-1] >= 1000 - 4 * 199
        with pytest.raises(DataError, match="30 rows of a class are too few for 3 clients with 40 or more"):
            Pathological(1, uneven=True, minimum=40).split(np.zeros(30, np.int64), 3, rng(), None)


class TestNatural:
    def test_one_group_a_client_whose_number_is_drawn(self) -> None:
        groups = np.array([7, 3, 3, 9, 7])
        found = [Natural().split(np.zeros(5, np.int64), 3, rng(seed), groups) for seed in range(60)]
        for shares in found:
            assert sorted(share.tolist() for share in shares) == [[0, 4], [1, 2], [3]]
        assert len({tuple(share[0] for share in shares) for shares in found}) == 6

    def test_which_groups_come_together_is_drawn(self) -> None:
        found = [Natural().split(np.zeros(5, np.int64), 2, rng(seed), np.array([4, 3, 2, 1, 0])) for seed in range(99)]
        assert len({tuple(shares[1]) for shares in found}) == math.comb(5, 2) + math.comb(5, 3)

    @given(groups=label_lists, clients=st.integers(1, 6))
    def test_groups_stay_whole(self, groups: np.ndarray, clients: int) -> None:
        assume(clients <= len(np.unique(groups)))
        shares = Natural().split(np.zeros(len(groups), np.int64), clients, rng(), groups)
        assert_divides(shares, np.arange(len(groups)), clients)
        owners = [set(groups[share].tolist()) for share in shares]
        assert sum(map(len, owners)) == len(set().union(*owners))
        assert max(map(len, owners)) - min(map(len, owners)) <= 1

    def test_in_the_order_of_their_numbers(self) -> None:
        groups = np.array([7, 3, 3, 9, 7, 1, 8])
        found = [Natural(drawn=False).split(np.zeros(7, np.int64), 2, rng(seed), groups) for seed in range(9)]
        # 1, 3, 7 and then 8, 9
        assert {tuple(map(tuple, shares)) for shares in found} == {((0, 1, 2, 4, 5), (3, 6))}
        alone = Natural(drawn=False).split(np.zeros(7, np.int64), 5, rng(), groups)
        assert [groups[rows[0]] for rows in alone] == [1, 3, 7, 8, 9]

    def test_too_many_clients(self) -> None:
        with pytest.raises(DataError, match=r"3 clients, but the data has 2 groups.*: --clients 2 \(clients=2\)"):
            Natural().split(np.zeros(4, np.int64), 3, rng(), np.array([0, 0, 1, 1]))

    def test_no_groups(self) -> None:
        with pytest.raises(DataError, match="no natural clients"):
            Natural().split(np.zeros(4, np.int64), 2, rng(), None)


class TestParse:
    def test_good(self) -> None:
        assert parse_partition("iid") == IID()
        assert parse_partition("dirichlet", alpha=0.1, minimum=3) == Dirichlet(0.1, 3)
        assert parse_partition("dirichlet", balanced=True) == Dirichlet(balanced=True)
        assert parse_partition("pathological", classes_per_client=3) == Pathological(3)
        assert parse_partition("shards", shards_per_client=3) == Shards(3)
        assert parse_partition("natural") == Natural()
        assert parse_partition("natural", drawn=False) == Natural(drawn=False)
        with pytest.raises(ConfigError, match="must be true or false"):
            parse_partition("natural", drawn="no")
        assert set(PARTITIONS) == {"iid", "dirichlet", "pathological", "shards", "natural"}

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
        assert sorted(share.rows.tolist() for share in make_shares(made, Natural(), 3, 0)) == [[0, 4], [1, 3], [2, 5]]

    def test_an_empty_share(self) -> None:
        with pytest.raises(DataError, match=r"client \d of 4 has no rows; take fewer clients"):
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


FAIR = [IID(), Dirichlet(100.0), Dirichlet(0.3), Dirichlet(0.05, 30), Dirichlet(0.5, balanced=True), Pathological(2)]


@pytest.mark.parametrize("partition", [*FAIR, Shards(), Natural()], ids=str)
def test_no_client_is_favoured(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "DIRICHLET_TRIES", 3)  # so that rows have to be moved too
    # 7 clients and classes of 41, 43, ... rows: nothing comes out even. Models are dealt by the number of a client.
    labels, clients, repeats = rng(1).permutation(np.repeat(np.arange(5), [41, 43, 47, 53, 59])), 7, 400
    rows = np.array(
        [
            [
                np.bincount(labels[share], minlength=5)
                for share in partition.split(labels, clients, rng(seed), np.arange(len(labels)) % 16)
            ]
            for seed in range(repeats)
        ]
    )
    assert (rows.sum(axis=(1, 2)) == len(labels)).all()
    for found in (rows.sum(axis=2), *np.moveaxis(rows, 2, 0)):
        error = np.maximum(found.std(axis=0), 0.1) / math.sqrt(repeats)
        assert np.abs(found.mean(axis=0) - found.mean()).max() < 4.2 * error.max()


class TestBalanced:
    @settings(deadline=None, max_examples=50)
    @given(labels=label_lists, clients=st.integers(1, 12), alpha=st.floats(1e-4, 50), seed=seeds)
    def test_whoever_has_an_equal_part_gets_no_row_of_the_next_class(
        self, labels: np.ndarray, clients: int, alpha: float, seed: int
    ) -> None:
        shares = Dirichlet(alpha, 0, balanced=True).split(labels, clients, rng(seed), None)
        assert_divides(shares, np.arange(len(labels)), clients)
        counts = np.array([np.bincount(labels[share], minlength=6) for share in shares]).T
        for label, of_class in enumerate(counts):
            held = counts[:label].sum(axis=0)
            assert not of_class[held * clients >= len(labels)].any()

    def test_sizes_are_those_of_the_published_rule(self) -> None:
        # NIID-Bench as its paper and code describe it, without regard to rounding: shares of rows are real numbers.
        def sizes(seed: int) -> np.ndarray:
            generator, held = rng(10_000 + seed), np.zeros(10)
            while held.min() < 10:
                held = np.zeros(10)
                for _ in range(10):
                    drawn = np.where(held < 100, generator.dirichlet(np.full(10, 0.1)), 0)
                    held += 100 * drawn / drawn.sum()
            return held

        rule = Dirichlet(0.1, balanced=True)
        found = np.array([[*map(len, rule.split(balanced(10, 100), 10, rng(seed), None))] for seed in range(300)])
        wanted = np.array([sizes(seed) for seed in range(300)])
        assert found.min() >= 10
        for of_sizes in (np.min, np.max, np.std):
            a, b = (of_sizes(values, axis=1) for values in (found, wanted))
            assert abs(a.mean() - b.mean()) < 4 * math.hypot(a.std(), b.std()) / math.sqrt(300)
        free = [len(max(Dirichlet(0.1).split(balanced(10, 100), 10, rng(seed), None), key=len)) for seed in range(300)]
        assert np.mean(free) > found.max(axis=1).mean() + 20  # without it the largest share is larger


@given(size=st.integers(0, 500), clients=st.integers(1, 12), classes=st.integers(1, 4), seed=seeds)
def test_rows_are_apportioned_by_largest_remainders(size: int, clients: int, classes: int, seed: int) -> None:
    weights = rng(seed).integers(1, 6, (classes, clients))
    sizes = np.arange(size, size + classes)
    counts = apportioned(weights / weights.sum(axis=1, keepdims=True), sizes, rng(seed))
    for of_class, rows, parts in zip(counts.tolist(), sizes.tolist(), weights.tolist(), strict=True):
        quotas = [Fraction(rows * part, sum(parts)) for part in parts]
        assert sum(of_class) == rows
        assert all(abs(count - quota) < 1 for count, quota in zip(of_class, quotas, strict=True))
        raised = [q % 1 for q, count in zip(quotas, of_class, strict=True) if count > q]
        lowered = [q % 1 for q, count in zip(quotas, of_class, strict=True) if count < q]
        assert min(raised, default=1) >= max(lowered, default=0)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.3), Pathological(3)])
def test_class_counts(partition: Partition) -> None:
    made = dataset(balanced())
    shares = make_shares(made, partition, 6, 0)
    counts = class_counts([made] * 6, shares)
    assert (counts.shape, counts.dtype) == ((6, 10), np.int64)
    assert counts.sum(axis=0).tolist() == [50] * 10
    for share, row in zip(shares, counts, strict=True):
        for label, count in enumerate(row):
            assert count == sum(
                int(made.y_train[i]) == label for part in (share.train, share.validation, share.test) for i in part
            )


class TestShards:
    @settings(deadline=None)
    @given(rows=st.integers(1, 80), clients=st.integers(1, 6), each=st.integers(1, 4), seed=seeds)
    def test_each_client_has_whole_shards_of_the_sorted_rows(
        self, rows: int, clients: int, each: int, seed: int
    ) -> None:
        assume(clients * each <= rows)
        labels = rng(seed + 1).permutation(rows)  # a class for each row, so that rows are known by their class
        shares = Shards(each).split(labels, clients, rng(seed), None)
        assert_divides(shares, np.arange(rows), clients)
        shard_of = np.concatenate([np.full(len(s), i) for i, s in enumerate(np.array_split(labels, clients * each))])
        for share in shares:
            held, counts = np.unique(shard_of[labels[share]], return_counts=True)
            assert len(held) == each
            assert counts.tolist() == np.bincount(shard_of)[held].tolist()

    def test_two_shards_of_ten_even_classes_are_at_most_two_classes(self) -> None:
        labels = balanced(10, 50)
        shares = Shards().split(labels, 10, rng(1), None)
        assert {len(share) for share in shares} == {50}
        assert {len(set(labels[share])) for share in shares} == {1, 2}
        assert not np.array_equal(shares[0], Shards().split(labels, 10, rng(2), None)[0])

    def test_what_cannot_be_asked(self) -> None:
        with pytest.raises(ConfigError, match="shards_per_client is 0"):
            Shards(0)
        with pytest.raises(DataError, match="3 clients with 2 shards each need 6 rows, but there are 5"):
            Shards(2).split(np.zeros(5, np.int64), 3, rng(), None)


class TestBlocks:
    @settings(deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20),
        validation=st.sampled_from([0.0, 0.1, 0.3]),
        test=st.sampled_from([0.0, 0.1, 0.4]),
        seed=seeds,
    )
    def test_a_block_is_on_one_side_and_each_side_has_no_more_than_it_needs(
        self, sizes: list[int], validation: float, test: float, seed: int
    ) -> None:
        blocks = np.repeat(np.arange(len(sizes)), sizes)[rng(seed).permutation(sum(sizes))]
        made = dataset(np.zeros(len(blocks), np.int64))
        made = dataclasses.replace(made, blocks=torch.from_numpy(blocks))
        share = make_shares(made, IID(), 1, seed, validation, test)[0]
        sides = [set(blocks[rows]) for rows in (share.train, share.validation, share.test)]
        assert share.rows.tolist() == list(range(len(blocks)))
        assert sum(map(len, sides)) == len(sizes)
        assert sides[0]
        for side, rows, fraction in zip(sides[1:], (share.validation, share.test), (validation, test), strict=True):
            wanted = math.floor(len(blocks) * fraction + 0.5)
            # Without the block that was taken last there would be too few rows, unless it is the last but one at all.
            assert len(rows) == 0 or len(rows) - max(sizes[block] for block in side) < wanted
            assert len(rows) >= min(wanted, len(blocks) - len(share.train) - len(rows)) or len(sides[0]) == 1

    def test_rows_that_stand_alone_are_divided_as_without_blocks(self) -> None:
        made = dataset(balanced())
        alone = dataclasses.replace(made, blocks=torch.arange(500))
        for a, b in zip(make_shares(made, IID(), 3, 4), make_shares(alone, IID(), 3, 4), strict=True):
            for rows in ("train", "validation", "test"):
                np.testing.assert_array_equal(getattr(a, rows), getattr(b, rows))


class TestDeal:
    def test_one_data_set_is_what_make_shares_gives(self) -> None:
        made = dataset(balanced())
        dealt, shares = deal([made], Dirichlet(0.5), 4, 3, validation=0.2, test=0.1)
        assert [id(one) for one in dealt] == [id(made)] * 4
        for a, b in zip(shares, make_shares(made, Dirichlet(0.5), 4, 3, validation=0.2, test=0.1), strict=True):
            np.testing.assert_array_equal(a.train, b.train)
            np.testing.assert_array_equal(a.test, b.test)

    def test_each_data_set_is_divided_between_its_own_clients(self) -> None:
        made = [dataclasses.replace(dataset(balanced()), name=name) for name in ("a", "b", "c")]
        dealt, shares = deal(made, IID(), 7, 0)
        assert [one.name for one in dealt] == ["a", "b", "c", "a", "b", "c", "a"]
        for first in range(3):
            own = np.concatenate([share.rows for share in shares[first::3]])
            assert np.sort(own).tolist() == list(range(500))
        # Equal data under another name is divided in another way, whatever data sets stand beside it.
        assert not np.array_equal(shares[1].rows, shares[2].rows)
        np.testing.assert_array_equal(shares[1].rows, deal(made[:2], IID(), 4, 0)[1][1].rows)

    def test_what_cannot_be_dealt(self) -> None:
        made = dataset(balanced())
        with pytest.raises(ConfigError, match="made, made: name each data set once"):
            deal([made, made], IID(), 4, 0)
        with pytest.raises(ConfigError, match=r"1 clients, but 2 data sets \(made, other\)"):
            deal([made, dataclasses.replace(made, name="other")], IID(), 1, 0)
