"""Losses and scores of every task beside closed forms, and what is refused by name."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from interfuse.data import Classification, LanguageModelling, MultiLabel, QuestionAnswering, Regression, Task
from interfuse.data.task import IGNORED
from interfuse.errors import DataError

NAMES = ("a", "b", "c")
TASKS: list[Task] = [
    Classification(NAMES), QuestionAnswering(NAMES), MultiLabel(NAMES), LanguageModelling(5),
    Regression(NAMES, (1.0, 0.0, -2.0), (2.0, 1.0, 0.5)),
]  # fmt: skip


def samples(task: Task, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and targets."""
    noise = torch.Generator().manual_seed(seed)
    y: Tensor
    match task:
        case Regression():
            y = torch.randn(rows, 3, generator=noise) * 3 + 1
        case MultiLabel():
            y = (torch.rand(rows, 3, generator=noise) < 0.4).float()
        case LanguageModelling():
            y = torch.randint(0, 5, (rows, 4), generator=noise)
            y[torch.rand(y.shape, generator=noise) < 0.3] = IGNORED
        case _:
            y = torch.randint(0, 3, (rows,), generator=noise)
    return torch.randn(rows, *task.output_shape(tuple(y.shape[1:])), generator=noise), y


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=5))
def test_scores_do_not_depend_on_how_samples_are_divided(task: Task, cuts: list[int]) -> None:
    output, y = samples(task, 30)
    ends = [0, *sorted(cuts), 30]
    pieces = [task.sums(output[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]
    whole = task.sums(output, y)
    assert whole.shape == (task.size,)
    assert (whole.dtype, whole.device.type) == (torch.float64, "cpu")
    torch.testing.assert_close(torch.stack(pieces).sum(0), whole, rtol=1e-12, atol=1e-12)
    assert task.score(torch.stack(pieces).sum(0)) == pytest.approx(task.score(whole), rel=1e-12)
    assert math.isnan(task.score(torch.zeros(task.size, dtype=torch.float64)))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_perfect_answer_is_worth_one_and_costs_least(task: Task) -> None:
    _, y = samples(task, 30)
    perfect: Tensor
    match task:
        case Regression():
            perfect = task.standardised(y)
        case MultiLabel():
            perfect = 30 * (2 * y - 1)
        case LanguageModelling():
            perfect = 30 * functional.one_hot(y.clamp(min=0), 5).float()
        case _:
            perfect = 30 * functional.one_hot(y, 3).float()
    assert task.score(task.sums(perfect, y)) == pytest.approx(1, abs=1e-12)
    assert float(task.loss(perfect, y)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("worth", [1.0, 1e30, torch.inf, torch.nan])
def test_sums_of_any_answers_are_possible_and_others_are_not(task: Task, worth: float) -> None:
    output, y = samples(task, 30)
    sums = task.sums(worth * output, y)
    task.check_sums(sums)
    task.check_sums(sums, y)
    task.check_sums(torch.zeros_like(sums), y[:0])
    with pytest.raises(DataError, match=f"expected {task.summed} of at most 0, found"):
        task.check_sums(sums, y[:0])
    for place, value in itertools.product(range(len(sums)), (-1.0, 0.5, 1e300, math.inf, math.nan)):
        other = sums.clone()
        other[place] = value
        if isinstance(task, Regression) and place and math.isfinite(value):
            continue  # sums of squares are any numbers
        with pytest.raises(DataError, match=f"expected {task.summed}, found"):
            task.check_sums(other)


@pytest.mark.parametrize(
    "sums",
    [[1.0, -1, 0, 1], [1, 1, 0, -1], [2, 1e308, 0, 1e-308], [1.5, 1, 0, 1]],
    ids=["error", "square", "R²", "count"],
)
def test_impossible_sums_of_a_regression(sums: list[float]) -> None:
    with pytest.raises(DataError, match="a number of samples; of each output"):
        Regression(("price",), (0.0,), (1.0,)).check_sums(torch.tensor(sums, dtype=torch.float64))


def test_accuracy_is_the_share_of_right_answers() -> None:
    task = Classification(NAMES)
    output, y = torch.tensor([[1.0, 0, 0], [0, 2, 1], [0, 1, 3], [torch.nan, 0, 0]]), torch.tensor([0, 1, 1, 0])
    assert task.sums(output, y).tolist() == [2, 4]
    assert task.score(task.sums(output, y)) == 0.5
    assert torch.equal(task.loss(output[:3], y[:3].to(torch.uint8)), functional.cross_entropy(output[:3], y[:3]))


def test_r_squared_beside_a_computation_by_hand() -> None:
    task = Regression(("price", "size"), (10.0, 0.0), (2.0, 1.0))
    y = torch.tensor([[8.0, 1.0], [10.0, 1.0], [15.0, 1.0]])
    output = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])  # 8, 12, 14: errors 0, 2, -1; the mean of y is 11
    # the second output does not vary, so nothing can be said of it
    assert task.score(task.sums(output, y)) == pytest.approx(1 - (0 + 4 + 1) / (9 + 1 + 16))
    assert float(task.loss(output, y)) == pytest.approx(((4 + 1) / 4 + 3) / 6)
    mean = torch.tensor([[0.5, 0.0]] * 3)
    assert task.score(task.sums(mean, y)) == pytest.approx(0, abs=1e-12)


def test_an_answer_that_is_not_finite_is_worse_than_any() -> None:
    task = Regression(("price",), (0.0,), (1.0,))
    y = torch.tensor([[0.0], [1.0]])
    for bad in (torch.nan, torch.inf):
        sums = task.sums(torch.tensor([[0.0], [bad]]), y)
        assert torch.isfinite(sums).all()
        assert task.score(sums) < -1e20


def test_multi_label_beside_counts_by_hand() -> None:
    task = MultiLabel(NAMES)
    y = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    output = torch.tensor([[2.0, 1, -1], [-1, -1, torch.nan]])
    assert task.sums(output, y).tolist() == [1, 1, 2]
    assert task.score(task.sums(output, y)) == pytest.approx(2 / (2 + 1 + 2))
    wanted = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log1p(math.exp(1))) / 3
    assert float(task.loss(output[:1], y[:1])) == pytest.approx(wanted)
    # who always says no has 5 of 6 right where one label is there, and deserves nothing
    assert task.score(task.sums(-torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))) == 0


