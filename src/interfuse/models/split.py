"""Split models: named stages in order, grouped into named parts. The boundary between two parts is a cut."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from interfuse.data import Inputs
from interfuse.data.inputs import each, named, rows_of
from interfuse.errors import ModelError, nearest
from interfuse.models.outside import Outside

Parts = str | Collection[str]
"""One part or group of keys by name, or several. ``"base"`` and ``"modular"`` also name the two sides of the fusion
cut, ``"all"`` every tensor, ``"buffers"`` all that are no parameters."""

_BLOCKS = ("base", "modular")


class SplitModel(nn.Module):
    """A model as named stages in order, grouped into named parts.

    The stages are children under their own names, so the key of a tensor is ``"<stage>.<name inside>"``, and is equal
    in all models that share the stage, whatever their depth. Names may have dots: stage ``"layer1.0"`` has keys such as
    ``"layer1.0.conv1.weight"``.

    Parts are contiguous runs of stages and together cover all of them; a part may be empty (it is then the identity:
    split learning with the cut at the input). By default every stage is a part.

    Base block and modular block are the two sides of the *fusion cut*. It lies after the stage or part named
    ``"base"`` and before the one named ``"modular"``; without such a name, before the last part.

    Args:
        groups: Further named groups of keys, such as the shared matrices of some adapters; they can be trained, kept
            and sent by name like parts.
        given: Names of parts or groups whose tensors are given: frozen and common to all clients of the architecture,
            like a pre-trained backbone. They are never blanked, sent or committed, and stay in evaluation mode.

    Raises:
        ModelError: no stages, names that clash, parts that leave out, repeat or reorder stages, no single fusion cut,
            or a group with a key that the model has not.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        parts: Mapping[str, Sequence[str]] | None = None,
        *,
        groups: Mapping[str, Collection[str]] | None = None,
        given: Parts = (),
    ) -> None:
        super().__init__()
        chosen = {name: (name,) for name in stages} if parts is None else {p: tuple(s) for p, s in parts.items()}
        _check_names(tuple(stages))
        _check_cover(tuple(stages), chosen)
        self._stages = tuple(stages)
        self._parts = chosen
        self._fusion_cut = _fusion_cut(self._stages, chosen)
        for name, stage in stages.items():
            _nest(self, name, stage)
        self._places = _places(self)
        self._walked = _Walked(self)
        self._aliases = _aliases(self._places)
        self._first_modes: tuple[list[bool], list[bool]] | None = None
        self._outside: Outside | None = None
        trainable = {key for key, _ in self.named_parameters(remove_duplicate=False)}
        buffers = [key for key in self._places if key not in trainable]
        self._groups = {"all": tuple(self._places), "buffers": tuple(buffers)}
        for name, keys in (groups or {}).items():
            self._groups[name] = _checked_group(name, keys, self._places, {*self._groups, *_BLOCKS, *chosen})
        self._stage_by_key = {key: _stage_of(key, self._stages) for key in self._places}
        self._given: frozenset[str] = frozenset()
        self._first_buffers = {key: tensor.clone() for key, tensor in self.live(buffers).items()}
        self._give(self.keys_of(given))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_places", "_walked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._places, self._walked = _places(self), _Walked(self)  # a copy has other modules inside

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts, from input to output."""
        return tuple(self._parts)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages, from input to output."""
        return self._stages

    def forward(self, x: Inputs) -> Tensor:
        """All stages: samples ``[batch, *sample]`` to outputs, such as logits ``[batch, classes]``.

        Where samples have several inputs, ``x`` is a mapping of them by name, which the first stage gets as it is.
        """
        return self._through(self._stages, x)

    def run(self, x: Inputs, part: str) -> Tensor:
        """One part (or ``"base"``, ``"modular"``) alone.

        Raises:
            ModelError: the model has no such part.
        """
        return self._through(self._expand(part), x)

    # Properties, not methods: where a stage has the name "base", PyTorch (functional_call, get_submodule) must find
    # that child module under this attribute.
    @property
    def base(self) -> Callable[[Inputs], Tensor]:
        """The base block: samples ``[batch, *sample]`` to fusion-layer outputs, ``[batch, d]`` for a fused vector."""
        return self._block("base")

    @property
    def modular(self) -> Callable[[Inputs], Tensor]:
        """The modular block: fusion-layer outputs to outputs, such as logits ``[batch, classes]``."""
        return self._block("modular")

    @property
    def given_keys(self) -> frozenset[str]:
        """Keys of the tensors that are given: frozen, and common to all clients of the architecture."""
        return self._given

    def regrouped(self, parts: Mapping[str, Sequence[str]]) -> SplitModel:
        """The same stage modules (shared, not copied) with other cuts."""
        return self._of_stages(self._stages, parts)

    def grouped(self, groups: Mapping[str, Collection[str]], *, given: str) -> SplitModel:
        """The same stage modules (shared, not copied) and parts with these groups of keys; what is in none of them is
        given, as a group of that name.

        Raises:
            ModelError: as on construction.
        """
        named = {key for keys in groups.values() for key in keys}
        further = {**groups, given: [key for key in self.state_dict() if key not in named]}
        stages = {name: self.get_submodule(name) for name in self._stages}
        return SplitModel(stages, self._parts, groups=further, given=given)

    def crossed_by(self, down: nn.Module, up: nn.Module) -> SplitModel:
        """The same modules (shared, not copied) with ``down`` behind the base block and ``up`` in front of the modular
        one: what is between the two crosses the fusion cut. Keys of the stages on its sides get ``inner`` behind the
        stage.

        Raises:
            ModelError: there is no stage on a side of the cut.
        """
        if not 0 < self._fusion_cut < len(self._stages):
            raise ModelError("a fusion layer needs a base and a modular block with a stage each; cut elsewhere")
        last, first = self._stages[self._fusion_cut - 1], self._stages[self._fusion_cut]

        def renamed(keys: Iterable[str]) -> list[str]:
            sides = {last: f"{last}.inner", first: f"{first}.inner"}
            stages = self._stage_by_key
            return [sides.get(stages[key], stages[key]) + key.removeprefix(stages[key]) for key in keys]

        stages = {name: self.get_submodule(name) for name in self._stages}
        stages[last] = nn.Sequential(OrderedDict(inner=stages[last], down=down))
        stages[first] = nn.Sequential(OrderedDict(up=up, inner=stages[first]))
        groups = {name: renamed(keys) for name, keys in self._groups.items() if name not in _EVERYWHERE}
        made = SplitModel(stages, self._parts, groups=groups)
        made._give(renamed(self._given))
        return made

    def only(self, parts: Parts) -> SplitModel:
        """A model of the stages of these parts alone, the same modules (shared, not copied)."""
        return self._of_stages(self._expand(parts), None)

    def inner(self, name: str) -> SplitModel:
        """A network that is a stage of this one: see :func:`side_by_side`.

        Raises:
            ModelError: no stage of that name is a network.
        """
        found = self._modules.get(name)
        if not isinstance(found, SplitModel):
            networks = [stage for stage, module in self._modules.items() if isinstance(module, SplitModel)]
            raise ModelError(f"the model has no network {name!r} inside: {nearest(name, networks)}")
        return found

    def _of_stages(self, stages: Sequence[str], parts: Mapping[str, Sequence[str]] | None) -> SplitModel:
        keys = {key for key, stage in self._stage_by_key.items() if stage in stages}
        groups = {name: [k for k in g if k in keys] for name, g in self._groups.items() if name not in _EVERYWHERE}
        made = SplitModel({name: self.get_submodule(name) for name in stages}, parts, groups=groups)
        made._give([key for key in made._places if key in self._given])
        return made

    def _give(self, keys: Collection[str]) -> None:
        """Have these tensors given, under every key that they have."""
        named = set(self.named_once(keys))
        self._given = frozenset(key for key in self._places if self._aliases.get(key, key) in named)
        for key in self._given:
            module, name = self._places[key]
            if name in module._parameters:
                self.get_parameter(key).requires_grad_(False)

    def frozen(self, tensors: Mapping[str, Tensor]) -> SplitModel:
        """A copy with these values in place of its own, in evaluation mode, whose parameters ask for no gradient.

        What is given is shared, not copied.
        """
        shared = (module._parameters.get(name, module._buffers.get(name)) for module, name in self._given_places())
        copied = copy.deepcopy(self, {id(tensor): tensor for tensor in shared})
        copied.load(tensors)
        return copied.eval().requires_grad_(False)

    def _given_places(self) -> list[tuple[nn.Module, str]]:
        return [self._places[key] for key in self._given]

    def part_of(self, key: str) -> str:
        """The part that holds the parameter or buffer ``key``.

        Raises:
            ModelError: no tensor of the model has this key.
        """
        if key not in self._places:
            raise ModelError(f"the model has no tensor {key!r}: {nearest(key, self._places)}")
        return next(part for part, stages in self._parts.items() if self._stage_by_key[key] in stages)

    def tensors(self, parts: Parts | None = None, *, buffers: bool = True) -> dict[str, Tensor]:
        """Live tensors of the parts (None: all) that can travel, detached, in the order of the state dict.

        These are all parameters and, with ``buffers``, the floating-point buffers. Integer buffers (counters) are left
        out always, since no message carries them, and so is what is given; ``state_dict`` has them.
        """
        found = self.live(key for key in self.keys_of(parts) if key not in self._given)
        no_parameters = set(self._groups["buffers"])
        return {k: t for k, t in found.items() if k not in no_parameters or (buffers and t.is_floating_point())}

    def parameters_of(self, parts: Parts | None = None) -> dict[str, nn.Parameter]:
        """The parameters of the parts (None: all) by key, a shared one only once."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for key in self.keys_of(parts):
            module, name = self._places[key]
            if (parameter := module._parameters.get(name)) is not None:
                found.setdefault(id(parameter), (key, parameter))
        return dict(found.values())

    def keys_of(self, parts: Parts | None = None) -> list[str]:
        """Keys of all that the state dict has of the parts or groups (None: all), counters included, in its order.

        Raises:
            ModelError: there is no such part or group.
        """
        if parts is None:
            return list(self._places)
        if parts == "buffers":
            return list(self._groups[parts])
        named = (parts,) if isinstance(parts, str) else parts
        stages = self._expand([name for name in named if name not in self._groups])
        keys = {key for name in named if name in self._groups for key in self._groups[name]}
        return [key for key, stage in self._stage_by_key.items() if stage in stages or key in keys]

    def named_once(self, keys: Iterable[str]) -> list[str]:
        """The same keys, a parameter that has several by its first one."""
        return list(dict.fromkeys(self._aliases.get(key, key) for key in keys))

    def reset(self) -> None:
        """Put back what is no tensor of its own, as it was when this was first called: no gradients, the mode of
        modules, which parameters are frozen, attributes of modules and buffers that are not persistent."""
        self.outside.put_back()
        modules, parameters = self._walked.modules, list(self.parameters_of().values())
        if self._first_modes is None:
            self._first_modes = [m.training for m in modules], [p.requires_grad for p in parameters]
        _set_modes(modules, self._first_modes[0])
        for parameter, asks in zip(parameters, self._first_modes[1], strict=True):
            parameter.grad = None
            if parameter.requires_grad != asks:
                parameter.requires_grad_(asks)

    @property
    def outside(self) -> Outside:
        """What it has outside of its state dict, as it was when this, or :meth:`reset`, was first asked for."""
        if self._outside is None:
            self._outside = Outside(self, leave=SplitModel)
        return self._outside

    def live(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these keys, detached, sharing memory with the model."""
        found = {}
        for key in keys:
            module, name = self._places[key]
            tensor = module._parameters.get(name, module._buffers.get(name))
            if tensor is not None:  # a normalisation layer may be without its statistics for a while
                found[key] = tensor.detach()
        return found

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these very tensors, of the right shapes, for its own: they share memory with the model from now on."""
        for key, tensor in tensors.items():
            module, name = self._places[key]
            parameter = module._parameters.get(name)
            own = module._buffers[name] if parameter is None else parameter
            if own is None or own.shape != tensor.shape:
                raise ModelError(f"tensor {key!r} of shape {tuple(tensor.shape)} is none of this network")
            if parameter is not None:
                parameter.data = tensor
            else:
                module._buffers[name] = tensor

    def first_buffers(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """New tensors with the values that these buffers had in the beginning, by key."""
        first = self._first_buffers
        return {key: torch.empty_like(tensor).copy_(first[key]) for key, tensor in self.live(keys).items()}

    @torch.no_grad()
    def blank(self, owned: Collection[str] = ()) -> None:
        """Make scratch of all tensors but ``owned`` and those given: parameters become NaN, buffers what they were in
        the beginning."""
        for key, parameter in self.parameters_of().items():
            if key not in owned and key not in self._given:
                parameter.fill_(torch.nan)
        untouched = {*owned, *self._given}
        if first := {key: tensor for key, tensor in self._first_buffers.items() if key not in untouched}:
            self.load(first)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into the tensors of these keys, in place; the others stay. Nothing is written on an error.

        Raises:
            ModelError: a key is unknown, or a shape differs.
        """
        own = self.live([key for key in tensors if key in self._places])
        for key, tensor in tensors.items():
            if key not in own:
                raise ModelError(f"the model has no tensor {key!r}: {nearest(key, self._places)}")
            if own[key].shape != tensor.shape:
                raise ModelError(f"tensor {key!r}: expected shape {tuple(own[key].shape)}, found {tuple(tensor.shape)}")
        if own:
            torch._foreach_copy_([own[key] for key in tensors], list(tensors.values()))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and no gradients inside the block; every module's mode is put back after it."""
        with self.in_evaluation_mode(), torch.no_grad():
            yield

    @contextmanager
    def in_evaluation_mode(self) -> Iterator[None]:
        """Evaluation mode inside the block, with gradients; every module's mode is put back after it."""
        with self._modes_kept():
            if self._walked.alike:
                _set_modes(self._walked.modules, [False] * len(self._walked.modules))
            else:
                self.eval()
            yield

    @contextmanager
    def recording(self, part: str) -> Iterator[list[Tensor]]:
        """What a part (or ``"base"``, ``"modular"``) makes inside the block, a copy of each of its outputs, in order.

        Raises:
            ModelError: the model has no such part, it has no stage and so makes nothing, or its last module is used
                elsewhere too.
        """
        stages = self._expand(part)
        if not stages:
            raise ModelError(f"part {part!r} has no stage, so it makes nothing of its own; name another part")
        outputs: list[Tensor] = []

        def note(stage: nn.Module, x: object, output: Tensor) -> None:
            outputs.append(output.detach().clone())  # a copy: the next stage may work in place

        last = self.get_submodule(stages[-1])
        uses = [name for name, module in self.named_modules(remove_duplicate=False) if module is last]
        if len(uses) > 1:
            raise ModelError(
                f"part {part!r} ends with one module that is used as {' and '.join(uses)}: its outputs cannot be told "
                "apart; end the part with a module of its own"
            )
        hook = last.register_forward_hook(note)
        try:
            yield outputs
        finally:
            hook.remove()

    @contextmanager
    def training_parts(self, parts: Parts | None = None) -> Iterator[None]:
        """Train these parts (None: all) inside the block, and leave the others frozen.

        Frozen parts are in evaluation mode, so their batch normalisation keeps its statistics, and their parameters
        ask for no gradient. A parameter the model itself has frozen stays so. Everything is put back after the block.
        """
        trained = {id(parameter) for parameter in self.parameters_of(parts).values()}
        frozen = [p for p in self.parameters_of().values() if p.requires_grad and id(p) not in trained]
        with self._modes_kept():
            self._train(parts)
            for parameter in frozen:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(True)

    def _train(self, parts: Parts | None) -> None:
        """Training mode, and evaluation mode for what has nothing of these parts, or is given."""
        walked, name = self._walked, parts if parts is None or isinstance(parts, str) else tuple(parts)
        if name in walked.modes:
            return _set_modes(walked.modules, walked.modes[name])
        stages = self._stages_of(parts)
        self.train()
        for stage in self._stages:
            if stage not in stages:
                self.get_submodule(stage).eval()
        for module, _ in self._given_places():
            module.eval()
        if walked.alike:
            walked.modes[name] = [module.training for module in walked.modules]

    @contextmanager
    def _modes_kept(self) -> Iterator[None]:
        modules = self._walked.modules
        modes = [module.training for module in modules]
        try:
            yield
        finally:
            _set_modes(modules, modes)

    def _through(self, stages: Sequence[str], x: Inputs) -> Tensor:
        for stage in stages:
            # Not get_submodule: its checks cost as much as a small layer.
            x = attrgetter(stage)(self)(x)
        return cast(Tensor, x)  # several inputs need a stage that takes them: see `measure`

    def _block(self, name: str) -> Callable[[Inputs], Tensor]:
        child = self._modules.get(name)
        return partial(self._through, self._expand(name)) if child is None else child

    def _expand(self, parts: Parts | None) -> tuple[str, ...]:
        """The stages of the parts, in order."""
        if parts is None:
            return self._stages
        known = dict(zip(_BLOCKS, (self._stages[: self._fusion_cut], self._stages[self._fusion_cut :]), strict=True))
        known |= self._parts
        chosen: set[str] = set()
        for part in (parts,) if isinstance(parts, str) else parts:
            if part not in known:
                raise ModelError(f"the model has no part {part!r}: {nearest(part, [*known, *self._groups])}")
            chosen.update(known[part])
        return tuple(stage for stage in self._stages if stage in chosen)

    def _stages_of(self, parts: Parts | None) -> set[str]:
        """The stages that have something of these parts or groups, unless all their tensors are given."""
        named = self._parts if parts is None else (parts,) if isinstance(parts, str) else parts
        whole = self._expand([name for name in named if name not in self._groups])
        found = {*whole, *(self._stage_by_key[k] for name in named if name in self._groups for k in self._groups[name])}
        own = {stage for key, stage in self._stage_by_key.items() if key not in self._given}
        return {stage for stage in found if stage in own or stage not in self._stage_by_key.values()}


