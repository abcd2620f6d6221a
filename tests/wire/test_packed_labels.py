"""Labels in few bytes: against another way to count, exact lengths, and whatever a stranger writes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interfuse.errors import MessageError
from interfuse.randomness import numpy_generator
from interfuse.wire import Pieces, labels
from interfuse.wire.cursor import Cursor, natural

TYPES = (torch.uint8, torch.uint16, torch.uint32)


def read(data: bytes, dtype: torch.dtype, count: int) -> Tensor | None:
    """The labels; None where they were refused as they should be."""
    cursor = Cursor("M", Pieces([data]))
    try:
        found = labels.read(cursor, "y", dtype, count)
        cursor.end()
    except MessageError:
        return None
    return found


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), classes=st.sampled_from([1, 2, 3, 10, 256, 257, 65_536, 2**32]), data=st.data())
def test_any_labels_come_back(seed: int, classes: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 70) | st.integers(1900, 2200))
    found = numpy_generator(seed).integers(classes, size=count)
    found.sort() if data.draw(st.booleans()) else None
    dtype = next(d for d in TYPES if torch.iinfo(d).max >= classes - 1)
    given = torch.from_numpy(found).to(dtype)
    written = labels.write(given)
    again = read(written, dtype, count)
    assert again is not None
    assert again.dtype == dtype
    assert torch.equal(again.long(), given.long())
    assert len(written) <= 5 + math.ceil(count / math.floor(64 / math.log2(max(2, classes)))) * 8
    assert read(written[:-1], dtype, count) is None
    assert read(written + b"\0", dtype, count) is None


def test_ascending_labels_are_numbered_without_a_hole() -> None:
    """The ascending sequences of eight labels below 3 have the numbers below C(10, 8), by their last label first."""
    every = sorted(itertools.combinations_with_replacement(range(3), 8), key=lambda s: s[::-1])
    assert len(every) == math.comb(10, 8) == 45
    for place, sequence in enumerate(every):
        data = natural(2 * 3 + 1) + bytes([place])
        if sequence[-1] == 2:
            assert labels.write(torch.tensor(sequence, dtype=torch.uint8)) == data
            assert read(data, torch.uint8, 8).tolist() == list(sequence)
        else:  # to be written with a smaller radix
            assert read(data, torch.uint8, 8) is None
    assert all(read(natural(7) + bytes([place]), torch.uint8, 8) is None for place in range(45, 256))


def test_lengths_are_those_of_the_bits() -> None:
    random = numpy_generator(1)
    ten = torch.from_numpy(random.permutation([*range(10), *random.integers(10, size=22)])).to(torch.uint8)
    # 19 digits are a word of 8 bytes, 13 have 43.2 bits; C(41, 9) sequences have 28.4
    assert len(labels.write(ten)) == 1 + 8 + 6
    assert len(labels.write(ten.sort().values)) == 1 + 4
    assert len(labels.write(torch.zeros(1000, dtype=torch.uint8))) == 1
    two = torch.tensor([0, 1] * 500, dtype=torch.uint8)
    assert len(labels.write(two)) == 1 + 125
    assert len(labels.write(two.sort().values)) == 1 + 2  # where the ones begin: one of 1,001 places


def test_no_labels_are_written_in_one_way() -> None:
    assert read(natural(0), torch.uint8, 0) is not None
    assert read(natural(1), torch.uint8, 0) is None


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40), count=st.integers(0, 40))
def test_any_bytes_are_refused_or_labels_that_are_written_so(dtype: torch.dtype, data: bytes, count: int) -> None:
    found = read(data, dtype, count)
    if found is not None:
        assert found.dtype == dtype
        assert len(found) == count
        assert labels.write(found) == data


def test_a_number_is_written_in_one_way() -> None:
    for number in (0, 1, 127, 128, 16_383, 16_384, 2**32, 2**63 - 1):
        data = natural(number)
        assert len(data) == max(1, -(-number.bit_length() // 7))
        assert Cursor("M", Pieces([data])).natural("f", 2**63 - 1) == number
        for bad in (data[:-1], data[:-1] + bytes([data[-1] | 0x80, 0])):
            with pytest.raises(MessageError):
                Cursor("M", Pieces([bad])).natural("f", 2**63 - 1)
        if number:
            with pytest.raises(MessageError):
                Cursor("M", Pieces([data])).natural("f", number - 1)
