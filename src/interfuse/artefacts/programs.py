"""Exported programs: what a module computes, as plain data that can be read without running anything of its maker's.

PyTorch exports a module (``torch.export``) as a list of ATen operations. Its own files of that contain pickles, and its
readers take any operation and evaluate expressions. So here the list is written as JSON, with the tensors beside it,
and whoever reads it runs operations of a closed list and nothing else.
"""

from __future__ import annotations

import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from interfuse.data.inputs import Inputs, named, together
from interfuse.errors import ArtefactError, ModelError

FORMAT = 1
"""Of the text of a program."""
DEEPEST = 8
"""Lists within lists of an argument."""
_BESIDE_CORE = """
_unsafe_view adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addcdiv
addcmul arange avg_pool1d batch_norm bitwise_not broadcast_to celu chunk conv1d conv2d conv3d conv_transpose1d
conv_transpose2d einsum embedding flatten full_like group_norm hardsigmoid hardswish instance_norm layer_norm lerp
linalg_vector_norm linear linspace log_softmax logaddexp matmul max_pool1d max_pool2d max_pool3d mish movedim narrow
new_full new_ones new_zeros norm one_hot ones ones_like pad pixel_shuffle prelu relu6 reshape rms_norm rot90
scalar_tensor scaled_dot_product_attention selu silu softmax softplus split split_with_sizes square stack std swapaxes
tile transpose tril triu unbind unflatten upsample_bilinear2d upsample_nearest2d var zeros zeros_like
"""
"""Operations of ATen beside its core set that are functions of their arguments as well."""
_DROPOUT = {"scaled_dot_product_attention": 4}
"""Operations that draw random numbers unless this argument, ``dropout_p``, is 0."""
_REFUSED = ("as_strided", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize")
"""Operations of the core set that show memory that is none of their arguments'."""
_LARGEST = 2**63
"""Numbers in a program, such as sizes, stay below."""
_PYTHON = "add sub mul floordiv truediv mod neg eq ne lt le gt ge"
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in _PYTHON.split()},
    **{"sym_max": max, "sym_min": min, "sym_not": operator.not_, "sym_float": float, "sym_int": int},
    **{"ceil": math.ceil, "floor": math.floor, "trunc": math.trunc},
}
"""What is done with sizes, which depend on the number of samples."""
_SHAPING = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "clone", "permute", "transpose", "_unsafe_view"}
"""Operations that leave values as they are."""
_BOUNDED: Mapping[str, tuple[float | None, float | None]] = {
    "relu": (0.0, None), "relu6": (0.0, 6.0), "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0),
    "softmax": (0.0, 1.0), "_softmax": (0.0, 1.0),
}  # fmt: skip
"""Operations whose results lie between two numbers, or above one."""
_CHECKS = ("aten._assert_tensor_metadata", "aten._assert_scalar", "aten.sym_constrain_range", "aten._assert_async")
"""Operations that check and give nothing."""
_OF_THE_MACHINE = ("device", "pin_memory")
"""Options that are of where the program was made."""
_DTYPES = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64"
_FORMATS = "contiguous_format channels_last preserve_format"
_KINDS: Mapping[str, Mapping[str, Any]] = {
    "dtype": {name: getattr(torch, name) for name in _DTYPES.split()},
    "memory_format": {name: getattr(torch, name) for name in _FORMATS.split()},
    "layout": {"strided": torch.strided},
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
}
"""Arguments that JSON has no form for, by kind and name."""


