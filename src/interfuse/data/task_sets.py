"""Data sets that are made of tasks: what a client has is a task, or several, with test rows of its own.

Groups are the tasks in the order in which they are named, so ``partition = "natural"`` deals them to clients and
``test = "source"`` gives each client the test rows of its tasks. A task that is named twice is two groups, with other
rows of the same task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from interfuse.data.dataset import Dataset
from interfuse.data.reading import ReadOptions
from interfuse.data.sources import DatasetInfo
from interfuse.errors import ConfigError, nearest


class TaskSet(ABC):
    """A named data set that is made of tasks.

    :param name: as runs name it.
    :param usual: the tasks that it is made of where nobody says otherwise.
    :param takes: what options of reading say of it.
    """

    name: str
    usual: tuple[str, ...]
    takes: ClassVar[tuple[str, ...]] = ("tasks", "rows", "test_rows")

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
        return self.make(tasks, replace(options, rows=rows))
