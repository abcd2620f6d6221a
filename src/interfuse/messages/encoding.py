"""Messages as bytes: by name and type without codecs, in the compact frame with any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from functools import partial

import torch
from torch import Tensor

from interfuse import wire
from interfuse.errors import MessageError
from interfuse.messages import compact
from interfuse.messages.delivery import check, check_declared
from interfuse.messages.records import Dims, Leaf, M, Message, Precision, flatten, kind_of, mapped, unflatten
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
    """A checked message as its receiver gets it: rows in order, numbers rounded. Doing so again changes nothing.

    Args:
        generator: For rounding at random.
        feedback: What rounding has lost so far by kind and path, for fields whose codec gives it back; replaced by what
            is lost now.
    """
    kind = kind_of(message)
    if any(codec.ordered for codec in codecs.rules.values()):
        message = _in_order(message, codecs)

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


def _in_order(message: M, codecs: Codecs) -> M:
    """The same message with the rows of records in the order of their labels, where a codec puts them in order."""
    kind, orders = kind_of(message), dict[tuple[str, str], Tensor]()

    def look(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        if leaf.unordered and leaf.dims and tensor.ndim == 1 and codec_of(codecs, kind, leaf, 1).ordered:
            # not every unsigned type can be sorted
            order = tensor.to(torch.int64).argsort(stable=True)
            orders[path.rpartition("/")[0], leaf.dims[0]] = order
        return tensor

    def put(leaf: Leaf, tensor: Tensor, path: str) -> Tensor:
        order = orders.get((path.rpartition("/")[0], leaf.dims[0])) if leaf.dims else None
        return tensor if order is None else tensor[order]

    mapped(message, look)
    return mapped(message, put) if orders else message


def encode(message: Message, codecs: Codecs = NO_CODECS) -> bytes:
    """A message as bytes.

    Raises:
        MessageError: a tensor has a codec and is not :func:`rounded`.
    """
    return bytes(encoded(message, codecs))


def encoded(message: Message, codecs: Codecs = NO_CODECS) -> Pieces:
    """As :func:`encode`, in pieces that share memory with the message: its tensors must not change meanwhile."""
    if codecs.compact:
        return compact.encoded(message, codecs, partial(codec_of, codecs, kind_of(message)))
    return wire.encoded(kind_of(message), flatten(message))


def sizes(message: Message, codecs: Codecs = NO_CODECS) -> tuple[int, int]:
    """Raw payload and length of the encoded form in bytes. Only what has codecs is really encoded."""
    flat = flatten(message)
    size = len(encoded(message, codecs)) if codecs.compact else wire.encoded_size(kind_of(message), flat)
    return wire.raw_size(flat), size


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
    limits, name = limits or wire.Limits(), kind_of(expected)
    if not codecs.compact:
        if isinstance(data, Arriving):
            kind, flat = data.opened()
        else:
            kind, flat = wire.decode(data, None, limits, finite=False)  # `check` looks at the values
        if kind != name:
            raise MessageError(name, "kind", name, kind)
        return check(unflatten(expected, flat), dims, keys)
    bound: dict[tuple[str, str], int] = {}

    def look(path: str, leaf: Leaf, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        check_declared(name, path, leaf, dtype, shape, dims, keys, bound)

    pieces = data.whole() if isinstance(data, Arriving) else Pieces.of(data)
    found = compact.decoded(expected, pieces, limits, codecs, partial(codec_of, codecs, name), look)
    return check(unflatten(expected, found), dims, keys)


def read(
    data: bytes | memoryview | Pieces, codecs: Codecs, kinds: Iterable[type[Message]] = ()
) -> tuple[str, dict[str, Tensor]]:
    """What bytes say without knowing which of some kinds they are, for people who look at messages: kind, tensors by
    path.

    Raises:
        MessageError: the bytes are no message.
    """
    pieces, limits = Pieces.of(data), wire.Limits()
    for kind in kinds if codecs.compact else ():
        if compact.is_of(kind, pieces, codecs):
            codec = partial(codec_of, codecs, kind_of(kind))
            found = compact.decoded(kind, pieces, limits, codecs, codec, lambda path, leaf, dtype, shape: None)
            return kind_of(kind), found
    return wire.decode(pieces, None, limits)
