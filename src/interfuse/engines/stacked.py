"""The training loop for several clients at once: their tensors stacked, one step of the optimizer for all of them.

It computes what :func:`interfuse.training.fit` computes one after the other, with other rounding: an objective sees a
view of the model, in which :func:`torch.func.functional_call` and :func:`torch.func.vmap` put each client's tensors in
place. What cannot be computed so (several losses with a rule, other kinds of layers, randomness, hooks) is not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interfuse.data import Batch, Drawn
from interfuse.data.inputs import named, together
from interfuse.models import SplitModel
from interfuse.training import (
    DivergedError,
    FitOptions,
    Fitted,
    Objective,
    Optimizer,
    OptimizerState,
    diverged,
    parts_of,
)

T = TypeVar("T")
STEP = "step"
"""The slot of an optimizer that counts its steps: a number."""

PERCEPTRON: frozenset[type[nn.Module]] = frozenset(
    {
        SplitModel,
        nn.Module,
        nn.Sequential,
        nn.Identity,
        nn.Flatten,
        nn.Unflatten,
        nn.Linear,
        nn.LayerNorm,
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Tanh,
        nn.Sigmoid,
        nn.LeakyReLU,
        nn.ELU,
        nn.Softplus,
        nn.Softmax,
        nn.LogSoftmax,
    }
)
"""Linear layers, and those that work on each element or row: stacked, they are one matrix product for all clients."""
CONVOLUTIONAL = PERCEPTRON | {
    nn.Conv1d,
    nn.Conv2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.GroupNorm,
}
"""And those that a GPU computes faster for many clients at once; a processor does not."""


LAYERS: Mapping[str, frozenset[type[nn.Module]]] = {"linear": PERCEPTRON, "all": CONVOLUTIONAL}
"""By :attr:`interfuse.numerics.Numerics.layers_together`."""

Form = tuple[Any, ...]


class NotTogetherError(Exception):
    """These calls cannot be computed together. Nothing of their clients has changed."""


@dataclass
class FitCall:
    """A call of :func:`interfuse.training.fit`: its arguments."""

    model: SplitModel
    losses: Objective | Mapping[str, Objective]
    batches: Iterable[Batch]
    slots: OptimizerState
    round: int
    autocast: torch.dtype | None
    options: FitOptions

    def form(self, layers: Collection[type[nn.Module]]) -> Form | None:
        """What calls must have in common to be computed together; None where this one cannot be at all."""
        options, losses, model = self.options, self.losses, self.model
        given = {name for name, value in options.items() if value is not None}
        if isinstance(losses, Mapping) or not {"lr", "train", "optimizer"} >= given:
            return None
        if not isinstance(self.batches, Drawn) and not (
            isinstance(self.batches, Sequence) and not _has_graph([named(batch.x) for batch in self.batches])
        ):  # batches that come from elsewhere may be made with the model as it is by then
            return None
        opened = set(_opened(model, layers))
        if type(model) is not SplitModel or not self.trained or not opened.issuperset(self.trained) or _hooked(model):
            return None
        function, keywords = parts_of(losses)
        if _has_graph(keywords):  # their gradients are wanted too
            return None
        slots = {
            key: {name: float(slot) if name == STEP else slot.shape for name, slot in own.items()}
            for key, own in self.slots.items()
        }
        modules = [(type(module), module.training) for module in model.modules()]
        parameters = [(key, p.shape, p.dtype, p.requires_grad) for key, p in model.named_parameters()]
        return self.round, self.autocast, dict(options), function, _form(keywords), slots, modules, parameters

    @cached_property
    def parts(self) -> Collection[str]:
        train = self.options.get("train", "all")
        return self.model.part_names if train == "all" else (train,) if isinstance(train, str) else tuple(train)

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        return {key: p for key, p in self.model.parameters_of(self.parts).items() if p.requires_grad}


def prepare() -> None:
    """Have PyTorch import what it needs, before a process forks: each of its children would take a second for it."""
    vmap(functional.cross_entropy)(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64))


def alike(calls: Mapping[T, FitCall], layers: Collection[type[nn.Module]]) -> list[list[T]]:
    """Who can be computed together, two or more each."""
    found: list[tuple[Form, list[T]]] = []
    for name, call in calls.items():
        if (form := call.form(layers)) is not None:
            same = next((members for known, members in found if _equal(known, form)), None)
            if same is None:
                found.append((form, [name]))
            else:
                same.append(name)
    return [members for _, members in found if len(members) > 1]


def fit_together(calls: Sequence[FitCall], layers: Collection[type[nn.Module]]) -> list[Fitted | DivergedError]:
    """Carry out calls of equal :meth:`FitCall.form`. A client whose loss diverges is alone with it.

    In each step the clients whose batches have one shape are computed together; those that have no batch left are done.
    What is not trained is first taken for unused, since copies of it for each client may be large.

    Raises:
        NotTogetherError: the objective cannot be computed so, as its first step showed. No batch is lost.
    """
    try:
        return _fit(calls, calls[0].trained.keys(), layers)
    except NotTogetherError:
        return _fit(calls, _opened(calls[0].model, layers), layers)


def _fit(
    calls: Sequence[FitCall], opened: Collection[str], layers: Collection[type[nn.Module]]
) -> list[Fitted | DivergedError]:
    """:func:`fit_together` with the tensors of these keys alone."""
    first = calls[0]
    lr = first.options["lr"]
    rate = (lambda round, step: lr) if isinstance(lr, int | float) else lr
    coming = [iter(call.batches) for call in calls]
    losses = torch.zeros(len(calls), device=next(iter(first.trained.values())).device)
    steps, samples, rates = [0] * len(calls), [0] * len(calls), [0.0] * len(calls)
    stacks: dict[tuple[int, ...], _Stack] = {}
    with first.model.training_parts(first.parts), _closed(first.model, set(opened), layers) as closed:
        for number in count():
            now = {who: batch for who, batches in enumerate(coming) if (batch := next(batches, None)) is not None}
            shapes: dict[Any, list[int]] = defaultdict(list)
            for who, batch in now.items():
                of_inputs = tuple((name, x.shape, x.dtype) for name, x in named(batch.x).items())
                shapes[of_inputs, batch.y.shape, batch.y.dtype].append(who)
            groups = [tuple(members) for members in shapes.values()]
            if stacks.keys() != set(groups):
                for stack in stacks.values():
                    stack.write_back()
                stacks = {members: _Stack([calls[who] for who in members], closed) for members in groups}
            if not now:
                break
            current = rate(first.round, number)
            try:
                found = {who: stacks[who].differentiate([now[one] for one in who], number) for who in groups}
            except Exception as error:  # an objective is foreign code: whatever it raises, it may run by itself
                if number:
                    raise
                for who, batches in enumerate(coming):
                    calls[who].batches = chain([now[who]] if who in now else [], batches)
                raise NotTogetherError from error
            for members, of_step in found.items():
                stacks[members].move(current)
                losses[list(members)] += of_step
            for who, batch in now.items():
                steps[who], samples[who], rates[who] = steps[who] + 1, samples[who] + len(batch.y), rates[who] + current
    means = [total / taken if taken else 0.0 for total, taken in zip(losses.tolist(), steps, strict=True)]
    return [
        Fitted(taken, rows, summed, mean) if math.isfinite(mean) else diverged(taken, mean)
        for taken, rows, summed, mean in zip(steps, samples, rates, means, strict=True)
    ]


class _Stack:
    """Some clients with one tensor for all of them by key, the client first."""

    def __init__(self, calls: Sequence[FitCall], closed: Mapping[str, Tensor]) -> None:
        first, self._calls, self._closed = calls[0], calls, closed
        self._loss = _Loss(first)
        self._trained = {
            key: nn.Parameter(torch.stack([call.trained[key].detach() for call in calls])) for key in first.trained
        }
        frozen = [dict(call.model.named_parameters()) for call in calls]
        kept = [key for key in frozen[0] if key not in self._trained and key not in closed]
        self._frozen = _stacked([{key: own[key].detach() for key in kept} for own in frozen])
        self._keywords = _stacked([parts_of(cast(Objective, call.losses))[1] for call in calls])
        self._slots: OptimizerState = {
            key: {name: slot.clone() if name == STEP else _all_of(calls, key, name) for name, slot in own.items()}
            for key, own in first.slots.items()
        }
        chosen = first.options.get("optimizer", "sgd")
        optimizer = Optimizer(chosen) if isinstance(chosen, str) else chosen
        self.move = optimizer.stepper(self._trained, self._slots)

    def differentiate(self, batches: Sequence[Batch], step: int) -> Float[Tensor, "clients"]:
        """Leave the gradient of a step in ``.grad``; the loss of each client."""

        def loss(trained: Mapping[str, Tensor], frozen: Any, x: Any, y: Tensor, keywords: Any) -> Tensor:
            tensors = {f"model.{key}": tensor for key, tensor in {**self._closed, **frozen, **trained}.items()}
            found: Tensor = functional_call(self._loss, tensors, (Batch(together(x), y), step, keywords))
            return found

        x, y = _stacked([dict(named(batch.x)) for batch in batches]), _stacked([batch.y for batch in batches])
        values, dims = zip(self._frozen, x, y, self._keywords, strict=True)
        with _Products():
            losses = vmap(loss, in_dims=(0, *dims))(self._trained, *values)
        gradients = torch.autograd.grad(losses.sum(), list(self._trained.values()), allow_unused=True)
        for parameter, gradient in zip(self._trained.values(), gradients, strict=True):
            parameter.grad = gradient
        return losses.detach()

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the clients what is theirs."""
        for place, call in enumerate(self._calls):
            for key, parameter in call.trained.items():
                parameter.copy_(self._trained[key][place])
            for key, own in self._slots.items():
                call.slots[key] = {name: _own(call.trained.get(key), slot, place) for name, slot in own.items()}


