"""Messages in pieces, and the memory that is kept for large ones."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interfuse.wire import Pieces, copied, decode, encode, encoded, memory


@given(st.lists(st.binary(max_size=9), max_size=6), st.integers(0, 60), st.integers(0, 60))
def test_pieces_are_cut_as_bytes_are(parts: list[bytes], begin: int, end: int) -> None:
    whole, pieces = b"".join(parts), Pieces(parts)
    assert len(pieces) == len(whole)
    assert bytes(pieces) == whole
    assert bytes(pieces[begin:end]) == whole[begin:end]
    assert bytes(pieces[begin:]) == whole[begin:]
    assert all(pieces[begin:end].parts)


@given(st.integers(1, 400))
def test_a_message_is_read_from_pieces_of_any_length(length: int) -> None:
    tensors = {"a": torch.arange(30.0), "b": torch.tensor([True, False]), "c": torch.empty(0, 3), "d": torch.tensor(7)}
    data = encode("K", tensors)
    kind, found = decode(Pieces(data[start : start + length] for start in range(0, len(data), length)), None)
    assert kind == "K"
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_an_encoded_message_shares_memory_with_its_tensors() -> None:
    x = torch.zeros(1000)
    pieces = encoded("K", {"x": x})
    x[0] = 1.0
    assert bytes(pieces) == encode("K", {"x": x})


def test_memory_of_large_tensors_is_used_again_and_only_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free", {})
    gc.disable()  # it must not take a collection of garbage
    try:
        one, length = copied(torch.ones(memory.LARGE // 4)), memory.LARGE // 4
        place, part = one.data_ptr(), one[5:].detach()
        del one
        other = memory.fresh((length,), torch.float32)
        assert other.data_ptr() != place
        assert bool((part == 1).all())
        del part
        again = memory.fresh((length // 2, 2), torch.float32)
        assert again.data_ptr() == place
        assert place % 64 == 0
        assert again.is_contiguous()
    finally:
        gc.enable()


def test_no_more_memory_is_kept_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free", {})
    monkeypatch.setattr(memory, "MOST_KEPT", 2 * memory.LARGE)
    held = [memory.fresh((memory.LARGE,), torch.uint8) for _ in range(4)]
    held.clear()
    assert sum(block.size for block in memory._free.values()) == 2 * memory.LARGE
    memory.fresh((memory.LARGE // 2 - 1,), torch.uint8)  # small ones are left to the allocator
    assert len(memory._free) == 2