def run_with(
    model: SplitModel, tensors: Mapping[str, Tensor], x: Inputs, part: str | None = None, *, training: bool = False
) -> Tensor:
    """A part of the model (None: all of it) with these tensors in place of its own, of which nothing changes.

    In evaluation mode, unless ``training``. This is how an objective runs another model of the same architecture, such
    as the server's or the client's last one: tensors by key can be stacked by client, modules cannot.
    """
    with nullcontext() if training else model.in_evaluation_mode():
        named = {f"model.{key}": tensor for key, tensor in tensors.items()}
        found: Tensor = functional_call(_Run(model), named, (x, part))
        return found


class _Run(nn.Module):
    """Runs a part of a model as ``forward``, the one method that PyTorch calls with other tensors in place."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Inputs, part: str | None) -> Tensor:
        found: Tensor = self.model(x) if part is None else self.model.run(x, part)
        return found


def pair(base: nn.Module, modular: nn.Module) -> SplitModel:
    """A split model of two stages, ``base`` and ``modular``."""
    return SplitModel({"base": base, "modular": modular})


def side_by_side(networks: Mapping[str, SplitModel]) -> SplitModel:
    """Networks as the stages of one model, the same modules (shared, not copied): what :func:`interfuse.training.fit`
    trains in one step. An objective runs each by itself, ``model.inner(name)``; the model as a whole means nothing.
    """
    given = [f"{name}.{key}" for name, network in networks.items() for key in network.given_keys]
    return SplitModel(networks, groups={"given": given}, given="given")


@dataclass(frozen=True)
class ModelFacts:
    """What a model looks like from outside. Shapes are of one sample."""

    cut_shapes: Mapping[str, tuple[int, ...]]
    """Output shape by part."""
    parameters: Mapping[str, int]
    """Number of parameters by part."""
    fusion_shape: tuple[int, ...]
    """Output shape of the base block."""
    output_shape: tuple[int, ...]
    """Of one sample, such as as many logits as there are classes."""

    @property
    def fusion_width(self) -> int | None:
        """d, the length of the fused vector; None where the base block's output is no vector."""
        return self.fusion_shape[0] if len(self.fusion_shape) == 1 else None