class _Loss(nn.Module):
    """The loss of a view of the model as ``forward``, the one method that PyTorch calls with other tensors in place."""

    def __init__(self, call: FitCall) -> None:
        super().__init__()
        self.model, self._autocast = call.model, call.autocast
        self._objective = parts_of(cast(Objective, call.losses))[0]

    def forward(self, batch: Batch, step: int, keywords: Mapping[str, Any]) -> Tensor:
        with nullcontext() if self._autocast is None else torch.autocast(batch.y.device.type, self._autocast):
            return self._objective(self.model, batch, step, **keywords)


class _Products(TorchFunctionMode):
    """Linear layers with the weights in front: so their gradients come as the weights lie in memory, and rows that all
    clients share are one matrix product for all. With the weights behind, a copy costs more than the product."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and len(args) == 3 and args[0].dim() == 2:
            x, weight, bias = args
            product = (weight @ x.mT).mT
            return product if bias is None else product + bias
        return func(*args, **(kwargs or {}))


class _Closed(Tensor):
    """Stands for a tensor that an objective must not touch."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotTogetherError("the objective uses a tensor of a layer that is not stacked")


@contextmanager
def _closed(
    model: SplitModel, opened: Collection[str], layers: Collection[type[nn.Module]]
) -> Iterator[dict[str, Tensor]]:
    """What stands for all other tensors inside the block, by key. Layers of another kind refuse to run in it."""

    def refuse(module: nn.Module, x: object) -> None:
        raise NotTogetherError(f"the objective runs a {type(module).__name__}")

    keys = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    hooks = [m.register_forward_pre_hook(refuse) for m in model.modules() if type(m) not in layers]
    try:
        yield {key: torch.empty(0).as_subclass(_Closed) for key in keys if key not in opened}
    finally:
        for hook in hooks:
            hook.remove()


