"""Numeric settings: all that bits may depend on, beside seed, build and type of processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

Layout = Literal["contiguous", "channels_last"]


@dataclass(frozen=True)
class Numerics:
    """How numbers are computed. Part of every run's configuration.

    Attributes:
        dtype: ``bfloat16`` computes the objectives of ``fit`` with autocast; parameters, gradients, messages,
            evaluation and what a handler computes beside ``fit`` stay float32.
        layout: Order of images, feature maps and convolution weights in memory. On CPUs most kernels are faster with
            the channels last.
        denormals: ``flush`` takes numbers below 1.2e-38 for zero, ``keep`` does not. Averages of Adam decay into
            denormals, and processors compute with those many times more slowly.
        threads: Of every handler, and of the server's work.
        together: How many clients of one architecture work side by side in one process, so that what they train is
            computed in one step for all of them: other rounding, and faster for small layers, or on a GPU. 1: one after
            the other.
        layers_together: What is computed so: ``linear`` layers and those that work on each element, or ``all``,
            convolutions too. What has other layers is computed one after the other, to the same bits.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    layout: Layout = "channels_last"
    denormals: Literal["flush", "keep"] = "flush"
    threads: Literal[1] = 1
    together: Annotated[int, Ge(1)] = 1
    layers_together: Literal["linear", "all"] = "linear"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast, or None."""
        return torch.bfloat16 if self.dtype == "bfloat16" else None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Threads and treatment of denormals inside the block; both are put back after it."""
        threads, flushed = torch.get_num_threads(), _flushes_denormals()
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(self.denormals == "flush")
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed)
            torch.set_num_threads(threads)


DEFAULT = Numerics()

ALIGNMENT = 64
"""Bytes. PyTorch begins every tensor of its own at a multiple of it, and the kernels of some processors round otherwise
where a tensor begins in between."""


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that begins inside another where PyTorch would not begin a new one."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _flushes_denormals() -> bool:
    """PyTorch can set the mode of this thread, but not tell it."""
    return float(torch.full((), 1e-38) * 0.1) == 0.0
