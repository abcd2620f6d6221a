"""What modules have outside of their state dict: plain attributes, and buffers that are not persistent."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_BOOKKEEPING = frozenset(vars(nn.Module()))
"""Attributes of every module: its tensors and children, its mode, its hooks."""
_FIXED = (int, float, complex, bool, str, bytes, type(None))
_MISSING = object()


class Outside:
    """What a model's modules have outside of their state dict, as it is when this is made, to be put back.

    Of PyTorch's own modules these are numbers and words; lists there are of their parameters. Of others it is all that
    can be copied, generators included: whatever it refers to of the model itself stays what it is, shared.
    """

    def __init__(self, model: nn.Module, leave: type[nn.Module]) -> None:
        """``leave``: a kind of module whose attributes are no concern of anybody."""
        tensors = (*model.parameters(), *model.buffers())
        self._own: dict[int, Any] = {id(part): part for part in (*model.modules(), *tensors)}
        memo = dict(self._own)
        self._attributes = [
            (name, module, _first(module, memo))
            for name, module in model.named_modules()
            if not isinstance(module, leave)
        ]
        self._buffers = [
            (_joined(name, key), module, key, buffer.clone())
            for name, module in model.named_modules()
            for key in module._non_persistent_buffers_set
            if (buffer := module._buffers[key]) is not None
        ]

    def put_back(self) -> None:
        """Put everything back."""
        memo = dict(self._own)
        for _, module, first in self._attributes:
            attributes = vars(module)
            for key, (value, copied) in first.items():
                if copied:
                    attributes[key] = copy.deepcopy(value, memo)
                elif attributes.get(key, _MISSING) is not value:
                    attributes[key] = value
            if not _of_pytorch(module) and len(attributes) > len(first) + len(_BOOKKEEPING):
                for key in attributes.keys() - first.keys() - _BOOKKEEPING:
                    del attributes[key]
        for _, module, key, first_values in self._buffers:
            buffer = module._buffers.get(key)
            if buffer is not None and buffer.shape == first_values.shape:
                buffer.detach().copy_(first_values)
            else:
                module._buffers[key] = first_values.clone()

    def changed(self) -> dict[str, Any]:
        """By name, what is not any more as it was: its value now, or None where it is gone."""
        found: dict[str, Any] = {}
        for name, module, first in self._attributes:
            now = {key: value for key, value in vars(module).items() if key not in _BOOKKEEPING}
            for key, (value, _) in first.items():
                if not _same(now.get(key, _MISSING), value, set()):
                    found[_joined(name, key)] = now.get(key)
            if not _of_pytorch(module):
                found |= {_joined(name, key): value for key, value in now.items() if key not in first}
        for name, module, key, first_values in self._buffers:
            if not _same(module._buffers.get(key), first_values, set()):
                found[name] = module._buffers.get(key)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing: a copy of the model has other modules inside."""


def _first(module: nn.Module, memo: dict[int, Any]) -> dict[str, tuple[Any, bool]]:
    """A module's attributes, and whether each is a copy, without which changes inside of it would go unnoticed."""
    found: dict[str, tuple[Any, bool]] = {}
    for key, value in vars(module).items():
        if key in _BOOKKEEPING or (_of_pytorch(module) and not isinstance(value, _FIXED)):
            continue
        try:
            copied = value if isinstance(value, _FIXED) else copy.deepcopy(value, memo)
        except Exception:  # objects of others refuse it with errors of their own; these are put back as they are
            copied = value
        found[key] = (copied, copied is not value)
    return found


def _of_pytorch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _same(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two objects, of which one was once a copy of the other, hold the same."""
    if a is b or (id(a), id(b)) in seen:
        return True
    if type(a) is not type(b):
        return False
    seen.add((id(a), id(b)))
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.allclose(a, b, 0, 0, equal_nan=True))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, np.random.Generator):
        return _same(a.bit_generator.state, b.bit_generator.state, seen)
    if isinstance(a, np.random.RandomState):
        return _same(a.get_state(), b.get_state(), seen)
    if isinstance(a, random.Random):
        return bool(a.getstate() == b.getstate())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key], seen) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))
    if inside := getattr(a, "__dict__", None):
        return _same(inside, vars(b), seen)
    try:
        return bool(a == b)
    except Exception:  # objects of others compare as they like
        return True
