"""Batches, the order in which a client visits its samples, and its share of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from interfuse.data.dataset import Dataset
from interfuse.data.inputs import Inputs, each, named, split
from interfuse.data.partitions import Share
from interfuse.data.task import Task
from interfuse.errors import ConfigError, DataError
from interfuse.numerics import aligned
from interfuse.randomness import numpy_generator

BYTES_AT_ONCE = 1 << 20
"""Training rows that are taken and normalised together, in bytes: enough to make it cheap, few enough for the cache."""


@dataclass(frozen=True)
class Batch:
    """Inputs (samples, or features of a cut) and their targets, as the task has them."""

    x: Inputs
    y: Shaped[Tensor, "batch *target"]

    @property
    def features(self) -> Shaped[Tensor, "batch ..."]:
        """The inputs where they are one tensor, as features are.

        Raises:
            ConfigError: they are several.
        """
        if isinstance(self.x, Tensor):
            return self.x
        raise ConfigError(f"samples have the inputs {', '.join(self.x)}, but the method takes one tensor")


@dataclass(frozen=True)
class Sampling:
    """How a client goes through its training samples.

    Attributes:
        order: In another order in each epoch, or in that in which the source has them.
        last_batch: What becomes of rows that are too few for a batch at the end of an epoch: a smaller batch, nothing,
            or further rows for the others. A share that is smaller than a batch is one batch in any case. Steps that
            are counted, not epochs, go on into the next epoch and leave no such rows.
        draws_from: Between parties, from what a node draws the order of its rows, and what else a handler draws: a
            secret of its own, or the run's seed, which everybody knows, so that a run has the bits of a simulation. A
            simulation has one owner, and draws from the seed.
    """

    order: Literal["shuffled", "stored"] = "shuffled"
    last_batch: Literal["keep", "drop", "spread"] = "keep"
    draws_from: Literal["secret", "seed"] = "secret"

    def cut(self, order: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """The batches of an epoch."""
        whole = len(order) // batch_size
        if not whole or self.last_batch == "keep":
            return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return np.array_split(order if self.last_batch == "spread" else order[: whole * batch_size], whole)


DRAWN_BEFORE: Literal["seed"] = "seed"
"""What runs between parties draw from that do not say it: earlier versions knew nothing else."""
EVERY_SAMPLE = Sampling()
"""Shuffled, and every row in each epoch."""


class SampleOrder(Protocol):
    """The order in which a client visits its training samples. What it saves is all that it depends on, beside what it
    was made of.
    """

    def enter(self, round: int) -> int:
        """A round is under way, 0 before the first. Returns how many rows are there: the first ones of the share."""

    def take(self, count: int) -> np.ndarray:
        """The next ``min(count, size)`` positions in the share."""

    def epochs(self, count: int, batch_size: int) -> Iterator[np.ndarray]:
        """``count`` whole epochs in batches of positions."""

    def saved(self) -> dict[str, Tensor]:
        """All there is to keep, as tensors by name."""

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`saved`."""


