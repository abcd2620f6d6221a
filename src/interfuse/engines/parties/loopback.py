"""A carrier inside one process: for a trial that touches no network."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from interfuse.engines.parties.carrier import Join, Line, Link, Peer


class Loopback:
    """Carrier of a coordinator and of nodes in one process. There is nobody else, so everybody is let in."""

    address = "this process"
    _join: Join

    def __init__(self) -> None:
        self.close()

    def open(self, streams: int, join: Join) -> None:
        self._join = join

    def key_of(self, peer: Peer) -> str:
        return ""

    def admitted(self, name: str, peer: Peer) -> str:
        return name

    def revoked(self) -> set[str]:
        return set()

    def unheard(self) -> int:
        return 0

    def close(self) -> None:
        self._join = lambda link, *_: link.end()

    @contextmanager
    def dial(self) -> Iterator[Line]:
        """Open a node's stream."""
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        link = Link(lambda: outgoing.put(None))
        self._join(link, iter(outgoing.get, None), Peer(self.address))
        try:
            yield _Line(outgoing, link)
        finally:
            outgoing.put(None)
            link.end()


class _Line:
    def __init__(self, outgoing: queue.SimpleQueue[bytes | None], link: Link) -> None:
        self.send, self.received = outgoing.put, link.outgoing

    def tell(self, found: str, frames: Iterable[bytes]) -> None:
        """Nobody has a name here."""

    def finish(self) -> None: ...
