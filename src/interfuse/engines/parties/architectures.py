"""What nodes say of their models, against what the coordinator knows: before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from interfuse.engines.parties.contract import BYTES, Contract, Facts, JoinError, Shapes, check_messages
from interfuse.engines.parties.setups import RemoteSetup, no_labels
from interfuse.messages import Disclosure
from interfuse.method import Method
from interfuse.models import Builder

AXES = 16
"""Dimensions of a tensor at most."""
NUMBERS = 1 << 34
"""Of a model at most, with what is given and never travels."""
SMALL = 1 << 18
"""Numbers of a sample up to which a model for it is built as it is; for larger ones without memory."""


class _Tensors(NamedTuple):
    """Of a model: shapes by key, and which of them are given."""

    shapes: Mapping[str, tuple[int, ...]]
    given: tuple[str, ...]


class Architectures:
    """Checks the facts of nodes that join.

    Args:
        builders: What the coordinator can build, by the name of the architecture.
        message_bytes: Where parameters travel, a model whose tensors do not go into one message cannot take part.
    """

    def __init__(
        self,
        contract: Contract,
        method: Method,
        builders: Mapping[str, Callable[[], Builder]],
        message_bytes: int,
    ) -> None:
        self._contract, self._method, self._builders = contract, method, builders
        self._message_bytes = message_bytes
        self._most = message_bytes // BYTES if Disclosure.PARAMETERS in contract.discloses else NUMBERS
        self._known: dict[tuple[str, str], _Tensors] = {}

    def check(self, facts: Facts, others: Mapping[str, Facts]) -> None:
        """Refuse a model that cannot be the one that its name stands for.

        Args:
            others: Facts of the nodes that are there, by their names.

        Raises:
            JoinError: its shapes are too large, the architecture of its name has other tensors here, or another node
                has the name for other tensors.
        """
        if (shapes := facts.shapes) is not None:
            self._check_sizes(shapes)
            check_messages(self._contract, facts, self._message_bytes, "--largest of the coordinator")
            mine = _Tensors(shapes.keys, shapes.given)
            if facts.architecture in self._builders and mine != self._tensors(facts.architecture, facts):
                expected = f"the tensors that {facts.architecture!r} has here"
                raise JoinError("architecture", expected, "others; another model needs another name")
        for name, known in others.items():
            if known.architecture != facts.architecture:
                continue
            if (known.shapes, known.given) != (shapes, facts.given):
                words = f"tensors and frozen weights of {facts.architecture!r} as node {name} has them"
                raise JoinError("architecture", words, "others; another model needs another name")

    def _check_sizes(self, shapes: Shapes) -> None:
        samples = shapes.sample.values() if isinstance(shapes.sample, Mapping) else [shapes.sample]
        for what, some in (("sample", samples), ("tensors", shapes.keys.values()), ("cuts", shapes.cuts.values())):
            total, most = 0, NUMBERS if what == "tensors" else self._most
            for shape in some:
                if len(shape) > AXES:
                    raise JoinError(f"shapes of the {what}", f"at most {AXES} dimensions", str(len(shape)))
                total += math.prod(shape)
                if total > most:
                    raise JoinError(f"shapes of the {what}", f"at most {most} numbers", f"{total:.3g}")

    def _tensors(self, architecture: str, facts: Facts) -> _Tensors:
        """The tensors of an architecture as the coordinator builds it for such samples."""
        assert facts.shapes is not None
        place = architecture, str(facts.shapes.sample)
        if place not in self._known:
            sample = facts.shapes.sample.values() if isinstance(facts.shapes.sample, Mapping) else [facts.shapes.sample]
            device = "cpu" if sum(map(math.prod, sample)) <= SMALL else "meta"
            setup = RemoteSetup(self._contract, None, self._method, {0: facts}, no_labels(), self._builders, [], device)
            try:
                with torch.device(device):
                    model = setup.build(architecture, "measure")
            except Exception as error:  # whatever a builder says to a sample that nobody has
                raise JoinError("architecture", f"one that {architecture!r} can be here", str(error)) from None
            shapes = {key: tuple(tensor.shape) for key, tensor in model.tensors().items()}
            self._known[place] = _Tensors(shapes, tuple(sorted(model.given_keys)))
        return self._known[place]
