"""The one aggregator: element-by-element means over those who hold an element; and what becomes of buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from interfuse.data import Inputs
from interfuse.errors import ConfigError, DataError, ModelError, nearest

Index = tuple[Int64[Tensor, " held"] | None, ...]
"""For every dimension of a tensor the positions that are held (distinct, in any order), or None for all of them."""

Plan = Mapping[str, Index | None]
"""Which part of which server tensor a client holds: the whole one (None), the outer product of an index per dimension,
or, where the key is absent, nothing."""

Update = tuple[Plan, Mapping[str, Tensor], float]
"""What one client sends: its plan, a value for every floating-point tensor of the plan, and its weight."""


def keys_plan(keys: Iterable[str]) -> Plan:
    """The plan of a client that holds these tensors as a whole.

    With the keys of some parts (``keys_plan(model.tensors("modular"))``) it shares parts of a model (LG-FedAvg), with
    the keys of a shallower model it nests depths (layer-wise FedAvg, InclusiveFL).
    """
    return dict.fromkeys(keys)


@torch.no_grad()
def extract(server: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The slices of the server's tensors that a plan names, as new tensors.

    Raises:
        ModelError: the plan does not fit the server's tensors.
    """
    return {key: _of(server, key)[_grid(key, server[key], index)].clone() for key, index in plan.items()}