@dataclass(frozen=True)
class Node:
    """One operation, such as ``aten.linear.default``.

    Attributes:
        arguments, options: As JSON: ``{"node": name}`` is what an earlier one gave, ``{"tensor": name}`` a weight or a
            constant, and so on for what JSON has no form for.
    """

    name: str
    operation: str
    arguments: Sequence[Any]
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Program:
    """A function from samples, ``[batch, ...]`` of any number, to what a module makes of them.

    Attributes:
        inputs: The names of what it takes; nodes have them by ``{"node": "input.NAME"}``.
        outputs: By name, an argument as nodes have them.
        tensors: Weights and constants by name.

    Raises:
        ArtefactError: an operation is none of those that may be run, or an argument is none.
    """

    inputs: Sequence[str]
    outputs: Mapping[str, Any]
    nodes: Sequence[Node]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        known = {_input(name) for name in self.inputs}
        for node in self.nodes:
            operation(node.operation)
            if _draws(node):
                raise ArtefactError(f"{node.operation} draws random numbers: put the module into evaluation mode")
            for argument in (*node.arguments, *node.options.values()):
                self._check(argument, known)
            known.add(node.name)
        for argument in self.outputs.values():
            self._check(argument, known)

    @torch.no_grad()
    def __call__(self, x: Inputs) -> Inputs:
        """What the module makes of samples.

        Raises:
            ArtefactError: the inputs have other names, or an operation cannot be done with them.
        """
        given = named(x)
        if {*given} != {*self.inputs}:
            raise ArtefactError(f"expected the inputs {', '.join(self.inputs)}, found {', '.join(given) or 'none'}")
        values: dict[str, Any] = {_input(name): tensor for name, tensor in given.items()}
        for node, done in zip(self.nodes, self._last_used, strict=True):
            arguments = [self._value(argument, values) for argument in node.arguments]
            options = {name: self._value(option, values) for name, option in node.options.items()}
            try:
                values[node.name] = operation(node.operation)(*arguments, **options)
            except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
                reason = str(error).partition("\n")[0]
                raise ArtefactError(f"{node.operation} of the program cannot be done: {reason}") from error
            for name in done:
                del values[name]
        return together({name: self._value(argument, values) for name, argument in self.outputs.items()})

    @cached_property
    def _last_used(self) -> list[list[str]]:
        """By node, the values that nobody needs after it."""
        seen: set[str] = {name for argument in self.outputs.values() for name in _in(argument, "node")}
        found = []
        for node in reversed(self.nodes):
            used = {name for argument in (*node.arguments, *node.options.values()) for name in _in(argument, "node")}
            found.append(sorted(({node.name} | used) - seen))
            seen |= used | {node.name}
        return found[::-1]

    @cached_property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """What its outputs lie between, by name, as far as the last operations say so that change values."""
        made = {node.name: node for node in self.nodes}
        found = {}
        for name, argument in self.outputs.items():
            node = made.get(argument["node"]) if isinstance(argument, dict) and "node" in argument else None
            while node is not None and _plain_name(node) in _SHAPING:
                first = node.arguments[0]
                node = made.get(first["node"]) if isinstance(first, dict) and "node" in first else None
            if node is not None and (known := _BOUNDED.get(_plain_name(node))) is not None:
                found[name] = known
        return found

    def text(self) -> str:
        """All of it but the tensors, as JSON."""
        nodes = [[node.name, node.operation, list(node.arguments), dict(node.options)] for node in self.nodes]
        plain = {"format": FORMAT, "inputs": list(self.inputs), "outputs": dict(self.outputs), "nodes": nodes}
        return json.dumps(plain, allow_nan=False, separators=(",", ":"))

    @classmethod
    def of_text(cls, text: str, tensors: Mapping[str, Tensor]) -> Program:
        """The inverse of :meth:`text`.

        Raises:
            ArtefactError: the text is no program, or one that may not be run; says why.
        """
        try:
            plain = json.loads(text)
            if plain["format"] != FORMAT:
                raise ArtefactError(f"the program has the format {plain['format']!r}, and this version reads {FORMAT}")
            nodes = [
                Node(name, operation, arguments, options) for name, operation, arguments, options in plain["nodes"]
            ]
            return cls(plain["inputs"], plain["outputs"], nodes, tensors)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"that is no program: {type(error).__name__}: {error}") from error

    def _check(self, argument: Any, known: set[str], depth: int = 0) -> None:
        match argument:
            case None | bool() | int() | float() | str():
                return
            case list() if depth < DEEPEST:
                for one in argument:
                    self._check(one, known, depth + 1)
                return
            case {"node": str(name), **rest} if not rest and name in known:
                return
            case {"tensor": str(name), **rest} if not rest and name in self.tensors:
                return
            case dict() if len(argument) == 1:
                ((kind, name),) = argument.items()
                if name in _KINDS.get(kind, ()):
                    return
        raise ArtefactError(f"{str(argument)[:100]} is no argument of an operation")

    def _value(self, argument: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(argument, list):
            return [self._value(one, values) for one in argument]
        if not isinstance(argument, dict):
            return argument
        ((kind, name),) = argument.items()
        return values[name] if kind == "node" else self.tensors[name] if kind == "tensor" else _KINDS[kind][name]


def export_program(module: nn.Module, example: Inputs) -> Program:
    """The program of a module that takes samples and gives a tensor, or several by name.

    Args:
        module: In evaluation mode.
        example: At least two samples.

    Raises:
        ModelError: the module cannot be exported, or does what no artefact may; names the operation.
    """
    given = named(example)
    with torch.no_grad():
        names = tuple(named(module(example)))
    samples, batch = tuple(given.values()), torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in samples),)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about PyTorch
            made = torch.export.export(_Named(module, tuple(given)), samples, dynamic_shapes=shapes, strict=False)
            made = made.run_decompositions({})
    except Exception as error:  # torch.export raises errors of many kinds
        raise ModelError(f"the model cannot be exported: {type(error).__name__}: {_reason(error)}") from error
    signature, tensors = made.graph_signature, {**made.state_dict, **made.constants}
    kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    kept |= signature.inputs_to_lifted_tensor_constants
    places: dict[str, Any] = {node: {"tensor": name} for node, name in kept.items()}
    places |= {node: {"node": _input(name)} for node, name in zip(signature.user_inputs, given, strict=True)}
    *body, last = (node for node in made.graph.nodes if node.op != "placeholder")
    nodes = [_node(node, places) for node in body if not _name_of(node).startswith(_CHECKS)]
    outputs = dict(zip(names, (_plain(of, places) for of in last.args[0]), strict=True))
    arguments = [*outputs.values(), *(of for node in nodes for of in (*node.arguments, *node.options.values()))]
    used = sorted({name for argument in arguments for name in _in(argument, "tensor")})
    held = {name: tensors[name].detach().cpu().contiguous().clone() for name in used}
    try:
        return Program(list(given), outputs, nodes, held)
    except ArtefactError as error:
        raise ModelError(f"the model cannot be exported: {error}") from error


