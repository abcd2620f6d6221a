"""Codecs: error bounds, means, idempotence, exact sizes, and bytes that come back as they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.errors import ConfigError
from interfuse.randomness import generator
from interfuse.wire.codecs import Codec, Codecs

BITS = {"int8": 8, "int4": 4, "int2": 2}
LOSSY = ("fp16", "bf16", "int8", "int4", "int2", "int4:tensor", "topk:0.3", "topk:0.3+int4", "topk:0.01+int2:tensor")
EVERY = ("zstd", *LOSSY, *(f"{text}+zstd" for text in LOSSY))
every_codec = pytest.mark.parametrize("text", EVERY)

shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)
magnitudes = st.sampled_from([1e-44, 1e-37, 1e-6, 1.0, 1e6, 3e38])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any finite float32, of any sign, sparse or not, equal magnitudes among them."""
    shape, seed = draw(shapes), draw(st.integers(0, 2**32))
    x = torch.randn(shape, generator=generator(seed)).clamp(-1, 1) * draw(magnitudes)
    kind = draw(st.sampled_from(["any", "relu", "negative", "ties", "few"]))
    if kind == "relu":
        return x.relu()
    if kind == "negative":
        return -x.abs()
    if kind == "ties":
        return x.sign() * draw(magnitudes)
    return x * (torch.rand(shape, generator=generator(seed, "few")) < 0.2) if kind == "few" else x


def there_and_back(codec: Codec, x: Tensor) -> Tensor:
    return codec.unpack(np.frombuffer(codec.pack(x), np.uint8), 1 << 20, "M", "f")


def same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.shape, a.numpy().tobytes()) == (b.dtype, b.shape, b.numpy().tobytes())


@every_codec
@settings(max_examples=60, deadline=None)
@given(x=tensors(), seed=st.integers(0, 1000))
def test_what_is_rounded_comes_back_bit_by_bit_and_is_rounded_no_further(text: str, x: Tensor, seed: int) -> None:
    codec = Codec.parse(text)
    sent = codec.round(x, generator(seed))
    assert (sent.dtype, sent.shape) == (x.dtype, x.shape)
    assert bool(torch.isfinite(sent).all())
    if codec.lossy:
        assert same(codec.round(sent, generator(seed, "again")), sent)
    assert same(there_and_back(codec, sent), sent)
    assert codec.pack(there_and_back(codec, sent)) == codec.pack(sent)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("per", ["row", "tensor"])
@settings(max_examples=100, deadline=None)
@given(x=tensors(), seed=st.integers(0, 1000))
def test_the_error_is_below_a_step_of_the_grid(bits: int, per: str, x: Tensor, seed: int) -> None:
    sent = Codec.parse(f"int{bits}:{per}").round(x, generator(seed))
    whole = per == "tensor" or x.ndim < 2
    for row, got in zip([x] if whole else x, [sent] if whole else sent, strict=True):
        if row.numel():
            steps = 2 ** (bits - 1) - 1 if bool((got < 0).any()) else 2**bits - 1
            bound = (1 + 2**-15) * row.double().abs().max() / steps
            if bool((row < 0).any()):  # rounded with a coarser step before all that was negative became 0
                bound = (1 + 2**-15) * row.double().abs().max() / (2 ** (bits - 1) - 1)
            assert float((got.double() - row.double()).abs().max()) <= float(bound) + 1.6e-36


@pytest.mark.parametrize("text", ["int8", "int4", "int2", "int4:tensor"])
@pytest.mark.parametrize("positive", [True, False])
def test_rounding_has_the_right_mean(text: str, positive: bool) -> None:
    x = torch.randn(4, 50, generator=generator(3))
    x = x.abs() if positive else x
    codec, draws = Codec.parse(text), 2000
    found = torch.stack([codec.round(x, generator(seed)) for seed in range(draws)])
    rows = x.abs().amax(1, keepdim=True) if ":" not in text else x.abs().amax().expand(4, 1)
    bits = BITS[text.partition(":")[0]]
    step = (1 + 2**-15) * rows / (2**bits - 1 if positive else 2 ** (bits - 1) - 1)
    spread = (step / 2 / math.sqrt(draws)).expand_as(x)  # the most that a number between two can have
    ordinary = x.abs() < rows  # the largest goes outwards, by less than 2^-15
    off = (found.double().mean(0) - x).abs()
    assert bool((off[ordinary] <= 4 * spread[ordinary]).all())
    assert bool((off[~ordinary] <= 2**-15 * x.abs()[~ordinary]).all())


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("fp16", 2 * 60), ("bf16", 2 * 60), ("int8", 3 * 4 + 60), ("int4", 3 * 4 + 30), ("int2", 3 * 4 + 15),
        ("int8:tensor", 3 + 60), ("int4:tensor", 3 + 30), ("topk:0.2", 4 + 8 + 4 * 12),
        ("topk:0.05", 4 + 2 * 4 + 4 * 4), ("topk:0.2+int4", 3 * 4 + 4 + 8 + 6),
        ("topk:0.05+int2:tensor", 3 + 4 + 2 * 3 + 1),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_format(text: str, payload: int) -> None:
    """4 rows of 15: shape and type, scales, a count, a bit a number or two bytes a place, numbers."""
    x = torch.randn(4, 3, 5, generator=generator(1)) + 10
    codec = Codec.parse(text)
    assert len(codec.pack(codec.round(x, generator(2)))) == (2 + 4 * 3) + payload


