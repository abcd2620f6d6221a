"""Changed messages for the decoder of compact frames: refused with a MessageError, or a message within the limits.

    python benchmarks/fuzz_frames.py --tries 100000

Every kind of message of every method, and every codec of the list, in turn. What is raised beside a MessageError is
printed with the seed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from interfuse.errors import MessageError
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.families.product_quantisation import CodedOutputs, fitted, pieces_of, places
from interfuse.messages import Message, Weights, flatten
from interfuse.messages.encoding import decode, encode, rounded
from interfuse.randomness import generator, numpy_generator
from interfuse.wire import Codecs, Limits

DIMS = {"classes": 10, "d": 16}
LIMITS = Limits(max_bytes=4096, max_tensors=64, max_header_bytes=2048, max_name=32)
CODECS = ("zstd", "int4", "int8:tensor+nearest", "fp16+zstd", "topk:0.3+int4+zstd")


def messages() -> list[Message]:
    """Of each form that a message can have: rows, a tuple of records, codes with their codebook, named tensors."""
    random = numpy_generator(0)
    z = torch.from_numpy(random.standard_normal((24, 16)).astype(np.float32)).relu()
    pair = FusionOutputs(z, torch.from_numpy(random.integers(10, size=24)).to(torch.uint8))
    few = FusionOutputs(z[:3], pair.y[:3])
    book = fitted(pieces_of(z, 4), 8, 2, None, generator(0))
    coded = CodedOutputs(places(z, book), pair.y, (book,))
    return [pair, FusionPairs((few, few)), coded, Weights({"a": z[:4], "b": z[0]})]


def changed(data: bytes, random: np.random.Generator) -> bytes:
    """The same with something wrong."""
    made = bytearray(data)
    match int(random.integers(5)):
        case 0:
            for position in random.integers(len(data), size=int(random.integers(1, 5))):
                made[position] ^= 1 << int(random.integers(8))
        case 1:
            for position in random.integers(5, min(60, len(data)), size=2):
                made[position] = int(random.choice([0, 1, 2, 63, 127, 128, 255]))
        case 2:
            del made[int(random.integers(len(data))) :]
        case 3:
            place = int(random.integers(len(data) + 1))
            made[place:place] = random.bytes(int(random.integers(1, 12)))
        case _:
            begin, end = sorted(int(n) for n in random.integers(5, len(data), size=2))
            made[begin:end] = bytes([255] * int(random.integers(1, 12)))
    return bytes(made)


def refused(data: bytes, kind: type[Message], rules: Codecs) -> bool:
    """Whether a message is refused, having checked that what is not is within the limits and can be sent on."""
    try:
        found = decode(data, kind, DIMS, limits=LIMITS, codecs=rules)
    except MessageError:
        return True
    assert sum(tensor.nbytes for tensor in flatten(found).values()) <= LIMITS.max_bytes
    again = rounded(found, rules, generator(0))  # what a stranger writes need not be rounded
    back = flatten(decode(encode(again, rules), kind, DIMS, limits=LIMITS, codecs=rules))
    assert all(torch.equal(back[path], tensor) for path, tensor in flatten(again).items())
    return False


def fuzz(tries: int, seed: int, sent: Sequence[Message] = (), codecs: Sequence[str] = CODECS) -> Counter[str]:
    """So many changed messages in all: how many were taken, refused, or did something else."""
    found: Counter[str] = Counter()
    good = []
    for message in sent or messages():
        for text in codecs:
            rules = Codecs.parse({"default": text})
            good.append((type(message), rules, encode(rounded(message, rules, generator(0)), rules)))
            assert not refused(good[-1][2], type(message), rules)
    for number in range(tries):
        kind, rules, data = good[number % len(good)]
        try:
            found["refused" if refused(changed(data, numpy_generator(seed, number)), kind, rules) else "taken"] += 1
        except Exception as error:  # the very thing that is looked for
            found["wrong"] += 1
            print(f"{kind.__name__}, {rules.texts}, seed {seed}, try {number}: {error!r}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(dict(fuzz(given.tries, given.seed)))


if __name__ == "__main__":
    main()
