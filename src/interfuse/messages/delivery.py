"""What happens to a message on its way: it is narrowed, checked, copied, disturbed."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interfuse import wire
from interfuse.data.task import IGNORED
from interfuse.errors import MessageError
from interfuse.messages.records import UNSIGNED, Dims, Disclosure, Leaf, M, Message, flatten, leaf_at, mapped, unflatten
from interfuse.numerics import aligned

LARGEST = 1e9
"""In size, of what a client computed: no honest value is near, and squares and sums over clients of such values stay
finite. Of a running variance, its square."""
_COMPUTED = frozenset(Disclosure) - {
    Disclosure.DATA, Disclosure.LABELS, Disclosure.STATISTICS, Disclosure.SURROGATES,
}  # fmt: skip
"""Disclosures of what has no unit of its own; data may be in any, and statistics may add up."""


def _unsigned(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.uint16 if classes <= 65536 else torch.uint32


_TARGETS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classes": (UNSIGNED, ("batch",)),
    "outputs": (("float32",), ("batch", "outputs")),
    "labels": (("float32",), ("batch", "labels")),
    "tokens": (("int64",), ("batch", "time")),
}
"""Types and dimensions of targets, by the size that a task binds."""


def _in_run(leaf: Leaf, dims: Dims) -> Leaf:
    """The leaf with what the run's task says of targets."""
    unit = next((unit for unit in _TARGETS if unit in dims), None) if leaf.targets else None
    return leaf if unit is None else replace(leaf, dtypes=_TARGETS[unit][0], dims=_TARGETS[unit][1])


def _declared(leaf: Leaf, dtype: torch.dtype, dims: Dims) -> torch.dtype:
    """The dtype in which a tensor of this leaf travels. ``UInt`` is the smallest that holds the run's classes."""
    leaf = _in_run(leaf, dims)
    if leaf.dtypes is None:
        return dtype
    if leaf.dtypes == UNSIGNED:
        return _unsigned(dims.get("classes", 256))
    return typing.cast(torch.dtype, getattr(torch, leaf.dtypes[0]))


