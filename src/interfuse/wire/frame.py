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

from interfuse.wire.body import Layout, Limits, TensorSpec, chunks, fault, is_text, layout, read, signature
from interfuse.wire.pieces import Pieces

MAGIC = b"IFSE"
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
    data: bytes | memoryview | Pieces, spec: Mapping[str, TensorSpec] | None, limits: Limits = DEFAULT_LIMITS
) -> tuple[str, dict[str, Tensor]]:
    """The kind and the tensors of a message, checked against ``spec`` and ``limits``.

    The tensors are writable and have memory of their own. Without ``spec`` any names, types and shapes pass; NaN and
    infinities pass only where a spec admits them. Nothing is allocated for data before all sizes are known to be
    inside the limits and inside ``data``. Raises MessageError for everything that can be wrong with the bytes, and
    nothing else.
    """
    view = Pieces.of(data)
    if len(view) > limits.max_bytes:
        raise fault("?", "message", f"at most {limits.max_bytes} bytes", f"{len(view)} bytes")
    kind, body = _open(view, limits)
    return kind, read(kind, body, spec, limits)


def _layout(kind: str, tensors: Mapping[str, Tensor]) -> Layout:
    return layout(kind, signature(tensors))


def _prefix(kind: str) -> bytes:
    if not is_text(kind):
        raise fault(kind, "kind", "text that UTF-8 can hold", "a lone surrogate")
    name = kind.encode()
    if len(name) > 0xFFFF:
        raise fault(kind, "kind", f"at most {0xFFFF} bytes", f"{len(name)} bytes")
    return _PREFIX.pack(MAGIC, VERSION, FLAGS, len(name)) + name


def _open(view: Pieces, limits: Limits) -> tuple[str, Pieces]:
    if len(view) < _PREFIX.size:
        raise fault("?", "prefix", f"{_PREFIX.size} bytes", f"{len(view)} bytes (truncated)")
    magic, version, flags, length = _PREFIX.unpack(bytes(view[: _PREFIX.size]))
    if magic != MAGIC:
        raise fault("?", "magic", repr(MAGIC), repr(magic))
    if version != VERSION:
        raise fault("?", "version", f"{VERSION} (install the same version of interfuse on both sides)", str(version))
    if flags != FLAGS:
        raise fault("?", "flags", str(FLAGS), str(flags))
    if length > limits.max_name:
        raise fault("?", "kind", f"at most {limits.max_name} bytes", f"{length} bytes")
    if length > len(view) - _PREFIX.size:
        raise fault("?", "kind", f"{length} bytes", f"{len(view) - _PREFIX.size} bytes (truncated)")
    end = _PREFIX.size + length
    try:
        return str(bytes(view[_PREFIX.size : end]), "utf-8"), view[end:]
    except UnicodeDecodeError as error:
        raise fault("?", "kind", "text in UTF-8", f"{error.reason} at byte {error.start}") from None
