"""Packets over a socket of this machine, each behind its length."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20


def send(line: socket.socket, packet: bytes) -> None:
    """Send a packet behind its length."""
    line.sendall(_LENGTH.pack(len(packet)))
    line.sendall(packet)


def receive(line: socket.socket, most: int) -> bytes:
    """A packet, as :func:`send` sends it.

    Raises:
        OSError: it does not come whole, or says that it is larger than ``most``.
    """
    (length,) = _LENGTH.unpack(_exactly(line, _LENGTH.size))
    if length > most:
        raise OSError(f"{length} bytes are announced, at most {most} are taken")
    return _exactly(line, length)


def _exactly(line: socket.socket, size: int) -> bytes:
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
        send(line, packet)
        return receive(line, 1 << 62)
