"""Metrics against loops over samples, pairs and bins, and against values known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from interfuse.evaluation.metrics import (
    BINS,
    Measurements,
    answers,
    auroc,
    calibration_gap,
    confusion,
    log_prior,
    measured_on,
    metric_values,
    recalls,
    statistics,
)
from interfuse.messages import Disclosure, disclosed
from interfuse.messages.delivery import check, narrow

Case = tuple[Tensor, Tensor]
FINITE = st.integers(-3, 3).map(float)
ANY = FINITE | st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def cases(draw: st.DrawFn, values: st.SearchStrategy[float] = ANY) -> Case:
    """Scores with many ties, and labels of which some may be absent."""
    n, classes = draw(st.integers(0, 12)), draw(st.integers(2, 5))
    rows = [draw(st.lists(values, min_size=classes, max_size=classes)) for _ in range(n)]
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return torch.tensor(rows).reshape(n, classes), torch.tensor(labels, dtype=torch.int64)


def values(scores: Tensor, y: Tensor, present: list[bool] | None = None) -> dict[str, Any]:
    """The metrics of these scores, of a client with all classes unless some are not ``present``."""
    return metric_values(statistics(scores, y), torch.tensor(present or [True] * scores.shape[1]))


def unanswered(row: list[float]) -> bool:
    return any(math.isnan(value) for value in row)


@settings(deadline=None)
@given(cases())
def test_confusion_counts_every_sample_once(case: Case) -> None:
    scores, y = case
    classes = scores.shape[1]
    wanted = [[0] * (classes + 1) for _ in range(classes)]
    for row, label in zip(scores.tolist(), y.tolist(), strict=True):
        wanted[label][classes if unanswered(row) else row.index(max(row))] += 1
    assert confusion(scores, y).tolist() == wanted


@settings(deadline=None)
@given(cases())
def test_recall_and_balanced_accuracy_are_over_the_classes_that_are_there(case: Case) -> None:
    scores, y = case
    by_class = [(answers(scores)[y == label] == label).tolist() for label in range(scores.shape[1])]
    wanted = [sum(hits) / len(hits) if hits else math.nan for hits in by_class]
    assert recalls(confusion(scores, y)).tolist() == pytest.approx(wanted, nan_ok=True)
    present = [value for value in wanted if not math.isnan(value)]
    balanced = sum(present) / len(present) if present else math.nan
    assert values(scores, y)["balanced-accuracy"] == pytest.approx(balanced, nan_ok=True)


@settings(deadline=None)
@given(cases(), st.data())
def test_absent_and_present_recall_are_means_over_the_classes_of_each_kind(case: Case, data: st.DataObject) -> None:
    scores, y = case
    known = data.draw(st.lists(st.booleans(), min_size=scores.shape[1], max_size=scores.shape[1]))
    found = values(scores, y, known)
    for name, kind in (("absent-recall", False), ("present-recall", True)):
        of_kind = [c for c in y.unique().tolist() if known[c] is kind]
        each = [(answers(scores)[y == c] == c).double().mean().item() for c in of_kind]
        assert found[name] == pytest.approx(sum(each) / len(each) if each else math.nan, nan_ok=True)


def test_the_prior_is_in_closed_form_and_rules_no_class_out() -> None:
    assert log_prior(torch.tensor([3, 0, 1])).exp().tolist() == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    assert log_prior(torch.tensor([0, 0])).exp().tolist() == [0.5, 0.5]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_with_the_prior_the_answer_is_that_of_bayes_rule(counts: list[int], likelihoods: list[int]) -> None:
    """Logits of a model that saw all classes alike are log-likelihoods up to a constant."""
    logits = torch.tensor(likelihoods).double().log() + 3.5
    posterior = [(n + 1) * likelihood for n, likelihood in zip(counts, likelihoods, strict=True)]
    assert posterior[int((logits + log_prior(torch.tensor(counts))).argmax())] == max(posterior)


def test_each_side_of_a_client_has_its_metrics() -> None:
    own = statistics(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    common = statistics(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]))
    found = measured_on(Measurements(own, common, 2, torch.tensor([True, True, False])))
    assert found["own"]["accuracy-with-prior"] == pytest.approx(2 / 3)
    assert math.isnan(found["global"]["accuracy-with-prior"])
    assert math.isnan(found["own"]["absent-recall"]), "its own test share has no row of class 2"
    assert (found["global"]["absent-recall"], found["global"]["present-recall"]) == (0, 1)
    assert (found["own"]["present-recall"], found["own"]["balanced-accuracy"]) == (0.75, 0.75)


@settings(deadline=None)
@given(cases(FINITE))
def test_auroc_is_the_share_of_pairs_in_order(case: Case) -> None:
    scores, y = case
    p = functional.softmax(scores.double(), 1)
    for label, found in enumerate(auroc(scores, y).tolist()):
        wins = [
            1.0 if mine > other else 0.5 if mine == other else 0.0
            for mine in p[y == label, label].tolist() for other in p[y != label, label].tolist()
        ]  # fmt: skip
        assert found == pytest.approx(sum(wins) / len(wins) if wins else math.nan, nan_ok=True)


def test_auroc_in_closed_form() -> None:
    y = torch.tensor([0, 0, 1, 1])
    probability = torch.tensor([0.1, 0.4, 0.35, 0.8]).double()  # the example of scikit-learn's roc_auc_score: 0.75
    two = torch.stack([torch.zeros(4).double(), probability.logit()], 1)
    assert auroc(two, y).tolist() == [0.75, 0.75]
    assert auroc(torch.zeros(4, 2), y).tolist() == [0.5, 0.5]
    assert auroc(functional.one_hot(y, 3).float(), y)[:2].tolist() == [1.0, 1.0]
    assert auroc(functional.one_hot(1 - y, 3).float(), y)[:2].tolist() == [0.0, 0.0]
    assert auroc(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64)).isnan().all()


def test_auroc_compares_probabilities_and_not_what_softmax_ignores() -> None:
    y = torch.tensor([0, 1])
    assert auroc(torch.tensor([[1.0, -5.0], [10.0, 10.0]]), y).tolist() == [1.0, 1.0]
    assert auroc(torch.tensor([[30.0, 0.0], [25.0, 0.0]]), y).tolist() == [1.0, 1.0]  # both are 1 in float32


@settings(deadline=None)
@given(cases())
def test_calibration_error_is_the_gap_of_confidence_and_accuracy_by_bin(case: Case) -> None:
    scores, y = case
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for row, label in zip(scores.tolist(), y.tolist(), strict=True):
        finite = [max(min(value, 1e30), -1e30) for value in row]
        top = max(finite)
        confidence = 1.0 if unanswered(row) else 1 / sum(math.exp(value - top) for value in finite)
        right = not unanswered(row) and row.index(max(row)) == label
        number = next(m for m in range(1, BINS + 1) if (m - 1) / BINS < confidence <= m / BINS)
        bins[number - 1].append((confidence, right))
    wanted = 0.0
    for members in filter(None, bins):
        accuracy = sum(right for _, right in members) / len(members)
        confidence = sum(confidence for confidence, _ in members) / len(members)
        wanted += len(members) / len(y) * abs(accuracy - confidence)
    assert calibration_gap(scores, y) == pytest.approx(wanted * len(y), abs=1e-9)


def test_calibration_error_in_closed_form() -> None:
    y = torch.tensor([0, 0, 0, 1])
    sure = torch.tensor([100.0, 0.0]).expand(4, 2)
    assert calibration_gap(sure, y) == pytest.approx(1.0)  # confidence 1, accuracy 3/4
    calibrated = torch.tensor([math.log(3.0), 0.0]).expand(4, 2)
    assert calibration_gap(calibrated, y) == pytest.approx(0.0, abs=1e-6)  # both 3/4
    third = torch.tensor([[0.0, 0.0, 0.0, -math.inf], [math.log(3.0), *[math.log(7 / 3)] * 3]])  # 5/15 and 0.3: one bin
    assert calibration_gap(third, torch.tensor([0, 1])) == pytest.approx(2 / 3 - 0.3, abs=1e-6)
    two_bins = torch.tensor([[math.log(3.0), 0.0], [math.log(9.0), 0.0]])
    assert calibration_gap(two_bins, torch.tensor([0, 1])) == pytest.approx(0.25 + 0.9, abs=1e-6)


def test_scores_that_are_no_numbers_are_the_worst_there_is() -> None:
    y = torch.tensor([0, 1, 1, 2])
    lost = torch.full((4, 3), math.nan)
    worst = {"balanced-accuracy": 0.0, "recall": [0.0] * 3, "auroc": 0.0, "calibration-error": 1.0}
    worst |= {"absent-recall": 0.0, "present-recall": 0.0}
    assert values(lost, y, [True, False, True]) == worst
    assert int((answers(lost + log_prior(torch.tensor([1, 2, 3]))) == y).sum()) == 0
    one = functional.one_hot(y, 3).float() * 5
    one[0, 2] = math.nan
    assert auroc(one, y).tolist() == [0.0, 0.5, pytest.approx(2 / 3)]


def test_an_excluded_class_costs_no_answer() -> None:
    """Methods of prototypes give a class that nobody has a score of -inf."""
    y = torch.tensor([0, 1])
    scores = torch.tensor([[4.0, 0.0, -math.inf], [0.0, 4.0, -math.inf]])
    assert statistics(scores, y).confusion.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert values(scores, y)["auroc"] == 1.0
    assert values(scores, y)["calibration-error"] == pytest.approx(1 / (1 + math.exp(4)))
    assert answers(scores + log_prior(torch.tensor([0, 0, 9]))).tolist() == [0, 1]


@settings(deadline=None)
@given(cases())
def test_what_leaves_a_client_is_finite_statistics_of_a_fixed_size(case: Case) -> None:
    scores, y = case
    classes = scores.shape[1]
    found = narrow(statistics(scores, y), {"classes": classes})
    check(found, {"classes": classes})
    assert disclosed(type(found)) == {Disclosure.STATISTICS}
    assert found.confusion.shape == (classes, classes + 1)


def test_nothing_is_known_of_no_samples() -> None:
    found = values(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    scalars = [name for name in found if name != "recall"]
    assert [math.isnan(found[name]) for name in scalars] == [True] * 5
    assert len(found["recall"]) == 3
    assert all(map(math.isnan, found["recall"]))
