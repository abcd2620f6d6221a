"""What a client and the server have in common: networks by name, typed state, optimizers, and the training loop."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, Unpack
from urllib.parse import quote

import torch
from torch import Tensor
from typing_extensions import TypeVar

from interfuse.data import Batch, PublicData, Task
from interfuse.errors import ConfigError, ModelError, nearest
from interfuse.messages import Dims, State, flatten, unflatten
from interfuse.models import SplitModel, side_by_side
from interfuse.training import (
    FitOptions,
    Fitted,
    Objective,
    OptimizerState,
    Trainer,
    fit,
    supervised,
    supervised_modular,
)

S = TypeVar("S", bound=State | None, default=None)

ALL = frozenset({"all"})
"""A party keeps the whole network between rounds."""
NOTHING: frozenset[str] = frozenset()
"""A network is scratch: loaded from messages, gone after the round."""
BUFFERS = "buffers"
"""The group of a network's normalisation statistics, for what a party keeps."""


@dataclass(frozen=True)
class Network:
    """A network that a party has beside its model.

    Attributes:
        build: Makes it. PyTorch's global generator is seeded around the call. Clients of one architecture get networks
            of one shape.
        keeps: What of it lasts from round to round: ``ALL``, ``NOTHING``, or names of parts and groups.
    """

    build: Callable[[], SplitModel]
    keeps: frozenset[str] = ALL


class Held:
    """A network as its party holds it: the tensors that last, and the module that is lent to it while it works.

    A module at work has the very tensors of its party as its own, so nothing is copied when it goes to another party
    of the same architecture.
    """

    def __init__(self, keeps: frozenset[str]) -> None:
        self.keeps = keeps
        self.module: SplitModel | None = None
        self._kept: dict[str, Tensor] | None = None

    @property
    def made(self) -> bool:
        """Whether what lasts has its first values."""
        return self._kept is not None

    def begin(self, module: SplitModel) -> None:
        """Take from a new module, which nobody else has, the tensors that last."""
        self._kept = module.live(self._keys(module))

    def own(self, module: SplitModel) -> None:
        """Have a module of its own, for good."""
        self.begin(module)
        self.attach(module)

    def attach(self, module: SplitModel) -> None:
        """Lend it a module, in which what lasts is in place and the rest blank. Without :meth:`begin` that may be
        buffers alone."""
        if self._kept is None:
            self._kept = module.first_buffers(self._keys(module))
        module.reset()
        module.hold(self._kept)
        self.module = module
        self.blank()

    def _keys(self, module: SplitModel) -> list[str]:
        return module.named_once(key for key in module.keys_of(self.keeps) if key not in module.given_keys)

    def detach(self) -> SplitModel | None:
        """Take the module away. What lasts stays with the party."""
        module, self.module = self.module, None
        if module is not None and self._kept is not None:  # a module may have put new tensors in the place of buffers
            self._kept |= module.live(key for key in module.keys_of(BUFFERS) if key in self._kept)
        return module

    def scratch(self) -> dict[int, str]:
        """By address in memory, the key of every tensor of the module at work that does not last, and whose memory no
        other tensor of the module has a part in."""
        if self.module is None or self.keeps == ALL:
            return {}
        given = self.module.given_keys  # not even looked at: to ask for its place makes a copy of what is shared
        live = self.module.live(key for key in self.module.keys_of() if key not in given)
        uses = Counter(_memory(tensor) for tensor in chain(live.values(), self.kept().values()))
        return {tensor.data_ptr(): key for key, tensor in live.items() if tensor.numel() and uses[_memory(tensor)] == 1}

    def give_up(self, keys: Iterable[str]) -> None:
        """Have new memory, of any values, in the place of these tensors of the module at work."""
        if self.module is not None:
            live = self.module.live(keys)
            self.module.hold({key: torch.empty_like(tensor) for key, tensor in live.items()})

    def kept(self) -> dict[str, Tensor]:
        """What lasts: live tensors by key."""
        kept = self._kept or {}
        return kept if self.module is None else self.module.live(kept)

    def blank(self) -> None:
        """Make scratch of everything else in the module at work."""
        if self.module is not None and self.keeps != ALL:
            self.module.blank((self._kept or {}).keys())

    def restore(self, tensors: Mapping[str, Tensor], like: SplitModel) -> None:
        """Take these values for what lasts, laid out in memory as in a module of the architecture.

        Raises:
            ModelError: they are not just what lasts.
        """
        shapes = like.live(self._keys(like))
        if not tensors and self.keeps <= {BUFFERS}:  # it never had a module
            tensors = like.first_buffers(shapes)
        if shapes.keys() != tensors.keys() or any(shapes[key].shape != t.shape for key, t in tensors.items()):
            raise ModelError("the tensors are not those of this network")
        module, self.module = self.module, None
        self._kept = {key: torch.empty_like(shapes[key]).copy_(tensor) for key, tensor in tensors.items()}
        if module is not None:
            self.attach(module)


