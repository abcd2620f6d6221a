"""New models whose initial values are a function of a seed and a key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interfuse.errors import ModelError
from interfuse.models.arranging import pool_first
from interfuse.models.split import SplitModel
from interfuse.numerics import Numerics
from interfuse.randomness import Key, seeded

Initial = Literal["own", "common"]
"""Whether each client's models begin with values of their own, or all models of an architecture with the same."""


def initial_key(initial: Initial, *key: Key) -> tuple[Key, ...]:
    """The key by which initial values are drawn, where this is that of a model by itself."""
    return key if initial == "own" else ("common",)


def make(build: Callable[[], SplitModel], seed: int, *key: Key, device: str, numerics: Numerics) -> SplitModel:
    """A new model on a device, in the memory layout of the run, with :func:`~.arranging.pool_first`."""
    with seeded(seed, *key):
        model: object = build()
    if not isinstance(model, SplitModel):
        kind = type(model).__name__
        raise ModelError(f"a network is a SplitModel, but {kind} was built: return SplitModel({{'name': module}})")
    model.to(device)
    pool_first(model)
    if numerics.layout == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
    return model


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values, in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    for key in sorted(tensors):
        # a copy that is gone with the next one: looked at where it is, a tensor that shares memory would get its own
        tensor = tensors[key].detach().to("cpu", copy=True).contiguous()
        found.update(f"{key} {tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(np.ascontiguousarray(tensor.reshape(-1).view(torch.uint8).numpy()).data)
    return found.hexdigest()


def given_digest(model: SplitModel) -> str:
    """A hash of what is given of a model; empty where nothing is."""
    return digest_of(model.live(model.given_keys)) if model.given_keys else ""


class Given:
    """The given tensors of each architecture, in memory once a process."""

    def __init__(self) -> None:
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def built(self, architecture: str, build: Callable[[tuple[Key, ...]], SplitModel], *key: Key) -> SplitModel:
        """A new model with the given tensors that all models of its architecture have.

        Args:
            build: From a key, of which initial values are a function, to a new model.
        """
        model = build(key)
        if model.given_keys:
            if architecture not in self._tensors:
                first = build(("given",))
                self._tensors[architecture] = first.live(first.given_keys)
            model.hold(self._tensors[architecture])
        return model
