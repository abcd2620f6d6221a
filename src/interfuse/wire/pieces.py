"""Bytes in several pieces: a large message is read from where it lies, and never put into one block."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate


class Pieces:
    """Bytes that lie in several places, one after the other. They are not copied: they must not change.

    Attributes:
        parts: The pieces in their order; none is empty.
    """

    __slots__ = ("_ends", "parts")

    def __init__(self, parts: Iterable[bytes | memoryview] = ()) -> None:
        self.parts = tuple(memoryview(part).cast("B") for part in parts if len(part))
        self._ends = tuple(accumulate(map(len, self.parts)))

    @classmethod
    def of(cls, data: bytes | memoryview | Pieces) -> Pieces:
        """The same bytes as pieces."""
        return data if isinstance(data, Pieces) else cls([data])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def cut(self, size: int) -> Iterator[Pieces]:
        """Pieces of so many bytes, the last with what is left; one without bytes where there are none."""
        yield self[:size]
        for begin in range(size, len(self), size):
            yield self[begin : begin + size]

    def __getitem__(self, span: slice) -> Pieces:
        """A part of it, without steps."""
        begin, end, _ = span.indices(len(self))
        parts = []
        for place in range(bisect_right(self._ends, begin), len(self.parts)):
            offset = self._ends[place] - len(self.parts[place])
            if offset >= end:
                break
            parts.append(self.parts[place][max(0, begin - offset) : end - offset])
        return Pieces(parts)
