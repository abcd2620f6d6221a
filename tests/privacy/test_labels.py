"""Randomised response: flips against the closed form, and a loss that is right in spite of them."""

from __future__ import annotations

import bisect
import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from worlds import Recorder, federation, resident, setup_of, tiny_dataset, wide

from interfuse.errors import ConfigError
from interfuse.families.fusion import FusionOutputs
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_private_labels import IFLPrivateLabels
from interfuse.privacy import flip_rates, log_reported, randomised_response
from interfuse.randomness import generator

CASES = pytest.mark.parametrize(("classes", "epsilon"), [(2, 0.5), (10, 1.0), (10, 3.0), (100, 5.0)])


@CASES
def test_flips_are_as_often_as_the_closed_form_says(classes: int, epsilon: float) -> None:
    rows = 200_000
    noise = torch.rand(rows, generator=generator(1), dtype=torch.float64)
    y = torch.randint(classes, (rows,), generator=generator(2))
    reported = randomised_response(y, classes, epsilon, noise)
    kept = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    found = int((reported == y).sum())
    assert abs(found - kept * rows) <= 5 * math.sqrt(rows * kept * (1 - kept))
    steps = torch.bincount((reported - y) % classes, minlength=classes)[1:]
    other = (1 - kept) / (classes - 1)
    assert bool(((steps - other * rows).abs() <= 5 * math.sqrt(rows * other * (1 - other))).all())


@CASES
def test_no_report_is_more_than_e_to_the_epsilon_times_as_likely_for_one_label_as_for_another(
    classes: int, epsilon: float
) -> None:
    kept, other = flip_rates(classes, epsilon)
    assert kept + (classes - 1) * other == pytest.approx(1, abs=1e-12)
    assert kept / other == pytest.approx(math.exp(epsilon), rel=1e-12)


def test_the_extremes_of_the_noise_give_labels() -> None:
    noise = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    for classes, epsilon in ((2, 1e-6), (10, 50.0), (10, 1e-9), (1, 1.0)):
        reported = randomised_response(torch.zeros(3, dtype=torch.int64), classes, epsilon, noise)
        assert bool(((reported >= 0) & (reported < classes)).all())
    assert flip_rates(10, 1000.0) == (1.0, 0.0)


def rates(classes: int, epsilon: float) -> list[int]:
    """Of 2^53 equally likely draws, how many report label 0 as each label: by bisection, for reports come in order."""

    def report(draw: int) -> int:
        y = torch.zeros(1, dtype=torch.int64)
        return int(randomised_response(y, classes, epsilon, torch.tensor([draw * 2.0**-53], dtype=torch.float64)))

    places = range(2**53)
    turn = [(label - report(0)) % classes for label in range(classes)]  # reports from the first draw on
    ends = [
        bisect.bisect_right(places, t, key=lambda draw: (report(draw) - report(0)) % classes) for t in range(classes)
    ]
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return [counts[t] for t in turn]


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("epsilon", [0.5, 8.0, 17.0, 24.0, 30.0])
def test_the_real_epsilon_is_the_stated_one_as_far_as_it_may_be_asked_for(classes: int, epsilon: float) -> None:
    """Counted over all numbers that the noise can be."""
    kept, *others = rates(classes, epsilon)
    assert kept + sum(others) == 2**53
    assert all(abs(math.log(kept / other) - epsilon) < 0.01 for other in others)
    with pytest.raises(ConfigError, match="label_epsilon = 30.1"):
        IFLPrivateLabels(label_epsilon=30.1)


def test_the_noise_of_a_client_has_all_the_digits_that_this_takes() -> None:
    f = federation(IFLPrivateLabels(label_epsilon=1.0), models=[wide], clients=1)
    noise = resident(f, 0).lasting_noise(1000, "labels")
    assert noise.dtype == torch.float64
    assert not bool((noise * 2**40 == (noise * 2**40).floor()).any())


