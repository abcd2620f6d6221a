"""Frames: what was cut is put together again, and nothing else gets through."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interfuse.engines.parties import frames as module
from interfuse.engines.parties.frames import CHUNK, Assembler, Call, Cancel, FrameError, Reply, frames
from interfuse.wire import Arriving, Pieces, encode, encoded

REPLY = Reply(attempt=1, number=2, message=True)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK])
def test_a_message_of_one_frame_comes_back_as_it_was(size: int) -> None:
    payload = random.Random(0).randbytes(size)
    (frame,) = frames(REPLY, payload)
    assert len(frame) <= module.LARGEST_FRAME
    found = Assembler().feed(frame)
    assert found is not None
    envelope, back = found
    assert envelope == REPLY.model_copy(update={"size": size})
    assert isinstance(back, Pieces)
    assert bytes(back) == payload


@pytest.mark.parametrize("size", [CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_of_a_message_of_several_frames_its_tensors_come_back(size: int) -> None:
    noise = torch.frombuffer(bytearray(random.Random(0).randbytes(size)), dtype=torch.uint8)
    tensors = {"x": noise[: size - len(encode("K", {"x": noise})) + size]}
    payload = encode("K", tensors)
    assert len(payload) == size
    assembler, found = Assembler(), None
    for frame in frames(REPLY, payload):
        assert len(frame) <= module.LARGEST_FRAME
        assert found is None
        found = assembler.feed(frame)
    assert found is not None
    envelope, back = found
    assert envelope == REPLY.model_copy(update={"size": size})
    assert isinstance(back, Arriving)
    kind, opened = back.opened()
    assert (kind, [*opened]) == ("K", ["x"])
    assert torch.equal(opened["x"], tensors["x"])


def test_frames_are_let_go_as_they_come() -> None:
    noise = torch.arange(20 * CHUNK // 4, dtype=torch.float32)
    tracemalloc.start()
    assembler, found = Assembler(), None
    for frame in frames(REPLY, encoded("K", {"x": noise})):
        found = assembler.feed(frame)
    assert tracemalloc.get_traced_memory()[1] < 5 * CHUNK
    tracemalloc.stop()
    assert found is not None
    assert isinstance(found[1], Arriving)
    assert torch.equal(found[1].opened()[1]["x"], noise)


def test_a_payload_in_pieces_is_cut_where_one_in_a_block_is() -> None:
    payload = random.Random(0).randbytes(2 * CHUNK + 5)
    pieces = Pieces([payload[:3], b"", payload[3 : CHUNK + 7], payload[CHUNK + 7 :]])
    assert list(frames(REPLY, pieces)) == list(frames(REPLY, payload))


def refused(*given: bytes, limit: int = 1000) -> str:
    assembler = Assembler(limit)
    with pytest.raises(FrameError) as error:
        for frame in given:
            assembler.feed(frame)
    return str(error.value)


def test_what_is_no_frame_is_refused_by_name() -> None:
    (whole,) = frames(REPLY, b"x" * 10)
    first, second = frames(REPLY, b"x" * (CHUNK + 10))
    header = whole[4 : 4 + int.from_bytes(whole[:4], "little")]
    assert "a frame of 2 bytes" in refused(whole[:2])
    assert "header of" in refused(b"\xff\xff\xff\xff")
    assert "belongs to no message" in refused(second)
    assert "a new message inside another" in refused(first, first, limit=1 << 30)
    assert "at most 1000" in refused(first)
    assert "more payload" in refused(first, second + b"x", limit=1 << 30)
    assert "in the middle" in refused(first[:-1], second[:5], second[:5], limit=1 << 30)
    assert "more payload" in refused(whole + b"x")
    assert "none of ours" in refused(whole.replace(b'"reply"', b'"rumour"').replace(b"\x00", b"\x00"))
    assert "none of ours" in refused(whole[:4] + header.replace(b"2", b'"') + whole[4 + len(header) :])
    assert "none of ours" in refused(b"\x05\x00\x00\x00" + b"[" * 5)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 50), st.integers(0, 255))
def test_no_bytes_do_more_than_be_refused(noise: bytes, place: int, value: int) -> None:
    (frame,) = frames(Call(
        attempt=1, number=1, ended=0, program="method", handler="train", heading="training", round=1, index=0,
        recoverable=False, message=True,
    ), b"abc")  # fmt: skip
    changed = bytearray(frame)
    changed[place] = value
    for given_frame in (noise, bytes(changed), frame[: len(noise)], frame + noise):
        assembler = Assembler(1000)
        try:
            found = assembler.feed(given_frame)
        except FrameError:
            continue
        assert found is None or found[0].size == len(found[1])


def test_an_announced_size_alone_takes_no_memory() -> None:
    (frame,) = frames(Cancel(attempt=1, number=1))
    announced = frame[4:].replace(b'"size":0', b'"size":1000000000')
    tracemalloc.start()
    assert Assembler().feed(len(announced).to_bytes(4, "little") + announced + b"x") is None
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
