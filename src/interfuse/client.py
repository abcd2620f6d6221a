"""A client as a handler sees it: its model, its data, its state, and the work it can do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Unpack

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import TypeVar

from interfuse.aggregation import BufferPolicy, recalibrate, travels
from interfuse.data import Batch, ClientData, EpochOrder, PublicData, Task
from interfuse.data.batches import given_public
from interfuse.errors import ConfigError
from interfuse.messages import Dims, State
from interfuse.models import SplitModel
from interfuse.randomness import Key, generator, uniform
from interfuse.training import (
    FitOptions,
    Fitted,
    Objective,
    OptimizerState,
    fit,
    supervised,
    supervised_modular,
)

S = TypeVar("S", bound=State | None, default=None)

ClientId = int


@dataclass(frozen=True)
class Profile:
    """The facts of a client that the server knows.

    Attributes:
        architecture: Name of the group of clients with equal models.
        keys: Shape of every tensor of the model by key, buffers included.
        samples: Number of training samples.
        fusion_width: Width d of the fusion layer, or None where the cut is no vector.
        cuts: Shape of one sample behind each part of the model, from input to output.
        stages: Names of the model's stages, from input to output.
        buffers: Those of the keys that are normalisation statistics, not parameters.
    """

    id: ClientId
    architecture: str
    keys: Mapping[str, tuple[int, ...]]
    samples: int
    fusion_width: int | None
    cuts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    buffers: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Number of values in the model, statistics included."""
        return sum(math.prod(shape) for shape in self.keys.values())


class Client(Generic[S]):
    """What a handler may use.

    Attributes:
        id: Number of the client, from 0.
        profile: What the server knows of it.
        state: What ``new_client`` returned, or what a handler put in its place.
        scratch: Anything one call of a round leaves for a later call of the same round.
        round: The current round, from 1; 0 during ``start``.
        dims: Sizes bound for the run: ``classes``, ``clients`` and, where all agree, ``d``.
        steps: Gradient steps since the handler began.
    """

    state: S
    round: int

    def __init__(
        self,
        profile: Profile,
        model: SplitModel,
        data: ClientData,
        order: EpochOrder,
        dims: Dims,
        secret: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.id, self.profile, self.model, self.data, self.order, self.dims = (
            profile.id, profile, model, data, order, dims,
        )  # fmt: skip
        self._secret, self._autocast = secret, autocast
        self._generator: torch.Generator | None = None
        self.begin(0)
        self.scratch: dict[str, Any] = {}
        self.optimizers: dict[str, OptimizerState] = {}

    def begin(self, seed: int, *place: Key) -> None:
        """A handler begins: its place in the run, from which :attr:`generator` is derived."""
        self.steps = 0
        self._seed, self._place, self._generator = seed, place, None

    @property
    def task(self) -> Task:
        """What targets and outputs are."""
        return self.data.task

    @property
    def public(self) -> PublicData:
        """Data that everybody in the run has.

        Raises:
            ConfigError: the run has none.
        """
        return given_public(self.data.public)

    @property
    def loss(self) -> Objective:
        """The task's loss of the whole model."""
        return partial(supervised, task=self.task)

    @property
    def modular_loss(self) -> Objective:
        """The task's loss of the modular block on features of the fusion layer."""
        return partial(supervised_modular, task=self.task)

    @property
    def generator(self) -> torch.Generator:
        """Derived for this call; its draws depend on nothing but their place."""
        if self._generator is None:
            self._generator = generator(self._seed, *self._place)
        return self._generator

    def lasting_noise(self, count: int, *keys: Key) -> Float64[Tensor, "count"]:
        """Uniform in [0, 1), derived for this client and the keys: the same in every call of the run.

        For what is drawn once and must not be undone: between parties nobody but this client's node can derive it.
        """
        return torch.from_numpy(uniform(self._secret, count, "lasting", self.id, *keys))

    def batch(self, size: int) -> Batch:
        """The next ``min(size, share)`` training samples in the client's order."""
        return self.data.train(self.order.take(size))

    def fit(
        self,
        losses: Objective | Mapping[str, Objective],
        *,
        batch_size: int = 32,
        steps: int | None = None,
        epochs: int | None = None,
        batches: Iterable[Batch] | None = None,
        keep_optimizer: str | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted:
        """Train on the client's data, or on given batches. See :func:`interfuse.training.fit`.

        Args:
            steps, epochs, batches: Exactly one of them. ``steps`` go on where the last call stopped; ``epochs`` begin
                with a new one.
            keep_optimizer: A name under which the optimizer's state is kept until the next call with that name.
            options: ``lr``, ``train``, ``combine``, ``optimizer``, ``clip``; see :class:`.training.FitOptions`.
        """
        if sum(given is not None for given in (steps, epochs, batches)) != 1:
            raise ConfigError("fit needs exactly one of steps, epochs and batches")
        if steps is not None:
            batches = self.data.batches(self.order.take(batch_size) for _ in range(steps))
        elif epochs is not None:
            batches = self.data.batches(self.order.epochs(epochs, batch_size))
        assert batches is not None
        slots = None if keep_optimizer is None else self.optimizers.setdefault(keep_optimizer, {})
        done = fit(
            self.model, losses, batches, slots=slots, round=max(self.round - 1, 0), autocast=self._autocast, **options
        )
        self.steps += done.steps
        return done

    def tensors(
        self, parts: Collection[str] | None = None, buffers: BufferPolicy = BufferPolicy.AGGREGATE
    ) -> dict[str, Tensor]:
        """The tensors of the model that travel under a buffer policy, by key."""
        trainable = {key for key, _ in self.model.named_parameters()}
        found = self.model.tensors(parts)
        return {key: t for key, t in found.items() if travels(buffers, key not in trainable, t.dtype)}

    def recalibrate(self, batch_size: int) -> None:
        """Recompute normalisation statistics on the training share, without touching the order of samples.

        In batches as equal as can be, of ``batch_size`` rows at least: a row that is left over by itself has no
        variance. A share of one row has none either, so its client's statistics stay as they are.
        """
        rows = np.arange(len(self.data.labels()))
        if len(rows) > 1:
            pieces = np.array_split(rows, max(1, len(rows) // max(2, batch_size)))
            recalibrate(self.model, (self.data.train(piece).x for piece in pieces))
