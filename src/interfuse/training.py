"""The one training loop: objectives, rules that combine gradients, schedules, and :func:`fit`.

**An objective is a value.** ``objective(model, batch, step)`` is the loss of a view of a model on a batch, a tensor
``[]``; ``step`` counts from 0 in each call of :func:`fit`. What else it needs are keyword arguments that
:func:`functools.partial` binds: tensors, mappings of tensors by key, and settings::

    client.fit(total(cross_entropy, partial(proximal, anchor=received.tensors, mu=0.1)), ...)

So the clients of a method share one function and differ in ``partial.keywords`` alone, and an engine may hand over the
live module or one whose tensors :func:`torch.func.functional_call` and :func:`torch.func.vmap` put in place. For that

- a module-level function: no closure over a client's tensors, no method of a client or server;
- no state: it changes nothing but normalisation statistics of the model, and draws only from PyTorch's global
  generator, which is seeded around each handler;
- no values of tensors in Python: no ``.item()``, ``int(tensor)`` or ``if tensor``; index with tensors, choose with
  :func:`torch.where`. Shapes and ``step`` are plain numbers;
- another model is tensors by key, run with :func:`interfuse.models.run_with`; it is not a module that is bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Protocol, Required, Self, TypedDict, TypeVar, Unpack

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from pydantic_core.core_schema import CoreSchema, no_info_plain_validator_function
from torch import Tensor
from torch.nn import functional
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from interfuse.data import Batch, Task
from interfuse.errors import ConfigError, InterfuseError, ModelError
from interfuse.models import SplitModel
from interfuse.models.trial import REFUSED
from interfuse.references import IN_MEMORY, is_reference, load_reference, reference_of

T = TypeVar("T")

OptimizerName = Literal["sgd", "adam", "adamw"]
OptimizerState = dict[str, dict[str, Tensor]]
"""Slots of an optimizer by parameter key and slot name."""


class DivergedError(InterfuseError):
    """The loss became NaN or infinite."""


Objective = Callable[[SplitModel, Batch, int], Float[Tensor, ""]]
"""A loss of a view of the model, a batch, and the step within :func:`fit`, from 0. It sees only its arguments."""

Gradients = dict[str, Tensor]
Combine = Callable[[Mapping[str, Gradients], Mapping[str, Tensor]], Gradients]
"""From the gradients of every named loss and the current parameters, by key, to the gradient of the step."""


def cross_entropy(model: SplitModel, batch: Batch, step: int) -> Tensor:
    """Mean cross entropy of the whole model."""
    return functional.cross_entropy(model(batch.x), batch.y)


def modular_cross_entropy(model: SplitModel, batch: Batch, step: int) -> Tensor:
    """Mean cross entropy of the modular block on features of the fusion layer."""
    return functional.cross_entropy(model.modular(batch.x), batch.y)


def supervised(model: SplitModel, batch: Batch, step: int, *, task: Task) -> Tensor:
    """The task's loss of the whole model."""
    return task.loss(model(batch.x), batch.y)


def supervised_modular(model: SplitModel, batch: Batch, step: int, *, task: Task) -> Tensor:
    """The task's loss of the modular block on features of the fusion layer."""
    return task.loss(model.modular(batch.x), batch.y)


def pull_back(model: SplitModel, batch: Batch, step: int, *, gradient: Float[Tensor, "batch d"]) -> Tensor:
    """⟨output, gradient⟩: its gradient is that of the loss behind the cut (split learning).

    The ``x`` of the batch is the front's output, with the graph in which it was made: the front is not run again.
    """
    return (batch.features * gradient).sum()


def gradient_of_features(loss: Objective, model: SplitModel, batch: Batch) -> Float[Tensor, "batch d"]:
    """∂loss/∂x on features of the fusion layer; the model stays as it is."""
    z = batch.features.detach().requires_grad_()
    with model.training_parts(()):
        (gradient,) = torch.autograd.grad(loss(model, Batch(z, batch.y), 0), z)
    return gradient


