"""The compact frame: exact bytes, every kind of field, and whatever a stranger makes of it."""

from __future__ import annotations

import runpy
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor
from worlds import same_bits

from interfuse.errors import MessageError
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.messages import Disclosure, Features, Labels, Message, Parameters, Targets, flatten
from interfuse.messages.encoding import decode, encode, read, rounded, sizes
from interfuse.randomness import generator, numpy_generator
from interfuse.wire import Arriving, Codecs, Limits

DIMS = {"classes": 10, "d": 16}
LIMITS = Limits(max_bytes=4096, max_tensors=64, max_header_bytes=2048, max_name=32)


class Inner(Message):
    z: Features
    y: Labels


class Every(Message):
    """A field of every kind that a message can have."""

    count: int
    rate: float
    flag: bool
    z: Features
    y: Targets
    square: Annotated[Float32[Tensor, "d d"], Disclosure.STATISTICS]
    fixed: Annotated[Int64[Tensor, "batch 2 _"], Disclosure.STATISTICS]
    data: Annotated[Shaped[Tensor, "rows ..."], Disclosure.DATA]
    weights: Parameters
    pairs: tuple[Inner, ...]
    tables: dict[int, Inner]
    nested: Annotated[dict[str, tuple[Tensor, ...]], Disclosure.STATISTICS]


def inner(rows: int, seed: int) -> Inner:
    random = numpy_generator(seed)
    z = torch.from_numpy(random.standard_normal((rows, 16)).astype(np.float32))
    return Inner(z, torch.from_numpy(random.integers(10, size=rows)).to(torch.uint8))


def every() -> Every:
    one = inner(5, 0)
    return Every(
        -7, 0.1, True, one.z, one.y, torch.eye(16), torch.arange(30).reshape(5, 2, 3),
        torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3), {"b": torch.ones(3), "a.weight": torch.ones(2, 3)},
        (inner(2, 1), inner(0, 2)), {10: inner(1, 3), 9: inner(3, 4)},
        {"x": (), "y": (torch.zeros(2, 0), torch.tensor(3))},
    )  # fmt: skip


CODECS = ("zstd", "int4", "int8:tensor+nearest", "fp16+zstd", "topk:0.3+int4+zstd")


@pytest.mark.parametrize("text", CODECS)
def test_every_kind_of_field_comes_back(text: str) -> None:
    rules = Codecs.parse({"default": text})
    sent = rounded(every(), rules, generator(0))
    data = encode(sent, rules)
    found = decode(data, Every, DIMS, codecs=rules)
    assert same_bits(flatten(found), flatten(sent))
    assert sizes(sent, rules)[1] == len(data) < len(encode(sent)) - 900
    kind, tensors = read(data, rules, (Inner, Every))
    assert kind == "Every"
    assert same_bits(tensors, flatten(sent))


def upload(text: str, rows: int = 32, width: int = 432) -> tuple[FusionOutputs, Codecs]:
    random = numpy_generator(5)
    z = torch.from_numpy(random.standard_normal((rows, width)).astype(np.float32)).relu()
    y = torch.from_numpy(random.permutation([*range(10), *random.integers(10, size=rows - 10)])).to(torch.uint8)
    rules = Codecs.parse({"FusionOutputs.z": text, "FusionOutputs.y": "sorted"})
    return rounded(FusionOutputs(z, y), rules, generator(0)), rules


@pytest.mark.parametrize(
    ("text", "width", "data"),
    [("int4:tensor+nearest", 432, 6912), ("int4:tensor", 32, 512), ("int2:tensor+nearest", 16, 128)],
)
def test_around_its_numbers_an_upload_has_sixteen_bytes(text: str, width: int, data: int) -> None:
    """5 of version and schema, 2 or 3 of rows and width, 3 of the one scale, 2 of the type of labels, and these: 5."""
    sent, rules = upload(text, width=width)
    assert len(encode(sent, rules)) == data + (5 + (3 if width > 127 else 2) + 3 + 2 + 5)
    down = FusionPairs((sent, sent))
    assert len(encode(down, rules)) == 5 + 1 + 2 * (len(encode(sent, rules)) - 5)


def test_rows_are_put_in_the_order_of_their_labels_and_stay_together() -> None:
    sent, rules = upload("none")
    plain = numpy_generator(5)
    z = torch.from_numpy(plain.standard_normal((32, 432)).astype(np.float32)).relu()
    y = torch.from_numpy(plain.permutation([*range(10), *plain.integers(10, size=22)])).to(torch.uint8)
    order = sorted(range(32), key=lambda row: int(y[row]))  # stable
    assert torch.equal(sent.y, y[order])
    assert torch.equal(sent.z, z[order])
    assert same_bits(flatten(rounded(sent, rules, generator(1))), flatten(sent))
    others = Codecs.parse({"FusionOutputs.z": "int4"})
    assert torch.equal(rounded(FusionOutputs(z, y), others, generator(0)).y, y)