@dataclass
class EpochOrder:
    """The order in which a client visits its training samples: a permutation for each epoch, derived from its number,
    or the stored one.

    ``epoch`` and ``position`` are all there is to keep, so the order does not depend on who asks or when.
    """

    seed: int
    client: int
    size: int
    epoch: int = 0
    position: int = 0
    sampling: Sampling = EVERY_SAMPLE
    _permutation: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def _order(self) -> np.ndarray:
        if self.sampling.order == "stored":
            return np.arange(self.size)
        if self._permutation is None or self._permutation[0] != self.epoch:
            shuffled = numpy_generator(self.seed, "order", self.client, self.epoch).permutation(self.size)
            self._permutation = (self.epoch, shuffled)
        return self._permutation[1]

    def enter(self, round: int) -> int:
        """All rows are there from the beginning."""
        return self.size

    def saved(self) -> dict[str, Tensor]:
        """All there is to keep, as tensors by name."""
        return {"place": torch.tensor([self.epoch, self.position])}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`saved`."""
        self.epoch, self.position = saved["place"].tolist()

    def take(self, count: int) -> np.ndarray:
        """The next ``min(count, size)`` positions, going on into the next epoch where one ends."""
        wanted, taken = min(count, self.size), []
        while wanted:
            piece = self._order()[self.position : self.position + wanted]
            taken.append(piece)
            wanted -= len(piece)
            self.position += len(piece)
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
        return np.concatenate(taken)

    def epochs(self, count: int, batch_size: int) -> Iterator[np.ndarray]:
        """``count`` whole epochs in batches."""
        for _ in range(count):
            if self.position:
                self.epoch, self.position = self.epoch + 1, 0
            yield from self.sampling.cut(self._order(), batch_size)
            self.epoch += 1


class PublicData:
    """Rows that everybody in a run has, in one order: training rows of a data set of their own, normalised by it.

    Each party has them from where it likes, so they are in no message and disclose nothing.
    """

    def __init__(self, dataset: Dataset, inputs: Callable[[Inputs], Inputs]) -> None:
        self._dataset, self._inputs = dataset, inputs

    def __len__(self) -> int:
        return len(self._dataset.y_train)

    @property
    def task(self) -> Task:
        """What its targets are, which may be another task than that of the run."""
        return self._dataset.task

    def labels(self) -> Tensor:
        """The targets of all rows ``[n, ...]``."""
        return self._dataset.y_train

    @property
    def ends(self) -> Mapping[str, Int64[Tensor, "n time"]]:
        """Where in its text each token ends: see :attr:`.Dataset.ends`."""
        return self._dataset.ends

    @property
    def digest(self) -> str:
        """A hash of all rows, in hexadecimal."""
        return self._dataset.digest

    def rows(self, index: Int64[Tensor, "batch"]) -> Batch:
        """Inputs, and targets as the public data set has them, which may be of another task."""
        x = each(lambda tensor: tensor[index], self._dataset.x_train)
        return Batch(self._inputs(x), self._dataset.y_train[index])

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in their order; the last batch may be smaller."""
        return (self.rows(index) for index in torch.split(torch.arange(len(self)), size))