def proximal(model: SplitModel, batch: Batch, step: int, *, anchor: Mapping[str, Tensor], mu: float) -> Tensor:
    """(mu/2) ‖w − anchor‖² over the anchor's trainable keys, as a sum of squares (FedProx)."""
    parameters = dict(model.named_parameters())
    squares = [(p - anchor[key]).square().sum() for key, p in parameters.items() if key in anchor]
    return 0.5 * mu * torch.stack(squares).sum()


def total(*objectives: Objective) -> Objective:
    """The sum of objectives: how penalties compose."""
    functions, keywords = zip(*map(parts_of, objectives), strict=True)
    return partial(summed, functions=functions, keywords=keywords)


def summed(
    model: SplitModel,
    batch: Batch,
    step: int,
    *,
    functions: Sequence[Callable[..., Tensor]],
    keywords: Sequence[Mapping[str, Any]],
) -> Tensor:
    """What :func:`total` makes: the functions that all clients share, and apart from them what is bound for each."""
    bound = zip(functions, keywords, strict=True)
    return torch.stack([function(model, batch, step, **own) for function, own in bound]).sum()


def parts_of(objective: Objective) -> tuple[Callable[..., Tensor], Mapping[str, Any]]:
    """The function that clients share, and what is bound for each of them by keyword."""
    if isinstance(objective, partial) and not objective.args:
        return objective.func, objective.keywords
    return objective, {}


class Schedule(Protocol):
    """A learning rate as a function of the round and of the step within one call of :func:`fit`, both from 0."""

    def __call__(self, round: int, step: int) -> float: ...


@dataclass(frozen=True)
class Exponential:
    """``start`` · ``decay`` ** round."""

    start: Annotated[float, Gt(0)]
    decay: Annotated[float, Gt(0)]

    def __call__(self, round: int, step: int) -> float:
        return self.start * self.decay**round


@dataclass(frozen=True)
class Cosine:
    """From ``start`` in round 0 to ``end`` in round ``rounds``, along half a cosine."""

    start: Annotated[float, Gt(0)]
    rounds: Annotated[int, Ge(1)]
    end: Annotated[float, Ge(0)] = 0.0

    def __call__(self, round: int, step: int) -> float:
        progress = min(round / self.rounds, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class OwnSchedule:
    """A :class:`Schedule` of the user, where a setting is given a function or the reference of one.

    Nothing is loaded until it is called, so that a reference from elsewhere can be refused first.

    Attributes:
        function: Its reference, such as ``mine.py:warm_up``.
    """

    function: str

    @classmethod
    def of(cls, given: Any) -> Self:
        """The schedule that a setting's value means.

        Raises:
            ValueError: it means none.
        """
        if isinstance(given, cls):
            return given
        name = given["function"] if isinstance(given, Mapping) and given.keys() == {"function"} else given
        if isinstance(name, str) and is_reference(name):
            if name.startswith(IN_MEMORY):
                raise ValueError(f"{name} was given as an object; give it again")
            return cls(name)
        if not callable(given) or isinstance(given, Exponential | Cosine):
            raise ValueError("no function lr(round, step), nor the reference of one, such as mine.py:warm_up")
        made = cls(reference_of(given))
        vars(made)["_loaded"] = given
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return no_info_plain_validator_function(cls.of)

    @cached_property
    def _loaded(self) -> Any:
        return load_reference(self.function)

    def __call__(self, round: int, step: int) -> float:
        try:
            rate = float(self._loaded(round, step))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"schedule {self.function}: {error}; write lr(round, step), which returns a number"
            ) from error
        if not 0 <= rate < math.inf:
            raise ConfigError(f"schedule {self.function}: lr({round}, {step}) is {rate}; it should be 0 or more")
        return rate


Rate = Annotated[float, Gt(0)]
LearningRate = Rate | Exponential | Cosine | OwnSchedule