TOKENS = "no built-in model takes tokens: bring one that embeds them (--models file.py:build, see README.md)"
"""What to do with samples that are whole numbers."""


def measure(model: SplitModel, example: Inputs) -> ModelFacts:
    """Run an example, two samples or more, through the model in evaluation mode and note the shapes.

    Raises:
        ModelError: a stage cannot take its input, or does not return one tensor with the batch first.
    """
    batch = rows_of(example)
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    x: Inputs = each(lambda tensor: tensor.to(device), example)
    if not isinstance(x, Tensor) and not model._parts[model.part_names[0]]:
        raise ModelError(f"part {model.part_names[0]!r} is empty, and a cut in front of {', '.join(x)} is no tensor")
    shapes = [tuple(x.shape[1:]) if isinstance(x, Tensor) else ()]
    with model.evaluating():
        for stage in model.stage_names:
            taken = ", ".join(f"shape {tuple(t.shape[1:])}{_type(t)}" for t in named(x).values())
            try:
                x = model.get_submodule(stage)(x)
            except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
                whole = any(not tensor.is_floating_point() for tensor in named(x).values())
                hint = f"; {TOKENS}" if whole else ""
                raise ModelError(f"stage {stage!r} cannot take samples of {taken}: {error}{hint}") from error
            if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != batch:
                found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise ModelError(f"stage {stage!r} must return one tensor [batch, ...]; {batch} samples gave {found}")
            shapes.append(tuple(x.shape[1:]))
    ends = accumulate(len(model._parts[part]) for part in model.part_names)
    return ModelFacts(
        cut_shapes={part: shapes[end] for part, end in zip(model.part_names, ends, strict=True)},
        parameters={
            part: sum(parameter.numel() for parameter in model.parameters_of(part).values())
            for part in model.part_names
        },
        fusion_shape=shapes[model._fusion_cut],
        output_shape=shapes[-1],
    )


