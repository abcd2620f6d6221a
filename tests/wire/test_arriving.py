"""A message that comes in pieces is what it is as a whole, right or wrong; unless it is compact it takes
its tensors once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.randomness import numpy_generator
from interfuse.wire import Arriving, Limits, decode, encode
from interfuse.wire.packs import Tensors, open_pack, save_pack

LIMITS = Limits(max_bytes=4096, max_tensors=16, max_header_bytes=2048, max_name=32)
TENSORS = {
    "a": torch.linspace(-1, 1, 24).reshape(4, 6),
    "b": torch.arange(4),
    "half": torch.ones(3, dtype=torch.float16),
    "mask": torch.tensor([True, False, True]),
    "none": torch.zeros(0, 5, dtype=torch.bfloat16),
    "nan": torch.tensor([float("nan")]),
}
GOOD = encode("Kind", TENSORS)


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def whole(data: bytes) -> object:
    try:
        kind, tensors = decode(data, None, LIMITS, finite=False)
        return kind, bits(tensors)
    except MessageError as error:
        return str(error)


def in_pieces(data: bytes, length: int) -> object:
    arriving = Arriving(len(data), LIMITS)
    for place in range(0, len(data), length):
        arriving.feed(data[place : place + length])
    try:
        kind, tensors = arriving.opened()
        return kind, bits(tensors)
    except MessageError as error:
        return str(error)


def test_a_message_in_pieces_of_any_length_is_the_whole_one() -> None:
    assert isinstance(wanted := whole(GOOD), tuple)
    for length in range(1, len(GOOD) + 1):
        assert in_pieces(GOOD, length) == wanted


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 200))
def test_what_is_wrong_with_a_message_is_found_whatever_pieces_it_comes_in(seed: int, length: int) -> None:
    random = numpy_generator(seed, "changes")
    data = bytearray(GOOD)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(data)))
        if (change := random.integers(4)) == 0:
            data[place] = int(random.integers(256))
        elif change == 1:
            del data[place:]
            data += b"" if data else b"x"
        elif change == 2:
            data[place:place] = random.bytes(int(random.integers(1, 9)))
        else:
            data += bytes(int(random.integers(5000)))
    assert in_pieces(bytes(data), length) == whole(bytes(data))


def test_what_is_missing_at_the_end_is_said() -> None:
    arriving = Arriving(len(GOOD))
    arriving.feed(GOOD[:-1])
    with pytest.raises(MessageError, match="truncated"):
        arriving.opened()


def test_nothing_is_kept_of_what_is_refused_and_nothing_taken_before() -> None:
    huge = encode("Kind", {"x": torch.zeros(0, dtype=torch.uint8)}).replace(b"[0],", b"[1],")
    tracemalloc.start()
    for data, size in ((b"nonsense" * 1000, 1 << 30), (GOOD, 1 << 31), (huge, 1 << 30)):
        arriving = Arriving(size, Limits(max_bytes=1 << 30))
        for _ in range(20):
            arriving.feed(data)
            arriving.feed(np.zeros(1 << 18, np.uint8).data)
        with pytest.raises(MessageError):
            arriving.opened()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_part_of_a_pack_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interfuse.wire.packs.AT_ONCE", 7)
    path = tmp_path / "pack.safetensors"
    save_pack(path, {"one": Tensors(TENSORS), "two": Tensors({})})
    found = open_pack(path)
    assert bits(found["one"].tensors()) == bits(TENSORS)
    assert found["two"].tensors() == {}


@pytest.mark.parametrize("tensors", [{"x": torch.ones(3)}, {}])
def test_a_message_is_opened_once(tensors: dict[str, Tensor]) -> None:
    data = bytes(encode("Kind", tensors))
    arriving = Arriving(len(data))
    arriving.feed(data)
    assert arriving.opened()[1].keys() == tensors.keys()
    with pytest.raises(RuntimeError, match="opened once"):
        arriving.opened()