@dataclass(frozen=True)
class Optimizer:
    """One of PyTorch's optimizers. ``momentum`` belongs to SGD, ``betas`` to Adam and AdamW.

    The rules are PyTorch's own functions, fused where memory layouts allow it. Its optimizer classes are not used:
    the first of them that is made imports PyTorch's compiler, which takes seconds.
    """

    name: OptimizerName = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def stepper(self, parameters: Mapping[str, torch.nn.Parameter], slots: OptimizerState) -> Callable[[float], None]:
        """A step as a function of the learning rate: it moves the parameters that have a gradient.

        Slots are laid out like their parameters, made where missing, and updated in place.
        """
        for key in slots.keys() & parameters.keys():
            own = slots[key]
            slots[key] = {name: _in_place_of(parameters[key], slot) for name, slot in own.items()}
        if self._plain(parameters.values()):
            return partial(_plain_sgd, list(parameters.values()))
        # a fused kernel walks through memory, without regard to strides
        fused = all(_dense(parameter) for parameter in parameters.values())

        @torch.no_grad()
        def step(lr: float) -> None:
            moved: dict[str, Tensor] = {key: p for key, p in parameters.items() if p.grad is not None}
            if not moved:
                return
            for key, parameter in moved.items():
                if key not in slots:
                    slots[key] = self._first_slots(parameter)
            own = [slots[key] for key in moved]
            gradients = [_laid_out_like(p, p.grad) for p in moved.values() if p.grad is not None]
            self._apply(list(moved.values()), gradients, own, lr, fused)
            # fused kernels leave the counters by which changes are noticed as they were
            torch.autograd.graph.increment_version([*moved.values(), *(slot for kept in own for slot in kept.values())])

        return step

    def _plain(self, parameters: Iterable[Tensor]) -> bool:
        """Whether a step is one addition: plain SGD where its bits are those of the fused kernel."""
        exact = all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in parameters)
        return self.name == "sgd" and not self.momentum and not self.weight_decay and exact

    def _apply(
        self, tensors: list[Tensor], gradients: list[Tensor], slots: list[dict[str, Tensor]], lr: float, fused: bool
    ) -> None:
        if self.name == "sgd":
            sgd(
                tensors,
                gradients,
                [own.get("momentum_buffer") for own in slots],
                fused=fused,
                foreach=not fused,
                lr=lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
        else:
            adam(
                tensors,
                gradients,
                [own["exp_avg"] for own in slots],
                [own["exp_avg_sq"] for own in slots],
                [],
                [own["step"] for own in slots],
                fused=fused,
                foreach=not fused,
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=1e-8,
                weight_decay=self.weight_decay,
                decoupled_weight_decay=self.name == "adamw",
                amsgrad=False,
                maximize=False,
            )

    def _first_slots(self, parameter: Tensor) -> dict[str, Tensor]:
        if self.name == "sgd":
            return {"momentum_buffer": torch.zeros_like(parameter)} if self.momentum else {}
        averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return averages | {"step": torch.zeros((), device=parameter.device)}


@torch.no_grad()
def _plain_sgd(parameters: Sequence[torch.nn.Parameter], lr: float) -> None:
    moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
    if moved:
        torch._foreach_add_(moved, [p.grad for p in moved if p.grad is not None], alpha=-lr)


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill one piece of memory."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return extent == tensor.numel()


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with its elements where the parameter has them in memory."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter).copy_(tensor)


@dataclass(frozen=True)
class Fitted:
    """What a call of :func:`fit` did."""

    steps: int
    samples: int
    learning_rate_sum: float
    loss: float
    """Mean over the steps of the sum of all losses; 0 without a step."""
    left_out: int = 0
    """Rows that were not trained on: each was a batch by itself, and PyTorch refused it; see :func:`unless_refused`."""
    outputs: Batch | None = None
    """What the part that ``outputs_of`` names made of the batches, each before its step, with their labels; float32.
    None where no part was named, or no step taken."""


class FitOptions(TypedDict, total=False):
    """How to train: the options that :func:`fit` and the ``fit`` of clients and servers have in common.

    Attributes:
        lr: Learning rate: a number, or a schedule of round and step.
        train: Names of the parts to train, or ``"all"`` (the default).
        combine: From the gradients of several losses to one; by default their sum.
        optimizer: Its name, or an :class:`Optimizer`; ``"sgd"`` by default.
        clip: Largest global norm of the gradient of a step.
        outputs_of: A part whose outputs are kept, see :class:`Fitted`: the first that the losses let it make of each
            batch.
        scales: By part or group of keys, what the learning rate of its parameters is multiplied with; 1 for others.
    """

    lr: Required[float | Schedule]
    train: str | Collection[str]
    combine: Combine | None
    optimizer: Optimizer | OptimizerName
    clip: float | None
    outputs_of: str | None
    scales: Mapping[str, float]


class Trainer(Protocol):
    """What trains as :func:`fit` does."""

    def __call__(
        self,
        model: SplitModel,
        losses: Objective | Mapping[str, Objective],
        batches: Iterable[Batch],
        *,
        slots: OptimizerState | None = None,
        round: int = 0,
        autocast: torch.dtype | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted: ...


def fit(
    model: SplitModel,
    losses: Objective | Mapping[str, Objective],
    batches: Iterable[Batch],
    *,
    slots: OptimizerState | None = None,
    round: int = 0,
    autocast: torch.dtype | None = None,
    **options: Unpack[FitOptions],
) -> Fitted:
    """Train named parts of a model on given batches.

    Parts that are not trained are frozen: no gradient reaches their parameters, and they run in evaluation mode, so
    their normalisation statistics stay as they are. A batch whose ``x`` requires a gradient finds it in ``x.grad``
    afterwards, unless gradients are combined.

    Args:
        losses: One objective, or several by name.
        slots: State of the optimizer from an earlier call, updated in place; None starts anew.
        round: The round, for schedules.
        autocast: Compute objectives with PyTorch's autocast to this dtype; parameters and gradients stay as they are.
        options: See :class:`FitOptions`.

    Raises:
        DivergedError: a loss became NaN or infinite.
        ModelError: ``outputs_of`` names no part, or one that the losses do not run.
    """
    lr, train, combine = options["lr"], options.get("train", "all"), options.get("combine")
    optimizer, clip, kept = options.get("optimizer", "sgd"), options.get("clip"), options.get("outputs_of")
    objectives = losses if isinstance(losses, Mapping) else {"loss": losses}
    parts = model.part_names if train == "all" else (train,) if isinstance(train, str) else tuple(train)
    parameters = {key: p for key, p in model.parameters_of(parts).items() if p.requires_grad}
    rate = (lambda round, step: lr) if isinstance(lr, int | float) else lr
    settings = Optimizer(optimizer) if isinstance(optimizer, str) else optimizer
    step = _stepper(model, settings, parameters, {} if slots is None else slots, options.get("scales", {}))
    device = next((p.device.type for p in parameters.values()), "cpu")
    steps = samples = left_out = 0
    rates = 0.0
    losses_so_far = torch.zeros(())
    outputs: list[Batch] = []
    _forget_gradients(parameters)

    def forward(batch: Batch) -> dict[str, Tensor]:
        with nullcontext() if autocast is None else torch.autocast(device, autocast):
            return {name: objective(model, batch, steps) for name, objective in objectives.items()}

    recording: AbstractContextManager[list[Tensor]] = nullcontext([]) if kept is None else model.recording(kept)
    with model.training_parts(parts), recording as made:
        for batch in batches:
            made.clear()
            losses_now = unless_refused(model, batch, forward)
            if losses_now is None:
                left_out += len(batch.y)
                continue
            if kept is not None:
                outputs.append(_first_of(made, batch, kept))
            current = rate(round, steps)
            loss = _differentiate(losses_now, combine, parameters)
            if clip is not None and parameters:
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), clip)
            step(current)
            _forget_gradients(parameters)
            losses_so_far = losses_so_far + loss
            steps, samples, rates = steps + 1, samples + len(batch.y), rates + current
    mean = float(losses_so_far) / steps if steps else 0.0
    if not math.isfinite(mean):
        raise diverged(steps, mean)
    return Fitted(steps, samples, rates, mean, left_out, _joined(outputs) if outputs else None)


