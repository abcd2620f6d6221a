"""Runs between parties, whatever carries their messages; what a carrier needs of it is listed here."""

from __future__ import annotations

from interfuse.engines.parties.carrier import Carrier, Join, Line, LineError, Link, MisnamedError, Peer, StrangeError
from interfuse.engines.parties.contract import JoinError
from interfuse.engines.parties.frames import LARGEST_FRAME
from interfuse.engines.parties.keys import KeyFiles
from interfuse.engines.parties.vendor import Vendor

__all__ = [
    "LARGEST_FRAME",
    "Carrier",
    "Join",
    "JoinError",
    "KeyFiles",
    "Line",
    "LineError",
    "Link",
    "MisnamedError",
    "Peer",
    "StrangeError",
    "Vendor",
]