class ClientData:
    """A client's share: rows of a data set that stays where it is, normalised as they are taken.

    Attributes:
        inputs: From rows as stored to normalised inputs of a model.
        public: What everybody has beside; None where the run has no public data.
        arrived: So many training rows are there so far, the first ones of the share; all, unless they come in time.
    """

    def __init__(
        self, dataset: Dataset, share: Share, inputs: Callable[[Inputs], Inputs], public: PublicData | None = None
    ) -> None:
        self.dataset, self.share, self.inputs, self.public = dataset, share, inputs, public
        self._train = torch.from_numpy(np.asarray(share.train, dtype=np.int64))
        self.arrived = len(self._train)

    @property
    def task(self) -> Task:
        """What targets and outputs are."""
        return self.dataset.task

    @property
    def bounds(self) -> Float[Tensor, "2 channels"] | None:
        """Between which values normalised samples lie; see :attr:`.Dataset.bounds`."""
        return self.dataset.bounds

    def train(self, positions: np.ndarray) -> Batch:
        """Rows of the training share by position in it."""
        return self._rows(self._train[torch.from_numpy(positions)])

    def _rows(self, rows: Tensor) -> Batch:
        return Batch(self.inputs(each(lambda x: x[rows], self.dataset.x_train)), self.dataset.y_train[rows])

    def batches(self, positions: Iterable[np.ndarray]) -> Drawn:
        """A batch for each array of positions."""
        return Drawn(self, positions)

    def split(self, positions: Sequence[np.ndarray]) -> Iterator[Batch]:
        """The batches of several arrays of positions, taken at once."""
        together, sizes = self.train(np.concatenate(positions)), [len(wanted) for wanted in positions]
        # a batch has the same bits whether or not it was taken with others
        pieces = (each(aligned, piece) for piece in split(together.x, sizes))
        return map(Batch, pieces, torch.split(together.y, sizes))

    def train_batches(self, chunk: int) -> Iterator[Batch]:
        """The whole training share as it lies, once, as far as it has come; the client's order of samples goes on
        untouched."""
        positions = np.arange(self.arrived)
        return (self.train(positions[start : start + chunk]) for start in range(0, len(positions), chunk))

    def raw(self, positions: np.ndarray | None = None) -> Batch:
        """Rows of the training share as stored, not normalised: by position in it, or all that have come."""
        rows = self._train[: self.arrived] if positions is None else self._train[torch.from_numpy(positions)]
        return Batch(each(lambda x: x[rows], self.dataset.x_train), self.dataset.y_train[rows])

    def labels(self) -> Tensor:
        """The targets of the whole training share ``[n, ...]``, as far as it has come."""
        return self.dataset.y_train[self._train[: self.arrived]]

    def validation(self, limit: int | None = None, chunk: int = 64) -> Iterator[Batch]:
        """The validation share, or its first ``limit`` rows (their order is random already)."""
        return self._own(self.share.validation[:limit], chunk)

    def test(self, limit: int | None = None, chunk: int = 64) -> Iterator[Batch]:
        """The client's own test rows, or the first ``limit`` of them, evenly spread where the source has them."""
        if self.share.held is None:
            return self._own(self.share.test[:limit], chunk)
        return self.test_at(spread(self.tests, limit), chunk)

    @property
    def tests(self) -> int:
        """How many own test rows the client has."""
        return len(self.share.test if self.share.held is None else self.share.held)

    def tests_by_task(self) -> list[np.ndarray]:
        """Where its own test rows of each of the client's tasks are among all of them: a task is a group of the data
        set, and tasks come in the order of their numbers.

        Raises:
            DataError: the data set has no groups.
        """
        tasks = tasks_of(self.dataset, self.share)
        if self.share.held is None:
            own = groups_of(self.dataset)[self.share.test]
        else:
            assert self.dataset.test_groups is not None, "rows were held by their groups"
            own = self.dataset.test_groups.cpu().numpy()[self.share.held]
        return [np.flatnonzero(own == task) for task in tasks]

    def test_at(self, places: np.ndarray, chunk: int = 64) -> Iterator[Batch]:
        """Some of the client's own test rows, by place among them."""
        held = self.share.held
        if held is None:
            return self._own(self.share.test[places], chunk)
        return self.common_test(torch.from_numpy(held[places]), chunk)

    def common_test(self, rows: Tensor | None = None, chunk: int = 64) -> Iterator[Batch]:
        """The common test set, or some rows of it."""
        x, y = self.dataset.x_test, self.dataset.y_test
        if rows is not None:
            x, y = each(lambda tensor: tensor[rows], x), y[rows]
        return (Batch(self.inputs(a), b) for a, b in zip(split(x, chunk), torch.split(y, chunk), strict=True))

    def _own(self, rows: np.ndarray, chunk: int) -> Iterator[Batch]:
        for start in range(0, len(rows), chunk):
            yield self._rows(torch.from_numpy(np.asarray(rows[start : start + chunk], dtype=np.int64)))


def tasks_of(dataset: Dataset, share: Share) -> np.ndarray:
    """The tasks of a client in time: the groups of its rows, in the order of their numbers.

    Raises:
        DataError: the data set has no groups.
    """
    return np.unique(groups_of(dataset)[share.rows])


def groups_of(dataset: Dataset) -> np.ndarray:
    """The group of each training row, as :func:`tasks_of` takes them.

    Raises:
        DataError: there are none.
    """
    if dataset.groups is None:
        raise DataError(
            f"data set {dataset.name!r} does not say which task a row is of: tasks in time are its groups, and it has "
            "none; give groups in the source"
        )
    found: np.ndarray = dataset.groups.cpu().numpy()
    return found


def spread(count: int, limit: int | None) -> np.ndarray:
    """So many of ``count`` places, evenly spread; None: all of them."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


@dataclass
class Drawn:
    """Batches of a share, by arrays of positions: nothing else decides what they are, nor when they may be taken."""

    data: ClientData
    positions: Iterable[np.ndarray]

    def __iter__(self) -> Iterator[Batch]:
        """Some are taken at once: one by one, taking costs as much as a layer."""
        inputs = named(self.data.dataset.x_train).values()
        at_once = BYTES_AT_ONCE // (4 * max(1, sum(math.prod(x.shape[1:]) for x in inputs)))
        waiting: list[np.ndarray] = []
        for wanted in self.positions:
            if waiting and sum(map(len, waiting)) + len(wanted) > at_once:
                yield from self.data.split(waiting)
                waiting = []
            waiting.append(wanted)
        if waiting:
            yield from self.data.split(waiting)
