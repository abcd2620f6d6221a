"""Tensors of a network that travel as truncated singular value decompositions, where that is smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from interfuse.errors import ModelError
from interfuse.messages import Disclosure, Message, NamedTensors


class Factors(Message):
    """A matrix U diag(σ) V."""

    left: Annotated[Float32[Tensor, "rows rank"], Disclosure.PARAMETERS]
    scale: Annotated[Float32[Tensor, "rank"], Disclosure.PARAMETERS]
    right: Annotated[Float32[Tensor, "rank columns"], Disclosure.PARAMETERS]


class Factored(Message):
    """Tensors of a network by key: as they are, or as factors of the matrix that has their first dimension as rows."""

    whole: dict[str, Annotated[Float32[Tensor, "..."], Disclosure.PARAMETERS]]
    factors: dict[str, Factors]


def truncated(matrix: Float[Tensor, "rows columns"], energy: float) -> Factors:
    """The decomposition of the smallest rank, 1 at least, whose squared singular values add up to that part of all.

    Args:
        energy: From 0 to 1.
    """
    left, scale, right = torch.linalg.svd(matrix, full_matrices=False)
    sums = scale.double().square().cumsum(0)
    rank = min(int((sums < energy * sums[-1]).sum()) + 1, len(scale))
    return Factors(left[:, :rank], scale[:rank], right[:rank])


def factored(tensors: Mapping[str, Tensor], energy: float) -> Factored:
    """Tensors of two dimensions or more as :func:`truncated`, but as they are where that takes no more numbers, or
    ``energy`` is 1: then nothing is lost."""
    whole: NamedTensors = {}
    factors: dict[str, Factors] = {}
    for key, tensor in tensors.items():
        found = truncated(tensor.flatten(1), energy) if tensor.dim() > 1 and energy < 1 else None
        if found is not None and sum(t.numel() for t in (found.left, found.scale, found.right)) < tensor.numel():
            factors[key] = found
        else:
            whole[key] = tensor
    return Factored(whole, factors)


def multiplied(message: Factored, shapes: Mapping[str, tuple[int, ...]]) -> NamedTensors:
    """The tensors that a message stands for.

    Args:
        shapes: Of the network's tensors by key.

    Raises:
        ModelError: factors are of no tensor of the network with two dimensions or more, of one that is there as a whole
            too, or their product has another size or is not finite.
    """
    found = dict(message.whole)
    for key, own in message.factors.items():
        shape = shapes.get(key, ())
        if len(shape) < 2 or key in found:
            raise ModelError(f"factors of {key!r}, which is no matrix of the network, or is there as a whole too")
        matrix = (own.left * own.scale) @ own.right
        if matrix.shape[0] != shape[0] or matrix.numel() != torch.Size(shape).numel():
            raise ModelError(f"tensor {key!r}: expected shape {shape}, found factors of {tuple(matrix.shape)}")
        if not bool(matrix.isfinite().all()):
            raise ModelError(f"tensor {key!r}: the product of its factors is not finite")
        found[key] = matrix.reshape(shape)
    return found
