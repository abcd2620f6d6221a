"""Tensors handed between two processes of one machine through shared memory, without serialising them."""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interfuse.numerics import ALIGNMENT


class Arena:
    """A growing piece of shared memory that one process writes and forked ones read.

    It has no name, so nothing is left behind by a process that is killed.
    """

    def __init__(self) -> None:
        self._descriptor = _anonymous_file()
        self._map: mmap.mmap | None = None
        self._used = 0

    def close(self) -> None:
        """Give the memory back, once both processes have."""
        self._map = None
        os.close(self._descriptor)

    def clear(self) -> None:
        """Start writing at the beginning again."""
        self._used = 0

    def write(self, tensors: Mapping[str, Tensor]) -> list[list[Any]]:
        """Copy tensors in. The answer says where each lies: name, dtype, shape, offset."""
        places: list[list[Any]] = []
        end = self._used
        for name, tensor in tensors.items():
            places.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), end])
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        memory = self._memory(end)
        for (_, _, _, offset), tensor in zip(places, tensors.values(), strict=True):
            if tensor.numel():
                _view(memory, tensor.dtype, tuple(tensor.shape), offset).copy_(tensor)
        self._used = end
        return places

    def read(self, places: list[list[Any]]) -> dict[str, Tensor]:
        """Copies of tensors that :meth:`write` of the other process put in."""
        found = {}
        for name, kind, shape, offset in places:
            dtype: torch.dtype = getattr(torch, kind)
            size = torch.Size(shape).numel()
            if size == 0:
                found[name] = torch.empty(shape, dtype=dtype)
            else:
                memory = self._memory(offset + size * dtype.itemsize)
                found[name] = _view(memory, dtype, tuple(shape), offset).clone()
        return found

    def _memory(self, size: int) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            length = max(os.fstat(self._descriptor).st_size, 1 << max(20, (size - 1).bit_length()))
            os.ftruncate(self._descriptor, length)
            self._map = mmap.mmap(self._descriptor, length)
        return self._map


def _view(memory: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(shape)


def _anonymous_file() -> int:
    """A descriptor of a file without a name: in memory on Linux, elsewhere in the folder for temporary files."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    return os.memfd_create("interfuse")


def to_json(value: Any) -> bytes:
    """A control message between processes."""
    return json.dumps(value, separators=(",", ":")).encode()
