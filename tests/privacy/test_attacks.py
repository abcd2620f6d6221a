"""Attacks on what is drawn, against loops, closed forms, and samples that are known to be copies or not."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.privacy import (
    area,
    copies,
    median,
    membership_by_draws,
    nearest,
    nearest_of_class,
    part,
    psnr,
    search_errors,
    ssim,
)
from interfuse.randomness import generator

NOBODY = torch.zeros(0)
SCORES = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=9)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=generator(seed))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_area_and_its_interval_are_those_of_loops_over_pairs(members: list[float], others: list[float]) -> None:
    def wins(a: float, b: float) -> float:
        return (a > b) + 0.5 * (a == b)

    found = area(torch.tensor(members), torch.tensor(others))
    pairs = [wins(a, b) for a, b in itertools.product(members, others)]
    assert found.value == pytest.approx(statistics.mean(pairs))
    first = [statistics.mean(wins(a, b) for b in others) for a in members]
    second = [statistics.mean(wins(a, b) for a in members) for b in others]
    half = 1.959964 * math.sqrt(statistics.variance(first) / len(first) + statistics.variance(second) / len(second))
    assert (found.low, found.high) == pytest.approx((max(0, found.value - half), min(1, found.value + half)))
    assert found.rows == len(members) + len(others)


def test_area_in_closed_form() -> None:
    """Of two normal distributions one standard deviation apart it is Φ(1/√2)."""
    made = generator(1)
    members, others = torch.randn(4000, generator=made) + 1, torch.randn(4000, generator=made)
    wanted = 0.5 * (1 + math.erf(0.5))
    found = area(members, others)
    assert found.low < wanted < found.high
    assert found.high - found.low < 0.03
    assert area(others, others).value == 0.5
    assert math.isnan(area(NOBODY, others).value)


def test_shares_have_wilson_s_interval() -> None:
    none = part(torch.zeros(10, dtype=torch.bool))
    z2 = 1.959964**2
    assert (none.value, none.low) == (0, pytest.approx(0, abs=1e-12))
    assert none.high == pytest.approx(z2 / (10 + z2))
    half = part(torch.tensor([True, False] * 50))
    assert (half.low, half.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # as tabulated
    assert part(torch.ones(7, dtype=torch.bool)).high == pytest.approx(1)
    assert math.isnan(part(torch.zeros(0, dtype=torch.bool)).value)


def test_medians_are_between_order_statistics() -> None:
    found = median(torch.arange(101.0))
    assert (found.value, found.rows) == (50, 101)
    assert (found.low, found.high) == (40, 60)  # 101 / 2 ± 9.85
    assert median(torch.tensor([1.0, math.inf, math.inf])).value == math.inf
    assert median(torch.tensor([1.0, 2.0])).value == 1.5
    assert math.isnan(median(NOBODY).value)
    covered = 0
    for seed in range(300):
        one = median(torch.rand(40, generator=generator(seed)))
        covered += one.low <= 0.5 <= one.high
    assert covered >= 275


def test_copies_of_numbers_that_are_not_whole_are_at_no_distance_at_all() -> None:
    rows = 1e3 + noise(50, 3, 7)
    distance, place = nearest(rows[10:], rows)
    assert not distance.any()
    assert place.tolist() == list(range(10, 50))


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(1, 7), st.integers(0, 9))
def test_the_nearest_row_is_that_of_a_loop(n: int, m: int, seed: int) -> None:
    made = generator(seed)
    x = torch.randint(256, (n, 1, 2, 3), generator=made, dtype=torch.uint8)
    rows = torch.randint(256, (m, 1, 2, 3), generator=made, dtype=torch.uint8)
    distance, place = nearest(x, rows)
    for one, found, which in zip(x, distance.tolist(), place.tolist(), strict=True):
        each = [math.sqrt(float((one.double() - row.double()).square().mean())) for row in rows]
        assert found == pytest.approx(min(each))
        assert each[which] == min(each)
    own, _ = nearest(rows, rows)
    assert not own.any(), "of bytes a copy is at 0 exactly"
    y, of = torch.arange(n) % 2, torch.zeros(m, dtype=torch.int64)
    within, place = nearest_of_class(x, y, rows, of)
    assert within.isinf().tolist() == (y == 1).tolist()
    assert torch.equal(within[y == 0], distance[y == 0])


def test_copies_are_found_and_fresh_samples_are_none() -> None:
    made = generator(2)
    train, fresh, drawn = (torch.randint(256, (600, 8), generator=made, dtype=torch.uint8) for _ in range(3))
    y = torch.arange(600) % 3
    drawn[:60] = train[:60]
    drawn[60:90] = train[60:90] ^ 1
    found = copies(drawn, y, (train, y), (fresh, y))
    assert (found.verbatim.value, found.verbatim.rows) == (0.1, 600)
    assert 0.15 <= found.nearly.value < 0.18
    assert found.nearly.low < 0.16 < found.nearly.high
    honest = copies(drawn[90:], y[90:], (train, y), (fresh, y))
    assert honest.verbatim.value == 0
    assert honest.distance.low < honest.reference.value < honest.distance.high
    unlike = copies(drawn, torch.full((600,), 7), (train, y), (fresh, y))
    assert unlike.verbatim.rows == 0
    assert math.isnan(unlike.distance.value)
    alone = copies(drawn, y, (train, y), (fresh[:0], y[:0]))
    assert (alone.nearly.rows, alone.reference.rows, alone.verbatim.rows) == (0, 0, 600)


def test_the_ratio_of_signal_to_noise_in_closed_form() -> None:
    x = noise(3, 1, 4, 4)
    assert psnr(x, x).tolist() == [math.inf] * 3
    assert psnr(x, x + 0.1).tolist() == pytest.approx([20.0] * 3, abs=1e-5)
    assert psnr(255 * x, 255 * x + 25.5, 255).tolist() == pytest.approx([20.0] * 3, abs=1e-5)


def test_structural_similarity_in_closed_form() -> None:
    x = noise(2, 3, 16, 13)
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0])
    a, b = 0.3, 0.7
    constant = ssim(torch.full((1, 1, 12, 12), a), torch.full((1, 1, 12, 12), b))
    assert float(constant) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4))
    other = noise(2, 3, 16, 13, seed=1)
    torch.testing.assert_close(ssim(x, other), ssim(other, x))
    torch.testing.assert_close(ssim(255 * x, 255 * other, 255), ssim(x, other))
    small, unlike = noise(1, 1, 4, 6), noise(1, 1, 4, 6, seed=2)
    assert -1 < float(ssim(small, unlike)) < 1


@pytest.mark.parametrize("shape", [(12, 14), (5, 5)])
def test_structural_similarity_is_that_of_a_loop_over_places(shape: tuple[int, int]) -> None:
    x = noise(1, 1, *shape)
    y = (x + 0.3 * noise(1, 1, *shape, seed=3)).clamp(0, 1)
    side = min(11, *shape)
    apart = [(place - side // 2) ** 2 for place in range(side)]
    weights = [[math.exp(-(a + b) / 4.5) for b in apart] for a in apart]
    total, found = sum(map(sum, weights)), []
    for top, left in itertools.product(range(shape[0] - side + 1), range(shape[1] - side + 1)):
        places = [(i, j) for i in range(side) for j in range(side)]
        w = [weights[i][j] / total for i, j in places]
        a, b = ([float(t[0, 0, top + i, left + j]) for i, j in places] for t in (x, y))
        mean_a, mean_b = (sum(v * f for v, f in zip(values, w, strict=True)) for values in (a, b))
        var_a, var_b = (
            sum(f * (v - m) ** 2 for v, f in zip(values, w, strict=True)) for values, m in ((a, mean_a), (b, mean_b))
        )
        cov = sum(f * (p - mean_a) * (q - mean_b) for p, q, f in zip(a, b, w, strict=True))
        found.append(
            (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )  # fmt: skip
    assert float(ssim(x, y)) == pytest.approx(statistics.mean(found), abs=1e-6)


def test_who_draws_its_training_rows_is_found_out_and_who_draws_fresh_ones_is_not() -> None:
    made = generator(4)
    members, others, fresh = (torch.rand(300, 6, generator=made) for _ in range(3))
    y = torch.arange(300) % 2
    memorised = members + 0.01 * torch.randn(300, 6, generator=made)
    assert membership_by_draws((members, y), (others, y), (memorised, y)).value > 0.99
    chance = membership_by_draws((members, y), (others, y), (fresh, y))
    assert chance.low < 0.5 < chance.high


def test_a_search_finds_what_a_decoder_can_make() -> None:
    """Of a linear decoder with orthonormal columns the least error is the part outside of their span."""
    basis = torch.linalg.qr(noise(5, 2))[0]
    x = noise(8, 5, seed=5)
    outside = x - x @ basis @ basis.T
    wanted = outside.square().mean(1).sqrt()
    found = search_errors(lambda z: z @ basis.T, x, [torch.zeros(8, 2)], steps=400)
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-3)
    best = search_errors(lambda z: z @ basis.T, x, [torch.full((8, 2), 9.0), x @ basis], steps=0)
    assert best.tolist() == pytest.approx(wanted.tolist(), abs=1e-6), "the best start counts"
