"""Data sets that are made of tasks: what a client has is a task, or several, with test rows of its own.

Groups are the tasks in the order in which they are named, so ``partition = "natural"`` deals them to clients and
``test = "source"`` gives each client the test rows of its tasks. A task that is named twice is two groups, with other
rows of the same task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Int64

from interfuse.data.dataset import Dataset
from interfuse.data.inputs import Shape, each
from interfuse.data.packages import Package
from interfuse.data.reading import ReadOptions
from interfuse.data.sources import DatasetInfo
from interfuse.errors import ConfigError, DataError, nearest

R = TypeVar("R", np.ndarray, list[Any])


class TaskSet(ABC):
    """A named data set that is made of tasks.

    :param name: as runs name it.
    :param usual: the tasks that it is made of where nobody says otherwise.
    :param takes: what options of reading say of it.
    """

    name: str
    usual: tuple[str, ...]
    takes: ClassVar[tuple[str, ...]] = ("tasks", "rows", "test_rows", "place")

    @property
    @abstractmethod
    def known(self) -> Sequence[str]:
        """Names of all tasks that can be asked for."""

    @abstractmethod
    def info(self) -> DatasetInfo:
        """Its facts, and whether it is here; nothing is read."""

    @abstractmethod
    def make(self, tasks: Sequence[str], options: ReadOptions) -> Dataset:
        """The data set of these tasks, which are known."""

    def load(self, options: ReadOptions) -> Dataset:
        """The data set as the options say it.

        Raises:
            ConfigError: an option means nothing here, or there is no such task.
            DataError: its files cannot be had, or are too few.
        """
        options.only(*self.takes, format=self.name)
        for task in options.tasks:
            if task not in self.known:
                raise ConfigError(f"{self.name} has no task {task!r}: {nearest(task, self.known)}")
        tasks = options.tasks or self.usual
        if len(options.rows) not in (0, 1, len(tasks)):
            raise ConfigError(
                f"rows of {self.name}: {len(options.rows)} numbers for {len(tasks)} tasks; give one for all, or one "
                "each"
            )
        rows = options.rows * len(tasks) if len(options.rows) == 1 else options.rows
        place = options.place
        if place is not None and place >= len(tasks):
            raise ConfigError(f"place {place} of {self.name}: there are {len(tasks)} tasks, from 0")
        made = self.make(tasks, replace(options, rows=rows))
        return made if place is None else alone(made, place)


class PackagedTasks(TaskSet):
    """A task set whose files come as a package.

    :param rows: how many the usual tasks have, to train on and to test.
    :param package: that carries them.
    :param shape: of a sample, as far as nobody says otherwise.
    """

    rows: tuple[int, int]
    note: str
    package: ClassVar[Package]
    licence: ClassVar[str]
    shape: ClassVar[Shape]
    class_names: ClassVar[tuple[str, ...]]

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            name=self.name,
            shape=self.shape,
            classes=len(self.class_names),
            rows_train=self.rows[0],
            rows_test=self.rows[1],
            state="not installed" if self.package.folder is None else "installed",
            licence=self.licence,
            note=self.note,
        )


def alone(dataset: Dataset, group: int) -> Dataset:
    """The same with the rows of one group alone, which keeps its number."""
    assert dataset.groups is not None
    assert dataset.test_groups is not None
    own, held = ((numbers == group).nonzero()[:, 0] for numbers in (dataset.groups, dataset.test_groups))
    return replace(
        dataset,
        x_train=each(lambda x: x[own], dataset.x_train),
        y_train=dataset.y_train[own],
        x_test=each(lambda x: x[held], dataset.x_test),
        y_test=dataset.y_test[held],
        groups=dataset.groups[own],
        test_groups=dataset.test_groups[held],
        blocks=None if dataset.blocks is None else dataset.blocks[own],
        ends=dataset.ends_of(own),
    )


def first(rows: R, wanted: int | None, task: str) -> R:
    """So many rows of a task, or all.

    Raises:
        DataError: it has fewer.
    """
    if wanted is not None and wanted > len(rows):
        raise DataError(f"{task} has {len(rows)} rows here, not {wanted}: ask for fewer, or for fewer tasks")
    return rows[:wanted]


def places(rows: Sequence[Sized]) -> Int64[np.ndarray, "rows"]:
    """The number of its task for each row of all of them."""
    return np.repeat(np.arange(len(rows)), [len(of) for of in rows])
