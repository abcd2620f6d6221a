"""What crosses Ray: tensors as the body of our wire in one array, and data sets as arrays that a node maps.

Ray keeps the data of NumPy arrays apart from the pickle around them. A process that gets one does not copy it: it maps
the object store of its node, where all processes of a node see the same memory. That memory can only be read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interfuse.numerics import aligned
from interfuse.references import modules_of_files
from interfuse.wire import Pieces, Tensors
from interfuse.wire.body import read
from interfuse.wire.packs import OWN

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def packed(tensors: Mapping[str, Tensor]) -> Bytes:
    """The body of our wire with these tensors."""
    content = Tensors(tensors)
    found: Bytes = np.empty(content.size, np.uint8)
    place = 0
    for piece in content.pieces():
        found[place : place + len(piece)] = np.frombuffer(piece, np.uint8)
        place += len(piece)
    return found


def unpacked(body: Bytes, device: str) -> dict[str, Tensor]:
    """The tensors of a body, with memory of their own."""
    found = read("part", Pieces([body.data]), None, OWN, finite=False)
    return found if device == "cpu" else {name: tensor.to(device) for name, tensor in found.items()}


@dataclass(frozen=True)
class Packed:
    """A part of a pack as it came."""

    body: Bytes

    @property
    def size(self) -> int:
        return self.body.nbytes

    def pieces(self) -> Iterator[memoryview]:
        yield self.body.data


@contextmanager
def as_arrays(ray: Any) -> Iterator[None]:
    """The block in which Ray takes tensors as arrays, which a node maps, and code of files that were named takes along.

    Ray would import that code, and it lies in files of this machine.
    """
    with ExitStack() as after:
        for module in modules_of_files():
            if module.__name__ not in ray.cloudpickle.list_registry_pickle_by_value():
                ray.cloudpickle.register_pickle_by_value(module)
                after.callback(ray.cloudpickle.unregister_pickle_by_value, module)
        ray.util.register_serializer(Tensor, serializer=_taken_apart, deserializer=_mapped)
        after.callback(ray.util.deregister_serializer, Tensor)
        yield


def _taken_apart(tensor: Tensor) -> tuple[Bytes, str, tuple[int, ...], str]:
    dense = tensor.detach().cpu().resolve_neg().contiguous()
    data: Bytes = dense.reshape(-1).view(torch.uint8).numpy()
    return data, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), str(tensor.device)


def _mapped(parts: tuple[Bytes, str, tuple[int, ...], str]) -> Tensor:
    """The tensor where it lies in the object store, or a copy on its device. Writing to it ends the process."""
    data, kind, shape, device = parts
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(data)
    dtype: torch.dtype = getattr(torch, kind)
    return aligned(flat).view(dtype).view(shape).to(device)


def paths() -> list[str]:
    """Where this process finds modules: a worker on this machine, or on one alike, finds them there too."""
    return list(sys.path)
