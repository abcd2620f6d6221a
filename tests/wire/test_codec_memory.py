"""Memory that reading a coded message takes: little for what is refused, about what it holds for what is not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from worlds import same_bits

from interfuse.errors import MessageError
from interfuse.messages import Features, Message, Parameters
from interfuse.messages.encoding import decode, encode, rounded
from interfuse.randomness import generator
from interfuse.wire import Codecs, Limits
from interfuse.wire.codecs import codec

MB = 1 << 20
DIMS = {"classes": 10, "d": 512}
KEYS = {"w": (512, 4096)}


class Both(Message):
    """A field whose shape follows from the keys of a model, and one whose shape follows from the run."""

    z: Features
    tensors: Parameters


def peak(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> int:
    """The most bytes that NumPy and Python hold, and all that is taken for decoded tensors, which PyTorch holds."""
    taken = 0
    honest = codec.fresh

    def counted(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        nonlocal taken
        made = honest(shape, dtype)
        taken += made.nbytes
        return made

    monkeypatch.setattr(codec, "fresh", counted)
    tracemalloc.start()
    try:
        work()
        return taken + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bomb(text: str, z: tuple[int, ...], key: str, w: tuple[int, ...]) -> bytes:
    """A small message with tensors of zeros of these shapes, well formed but for what its receiver expects of them."""
    made = Codecs.parse({"default": text})
    return encode(Both(torch.zeros(z), {key: torch.zeros(w)}), made)


@pytest.mark.parametrize(
    ("z", "key", "w", "reason"),
    [
        ((1, 512), "w", (4096, 4096), "shape (512, 4096), found shape (4096, 4096)"),
        ((1, 512), "v", (4096, 4096), "unknown key 'v'"),
        ((4096, 4096), "w", (1, 1), "d = 512"),
        ((100 * MB // 2048 + 1, 512), "w", (1, 1), "at most 104857600 bytes"),
    ],
)
@pytest.mark.parametrize("text", ["zstd", "int8+zstd", "fp16+zstd", "topk:0.5+int4+zstd"])
def test_a_small_message_of_another_shape_takes_no_memory(
    text: str, z: tuple[int, ...], key: str, w: tuple[int, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bomb(text, z, key, w)
    assert len(data) < 250_000  # most of it the scales of rows

    def work() -> None:
        with pytest.raises(MessageError) as refused:
            decode(data, Both, DIMS, KEYS, Limits(max_bytes=100 * MB), Codecs.parse({"default": text}))
        assert reason in str(refused.value)

    assert peak(work, monkeypatch) < MB / 4


def test_a_tensor_of_another_type_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field of named tensors says of each which type it has."""
    rules = Codecs.parse({"default": "zstd"})
    data = encode(Both(torch.zeros(1, 512), {"w": torch.zeros(KEYS["w"], dtype=torch.float64)}), rules)
    assert len(data) < 20_000

    def work() -> None:
        with pytest.raises(MessageError, match=r"torch\.float32"):
            decode(data, Both, DIMS, KEYS, Limits(max_bytes=100 * MB), Codecs.parse({"default": "zstd"}))

    assert peak(work, monkeypatch) < MB / 4


@pytest.mark.parametrize("zstd", ["", "+zstd"])
@pytest.mark.parametrize(
    "text",
    ["fp16", "bf16", "int8", "int4", "int2", "int8:tensor", "topk:0.1", "topk:0.5", "topk:0.9+int8", "topk:0.1+bf16"],
)
def test_what_is_as_declared_takes_at_most_twice_what_it_holds(
    text: str, zstd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = codec.Codec.parse(text + zstd)
    x = torch.randn(512, 4096, generator=generator(1))
    sent = made.round(x, generator(2))
    data = made.pack(sent)
    found: list[Tensor] = []
    raw = codec.np.frombuffer(data, codec.np.uint8)
    most = peak(lambda: found.append(made.unpack(raw, 100 * MB, "M", "f")), monkeypatch)
    assert same_bits({"x": found[0]}, {"x": sent})
    assert most <= 2 * sent.nbytes


def test_a_whole_message_takes_at_most_twice_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Codecs.parse({"default": "int8+zstd"})
    noise = generator(1)
    sent = rounded(
        Both(torch.randn(1024, 512, generator=noise), {"w": torch.randn(512, 4096, generator=noise)}), rules, noise
    )
    data, found = encode(sent, rules), []
    most = peak(lambda: found.append(decode(data, Both, DIMS, KEYS, codecs=rules)), monkeypatch)
    assert same_bits(found[0].tensors, sent.tensors)
    assert torch.equal(found[0].z, sent.z)
    assert most <= 2 * (sent.z.nbytes + sent.tensors["w"].nbytes)


@pytest.mark.parametrize("text", ["fp16", "int8", "int2+zstd"])
def test_packing_makes_no_index_of_every_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = codec.Codec.parse(text)
    sent = made.round(torch.randn(512, 4096, generator=generator(1)), generator(2))
    most = peak(lambda: made.pack(sent) and None, monkeypatch)
    assert most <= 1.5 * sent.nbytes  # an index alone takes twice as much
