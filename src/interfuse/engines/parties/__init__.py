"""Runs between parties, whatever carries their messages: contract, vendor, node, the coordinator's side of calls."""

from __future__ import annotations

from interfuse.engines.parties.carrier import Carrier, Dial, Join, Line, LineError, Link, Peer
from interfuse.engines.parties.contract import Contract, JoinError
from interfuse.engines.parties.frames import LARGEST_FRAME, MESSAGE
from interfuse.engines.parties.hub import Hub
from interfuse.engines.parties.keys import KeyFiles
from interfuse.engines.parties.logs import Events, verify
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.remote import Patience, Remote
from interfuse.engines.parties.setups import RemoteSetup
from interfuse.engines.parties.vendor import Vendor, read_vendor

__all__ = [
    "LARGEST_FRAME",
    "MESSAGE",
    "Carrier",
    "Contract",
    "Dial",
    "Events",
    "Hub",
    "Join",
    "JoinError",
    "KeyFiles",
    "Line",
    "LineError",
    "Link",
    "Loopback",
    "Node",
    "Patience",
    "Peer",
    "Remote",
    "RemoteSetup",
    "Vendor",
    "read_vendor",
    "take_part",
    "verify",
]
