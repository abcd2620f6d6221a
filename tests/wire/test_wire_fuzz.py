"""Mutated messages: decode refuses with a MessageError or returns what the declaration and the library say."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.randomness import numpy_generator
from interfuse.wire import Limits, TensorSpec, decode, encode, raw_size

LIMITS = Limits(max_bytes=4096, max_tensors=16, max_header_bytes=2048, max_name=32)
KIND = "FusionOutputs"
TENSORS = {
    "features": torch.linspace(-1, 1, 24).reshape(4, 6),
    "labels": torch.arange(4),
    "half": torch.ones(3, dtype=torch.float16),
    "mask": torch.tensor([True, False, True]),
    "scale": torch.tensor(0.5, dtype=torch.float64),
    "none": torch.zeros(0, 5, dtype=torch.bfloat16),
}
SPEC = {name: TensorSpec(tensor.dtype, (None,) * tensor.dim()) for name, tensor in TENSORS.items()}
GOOD = encode(KIND, TENSORS)
START = 8 + len(KIND)  # where the safetensors file begins

Generator = np.random.Generator


def flip_bits(data: bytes, random: Generator) -> bytes:
    changed = bytearray(data)
    for position in random.integers(len(data), size=random.integers(1, 8)):
        changed[position] ^= 1 << int(random.integers(8))
    return bytes(changed)


def truncate(data: bytes, random: Generator) -> bytes:
    return data[: random.integers(len(data))]


def insert(data: bytes, random: Generator) -> bytes:
    position = int(random.integers(len(data) + 1))
    return data[:position] + random.bytes(int(random.integers(1, 20))) + data[position:]


def duplicate_slice(data: bytes, random: Generator) -> bytes:
    begin, end = sorted(random.integers(len(data) + 1, size=2))
    return data[:end] + data[begin:end] + data[end:]


def grow(data: bytes, random: Generator) -> bytes:
    return data + bytes(int(random.integers(1, 2 * LIMITS.max_bytes)))


def edit_lengths(data: bytes, random: Generator) -> bytes:
    changed = bytearray(data)
    if random.integers(2):
        length = int(random.choice(np.array([0, 1, 7, 8, 2**31, 2**32, 2**63, 2**64 - 1, len(data)], dtype=np.uint64)))
        changed[START : START + 8] = length.to_bytes(8, "little")
    else:
        changed[6:8] = random.bytes(2)
    return bytes(changed)


def replace_data(data: bytes, random: Generator) -> bytes:
    """NaN, infinities and truth values of neither kind among the data."""
    begin = len(data) - raw_size(TENSORS)
    position = int(random.integers(begin, len(data)))
    piece = [b"\xff" * 8, b"\x00\x00\x80\x7f", b"\x00\x7c", b"\x02"][random.integers(4)]
    return (data[:position] + piece + data[position + len(piece) :])[: len(data)]


ODD_NUMBERS = [-1, -8, 0, 1, 3, 8, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.5, 1e300, True, None, "4", [], {}]
ODD_VALUES = [*ODD_NUMBERS, [[]], {"a": {}}, "F32", "I64", "BOOL", "F8_E4M3", "C64", [1] * 70, [0, 2**62, 2**62]]


def pick(values: list[object], random: Generator) -> object:
    return values[int(random.integers(len(values)))]


def edit_header(data: bytes, random: Generator) -> bytes:
    header, body = parts(data)
    for _ in range(random.integers(1, 4)):
        name = str(pick(list(header), random))
        entry = header[name]
        choice = int(random.integers(8))
        if choice == 0 and isinstance(entry, dict):
            entry[str(pick(["dtype", "shape", "data_offsets", "other"], random))] = pick(ODD_VALUES, random)
        elif choice <= 2 and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            entry["shape"].insert(0, pick(ODD_NUMBERS, random))
        elif choice == 3 and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            entry["shape"].reverse()
        elif choice == 4 and isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"] = [pick([*ODD_NUMBERS, *range(0, 64, 8)], random) for _ in range(2)]
        elif choice == 5:
            header[str(pick([name + "x", "", "é" * 20, "a\nb", "\ud800", "__metadata__", *header], random))] = (
                header.pop(name)
            )
        elif choice == 6:
            other = str(pick(list(header), random))
            header[name], header[other] = header[other], header[name]
        else:
            header[name] = pick([*ODD_VALUES, *header.values()], random)
    return assembled(json.dumps(header).encode(), body)


def nest(data: bytes, random: Generator) -> bytes:
    header, body = parts(data)
    depth = int(random.integers(1, 900))
    opening, closing = (b"[", b"]") if random.integers(2) else (b'{"a":', b"}")
    name = json.dumps(str(pick(list(header), random))).encode()
    return assembled(b"{" + name + b":" + opening * depth + b"1" + closing * depth + b"}", body)


def repeat_name(data: bytes, random: Generator) -> bytes:
    header, body = parts(data)
    text = json.dumps(header)
    name = str(pick(list(header), random))
    return assembled((text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}").encode(), body)


def parts(data: bytes) -> tuple[dict[str, object], bytes]:
    begin = START + 8
    end = begin + int.from_bytes(data[START:begin], "little")
    return json.loads(data[begin:end]), data[end:]


def assembled(header: bytes, body: bytes) -> bytes:
    return GOOD[:START] + len(header).to_bytes(8, "little") + header + body


MUTATIONS: list[Callable[[bytes, Generator], bytes]] = [
    flip_bits,
    truncate,
    insert,
    duplicate_slice,
    grow,
    edit_lengths,
    replace_data,
    edit_header,
    nest,
    repeat_name,
]


def check(data: bytes, spec: Mapping[str, TensorSpec] | None) -> bool:
    """Whether the message is accepted, having checked that acceptance is right and that refusal is a MessageError."""
    try:
        kind, found = decode(data, spec, LIMITS)
    except MessageError:
        return False
    assert len(data) <= LIMITS.max_bytes
    assert raw_size(found) <= len(data)
    assert all(tensor.untyped_storage().nbytes() <= len(data) for tensor in found.values())
    # The library is the second opinion: whatever is accepted here, it reads, and to the same bits.
    expected = safetensors.torch.load(data[8 + len(kind.encode()) :])
    assert_equal(found, expected)
    for name, tensor in found.items():
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all())
        if spec is not None:
            assert tensor.dtype == spec[name].dtype
            assert tensor.dim() == len(spec[name].shape)
    assert spec is None or found.keys() == spec.keys()
    return True


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mutated_messages_are_refused_or_right(mutation: Callable[[bytes, Generator], bytes]) -> None:
    random = numpy_generator(0, "fuzz", mutation.__name__)
    assert check(GOOD, SPEC)
    accepted = 0
    tracemalloc.start()
    try:
        for number in range(200):
            data = mutation(GOOD, random)
            if number % 4 == 3:
                data = MUTATIONS[random.integers(len(MUTATIONS))](data, random) if is_whole(data) else data
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            accepted += check(data, SPEC if number % 2 else None)
            assert tracemalloc.get_traced_memory()[1] - before < 16 * LIMITS.max_bytes
    finally:
        tracemalloc.stop()
    assert accepted < 200


def is_whole(data: bytes) -> bool:
    """Whether a second mutation finds the parts it wants to change."""
    try:
        header, _ = parts(data)
    except ValueError:
        return False
    return data.startswith(GOOD[:START]) and isinstance(header, dict) and len(header) > 0


def test_the_sizes_of_a_message_are_checked_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[int] = []
    empty = torch.empty

    def counting(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
        tensor = empty(shape, dtype=dtype)
        allocated.append(tensor.numel() * tensor.dtype.itemsize)
        return tensor

    monkeypatch.setattr(torch, "empty", counting)
    decode(GOOD, SPEC, LIMITS)
    assert sum(allocated) == raw_size(TENSORS)
    allocated.clear()
    missing = {**SPEC, "more": TensorSpec(torch.int8, ())}
    wrong = {**SPEC, "none": TensorSpec(torch.bfloat16, (1, 5))}
    for data, spec in ((GOOD[:-1], SPEC), (GOOD + b"\x00", SPEC), (GOOD, missing), (GOOD, wrong)):
        with pytest.raises(MessageError):
            decode(data, spec, LIMITS)
    assert allocated == []


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_or_right(data: bytes) -> None:
    check(data, None)
    check(GOOD[:START] + data, None)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.integers(0, 8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
near_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "I64", "C64", ""]) | json_values,
        "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | json_values,
    }
)


@settings(deadline=None)
@given(header=st.dictionaries(st.text(max_size=4), near_entries | json_values, max_size=3), body=st.binary(max_size=24))
def test_any_header_is_refused_or_right(header: dict[str, object], body: bytes) -> None:
    check(assembled(json.dumps(header).encode(), body), None)