@CASES
def test_the_loss_on_reports_is_least_where_that_on_labels_is(classes: int, epsilon: float) -> None:
    """Forward correction: with the true distribution of reports in place of reports, the gradient vanishes at p."""
    p = torch.softmax(torch.randn(1, classes, generator=generator(3), dtype=torch.float64), 1)
    kept, other = flip_rates(classes, epsilon)
    reports = kept * p + other * (1 - p)  # by enumeration over labels
    logits = p.log().requires_grad_()
    corrected = -(reports * log_reported(functional.log_softmax(logits, 1), epsilon)).sum()
    (gradient,) = torch.autograd.grad(corrected, logits)
    assert float(gradient.abs().max()) < 1e-12
    plain = -(reports * functional.log_softmax(logits, 1)).sum()
    (biased,) = torch.autograd.grad(plain, logits)
    assert float(biased.abs().max()) > 1e-3


def uploads(epsilon: float | None, rounds: int = 6) -> list[FusionOutputs]:
    """What client 0 sends: its whole share, in every round. Features tell the row."""
    shared: dict[str, Any] = {"local_steps": 0, "batch_size": 20}
    method = IFL(**shared) if epsilon is None else IFLPrivateLabels(**shared, label_epsilon=epsilon)
    f = federation(method, rounds=rounds, wrap=Recorder, models=[wide], clients=3, dataset=tiny_dataset())
    assert isinstance(f.engine, Recorder)
    sent = [message for _, client, message in f.engine.up if client == 0]
    return [message for message in sent if isinstance(message, FusionOutputs)]


def test_a_sample_is_always_reported_with_the_same_label() -> None:
    reports: dict[tuple[int, ...], set[int]] = {}
    for sent in uploads(0.5):
        for z, y in zip((sent.z * 1000).round().int().tolist(), sent.y.tolist(), strict=True):
            reports.setdefault(tuple(z), set()).add(y)
    assert len(reports) == 16  # the others are set aside for validation and test
    assert all(len(labels) == 1 for labels in reports.values())


def test_without_epsilon_labels_are_true_and_with_it_features_stay() -> None:
    true, noisy = uploads(None, rounds=1), uploads(0.1, rounds=1)
    assert all(torch.equal(a.z, b.z) for a, b in zip(true, noisy, strict=True))
    assert any(not torch.equal(a.y, b.y) for a, b in zip(true, noisy, strict=True))
    assert all(torch.equal(a.y, b.y) for a, b in zip(true, uploads(30.0, rounds=1), strict=True))


def test_clients_with_another_epsilon_are_refused_for_the_others_could_not_correct_its_flips() -> None:
    method = IFLPrivateLabels(label_epsilon=1.0)
    with pytest.raises(ConfigError, match=r"client 1: label_epsilon = .*: all clients must have the same, 1.0"):
        setup_of(method, models=[wide], clients=2, overrides={1: {"label_epsilon": 2.0}})
    setup_of(method, models=[wide], clients=2, overrides={1: {"label_epsilon": 1.0, "base_lr": 0.5}})


def test_a_modular_block_learns_through_flips_what_it_learns_without_them() -> None:
    """Logistic regression on many reports: with the correction the true class keeps its probability."""
    classes, epsilon, rows = 4, 1.0, 40_000
    labels = torch.arange(rows) % classes
    x = functional.one_hot(labels, classes).float()
    reports = randomised_response(
        labels, classes, epsilon, torch.rand(rows, generator=generator(5), dtype=torch.float64)
    )
    found = []
    for corrected in (True, False):
        weights = torch.zeros(classes, classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def closure(weights: torch.Tensor = weights, corrected: bool = corrected) -> torch.Tensor:
            weights.grad = None
            scores = functional.log_softmax(x @ weights, 1)
            loss = functional.nll_loss(log_reported(scores, epsilon) if corrected else scores, reports)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        found.append(float(torch.softmax(weights.detach(), 1).diag().mean()))
    assert found[0] > 0.95
    assert found[1] == pytest.approx(flip_rates(classes, epsilon)[0], abs=0.02)
