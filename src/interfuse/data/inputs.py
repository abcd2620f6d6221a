"""What a model takes: one tensor, or several by name. Either has a row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]
Shape = tuple[int, ...] | Mapping[str, tuple[int, ...]]
"""Of one sample, without the batch axis; by name where it has several inputs."""

ONLY = "x"
"""The name of an input that is the only one."""


def named(x: Inputs) -> Mapping[str, Tensor]:
    """The tensors by name."""
    return {ONLY: x} if isinstance(x, Tensor) else x


def together(tensors: Mapping[str, Tensor]) -> Inputs:
    """The inverse of :func:`named`."""
    return tensors[ONLY] if tensors.keys() == {ONLY} else dict(tensors)


def each(change: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """The inputs with every tensor changed."""
    return change(x) if isinstance(x, Tensor) else {name: change(tensor) for name, tensor in x.items()}


def rows_of(x: Inputs) -> int:
    """Number of samples."""
    return len(next(iter(named(x).values())))


def shape_of(x: Inputs) -> Shape:
    """Shape of one sample."""
    return tuple(x.shape[1:]) if isinstance(x, Tensor) else {name: tuple(t.shape[1:]) for name, t in x.items()}


def shape_text(shape: Shape) -> str:
    """A shape in words, such as ``1x28x28``."""
    if isinstance(shape, tuple):
        return "x".join(map(str, shape))
    return ", ".join(f"{name} {shape_text(one)}" for name, one in shape.items())


def split(x: Inputs, sizes: int | list[int]) -> Sequence[Inputs]:
    """The samples in pieces, as :func:`torch.split` makes them."""
    if isinstance(x, Tensor):
        return torch.split(x, sizes)
    pieces = zip(*(torch.split(tensor, sizes) for tensor in x.values()), strict=True)
    return [dict(zip(x, piece, strict=True)) for piece in pieces]


def joined(pieces: Sequence[Inputs]) -> Inputs:
    """The samples of several pieces, one after the other."""
    parts = [named(piece) for piece in pieces]
    return together({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
