"""A coordinator in a Flower ServerApp: streams to nodes as exchanges. See :class:`..parties.Carrier`."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message

from interfuse.engines.admission import Admission
from interfuse.engines.flower.channel import Channel, Plain, context_of_coordinator, of_coordinator
from interfuse.engines.flower.exchange import ANSWER, ASK, GONE, NAME, Head, most_of, opened_whole, received, sent
from interfuse.engines.parties import Join, LineError, Link, Peer
from interfuse.engines.parties.contract import MESSAGE
from interfuse.engines.parties.frames import FrameError
from interfuse.engines.parties.words import printable
from interfuse_relay.records import ACTION, BROKEN, NOBODY, UNNAMED, content_of, failure_of, packet_of


@dataclass(frozen=True)
class Pace:
    """Seconds between two things that the carrier does.

    Attributes:
        poll: Looks whether something is to be sent, or has come.
        look: Looks which nodes Flower has.
        shortest, longest: A stream's end, and another try.
        closing: The end of a run, in which its last words may arrive.
    """

    poll: float = 0.05
    look: float = 2.0
    shortest: float = 2.0
    longest: float = 30.0
    closing: float = 60.0


_WORDS = {
    UNNAMED: "its SuperNode names no socket: --node-config 'interfuse=\"/path/of/the.sock\"'",
    BROKEN: "its node broke off; the node's log says why",
    NOBODY: "no node answers at its SuperNode's socket: `interfuse node VENDOR.toml --socket PATH` is one",
}
Inbox = queue.SimpleQueue[bytes | LineError | FrameError | None]


@dataclass
class _Line:
    """A Flower node, and the stream to it, once it has answered."""

    node: int
    stream: bytes = b""
    channel: Channel = field(default_factory=Plain)
    number: int = 0
    link: Link | None = None
    incoming: Inbox = field(default_factory=queue.SimpleQueue)
    busy: bool = False
    over: bool = False
    aborted: bool = False
    again: float = 0.0
    pause: float = 0.0
    told: str = ""


class FlowerCarrier:
    """All streams of a coordinator, carried by one thread, which alone uses Flower's grid.

    Args:
        grid: Flower's.
        note: Told of nodes that cannot be reached.
        keys: The coordinator's folder of `interfuse keys`; None: Flower says who may be a node, and each says itself
            which it is.
        largest: Bytes of a message from a node.
        pace: For trials that wait for nobody.
    """

    address = "Flower"

    def __init__(
        self,
        grid: Any,
        note: Callable[[str], None],
        keys: Path | None,
        largest: int = MESSAGE,
        pace: Pace = Pace(),
    ) -> None:
        self._grid, self._note, self._largest, self._pace = grid, note, largest, pace
        self._context = None if keys is None else context_of_coordinator(keys)
        self._admission = None if keys is None else Admission(keys)
        self._lines: dict[int, _Line] = {}
        self._asked: dict[str, tuple[_Line, bytes, int]] = {}
        self._closing = False

    def open(self, streams: int, join: Join) -> None:
        self._most, self._join = streams, join
        self._thread = threading.Thread(target=self._carry, name="flower", daemon=True)
        self._thread.start()

    def key_of(self, peer: Peer) -> str:
        return "" if self._admission is None else self._admission.known(peer.credential)

    def admitted(self, name: str, peer: Peer) -> str:
        return f"(Flower) {name}" if self._admission is None else self._admission.check(name, peer.credential)

    def revoked(self) -> set[str]:
        return set() if self._admission is None else self._admission.revoked()

    def unheard(self) -> int:
        return 0

    def close(self) -> None:
        self._closing = True
        self._thread.join(2 * self._pace.closing)

    def _carry(self) -> None:
        look, end = 0.0, float("inf")
        while True:
            closing, idle = self._closing, False  # read first: what waited by then goes with this turn
            try:
                if closing:
                    end = min(end, time.monotonic() + self._pace.closing)
                elif time.monotonic() >= look:
                    self._look()
                    look = time.monotonic() + self._pace.look
                self._send()
                idle = not self._asked
                self._receive()
            except Exception as error:  # of Flower's transport, whatever it raises: it is asked again
                self._note(_words("Flower's grid", error))
                look = time.monotonic() + self._pace.look
                time.sleep(self._pace.look)
            if closing and (idle or time.monotonic() > end):
                break
            time.sleep(self._pace.poll)
        for line in self._lines.values():
            self._drop(line, None)

    def _look(self) -> None:
        """Know the nodes that Flower has, so many at most as there may be streams, and forget those it has no more."""
        there = set(self._grid.get_node_ids())
        for node, line in list(self._lines.items()):
            if node not in there and line.link is None and not line.busy:
                del self._lines[node]
        for node in sorted(there - self._lines.keys())[: self._most - len(self._lines)]:
            self._lines[node] = _Line(node)

    def _send(self) -> None:
        for line in self._lines.values():
            if line.aborted:
                self._drop(line, None)
            if line.busy:
                continue
            if line.link is None:
                if not self._closing and time.monotonic() >= line.again:
                    line.stream, line.number = secrets.token_bytes(NAME), 0
                    line.channel = of_coordinator(self._context)
                    self._ask(line, [])
                continue
            frames, line.over = line.link.waiting()
            if frames:
                line.number += 1
                self._ask(line, sent(line.channel, frames))
            if line.over and not line.busy:
                self._drop(line, None)

    def _ask(self, line: _Line, parts: list[bytes]) -> None:
        packet = b"".join((Head(ASK, line.stream, line.number).packed(), *parts))
        message = Message(content_of(packet), line.node, f"query.{ACTION}")
        try:
            found = list(self._grid.push_messages([message]))
        except Exception as error:  # of Flower's transport
            return self._broke(line, _words(f"Flower took no message of {len(packet)} bytes", error))
        if not found or not found[0]:
            return self._broke(line, f"Flower took no message of {len(packet)} bytes")
        line.busy = True
        self._asked[str(found[0])] = (line, line.stream, line.number)

    def _receive(self) -> None:
        for message in self._pulled():
            known = self._asked.pop(str(message.metadata.reply_to_message_id), None)
            if known is None:
                continue
            line, stream, number = known
            line.busy = False
            if stream != line.stream:
                continue
            try:
                self._answered(line, number, message)
            except Exception as error:  # of what a peer has made: it concerns nobody else
                self._broke(line, _words("no answer of ours", error))

    def _pulled(self) -> list[Any]:
        """What has come; an answer that Flower cannot read keeps back no other."""
        if not self._asked:
            return []
        try:
            return list(self._grid.pull_messages(list(self._asked)))
        except Exception:  # of Flower's transport, or of one answer
            found = []
        for name, (line, stream, _) in list(self._asked.items()):
            try:
                found.extend(self._grid.pull_messages([name]))
            except Exception as error:
                del self._asked[name]
                line.busy = False
                if stream == line.stream:
                    self._broke(line, _words("its answer cannot be read", error))
        return found

    def _answered(self, line: _Line, number: int, message: Any) -> None:
        """Take what a node, or Flower in its place, has answered."""
        if message.has_error():
            return self._broke(line, f"Flower's error {message.error.code}: {message.error.reason}")
        packet = packet_of(message.content)
        if packet is None:
            word = failure_of(message.content) or "no answer of ours"
            return self._broke(line, _WORDS.get(word, word))
        if len(packet) > most_of(self._largest):  # no honest node's: nobody waits for it to come again
            return self._broke(
                line,
                f"an answer of {len(packet)} bytes: at most {most_of(self._largest)} are taken, with messages of "
                f"{self._largest} (largest)",
                FrameError,
            )
        try:
            head, pieces = opened_whole(packet, (ANSWER, GONE))
            if head == (GONE, line.stream, number):
                return self._broke(line, "its node was started anew, or is asked by others too")
            if head != (ANSWER, line.stream, number):
                raise FrameError("an answer to another exchange")
            frames = list(received(line.channel, pieces))
            if not line.channel.ready and number == 0:  # its half of a handshake
                line.number = 1
                return self._ask(line, sent(line.channel, []))
            if not line.channel.ready or (line.link is None and not frames):
                raise FrameError("it does not say who it is")
        except (FrameError, OSError) as error:
            return self._broke(line, _words("no answer of ours", error))
        line.pause, line.told = 0.0, ""
        if line.link is None:
            self._open(line)
        for frame in frames:
            line.incoming.put(frame)
        if line.over:
            self._drop(line, None)

    def _open(self, line: _Line) -> None:
        def abort() -> None:
            if line.link is link:
                line.aborted = True

        line.incoming, line.over, line.aborted = queue.SimpleQueue(), False, False
        line.link = link = Link(abort)
        self._join(link, _arriving(line.incoming), Peer(f"Flower node {line.node}", line.channel.credential))

    def _broke(self, line: _Line, reason: str, kind: type[LineError | FrameError] = LineError) -> None:
        """End a stream that broke, or whose node sent what no honest one sends."""
        if line.link is None and reason != line.told:
            self._note(printable(f"Flower node {line.node}: {reason}", 500))
            line.told = reason
        self._drop(line, kind(reason))

    def _drop(self, line: _Line, error: LineError | FrameError | None) -> None:
        """End a stream; its node is asked again after a pause."""
        if line.link is not None:
            line.incoming.put(error)
        line.link, line.stream, line.over, line.aborted = None, b"", False, False
        line.pause = min(max(2 * line.pause, self._pace.shortest), self._pace.longest)
        line.again = time.monotonic() + line.pause


def _words(what: str, error: Exception) -> str:
    return printable(f"{what}: {str(error) or type(error).__name__}", 500)


def _arriving(incoming: Inbox) -> Iterator[bytes]:
    while (frame := incoming.get()) is not None:
        if isinstance(frame, LineError | FrameError):
            raise frame
        yield frame
