"""One message as bytes: what it is called, then its tensors.

::

    offset  bytes  content
    0       4      magic, b"IFSE"
    4       1      version, 1
    5       1      flags, 0
    6       2      length of the kind, little-endian
    8       n      kind, UTF-8
    8 + n   ...    a safetensors file (see `interfuse.wire.body`)

Sizes depend on names, types and shapes, never on values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from torch import Tensor

from interfuse.errors import MessageError
from interfuse.wire.body import (
    LENGTH,
    Filling,
    Layout,
    Limits,
    TensorSpec,
    chunks,
    fault,
    header_length,
    is_text,
    layout,
    read,
    signature,
)
from interfuse.wire.pieces import Pieces

MAGIC = b"IFSE"
COMPACT = 0xC1
"""What the other frame begins with, that of coded messages; see `interfuse.messages.compact`."""
VERSION = 1
FLAGS = 0
DEFAULT_LIMITS = Limits()

_PREFIX = struct.Struct("<4sBBH")


def encode(kind: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A message as bytes; equal tensors give equal bytes, whatever the order of the mapping.

    Tensors are taken to the CPU and made contiguous where they are not. Raises MessageError for a type, a name or a
    layout that cannot travel.
    """
    return bytes(encoded(kind, tensors))


def encoded(kind: str, tensors: Mapping[str, Tensor]) -> Pieces:
    """As :func:`encode`, in pieces that share memory with the tensors: these must not change meanwhile."""
    prefix, body = _prefix(kind), _layout(kind, tensors)
    return Pieces((prefix, *chunks(kind, tensors, body)))


def encoded_size(kind: str, tensors: Mapping[str, Tensor]) -> int:
    """``len(encode(kind, tensors))`` in bytes, from names, types and shapes alone (tensors may be on any device)."""
    return len(_prefix(kind)) + _layout(kind, tensors).size


def raw_size(tensors: Mapping[str, Tensor]) -> int:
    """The payload in bytes: the elements of all tensors times the size of one."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())


def decode(
    data: bytes | memoryview | Pieces,
    spec: Mapping[str, TensorSpec] | None,
    limits: Limits = DEFAULT_LIMITS,
    *,
    finite: bool = True,
) -> tuple[str, dict[str, Tensor]]:
    """The kind and the tensors of a message, checked against ``spec`` and ``limits``.

    The tensors are writable and have memory of their own. Without ``spec`` any names, types and shapes pass, and
    ``finite`` refuses NaN and infinities; with it they pass only where the spec admits them. Nothing is allocated for
    data before all sizes are known to be inside the limits and inside ``data``. Raises MessageError for everything that
    can be wrong with the bytes, and nothing else.
    """
    view = Pieces.of(data)
    _check_size(len(view), limits)
    kind, body = _open(view, limits)
    return kind, read(kind, body, spec, limits, finite=finite)


class Arriving:
    """A message that comes in pieces: what is in them is put where it will stay, and they are let go.

    So a message takes its tensors once, and what a piece takes. Where something is wrong, that is kept until somebody
    opens the message; the rest of it is let go, too. A compact message can be read only by who knows its type: its
    pieces are held until then, beside the tensors that are made of them.

    Args:
        size: Bytes of the message, as its sender has announced them.
        limits: All sizes are checked against them before memory is taken.
    """

    def __init__(self, size: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self._size, self._limits = size, limits
        self._begin = bytearray()  # up to the end of the header
        self._came = 0
        self._kind = ""
        self._filling: Filling | None = None
        self._fault: MessageError | None = None
        self._held: list[bytes | memoryview] | None = None  # of a compact message
        try:
            _check_size(size, limits)
        except MessageError as error:
            self._fault = error

    def __len__(self) -> int:
        return self._size

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the message, of which there are no more than announced."""
        if not self._came and len(piece) and piece[0] == COMPACT:
            self._held = []
        self._came += len(piece)
        if self._fault is not None:
            return
        if self._held is not None:
            self._held.append(piece)
            return
        try:
            if self._filling is None:
                self._start(piece)
            else:
                self._filling.feed(piece)
        except MessageError as error:
            self._fault, self._filling, self._begin = error, None, bytearray()

    def _start(self, piece: bytes | memoryview) -> None:
        """Go on with what stands before the data."""
        self._begin += piece
        begin = Pieces([bytes(self._begin)])
        complete = len(begin) == self._size
        if len(begin) < _PREFIX.size and not complete:
            return
        length = _kind_length(begin, self._size, self._limits)
        place = _PREFIX.size + length
        if len(begin) < place + LENGTH and not complete:
            return
        self._kind, body = _open(begin, self._limits)
        end = LENGTH + header_length(self._kind, bytes(body[:LENGTH]), self._size - place, self._limits)
        if len(body) < end:
            return
        data = body[end:]
        self._filling = Filling(self._kind, bytes(body[LENGTH:end]), self._size - place - end, self._limits)
        self._begin = bytearray()
        for part in data.parts:
            self._filling.feed(part)

    def opened(self) -> tuple[str, dict[str, Tensor]]:
        """Its kind and its tensors, as :func:`decode` gives them without a spec and with ``finite = False``.
        They are the caller's from now on.

        Raises:
            MessageError: for everything that can be wrong with the bytes.
            RuntimeError: it was opened before.
        """
        self._check_complete()
        if self._filling is None:
            raise fault("?", "magic", repr(MAGIC), f"a compact message, or {self._came} bytes (truncated)")
        return self._kind, self._filling.tensors()

    def whole(self) -> Pieces:
        """The bytes of a compact message.

        Raises:
            MessageError: it is none, or something else is wrong with it.
        """
        self._check_complete()
        if self._held is None:
            raise fault("?", "beginning", "a compact message", "another")
        return Pieces(self._held)

    def _check_complete(self) -> None:
        if self._fault is not None:
            raise self._fault
        if self._came != self._size:
            raise fault("?", "message", f"{self._size} bytes", f"{self._came} bytes (truncated)")


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise fault("?", "message", f"at most {limits.max_bytes} bytes", f"{size} bytes")


