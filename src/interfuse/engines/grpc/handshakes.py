"""Connections of which nothing but their begin is known: gRPC tells nobody that a handshake failed."""

from __future__ import annotations

import threading
import time
from collections import deque

SETTLED = 15.0
"""Seconds after which a connection has called, or hardly will: gRPC ends a handshake after 10."""
REMEMBERED = 1 << 16
"""Connections that are remembered at most."""


class Handshakes:
    """Counts connections that begin and do not call.

    A connection has no name but its address and port, and its end is not told. One that has not called for a while
    counts as a new one when it does; so of strangers rather too few are counted, and nobody is called one who is none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: deque[float] = deque()
        self._called: dict[str, float] = {}  # when, by address and port; who called longest ago is the first
        self._silent = 0

    def begins(self) -> None:
        """A handshake begins; whose it is, is not known."""
        with self._lock:
            self._begun.append(time.monotonic())
            if len(self._begun) > REMEMBERED:
                self._settle()

    def calls(self, peer: str) -> None:
        """Somebody calls over a connection; ``peer`` is its address with the port."""
        with self._lock:
            now = time.monotonic()
            if now - self._called.pop(peer, -SETTLED) >= SETTLED:
                self._silent -= 1
            self._called[peer] = now
            while len(self._called) > REMEMBERED:
                del self._called[next(iter(self._called))]

    def unheard(self) -> int:
        """How many connections did not call, of those that are settled since this was asked last."""
        with self._lock:
            now = time.monotonic()
            while self._begun and now - self._begun[0] >= SETTLED:
                self._settle()
            found, self._silent = max(0, self._silent), min(0, self._silent)
            if not self._begun:
                self._silent = 0  # calls over older connections are no credit for strangers to come
        return found

    def _settle(self) -> None:
        self._begun.popleft()
        self._silent += 1
