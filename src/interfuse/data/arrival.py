"""Tasks in time: training rows of a client that arrive round by round, and are drawn by how often they were used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float64, Int64
from torch import Tensor

from interfuse.data.batches import ClientData, EpochOrder, SampleOrder, Sampling, groups_of
from interfuse.errors import ConfigError
from interfuse.randomness import numpy_generator


@dataclass(frozen=True)
class Tasks:
    """When the training rows of a client are there, and how they are drawn once they come in time.

    Attributes:
        arrival: ``at-once``: all are there from the beginning, and are visited as ``[sampling]`` says. ``dynamic``:
            task after task, a task being a group of the data set, in the order of their numbers; each has an equal
            number of rounds, over which its rows come in equal parts, and two may share a round. ``static``: all tasks
            mixed, in equal parts, one a round.
        over_rounds: After so many rounds all rows are there; None: after those of the run.
        memory: A round draws from its own part and from so many of the rows that came before it, any subset of them as
            likely as any other; 0: no replay; None: all of them.
        temperature: T. A row is drawn with a probability proportional to exp(-c / T), where c is how often it was used
            (FedMosaic's release, arXiv:2506.11024).
        decay: Before each draw of a batch c becomes so much of it, and 1 more where the row is drawn.
    """

    arrival: Literal["at-once", "static", "dynamic"] = "at-once"
    over_rounds: Annotated[int, Ge(1)] | None = None
    memory: Annotated[int, Ge(0)] | None = None
    temperature: Annotated[float, Gt(0)] = 0.125
    decay: Annotated[float, Ge(0), Le(1)] = 0.99

    @property
    def in_time(self) -> bool:
        """Whether rows come round by round."""
        return self.arrival != "at-once"

    def within(self, rounds: int) -> Tasks:
        """The same with the number of rounds after which all rows are there, where they come in time."""
        return replace(self, over_rounds=rounds) if self.in_time and self.over_rounds is None else self


AT_ONCE = Tasks()
"""All rows from the beginning."""


def arriving(
    data: ClientData, tasks: Tasks, sampling: Sampling, seed: int, client: int
) -> tuple[ClientData, SampleOrder]:
    """A client's data with its training rows in the order in which they come, and how it visits them.

    Raises:
        ConfigError: rows that come in time are to be visited in the stored order.
        DataError: tasks come in turn, and nobody knows which task a row is of.
    """
    if not tasks.in_time:
        return data, EpochOrder(seed, client, len(data.share.train), sampling=sampling)
    if sampling.order == "stored":
        raise ConfigError(
            f"sampling.order = 'stored' goes through rows as they lie, and with tasks.arrival = {tasks.arrival!r} they "
            "are drawn by how often they were used: leave one of them out"
        )
    assert tasks.over_rounds is not None, "Tasks.within says it"
    rows = len(data.share.train)
    of_task = groups_of(data.dataset)[data.share.train] if tasks.arrival == "dynamic" else np.zeros(rows, np.int64)
    mixed = numpy_generator(seed, "arrival", client).permutation(rows)
    sequence = mixed[np.argsort(of_task[mixed], kind="stable")]
    _, sizes = np.unique(of_task, return_counts=True)
    share = replace(data.share, train=data.share.train[sequence])
    order = ReplayOrder(seed, client, arrived(sizes, tasks.over_rounds), tasks, sampling)
    return ClientData(data.dataset, share, data.inputs, data.public), order


def arrived(sizes: Int64[np.ndarray, "tasks"], rounds: int) -> Int64[np.ndarray, "rounds+1"]:
    """How many rows are there in each round from 1, where these many of each task come one after the other; none at 0.

    Each of K tasks has R / K rounds: after round t t K / R of them have come, and of a task that is under way its part,
    rounded up, so that every round has a row where there is one for it.
    """
    tasks = len(sizes)
    steps = np.clip(np.arange(rounds + 1)[:, None] * tasks - np.arange(tasks) * rounds, 0, rounds)
    found: Int64[np.ndarray, "rounds+1"] = (-(-steps * sizes // rounds)).sum(1)
    return found


@dataclass
class ReplayOrder:
    """Rows that come round by round, drawn by how often they were used; positions are in the order of arrival.

    The rows at hand in a round are those that came last, and of those before them the memory. A batch is drawn from
    them without replacement, one row after the other with probabilities proportional to exp(-c / T): the rows with the
    largest of -c / T plus Gumbel noise are that (Kool et al., ICML 2019). The uses c and the number of draws are all
    there is to keep.
    """

    seed: int
    client: int
    arrived: Int64[np.ndarray, "rounds+1"]
    tasks: Tasks
    sampling: Sampling
    draws: int = 0
    _uses: Float64[np.ndarray, "rows"] = field(init=False, repr=False)
    _rank: Int64[np.ndarray, "rows"] = field(init=False, repr=False)
    _hand: Int64[np.ndarray, "hand"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._uses = np.zeros(self.arrived[-1])
        # Of a row, whenever it comes: the smallest of those that came are a uniform sample of them.
        self._rank = numpy_generator(self.seed, "memory", self.client).permutation(len(self._uses))
        self.enter(0)

    def enter(self, round: int) -> int:
        """A round is under way; before the first one its rows are there already. Returns how many rows are there."""
        now = int(self.arrived[min(max(round, 1), len(self.arrived) - 1)])
        before = int(self.arrived[self.arrived < now].max())  # of fewer rows than rounds not every round brings one
        kept = np.sort(np.argsort(self._rank[:before], kind="stable")[: self.tasks.memory])
        self._hand = np.concatenate([kept, np.arange(before, now)])
        return now

    def take(self, count: int) -> np.ndarray:
        """The next ``min(count, rows at hand)`` positions."""
        noise = numpy_generator(self.seed, "replay", self.client, self.draws).gumbel(size=len(self._hand))
        wished = noise - self._uses[self._hand] / self.tasks.temperature
        drawn = self._hand[np.argsort(-wished, kind="stable")[:count]]
        self._uses *= self.tasks.decay
        self._uses[drawn] += 1.0
        self.draws += 1
        return drawn

    def epochs(self, count: int, batch_size: int) -> Iterator[np.ndarray]:
        """``count`` times as many draws as there are rows at hand, in batches."""
        for _ in range(count):
            for batch in self.sampling.cut(self._hand, batch_size):
                yield self.take(len(batch))

    def saved(self) -> dict[str, Tensor]:
        """All there is to keep, as tensors by name."""
        return {"uses": torch.from_numpy(self._uses.copy()), "draws": torch.tensor(self.draws)}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`saved`."""
        self._uses, self.draws = saved["uses"].numpy().copy(), int(saved["draws"])
