"""Numbers of few bytes, and a place in bytes from a stranger that moves on by what is taken from there."""

from __future__ import annotations

from interfuse.wire.body import fault
from interfuse.wire.pieces import Pieces

_LONGEST = 9
"""Bytes of the largest number below 2^63."""


def natural(number: int) -> bytes:
    """A number from 0 to 2^63 - 1, seven bits a byte, the lowest first; the eighth bit says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


class Cursor:
    """Takes one thing after the other from the bytes of a message.

    Attributes:
        message: Names it in errors.
    """

    def __init__(self, message: str, data: Pieces) -> None:
        self.message, self._data, self._place = message, data, 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._place

    def take(self, size: int, field: str) -> Pieces:
        """So many bytes, which are not copied.

        Raises:
            MessageError: there are fewer.
        """
        if size > self.left:
            raise fault(self.message, field, f"{size} bytes", f"{self.left} bytes (truncated)")
        self._place += size
        return self._data[self._place - size : self._place]

    def natural(self, field: str, most: int) -> int:
        """The inverse of :func:`natural`, up to ``most``.

        Raises:
            MessageError: there is no such number, or it is written with more bytes than it needs.
        """
        found = 0
        for place in range(_LONGEST):
            byte = bytes(self.take(1, field))[0]
            found |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                if found > most or (place and not byte):
                    raise fault(self.message, field, f"a number up to {most}", f"{found} in {place + 1} bytes")
                return found
        raise fault(self.message, field, f"a number up to {most}", f"one of more than {_LONGEST} bytes")

    def end(self) -> None:
        """Check that all was taken.

        Raises:
            MessageError: more is there.
        """
        if self.left:
            raise fault(self.message, "data", "nothing behind the message", f"{self.left} bytes (trailing bytes)")