def test_rounding_to_the_nearest_needs_no_noise() -> None:
    near, random = (Codecs.parse({"default": text}) for text in ("int4+nearest", "int4"))
    sent = inner(8, 0)
    a, b = (rounded(sent, near, generator(seed)).z for seed in (0, 1))
    assert torch.equal(a, b)
    error = (a - sent.z).abs()
    assert float((error / (sent.z.abs().amax(1, keepdim=True) / 7)).max()) <= 0.5 + 1e-3
    assert float(error.sum()) < float((rounded(sent, random, generator(0)).z - sent.z).abs().sum())
    # who rounds how is the sender's affair: both are read alike
    data = encode(rounded(sent, near, generator(0)), near)
    assert torch.equal(decode(data, Inner, DIMS, codecs=random).z, a)


def test_another_kind_or_codec_is_refused_at_the_first_bytes() -> None:
    sent, rules = upload("int4", width=16)
    data = encode(sent, rules)
    assert decode(data, FusionOutputs, DIMS, codecs=rules)
    for kind, codecs in ((FusionPairs, rules), (FusionOutputs, Codecs.parse({"FusionOutputs.z": "int2"}))):
        with pytest.raises(MessageError, match="a message of this kind with the contract's codecs"):
            decode(data, kind, DIMS, codecs=codecs)
    with pytest.raises(MessageError, match="contract's codecs"):
        decode(encode(sent), FusionOutputs, DIMS, codecs=rules)
    with pytest.raises(MessageError, match="magic"):
        decode(data, FusionOutputs, DIMS)
    for cut, reason in (
        (data[:-1], "truncated"),
        (data + b"\0", "trailing"),
        (data[:4], "truncated"),
        (b"", "truncated"),
    ):
        with pytest.raises(MessageError, match=reason):
            decode(cut, FusionOutputs, DIMS, codecs=rules)


def test_changed_bytes_are_refused_or_a_message_within_the_limits() -> None:
    """A few of the tries of benchmarks/fuzz_frames.py, and a message with a field of every kind."""
    program = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/fuzz_frames.py"))
    fuzz, most = program["fuzz"], 0
    found = fuzz(500, 1) + fuzz(100, 2, [every()])
    assert found["wrong"] == 0
    assert found["refused"] > 300
    assert found["taken"] > 20
    tracemalloc.start()
    try:
        for number in range(30):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            fuzz(1, number, program["messages"]()[:1], ["topk:0.3+int4+zstd"])
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert most < 64 * LIMITS.max_bytes


def test_a_message_that_comes_in_pieces_is_the_whole_one() -> None:
    sent, rules = upload("int4", width=16)
    data = encode(sent, rules)
    for length in (1, 7, len(data)):
        arriving, plain = Arriving(len(data), LIMITS), Arriving(len(data), LIMITS)
        for place in range(0, len(data), length):
            arriving.feed(data[place : place + length])
            plain.feed(data[place : place + length])
        assert same_bits(flatten(decode(arriving, FusionOutputs, DIMS, codecs=rules)), flatten(sent))
        with pytest.raises(MessageError, match="magic"):
            decode(plain, FusionOutputs, DIMS)
    short = Arriving(len(data), LIMITS)
    short.feed(data[:-1])
    with pytest.raises(MessageError, match="truncated"):
        decode(short, FusionOutputs, DIMS, codecs=rules)
    named = encode(sent)
    other = Arriving(len(named), LIMITS)
    other.feed(named)
    with pytest.raises(MessageError, match="a compact message"):
        decode(other, FusionOutputs, DIMS, codecs=rules)
    large = Arriving(LIMITS.max_bytes + 1, LIMITS)
    large.feed(data)
    with pytest.raises(MessageError, match="at most 4096 bytes"):
        decode(large, FusionOutputs, DIMS, codecs=rules)


def test_many_items_without_bytes_are_bounded() -> None:
    rules = Codecs.parse({"default": "zstd"})
    data = encode(FusionPairs(()), rules)
    assert decode(data, FusionPairs, DIMS, codecs=rules).pairs == ()
    with pytest.raises(MessageError, match="up to 64"):
        decode(data[:5] + b"\xff\xff\x03", FusionPairs, DIMS, limits=LIMITS, codecs=rules)
    few = {str(i): (torch.zeros(()),) * 9 for i in range(9)}  # 9 tuples, and 81 tensors
    many = encode(replace(every(), nested=few), rules)
    with pytest.raises(MessageError, match="at most 64 tensors"):
        decode(many, Every, DIMS, limits=LIMITS, codecs=rules)
