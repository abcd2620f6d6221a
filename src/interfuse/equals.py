"""What was worked out for one client, for others of its host whose models are equal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from interfuse.models import SplitModel
from interfuse.randomness import generators

T = TypeVar("T")

BLOCKS = ("base", "modular")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of an element, a type in which tensors are equal only where all their bits are: -0 is not 0."""


class Equals:
    """Work on models that is done once for clients with equal ones, for as long as nothing is cleared.

    Equal means: of one architecture, with the same bits in all tensors of the blocks that the work is on. Nothing is
    taken on trust, neither who sent the tensors nor a digest of them, but that what is given is the same for all of an
    architecture. Of each the latest other tensors are kept to compare to: clients that all differ cost one copy, and
    equal ones in turns with others are not found.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], tuple[object, dict[str, Tensor]]] = {}
        self._of_clients: dict[int, Mapping[str, object]] = {}
        self._found: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def once(
        self, name: str, client: int, architecture: str, model: Callable[[], SplitModel], blocks: Sequence[str],
        on: Sequence[object], work: Callable[[], T],
    ) -> T:  # fmt: skip
        """What ``work`` gives: as it was found for an equal model, where one came before.

        What has drawn random numbers holds for one client alone, and so does what a model with other attributes than
        its architecture's gives: no tensors tell of them.

        Args:
            name: Of the work.
            client: Whose model it is.
            model: Asked for where it was not noted yet, as by ``work``.
            blocks: Those of the model that it is on.
            on: The very objects that it depends on beside the model.
        """
        if client not in self._of_clients:
            self.note(client, architecture, model())
        seen = self._of_clients[client]
        kind = (name, architecture, *map(id, on))
        depends = (*on, *(seen[block] for block in blocks))
        before, found = self._found.get(kind, ((), None))
        if len(before) == len(depends) and all(a is b for a, b in zip(before, depends, strict=True)):
            known: T = found
            return known
        drawn = generators()
        result = work()
        if generators() == drawn:
            self._found[kind] = depends, result
        return result

    def note(self, client: int, architecture: str, model: SplitModel) -> None:
        """What a client's model is, until :meth:`forget`: for each block the very same object for the same bits."""
        if model.outside.changed():
            self._of_clients[client] = {block: object() for block in BLOCKS}
            return
        for block in BLOCKS:
            now = model.live(key for key in model.keys_of(block) if key not in model.given_keys)
            if (latest := self._latest.get((architecture, block))) is None or not same_bits(latest[1], now):
                self._latest[architecture, block] = object(), {key: tensor.clone() for key, tensor in now.items()}
        # what stands for the tensors, not these: they would be kept for each client
        self._of_clients[client] = {block: self._latest[architecture, block][0] for block in BLOCKS}

    def forget(self, client: int) -> None:
        """A client has another model from now on."""
        self._of_clients.pop(client, None)

    def clear(self) -> None:
        """Forget everything."""
        self._latest.clear()
        self._of_clients.clear()
        self._found.clear()


def same_bits(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the same names are equal to the bit."""
    return some.keys() == others.keys() and all(_same(tensor, others[key]) for key, tensor in some.items())


def _same(a: Tensor, b: Tensor) -> bool:
    bits = _BITS.get(a.element_size())
    return bits is not None and a.dtype == b.dtype and torch.equal(a.view(bits), b.view(bits))