class Party(Generic[S]):
    """What a handler or a round may use of the party at which it runs.

    Attributes:
        state: What ``new_client`` or ``start`` returned, or what was put in its place.
        scratch: Anything one call of a round leaves for a later call of the same round.
        round: The current round, from 1; 0 during ``start``.
        dims: Sizes bound for the run: ``classes``, ``clients`` and, where all agree, ``d``.
        task: What targets and outputs are.
        lend: How a module comes to one of its networks that has none.
        trainer: What carries out :meth:`fit`.
        steps: Gradient steps since the handler, or the round, began.
        left_out: Rows that it had to leave out of its training since then; see :class:`.training.Fitted`.
        training: Seconds of :meth:`fit` since then, by network.
        begun: It has its first state.
    """

    state: S
    round: int

    def __init__(
        self,
        dims: Dims,
        task: Task,
        public: PublicData | None,
        autocast: torch.dtype | None,
        state_type: type[State] | None,
    ) -> None:
        self.dims, self.task, self._public = dims, task, public
        self._autocast, self._state_type = autocast, state_type
        self.networks: dict[str, Held] = {}
        self.optimizers: dict[str, OptimizerState] = {}
        self.scratch: dict[str, Any] = {}
        self.lend: Callable[[str], None] | None = None
        self.trainer: Trainer = fit
        self.begun = True
        self.round = 0
        self.count_anew()

    def count_anew(self) -> None:
        """A handler or a round begins: nothing of it is done yet."""
        self.steps = self.left_out = 0
        self.training: defaultdict[str, float] = defaultdict(float)

    @property
    def public(self) -> PublicData:
        """Data that everybody in the run has.

        Raises:
            ConfigError: the run has none.
        """
        if self._public is None:
            raise ConfigError('the method uses public data, but the run has none: name a data set with public = "..."')
        return self._public

    @property
    def loss(self) -> Objective:
        """The task's loss of a whole model."""
        return partial(supervised, task=self.task)

    @property
    def modular_loss(self) -> Objective:
        """The task's loss of a modular block on features of the fusion layer."""
        return partial(supervised_modular, task=self.task)

    def network(self, name: str) -> SplitModel:
        """One of its networks by name.

        Raises:
            ModelError: there is none of that name.
        """
        held = self.networks.get(name)
        if held is not None and held.module is None and self.lend is not None:
            self.lend(name)
        if held is None or held.module is None:
            known = nearest(name, self.networks) if self.networks else "it has none"
            raise ModelError(f"no network {name!r}: {known}; a method declares further ones in `networks`")
        return held.module

    def fit(
        self,
        losses: Objective | Mapping[str, Objective],
        batches: Iterable[Batch],
        *,
        network: str | Sequence[str] = "model",
        keep_optimizer: str | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted:
        """Train one of its networks on given batches, or several together. See :func:`interfuse.training.fit`.

        Args:
            network: Its name; several names: one step trains them all, and the objective's model has them side by side,
                each as ``model.inner(name)``.
            keep_optimizer: A name under which the optimizer's state is kept until the next call with that name.
            options: ``lr``, ``train``, ``combine``, ``optimizer``, ``clip``, ``outputs_of``; see
                :class:`.training.FitOptions`.
        """
        slots = None if keep_optimizer is None else self.optimizers.setdefault(keep_optimizer, {})
        if isinstance(network, str):
            model = self.network(network)
        else:
            model = side_by_side({name: self.network(name) for name in network})
        began = time.perf_counter()
        done = self.trainer(
            model, losses, batches,
            slots=slots, round=max(self.round - 1, 0), autocast=self._autocast, **options,
        )  # fmt: skip
        self.training[network if isinstance(network, str) else " and ".join(network)] += time.perf_counter() - began
        self.steps += done.steps
        self.left_out += done.left_out
        return done

    def owned(self) -> dict[str, Tensor]:
        """All that lasts, as tensors by path: what a commit writes."""
        found = {
            place(name) + key: tensor for name, held in self.networks.items() for key, tensor in held.kept().items()
        }
        found |= {
            f"optimizers/{name}/{key}/{slot}": tensor
            for name, slots in self.optimizers.items()
            for key, kept in slots.items()
            for slot, tensor in kept.items()
        }
        state: Any = self.state
        if state is not None:
            found |= {f"state/{path}": tensor for path, tensor in flatten(state).items()}
        return found

    def restore(self, owned: Mapping[str, Tensor], like: Callable[[str], SplitModel]) -> None:
        """The inverse of :meth:`owned`.

        Args:
            like: A module of the architecture of a network, by the network's name.

        Raises:
            InterfuseError, KeyError, ValueError: it is not of this party.
        """
        for name, held in self.networks.items():
            held.restore(under(place(name), owned), like(name))
        self.optimizers = {}
        for path, tensor in under("optimizers/", owned).items():
            name, key, slot = path.rsplit("/", 2)
            self.optimizers.setdefault(name, {}).setdefault(key, {})[slot] = tensor
        state: Any = None
        if self._state_type is not None and self.begun:
            state = unflatten(self._state_type, under("state/", owned))
        self.state = state


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def place(network: str) -> str:
    """Where the tensors of a network stand among what a party owns."""
    return f"networks/{quote(network, safe='')}/"


def _memory(tensor: Tensor) -> int:
    """Where the memory begins that a tensor has, or is a part of."""
    return tensor.untyped_storage().data_ptr()