def _layout(kind: str, tensors: Mapping[str, Tensor]) -> Layout:
    return layout(kind, signature(tensors))


def _prefix(kind: str) -> bytes:
    if not is_text(kind):
        raise fault(kind, "kind", "text that UTF-8 can hold", "a lone surrogate")
    name = kind.encode()
    if len(name) > 0xFFFF:
        raise fault(kind, "kind", f"at most {0xFFFF} bytes", f"{len(name)} bytes")
    return _PREFIX.pack(MAGIC, VERSION, FLAGS, len(name)) + name


def _kind_length(begin: Pieces, size: int, limits: Limits) -> int:
    """Bytes of the kind in a message of ``size`` bytes that begins so."""
    if size < _PREFIX.size:
        raise fault("?", "prefix", f"{_PREFIX.size} bytes", f"{size} bytes (truncated)")
    magic, version, flags, length = _PREFIX.unpack(bytes(begin[: _PREFIX.size]))
    if magic != MAGIC:
        raise fault("?", "magic", repr(MAGIC), repr(magic))
    if version != VERSION:
        raise fault("?", "version", f"{VERSION} (install the same version of interfuse on both sides)", str(version))
    if flags != FLAGS:
        raise fault("?", "flags", str(FLAGS), str(flags))
    if length > limits.max_name:
        raise fault("?", "kind", f"at most {limits.max_name} bytes", f"{length} bytes")
    if length > size - _PREFIX.size:
        raise fault("?", "kind", f"{length} bytes", f"{size - _PREFIX.size} bytes (truncated)")
    return int(length)


def _open(view: Pieces, limits: Limits) -> tuple[str, Pieces]:
    end = _PREFIX.size + _kind_length(view, len(view), limits)
    try:
        return str(bytes(view[_PREFIX.size : end]), "utf-8"), view[end:]
    except UnicodeDecodeError as error:
        raise fault("?", "kind", "text in UTF-8", f"{error.reason} at byte {error.start}") from None