class _Named(nn.Module):
    """A module that takes its inputs one by one, and gives its outputs so."""

    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = named(self.module(together(dict(zip(self.inputs, tensors, strict=True)))))
        return tuple(found.values())


@cache
def operation(name: str) -> Callable[..., Any]:
    """What an operation of a program is.

    Raises:
        ArtefactError: it is none that a program may have.
    """
    if name in _NUMBERS:
        return partial(_of_numbers, _NUMBERS[name])
    if name == "getitem":
        return operator.getitem
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten" and all(re.fullmatch(r"\w+", part, re.ASCII) for part in parts):
        found = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
        if isinstance(found, torch._ops.OpOverload) and _is_function(found, parts[1]):
            return found
    raise ArtefactError(f"{name[:100]} is no operation that a program may have")


def _of_numbers(function: Callable[..., Any], *numbers: Any) -> Any:
    """What a function makes of numbers: of lists or texts it could fill the memory, and so could unlimited numbers."""
    for number in numbers:
        symbolic = isinstance(number, torch.SymInt | torch.SymFloat | torch.SymBool)  # as ONNX is made
        if not symbolic and not (isinstance(number, int | float) and abs(number) < _LARGEST):
            raise TypeError(f"{type(number).__name__} is no number of 64 bits")
    return function(*numbers)


def _is_function(found: torch._ops.OpOverload, name: str) -> bool:
    """Whether it depends on its arguments alone, and changes none."""
    listed = torch.Tag.core in found.tags or name in _BESIDE_CORE.split()
    draws = torch.Tag.nondeterministic_seeded in found.tags and name not in _DROPOUT
    return listed and name not in _REFUSED and not found._schema.is_mutable and not draws


def _plain_name(node: Node) -> str:
    """Without namespace and overload."""
    return node.operation.removeprefix("aten.").partition(".")[0]


def _draws(node: Node) -> bool:
    """Whether it has dropout."""
    place = _DROPOUT.get(_plain_name(node))
    if place is None:
        return False
    return bool(node.options.get("dropout_p", node.arguments[place] if place < len(node.arguments) else 0))


def _node(node: fx.Node, places: Mapping[str, Any]) -> Node:
    options = {name: _plain(of, places) for name, of in node.kwargs.items() if name not in _OF_THE_MACHINE}
    return Node(node.name, _name_of(node), [_plain(of, places) for of in node.args], options)


def _name_of(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return getattr(target, "__name__", str(target))


def _plain(argument: Any, places: Mapping[str, Any]) -> Any:
    """An argument as JSON."""
    if isinstance(argument, fx.Node):
        return places.get(argument.name, {"node": argument.name})
    if isinstance(argument, list | tuple):
        return [_plain(one, places) for one in argument]
    if (
        argument is None
        or isinstance(argument, bool | int | str)
        or (isinstance(argument, float) and math.isfinite(argument))
    ):
        return argument
    for kind, known in _KINDS.items():
        for name, value in known.items():
            if value is argument or (kind == "float" and str(argument) == name):
                return {kind: name}
    raise ModelError(f"the model cannot be exported: an operation takes {type(argument).__name__}")


def _input(name: str) -> str:
    return f"input.{name}"


def _in(argument: Any, kind: str) -> list[str]:
    if isinstance(argument, list):
        return [name for one in argument for name in _in(one, kind)]
    return [argument[kind]] if isinstance(argument, dict) and kind in argument else []


def _reason(error: Exception) -> str:
    """The first line that says something, or what it means."""
    if "specialized it to be a constant" in str(error):
        return "its code fixes the number of samples, as len(x) does: take x.shape[0]"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]
