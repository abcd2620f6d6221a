"""Digests of payloads, worked out before they leave or on their way.

They are BLAKE3, since a node has to hash all that it sends, however large: a fast digest that resists collisions as
SHA-256 does, by which a vendor's log could otherwise be made to fit another message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import blake3

from interfuse.engines.parties.frames import Payload
from interfuse.wire import Pieces


class Digested(Pieces):
    """A payload with its BLAKE3, which is worked out piece by piece while it is cut, unless it is known.

    Attributes:
        digest: In hexadecimal; None as long as it is not known.
        known: Told the digest as soon as it is, before the last piece is given away. What it raises, whoever takes the
            pieces gets.
    """

    __slots__ = ("_over", "digest", "known")

    def __init__(self, payload: Pieces, digest: str | None = None) -> None:
        super().__init__(payload.parts)
        self.digest, self._over = digest, digest is not None
        self.known: Callable[[str], None] = lambda digest: None

    def cut(self, size: int) -> Iterator[Pieces]:
        if self._over:
            yield from super().cut(size)
            return
        found, left = blake3.blake3(), len(self)
        for piece in super().cut(size):
            for part in piece.parts:
                found.update(part)
            left -= len(piece)
            if not left:
                self._end(found.hexdigest())
            yield piece

    def finish(self) -> None:
        """Work the digest out, if nobody has taken the pieces to their end."""
        if not self._over:
            self._end(digest_of(self))

    def _end(self, digest: str) -> None:
        self.digest, self._over = digest, True
        self.known(digest)


def digest_of(payload: Payload) -> str:
    """BLAKE3 of a payload, in hexadecimal."""
    found = blake3.blake3()
    for part in Pieces.of(payload).parts:
        found.update(part)
    return found.hexdigest()
