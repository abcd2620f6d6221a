"""Memory for the large tensors of messages, kept for the next ones.

An allocator gives large blocks back to the system when they are freed, so that each message would pay for zeroed pages
again: four to five times what it takes to copy it into memory that is there.
"""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 25
"""Bytes from which blocks are kept here; glibc can be told to keep smaller ones."""
MOST_KEPT = 1 << 28
"""Bytes that are kept free at most."""

_Block = np.ndarray[tuple[int], np.dtype[np.uint8]]
_free: dict[int, _Block] = {}  # only its single operations count on being undisturbed: tensors end in any thread


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As :func:`torch.empty` on the CPU. The memory comes back here when the last tensor that shares it ends.

    Raises:
        MemoryError, RuntimeError: there is none.
    """
    length = math.prod(shape) * dtype.itemsize
    if length < LARGE:
        return torch.empty(shape, dtype=dtype)
    block = _taken(length)
    lent = block[:length]
    weakref.finalize(lent, _give_back, block).atexit = False
    return torch.frombuffer(lent, dtype=dtype).view(shape)


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy on the same device."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.nbytes < LARGE:
        return tensor.clone(memory_format=torch.contiguous_format)
    return fresh(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def _taken(length: int) -> _Block:
    """The smallest block that is free and fits, or a new one."""
    for size, place in sorted((block.size, place) for place, block in list(_free.items())):
        if length <= size <= 2 * length and (block := _free.pop(place, None)) is not None:
            return block
    new: _Block = torch.empty(length, dtype=torch.uint8).numpy()  # begins where a tensor of PyTorch's own would
    return new


def _give_back(block: _Block) -> None:
    if block.size + sum(free.size for free in list(_free.values())) <= MOST_KEPT:
        _free[block.ctypes.data] = block
