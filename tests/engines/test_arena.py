from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interfuse.engines.arena import Arena, to_json

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


@pytest.fixture
def arena() -> Arena:
    return Arena()


def filled(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    noise = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return (noise & 1).bool()[..., 0] if dtype == torch.bool else noise.view(dtype)[..., 0]


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
    """What makes a tensor: NaN and -0 included."""
    flat = tensor.contiguous().reshape(-1)
    return tensor.dtype, tensor.shape, flat.view(torch.uint8).tolist() if flat.numel() else []


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.dictionaries(st.text(max_size=6), st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6)


@given(st.lists(TENSORS, max_size=4))
def test_what_is_written_is_read(messages: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]]) -> None:
    arena = Arena()
    sent = [{name: filled(*form) for name, form in message.items()} for message in messages]
    places = [arena.write(message) for message in sent]
    for message, place in zip(sent, places, strict=True):
        read = arena.read(place)
        assert list(read) == list(message)
        assert {name: bits(t) for name, t in read.items()} == {name: bits(t) for name, t in message.items()}
    arena.close()


def test_places_are_aligned_and_do_not_overlap(arena: Arena) -> None:
    sizes = [1, 63, 64, 65, 0, 7]
    places = arena.write({str(n): torch.zeros(n, dtype=torch.uint8) for n in sizes})
    starts = [place[3] for place in places]
    assert all(start % 64 == 0 for start in starts)
    assert all(end - start >= size for start, end, size in zip(starts, starts[1:], sizes, strict=False))


def test_tensors_that_are_no_plain_block_of_memory(arena: Arena) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    sent = {"t": base.transpose(0, 2), "e": torch.ones(1).expand(4, 4), "s": base[:, ::2], "i": image}
    read = arena.read(arena.write(sent))
    assert all(torch.equal(read[name], sent[name]) for name in sent)


def test_what_was_read_is_a_copy(arena: Arena) -> None:
    sent = torch.ones(4)
    places = arena.write({"x": sent})
    read = arena.read(places)["x"]
    sent.zero_()
    assert read.tolist() == [1, 1, 1, 1]
    arena.clear()
    arena.write({"y": torch.full((4,), 7.0)})
    assert read.tolist() == [1, 1, 1, 1]
    read.zero_()
    assert arena.read(places)["x"].tolist() == [7, 7, 7, 7]


def test_clearing_uses_the_memory_again(arena: Arena) -> None:
    size = 1 << 20
    for _ in range(8):
        arena.clear()
        arena.write({"x": torch.zeros(size // 4)})
    assert os.fstat(arena._descriptor).st_size == size


def test_it_grows_and_what_lay_in_it_stays(arena: Arena) -> None:
    first = arena.write({"first": torch.arange(1000)})
    small = os.fstat(arena._descriptor).st_size
    second = arena.write({"second": torch.arange(300_000)})
    assert os.fstat(arena._descriptor).st_size > small
    assert arena.read(first)["first"].tolist() == list(range(1000))
    assert int(arena.read(second)["second"][-1]) == 299_999


def test_tensors_of_no_size_need_no_memory(arena: Arena) -> None:
    sent = {"a": torch.empty(0), "b": torch.empty(3, 0, 2, dtype=torch.int64), "c": torch.empty(0, 7)}
    read = arena.read(arena.write(sent))
    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {
        name: (t.dtype, t.shape) for name, t in sent.items()
    }
    assert arena.write({}) == []
    assert arena.read([]) == {}


def in_child(work: object) -> int:
    """Run something in a forked process; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fifty_megabytes_come_from_another_process(arena: Arena) -> None:
    """The writer's memory grows after the fork, so the reader has to notice."""
    arena.write({"before": torch.zeros(10)})
    arena.clear()
    count = 50 * 2**20 // 4
    sent = {"x": torch.arange(count, dtype=torch.int32), "empty": torch.empty(0, 3), "last": torch.tensor(-0.0)}
    places = [["x", "int32", [count], 0], ["empty", "float32", [0, 3], 4 * count], ["last", "float32", [], 4 * count]]

    def write() -> None:
        assert arena.write(sent) == places

    assert in_child(write) == 0
    read = arena.read(places)
    assert torch.equal(read["x"], sent["x"])
    assert read["empty"].shape == (0, 3)
    assert bits(read["last"]) == bits(sent["last"])


def test_a_process_reads_what_came_after_it_was_forked(arena: Arena) -> None:
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(ready, 1)
            found = arena.read([["x", "int64", [400_000], 64]])["x"]
            code = 0 if torch.equal(found, torch.arange(400_000)) else 2
        finally:
            os._exit(code)
    arena.write({"first": torch.zeros(1)})
    arena.write({"x": torch.arange(400_000)})
    os.write(go, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(ready)
    os.close(go)


def test_it_has_no_name_and_leaves_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    for _ in range(50):
        arena = Arena()
        arena.write({"x": torch.zeros(3)})
        arena.close()
    assert (sorted(os.listdir("/proc/self/fd")) if before else []) == before


def test_control_messages_are_compact_json() -> None:
    assert to_json({"do": "call", "tasks": [[1, None]]}) == b'{"do":"call","tasks":[[1,null]]}'
