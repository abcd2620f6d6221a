"""Connections of which nothing but their begin is known: gRPC tells nobody that a handshake failed."""

from __future__ import annotations

import threading
import time
from collections import deque

SETTLED = 15.0
"""Seconds after which a connection has called, or never will: gRPC ends a handshake after 10."""
REMEMBERED = 4096
"""Connections that are told apart: as many as there are at once."""


class Handshakes:
    """Counts connections that begin, and those that call; the others ended before that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: deque[float] = deque(maxlen=1 << 16)
        self._callers: dict[str, None] = {}
        self._settled = 0

    def begins(self) -> None:
        """A handshake begins; whose it is, is not known."""
        with self._lock:
            self._begun.append(time.monotonic())

    def calls(self, peer: str) -> None:
        """Somebody calls over a connection; ``peer`` is its address with the port."""
        with self._lock:
            if peer not in self._callers:
                self._callers[peer] = None
                self._settled -= 1
            while len(self._callers) > REMEMBERED:
                del self._callers[next(iter(self._callers))]

    def unheard(self) -> int:
        """How many connections never called, of those that are settled since this was asked last."""
        with self._lock:
            while self._begun and time.monotonic() - self._begun[0] >= SETTLED:
                self._begun.popleft()
                self._settled += 1
            found = max(0, self._settled)
            self._settled -= found
        return found
