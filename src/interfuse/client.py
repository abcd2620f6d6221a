"""A client as a handler sees it: its model, its data, its state, and the work it can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from interfuse.aggregation import BufferPolicy, recalibrate, travels
from interfuse.data import Batch, ClientData, SampleOrder
from interfuse.data.inputs import Shape
from interfuse.equals import Equals
from interfuse.errors import ConfigError
from interfuse.messages import Change, Dims, State
from interfuse.models import SplitModel
from interfuse.party import Party, S, under
from interfuse.randomness import Key, generator, uniform
from interfuse.training import FitOptions, Fitted, Objective, unless_refused

ClientId = int


def part_of(client: ClientId) -> str:
    """The name of what a client owns among the parts of a commit."""
    return f"client-{client:05d}"


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
        sample: Shape of one sample, or of each of its inputs by name.
        backbone: Name of its model before the method adapted it: clients of one have equal models but for what their
            own settings made of them.
    """

    id: ClientId
    architecture: str
    keys: Mapping[str, tuple[int, ...]]
    samples: int
    fusion_width: int | None
    cuts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    buffers: frozenset[str] = frozenset()
    sample: Shape = ()
    backbone: str = ""

    @property
    def size(self) -> int:
        """Number of values in the model, statistics included."""
        return sum(math.prod(shape) for shape in self.keys.values())


class Client(Party[S]):
    """What a handler may use: its party's networks, state and training loop, and its data.

    Attributes:
        id: Number of the client, from 0.
        profile: What the server knows of it.
        data: Its share.
        order: The order in which it visits its training samples.
        feedback: What rounding has lost of what it sent, by message and path.
        equals: What an evaluation has found for equal models, shared by the clients of a host.
    """

    def __init__(
        self,
        profile: Profile,
        data: ClientData,
        order: SampleOrder,
        dims: Dims,
        secret: int,
        autocast: torch.dtype | None = None,
        state_type: type[State] | None = None,
    ) -> None:
        super().__init__(dims, data.task, data.public, autocast, state_type)
        self.id, self.profile, self.data, self.order, self._secret = profile.id, profile, data, order, secret
        self.feedback: dict[str, Tensor] = {}
        self.equals = Equals()
        self._generator: torch.Generator | None = None
        self.begun = False
        self.begin(0)

    @property
    def model(self) -> SplitModel:
        """The client's model."""
        return self.network("model")

    def enter(self, round: int) -> None:
        """A round is under way, with the training rows that have come by then."""
        self.round = round
        self.data.arrived = self.order.enter(round)

    def begin(self, seed: int, *place: Key) -> None:
        """A handler begins: its place in the run, from which :attr:`generator` is derived."""
        self.count_anew()
        self._seed, self._place, self._generator = seed, place, None

    @property
    def generator(self) -> torch.Generator:
        """Derived for this call; its draws depend on nothing but their place, and between parties on a secret of the
        client's node."""
        if self._generator is None:
            self._generator = generator(self._seed, *self._place)
        return self._generator

    def lasting_noise(self, count: int, *keys: Key) -> Float64[Tensor, "count"]:
        """Uniform in [0, 1), derived for this client and the keys: the same in every call of the run.

        For what is drawn once and must not be undone: between parties nobody but this client's node can derive it.
        """
        return torch.from_numpy(uniform(self._secret, count, "lasting", self.id, *keys))

    def lasting_draw(self, count: int, *keys: Key) -> Float64[Tensor, "count"]:
        """As :meth:`lasting_noise`, but from where :attr:`generator` draws, inside of a handler: for what is drawn once
        and may be known. A run between parties that draws from the seed then has the bits of a simulation."""
        return torch.from_numpy(uniform(self._seed, count, "lasting", self.id, *keys))

    def batch(self, size: int) -> Batch:
        """The next ``min(size, share)`` training samples in the client's order."""
        return self.data.train(self.order.take(size))

    def fit(
        self,
        losses: Objective | Mapping[str, Objective],
        batches: Iterable[Batch] | None = None,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int = 32,
        network: str | Sequence[str] = "model",
        keep_optimizer: str | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted:
        """Train on the client's data, or on given batches. See :meth:`.Party.fit`.

        Args:
            steps, epochs, batches: Exactly one of them. ``steps`` go on where the last call stopped; ``epochs`` begin
                with a new one.
        """
        if sum(given is not None for given in (steps, epochs, batches)) != 1:
            raise ConfigError("fit needs exactly one of steps, epochs and batches")
        if steps is not None:
            batches = self.data.batches(self.order.take(batch_size) for _ in range(steps))
        elif epochs is not None:
            batches = self.data.batches(self.order.epochs(epochs, batch_size))
        return super().fit(losses, batches or (), network=network, keep_optimizer=keep_optimizer, **options)

    def front(self, batch: Batch) -> Batch:
        """What the base block makes of a batch in training mode, with its graph. No row, where the batch is one that
        PyTorch refuses to normalise: it counts as left out. See :func:`interfuse.training.unless_refused`.
        """
        with self.model.training_parts("base"):
            z = unless_refused(self.model, batch, lambda batch: self.model.base(batch.x))
        if z is None:
            self.left_out += len(batch.y)
            with self.model.evaluating():
                return Batch(self.model.base(batch.x)[:0], batch.y[:0])
        return Batch(z, batch.y)

    def owned(self) -> dict[str, Tensor]:
        order = {f"order/{name}": tensor for name, tensor in self.order.saved().items()}
        feedback = {f"feedback/{place}": tensor for place, tensor in self.feedback.items()}
        return super().owned() | order | feedback | {"begun": torch.tensor(self.begun)}

    def restore(self, owned: Mapping[str, Tensor], like: Callable[[str], SplitModel]) -> None:
        self.begun = bool(owned["begun"])
        super().restore(owned, like)
        self.order.restore(under("order/", owned))
        self.feedback = under("feedback/", owned)

    def tensors(
        self, parts: Collection[str] | None = None, buffers: BufferPolicy = BufferPolicy.AGGREGATE
    ) -> dict[str, Tensor]:
        """The tensors of the model that travel under a buffer policy, by key."""
        trainable = self.model.parameters_of()
        found = self.model.tensors(parts)
        return {key: t for key, t in found.items() if travels(buffers, key not in trainable, t.dtype)}

    def change(self, since: Mapping[str, Tensor], buffers: BufferPolicy = BufferPolicy.AGGREGATE) -> Change:
        """What the model's parameters became since they were these, and its statistics as they are: what a rule wants
        that goes further than means do. :func:`.moved` takes it."""
        now, trainable = self.tensors(buffers=buffers), self.model.parameters_of()
        change = {key: tensor - since[key] for key, tensor in now.items() if key in trainable}
        return Change(change, {key: tensor for key, tensor in now.items() if key not in trainable})

    def recalibrate(self, batch_size: int) -> None:
        """Recompute normalisation statistics on the training share, without touching the order of samples.

        In batches as equal as can be, of ``batch_size`` rows at least: a row that is left over by itself may have no
        variance. Where a share of one row has none, its client's statistics stay as they are.
        """
        rows = np.arange(len(self.data.labels()))
        if len(rows) == 1:
            unless_refused(self.model, self.data.train(rows), lambda batch: recalibrate(self.model, [batch.x]))
            return
        pieces = np.array_split(rows, max(1, len(rows) // max(2, batch_size)))
        recalibrate(self.model, (self.data.train(piece).x for piece in pieces))