class Mean:
    """Element by element, the weighted mean over the clients that hold the element, client by client.

    It holds one model, however many clients are added. An element nobody sent keeps the server's value, and so do
    integer tensors (counters of normalisation layers). The mean is carried along in the order in which clients are
    added, in the dtype of the server's tensor: the value of a single holder, and a value that all holders agree on,
    come out bit for bit.
    """

    def __init__(self, server: Mapping[str, Tensor]) -> None:
        self.server = server
        self._means: dict[str, Tensor] = {}
        self._totals: dict[str, float | Tensor] = dict.fromkeys(server, 0.0)  # of an element, where they differ

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], weight: float = 1.0, plan: Plan | None = None) -> None:
        """Add what a client sent: a value for every floating-point tensor of its plan; None: whole tensors.

        Raises:
            ConfigError: the weight is not positive and finite.
            ModelError: the plan does not fit the server's tensors, or the values do not fit the plan.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"the weight of a client must be positive and finite, not {weight}")
        plan = keys_plan(values) if plan is None else plan
        _check(self.server, plan, values)
        whole: dict[float, list[str]] = {}
        for key, index in plan.items():
            if not self.server[key].is_floating_point():
                continue
            before = self._totals[key]
            if index is None and isinstance(before, float):
                whole.setdefault(before, []).append(key)
            else:
                self._add(key, index, values[key], weight, before)
        for before, keys in whole.items():
            self._add_whole(keys, values, weight, before)

    def _add_whole(self, keys: Sequence[str], values: Mapping[str, Tensor], weight: float, before: float) -> None:
        """Add whole tensors of which every element has this weight so far."""
        self._totals |= dict.fromkeys(keys, before + weight)
        sent = [values[key].to(self.server[key]) for key in keys]
        # Not a sum divided at the end: a running mean returns equal values unchanged, and cannot overflow.
        if before == 0:
            firsts = (value.clone(memory_format=torch.contiguous_format) for value in sent)
            self._means |= zip(keys, firsts, strict=True)
        else:
            torch._foreach_lerp_([self._means[key] for key in keys], sent, weight / (before + weight))

    def _add(self, key: str, index: Index | None, value: Tensor, weight: float, before: float | Tensor) -> None:
        old = self.server[key]
        if key not in self._means:
            self._means[key] = old.clone(memory_format=torch.contiguous_format)
        mean = self._means[key]
        value = value.to(mean)
        totals = torch.full_like(mean, before, dtype=torch.float64) if isinstance(before, float) else before
        grid = _grid(key, old, index)
        known = totals[grid]
        after = known + weight
        moved = mean[grid].lerp(value, (weight / after).to(mean.dtype))
        mean[grid] = torch.where(known == 0, value, moved)
        totals[grid] = after
        self._totals[key] = totals

    def result(self) -> dict[str, Tensor]:
        """The mean of what was added, as new tensors by key."""
        return {key: self._means[key] if key in self._means else old.clone() for key, old in self.server.items()}


def counted_mean(server: Mapping[str, Tensor], updates: Iterable[Update]) -> dict[str, Tensor]:
    """The :class:`Mean` of several updates: Σ w·value / Σ w over those who hold an element.

    Raises:
        ConfigError, ModelError: as :meth:`Mean.add`.
    """
    mean = Mean(server)
    for plan, values, weight in updates:
        mean.add(values, weight, plan)
    return mean.result()


@torch.no_grad()
def moved(
    weights: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
    step: float | Mapping[str, Tensor] = 1.0,
    mix: float = 1.0,
) -> dict[str, Tensor]:
    """The server's tensors after a step along a change: w + ``step`` · change.

    Statistics are mixed and never moved, (1 − ``mix``) · the server's + ``mix`` · those sent: so they stay between the
    two, however long the step.

    Args:
        step: One factor for all parameters, or one by key.
        mix: From 0 to 1.
    """
    steps = step if isinstance(step, Mapping) else dict.fromkeys(change, step)
    found = {key: weights[key] + steps[key] * tensor for key, tensor in change.items()}
    return found | {key: weights[key].lerp(tensor, mix) for key, tensor in statistics.items()}


def _check(server: Mapping[str, Tensor], plan: Plan, values: Mapping[str, Tensor]) -> None:
    for key in values:
        if key not in plan:
            raise ModelError(f"a client sent {key!r}, which is not in its plan: {nearest(key, plan)}")
    for key, index in plan.items():
        tensor = _of(server, key)
        if not tensor.is_floating_point():
            continue
        if key not in values:
            raise ModelError(f"a client did not send {key!r}, which is in its plan")
        shape = tuple(tensor.shape)
        if index is not None:
            held = _fitting(key, tensor, index)
            shape = tuple(n if some is None else len(some) for n, some in zip(shape, held, strict=True))
        if tuple(values[key].shape) != shape:
            raise ModelError(f"tensor {key!r}: expected shape {shape}, found {tuple(values[key].shape)}")


def _of(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in tensors:
        raise ModelError(f"the plan names a tensor the server has not, {key!r}: {nearest(key, tensors)}")
    return tensors[key]


def _fitting(key: str, tensor: Tensor, index: Index) -> Index:
    if len(index) != tensor.dim():
        raise ModelError(f"the plan for {key!r} has {len(index)} dimensions; the server's tensor has {tensor.dim()}")
    for dimension, (size, held) in enumerate(zip(tensor.shape, index, strict=True)):
        if held is None:
            continue
        if held.dim() != 1 or held.dtype != torch.int64:
            raise ModelError(f"the plan for {key!r}, dimension {dimension}: an index must be a vector of int64")
        if len(held) and not 0 <= int(held.min()) <= int(held.max()) < size:
            raise ModelError(f"the plan for {key!r}, dimension {dimension}: positions must lie in [0, {size})")
        if len(set(held.tolist())) != len(held):
            raise ModelError(f"the plan for {key!r}, dimension {dimension}: a position is listed twice")
    return index


def _grid(key: str, tensor: Tensor, index: Index | None) -> tuple[Tensor | slice, ...]:
    """What to write between brackets to reach the outer product of the index."""
    if index is None:
        return (slice(None),) * tensor.dim()
    runs = [slice(None) if held is None else _run(held) for held in _fitting(key, tensor, index)]
    if None not in runs:
        return tuple(run for run in runs if run is not None)
    last = tensor.dim() - 1
    every = (torch.arange(size) if held is None else held for size, held in zip(tensor.shape, index, strict=True))
    return tuple(held.to(tensor.device).view(-1, *(1,) * (last - axis)) for axis, held in enumerate(every))


def _run(held: Tensor) -> slice | None:
    """The index as a slice, many times faster, where its positions follow each other."""
    positions = held.tolist()
    start = positions[0] if positions else 0
    return slice(start, start + len(positions)) if positions == [*range(start, start + len(positions))] else None


class BufferPolicy(StrEnum):
    """What becomes of the running statistics of normalisation layers. Counters never travel."""

    AGGREGATE = "aggregate"
    """They travel and are averaged like parameters."""
    LOCAL = "local"
    """Every client keeps its own."""
    BATCH_STATISTICS = "batch-statistics"
    """Nobody uses them: every batch is normalised by its own (:func:`use_batch_statistics`)."""
    RECALIBRATE = "recalibrate"
    """Whoever evaluates computes them anew from data of its own (:func:`recalibrate`), so they need not travel."""


def travels(policy: BufferPolicy, is_buffer: bool, dtype: torch.dtype) -> bool:
    """Whether a tensor of a model belongs in a message: parameters always, buffers of floating point under AGGREGATE.

    Integer tensors never do.
    """
    return dtype.is_floating_point and (not is_buffer or policy is BufferPolicy.AGGREGATE)


_Normalisation = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def use_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the block normalisation layers use the batch's statistics, in training and in evaluation mode.

    The running statistics are neither read nor updated, and are absent from the state dict, until the block ends.
    """
    layers = [layer for layer in _normalisation(model) if layer.track_running_stats]
    kept = [[getattr(layer, name) for name in _STATISTICS] for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
            for name in _STATISTICS:
                setattr(layer, name, None)
        yield
    finally:
        for layer, values in zip(layers, kept, strict=True):
            layer.track_running_stats = True
            for name, value in zip(_STATISTICS, values, strict=True):
                setattr(layer, name, value)


def at_least_two(x: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "rows ..."]:
    """The rows, or a single one twice: by itself it has no variance where a map is one point, twice it has 0."""
    return x if len(x) > 1 else torch.cat([x, x])


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Compute the running statistics of normalisation layers anew, from inputs ``[batch, *sample]``.

    They become the plain averages of the batches' means and unbiased variances, every batch counting the same: one
    batch of all data gives the statistics of the data. Only normalisation layers run in training mode, so dropout does
    not blur the statistics. Modes and momentum are put back.

    Raises:
        DataError: there are no batches; the model is then unchanged.
    """
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise DataError("recalibrate needs at least one batch")
    layers = [layer for layer in _normalisation(model) if layer.track_running_stats]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None
        for batch in chain([first], remaining):
            model(batch)
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _normalisation(model: nn.Module) -> Iterator[nn.modules.batchnorm._NormBase]:
    return (module for module in model.modules() if isinstance(module, _Normalisation))
