"""Messages in a frame without names: for two ends that know the type of a message and its codecs.

::

    bytes   content
    1       version, 0xC1: no other frame of ours begins with it
    4       digest of the schema: the type's fields, with their types, dimensions and codecs
    rest    what the type leaves open, field by field: how many items a tuple has, a mapping also their names; of a
            tensor first its type, where its field does not say it, and those of its sizes that nothing before told;
            then its data: coded as its codec has it (behind its length, where that does not follow from the shape),
            labels as `interfuse.wire.labels` has them, else as they are

Numbers are those of `interfuse.wire.cursor`. An upload of 32 rows of features and labels has 10 bytes around its data,
where names, types, shapes and places take 157.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.messages.records import EMPTY, Disclosure, Leaf, Message, flatten, kind_of, laid_out, leaves
from interfuse.wire import NO_CODEC, Codec, Codecs, Limits, Pieces, labels
from interfuse.wire.body import MAX_RANK, bytes_of, fault, filled
from interfuse.wire.cursor import Cursor, natural
from interfuse.wire.frame import COMPACT

_BYTES_OF_DIGEST = 4
_TYPES = (
    torch.float32, torch.uint8, torch.uint16, torch.uint32, torch.int64, torch.float64, torch.bool, torch.int8,
    torch.int16, torch.int32, torch.float16, torch.bfloat16,
)  # fmt: skip
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _TYPES}
_SCALARS = {int: torch.int64, float: torch.float64, bool: torch.bool}
_LABELS = (torch.uint8, torch.uint16, torch.uint32)
_LARGEST = 2**32 - 1
"""Of one size of a tensor."""

CodecOf = Callable[[Leaf, int], Codec]
"""The codec of a tensor of a field with so many dimensions."""
Look = Callable[[str, Leaf, torch.dtype, tuple[int, ...]], None]
"""Sees path, field, type and shape of a tensor before any memory is taken for it, and may refuse it."""


def encoded(message: Message, codecs: Codecs, codec_of: CodecOf) -> Pieces:
    """A message as bytes, in pieces that share memory with it.

    Raises:
        MessageError: a tensor has a codec and is not rounded, or has no dense data.
    """
    kind, flat = type(message), flatten(message)
    inside = _groups(flat)
    parts: list[bytes | memoryview] = [_beginning(kind, codecs)]

    def names(path: str, key: type | None) -> Iterable[str]:
        found = sorted(inside.get(path, ()), key=key or int)
        parts.append(natural(len(found)))
        if key is not None:
            parts.extend(natural(len(name.encode())) + name.encode() for name in found)
        return found

    sizes = _Sizes()
    for path, leaf in laid_out(kind, names):
        if leaf is None:
            continue
        tensor, codec = flat[path], codec_of(leaf, flat[path].ndim)
        if tensor.dtype not in _TYPES or tensor.ndim > MAX_RANK or max(tensor.shape, default=0) > _LARGEST:
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise fault(kind_of(kind), path, f"one of the types {', '.join(_BY_NAME)}, of no such shape", found)
        parts.append(_opening(kind_of(kind), path, leaf, tensor, sizes))
        parts.extend(_data(kind_of(kind), path, leaf, tensor, codec))
    return Pieces(parts)


def decoded(
    kind: type[Message], data: Pieces, limits: Limits, codecs: Codecs, codec_of: CodecOf, look: Look
) -> dict[str, Tensor]:
    """The flat form of a message of this type; tensors have memory of their own, at most ``limits.max_bytes`` in all.

    Raises:
        MessageError: the bytes are no such message within the limits.
    """
    message = kind_of(kind)
    if len(data) > limits.max_bytes:
        raise fault(message, "message", f"at most {limits.max_bytes} bytes", f"{len(data)} bytes")
    cursor = Cursor(message, data)
    if bytes(cursor.take(1 + _BYTES_OF_DIGEST, "beginning")) != _beginning(kind, codecs):
        raise fault(message, "beginning", "a message of this kind with the contract's codecs", "another, or none")
    flat: dict[str, Tensor] = {}
    left, items = limits.max_bytes, 0

    def names(path: str, key: type | None) -> Iterator[str]:
        nonlocal items
        count = cursor.natural(path, limits.max_tensors)
        items += count
        if items > limits.max_tensors:
            raise fault(message, path, f"at most {limits.max_tensors} tensors", "more")
        if key is None:
            return iter(map(str, range(count)))
        found = [_name(cursor, path, limits) for _ in range(count)]
        if key is int and not all(name.isdecimal() and name.isascii() and str(int(name)) == name for name in found):
            raise fault(message, path, "whole numbers as keys", ", ".join(found))
        if any(key(a) >= key(b) for a, b in pairwise(found)):
            raise fault(message, path, "each name once, in their order", ", ".join(found))
        return iter(found)

    sizes = _Sizes()
    for path, leaf in laid_out(kind, names):
        if leaf is None:
            flat[path] = torch.empty(0, dtype=torch.uint8)
            continue
        dtype, shape = _declared(cursor, path, leaf, sizes)
        extent = math.prod(max(size, 1) for size in shape) * dtype.itemsize
        if extent > left:
            raise fault(message, path, f"at most {left} bytes", f"shape {list(shape)}")
        look(path, leaf, dtype, shape)
        flat[path] = _tensor(cursor, path, leaf, dtype, shape, codec_of(leaf, len(shape)))
        left -= flat[path].nbytes
    cursor.end()
    return flat


def schema(kind: type[Message], codecs: Codecs) -> str:
    """What both ends have to agree on, in words."""
    lines = [
        f"{leaf.path} {leaf.scalar} {leaf.dtypes} {leaf.dims} {leaf.named} {leaf.disclosure} "
        f"{codecs.find(kind_of(kind), leaf.field).written}"
        for leaf in leaves(kind)
    ]
    return "\n".join((kind_of(kind), *lines))


def is_of(kind: type[Message], data: Pieces, codecs: Codecs) -> bool:
    """Whether bytes begin as a compact message of this type does."""
    return bytes(data[: 1 + _BYTES_OF_DIGEST]) == _beginning(kind, codecs)


def _beginning(kind: type[Message], codecs: Codecs) -> bytes:
    digest = hashlib.blake2b(schema(kind, codecs).encode(), digest_size=_BYTES_OF_DIGEST)
    return bytes((COMPACT,)) + digest.digest()


def _groups(flat: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """The names that stand behind each beginning of a path."""
    found: dict[str, set[str]] = {}
    for path in flat:
        before, *names = path.split("/")
        for name in names:
            if name != EMPTY:
                found.setdefault(before, set()).add(name)
            before = f"{before}/{name}"
    return found


class _Sizes:
    """Sizes by record and dimension: what one field of a record told, another need not tell again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], int] = {}

    def known(self, path: str, dim: str | None) -> int | None:
        """The size of a dimension of the field at a path; None where nothing told it."""
        if dim is None or dim.isdecimal():
            return None if dim is None else int(dim)
        return self._known.get((path.rpartition("/")[0], dim))

    def note(self, path: str, dim: str | None, size: int) -> None:
        """A field told it."""
        if dim is not None:
            self._known[path.rpartition("/")[0], dim] = size


