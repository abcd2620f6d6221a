"""What a Flower message carries between a coordinator and a node: an exchange, which is all that waits on a stream.

Flower knows questions and answers, streams (:mod:`interfuse.engines.parties.carrier`) go both ways. So the coordinator
asks, with what waits up to the first question, and the node answers that. A packet is a kind, the stream's name, the
number of the exchange in it, and what goes over the stream's channel (:mod:`.channel`): frames, each behind its length.
Exchange 0 opens a stream, and says nothing.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from interfuse.engines.flower.channel import Channel
from interfuse.engines.parties import LARGEST_FRAME
from interfuse.engines.parties.frames import FrameError

ASK, ANSWER, GONE = 1, 2, 3
"""Kinds: of the coordinator; of the node; and of a node that knows no such stream."""
NAME = 16
"""Bytes of a stream's name, which the coordinator draws."""
PIECE = 1 << 20
"""Bytes of a packet that are looked at, at once."""
_RECORD = 256
"""Bytes of a packet to which frames and TLS add one at most: TLS adds 22 to 16 KiB."""
_HEAD = struct.Struct(f"<B{NAME}sQ")
_LENGTH = struct.Struct("<I")


class Head(NamedTuple):
    """Which exchange of which stream a packet is of."""

    kind: int
    stream: bytes
    number: int

    def packed(self) -> bytes:
        """As it travels."""
        return _HEAD.pack(*self)


def opened(read: Callable[[int], bytes], size: int, kinds: Sequence[int]) -> tuple[Head, Iterator[bytes]]:
    """The head of a packet of one of these kinds, and what is behind it, each piece read when it is asked for.

    Args:
        read: Gives so many bytes of the packet, fewer only where it ends.
        size: Bytes of the packet.

    Raises:
        FrameError: it is none of ours; so may the pieces.
    """
    head = Head(*_HEAD.unpack(_read(read, _HEAD.size, size)))
    if head.kind not in kinds:
        raise FrameError(f"an exchange of kind {head.kind}")
    return head, _pieces(read, size - _HEAD.size)


def opened_whole(packet: bytes, kinds: Sequence[int]) -> tuple[Head, Iterator[bytes]]:
    """The same of a packet that is there.

    Raises:
        FrameError: as above.
    """
    return opened(io.BytesIO(packet).read, len(packet), kinds)


def most_of(largest: int) -> int:
    """Bytes of a packet that carries one message, at most.

    Args:
        largest: Bytes of the message's payload, at most.
    """
    return largest + largest // _RECORD + LARGEST_FRAME  # the last for its header, and certificates of a handshake


def _pieces(read: Callable[[int], bytes], left: int) -> Iterator[bytes]:
    while left > 0:
        yield _read(read, min(PIECE, left), left)
        left -= PIECE


def _read(read: Callable[[int], bytes], size: int, left: int) -> bytes:
    found = read(size) if size <= left else b""
    if len(found) < size:
        raise FrameError(f"an exchange that ends where {size} bytes more are due")
    return found


def sent(channel: Channel, frames: Iterable[bytes]) -> list[bytes]:
    """What is sent over a channel to say frames, in parts; without frames what the channel has to send."""
    parts = [channel.give(_LENGTH.pack(len(frame)) + frame) for frame in frames]
    return [part for part in (*parts, channel.give(b"")) if part]


def received(channel: Channel, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The frames in an exchange, as they come.

    Raises:
        FrameError: they are none of ours; an exchange ends with a frame.
        OSError: of the channel.
    """
    held = bytearray()
    for piece in pieces:
        held += channel.take(piece)
        at = 0
        while len(held) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, at)
            if not 0 < length <= LARGEST_FRAME:
                raise FrameError(f"a frame of {length} bytes in an exchange")
            if len(held) - at < _LENGTH.size + length:
                break
            at += _LENGTH.size
            yield bytes(held[at : at + length])
            at += length
        del held[:at]
    if held:
        raise FrameError("an exchange that ends within a frame")
