"""What a Flower message carries between a coordinator and a node: an exchange, which is all that waits on a stream.

Flower knows questions and answers, streams (:mod:`interfuse.engines.parties.carrier`) go both ways. So the coordinator
asks, with all frames that it has, and the node answers, with all frames that it has. A packet is a kind, the stream's
name, the number of the exchange in it, and its frames, each behind its length. Exchange 0 opens a stream.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from interfuse.engines.parties import LARGEST_FRAME
from interfuse.engines.parties.frames import FrameError

ASK, ANSWER, GONE = 1, 2, 3
"""Kinds: of the coordinator; of the node; and of a node that knows no such stream."""
NAME = 16
"""Bytes of a stream's name, which the coordinator draws."""
_HEAD = struct.Struct(f"<B{NAME}sQ")
_LENGTH = struct.Struct("<I")


class Head(NamedTuple):
    """Which exchange of which stream a packet is of."""

    kind: int
    stream: bytes
    number: int


def packed(head: Head, frames: Sequence[bytes]) -> list[bytes]:
    """A packet, in parts."""
    parts = [_HEAD.pack(*head)]
    for frame in frames:
        parts += _LENGTH.pack(len(frame)), frame
    return parts


def opened(read: Callable[[int], bytes], size: int, kinds: Sequence[int]) -> tuple[Head, Iterator[bytes]]:
    """The head of a packet of one of these kinds, and its frames, each read when it is asked for.

    Args:
        read: Gives so many bytes of the packet, fewer only where it ends.
        size: Bytes of the packet.

    Raises:
        FrameError: it is none of ours; so may the frames.
    """
    head = Head(*_HEAD.unpack(_read(read, _HEAD.size, size)))
    if head.kind not in kinds:
        raise FrameError(f"an exchange of kind {head.kind}")
    return head, _frames(read, size - _HEAD.size)


def opened_whole(packet: bytes, kinds: Sequence[int]) -> tuple[Head, list[bytes]]:
    """The same of a packet that is there.

    Raises:
        FrameError: as above.
    """
    head, frames = opened(io.BytesIO(packet).read, len(packet), kinds)
    return head, list(frames)


def _frames(read: Callable[[int], bytes], left: int) -> Iterator[bytes]:
    while left > 0:
        (length,) = _LENGTH.unpack(_read(read, _LENGTH.size, left))
        left -= _LENGTH.size
        if not 0 < length <= LARGEST_FRAME:
            raise FrameError(f"a frame of {length} bytes in an exchange")
        yield _read(read, length, left)
        left -= length


def _read(read: Callable[[int], bytes], size: int, left: int) -> bytes:
    found = read(size) if size <= left else b""
    if len(found) < size:
        raise FrameError(f"an exchange that ends where {size} bytes more are due")
    return found