def _stepper(
    model: SplitModel,
    optimizer: Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    slots: OptimizerState,
    scales: Mapping[str, float],
) -> Callable[[float], None]:
    """A step of all parameters, of which some have another learning rate; see :class:`FitOptions`."""
    scale = {key: factor for part, factor in scales.items() for key in model.parameters_of(part)}
    by_factor: dict[float, dict[str, torch.nn.Parameter]] = {}
    for key, parameter in parameters.items():
        by_factor.setdefault(scale.get(key, 1.0), {})[key] = parameter
    steppers = [(factor, optimizer.stepper(some, slots)) for factor, some in by_factor.items()]
    if len(steppers) == 1 and steppers[0][0] == 1.0:
        return steppers[0][1]

    def step(lr: float) -> None:
        for factor, stepper in steppers:
            stepper(lr * factor)

    return step


def diverged(steps: int, mean: float) -> DivergedError:
    """What is wrong with this mean loss, and what to do."""
    return DivergedError(f"training diverged: the mean loss of {steps} steps is {mean}; try a lower learning rate")


def _first_of(made: Sequence[Tensor], batch: Batch, part: str) -> Batch:
    """The first of the outputs that a part made of a batch, with the batch's labels."""
    if not made:
        raise ModelError(f"outputs_of = {part!r}, but the losses do not run this part; name one that they run")
    return Batch(made[0].float(), batch.y)


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(torch.cat([batch.features for batch in batches]), torch.cat([batch.y for batch in batches]))


