from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Mapping

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.randomness import generator
from interfuse.wire import Limits, TensorSpec, decode, encode, encoded_size, raw_size

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.bool,
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.one_of(texts, st.text('"\\/\n\t\b\f\r\x01\x7fé\U0001f600\u2028 a', max_size=8)).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
signatures = st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=8)


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Values from 0 to 200, or of both truth values: finite and exact in every type that holds them."""
    top = 2 if dtype == torch.bool else 100
    return torch.randint(0, top, shape, generator=generator(seed, str(dtype), *shape)).to(dtype)


def message(header: object, data: bytes = b"", kind: str = "K") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = b"IFSE\x01\x00" + struct.pack("<H", len(kind.encode())) + kind.encode()
    return prefix + struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def equal_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


@settings(deadline=None)
@given(kind=texts, signature=signatures)
def test_every_message_comes_back_and_its_size_is_known_before(
    kind: str, signature: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    tensors = {name: filled(dtype, shape) for name, (dtype, shape) in signature.items()}
    on_meta = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in signature.items()}
    spec = {name: TensorSpec(dtype, shape) for name, (dtype, shape) in signature.items()}
    data = encode(kind, tensors)
    assert len(data) == encoded_size(kind, tensors) == encoded_size(kind, on_meta)
    assert data == encode(kind, dict(reversed(tensors.items())))
    for wanted in (spec, None):
        found_kind, found = decode(memoryview(data), wanted)
        assert found_kind == kind
        assert equal_bits(found, tensors)


@settings(deadline=None)
@given(signature=signatures)
def test_the_body_is_what_safetensors_writes_and_reads(
    signature: dict[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    tensors = {name: filled(dtype, shape) for name, (dtype, shape) in signature.items()}
    body = encode("Ké", tensors)[8 + len("Ké".encode()) :]
    assert body == safetensors.torch.save(tensors)
    assert equal_bits(safetensors.torch.load(body), tensors)


def test_all_types_together_are_laid_out_as_safetensors_does() -> None:
    tensors = {f"{index}": filled(dtype, (3,), index) for index, dtype in enumerate(DTYPES)}
    assert encode("", tensors)[8:] == safetensors.torch.save(tensors)


def test_a_header_in_another_order_and_with_spaces_is_read() -> None:
    text = b'{ \n"b" : {"shape":[ 2 , 1 ],"data_offsets":[1,3],"dtype":"U8" } ,\t"a\\u00e9\\/":{"data_offsets":[0,1],'
    text += b'"dtype":"BOOL","shape":[]}}\n  '
    _, found = decode(message(text, b"\x01\x07\x08"), None)
    assert equal_bits(found, {"b": torch.tensor([[7], [8]], dtype=torch.uint8), "aé/": torch.tensor(True)})
    assert safetensors.torch.load(message(text, b"\x01\x07\x08")[9:]).keys() == found.keys()


def test_views_and_shared_memory_are_written_by_value() -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    negative = torch.tensor([1 + 2j]).conj().imag
    assert negative.is_neg()
    tensors = {
        "transposed": base.T,
        "strided": base[:, ::2],
        "offset": base[1:],
        "same": base,
        "one of a column": base[1:2, 1:2],
        "scalar of a column": base[:, 1][2],
        "none of a column": base[:, 1:1],
        "expanded": torch.ones(1).expand(5),
        "gradient": torch.ones(2, requires_grad=True),
        "negative": negative,
    }
    _, found = decode(encode("K", tensors), None)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    assert found["negative"].tolist() == [-2.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_tensor_is_written_as_on_the_cpu() -> None:
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T}
    on_device = {name: tensor.cuda() for name, tensor in tensors.items()}
    assert encode("K", on_device) == encode("K", tensors)
    assert encoded_size("K", on_device) == encoded_size("K", tensors)


def test_decoded_tensors_own_writable_aligned_memory() -> None:
    data = bytearray(
        encode("odd kind", {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.ones(3, dtype=torch.float64)})
    )
    _, found = decode(memoryview(data), None)
    data[:] = bytes(len(data))
    assert found["b"].tolist() == [1.0, 1.0, 1.0]
    for tensor in found.values():
        tensor.add_(1)
        assert tensor.data_ptr() % tensor.dtype.itemsize == 0
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.dtype.itemsize


def test_raw_size_counts_elements_only() -> None:
    assert raw_size({"a": torch.zeros(3, 2), "b": torch.zeros((), dtype=torch.int64), "c": torch.zeros(0)}) == 32
    assert raw_size({}) == 0


UNWRITABLE: dict[str, tuple[str, dict[str, Tensor], str]] = {
    "complex": ("K", {"x": torch.zeros(2, dtype=torch.complex64)}, "x"),
    "float8": ("K", {"x": torch.zeros(2).to(torch.float8_e4m3fn)}, "x"),
    "reserved name": ("K", {"__metadata__": torch.zeros(2)}, "__metadata__"),
    "surrogate name": ("K", {"a\ud800": torch.zeros(2)}, "'a\\ud800'"),
    "surrogate kind": ("\udfff", {}, "kind"),
    "long kind": ("é" * 40_000, {}, "kind"),
    "rank": ("K", {"x": torch.zeros((1,) * 65)}, "x"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_travel_is_refused_by_encode_and_size_alike(case: str) -> None:
    kind, tensors, field = UNWRITABLE[case]
    for function in (encode, encoded_size):
        with pytest.raises(MessageError) as caught:
            function(kind, tensors)
        assert caught.value.field == field


def test_tensors_without_dense_data_are_refused() -> None:
    for tensor in (torch.ones(2).to_sparse(), torch.ones(2, device="meta")):
        with pytest.raises(MessageError) as caught:
            encode("K", {"x": tensor})
        assert caught.value.field == "x"


GOOD = message({"x": entry()}, bytes(8))
NESTED = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

# What is wrong, then the field and a part of the text that must name it.
BROKEN: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "prefix", "truncated"),
    "magic": (b"XFSE" + GOOD[4:], "magic", "XFSE"),
    "version": (GOOD[:4] + b"\x02" + GOOD[5:], "version", "found 2"),
    "flags": (GOOD[:5] + b"\x80" + GOOD[6:], "flags", "found 128"),
    "kind cut off": (GOOD[:8], "kind", "truncated"),
    "kind too long": (GOOD[:6] + b"\xff\xff" + GOOD[8:], "kind", "at most 256"),
    "kind not UTF-8": (GOOD[:8] + b"\xff" + GOOD[9:], "kind", "UTF-8"),
    "header length cut off": (GOOD[:12], "header", "truncated"),
    "header longer than the message": (GOOD[:9] + struct.pack("<Q", 2000) + GOOD[17:], "header", "truncated"),
    "header longer than any": (GOOD[:9] + struct.pack("<Q", 2**64 - 1) + GOOD[17:], "header", "at most"),
    "header not UTF-8": (message(b'{"\xff":{}}'), "header", "UTF-8"),
    "no header": (message(b""), "header", "JSON object"),
    "no object": (message([1]), "header", "JSON object"),
    "space before the object": (message(b" {}"), "header", "JSON object"),
    "unclosed": (message(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'), "header", "comma"),
    "trailing comma": (message(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},}'), "header", "quoted name"),
    "trailing comma inside": (message(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],}}'), "x", "object of"),
    "text after the object": (message(b"{} {}"), "header", "nothing after"),
    "zero after the object": (message(b"{}\x00"), "header", "nothing after"),
    "control character": (message(b'{"a\nb":{}}'), "header", "quoted name"),
    "bad escape": (message(b'{"a\\qb":{}}'), "header", "quoted name"),
    "lone surrogate": (message(b'{"\\ud800":{}}'), "'\\ud800'", "lone surrogate"),
    "entry is a number": (message({"x": 3}), "x", "object of"),
    "entry is deep": (message(NESTED), "x", "object of"),
    "entry without shape": (message({"x": {"dtype": "U8", "data_offsets": [0, 0]}}), "x", "object of"),
    "entry with more": (message({"x": entry() | {"extra": 1}}, bytes(8)), "x", "object of"),
    "entry twice dtype": (message(b'{"x":{"dtype":"U8","dtype":"U8","shape":[0]}}'), "x", "object of"),
    "unknown type": (message({"x": entry("F8_E4M3", [8])}, bytes(8)), "x", "found F8_E4M3"),
    "negative size": (message({"x": entry(shape=[-2])}, bytes(8)), "x", "object of"),
    "fractional size": (message({"x": entry(shape=[2.0])}, bytes(8)), "x", "object of"),
    "size in exponents": (message(b'{"x":{"dtype":"U8","shape":[1e1],"data_offsets":[0,10]}}'), "x", "object of"),
    "leading zero": (message(b'{"x":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', b"1"), "x", "object of"),
    "true as a size": (message({"x": entry("U8", [True], (0, 1))}, bytes(1)), "x", "object of"),
    "null as a shape": (message({"x": entry(shape=None)}, bytes(8)), "x", "object of"),
    "negative offset": (message({"x": entry(offsets=(-8, 0))}, bytes(8)), "x", "object of"),
    "three offsets": (message({"x": entry(offsets=(0, 8, 8))}, bytes(8)), "x", "object of"),
    "backward offsets": (message({"x": entry(offsets=(8, 0))}, bytes(8)), "x", "offsets 8 to 0"),
    "huge number": (message(b'{"x":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}"), "x", "object of"),
    "huge shape": (message({"x": entry("U8", [2**40], (0, 2**40))}, bytes(8)), "x", "at most"),
    "overflowing shape": (message({"x": entry("F32", [2**32, 2**32], (0, 0))}), "x", "at most"),
    "huge and empty shape": (message({"x": entry("U8", [0, 2**62, 2**62], (0, 0))}), "x", "at most"),
    "too many dimensions": (message({"x": entry("U8", [1] * 65, (0, 1))}, bytes(1)), "x", "64 dimensions"),
    "size against offsets": (message({"x": entry(shape=[3])}, bytes(12)), "x", "12 bytes"),
    "data cut off": (GOOD[:-1], "x", "truncated"),
    "no data": (GOOD[:-8], "x", "truncated"),
    "trailing byte": (GOOD + b"\x00", "data", "trailing"),
    "hole at the start": (message({"x": entry(offsets=(1, 9))}, bytes(9)), "x", "hole"),
    "hole": (message({"x": entry(), "y": entry(offsets=(9, 17))}, bytes(17)), "y", "hole"),
    "overlap": (message({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)), "y", "overlap"),
    "same data twice": (message({"x": entry(), "y": entry()}, bytes(8)), "y", "overlap"),
    "name twice": (
        message(b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0078":{"dtype":"U8"}}'),
        "x",
        "each name once",
    ),
    "metadata": (message({"__metadata__": {"a": "b"}}), "__metadata__", "object of"),
    "long name": (message({"n" * 257: entry()}, bytes(8)), "n" * 77 + "...", "at most 256"),
    "long escaped name": (message(b'{"' + b"\\u00e9" * 129 + b'":{}}'), "é" * 77 + "...", "258 bytes"),
    "truth value of 2": (message({"x": entry("BOOL", [2], (0, 2))}, b"\x01\x02"), "x", "found 2"),
    "NaN": (message({"x": entry()}, struct.pack("<ff", 1, float("nan"))), "x", "finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_fault_is_named(case: str) -> None:
    data, field, text = BROKEN[case]
    with pytest.raises(MessageError) as caught:
        decode(data, None)
    assert caught.value.field == field
    assert text in str(caught.value)
    assert caught.value.message == ("?" if field in {"prefix", "magic", "version", "flags", "kind"} else "K")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_pass_only_where_the_spec_admits_them(dtype: torch.dtype, value: float) -> None:
    tensors = {"good": torch.full((40,), torch.finfo(dtype).max, dtype=dtype), "bad": torch.zeros(5, 8, dtype=dtype)}
    tensors["bad"][3, 1] = value
    data = encode("K", tensors)
    strict = {name: TensorSpec(dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for spec in (strict, None):
        with pytest.raises(MessageError, match="finite") as caught:
            decode(data, spec)
        assert caught.value.field == "bad"
    loose = strict | {"bad": TensorSpec(dtype, (5, 8), finite=False)}
    assert equal_bits(decode(data, loose)[1], tensors)


Change = Callable[[dict[str, TensorSpec]], object]
DEVIATIONS: dict[str, tuple[Change, str, str]] = {
    "undeclared": (lambda spec: spec.pop("labels"), "labels", "undeclared"),
    "missing": (lambda spec: spec.update(more=TensorSpec(torch.int8, ())), "more", "found none"),
    "type": (lambda spec: spec.update(labels=TensorSpec(torch.int32, (4,))), "labels", "torch.int64"),
    "size": (lambda spec: spec.update(features=TensorSpec(torch.float32, (None, 4))), "features", "[any, 4]"),
    "rank": (lambda spec: spec.update(features=TensorSpec(torch.float32, (None,))), "features", "[4, 3]"),
}


@pytest.mark.parametrize("case", DEVIATIONS)
def test_deviations_from_the_spec_are_named(case: str) -> None:
    change, field, text = DEVIATIONS[case]
    data = encode("Outputs", {"features": torch.ones(4, 3), "labels": torch.arange(4)})
    spec = {"features": TensorSpec(torch.float32, (None, 3)), "labels": TensorSpec(torch.int64, (4,))}
    decode(data, spec)
    change(spec)
    with pytest.raises(MessageError) as caught:
        decode(data, spec)
    assert (caught.value.message, caught.value.field) == ("Outputs", field)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (Limits(max_bytes=100), "message"),
        (Limits(max_tensors=1), "header"),
        (Limits(max_header_bytes=64), "header"),
        (Limits(max_name=3), "kind"),
    ],
)
def test_limits_hold(limits: Limits, field: str) -> None:
    data = encode("Kind", {"a": torch.zeros(2), "b": torch.zeros(2)})
    decode(data, None)
    with pytest.raises(MessageError) as caught:
        decode(data, None, limits)
    assert caught.value.field == field


def test_limits_are_met_exactly() -> None:
    data = encode("four", {"a": torch.zeros(2), "b": torch.zeros(2)})
    header = int.from_bytes(data[12:20], "little")
    decode(data, None, Limits(max_bytes=len(data), max_tensors=2, max_header_bytes=header, max_name=4))


def test_text_of_a_stranger_cannot_forge_a_log_line() -> None:
    data = message({"a\nERROR": entry()}, bytes(8), kind="K\n\x1b[31m" + "k" * 90)
    with pytest.raises(MessageError) as caught:
        decode(data, {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":' + b"[" * 4_000_000,
        b'{"x":[' + b"[]," * 1_300_000,
        b'{"x":[' + b"{}," * 1_300_000,
        b'{"x":{"dtype":"U8","shape":[' + b"1," * 2_000_000 + b'1],"data_offsets":[0,1]}}',
        b'{"' + b"\\n" * 2_000_000 + b'":{}}',
        b'{"' + b"a\\n" * 1_300_000,
        b'{"x":{"dtype":"' + b"A" * 4_000_000,
        b"{" + b" " * 4_000_000,
    ],
)
def test_a_large_header_costs_little_more_than_itself(header: bytes) -> None:
    data = message(header)
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            decode(data, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data)