@pytest.mark.parametrize("text", ["none", *LOSSY])
@settings(max_examples=60, deadline=None)
@given(x=tensors(), seed=st.integers(0, 1000))
def test_sizes_follow_from_the_shape_and_for_topk_from_how_many_are_not_zero(text: str, x: Tensor, seed: int) -> None:
    codec = Codec.parse(text)
    sent = codec.round(x, generator(seed))
    numbers, wanted = x.numel(), 2 + 4 * x.ndim
    if codec.keep is not None and x.numel():
        numbers = int(sent.count_nonzero())
        wanted += 4 + min(math.ceil(x.numel() / 8), 2 * numbers)
    bits = {None: 32, "fp16": 16, "bf16": 16}.get(codec.values) or BITS[str(codec.values)]
    if bits < 16 and x.numel():
        wanted += 3 * (1 if codec.per == "tensor" or x.ndim < 2 else len(x))
    assert len(codec.pack(sent)) == wanted + math.ceil(numbers * bits / 8)


@pytest.mark.parametrize(("text", "digits", "smallest"), [("fp16", 11, 2**-24), ("bf16", 8, 2**-133)])
@settings(max_examples=100, deadline=None)
@given(x=tensors())
def test_half_precision_is_off_by_half_a_unit_of_the_last_digit(
    text: str, digits: int, smallest: float, x: Tensor
) -> None:
    most = torch.finfo(torch.float16 if text == "fp16" else torch.bfloat16).max
    wanted = x.clamp(-most, most).double()
    off = (Codec.parse(text).round(x, generator(0)).double() - wanted).abs()
    assert bool((off <= torch.clamp(wanted.abs() * 2.0**-digits, min=smallest / 2)).all())


@settings(max_examples=50, deadline=None)
@given(x=tensors(), keep=st.sampled_from([0.01, 0.25, 0.5, 0.99]))
def test_topk_keeps_the_largest_of_each_row_as_they_are(x: Tensor, keep: float) -> None:
    sent = Codec(keep=keep).round(x, generator(0))
    rows, got = (t.reshape(1, -1) if x.ndim < 2 else t.reshape(len(t), x[:1].numel()) for t in (x, sent))
    count = max(1, math.ceil(keep * rows.shape[1]))
    for row, kept in zip(rows.tolist(), got.tolist(), strict=True):
        largest = sorted(range(len(row)), key=lambda i, row=row: (-abs(row[i]), i))[:count]  # type: ignore[misc]
        assert kept == [value if i in largest else 0 for i, value in enumerate(row)]


def test_half_precision_stays_finite() -> None:
    x = torch.tensor([1e6, -1e6, 65504.0, 3e38])
    assert Codec.parse("fp16").round(x, generator(0)).tolist() == [65504.0, -65504.0, 65504.0, 65504.0]
    assert bool(torch.isfinite(Codec.parse("bf16").round(torch.full((2,), 3.4e38), generator(0))).all())


def test_zstd_is_that_of_the_library() -> None:
    x = torch.arange(100, dtype=torch.uint8)
    plain, packed = Codec.parse("none").pack(x), Codec.parse("zstd:19").pack(x)
    assert zstandard.ZstdDecompressor().decompress(packed[6:]) == plain[6:] == bytes(range(100))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64, torch.uint16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_zstd_takes_every_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=dtype)
    assert there_and_back(Codec.parse("zstd"), x).equal(x)


def test_what_is_not_rounded_is_not_packed() -> None:
    for text in ("int8", "int4", "int2", "fp16", "bf16"):
        with pytest.raises(ValueError, match="round it first"):
            Codec.parse(text).pack(torch.tensor([1.0, 0.3333333]))
    with pytest.raises(ValueError, match="cannot be coded"):
        Codec.parse("int8").pack(torch.tensor([1, 2]))


@every_codec
def test_a_text_is_its_codec(text: str) -> None:
    assert str(Codec.parse(text)) == text
    assert Codec.parse(" + ".join(reversed(text.split("+")))) == Codec.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "int3", "int4:column", "int4+int8", "topk", "topk:0", "topk:1", "topk:nan", "topk:x", "zstd:0", "zstd:23",
     "fp16:row", "ef", "ef+zstd", "none+int4", "int4+", "zstd:-3"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="codec"):
        Codec.parse(text)


def test_a_field_goes_before_its_message_before_its_record_before_the_default() -> None:
    rules = {"default": "fp16", "Outputs": "int8", "Pairs": "int4", "Outputs.z": "int2"}
    for key, found in (("Outputs.z", "int2"), ("Pairs", "int4"), ("Outputs", "int8"), ("default", "fp16")):
        assert str(Codecs.parse(rules).find("Pairs", "Outputs.z")) == found
        del rules[key]
    assert str(Codecs.parse(rules).find("Pairs", "Outputs.z")) == "none"