def _type(tensor: Tensor) -> str:
    return "" if tensor.is_floating_point() else f" and type {tensor.dtype}"


_EVERYWHERE = ("all", "buffers")
"""Groups that every model has."""


class _Walked:
    """What walks through all modules of a model find, which takes as long as a small layer: its modules, and the modes
    that it has had, by the parts that were trained."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.modes: dict[str | tuple[str, ...] | None, list[bool]] = {}

    @cached_property
    def alike(self) -> bool:
        """No module has ideas of its own about modes, by its class or by itself, and had to be asked each time."""
        of_classes = all(type(m).train is nn.Module.train and type(m).eval is nn.Module.eval for m in self.modules)
        return of_classes and not any({"train", "eval"} & vars(module).keys() for module in self.modules)


def _set_modes(modules: Sequence[nn.Module], modes: Sequence[bool]) -> None:
    for module, training in zip(modules, modes, strict=True):
        if module.training is not training:  # for to set an attribute of a module is slow
            module.training = training


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each tensor of the state dict lies: the module that holds it, and its name there."""
    modules = dict(model.named_modules(remove_duplicate=False))
    split = ((key, key.rpartition(".")) for key, value in model.state_dict().items() if isinstance(value, Tensor))
    return {key: (modules[prefix], name) for key, (prefix, _, name) in split}


