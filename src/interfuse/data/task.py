"""What a model's output is of, what it costs to be wrong, and what an answer is worth.

A score is worked out from sums that add up over batches, so it does not depend on how samples were divided. Sums are
float64: counts are exact in it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from interfuse.errors import ConfigError, DataError

IGNORED = -100
"""A place of a language model's targets that does not count."""
_WORST = 1e30
"""Stands for the squared error of an answer that is not finite."""
_MOST_COUNTED = 2.0**53
"""Up to which counts are exact in float64."""

Sums = Float64[Tensor, "sums"]


class Task(ABC):
    """A task is a value: equal tasks are one task.

    Attributes:
        name: How files and messages to the user call it.
        score_name: What :meth:`score` is.
        summed: What :meth:`sums` are.
        axes: Names of the axes of one sample's target.
        dtype: Of targets.
        names: Of classes, labels or outputs, in the order of their numbers.
    """

    name: ClassVar[str]
    score_name: ClassVar[str]
    summed: ClassVar[str] = "a part and its whole"
    axes: ClassVar[tuple[str, ...]] = ()
    dtype: ClassVar[torch.dtype] = torch.int64
    names: tuple[str, ...]

    @abstractmethod
    def dims(self) -> dict[str, int]:
        """The size that it binds for messages, by name."""

    @abstractmethod
    def loss(self, output: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """The mean loss of a batch's outputs."""

    @abstractmethod
    def sums(self, output: Tensor, y: Tensor) -> Sums:
        """What :meth:`score` follows from, on the CPU; a part and its whole, unless the task says otherwise."""

    def score(self, sums: Sums) -> float:
        """How good the answers are: higher is better, 1 is perfect; NaN where nothing can be said."""
        return share(*sums.tolist())

    def check_sums(self, sums: Sums, y: Tensor | None = None) -> None:
        """Check sums that somebody else worked out.

        Args:
            y: The targets that they are of, where those are known.

        Raises:
            DataError: no answers have such sums, or nothing can be made of them.
        """
        most = _MOST_COUNTED if y is None else float(self.counted(y))
        finite = bool(sums.isfinite().all())
        if not (finite and self._possible(sums, most) and not math.isinf(self.score(sums))):
            at_most = "" if y is None else f" of at most {most:g}"
            raise DataError(f"expected {self.summed}{at_most}, found {sums.tolist()}")

    def counted(self, y: Tensor) -> int:
        """The largest count that there can be among the sums of these targets."""
        return y.numel()

    def answered(self, sums: Sums) -> int:
        """How many answers a score is of, where its sums say so; 0 where they do not."""
        return int(sums[1])

    def _possible(self, sums: Sums, most: float) -> bool:
        """Whether some answers have these sums, which are finite, where counts go so far."""
        part, whole = sums.tolist()
        return _are_counts(sums) and part <= whole <= most

    @property
    def size(self) -> int:
        """Number of sums."""
        target = [self.dims().get(axis, 1) for axis in self.axes]
        output, y = torch.zeros(0, *self.output_shape(tuple(target))), torch.zeros(0, *target, dtype=self.dtype)
        return len(self.sums(output, y))

    @abstractmethod
    def wrong(self, y: Tensor) -> str:
        """What is wrong with values of targets of the right type and shape; empty: nothing."""

    @property
    def outputs(self) -> int:
        """Length of the last axis of a model's output."""
        return next(iter(self.dims().values()))

    @property
    def unit(self) -> str:
        """What these are: classes, outputs, labels, tokens."""
        return next(iter(self.dims()))

    def output_shape(self, target: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample's output where its target has this shape."""
        return target if self.unit in self.axes else (*target, self.outputs)

    def fits(self, other: Task) -> bool:
        """Whether models of one can be those of the other; the names may differ."""
        return type(other) is type(self) and other.dims() == self.dims()

    def strata(self, y: Tensor) -> Int64[np.ndarray, "n"]:
        """Class of each target, or 0 where there are no classes."""
        return np.zeros(len(y), np.int64)

    def check(self, name: str, y: Tensor, rows: int) -> None:
        """Check targets of so many samples, which are called by a name.

        Raises:
            DataError: they are not as the task has them.
        """
        wanted = [rows, *(self.dims().get(axis, axis) for axis in self.axes)]
        fits = [need == size or isinstance(need, str) for need, size in zip(wanted, y.shape, strict=False)]
        if y.dtype != self.dtype:
            raise DataError(f"{name} is {y.dtype}, must be {str(self.dtype).removeprefix('torch.')}")
        if y.ndim != len(wanted) or not all(fits):
            needs = ", ".join(map(str, wanted)) + ("]" if self.axes else "], one a row")
            raise DataError(f"{name} has shape {list(y.shape)}, needs [{needs}")
        if y.numel() and (problem := self.wrong(y)):
            raise DataError(f"{name} {problem}")

    def __str__(self) -> str:
        names = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        return f"{self.name} ({names or self.outputs})"


class Sizes(dict[str, int]):
    """The sizes bound for a run, by name; asking for another says so."""

    def __init__(self, task: Task, **others: int) -> None:
        super().__init__({**task.dims(), "sums": task.size, **others})
        self._task = task

    def __missing__(self, name: str) -> int:
        known = ", ".join(self)
        raise ConfigError(f"the method needs the size {name!r}, but this run has {known}: its task is {self._task}")


class _OfClasses(Task):
    """Each sample belongs to one class."""

    score_name = "accuracy"

    def dims(self) -> dict[str, int]:
        return {"classes": len(self.names)}

    def loss(self, output: Float[Tensor, "batch classes"], y: Shaped[Tensor, "batch"]) -> Float[Tensor, ""]:
        return functional.cross_entropy(output, y.long())

    def sums(self, output: Float[Tensor, "batch classes"], y: Shaped[Tensor, "batch"]) -> Sums:
        """Right answers, samples."""
        return torch.tensor([(answers(output) == y).sum(), len(y)], dtype=torch.float64)

    def wrong(self, y: Tensor) -> str:
        low, high, end = int(y.min()), int(y.max()), len(self.names)
        if low >= 0 and high < end:
            return ""
        return f"has labels from {low} to {high}; they must be 0 to {end - 1}, one a class name"

    def strata(self, y: Tensor) -> Int64[np.ndarray, "n"]:
        found: np.ndarray = y.cpu().numpy()
        return found


@final
@dataclass(frozen=True)
class Classification(_OfClasses):
    """One class a sample: outputs are scores ``[batch, classes]``, targets class numbers, int64 ``[batch]``."""

    name = "classification"
    names: tuple[str, ...]


@final
@dataclass(frozen=True)
class QuestionAnswering(_OfClasses):
    """A question, often beside a picture, whose answer is one of several: inputs by name, else as classes."""

    name = "question answering"
    names: tuple[str, ...]


@final
@dataclass(frozen=True)
class Regression(Task):
    """Numbers: targets are float32 ``[batch, outputs]`` in their own unit, outputs as many in standard deviations.

    The loss is the mean squared error of standardised targets, the score R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², the mean over
    the outputs; ȳ is the mean of the targets that the score is of. NaN where they do not vary.

    Attributes:
        mean: Of the training targets, by output.
        std: As ``mean``; positive.
    """

    name = "regression"
    score_name = "R²"
    summed = "a number of samples; of each output a sum of squares, a sum, and a sum of squares"
    axes = ("outputs",)
    dtype = torch.float32
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def dims(self) -> dict[str, int]:
        return {"outputs": len(self.names)}

    def fits(self, other: Task) -> bool:
        return isinstance(other, Regression) and (other.mean, other.std) == (self.mean, self.std)

    def loss(self, output: Float[Tensor, "batch outputs"], y: Float[Tensor, "batch outputs"]) -> Float[Tensor, ""]:
        return functional.mse_loss(output, self.standardised(y))

    def standardised(self, y: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        """Targets as a model answers them."""
        mean, std = (torch.tensor(values, dtype=y.dtype, device=y.device) for values in (self.mean, self.std))
        return (y - mean) / std

    def sums(self, output: Float[Tensor, "batch outputs"], y: Float[Tensor, "batch outputs"]) -> Sums:
        """Samples; then of each output Σ(y − ŷ)², Σy, Σy²."""
        y = self.standardised(y.double())
        errors = (y - output).square().nan_to_num(nan=_WORST, posinf=_WORST)
        return torch.cat([y.new_tensor([len(y)]), errors.sum(0), y.sum(0), y.square().sum(0)]).cpu()

    def counted(self, y: Tensor) -> int:
        return len(y)

    def answered(self, sums: Sums) -> int:
        return int(sums[0])

    def _possible(self, sums: Sums, most: float) -> bool:
        errors, _, squares = sums[1:].view(3, -1)
        return _are_counts(sums[:1]) and float(sums[0]) <= most and bool((errors >= 0).all() and (squares >= 0).all())

    def score(self, sums: Sums) -> float:
        errors, total, squares = sums[1:].view(3, -1)
        spread = squares - total.square() / sums[0]
        told = spread > 1e-12 * squares
        return share(float((1 - errors / spread)[told].sum()), int(told.sum()))

    def wrong(self, y: Tensor) -> str:
        return "" if bool(torch.isfinite(y).all()) else "has values that are not finite"


@final
@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels a sample: targets are float32 ``[batch, labels]``, 1 or 0, outputs as many logits.

    The loss is the mean binary cross entropy. The score is F1 = 2 TP / (2 TP + FP + FN) over all samples and labels, a
    logit above 0 for yes, and not the share of right labels: with rare labels that is near 1 for a model that always
    says no. NaN where no label is there and none is said.
    """

    name = "multi-label"
    score_name = "F1"
    summed = "numbers of labels said and there, said, and there"
    axes = ("labels",)
    dtype = torch.float32
    names: tuple[str, ...]

    def dims(self) -> dict[str, int]:
        return {"labels": len(self.names)}

    def loss(self, output: Float[Tensor, "batch labels"], y: Float[Tensor, "batch labels"]) -> Float[Tensor, ""]:
        return functional.binary_cross_entropy_with_logits(output, y)

    def sums(self, output: Float[Tensor, "batch labels"], y: Float[Tensor, "batch labels"]) -> Sums:
        """Labels said and there, said and not there, there and not said. A logit that is NaN says what is wrong."""
        there = y > 0.5
        said = torch.where(output.isnan(), ~there, output > 0)
        return torch.stack([(a & b).sum() for a, b in ((said, there), (said, ~there), (~said, there))]).double().cpu()

    def answered(self, sums: Sums) -> int:
        return 0

    def _possible(self, sums: Sums, most: float) -> bool:
        return _are_counts(sums) and float(sums.sum()) <= most

    def score(self, sums: Sums) -> float:
        right, false, missed = sums.tolist()
        return share(2 * right, 2 * right + false + missed)

    def wrong(self, y: Tensor) -> str:
        return "" if bool(((y == 0) | (y == 1)).all()) else "has values other than 0 and 1"


@final
@dataclass(frozen=True)
class LanguageModelling(Task):
    """A token for each place: targets are int64 ``[batch, time]``, outputs scores ``[batch, time, tokens]``.

    Places whose target is -100 do not count. The loss is the mean cross entropy of the places that do (0 where none
    does), the score the share of them whose token is right.

    Attributes:
        tokens: Size of the vocabulary.
    """

    name = "language modelling"
    score_name = "token accuracy"
    axes = ("time",)
    tokens: int
    names: tuple[str, ...] = ()

    def dims(self) -> dict[str, int]:
        return {"tokens": self.tokens}

    def loss(self, output: Float[Tensor, "batch time tokens"], y: Int64[Tensor, "batch time"]) -> Float[Tensor, ""]:
        total = functional.cross_entropy(output.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (y != IGNORED).sum().clamp(min=1)

    def sums(self, output: Float[Tensor, "batch time tokens"], y: Int64[Tensor, "batch time"]) -> Sums:
        """Right tokens, places that count."""
        return torch.stack([(answers(output) == y).sum(), (y != IGNORED).sum()]).double().cpu()

    def counted(self, y: Tensor) -> int:
        return int((y != IGNORED).sum())

    def wrong(self, y: Tensor) -> str:
        counted = (y >= 0) & (y < self.tokens) | (y == IGNORED)
        return "" if bool(counted.all()) else f"has tokens other than 0 to {self.tokens - 1} and {IGNORED}"


def numbered(count: int) -> tuple[str, ...]:
    """The names that classes, labels or outputs have where nobody named them: their numbers."""
    return tuple(map(str, range(count)))


UNITS = frozenset({"classes", "outputs", "labels", "tokens"})
"""What tasks can be about: the names of the sizes that they bind."""
TASKS = (Classification.name, Regression.name, MultiLabel.name)
"""What can be said of targets in a file."""


def answers(scores: Float[Tensor, "*n classes"]) -> Int64[Tensor, "*n"]:
    """The class of the largest score, the first of equals; ``classes``, which is none, where a score is NaN."""
    # argmax alone would answer the first class that is NaN
    return torch.where(scores.isnan().any(-1), scores.shape[-1], scores.argmax(-1))


def _are_counts(sums: Sums) -> bool:
    return bool(((sums >= 0) & (sums <= _MOST_COUNTED) & (sums == sums.round())).all())


def share(part: float, whole: float) -> float:
    """A part of a whole; NaN where there is no whole."""
    return part / whole if whole else math.nan
