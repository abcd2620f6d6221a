"""Messages and states: typed dataclasses of tensors and scalars, and their flat form.

A :class:`Message` travels between a client and the server; a :class:`State` stays with its owner between rounds. Both
are declared by their fields alone::

    class FusionOutputs(Message):
        z: Features      # Float32[Tensor, "batch d"]
        y: Labels        # UInt[Tensor, "batch"]

A field is a tensor with a jaxtyping annotation, a scalar (``int``, ``float``, ``bool``), another record, a tuple of
one of these, or a mapping of them by name or number. Nothing else: what has no declared shape cannot be checked.
"""

from __future__ import annotations

import math
import operator
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    SupportsFloat,
    SupportsIndex,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from jaxtyping import AbstractArray, Bool, Float, Float32, Int, Shaped, UInt
from torch import Tensor

from interfuse.errors import DeclarationError, MessageError
from interfuse.numerics import aligned

Dims = Mapping[str, int]


class Disclosure(StrEnum):
    """What the tensors of a message tell about the client that sends them."""

    DATA = "data"
    FEATURES = "features"
    LABELS = "labels"
    LOGITS = "logits"
    STATISTICS = "statistics"
    PROTOTYPES = "prototypes"
    GRADIENTS = "gradients"
    ADAPTERS = "adapters"
    PARAMETERS = "parameters"
    GENERATORS = "generators"
    """Networks that draw samples like those that they learnt from."""
    SURROGATES = "surrogates"
    """What stands for samples and is of their kind, such as means of similar images."""


class Precision(StrEnum):
    """What a codec may do to a field. By default ``rounded`` for parameters, ``sparse`` for other tensors in float32,
    and ``exact`` for what counts or names something: labels, statistics, data, integers.
    """

    EXACT = "exact"
    """Arrives as it was sent."""
    ROUNDED = "rounded"
    """Numbers may be rounded."""
    SPARSE = "sparse"
    """Numbers may be rounded, and small ones left out."""


class Rows(StrEnum):
    """What the order of rows means, said of the labels of these rows."""

    UNORDERED = "unordered"
    """Nothing: the rows of all fields of the record may come in any order, the same for all. See :class:`.Codec`."""


NamedTensors = dict[str, Tensor]

Data = Annotated[Shaped[Tensor, "batch ..."], Disclosure.DATA]
Features = Annotated[Float32[Tensor, "batch d"], Disclosure.FEATURES]
Labels = Annotated[UInt[Tensor, "batch"], Disclosure.LABELS]
Targets = Annotated[Shaped[Tensor, "batch ..."], Disclosure.LABELS]
"""As the task has them: class numbers travel like :data:`Labels`; others are Float32 [batch, outputs], Float32 [batch,
labels], or Int64 [batch, time].
"""
Logits = Annotated[Float32[Tensor, "batch classes"], Disclosure.LOGITS]
Prototypes = Annotated[Float32[Tensor, "classes d"], Disclosure.PROTOTYPES]
ClassCounts = Annotated[Float32[Tensor, "classes"], Disclosure.STATISTICS]
FeatureGradients = Annotated[Float32[Tensor, "batch d"], Disclosure.GRADIENTS]
Parameters = Annotated[NamedTensors, Disclosure.PARAMETERS]
"""Tensors of a model by key. Checked against the keys and shapes of the client at either end."""