def _aliases(places: Mapping[str, tuple[nn.Module, str]]) -> dict[str, str]:
    """From the further keys of parameters that have several to their first ones."""
    first: dict[int, str] = {}
    own = {key: id(m._parameters[name]) for key, (m, name) in places.items() if name in m._parameters}
    return {key: first[parameter] for key, parameter in own.items() if first.setdefault(parameter, key) != key}


def _stage_of(key: str, stages: Sequence[str]) -> str:
    return next(stage for stage in stages if key.startswith(stage + "."))


def _checked_group(
    name: str, keys: Collection[str], places: Collection[str], taken: Collection[str]
) -> tuple[str, ...]:
    if name in taken:
        raise ModelError(f"group {name!r}: a part or group of the model has this name; choose another")
    for key in keys:
        if key not in places:
            raise ModelError(f"group {name!r}: the model has no tensor {key!r}: {nearest(key, places)}")
    return tuple(key for key in places if key in keys)


def _nest(model: SplitModel, name: str, stage: nn.Module) -> None:
    *outer, leaf = name.split(".")
    holder: nn.Module = model
    for step in outer:
        inner = dict(holder.named_children()).get(step)
        if inner is None:
            inner = nn.Module()
            setattr(holder, step, inner)
        holder = inner
    setattr(holder, leaf, stage)


