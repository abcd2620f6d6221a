"""What a Flower message carries between a coordinator and a node: an exchange, which is all that waits on a stream.

Flower knows questions and answers, streams (:mod:`interfuse.engines.parties.carrier`) go both ways. So the coordinator
asks, with all frames that it has, and the node answers, with all frames that it has. A packet is a kind, the stream's
name, the number of the exchange in it, and its frames, each behind its length. Exchange 0 opens a stream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from interfuse.engines.parties import LARGEST_FRAME
from interfuse.engines.parties.frames import HEADER, FrameError

ASK, ANSWER, GONE = 1, 2, 3
"""Kinds: of the coordinator; of the node; and of a node that knows no such stream."""
NAME = 16
"""Bytes of a stream's name, which the coordinator draws."""
ROOM = 16 * HEADER
"""Bytes of a packet at most, beside the payload of its one large message."""
_HEAD = struct.Struct(f"<B{NAME}sQ")
_LENGTH = struct.Struct("<I")


class Packet(NamedTuple):
    """One side of an exchange."""

    kind: int
    stream: bytes
    number: int
    frames: list[bytes]

    def packed(self) -> bytes:
        """As it travels."""
        return b"".join((_HEAD.pack(self.kind, self.stream, self.number), *_lengths_with(self.frames)))


def _lengths_with(frames: Iterable[bytes]) -> Iterable[bytes]:
    for frame in frames:
        yield _LENGTH.pack(len(frame))
        yield frame


def unpacked(packet: bytes, kinds: tuple[int, ...]) -> Packet:
    """A packet that has arrived, of one of these kinds.

    Raises:
        FrameError: it is none of ours.
    """
    if len(packet) < _HEAD.size:
        raise FrameError(f"an exchange of {len(packet)} bytes")
    kind, stream, number = _HEAD.unpack_from(packet)
    if kind not in kinds:
        raise FrameError(f"an exchange of kind {kind}")
    frames, at = list[bytes](), _HEAD.size
    while at < len(packet):
        if at + _LENGTH.size > len(packet):
            raise FrameError("an exchange that ends within a length")
        (length,) = _LENGTH.unpack_from(packet, at)
        at += _LENGTH.size
        if not 0 < length <= min(LARGEST_FRAME, len(packet) - at):
            raise FrameError(f"a frame of {length} bytes, where {len(packet) - at} are left of an exchange")
        frames.append(packet[at : at + length])
        at += length
    return Packet(kind, stream, number, frames)
