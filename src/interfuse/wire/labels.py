"""Class numbers in few bytes: as digits of one long number, or, where they ascend, as how many there are of each.

With r the smallest number above all of n labels, they take n · log2(r) bits as digits, and where they ascend
log2(C(n + r - 1, n)) bits as a choice among all ascending sequences: of 32 labels of ten classes 14 and 4 bytes. What
is shorter is written. Equal labels give equal bytes, and nothing but these is read as them.

::

    bytes   content
    1 to 5  2 r + 1 where they are written as a choice, 2 r as digits
    rest    digits: as many labels at a time as 64 bits hold, the first the lowest digit, in as few bytes as their
            largest number has; a choice: its place among all, in as few bytes as the largest has. Little-endian
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from interfuse.wire.body import fault
from interfuse.wire.cursor import Cursor, natural

MOST_CHOSEN = 2048
"""Labels and classes together up to which a choice is written: its place is a number of as many bits, and what it
takes to find it grows with their square."""
MOST_PACKED = 1 << 20
"""Labels up to which they are packed: all of one class they take hardly a byte, whatever memory they need when read."""
_WORD = 64


def write(labels: Tensor) -> bytes:
    """At most :data:`MOST_PACKED` labels of an unsigned type as bytes."""
    found = labels.cpu().to(torch.int64).numpy()
    if not len(found):
        return natural(0)
    radix = int(found.max()) + 1
    as_digits = natural(2 * radix) + _digits(found.astype(np.uint64), radix)
    if len(found) + radix > MOST_CHOSEN or not bool((found[1:] >= found[:-1]).all()):
        return as_digits
    chosen = natural(2 * radix + 1) + _place(found.tolist(), radix)
    return chosen if len(chosen) < len(as_digits) else as_digits


def read(cursor: Cursor, field: str, dtype: torch.dtype, count: int) -> Tensor:
    """The inverse of :func:`write`: so many labels, at most :data:`MOST_PACKED`.

    Raises:
        MessageError: there are no such labels.
    """
    most = torch.iinfo(dtype).max + 1
    radix, chosen = divmod(cursor.natural(field, 2 * most + 1), 2)
    if (radix == 0) != (count == 0) or (chosen and not 0 < count <= MOST_CHOSEN - radix):
        raise fault(cursor.message, field, f"{count} labels below a number up to {most}", f"below {radix}")
    if not count:
        return torch.empty(0, dtype=dtype)
    found = _chosen(cursor, field, radix, count) if chosen else _from_digits(cursor, field, radix, count)
    labels = torch.from_numpy(found.astype(np.int64)).to(dtype)
    if not write(labels).startswith(natural(2 * radix + chosen)):
        raise fault(cursor.message, field, "labels in the fewest bytes", "others")
    return labels


def _digits_of_a_word(radix: int) -> int:
    """How many digits 64 bits hold; of a radix of one, which needs none, as many as of two."""
    return next(n for n in range(_WORD, 0, -1) if radix**n <= 2**_WORD)


def _bytes_below(number: int) -> int:
    """Bytes of the largest number below it."""
    return -(-(number - 1).bit_length() // 8)


def _groups(count: int, radix: int) -> Iterator[tuple[int, int, int]]:
    """Digits that are written together: how many, in how many bytes, and how many such groups there are."""
    each = _digits_of_a_word(radix)
    for digits, groups in ((each, count // each), (count % each, 1)):
        if digits and groups:
            yield digits, _bytes_below(radix**digits), groups


def _digits(labels: np.ndarray, radix: int) -> bytes:
    written, begin = b"", 0
    for digits, size, groups in _groups(len(labels), radix):
        rows = labels[begin : begin + digits * groups].reshape(groups, digits)
        weights = np.array([radix**place for place in range(digits)], np.uint64)
        numbers = (rows * weights).sum(1, dtype=np.uint64).astype("<u8")
        written += numbers.view(np.uint8).reshape(groups, 8)[:, :size].tobytes()
        begin += digits * groups
    return written


def _from_digits(cursor: Cursor, field: str, radix: int, count: int) -> np.ndarray:
    found = np.empty(count, np.uint64)
    begin = 0
    for digits, size, groups in _groups(count, radix):
        raw = np.zeros((groups, 8), np.uint8)
        raw[:, :size] = np.frombuffer(bytes(cursor.take(size * groups, field)), np.uint8).reshape(groups, size)
        numbers = raw.view("<u8").reshape(groups)
        if radix**digits < 2**_WORD and bool((numbers >= radix**digits).any()):
            raise fault(cursor.message, field, f"numbers below {radix}^{digits}", str(int(numbers.max())))
        rows = found[begin : begin + digits * groups].reshape(groups, digits)
        for place in range(digits):
            rows[:, place] = numbers % np.uint64(radix)
            numbers = numbers // np.uint64(radix)
        begin += digits * groups
    return found


def _place(labels: list[int], radix: int) -> bytes:
    """The place of an ascending sequence among all, as that of the strictly ascending one of label i plus i."""
    place = sum(math.comb(label + i, i + 1) for i, label in enumerate(labels))
    return place.to_bytes(_bytes_below(math.comb(len(labels) + radix - 1, len(labels))), "little")


def _chosen(cursor: Cursor, field: str, radix: int, count: int) -> np.ndarray:
    total = math.comb(count + radix - 1, count)
    place = int.from_bytes(bytes(cursor.take(_bytes_below(total), field)), "little")
    if place >= total:
        raise fault(cursor.message, field, f"one of {total} sequences", "another number")
    found = np.empty(count, np.int64)
    top = count + radix - 2
    ways = math.comb(top, count)
    for i in range(count - 1, -1, -1):
        while ways > place:  # C(top, i + 1) of the largest number that may stand here
            ways = ways * (top - i - 1) // top
            top -= 1
        place -= ways
        found[i] = top - i
        ways = ways * (i + 1) // top if top else 0  # C(top - 1, i)
        top -= 1
    return found