def _check_names(stages: tuple[str, ...]) -> None:
    if not stages:
        raise ModelError("a split model needs at least one stage")
    for name in stages:
        first = name.split(".")[0]
        if not all(name.split(".")):
            raise ModelError(f"stage name {name!r}: a name may have dots only between other characters")
        if first not in _BLOCKS and first in dir(SplitModel):
            raise ModelError(f"stage name {name!r}: {first!r} is a method of every model; choose another name")
        inside = [other for other in stages if other.startswith(name + ".")]
        if inside:
            raise ModelError(f"stage {inside[0]!r} would lie inside stage {name!r}; rename one of them")


def _check_cover(stages: tuple[str, ...], parts: Mapping[str, tuple[str, ...]]) -> None:
    listed = [stage for group in parts.values() for stage in group]
    for stage in listed:
        if stage not in stages:
            raise ModelError(f"the parts name an unknown stage {stage!r}: {nearest(stage, stages)}")
    if listed != list(stages):
        raise ModelError(
            f"the parts must hold every stage once and in order: the stages are {', '.join(stages)}; "
            f"the parts list {', '.join(listed)}"
        )


def _fusion_cut(stages: tuple[str, ...], parts: Mapping[str, tuple[str, ...]]) -> int:
    """How many stages lie before the fusion cut."""
    cuts: set[int] = set()
    for groups in ({stage: (stage,) for stage in stages}, parts):
        ends = dict(zip(groups, accumulate(len(group) for group in groups.values()), strict=True))
        if "base" in groups:
            cuts.add(ends["base"] if ends["base"] == len(groups["base"]) else -1)
        if "modular" in groups:
            cuts.add(len(stages) - len(groups["modular"]) if ends["modular"] == len(stages) else -1)
    if len(cuts) > 1 or -1 in cuts:
        raise ModelError(
            "a stage or part named 'base' must come first, one named 'modular' last, and nothing may lie between them: "
            f"stages {', '.join(stages)}; parts {', '.join(parts)}"
        )
    return cuts.pop() if cuts else len(stages) - len(list(parts.values())[-1])
