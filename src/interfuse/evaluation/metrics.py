"""Metrics beyond accuracy, from the scores of a client's method on some samples.

Everything here is computed where the samples are; :class:`Statistics` is what leaves the client. A sample with a score
that is NaN has no answer. It counts as wrong, as in accuracy; it ranks last for its own class and first for the others,
and its confidence is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from interfuse.data.task import answers, share
from interfuse.errors import ConfigError
from interfuse.messages import Disclosure, Message

METRICS = ("balanced-accuracy", "recall", "auroc", "calibration-error")
"""What a recipe can ask for."""
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


def metric_values(found: Statistics) -> dict[str, Any]:
    """Every built-in metric by name, between 0 and 1, and those of the user of which something can be said.

    NaN where no sample tells; ``recall`` is a list, one number a class.
    """
    recall = recalls(found.confusion)
    return found.own | {
        "balanced-accuracy": float(recall.nanmean()),
        "recall": recall.tolist(),
        "auroc": share(found.auroc_sum, found.auroc_classes),
        "calibration-error": share(found.calibration_gap, int(found.confusion.sum())),
    }


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
