"""Named tensors as one safetensors file: u64 header length, JSON header, data.

Format: https://github.com/huggingface/safetensors (README, "Format"). Writing and reading are done here and not by the
library, for reasons that were measured or are needed:

- writing: the library copies the data twice (100 MB: 0.09 s against 0.04 s), refuses tensors that share memory and
  puts metadata in random order. The bytes written here equal the library's (a test compares them), and one
  function makes the header for the file and for its size.
- reading: the header comes from a stranger. The grammar of a header is closed and flat, so it is read by regular
  expressions that neither recurse nor build anything beyond the declared limits, and every fault is named.

Data is little-endian, as are all machines that PyTorch publishes builds for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.wire.memory import fresh
from interfuse.wire.pieces import Pieces

METADATA = "__metadata__"  # reserved by the format
MAX_RANK = 64  # what NumPy and many of PyTorch's kernels can take

# In ascending order of the library's data types: it writes wide types first, so that data stays aligned.
_CODES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_CODES)}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor must look like; a dimension of ``None`` may have any size.

    ``finite`` refuses NaN and infinities; it says nothing about integers.
    """

    dtype: torch.dtype
    shape: tuple[int | None, ...]
    finite: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver is ready to take. Sizes in bytes; names are measured in UTF-8.

    ``max_bytes`` bounds the whole message, and also each shape with its empty dimensions counted as one: a tensor
    without elements cannot claim a width that nobody could hold.
    """

    max_bytes: int = 2 * 1024**3
    max_tensors: int = 100_000
    max_header_bytes: int = 8 * 1024**2
    max_name: int = 256


Signature = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The header of a file (with its length in front), the order of the data, and the length of the file in bytes."""

    header: bytes
    names: tuple[str, ...]
    size: int


def shown(text: str) -> str:
    """Text from a stranger, made fit for a log line: short and printable."""
    short = text if len(text) <= 80 else text[:77] + "..."
    return short if short.isprintable() else ascii(short)


def fault(message: str, field: str, expected: str, found: str) -> MessageError:
    """A MessageError whose parts are fit for a log line; ``expected`` is ours, the rest may be a stranger's."""
    return MessageError(shown(message), shown(field), expected, shown(found))


def signature(tensors: Mapping[str, Tensor]) -> Signature:
    """Names, types and shapes: all that sizes depend on."""
    return tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())


def laid_out(message: str, fields: Signature, metadata: Metadata = ()) -> Layout:
    """The layout of a file of these tensors; ``message`` names it in errors.

    Raises MessageError for a type, name or rank that cannot be written.
    """
    header: dict[str, object] = {METADATA: dict(sorted(metadata))} if metadata else {}
    position = 0
    names = []
    for field in fields:
        _check_writable(message, *field)
    for name, dtype, shape in sorted(fields, key=_data_order):
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": (position, end)}
        position = end
        names.append(name)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Layout(len(text).to_bytes(8, "little") + text, tuple(names), 8 + len(text) + position)


layout = lru_cache(maxsize=256)(laid_out)
"""The same for what is laid out again and again."""