def narrow(message: M, dims: Dims, *, copy: bool = True, given_up: Iterable[int] = ()) -> M:
    """Detach, narrow to the declared dtypes and copy, so that nothing the sender does later can reach the receiver.

    Args:
        copy: False: what is contiguous and of its dtype already may go on sharing memory with the given tensor.
        given_up: Addresses of tensors which the sender gives up: of each of these one need not be a copy.

    Raises:
        MessageError: a value cannot be narrowed without changing its kind or losing an integer.
    """
    name, free = type(message).__name__, set(given_up)

    def change(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        tensor, wanted = tensor.detach(), _declared(leaf, tensor.dtype, dims)
        if tensor.dtype == wanted:
            if copy and tensor.data_ptr() not in free:
                return wire.copied(tensor)
            free.discard(tensor.data_ptr())  # whoever gets the message may change one of two fields
            return aligned(tensor.contiguous())
        if tensor.dtype.is_floating_point != wanted.is_floating_point or torch.bool in (tensor.dtype, wanted):
            raise MessageError(name, path, str(wanted), str(tensor.dtype))
        if not wanted.is_floating_point and tensor.numel():
            info, low, high = torch.iinfo(wanted), int(tensor.min()), int(tensor.max())
            if low < info.min or high > info.max:
                raise MessageError(name, path, f"values from {info.min} to {info.max}", f"{low} to {high}")
        return tensor.to(wanted).contiguous()

    return mapped(message, change)


def check(message: M, dims: Dims, keys: Mapping[str, tuple[int, ...]] | None = None, *, finite: bool = True) -> M:
    """Check dtypes, shapes and finiteness, and return the message.

    Args:
        dims: Sizes that are bound for the whole run, such as ``d`` and ``classes``. Other names, such as ``batch``,
            must agree inside one record and may differ between records.
        keys: Keys and shapes of the client's model, for fields of named tensors.
        finite: Look at the values too; False where they have been looked at already.

    Raises:
        MessageError: naming message, field, expected and found.
    """
    name = type(message).__name__
    bound: dict[tuple[str, str], int] = {}

    def change(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        check_declared(name, path, leaf, tensor.dtype, tuple(tensor.shape), dims, keys, bound)
        if finite and tensor.dtype.is_floating_point:
            _check_values(name, path, leaf, tensor)
        if finite and _is_variance(leaf, path) and tensor.numel() and (least := float(tensor.min())) < 0:
            raise MessageError(name, path, "variances, which a rule may average but not add or subtract", f"{least:g}")
        if leaf.disclosure is Disclosure.LABELS and tensor.numel():
            _check_labels(name, path, leaf, tensor, dims)
        return tensor

    mapped(message, change)
    return message


def _check_values(name: str, path: str, leaf: Leaf, tensor: Tensor) -> None:
    """Numbers are finite, and not too large to compute with."""
    bounded = leaf.disclosure in _COMPUTED
    limit = LARGEST**2 if _is_variance(leaf, path) else LARGEST
    if _within(tensor, limit) if bounded else _finite(tensor):
        return
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise MessageError(name, path, "finite values", f"{bad} of {tensor.numel()} are NaN or infinite")
    largest = f"{float(tensor.abs().max()):g}; where training diverged, try a lower learning rate"
    raise MessageError(name, path, f"values up to {limit:g} in size", largest)


def _is_variance(leaf: Leaf, path: str) -> bool:
    return leaf.disclosure is Disclosure.PARAMETERS and path.endswith("running_var")


def _check_labels(name: str, path: str, leaf: Leaf, tensor: Tensor, dims: Dims) -> None:
    """Labels are bounded by what they mean."""
    if "classes" in dims:
        # comparison is not implemented for PyTorch's wider unsigned types
        highest = int(tensor.to(torch.int64).max())
        if highest >= dims["classes"]:
            raise MessageError(name, path, f"labels below {dims['classes']}", f"label {highest}")
    elif leaf.targets and "labels" in dims and not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise MessageError(name, path, "labels from 0 to 1", "others")
    elif leaf.targets and "tokens" in dims:
        known = (tensor >= 0) & (tensor < dims["tokens"]) | (tensor == IGNORED)
        if not bool(known.all()):
            raise MessageError(name, path, f"tokens below {dims['tokens']}, or {IGNORED}", "others")


def _within(tensor: Tensor, limit: float) -> bool:
    """Whether all values are numbers up to this size: one pass without a temporary."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(low >= -limit) and bool(high <= limit)  # NaN is neither


def _finite(tensor: Tensor) -> bool:
    """One pass without a temporary in the usual case; a sum that overflows is looked at element by element."""
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def check_declared(
    name: str,
    path: str,
    leaf: Leaf,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    dims: Dims,
    keys: Mapping[str, tuple[int, ...]] | None,
    bound: dict[tuple[str, str], int],
) -> None:
    """What can be checked of a tensor without having it."""
    leaf = _in_run(leaf, dims)
    if leaf.dtypes is not None and dtype != (wanted := _declared(leaf, dtype, dims)):
        raise MessageError(name, path, str(wanted), str(dtype))
    if leaf.named and keys is not None:
        key = path.rsplit("/", 1)[1]
        if key not in keys:
            raise MessageError(name, path, "a key of the client's model", f"unknown key {key!r}")
        if dtype != torch.float32:
            raise MessageError(name, path, "torch.float32", str(dtype))
        if shape != keys[key]:
            raise MessageError(name, path, f"shape {keys[key]}", f"shape {shape}")
    if leaf.dims is not None:
        _check_shape(name, path, leaf.dims, shape, dims, bound)


def _check_shape(
    name: str,
    path: str,
    wanted: tuple[str, ...],
    shape: tuple[int, ...],
    dims: Dims,
    bound: dict[tuple[str, str], int],
) -> None:
    words: tuple[str | None, ...] = wanted
    if "..." in wanted:
        place = wanted.index("...")
        words = (*wanted[:place], *([None] * (len(shape) - len(wanted) + 1)), *wanted[place + 1 :])
    if len(shape) != len(words):
        raise MessageError(name, path, f"shape [{' '.join(wanted)}]", f"shape {shape}")
    group = path.rpartition("/")[0]
    for dim, size in zip(words, shape, strict=True):
        if dim is None or dim == "_":
            continue
        expected = int(dim) if dim.isdecimal() else dims[dim] if dim in dims else bound.setdefault((group, dim), size)
        if size != expected:
            raise MessageError(name, path, f"{dim} = {expected}", f"shape {shape}")


def private(message: M, *, copy: bool) -> M:
    """A message for one receiver: its tensors share memory with the given ones, or are copies of them."""
    return mapped(message, lambda leaf, tensor, path: tensor.clone() if copy else tensor.detach())


def unmodified(message: Message | None) -> Callable[[], str | None]:
    """Remember the version counters of a message's tensors; the answer names a tensor changed in place since."""
    if message is None:
        return lambda: None
    before = [(path, tensor, tensor._version) for path, tensor in flatten(message).items()]
    return lambda: next((path for path, tensor, version in before if tensor._version != version), None)


def disturbed(message: M, deviations: Mapping[Disclosure, float], generator: np.random.Generator) -> M:
    """A message with Gaussian noise on its floating-point tensors and numbers, of a standard deviation by what they
    disclose.

    The generator is NumPy's, which takes a seed of any length: PyTorch's has 32 bits, few enough to try all.
    """
    kind, flat = type(message), dict(flatten(message))
    for path, tensor in flat.items():
        leaf = leaf_at(kind, path)
        deviation = 0.0 if leaf is None or leaf.disclosure is None else deviations.get(leaf.disclosure, 0.0)
        if leaf is None or not deviation or not tensor.dtype.is_floating_point:
            continue
        noise = torch.as_tensor(generator.standard_normal(tuple(tensor.shape)))
        noisy = tensor + deviation * noise.to(tensor)
        flat[path] = noisy.clamp(min=0) if _is_variance(leaf, path) else noisy
    return unflatten(kind, flat)
