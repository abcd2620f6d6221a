"""Bytes of messages by name and type, as they travelled with codecs before, and in the compact frame.

    python benchmarks/frames.py

Features are those of a ReLU, 32 rows of 10 classes; parameters are those of the zoo's `cnn` for 28 x 28 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from interfuse import wire
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.messages import Message, Weights, flatten, kind_of, leaf_at
from interfuse.messages.encoding import codec_of, encode, rounded
from interfuse.models import resolve
from interfuse.randomness import generator, numpy_generator
from interfuse.wire import NO_CODEC, Codecs


def named(message: Message, codecs: Codecs) -> int:
    """Bytes of a message as a safetensors file in which coded tensors are pieces of bytes under path and codec."""
    kind, packed = kind_of(message), dict[str, Tensor]()
    for path, tensor in flatten(message).items():
        leaf = leaf_at(type(message), path)
        codec = NO_CODEC if leaf is None else codec_of(codecs, kind, leaf, tensor.ndim)
        if codec.written == NO_CODEC.written:
            packed[path] = tensor
        else:
            packed[f"{path}@{codec.written}"] = torch.frombuffer(bytearray(codec.pack(tensor)), dtype=torch.uint8)
    return wire.encoded_size(kind, packed)


def upload(width: int, seed: int = 0) -> FusionOutputs:
    random = numpy_generator(seed)
    z = torch.from_numpy(random.standard_normal((32, width)).astype(np.float32)).relu()
    return FusionOutputs(z, torch.from_numpy(random.integers(10, size=32)).to(torch.uint8))


def main() -> None:
    near = {"FusionOutputs.y": "sorted"}
    two = near | {"FusionOutputs.z": "int2:tensor+nearest"}
    four = near | {"FusionOutputs.z": "int4:tensor+nearest"}
    weights = Weights(resolve("cnn")((1, 28, 28), 10, 432).tensors())
    cases: list[tuple[str, Message, Mapping[str, str]]] = [
        ("d = 432", upload(432), {"default": "none"}),
        ("d = 432", upload(432), {"default": "int4+zstd"}),
        ("d = 432", upload(432), two),
        ("d = 32", upload(32), four),
        ("d = 16", upload(16), two),
        ("four, d = 432", FusionPairs(tuple(upload(432, seed) for seed in range(4))), {"default": "int4+zstd"}),
        ("four, d = 16", FusionPairs(tuple(upload(16, seed) for seed in range(4))), two),
        ("the cnn", weights, {"default": "int8"}),
    ]
    print("| message | codecs | payload in fp32 | by name | compact |\n| --- | --- | ---: | ---: | ---: |")
    for what, message, texts in cases:
        rules = Codecs.parse(texts)
        sent = rounded(message, rules, generator(0))
        raw = wire.raw_size(flatten(sent))
        words = ", ".join(f"{key} = {text}" for key, text in texts.items())
        sizes = f"{raw:,} | {named(sent, rules):,} | {len(encode(sent, rules)):,}"
        print(f"| {kind_of(sent)}, {what} | `{words}` | {sizes} |")


if __name__ == "__main__":
    main()
