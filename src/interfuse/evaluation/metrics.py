"""Metrics beyond accuracy, from the scores of a client's method on some samples.

Everything here is computed where the samples are; :class:`Statistics` is what leaves the client. A sample with a score
that is NaN has no answer. It counts as wrong, as in accuracy; it ranks last for its own class and first for the others,
and its confidence is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from interfuse.data.task import answers, share
from interfuse.errors import ConfigError
from interfuse.messages import Disclosure, Message

METRICS = (
    "balanced-accuracy", "recall", "absent-recall", "present-recall", "accuracy-with-prior", "auroc",
    "calibration-error",
)  # fmt: skip
"""What a recipe can ask for, of classes."""
ACROSS_TASKS = frozenset({"others", "forgetting"})
"""What it can ask for of any task: scores beside own ones, at every point of the curve."""
Side = Literal["own", "global"]
"""Where a client is measured: on its own test share, or on the common test set."""
OwnMetric = Callable[[Tensor, Tensor], float]
"""A metric of the user: from scores [n, classes] of a client's method and labels [n], n > 0, to a number, which may be
NaN. Higher or lower may be better; it is a mean over clients in results, and no percentage."""
BINS = 15
"""Bins of the calibration error, as many as Guo et al. (2017) use."""


class Statistics(Message):
    """Sums over some samples of one client, from which all metrics follow.

    Attributes:
        confusion: Samples by class (row) and answer (column); the last column is of those without an answer.
        calibration_gap: The calibration error times the number of samples.
        auroc_sum: AUROCs of ``auroc_classes`` classes, those that some of the samples have and some have not.
        own: Values of the user's metrics by name; those are left out of which nothing can be said.
    """

    confusion: Annotated[Int64[Tensor, "classes answers"], Disclosure.STATISTICS]
    calibration_gap: float
    auroc_sum: float
    auroc_classes: int
    own: dict[str, float]


class Measurements(Message):
    """What all metrics of one client follow from.

    Attributes:
        own: On the client's own test share.
        common: On the common test set.
        right_with_prior: How many of its own test rows the client answers right with its prior; see :func:`log_prior`.
        present: Of which classes it has training rows.
    """

    own: Statistics
    common: Statistics
    right_with_prior: int
    present: Annotated[Bool[Tensor, "classes"], Disclosure.STATISTICS]


def own_value(name: str, metric: OwnMetric, scores: Float[Tensor, "n classes"], y: Int64[Tensor, "n"]) -> float:
    """The value of a user's metric; NaN where it says that nothing can be said.

    Raises:
        ConfigError: it fails, or gives no number.
    """
    try:
        return float(metric(scores, y))
    except Exception as error:
        raise ConfigError(
            f"metric {name} failed on scores {list(scores.shape)} and labels {list(y.shape)}: "
            f"{type(error).__name__}: {error}; it takes both and returns a number"
        ) from error


def try_metrics(own: Mapping[str, OwnMetric], classes: int) -> None:
    """Try metrics of the user on a sample of each class, before a run rather than at its end.

    Raises:
        ConfigError: one fails, or gives no number.
    """
    for name, metric in own.items():
        own_value(name, metric, torch.eye(classes), torch.arange(classes))


def statistics(
    scores: Float[Tensor, "n classes"], y: Int64[Tensor, "n"], own: Mapping[str, OwnMetric] = MappingProxyType({})
) -> Statistics:
    """What a client tells of its scores on samples with labels ``y``; there may be none."""
    areas = auroc(scores, y)
    known = areas[~areas.isnan()]
    values = {name: own_value(name, metric, scores, y) for name, metric in own.items()} if len(y) else {}
    return Statistics(
        confusion(scores, y),
        calibration_gap(scores, y),
        float(known.sum()),
        len(known),
        {name: value for name, value in values.items() if math.isfinite(value)},
    )


def measured_on(found: Measurements) -> dict[Side, dict[str, Any]]:
    """The metrics of a client on its own test share, and on the common test set; see :func:`metric_values`.

    The accuracy with prior is on the own test share alone: the prior is that of the client's own rows.
    """
    own, common = metric_values(found.own, found.present), metric_values(found.common, found.present)
    with_prior = share(found.right_with_prior, int(found.own.confusion.sum()))
    return {"own": own | {"accuracy-with-prior": with_prior}, "global": common | {"accuracy-with-prior": math.nan}}


def metric_values(found: Statistics, present: Bool[Tensor, "classes"]) -> dict[str, Any]:
    """The metrics of a client on some samples by name, between 0 and 1, and those of the user of which something can
    be said.

    NaN where no sample tells; ``recall`` is a list, one number a class. ``absent-recall`` is its mean over the classes
    with samples here of which the client has no training row, ``present-recall`` that over the others.
    """
    recall = recalls(found.confusion)
    return found.own | {
        "balanced-accuracy": float(recall.nanmean()),
        "recall": recall.tolist(),
        "absent-recall": float(recall[~present].nanmean()),
        "present-recall": float(recall[present].nanmean()),
        "auroc": share(found.auroc_sum, found.auroc_classes),
        "calibration-error": share(found.calibration_gap, int(found.confusion.sum())),
    }


def log_prior(counts: Int64[Tensor, "classes"]) -> Float64[Tensor, "classes"]:
    """log π_c of a client with so many training rows of each class: π_c = (n_c + 1) / (n + C).

    Added to the logits of a model whose training saw all classes alike, it makes of them the answers of a client whose
    classes are those frequencies (Bayes' rule). The one row more a class (Laplace's rule of succession) leaves a class
    that the client has never seen a chance: the logarithm of no row at all would rule it out. Scores that are no
    logits, such as negative distances, get the same addend, and then it is no rule of probability.
    """
    return ((counts + 1).double() / (counts.sum() + len(counts))).log()


def confusion(scores: Float[Tensor, "n classes"], y: Int64[Tensor, "n"]) -> Int64[Tensor, "classes answers"]:
    """Samples by class (row) and answer (column); ``answers = classes + 1``, the last for samples without an answer."""
    classes = scores.shape[1]
    pairs = y * (classes + 1) + answers(scores)
    return torch.bincount(pairs, minlength=classes * (classes + 1)).view(classes, classes + 1)


def recalls(confusion: Int64[Tensor, "classes answers"]) -> Float64[Tensor, "classes"]:
    """The share of each class that is answered right; NaN for a class without samples.

    Their mean over the classes with samples is the balanced accuracy (Brodersen et al., ICPR 2010).
    """
    return confusion.diagonal().double() / confusion.sum(1)


def auroc(scores: Float[Tensor, "n classes"], y: Int64[Tensor, "n"]) -> Float64[Tensor, "classes"]:
    """The area under the ROC curve of each class against the rest, by its softmax probability.

    It is the share of pairs of a sample of the class and another in which the former is the more probable, ties half
    (Mann and Whitney, 1947): what mid-ranks give. NaN for a class that all samples have, or none.
    """
    p, own = _probabilities(scores), functional.one_hot(y, scores.shape[1]).bool()
    p = torch.where(p.isnan(), torch.where(own, -torch.inf, torch.inf), p)
    pairs = zip(p.unbind(1), own.unbind(1), strict=True)
    return torch.stack([_wins(column[mine], column[~mine]) for column, mine in pairs])


def _wins(positive: Float64[Tensor, "p"], negative: Float64[Tensor, "q"]) -> Float64[Tensor, ""]:
    """The share of pairs whose positive is the larger, ties half."""
    negative = negative.sort().values
    below, up_to = torch.searchsorted(negative, positive), torch.searchsorted(negative, positive, right=True)
    return (below + up_to).sum().double() / (2 * len(positive) * len(negative))


def calibration_gap(scores: Float[Tensor, "n classes"], y: Int64[Tensor, "n"]) -> float:
    """Σ over bins of |right answers − sum of confidences|: n times the expected calibration error.

    Confidence is the largest softmax probability; bin m of M = 15 is ((m − 1)/M, m/M] (Guo et al., ICML 2017, eq. 3).
    """
    # NaN: a sample without an answer is as badly calibrated as can be
    confidence = _probabilities(scores).amax(1).nan_to_num(1.0)
    bins = (confidence * BINS).ceil().long() - 1
    right = (answers(scores) == y).double()
    return float(torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, right - confidence).abs().sum())


def _probabilities(scores: Float[Tensor, "n classes"]) -> Float64[Tensor, "n classes"]:
    """The softmax, NaN where one of the scores is; an infinite score counts, such as -inf for a class ruled out."""
    # in float32 all probabilities of confident answers would round to 1
    largest = torch.finfo(torch.float32).max
    return functional.softmax(scores.double().clamp(-largest, largest), 1)
