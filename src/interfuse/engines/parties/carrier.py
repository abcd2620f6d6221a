"""The seam between parties and what carries their messages.

A carrier moves frames (:mod:`interfuse.engines.parties.frames`): strings of at most ``LARGEST_FRAME`` bytes that it
need not understand, in order and both ways, on streams that nodes open. It makes sure that each side is who it says it
is, ends a stream within seconds once the other side is gone, and makes whoever sends faster than the other takes wait.
All else lies above it, in this package: who may join, what is asked and answered, deadlines, calls that are carried out
once whatever happens to a stream, attempts and resume.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from interfuse.engines.parties.frames import Begin, Call, Envelope, FrameError, Order, Payload, Question, frames
from interfuse.errors import InterfuseError

# --- at a node


class LineError(InterfuseError):
    """A stream could not be opened, or broke; the text is for the node's own log."""


class MisnamedError(LineError):
    """The coordinator that answered has a certificate of the authority, but not for the name that was dialled.

    Attributes:
        found: The names that it is for.
    """

    def __init__(self, text: str, found: Sequence[str]) -> None:
        super().__init__(text)
        self.found = tuple(found)


class StrangeError(LineError):
    """Whoever answers has no key of the node's authority, or takes the node for one without a key of its own."""


class Line(Protocol):
    """A node's end of a stream."""

    def received(self) -> Iterator[bytes]:
        """Frames of the coordinator as they come, until the stream ends.

        Raises:
            LineError: it broke; or, as MisnamedError or StrangeError, somebody else answered.
        """

    def tell(self, found: str, frames: Iterable[bytes], /) -> None:
        """Send frames to who answered with a certificate for the name ``found``, so that it can log them; no more."""

    def send(self, frame: bytes, /) -> None:
        """Hand a frame over once there is room for it; nothing, once the stream has ended."""

    def finish(self) -> None:
        """Let what was sent last arrive."""


Dial = Callable[[], AbstractContextManager[Line]]
"""Opens a stream to the coordinator; with the block the stream ends."""


# --- at the coordinator


@dataclass(frozen=True)
class Peer:
    """Who opened a stream, as its carrier knows it.

    Attributes:
        place: For the log, such as an address.
        credential: What it has shown and the carrier has checked, such as a certificate; nothing where all are let in.
    """

    place: str
    credential: bytes = b""


@dataclass
class Counters:
    """What went over a member's streams, in bytes: frames with everything, and the payloads in them."""

    frames_up: int = 0
    frames_down: int = 0
    payload_up: int = 0
    payload_down: int = 0


class Link:
    """The coordinator's end of a stream: messages wait here until the carrier takes their frames.

    Args:
        close: Ends the stream at once, whatever is under way.
    """

    def __init__(self, close: Callable[[], object]) -> None:
        self._queue: queue.SimpleQueue[tuple[Envelope, Payload] | None] = queue.SimpleQueue()
        self._close = close
        self._asked = self._answered = 0
        self.counters = Counters()

    def send(self, envelope: Envelope, payload: Payload = b"") -> None:
        """Queue an envelope with its payload."""
        self._asked += isinstance(envelope, Begin | Call | Order)  # counted first: the answer may be quick
        self._queue.put((envelope, payload))

    def answered(self) -> None:
        """Count an answer: one for each thing asked, so that no node can fill the coordinator's memory.

        Raises:
            FrameError: nothing was asked.
        """
        self._answered += 1
        if self._answered > self._asked:
            raise FrameError("an answer to nothing that was asked")

    def end(self) -> None:
        """End the stream once everything has gone."""
        self._queue.put(None)

    def abort(self) -> None:
        """End the stream now."""
        self._close()
        self._queue.put(None)

    def outgoing(self) -> Iterator[bytes]:
        """What the carrier sends; it ends the stream where this ends."""
        while (message := self._queue.get()) is not None:
            yield from self._cut(*message)
            del message  # it may be large, and the next one is long in coming

    def waiting(self) -> tuple[list[bytes], bool]:
        """All frames that wait, up to the first question with its payload, for a carrier that sends several at once and
        then waits for the answer; and whether the stream ends with them."""
        found = list[bytes]()
        while not self._queue.empty():  # nobody else takes from it
            if (message := self._queue.get()) is None:
                return found, True
            found.extend(self._cut(*message))
            if isinstance(message[0], Question):
                break
        return found, False

    def _cut(self, envelope: Envelope, payload: Payload) -> Iterator[bytes]:
        self.counters.payload_down += len(payload)
        for frame in frames(envelope, payload):
            self.counters.frames_down += len(frame)
            yield frame


Join = Callable[[Link, Iterator[bytes], Peer], None]
"""Takes a new stream: its link, the frames that come from its node, and who that is. It returns at once."""


class Carrier(Protocol):
    """The coordinator's end of all streams."""

    address: str
    """Where nodes find it, for logs and the status."""

    def open(self, streams: int, join: Join) -> None:
        """Take streams from now on, so many at once at most, and hand each to ``join``.

        Raises:
            ConfigError: it cannot.
        """

    def key_of(self, peer: Peer) -> str:
        """The key that a peer has shown, as a text that is the key's alone; empty where none is needed.

        Raises:
            JoinError: nobody may join with it, under any name.
            ConfigError: that cannot be told now.
        """

    def admitted(self, name: str, peer: Peer) -> str:
        """The key of a peer that may join under a name, as a text that is the key's alone.

        Raises:
            JoinError: it may not, and why.
            ConfigError: that cannot be told now.
        """

    def revoked(self) -> set[str]:
        """Keys that may no longer take part.

        Raises:
            ConfigError: that cannot be told now.
        """

    def unheard(self) -> int:
        """How many connections, since this was asked last, ended before it was known whose they were."""

    def close(self) -> None:
        """Let what was sent last arrive, and take no more streams."""