@dataclass_transform(frozen_default=True)
class Record:
    """Common base of :class:`Message` and :class:`State`: every subclass becomes a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, eq=False)(cls)


class Message(Record):
    """What travels in one direction of one call. Tensors of a received message are read-only by contract."""


class Weights(Message):
    """Tensors of a model, or of a part of it, by key."""

    tensors: Parameters


class Change(Message):
    """What training changed of the parameters, new minus received; and statistics of normalisation as they are now.

    Of statistics there is no change to send: differences add up to what is none, such as a variance below 0.
    """

    change: Annotated[Parameters, Precision.SPARSE]
    statistics: Parameters


class State(Record):
    """What a client or the server owns between rounds. Replaced as a whole, never changed in place."""


R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=Message)

# at run time these annotations are classes
UNSIGNED = tuple(UInt[Tensor, ""].dtypes)  # type: ignore[attr-defined]
_FAMILIES = {
    tuple(Float[Tensor, ""].dtypes): "float32",  # type: ignore[attr-defined]
    tuple(Int[Tensor, ""].dtypes): "int64",  # type: ignore[attr-defined]
    tuple(Bool[Tensor, ""].dtypes): "bool",  # type: ignore[attr-defined]
}
EMPTY = "#"
"""Stands for an item of a tuple or mapping that holds no tensor: it would otherwise leave no trace."""
_SCALARS: Mapping[type, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool}


@dataclass(frozen=True)
class Leaf:
    """One tensor or scalar of a record type, or the pattern of many: ``*`` stands for one index or key."""

    path: str
    scalar: type | None
    dtypes: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    disclosure: Disclosure | None
    named: bool
    marked: Precision | None = None
    unordered: bool = False

    @property
    def precision(self) -> Precision:
        """What a codec may do to it: what its annotation says, or else what goes with its disclosure."""
        if self.scalar is not None or not (self.named or self.dtypes == ("float32",)):
            return Precision.EXACT
        return self.marked or _PRECISION.get(self.disclosure, Precision.SPARSE)

    @property
    def lasting(self) -> bool:
        """Whether it means the same each time it is sent, so that what rounding lost can be sent later."""
        return self.disclosure in (Disclosure.PARAMETERS, Disclosure.ADAPTERS, Disclosure.GENERATORS)

    @property
    def targets(self) -> bool:
        """Whether it is labels whose type is left open: targets as the task has them."""
        return self.disclosure is Disclosure.LABELS and self.dims is not None and self.dtypes is None

    @property
    def field(self) -> str:
        """The field that holds it, such as ``Weights.tensors``."""
        return self.path.partition("/")[0]


_PRECISION: Mapping[Disclosure | None, Precision] = {
    Disclosure.LABELS: Precision.EXACT,
    Disclosure.STATISTICS: Precision.EXACT,
    Disclosure.DATA: Precision.EXACT,
    Disclosure.PARAMETERS: Precision.ROUNDED,
    Disclosure.ADAPTERS: Precision.ROUNDED,
    Disclosure.GENERATORS: Precision.ROUNDED,
    Disclosure.SURROGATES: Precision.ROUNDED,
    None: Precision.EXACT,
}


@dataclass(frozen=True)
class _Node:
    """How one annotation is taken apart and put together again."""

    kind: str  # "tensor", "scalar", "record", "tuple", "mapping"
    leaf: Leaf | None = None
    record: type[Record] | None = None
    item: _Node | None = None
    key: type = str


def _nodes(record: type[Record]) -> dict[str, _Node]:
    key: Any = record  # mypy takes the instances' __hash__ for that of the class
    return _nodes_of(key)


@cache
def _nodes_of(record: Any) -> dict[str, _Node]:
    hints = get_type_hints(record, include_extras=True)
    return {f.name: _node(hints[f.name], f"{record.__name__}.{f.name}", None) for f in fields(record)}


def _node(annotation: Any, path: str, disclosure: Disclosure | None) -> _Node:
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        node = _node(inner, path, next((n for n in notes if isinstance(n, Disclosure)), disclosure))
        if Rows.UNORDERED in notes and node.leaf is not None:
            node = replace(node, leaf=replace(node.leaf, unordered=True))
        return _marked(node, next((n for n in notes if isinstance(n, Precision)), None))
    if annotation in _SCALARS:
        return _Node("scalar", leaf=Leaf(path, annotation, None, (), disclosure or Disclosure.STATISTICS, False))
    if annotation is Tensor:
        return _Node("tensor", leaf=Leaf(path, None, None, None, disclosure, False))
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        dims = tuple("..." if dim.startswith("*") else dim for dim in annotation.dim_str.split())
        return _Node("tensor", leaf=Leaf(path, None, _dtypes(annotation, path, disclosure), dims, disclosure, False))
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return _Node("record", record=annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _Node("tuple", item=_node(args[0], f"{path}/*", disclosure))
    if origin in (dict, Mapping) and args[0] in (str, int):
        item = _node(args[1], f"{path}/*", disclosure)
        if item.leaf is not None and disclosure in (Disclosure.PARAMETERS, Disclosure.ADAPTERS):
            item = _Node(item.kind, leaf=Leaf(item.leaf.path, None, None, None, disclosure, True))
        return _Node("mapping", item=item, key=args[0])
    raise DeclarationError(
        f"{path}: {annotation!r} is not a field type of a message or state; use a tensor with a jaxtyping "
        "annotation, int, float, bool, another record, or a tuple[..., ...] or dict[str, ...] of them"
    )


def _marked(node: _Node, precision: Precision | None) -> _Node:
    """The same node, with what its annotation says of codecs."""
    if precision is None:
        return node
    return replace(
        node,
        leaf=None if node.leaf is None else replace(node.leaf, marked=precision),
        item=None if node.item is None else _marked(node.item, precision),
    )


def _dtypes(annotation: Any, path: str, disclosure: Disclosure | None) -> tuple[str, ...] | None:
    """The dtypes of a jaxtyping annotation: one, the unsigned family for labels, or None for any.

    ``Float`` means float32, ``Int`` int64, and ``Bool`` truth values.

    Raises:
        TypeError: another family, which leaves open how a tensor travels.
    """
    if not isinstance(annotation.dtypes, list | tuple):
        return None
    found = tuple(annotation.dtypes)
    if len(found) == 1 or (found == UNSIGNED and disclosure is Disclosure.LABELS):
        return found
    for family, one in (_FAMILIES if found != UNSIGNED else {}).items():
        if found == family:
            return (one,)
    raise DeclarationError(
        f"{path}: {annotation!r} leaves the type open; name one, such as Float32 or Int64, or Shaped for any"
    )


def leaves(record: type[Record]) -> list[Leaf]:
    """All tensors and scalars that a record type can hold, in the order of its fields."""

    def walk(node: _Node) -> list[Leaf]:
        if node.leaf is not None:
            return [node.leaf]
        if node.record is not None:
            return leaves(node.record)
        assert node.item is not None
        return walk(node.item)

    return [leaf for node in _nodes(record).values() for leaf in walk(node)]


def disclosed(message: type[Message]) -> frozenset[Disclosure]:
    """What a message type discloses.

    Raises:
        TypeError: a tensor of it says neither what it discloses nor which shape it has.
    """
    for leaf in leaves(message):
        if leaf.disclosure is None or (leaf.dims is None and not leaf.named):
            raise DeclarationError(
                f"{leaf.path}: a tensor in a message needs its shape and what it discloses, for instance "
                'Annotated[Float32[Tensor, "batch d"], Disclosure.FEATURES], or an alias such as Features or Labels'
            )
    return frozenset(leaf.disclosure for leaf in leaves(message) if leaf.disclosure is not None)


def flatten(record: Record) -> dict[str, Tensor]:
    """A record as tensors by name; scalars become tensors without dimensions, so sizes never depend on values."""
    flat: dict[str, Tensor] = {}
    for name, node in _nodes(type(record)).items():
        _flatten(node, getattr(record, name), name, flat)
    return flat


Names = Callable[[str, type | None], Iterable[str]]
"""The names in a tuple (whose keys are None) or mapping (whose keys have that type) at a path, in their order."""


def laid_out(record: type[Record], names: Names) -> Iterator[tuple[str, Leaf | None]]:
    """The paths of the flat form of a record, with what each leads to; of what stands for an empty item, None."""
    for name, node in _nodes(record).items():
        yield from _laid_out(node, name, names)


def _laid_out(node: _Node, path: str, names: Names) -> Iterator[tuple[str, Leaf | None]]:
    if node.leaf is not None:
        yield path, node.leaf
    elif node.record is not None:
        for name, inner in _nodes(node.record).items():
            yield from _laid_out(inner, f"{path}/{name}", names)
    else:
        assert node.item is not None
        for key in names(path, None if node.kind == "tuple" else node.key):
            nothing = True
            for inside in _laid_out(node.item, f"{path}/{key}", names):
                nothing = False
                yield inside
            if nothing:
                yield f"{path}/{key}/{EMPTY}", None


def _flatten(node: _Node, value: Any, path: str, flat: dict[str, Tensor]) -> None:
    if node.leaf is not None and node.leaf.scalar is not None:
        scalar = _scalar(node.leaf, value, path, finite=False)
        flat[path] = torch.tensor(scalar, dtype=_SCALARS[node.leaf.scalar])
    elif node.leaf is not None:
        if not isinstance(value, Tensor):
            raise MessageError(node.leaf.path.split(".")[0], path, "a tensor", type(value).__name__)
        flat[path] = value
    elif node.record is not None:
        for name, inner in _nodes(node.record).items():
            _flatten(inner, getattr(value, name), f"{path}/{name}", flat)
    else:
        assert node.item is not None
        for key, item in value.items() if node.kind == "mapping" else enumerate(value):
            if "/" in str(key) or key in ("", EMPTY):
                raise MessageError("?", f"{path}/{key}", f"keys without '/', other than {EMPTY!r}", repr(key))
            before = len(flat)
            _flatten(node.item, item, f"{path}/{key}", flat)
            if len(flat) == before:
                flat[f"{path}/{key}/{EMPTY}"] = torch.empty(0, dtype=torch.uint8)


def _scalar(leaf: Leaf, value: Any, path: str, *, finite: bool) -> int | float | bool:
    """A scalar as it travels.

    Raises:
        MessageError: it is of another kind, too large for its 64 bits, or (in a message) not finite.
    """
    if leaf.scalar is bool and isinstance(value, bool):
        return value
    if leaf.scalar is int and isinstance(value, SupportsIndex) and not isinstance(value, bool | Tensor):
        number = operator.index(value)
        if -(2**63) <= number < 2**63:
            return number
    if leaf.scalar is float and isinstance(value, SupportsFloat) and not isinstance(value, bool | Tensor):
        real = float(value)
        if math.isfinite(real) or not finite:
            return real
    name = "" if leaf.scalar is None else leaf.scalar.__name__
    wanted = {"int": "a whole number of 64 bits", "float": "a finite number"}.get(name, "true or false")
    raise MessageError(leaf.path.split(".")[0], path, wanted, f"{value!r}"[:100])


def unflatten(record: type[R], flat: Mapping[str, Tensor]) -> R:
    """The inverse of :func:`flatten`.

    Raises:
        MessageError: a name is missing or not part of the type, or a scalar is no scalar.
    """
    tree: dict[str, Any] = {}
    empty: list[tuple[str, dict[str, Any]]] = []
    for path, tensor in flat.items():
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise MessageError(record.__name__, path, "a name once", "the same name as tensor and as group")
        if last in place:
            raise MessageError(record.__name__, path, "a name once", "the same name as tensor and as group")
        if last != EMPTY:
            place[last] = tensor
        elif not parents or tensor.numel():
            raise MessageError(record.__name__, path, "an empty group", f"a tensor of shape {tuple(tensor.shape)}")
        else:
            empty.append((path, place))
    for path, place in empty:
        if place:
            raise MessageError(record.__name__, path, "an empty group", "a group of " + ", ".join(sorted(place)))
    return _unflatten_record(record, tree, record.__name__, "")


def settled(state: R, others: Iterable[Tensor] = ()) -> R:
    """The state as it would come back from a commit: every tensor contiguous and at the beginning of its memory, every
    mapping in the order of its keys.

    Sums over a tensor depend on its layout and place, draws from a mapping on its order, so a state must not have
    another one before a commit than after it.

    Args:
        others: Tensors whose memory is somebody else's, who may change it: what shares it becomes a copy.
    """
    foreign = {tensor.untyped_storage().data_ptr() for tensor in others}

    def own(tensor: Tensor) -> Tensor:
        found = tensor.contiguous()
        return found.clone() if found.untyped_storage().data_ptr() in foreign else aligned(found)

    return unflatten(type(state), {path: own(tensor) for path, tensor in flatten(state).items()})


def _unflatten_record(record: type[R], tree: Mapping[str, Any], message: str, path: str) -> R:
    nodes = _nodes(record)
    for name in tree:
        if name not in nodes:
            raise MessageError(message, path + name, "one of " + ", ".join(nodes), "an unknown field")
    return record(**{n: _unflatten(node, tree.get(n), message, path + n) for n, node in nodes.items()})


def _unflatten(node: _Node, value: Any, message: str, path: str) -> Any:
    if node.leaf is not None:
        if not isinstance(value, Tensor):
            raise MessageError(message, path, "a tensor", "nothing" if value is None else "a group of tensors")
        if node.leaf.scalar is None:
            return value
        if value.dtype != _SCALARS[node.leaf.scalar] or value.ndim:
            wanted = f"one {_SCALARS[node.leaf.scalar]}"
            raise MessageError(message, path, wanted, f"{value.dtype} of shape {tuple(value.shape)}")
        return value.item()
    if isinstance(value, Tensor):
        raise MessageError(message, path, "a group of tensors", "a tensor")
    group: Mapping[str, Any] = value or {}
    if node.record is not None:
        return _unflatten_record(node.record, group, message, path + "/")
    assert node.item is not None
    if node.kind == "tuple":
        if set(group) != {str(i) for i in range(len(group))}:
            raise MessageError(message, path, f"items 0 to {len(group) - 1}", ", ".join(sorted(group)))
        return tuple(_unflatten(node.item, group[str(i)], message, f"{path}/{i}") for i in range(len(group)))
    if node.key is int and not all(k.isdecimal() and k.isascii() and str(int(k)) == k for k in group):
        raise MessageError(message, path, "whole numbers as keys", ", ".join(group))
    ordered = sorted(group, key=node.key)  # a method may go by it, so it must not be that of a file
    return {node.key(key): _unflatten(node.item, group[key], message, f"{path}/{key}") for key in ordered}


Mapped = Callable[[Leaf, Tensor, str], Tensor]


def mapped(record: R, change: Mapped) -> R:
    """The same record with every tensor replaced; scalars, structure and type stay."""
    return typing.cast(R, _mapped_record(type(record).__name__, type(record), record, "", change))


def _mapped_record(name: str, kind: type[Record], value: Any, path: str, change: Mapped) -> Any:
    if type(value) is not kind:
        raise MessageError(name, path.strip("/") or "(whole)", kind.__name__, type(value).__name__)
    return kind(
        **{n: _mapped_node(name, node, getattr(value, n), path + n, change) for n, node in _nodes(kind).items()}
    )


def _mapped_node(name: str, node: _Node, value: Any, path: str, change: Mapped) -> Any:
    # no functions inside one another: their cycle would hold the tensors until garbage is collected
    if node.leaf is not None:
        if node.leaf.scalar is not None:
            return _scalar(node.leaf, value, path, finite=True)
        if not isinstance(value, Tensor):
            raise MessageError(name, path, "a tensor", type(value).__name__)
        return change(node.leaf, value, path)
    if node.record is not None:
        return _mapped_record(name, node.record, value, path + "/", change)
    assert node.item is not None
    item = node.item
    if node.kind == "tuple":
        return tuple(_mapped_node(name, item, one, f"{path}/{i}", change) for i, one in enumerate(value))
    if not isinstance(value, Mapping) or not all(isinstance(key, node.key) for key in value):
        found = ", ".join(map(repr, value)) if isinstance(value, Mapping) else type(value).__name__
        raise MessageError(name, path, f"a mapping with keys of type {node.key.__name__}", found[:100])
    return {key: _mapped_node(name, item, value[key], f"{path}/{key}", change) for key in sorted(value)}


def kind_of(message: Message | type[Message]) -> str:
    """The name under which a message is counted and travels."""
    return message.__name__ if isinstance(message, type) else type(message).__name__


def leaf_at(record: type[Record], path: str) -> Leaf | None:
    """What a path of the flat form leads to; None where it leads nowhere."""
    first, *rest = path.split("/")
    node = _nodes(record).get(first)
    for name in rest:
        if node is None:
            return None
        node = node.item if node.record is None else _nodes(node.record).get(name)
    return None if node is None else node.leaf