def _opened(model: SplitModel, layers: Collection[type[nn.Module]]) -> list[str]:
    """Keys of the parameters of such layers."""
    modules = dict(model.named_modules())
    return [key for key, _ in model.named_parameters() if type(modules[key.rpartition(".")[0]]) in layers]


def _hooked(model: SplitModel) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in model.modules()
    ) or any(parameter._backward_hooks for parameter in model.parameters())


def _has_graph(value: Any) -> bool:
    """Whether a gradient of a tensor in it is wanted."""
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, Mapping):
        return any(map(_has_graph, value.values()))
    return isinstance(value, tuple | list) and any(map(_has_graph, value))


def _form(value: Any) -> Any:
    """What values must have in common to be stacked: everything but the numbers in tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.requires_grad
    if isinstance(value, Mapping):
        return {key: _form(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_form(item) for item in value]
    return value


def _equal(form: Form, other: Form) -> bool:
    try:
        return form == other
    except (RuntimeError, ValueError):  # something foreign that does not compare to one truth
        return False


def _stacked(values: Sequence[Any]) -> tuple[Any, Any]:
    """Values of one form as one value, and where the clients lie in its tensors; None, where all share a tensor."""
    first = values[0]
    if isinstance(first, Tensor):
        shared = all(_place(value) == _place(first) for value in values)
        return (first, None) if shared else (torch.stack(list(values)), 0)
    if isinstance(first, Mapping):
        pairs = {key: _stacked([value[key] for value in values]) for key in first}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
    if isinstance(first, tuple | list):
        found = [_stacked(items) for items in zip(*values, strict=True)]
        return tuple(pair[0] for pair in found), tuple(pair[1] for pair in found)
    return first, None


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _all_of(calls: Sequence[FitCall], key: str, name: str) -> Tensor:
    slots = [call.slots[key][name] for call in calls]
    return torch.stack([slot.to(next(iter(calls[0].trained.values())).device) for slot in slots])


def _own(parameter: Tensor | None, slot: Tensor, place: int) -> Tensor:
    """A client's slot, laid out like its parameter; a count of steps is that of all."""
    if not slot.dim():
        return slot.clone()
    return slot[place].clone() if parameter is None else torch.empty_like(parameter).copy_(slot[place])
