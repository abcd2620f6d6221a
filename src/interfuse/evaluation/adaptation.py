"""How fast models that a federation left learn a task that none of its clients had: scores by gradient steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from interfuse.client import Client, ClientId
from interfuse.data import ClientData, Dataset, EpochOrder, Share, stratified_subset
from interfuse.data.inputs import shape_text
from interfuse.errors import ConfigError, DataError, nearest
from interfuse.families.own_training import OwnTraining
from interfuse.method import Method, whole
from interfuse.models import SplitModel, initial_key, make
from interfuse.party import ALL, Held
from interfuse.randomness import numpy_generator, seeded
from interfuse.setup import Setup, as_inputs

STEPS = (0, 5, 10, 20, 40, 80)
"""After so many steps a new client is tested where nothing else is asked for."""


@dataclass(frozen=True)
class Adaptation:
    """Scores on the test rows of an unseen task, by what a new client starts from and by its gradient steps.

    Attributes:
        score: What the score is called.
        curves: One score for each of ``steps``, by start.
    """

    score: str
    steps: tuple[int, ...]
    curves: Mapping[str, tuple[float, ...]]

    def until(self, score: float) -> dict[str, int | None]:
        """After how many steps a start first has this score, of the points there are; None: after none."""
        return {
            start: next((step for step, found in zip(self.steps, curve, strict=True) if found >= score), None)
            for start, curve in self.curves.items()
        }

    def __str__(self) -> str:
        """A table: a line for each start, the score in % after each number of steps."""
        heads = [f"{self.score}, %, after steps", *map(str, self.steps)]
        lines = [[start, *(f"{100 * value:.1f}" for value in curve)] for start, curve in self.curves.items()]
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
            for cells in (list(zip(line, widths, strict=True)) for line in (heads, *lines))
        )


def unseen_share(data: Dataset, task: int | str | None, rows: int | None, seed: int) -> Share:
    """The rows of a new client: so many of a task's training rows, drawn by class, and all its test rows.

    Args:
        task: A group of the data set, by its number or name; None: all rows.
        rows: None: all of them.

    Raises:
        DataError: the data set has no such task, or the task has no rows to train on or to test.
    """
    train, test = np.arange(len(data.y_train)), np.arange(len(data.y_test))
    if task is not None:
        if data.groups is None or data.test_groups is None:
            raise DataError(f"data set {data.name!r} has no tasks (groups of training and test rows): leave out task")
        names = data.group_names or tuple(map(str, range(int(data.groups.max()) + 1)))
        if str(task) not in names and task not in range(len(names)):
            raise DataError(f"data set {data.name!r} has no task {task!r}: {nearest(str(task), names)}")
        number = task if isinstance(task, int) else names.index(task)
        train, test = (np.flatnonzero(of.cpu().numpy() == number) for of in (data.groups, data.test_groups))
    if not len(train) or not len(test):
        raise DataError(f"data set {data.name!r}, task {task!r}: {len(train)} training and {len(test)} test rows")
    if rows is not None:
        strata = data.task.strata(data.y_train)[train]
        train = train[stratified_subset(strata, rows, numpy_generator(seed, "adaptation rows"))]
    nothing = train[:0]
    return Share(train, nothing, nothing, held=test)


def adapted_scores(
    setup: Setup,
    client: ClientId,
    start: SplitModel,
    data: Dataset,
    share: Share,
    *,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    begin: Callable[[Client[Any]], None] | None = None,
    **options: Any,
) -> tuple[float, ...]:
    """The scores of a new client after so many gradient steps on its own rows, alone.

    It trains as the method's clients do themselves (their rate, batch size, optimizer and clipping, the parts that they
    train), with the loss of the task; its optimizer is kept from the first step to the last. What answers is what
    answers for the method's clients, and the model's outputs where they answer with more than a model.

    Args:
        setup: Of the federation.
        client: Whose architecture and settings the new client has.
        start: Its model, which is trained in place.
        begin: Changes that model before the first step, by what the new client has to show; it has the method's further
            networks then.
        options: Of ``fit`` instead of the method's: ``lr``, ``batch_size``, ``train``, ...

    Raises:
        ConfigError: the data is of another task or shape; the steps do not go up; or the method has no rate of its own
            training, and none is given.
    """
    known = setup.datasets[client]
    if not setup.task.fits(data.task) or data.shape != known.shape:
        raise ConfigError(
            f"{data.name} has {data.task} of samples {shape_text(data.shape)}, but {known.name} {known.task} of "
            f"{shape_text(known.shape)}: an unseen task has to be of the same kind"
        )
    if [*steps] != sorted({*steps}) or not steps or steps[0] < 0:
        raise ConfigError(f"steps = {tuple(steps)}: give numbers of steps that go up, such as {STEPS}")
    method = setup.method_of(client)
    if not isinstance(method, OwnTraining) and "lr" not in options:
        raise ConfigError(f"{type(method).__name__} has no single rate of a client's own training: give lr=...")

    def inputs(x: Any) -> Any:
        return as_inputs(data, setup.numerics, x)

    rows = len(share.train)
    new: Client[Any] = Client(
        replace(setup.profiles[client], samples=rows),
        ClientData(data, share, inputs, setup.public),
        EpochOrder(seed, client, rows, sampling=setup.sampling),
        setup.dims,
        seed,
        setup.numerics.autocast,
    )
    new.networks["model"] = Held(ALL)
    new.networks["model"].own(start)
    if begin is not None:
        for name, network in method.networks(new.profile, setup.dims).items():
            place = ("network", name, *initial_key(setup.initial, "adaptation", seed))
            new.networks[name] = Held(network.keeps)
            new.networks[name].own(
                make(network.build, setup.seed, *place, device=setup.device, numerics=setup.numerics)
            )
    found = []
    with setup.numerics.applied(), seeded(seed, "adaptation", client):
        if begin is not None:
            begin(new)
        for before, now in pairwise((0, *steps)):
            if now > before:
                _train(method, new, now - before, options)
            found.append(_score(method, new))
    return tuple(found)


def _train(method: Method, client: Client[Any], steps: int, options: Mapping[str, Any]) -> None:
    if isinstance(method, OwnTraining):
        alone = replace(method, local_steps=steps, local_epochs=None, keep_optimizer=True)
        alone.fit(client, client.loss, **options)
    else:
        client.fit(client.loss, steps=steps, keep_optimizer="model", **options)


def _score(method: Method, client: Client[Any]) -> float:
    predict = method.predictor() if type(method).predict is Method.predict else whole
    with client.model.evaluating():
        sums = [client.task.sums(predict(client.model, batch.x), batch.y) for batch in client.data.test()]
    return client.task.score(torch.stack(sums).sum(0)) if sums else math.nan
