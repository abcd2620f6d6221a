"""Messages as bytes, with or without codecs."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, MutableMapping

import torch
from torch import Tensor

from interfuse import wire
from interfuse.errors import MessageError
from interfuse.messages.delivery import check, check_declared
from interfuse.messages.records import Dims, Leaf, M, Message, Precision, flatten, kind_of, leaf_at, mapped, unflatten
from interfuse.wire import NO_CODEC, NO_CODECS, Arriving, Codec, Codecs, Pieces


def codec_of(codecs: Codecs, kind: str, leaf: Leaf, dimensions: int) -> Codec:
    """The codec of a tensor: the one that is asked for, as far as the field allows it. What must not be thinned out is
    rounded only.

    Tensors of a model with fewer than two dimensions are biases and statistics: small, and sensitive. They are exact.
    """
    codec = codecs.find(kind, leaf.field)
    forbidden = leaf.precision is Precision.EXACT or (leaf.named and dimensions < 2)
    if leaf.scalar is not None or (codec.lossy and forbidden):
        return NO_CODEC
    return codec.unthinned if leaf.precision is Precision.ROUNDED else codec


def rounded(
    message: M, codecs: Codecs, generator: torch.Generator, feedback: MutableMapping[str, Tensor] | None = None
) -> M:
    """A checked message as its receiver gets it. Rounding it again changes nothing.

    Args:
        generator: For rounding at random.
        feedback: What rounding has lost so far by kind and path, for fields whose codec gives it back; replaced by what
            is lost now.
    """
    kind = kind_of(message)

    def change(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        codec, place = codec_of(codecs, kind, leaf, tensor.ndim), f"{kind}/{path}"
        if not codec.lossy:
            return tensor
        if feedback is None or not (codec.feedback and leaf.lasting):
            return codec.round(tensor, generator)
        lost = feedback.get(place)
        wanted = tensor if lost is None or lost.shape != tensor.shape else tensor + lost
        sent = codec.round(wanted, generator)
        feedback[place] = wanted - sent
        return sent

    return mapped(message, change) if codecs else message


def encode(message: Message, codecs: Codecs = NO_CODECS) -> bytes:
    """A message as bytes: a versioned header and safetensors, in which coded tensors are pieces of bytes.

    Raises:
        MessageError: a tensor has a codec and is not :func:`rounded`.
    """
    return bytes(encoded(message, codecs))


def encoded(message: Message, codecs: Codecs = NO_CODECS) -> Pieces:
    """As :func:`encode`, in pieces that share memory with the message: its tensors must not change meanwhile."""
    return wire.encoded(kind_of(message), _packed(message, codecs))


def sizes(message: Message, codecs: Codecs = NO_CODECS) -> tuple[int, int]:
    """Raw payload and length of the encoded form in bytes. Only what has a codec is really encoded."""
    flat = flatten(message)
    return wire.raw_size(flat), wire.encoded_size(kind_of(message), _packed(message, codecs) if codecs else flat)


_CODED = "@"
"""Stands between the path of a coded tensor and what a receiver has to know of its codec."""


def _packed(message: Message, codecs: Codecs) -> dict[str, Tensor]:
    """The flat form with coded tensors as bytes under the names of path and codec."""
    flat, kind = flatten(message), kind_of(message)
    if not codecs:
        return flat
    packed = dict(flat)

    def change(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        codec = codec_of(codecs, kind, leaf, tensor.ndim)
        if codec == NO_CODEC:
            return tensor
        try:
            data = codec.pack(tensor)
        except ValueError as error:
            raise MessageError(kind, path, f"a tensor for {codec}", str(error)) from None
        del packed[path]
        packed[f"{path}{_CODED}{codec.written}"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return tensor

    mapped(message, change)
    return packed


Look = Callable[[str, torch.dtype, tuple[int, ...]], None]


def _unpacked(
    kind: str, packed: dict[str, Tensor], codecs: Codecs, limit: int, look: Look = lambda path, dtype, shape: None
) -> dict[str, Tensor]:
    """The inverse of :func:`_packed`; all tensors together take at most ``limit`` bytes.

    Args:
        packed: Will be empty: what is unpacked need not be held twice.
        look: Sees path, type and shape of a coded tensor before any memory is taken for it, and may refuse it.
    """
    known, flat, left = codecs.written(), {}, limit
    for name in list(packed):
        tensor = packed.pop(name)
        path, _, written = name.rpartition(_CODED)
        if path and written in known:
            if tensor.dtype != torch.uint8 or tensor.ndim != 1:
                raise MessageError(kind, path, "bytes", f"{tensor.dtype} of shape {tuple(tensor.shape)}")
            data = tensor.numpy()
            look(path, *known[written].declared(data, left, kind, path))
            tensor = known[written].unpack(data, left, kind, path)
            left -= tensor.nbytes
        else:
            path = name
        if path in flat:
            raise MessageError(kind, path, "a name once", "the same tensor twice")
        flat[path] = tensor
    return flat


def _check_codecs(message: Message, names: Container[str], codecs: Codecs) -> None:
    """Check that every tensor came by its codec."""
    kind = kind_of(message)

    def change(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        codec = codec_of(codecs, kind, leaf, tensor.ndim)
        if (path if codec == NO_CODEC else f"{path}{_CODED}{codec.written}") not in names:
            raise MessageError(kind, path, f"a tensor coded by {codec}", "another codec")
        return tensor

    mapped(message, change)


def decode(
    data: bytes | memoryview | Pieces | Arriving,
    expected: type[M],
    dims: Dims,
    keys: Mapping[str, tuple[int, ...]] | None = None,
    limits: wire.Limits | None = None,
    codecs: Codecs = NO_CODECS,
) -> M:
    """Bytes back to a checked message; the receiver has the same codecs as the sender.

    Raises:
        MessageError: for anything that is not exactly a message of the expected type within the limits.
    """
    limits = limits or wire.Limits()
    if isinstance(data, Arriving):
        kind, packed = data.opened()
    else:
        kind, packed = wire.decode(data, None, limits, finite=False)  # `check` looks at the values
    if kind != kind_of(expected):
        raise MessageError(kind_of(expected), "kind", kind_of(expected), kind)
    if not codecs:
        return check(unflatten(expected, packed), dims, keys)
    names, bound = frozenset(packed), dict[tuple[str, str], int]()

    def look(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        leaf = leaf_at(expected, path)
        if leaf is None:
            raise MessageError(kind, path, "a field of the message", "an unknown one")
        check_declared(kind, path, leaf, dtype, shape, dims, keys, bound)

    message = unflatten(expected, _unpacked(kind, packed, codecs, limits.max_bytes, look))
    _check_codecs(message, names, codecs)
    return check(message, dims, keys)


def read(data: bytes | memoryview | Pieces, codecs: Codecs) -> tuple[str, dict[str, Tensor]]:
    """What bytes say without knowing what they should say, for people who look at messages: kind, tensors by path.

    Raises:
        MessageError: the bytes are no message.
    """
    limits = wire.Limits()
    kind, packed = wire.decode(data, None, limits)
    return kind, _unpacked(kind, packed, codecs, limits.max_bytes)
