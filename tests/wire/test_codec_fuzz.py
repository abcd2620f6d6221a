"""Bytes that no codec made: refused with a MessageError, without taking more memory than the limit."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.randomness import generator, numpy_generator
from interfuse.wire.codecs import Codec

LIMIT = 4096
TEXTS = ("none", "zstd", "fp16", "bf16", "int8", "int4", "int2:tensor", "topk:0.3", "topk:0.05+int4", "topk:0.3+fp16")
EVERY = (*TEXTS, *(f"{text}+zstd" for text in TEXTS[2:]))
every_codec = pytest.mark.parametrize("text", EVERY)
X = torch.randn(5, 30, generator=generator(0))


def good(codec: Codec) -> bytes:
    return codec.pack(codec.round(X, generator(1)))


def read(codec: Codec, data: bytes) -> Tensor | None:
    """The tensor; None where it was refused as it should be."""
    try:
        return codec.unpack(np.frombuffer(data, np.uint8), LIMIT, "M", "f")
    except MessageError:
        return None


@every_codec
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["flip", "cut", "grow", "random", "head"]))
def test_changed_bytes_are_refused_or_a_tensor_within_the_limit(text: str, seed: int, kind: str) -> None:
    codec, random = Codec.parse(text), numpy_generator(seed)
    data = bytearray(good(codec))
    if kind == "flip":
        for position in random.integers(len(data), size=3):
            data[position] ^= 1 << int(random.integers(8))
    elif kind == "head":
        for position in random.integers(10, size=2):
            data[position] = int(random.choice([0, 1, 2, 127, 128, 255]))
    elif kind == "cut":
        data = data[: random.integers(len(data))]
    elif kind == "grow":
        data += random.bytes(int(random.integers(1, 50)))
    else:
        data = bytearray(random.bytes(int(random.integers(0, 200))))
    found = read(codec, bytes(data))
    assert found is None or found.nbytes <= LIMIT
    if kind in ("cut", "grow"):
        assert found is None


@pytest.mark.parametrize("shape", [(2**32 - 1,), (2**32 - 1,) * 8, (0, 2**32 - 1), (2000,)])
@every_codec
def test_huge_shapes_take_no_memory(text: str, shape: tuple[int, ...]) -> None:
    codec = Codec.parse(text)
    data = struct.pack(f"<BB{len(shape)}I", 0, len(shape), *shape) + good(codec)[10:]
    tracemalloc.start()
    try:
        assert read(codec, data) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def frame(payload: bytes, **options: bool) -> bytes:
    """A tensor of 5 · 30 numbers, zstd, with another frame in it."""
    compressor = zstandard.ZstdCompressor(**options)
    return struct.pack("<BB2I", 0, 2, 5, 30) + compressor.compress(payload)


def test_a_frame_that_unfolds_to_too_much_is_not_unfolded() -> None:
    codec = Codec.parse("zstd")
    assert read(codec, frame(X.numpy().tobytes())) is not None
    bomb = frame(bytes(1 << 28))
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        assert read(codec, bomb) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("payload", [b"", X.numpy().tobytes()[:-1], X.numpy().tobytes() + b"\0"])
def test_a_frame_of_another_size_is_refused(payload: bytes) -> None:
    assert read(Codec.parse("zstd"), frame(payload)) is None


def test_a_frame_has_to_say_its_size_and_stand_alone() -> None:
    payload = X.numpy().tobytes()
    assert read(Codec.parse("zstd"), frame(payload, write_content_size=False)) is None
    assert read(Codec.parse("zstd"), frame(payload) + zstandard.ZstdCompressor().compress(b"more")) is None


def test_scales_codes_places_and_truth_values_are_checked() -> None:
    int4 = Codec.parse("int4:tensor")
    head = struct.pack("<BBI", 0, 1, 2)
    assert read(int4, head + b"\x00\x80\x3f\xf1").tolist() == [1.0, 15.0]  # type: ignore[union-attr]
    assert read(int4, head + b"\x00\x80\xbf\xe0").tolist() == [-7.0, 7.0]  # type: ignore[union-attr]
    assert read(int4, head + b"\x00\x80\xbf\xf0") is None  # 15 is above 2 · 7
    for scale in (b"\x00\x80\x7f", b"\x00\xc0\x7f", b"\x00\x80\xff"):  # infinite, not a number
        assert read(int4, head + scale + b"\x11") is None
    few = Codec.parse("topk:0.01")
    head, number = struct.pack("<BBI", 0, 1, 100), struct.pack("<f", 2.0)
    assert float(read(few, head + struct.pack("<IH", 1, 99) + number)[99]) == 2.0  # type: ignore[index]
    assert read(few, head + struct.pack("<IH", 1, 100) + number) is None
    assert read(few, head + struct.pack("<IHH", 2, 7, 7) + 2 * number) is None
    assert read(few, head + struct.pack("<IHH", 2, 8, 7) + 2 * number) is None
    assert read(few, head + struct.pack("<I", 101) + bytes(13) + 101 * number) is None
    assert read(Codec(), struct.pack("<BBI", 6, 1, 2) + b"\1\2") is None