def _dims(leaf: Leaf, rank: int) -> tuple[str | None, ...]:
    """The dimensions of a field by name; None has none."""
    wanted = leaf.dims
    if wanted is None:
        return (None,) * rank
    if "..." not in wanted:
        return tuple(None if dim == "_" else dim for dim in wanted)
    place = wanted.index("...")
    more = (None,) * (rank - len(wanted) + 1)
    return tuple(None if dim == "_" else dim for dim in (*wanted[:place], *more, *wanted[place + 1 :]))


def _open_rank(leaf: Leaf) -> bool:
    return leaf.dims is None or "..." in leaf.dims


def _type_of(leaf: Leaf) -> torch.dtype | None:
    """The type of a field, if there is but one."""
    if leaf.scalar is not None:
        return _SCALARS[leaf.scalar]
    return _BY_NAME.get(leaf.dtypes[0]) if leaf.dtypes is not None and len(leaf.dtypes) == 1 else None


def _opening(message: str, path: str, leaf: Leaf, tensor: Tensor, sizes: _Sizes) -> bytes:
    """Type and sizes, as far as they are not known."""
    found = b"" if _type_of(leaf) is not None else natural(_TYPES.index(tensor.dtype))
    found += natural(tensor.ndim) if _open_rank(leaf) else b""
    dims = _dims(leaf, tensor.ndim)
    if len(dims) != tensor.ndim:
        raise fault(message, path, f"shape [{' '.join(leaf.dims or ())}]", f"shape {tuple(tensor.shape)}")
    for dim, size in zip(dims, tensor.shape, strict=True):
        known = sizes.known(path, dim)
        if known not in (None, size):
            raise fault(message, path, f"{dim} = {known}", f"shape {tuple(tensor.shape)}")
        found += natural(size) if known is None else b""
        sizes.note(path, dim, size)
    return found


