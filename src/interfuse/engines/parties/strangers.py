"""What is written of those who are turned away: enough to see who comes, and never so much that the disk is theirs."""

from __future__ import annotations

import threading
import time
from typing import Any

from interfuse.engines.parties.carrier import Peer
from interfuse.engines.parties.logs import Events

AT_ONCE, EVERY = 20, 60.0
"""Lines of one peer that are written as they come, and seconds between two of the others."""
PEERS = 1000
"""Peers that are told apart."""


class Strangers:
    """A log in which nobody has many lines: how often it was the same is told in the next one.

    Peers are told apart by their keys, or by their addresses without ports, where none are needed.
    """

    def __init__(self, events: Events) -> None:
        self._events, self._lock = events, threading.Lock()
        self._seen: dict[str, list[float]] = {}

    def add(self, event: str, peer: Peer, **facts: Any) -> None:
        """Write an event that a peer brought about, or count it."""
        own = peer.credential.hex() or peer.place.rpartition(":")[0]
        with self._lock:
            if own not in self._seen and len(self._seen) >= PEERS:
                self._seen.clear()
            lines, since, more = self._seen.setdefault(own, [0, 0.0, 0])
            now = time.monotonic()
            if lines >= AT_ONCE and now - since < EVERY:
                self._seen[own][2] += 1
                return
            self._seen[own] = [lines + 1, now, 0]
        unsaid = {"unsaid": int(more)} if more else {}
        self._events.add(event, peer=peer.place, **facts, **unsaid)
