"""Packets over a socket of this machine, each behind its length."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20


def send(line: socket.socket, parts: Sequence[bytes]) -> None:
    """Send a packet, given in parts, behind its length."""
    line.sendall(_LENGTH.pack(sum(map(len, parts))))
    for part in parts:
        line.sendall(part)


def announced(line: socket.socket) -> int:
    """The length of the packet that follows.

    Raises:
        OSError: none does.
    """
    found: int = _LENGTH.unpack(exactly(line, _LENGTH.size))[0]
    return found


def exactly(line: socket.socket, size: int) -> bytes:
    """So many bytes.

    Raises:
        OSError: there are fewer.
    """
    pieces, missing = [], size
    while missing:
        piece = line.recv(min(missing, _PIECE))
        if not piece:
            raise OSError(f"it ended {missing} bytes too early")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def handed_on(packet: bytes, place: str) -> bytes:
    """What the node at a socket answers to a packet.

    Raises:
        OSError: nobody is there, or it went meanwhile.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(place)
        send(line, [packet])
        return exactly(line, announced(line))