def test_ignored_places_do_not_count() -> None:
    task = LanguageModelling(5)
    output, y = samples(task, 6)
    counted = y != IGNORED
    assert 0 < counted.sum() < y.numel()
    assert float(task.loss(output, y)) == pytest.approx(float(functional.cross_entropy(output[counted], y[counted])))
    right = (output.argmax(-1) == y)[counted].double().mean()
    assert task.score(task.sums(output, y)) == pytest.approx(float(right))
    assert math.exp(float(task.loss(torch.zeros(6, 4, 5), y))) == pytest.approx(5)  # the perplexity of knowing nothing
    nothing = torch.full((2, 4), IGNORED)
    assert float(task.loss(output[:2], nothing)) == 0
    assert math.isnan(task.score(task.sums(output[:2], nothing)))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_losses_of_many_models_at_once(task: Task) -> None:
    output, y = samples(task, 8)
    outputs = torch.stack([output, 2 * output])
    together = torch.func.vmap(task.loss, in_dims=(0, None))(outputs, y)
    torch.testing.assert_close(together, torch.stack([task.loss(one, y) for one in outputs]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "y", "problem"),
    [
        (Classification(NAMES), torch.tensor([0, 3]), "labels from 0 to 3; they must be 0 to 2"),
        (Classification(NAMES), torch.tensor([[0], [1]]), r"shape \[2, 1\], needs \[2\], one a row"),
        (Classification(NAMES), torch.tensor([0.0, 1.0]), "torch.float32, must be int64"),
        (Regression(("p",), (0.0,), (1.0,)), torch.tensor([[torch.nan], [0.0]]), "not finite"),
        (Regression(("p",), (0.0,), (1.0,)), torch.zeros(2, 2), r"shape \[2, 2\], needs \[2, 1\]"),
        (MultiLabel(NAMES), torch.full((2, 3), 0.5), "other than 0 and 1"),
        (LanguageModelling(5), torch.tensor([[0, 5], [0, 0]]), "tokens other than 0 to 4 and -100"),
        (LanguageModelling(5), torch.zeros(2, dtype=torch.int64), r"needs \[2, time\]"),
    ],
)
def test_targets_that_are_wrong_are_refused(task: Task, y: Tensor, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        task.check("y", y, 2)


def test_who_can_share_models() -> None:
    assert Classification(NAMES).fits(Classification(("x", "y", "z")))
    assert not Classification(NAMES).fits(Classification(("x", "y")))
    assert not Classification(NAMES).fits(QuestionAnswering(NAMES))
    price = Regression(("price",), (1.0,), (2.0,))
    assert price.fits(Regression(("cost",), (1.0,), (2.0,)))
    assert not price.fits(Regression(("price",), (1.0,), (3.0,)))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_binds_one_size_and_names_itself(task: Task) -> None:
    assert task.dims() == {task.unit: task.outputs}
    assert str(task).startswith(task.name)
    strata: Any = task.strata(samples(task, 6)[1])
    assert strata.dtype == np.int64
    assert bool(strata.any()) == ("classes" in task.dims())
