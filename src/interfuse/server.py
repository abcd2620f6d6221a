"""The server as a round sees it: its typed state, its models, and the same training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Generic, Unpack

import torch
from typing_extensions import TypeVar

from interfuse.data import Batch, Inputs, PublicData, Task
from interfuse.data.batches import given_public
from interfuse.messages import Dims, State
from interfuse.models import SplitModel
from interfuse.randomness import generator
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

Build = Callable[[str, str], SplitModel]
"""From the name of an architecture and a name that seeds the initial values to a new model."""


class Server(Generic[S]):
    """What ``round`` and ``start`` may use.

    Attributes:
        state: What ``start`` returned, or what a round put in its place.
        models: Models that the server owns, by name; ask for one with :meth:`model`.
        generator: Derived for this round.
        round: The current round, from 1; 0 during ``start``.
        dims: Sizes bound for the run: ``classes``, ``clients`` and, where all agree, ``d``.
        steps: Gradient steps of the server since the round began.
        task: What targets and outputs are.
        inputs: From samples as stored to normalised inputs of a model, for methods that hand over data.
    """

    state: S
    generator: torch.Generator
    round: int

    def __init__(
        self,
        seed: int,
        dims: Dims,
        build: Build,
        inputs: Callable[[Inputs], Inputs],
        task: Task,
        public: PublicData | None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.dims, self.inputs, self._seed, self._build, self._autocast = dims, inputs, seed, build, autocast
        self.task, self._public = task, public
        self.models: dict[str, SplitModel] = {}
        self.architectures: dict[str, str] = {}
        self.optimizers: dict[str, OptimizerState] = {}
        self._scratch: dict[str, SplitModel] = {}
        self._scratch_of_round: set[str] = set()
        self.enter(0)

    def enter(self, round: int, heading: str = "training") -> None:
        """Go to a place in the run."""
        self._scratch_of_round.clear()
        self.steps = 0
        self.round, self.generator = round, generator(self._seed, "server", heading, round)

    @property
    def public(self) -> PublicData:
        """Data that everybody in the run has.

        Raises:
            ConfigError: the run has none.
        """
        return given_public(self._public)

    @property
    def loss(self) -> Objective:
        """The task's loss of a whole model."""
        return partial(supervised, task=self.task)

    @property
    def modular_loss(self) -> Objective:
        """The task's loss of a modular block on features of the fusion layer."""
        return partial(supervised_modular, task=self.task)

    def model(self, name: str, architecture: str) -> SplitModel:
        """The server's model of that name, built when first asked for. Its tensors are part of what is committed."""
        if name not in self.models:
            self.models[name], self.architectures[name] = self._build(architecture, name), architecture
        return self.models[name]

    def new_model(self, architecture: str) -> SplitModel:
        """A new model of an architecture, for its initial values; it is not kept."""
        return self._build(architecture, "new")

    def scratch_model(self, name: str, architecture: str) -> SplitModel:
        """A model to work with inside one round. Its parameters are NaN when a round first asks for it."""
        if name not in self._scratch:
            self._scratch[name] = self._build(architecture, name)
        if name not in self._scratch_of_round:
            self._scratch_of_round.add(name)
            self._scratch[name].blank()
        return self._scratch[name]

    def fit(
        self,
        model: SplitModel,
        losses: Objective | Mapping[str, Objective],
        batches: Iterable[Batch],
        *,
        keep_optimizer: str | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted:
        """Train one of the server's models. See :func:`interfuse.training.fit`."""
        slots = None if keep_optimizer is None else self.optimizers.setdefault(keep_optimizer, {})
        done = fit(
            model, losses, batches, slots=slots, round=max(self.round - 1, 0), autocast=self._autocast, **options
        )
        self.steps += done.steps
        return done