def _declared(cursor: Cursor, path: str, leaf: Leaf, sizes: _Sizes) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape of what comes next."""
    dtype = _type_of(leaf) or _TYPES[cursor.natural(path, len(_TYPES) - 1)]
    rank = cursor.natural(path, MAX_RANK) if _open_rank(leaf) else len(leaf.dims or ())
    dims = _dims(leaf, rank)
    if len(dims) != rank:
        raise fault(cursor.message, path, f"shape [{' '.join(leaf.dims or ())}]", f"{rank} dimensions")
    shape = []
    for dim in dims:
        known = sizes.known(path, dim)
        shape.append(cursor.natural(path, _LARGEST) if known is None else known)
        sizes.note(path, dim, shape[-1])
    return dtype, tuple(shape)


def _packs_labels(leaf: Leaf, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    known = leaf.disclosure is Disclosure.LABELS and dtype in _LABELS and len(shape) == 1
    return known and shape[0] <= labels.MOST_PACKED


def _data(message: str, path: str, leaf: Leaf, tensor: Tensor, codec: Codec) -> list[bytes | memoryview]:
    if codec.written != NO_CODEC.written:
        try:
            data = codec.write(tensor)
        except ValueError as error:
            raise MessageError(message, path, f"a tensor for {codec}", str(error)) from None
        return [data] if codec.measured else [natural(len(data)), data]
    if _packs_labels(leaf, tensor.dtype, tuple(tensor.shape)):
        return [labels.write(tensor)]
    return [bytes_of(message, path, tensor)]


def _tensor(cursor: Cursor, path: str, leaf: Leaf, dtype: torch.dtype, shape: tuple[int, ...], codec: Codec) -> Tensor:
    if codec.written != NO_CODEC.written:
        length = codec.length(dtype, shape) if codec.measured else cursor.natural(path, cursor.left)
        return codec.read(memoryview(bytes(cursor.take(length, path))), dtype, shape, cursor.message, path)
    if _packs_labels(leaf, dtype, shape):
        return labels.read(cursor, path, dtype, shape[0])
    size = math.prod(shape) * dtype.itemsize
    return filled(cursor.message, path, dtype, shape, cursor.take(size, path))


def _name(cursor: Cursor, path: str, limits: Limits) -> str:
    data = bytes(cursor.take(cursor.natural(path, limits.max_name), path))
    try:
        name = data.decode()
    except UnicodeDecodeError:
        raise fault(cursor.message, path, "names in UTF-8", ascii(data)) from None
    if not name or "/" in name or name == EMPTY:
        raise fault(cursor.message, path, "names without /", name)
    return name