def _check_writable(message: str, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if dtype not in _CODES:
        raise fault(message, name, f"one of the types {', '.join(_DTYPES)}", str(dtype))
    if name == METADATA or not is_text(name):
        raise fault(message, name, f"a name in UTF-8 other than {METADATA}", ascii(name))
    if len(shape) > MAX_RANK:
        raise fault(message, name, f"at most {MAX_RANK} dimensions", str(len(shape)))


def _data_order(field: tuple[str, torch.dtype, tuple[int, ...]]) -> tuple[int, str]:
    name, dtype, _ = field
    return -_RANKS[dtype], name


def is_text(text: str) -> bool:
    """Whether the text can be written as UTF-8 (it has no lone surrogate)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def chunks(message: str, tensors: Mapping[str, Tensor], plan: Layout) -> Iterator[bytes | memoryview]:
    """The file in pieces, each valid as long as it is held: the header, then the data of one tensor after the other.

    Raises MessageError for a tensor that has no dense data (sparse, quantised, on the meta device).
    """
    yield plan.header
    for name in plan.names:
        yield bytes_of(message, name, tensors[name])


def bytes_of(message: str, name: str, tensor: Tensor) -> memoryview:
    """The data of a tensor, which is not copied where it is dense and on the CPU.

    Raises:
        MessageError: it has none.
    """
    if tensor.layout != torch.strided or tensor.is_meta:
        found = "a tensor on the meta device" if tensor.is_meta else f"layout {tensor.layout}"
        raise fault(message, name, "a dense tensor with data", found)
    dense = tensor.detach().cpu().resolve_neg().contiguous()
    # A single element counts as contiguous whatever its strides, and a view as bytes would refuse those.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().data


@dataclass(frozen=True, slots=True)
class _Field:
    """One entry of a header: ``begin`` and ``end`` are offsets in bytes into the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


_SPACE = r"[ \t\n\r]*+"
_CHARACTERS = r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_INTEGER = r"(?:0|[1-9][0-9]{0,18}+)"
_COLON = f"{_SPACE}:{_SPACE}"
_COMMA = f"{_SPACE},{_SPACE}"
_PAIR = f'"{_CHARACTERS}"{_COLON}"{_CHARACTERS}"'

_OPEN = re.compile(rf"\{{{_SPACE}")
_CLOSE = re.compile(r"\}")
_NAME = re.compile(f'"({_CHARACTERS})"{_COLON}')
_NEXT = re.compile(rf"{_SPACE}([,}}]){_SPACE}")
_STOP = re.compile(rf"{_SPACE}\Z")
_STRINGS = re.compile(rf"\{{{_SPACE}(?:{_PAIR}(?:{_COMMA}{_PAIR})*+)?+{_SPACE}\}}")
_ENTRY = re.compile(
    rf"\{{{_SPACE}(?:(?:"
    rf'"dtype"{_COLON}"([A-Z0-9_]*+)"'
    rf'|"shape"{_COLON}\[{_SPACE}((?:{_INTEGER}(?:{_COMMA}{_INTEGER})*+)?+){_SPACE}\]'
    rf'|"data_offsets"{_COLON}\[{_SPACE}({_INTEGER}){_COMMA}({_INTEGER}){_SPACE}\]'
    rf"){_SPACE}(?:,{_SPACE}(?!\}})|(?=\}}))){{3}}\}}"
)
_ENTRY_WORDS = "an object of dtype, shape and data_offsets, natural numbers below 10^19"


def read(
    message: str,
    body: Pieces,
    spec: Mapping[str, TensorSpec] | None,
    limits: Limits,
    *,
    finite: bool = True,
    metadata: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order of their data, each with memory of its own.

    Without ``spec`` any names, types and shapes pass, and ``finite`` decides about NaN and infinities. ``metadata``
    says whether the file may carry any (it is skipped). All sizes are checked before the first tensor is allocated.
    Raises MessageError, which names ``message``, for everything that is wrong with the file.
    """
    header, data = _split(message, body, limits)
    filling = Filling(message, header, len(data), limits, metadata=metadata)
    if spec is not None:
        _check_spec(message, filling.fields, spec)
    for part in data.parts:
        filling.feed(part)
    found = filling.tensors()
    for name, tensor in found.items():
        if finite if spec is None else spec[name].finite:
            _check_finite(message, name, tensor)
    return found


def metadata_of(message: str, body: Pieces, limits: Limits) -> dict[str, str]:
    """The metadata of a file that :func:`read` has taken with ``metadata=True``: it has proven the grammar."""
    header, _ = _split(message, body, limits)
    found: dict[str, str] = json.loads(str(header, "utf-8")).get(METADATA, {})
    return found


def places(message: str, header: bytes, available: int, limits: Limits) -> list[tuple[str, int, int]]:
    """The names in a header without metadata, with where the data of each begins and ends, which are ``available``
    bytes in all. Raises MessageError as :func:`read` does."""
    found = _placed(message, _text(message, header), available, limits, metadata=False)
    return [(field.name, field.begin, field.end) for field in found]


def _placed(message: str, header: str, available: int, limits: Limits, metadata: bool) -> list[_Field]:
    found = sorted(_fields(message, header, limits, metadata), key=lambda field: (field.begin, field.end))
    _check_cover(message, found, available)
    return found


LENGTH = 8
"""Bytes of the length of a header, which stands before it."""


def header_length(message: str, begin: bytes, size: int, limits: Limits) -> int:
    """How long the header of a file of ``size`` bytes is, that begins so.

    Raises:
        MessageError: it cannot be so long.
    """
    if size < LENGTH:
        raise fault(message, "header", f"{LENGTH} bytes of header length", f"{size} bytes (truncated)")
    length = int.from_bytes(begin, "little")
    if length > limits.max_header_bytes:
        raise fault(message, "header", f"at most {limits.max_header_bytes} bytes", f"{length} bytes")
    if length > size - LENGTH:
        raise fault(message, "header", f"{length} bytes", f"{size - LENGTH} bytes (truncated)")
    return length


def _split(message: str, body: Pieces, limits: Limits) -> tuple[bytes, Pieces]:
    end = LENGTH + header_length(message, bytes(body[:LENGTH]), len(body), limits)
    return bytes(body[LENGTH:end]), body[end:]


def _text(message: str, header: bytes) -> str:
    try:
        return str(header, "utf-8")
    except UnicodeDecodeError as error:
        raise fault(message, "header", "text in UTF-8", f"{error.reason} at byte {error.start}") from None


def _fields(message: str, header: str, limits: Limits, metadata: bool) -> Iterator[_Field]:
    cursor = _Cursor(message, header)
    cursor.take(_OPEN, "header", "a JSON object")
    if not cursor.skip(_CLOSE):
        seen: set[str] = set()
        while True:
            name = _name(message, cursor.take(_NAME, "header", "a quoted name and a colon")[1], limits)
            if name in seen:
                raise fault(message, name, "each name once", "a second entry of this name")
            if len(seen) == limits.max_tensors:
                raise fault(message, "header", f"at most {limits.max_tensors} tensors", "more")
            if name == METADATA and metadata:
                cursor.take(_STRINGS, name, "an object of strings")
            else:
                yield _field(message, name, cursor.take(_ENTRY, name, _ENTRY_WORDS), limits)
            seen.add(name)
            if cursor.take(_NEXT, "header", "a comma or the end of the object")[1] == "}":
                break
    cursor.take(_STOP, "header", "nothing after the JSON object")


class _Cursor:
    """A position in a header that moves on by what a pattern matches there."""

    def __init__(self, message: str, text: str) -> None:
        self._message, self._text, self._position = message, text, 0

    def skip(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self._text, self._position)
        self._position = match.end() if match else self._position
        return match is not None

    def take(self, pattern: re.Pattern[str], field: str, expected: str) -> re.Match[str]:
        match = pattern.match(self._text, self._position)
        if match is None:
            raise fault(self._message, field, expected, repr(self._text[self._position : self._position + 40]))
        self._position = match.end()
        return match


def _name(message: str, quoted: str, limits: Limits) -> str:
    # The pattern admits valid escapes only, so this cannot fail. Twelve characters are the longest escape of one.
    name = str(json.loads(f'"{quoted}"')) if "\\" in quoted and len(quoted) <= 12 * limits.max_name else quoted
    if not is_text(name):
        raise fault(message, name, "a name in UTF-8", "a lone surrogate")
    if len(name.encode()) > limits.max_name:
        raise fault(message, name, f"a name of at most {limits.max_name} bytes", f"{len(name.encode())} bytes")
    return name


def _field(message: str, name: str, entry: re.Match[str], limits: Limits) -> _Field:
    code, dimensions, begin, end = entry.groups()
    if code is None or dimensions is None or begin is None:
        raise fault(message, name, _ENTRY_WORDS, entry[0][:40])
    if code not in _DTYPES:
        raise fault(message, name, f"one of the types {', '.join(_DTYPES)}", code)
    rank = dimensions.count(",") + 1 if dimensions else 0
    if rank > MAX_RANK:
        raise fault(message, name, f"at most {MAX_RANK} dimensions", str(rank))
    shape = tuple(map(int, dimensions.split(","))) if dimensions else ()
    dtype = _DTYPES[code]
    extent = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if extent > limits.max_bytes:
        raise fault(message, name, f"at most {limits.max_bytes} bytes", f"shape {list(shape)}")
    size = 0 if 0 in shape else extent
    if int(end) - int(begin) != size:
        raise fault(message, name, f"{size} bytes for shape {list(shape)} of {code}", f"data offsets {begin} to {end}")
    return _Field(name, dtype, shape, int(begin), int(end))


def _check_cover(message: str, fields: list[_Field], available: int) -> None:
    position = 0
    for field in fields:
        if field.begin != position:
            found = f"{field.begin} ({'an overlap' if field.begin < position else 'a hole'})"
            raise fault(message, field.name, f"data from byte {position}", found)
        if field.end > available:
            raise fault(message, field.name, f"data up to byte {field.end}", f"{available} bytes (truncated)")
        position = field.end
    if position != available:
        raise fault(message, "data", f"{position} bytes", f"{available} bytes (trailing bytes)")


def _check_spec(message: str, fields: Sequence[_Field], spec: Mapping[str, TensorSpec]) -> None:
    for field in fields:
        if field.name not in spec:
            declared = ", ".join(sorted(spec)[:8]) + (", ..." if len(spec) > 8 else "")
            raise fault(message, field.name, f"a declared name ({declared})", "an undeclared tensor")
        wanted = spec[field.name]
        if field.dtype != wanted.dtype:
            raise fault(message, field.name, str(wanted.dtype), str(field.dtype))
        if not _fits(field.shape, wanted.shape):
            raise fault(message, field.name, f"shape {_words(wanted.shape)}", f"shape {_words(field.shape)}")
    missing = spec.keys() - {field.name for field in fields}
    if missing:
        raise fault(message, min(missing), "a tensor of this name", "none")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def _words(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


class Filling:
    """Tensors that are filled where they will stay, in the order of a header, whatever pieces their data comes in.

    Memory for a tensor is taken when the first of its bytes is there. NaN and infinities pass: whoever knows what the
    tensors mean looks at them.

    Args:
        message: Names the message in errors.
        header: Of a safetensors file, without the eight bytes of its length.
        available: How many bytes of data will come.
        metadata: As in :func:`read`.

    Raises:
        MessageError: the header is none, or beyond the limits.
    """

    def __init__(self, message: str, header: bytes, available: int, limits: Limits, *, metadata: bool = False) -> None:
        self.fields = tuple(_placed(message, _text(message, header), available, limits, metadata))
        self._message, self._tensors = message, dict[str, Tensor]()
        self._raw = np.empty(0, np.uint8)
        self._filled, self._given = 0, False

    def feed(self, piece: bytes | memoryview) -> None:
        """Copy the next piece of the data to its place.

        Raises:
            MessageError: there is no memory for a tensor, or a truth value is none.
        """
        left = np.frombuffer(piece, np.uint8)
        while len(left):
            if self._filled == len(self._raw):
                self._begin()
                continue
            count = min(len(left), len(self._raw) - self._filled)
            self._raw[self._filled : self._filled + count] = left[:count]
            self._filled, left = self._filled + count, left[count:]
            if self._filled == len(self._raw):
                self._check_truth()

    def tensors(self) -> dict[str, Tensor]:
        """All of them, once all of their data was there: from now on they are the caller's.

        Raises:
            RuntimeError: they were given away before.
        """
        if self._given:
            raise RuntimeError("a message is opened once: its tensors were given away")
        self._given = True
        while len(self._tensors) < len(self.fields):  # what has no data
            self._begin()
        found, self._tensors = self._tensors, {}
        self._raw = np.empty(0, np.uint8)
        return found

    def _begin(self) -> None:
        """Take memory for the next tensor."""
        field = self.fields[len(self._tensors)]
        tensor = blank(self._message, field.name, field.dtype, field.shape)
        self._tensors[field.name] = tensor
        self._raw, self._filled = tensor.view(-1).view(torch.uint8).numpy(), 0

    def _check_truth(self) -> None:
        field = self.fields[len(self._tensors) - 1]
        check_truth(self._message, field.name, field.dtype, self._raw)


def blank(message: str, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Memory for a tensor.

    Raises:
        MessageError: there is none.
    """
    try:
        return fresh(shape, dtype)
    except (MemoryError, RuntimeError):
        length = math.prod(shape) * dtype.itemsize
        raise fault(message, name, f"{length} bytes of free memory", "less") from None


def check_truth(message: str, name: str, dtype: torch.dtype, raw: np.ndarray) -> None:
    """Check that the bytes of truth values are such.

    Raises:
        MessageError: one is neither 0 nor 1.
    """
    if dtype == torch.bool and len(raw) and (largest := int(raw.max())) > 1:
        raise fault(message, name, "truth values of 0 or 1", str(largest))


def filled(message: str, name: str, dtype: torch.dtype, shape: tuple[int, ...], data: Pieces) -> Tensor:
    """A tensor with memory of its own from data of its length.

    Raises:
        MessageError: there is no memory for it, or data that no tensor of the type has.
    """
    tensor = blank(message, name, dtype, shape)
    if len(data):
        raw, place = tensor.view(-1).view(torch.uint8).numpy(), 0
        for part in data.parts:
            raw[place : place + len(part)] = np.frombuffer(part, np.uint8)
            place += len(part)
        check_truth(message, name, dtype, raw)
    return tensor


def _check_finite(message: str, name: str, tensor: Tensor) -> None:
    # The extremes of a tensor are NaN if any element is: one pass, and no mask as long as the tensor.
    if (
        tensor.numel()
        and tensor.dtype.is_floating_point
        and not all(map(math.isfinite, map(float, torch.aminmax(tensor))))
    ):
        raise fault(message, name, "finite numbers", "NaN or an infinity")