def unless_refused(model: SplitModel, batch: Batch, work: Callable[[Batch], T]) -> T | None:
    """What ``work`` makes of a batch; None where the batch is one row and PyTorch refuses to normalise it.

    One row is refused where a channel has one value in all; a map of several points has a variance. Only PyTorch knows,
    in whatever layer. The statistics of layers that came before are then put back. What is refused with several rows
    could never be trained on, and is an error.
    """
    if len(batch.y) != 1:
        return work(batch)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        return work(batch)
    except ValueError as error:
        if not str(error).startswith(REFUSED):
            raise
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return None


def _forget_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def _in_place_of(parameter: Tensor, slot: Tensor) -> Tensor:
    """A slot, wherever it was kept, where the optimizer needs it: on the parameter's device, laid out like it."""
    slot = slot.to(parameter.device)
    return _laid_out_like(parameter, slot) if slot.shape == parameter.shape else slot


def _differentiate(
    losses: Mapping[str, Tensor], combine: Combine | None, parameters: Mapping[str, torch.nn.Parameter]
) -> Tensor:
    """Leave the gradient of a step in ``.grad`` and return the summed loss, detached."""
    loss = torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
    if combine is None:
        if parameters or loss.requires_grad:  # a part without parameters has nothing to train
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    gradients: dict[str, Gradients] = {}
    for position, (name, value) in enumerate(losses.items()):
        found = torch.autograd.grad(
            value, list(parameters.values()), retain_graph=position < len(losses) - 1, allow_unused=True
        )
        gradients[name] = {key: g for key, g in zip(parameters, found, strict=True) if g is not None}
    current = {key: parameter.detach() for key, parameter in parameters.items()}
    for key, gradient in combine(gradients, current).items():
        parameters[key].grad = gradient
    return loss.detach()
