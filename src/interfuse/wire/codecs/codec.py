"""One codec: rounding, which may lose something, and writing, which loses nothing of what was rounded.

A text names it, parts joined by ``+``::

    topk:0.1      the tenth of largest magnitude of each row; the rest is zero
    fp16, bf16    a half-precision float, rounded to the nearest
    int8, int4, int2            a grid of few bits, rounded at random with the right mean; a scale for each row
    int8:tensor                 the same with one scale for the whole tensor
    nearest       a grid of few bits is rounded to the nearest, not at random
    sorted        rows are put in the order of their labels; for labels of rows whose order means nothing
    ef            error feedback: what rounding lost is added to what is sent next
    zstd, zstd:19               entropy coding by Zstandard, level 3 or another
    none          nothing is done

A coded tensor by itself is a piece of bytes; in a message its type and shape stand in the frame, and only the rest here
(see `interfuse.messages.compact`). All numbers are little-endian::

    bytes   content
    1       type of the numbers, 1: rank, 4 a dimension: shape
    rest    by zstd if so, otherwise as it is:
            3 a row: scales (int8, int4, int2; see `interfuse.wire.codecs.grids`)
            4: how many numbers are not zero, and where they are (topk): a bit for each number, or the places of those
               that are not zero with 2 bytes each (4 above 65,536 numbers), whichever is shorter
            the numbers, or those that are not zero
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
import zstandard
from torch import Tensor

from interfuse.errors import ConfigError
from interfuse.wire.body import MAX_RANK, fault
from interfuse.wire.codecs import grids
from interfuse.wire.codecs.grids import BITS, BYTES_OF_SCALE, Per
from interfuse.wire.memory import fresh

Values = Literal["fp16", "bf16", "int8", "int4", "int2"]

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_TYPES = (
    torch.float32, torch.uint8, torch.uint16, torch.uint32, torch.int64, torch.float64, torch.bool, torch.int8,
    torch.int16, torch.int32, torch.float16, torch.bfloat16,
)  # fmt: skip
_HEAD = struct.Struct("<BB")
_COUNT = struct.Struct("<I")
_LEVEL = 3
_WORDS = (
    "topk:FRACTION, fp16, bf16, int8, int4, int2 (:row or :tensor), nearest, sorted, ef, zstd (:LEVEL), joined by +; "
    "or none"
)


@dataclass(frozen=True)
class Codec:
    """What is done to a tensor on its way.

    Attributes:
        keep: The fraction of each row that is sent; None is all.
        values: How a number is written; None is in full.
        per: What has a scale of its own.
        nearest: Grids of few bits are rounded to the nearest, not at random.
        ordered: Rows are put in the order of their labels, which these are.
        feedback: What rounding lost is added to what is sent next.
        level: Of zstd; None is no entropy coding.
    """

    keep: float | None = None
    values: Values | None = None
    per: Per = "row"
    nearest: bool = False
    ordered: bool = False
    feedback: bool = False
    level: int | None = None

    @classmethod
    def parse(cls, text: str) -> Codec:
        """The codec of a text.

        Raises:
            ConfigError: the text names none.
        """
        found: dict[str, object] = {}
        for part in "".join(text.split()).split("+"):
            name, _, option = part.partition(":")
            said = _part(name, option)
            if said is None or found.keys() & said.keys():
                raise ConfigError(f"codec {text!r}: {part!r} is unknown or there twice; valid: {_WORDS}")
            found |= said
        if len(found) > 1 and "none" in found:
            raise ConfigError(f"codec {text!r}: none stands alone")
        found.pop("none", None)
        codec = cls(**found)  # type: ignore[arg-type]  # _part knows the fields
        if codec.feedback and not codec.lossy:
            raise ConfigError(f"codec {text!r}: ef gives back what rounding lost, and nothing is rounded")
        if codec.nearest and codec.values not in BITS:
            raise ConfigError(f"codec {text!r}: nearest is how int8, int4 and int2 round, and none of them is there")
        if codec.ordered and codec.lossy:
            raise ConfigError(f"codec {text!r}: sorted is for labels, which nothing may round")
        return codec

    def __str__(self) -> str:
        parts = [] if self.keep is None else [f"topk:{self.keep:g}"]
        if self.values is not None:
            parts.append(self.values + (":tensor" if self.values in BITS and self.per == "tensor" else ""))
        parts += ["nearest"] * self.nearest + ["sorted"] * self.ordered + ["ef"] * self.feedback
        if self.level is not None:
            parts.append("zstd" if self.level == _LEVEL else f"zstd:{self.level}")
        return "+".join(parts) or "none"

    @property
    def lossy(self) -> bool:
        """Whether anything may be lost."""
        return self.keep is not None or self.values is not None

    @property
    def written(self) -> str:
        """What a receiver has to know: the text without what concerns the sender alone."""
        return str(replace(self, feedback=False, nearest=False, ordered=False))

    @property
    def unthinned(self) -> Codec:
        """The same without leaving out small numbers."""
        return replace(self, keep=None, feedback=self.feedback and self.values is not None)

    @property
    def measured(self) -> bool:
        """Whether the length of the bytes follows from the shape."""
        return self.keep is None and self.level is None

    def round(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A finite float32 tensor as its receiver gets it; rounding that again changes nothing."""
        if not x.numel():
            return x
        if self.keep is not None:
            rows = grids.rows_of(x, self.per)
            order = rows.abs().argsort(dim=1, descending=True, stable=True)[:, : self._kept(rows.shape[1])]
            x = torch.zeros_like(rows).scatter(1, order, rows.gather(1, order)).reshape(x.shape)
        if self.values in _HALVES:
            half = _HALVES[self.values]
            most = torch.finfo(half).max
            x = x.clamp(-most, most).to(half).to(torch.float32)
        elif self.values is not None:
            rows = grids.rows_of(x, self.per)
            noise = 0.5 if self.nearest else torch.rand(rows.shape, generator=generator).to(x.device)
            x = grids.project(rows, BITS[self.values], noise).reshape(x.shape)
        return x + 0.0 if self.lossy else x  # a zero has no sign

    def pack(self, x: Tensor) -> bytes:
        """A rounded tensor as bytes, with its type and shape; equal tensors give equal bytes.

        Raises:
            ValueError: it is not rounded, or has no type or shape that can be written.
        """
        if x.dtype not in _TYPES or max((*x.shape, x.ndim)) >= 2**32:
            raise ValueError(f"{x.dtype} of shape {tuple(x.shape)} cannot be coded by {self}")
        head = _HEAD.pack(_TYPES.index(x.dtype), x.ndim) + struct.pack(f"<{x.ndim}I", *x.shape)
        return head + self.write(x)

    def write(self, x: Tensor) -> bytes:
        """A rounded tensor as bytes for a reader who knows its type and shape.

        Raises:
            ValueError: it is not rounded.
        """
        if self.lossy and x.dtype != torch.float32:
            raise ValueError(f"{x.dtype} of shape {tuple(x.shape)} cannot be coded by {self}")
        x = x.detach().cpu().contiguous()
        payload = self._payload(x) if x.numel() else b""
        return payload if self.level is None else zstandard.ZstdCompressor(self.level).compress(payload)

    def _payload(self, x: Tensor) -> bytes:
        flat, bits = x.view(-1), BITS.get(self.values or "")
        chosen = None if self.keep is None else flat.nonzero().flatten()
        where = b"" if chosen is None else _COUNT.pack(len(chosen)) + _write_places(chosen.numpy(), len(flat))
        if bits is not None:
            coded = grids.to_codes(grids.rows_of(x, self.per), bits)
            if coded is None:
                raise ValueError(f"the tensor does not lie on the grid of {self}; round it first")
            codes = coded[1].reshape(-1)
            return coded[0].tobytes() + where + grids.pack(codes if chosen is None else codes[chosen.numpy()], bits)
        if self.values is not None:
            half = flat.to(_HALVES[self.values])
            if not torch.equal(half.to(torch.float32), flat):
                raise ValueError(f"the tensor has numbers that {self} cannot hold; round it first")
            flat = half
        return where + _bytes_of(flat if chosen is None else flat[chosen])

    def unpack(self, data: np.ndarray, limit: int, message: str, field: str) -> Tensor:
        """The tensor of bytes that :meth:`pack` made, wherever they come from.

        Nothing is allocated before all sizes are known to be within ``limit``, in bytes.

        Raises:
            MessageError: the bytes are no tensor of this codec within the limit.
        """
        dtype, shape, rest = _head(np.ascontiguousarray(data).data, limit, message, field)
        return self.read(rest, dtype, shape, message, field)

    def length(self, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
        """Bytes that :meth:`write` makes of such a tensor, before zstd at most so many; where they are ``measured``,
        exactly so many."""
        count = math.prod(shape)
        rows, kept = self._rows(shape)
        places = _COUNT.size + _size_of_places(kept, count) if self.keep is not None and count else 0
        return self._size_of_scales(rows) + self._size(kept, dtype) + places

    def read(self, rest: memoryview, dtype: torch.dtype, shape: tuple[int, ...], message: str, field: str) -> Tensor:
        """The tensor of bytes that :meth:`write` made, wherever they come from; the caller has allowed its memory.

        Raises:
            MessageError: the bytes are no such tensor of this codec.
        """
        if self.lossy and dtype != torch.float32:
            raise fault(message, field, "torch.float32", str(dtype))
        count, most = math.prod(shape), self.length(dtype, shape)
        rows, kept = self._rows(shape)
        scales = self._size_of_scales(rows)
        payload = rest if self.level is None else _decompress(rest, most, message, field)
        if len(payload) > most or (self.keep is None and len(payload) < most):
            raise fault(message, field, f"{most} bytes for shape {list(shape)}", f"{len(payload)} bytes")
        if not count:
            return torch.empty(shape, dtype=dtype)
        if len(payload) < scales:
            raise fault(message, field, f"{scales} bytes of scales", f"{len(payload)} bytes")
        sent, where, numbers = self._places(payload[scales:], count, kept, message, field)
        if len(numbers) != self._size(sent, dtype):
            raise fault(message, field, f"{self._size(sent, dtype)} bytes of numbers", f"{len(numbers)} bytes")
        try:
            tensor = fresh(shape, dtype)
        except (MemoryError, RuntimeError):
            raise fault(message, field, f"{count * dtype.itemsize} bytes of free memory", "less") from None
        raw, flat = np.frombuffer(numbers, np.uint8), tensor.view(-1)
        if self.values in BITS:
            factors = np.frombuffer(payload[:scales], np.uint8).reshape(rows, BYTES_OF_SCALE)
            codes = grids.unpack(raw, sent, BITS[self.values])
            if not grids.from_codes(factors, codes, where, flat.view(rows, -1).numpy(), BITS[self.values]):
                raise fault(message, field, "finite scales and codes on the grid", "others")
        elif where is None and self.values is None:
            if dtype == torch.bool and int(raw.max()) > 1:
                raise fault(message, field, "truth values of 0 or 1", "another")
            flat.view(torch.uint8).numpy()[:] = raw
        else:
            _write_floats(raw, self.values, where, flat.numpy())
        return tensor

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many rows a tensor has, and how many numbers of all of them may be other than zero."""
        count = math.prod(shape)
        rows = grids.number_of_rows(shape, self.per) if count else 0
        return rows, self._kept(count // rows) * rows if rows else 0

    def _size_of_scales(self, rows: int) -> int:
        return BYTES_OF_SCALE * rows if self.values in BITS else 0

    def _kept(self, columns: int) -> int:
        """How many numbers of a row may be other than zero."""
        return columns if self.keep is None else max(1, math.ceil(self.keep * columns))

    def _size(self, count: int, dtype: torch.dtype) -> int:
        """Bytes of so many numbers."""
        if self.values in BITS:
            return -(-count * BITS[self.values] // 8)
        return count * (dtype if self.values is None else _HALVES[self.values]).itemsize

    def _places(
        self, payload: memoryview, count: int, kept: int, message: str, field: str
    ) -> tuple[int, np.ndarray | None, memoryview]:
        """How many numbers were sent, which of them (None for all), and the rest of the payload."""
        if self.keep is None:
            return count, None, payload
        if len(payload) < _COUNT.size:
            raise fault(message, field, "a count of 4 bytes", f"{len(payload)} bytes")
        sent = _COUNT.unpack_from(payload)[0]
        end = _COUNT.size + _size_of_places(min(sent, kept), count)
        if sent > kept or len(payload) < end:
            raise fault(message, field, f"at most {kept} places in {end} bytes", f"{sent} in {len(payload)} bytes")
        where = _read_places(payload[_COUNT.size : end], sent, count)
        if where is None:
            raise fault(message, field, f"{sent} ascending places below {count}", "others")
        return sent, where, payload[end:]


NO_CODEC = Codec()
"""A tensor travels as it is."""


def _part(name: str, option: str) -> dict[str, object] | None:
    """What one part of a text says; None where it says nothing."""
    if name in BITS and option in ("", "row", "tensor"):
        return {"values": name, "per": cast(Per, option or "row")}
    if name in _HALVES and not option:
        return {"values": name}
    flags = {"ef": "feedback", "nearest": "nearest", "sorted": "ordered"}
    if name in flags and not option:
        return {flags[name]: True}
    if name == "none" and not option:
        return {"none": True}
    if name == "zstd" and (not option or (option.isdecimal() and 1 <= int(option) <= 22)):
        return {"level": int(option or _LEVEL)}
    if name == "topk":
        try:
            keep = float(option)
        except ValueError:
            return None
        return {"keep": keep} if 0 < keep < 1 else None
    return None


def _bytes_of(x: Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _head(view: memoryview, limit: int, message: str, field: str) -> tuple[torch.dtype, tuple[int, ...], memoryview]:
    """Type and shape, whose size is within the limit, and the rest."""
    if len(view) < _HEAD.size:
        raise fault(message, field, f"{_HEAD.size} bytes of type and rank", f"{len(view)} bytes (truncated)")
    code, rank = _HEAD.unpack_from(view)
    end = _HEAD.size + 4 * rank
    if code >= len(_TYPES) or rank > MAX_RANK or len(view) < end:
        raise fault(message, field, "a known type and a shape", f"type {code}, rank {rank}, {len(view)} bytes")
    dtype, shape = _TYPES[code], struct.unpack_from(f"<{rank}I", view, _HEAD.size)
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > limit:
        raise fault(message, field, f"at most {limit} bytes", f"shape {list(shape)}")
    return dtype, shape, view[end:]


def _decompress(data: memoryview, most: int, message: str, field: str) -> memoryview:
    """At most so many bytes. A frame says how many it holds, so this is known before they are allocated."""
    try:
        said = zstandard.frame_content_size(data)
        if not 0 <= said <= most:
            raise fault(message, field, f"a zstd frame of at most {most} bytes", f"one of {said} bytes")
        found = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise fault(message, field, "a zstd frame", str(error)) from None
    return memoryview(found)


def _size_of_places(sent: int, count: int) -> int:
    return min(-(-count // 8), sent * _width(count))


def _width(count: int) -> int:
    return 2 if count <= 65_536 else 4


def _write_places(places: np.ndarray, count: int) -> bytes:
    if len(places) * _width(count) <= -(-count // 8):
        return places.astype(f"<u{_width(count)}").tobytes()
    bits = np.zeros(count, np.uint8)
    bits[places] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _read_places(data: memoryview, sent: int, count: int) -> np.ndarray | None:
    """What indexes the numbers that were sent: their places, or a mask of all; None where the bytes say neither."""
    if sent * _width(count) <= -(-count // 8):
        places = np.frombuffer(data, f"<u{_width(count)}")
        ascending = bool((places[1:] > places[:-1]).all()) and (not sent or int(places[-1]) < count)
        return places if ascending else None
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    mask = bits[:count].view(bool)
    return mask if int(np.count_nonzero(bits)) == int(np.count_nonzero(mask)) == sent else None


def _write_floats(raw: np.ndarray, values: Values | None, where: np.ndarray | None, out: np.ndarray) -> None:
    """Numbers as they are written into float32, each where it belongs, zeros elsewhere."""
    if where is not None:
        out[:] = 0
    places = slice(None) if where is None else where
    if values == "bf16":  # NumPy has no such type: the first half of a float32
        bits = out.view(np.uint32)
        bits[places] = raw.view("<u2")
        bits <<= 16
    else:
        out[places] = raw.view("<f2" if values == "fp16" else "<f4")
