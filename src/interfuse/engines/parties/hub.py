"""The coordinator's end of all streams: who joined, who is there, and what arrives.

Streams live in threads of their carrier. All that a run has to hear of is put into one queue of events, which only the
thread of the run reads; members are changed under one lock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from interfuse.client import ClientId
from interfuse.engines.allocator import keep_freed_memory, share_heaps
from interfuse.engines.parties.architectures import Architectures
from interfuse.engines.parties.carrier import Carrier, Counters, Link, Peer
from interfuse.engines.parties.contract import (
    CLASS_NAMES,
    LIBRARY,
    MESSAGE,
    OTHER_NAMES,
    WIRE,
    Contract,
    Facts,
    JoinError,
    check_facts,
    same,
)
from interfuse.engines.parties.frames import (
    PROTOCOL,
    Accept,
    Assembler,
    Begin,
    Done,
    End,
    Envelope,
    FrameError,
    Hello,
    Incoming,
    Offer,
    Ready,
    Refusal,
    Reply,
)
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.strangers import Strangers
from interfuse.engines.parties.words import printable
from interfuse.errors import ConfigError
from interfuse.method import Method
from interfuse.models import Builder

HELLO_SECONDS, AGREE_SECONDS = 20.0, 300.0
"""From the begin of a stream to its hello, and from there to the facts of its node, which builds its model meanwhile:
one that says nothing is sent away."""
STREAMS_OF_A_KEY = 2
"""One, and another after a break that was not noticed yet: nobody takes the room of others."""
UNHEARD_SECONDS = 20.0
"""Between two lines about connections of which nothing is known."""
UNHEARD = "their keys are of another authority or out of date, they have none, or they did not accept the coordinator's"
SPARE_STREAMS = 16
"""Streams beside those of the nodes: joins that are refused, health checks."""


@dataclass
class Member:
    """A node that has joined. ``link`` is None while it is not connected."""

    name: str
    fingerprint: str
    incarnation: str
    facts: Facts
    link: Link | None
    client: ClientId | None = None
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True)
class Arrived:
    """A reply, an answer to an order, or the word that a node stands at the beginning."""

    member: Member
    envelope: Reply | Done | Ready
    payload: Incoming


@dataclass(frozen=True)
class Joined:
    """A node is connected (again). ``restarted``: its process is another one, and what it held in memory is gone."""

    member: Member
    restarted: bool


@dataclass(frozen=True)
class Left:
    """A node's connection ended."""

    member: Member
    reason: str


@dataclass(frozen=True)
class Broke:
    """A node sent what no honest node sends."""

    member: Member
    reason: str


Event = Arrived | Joined | Left | Broke


class _NodeRefusedError(Exception):
    """A node does not agree."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"it refused: {refusal.field}: expected {refusal.expected}, found {refusal.found}"[:500])


_WORDS = {
    _NodeRefusedError: "refused by the node",
    FrameError: "malformed",
    ConfigError: "cannot check keys",  # a file in the folder of keys cannot be read: nobody is let in by it
}


class Hub:
    """A listening coordinator.

    Args:
        contract: What joining nodes are offered.
        known: Facts that nodes had when the run began, by name: they must come back with the same.
        builders: What the coordinator can build, by the name of the architecture.
        most: At most so many nodes.
        carrier: Carries their streams from now on, until :meth:`close`.
    """

    def __init__(
        self,
        contract: Contract,
        method: Method,
        most: int,
        carrier: Carrier,
        events: Events,
        *,
        message_bytes: int = MESSAGE,
        known: Mapping[str, Facts] | None = None,
        builders: Mapping[str, Callable[[], Builder]] = MappingProxyType({}),
    ) -> None:
        keep_freed_memory()
        share_heaps()
        self.arrivals: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.members: dict[str, Member] = {}
        self.lock = threading.RLock()
        self._contract, self._method, self._most, self.carrier = contract, method, most, carrier
        self._events, self._message_bytes = events, message_bytes
        self._known = dict(known or {})
        self._architectures = Architectures(contract, method, builders, message_bytes)
        self._banned: dict[str, str] = {}
        self._streams: Counter[str] = Counter()
        self._strangers, self._noted = Strangers(events), -UNHEARD_SECONDS
        self._closing = False
        carrier.open(STREAMS_OF_A_KEY * most + SPARE_STREAMS, self._join)

    def connected(self) -> list[str]:
        """Names of the nodes that are there now."""
        with self.lock:
            return sorted(name for name, member in self.members.items() if member.link is not None)

    def ban(self, name: str, reason: str) -> None:
        """Send a node away for the rest of the run."""
        with self.lock:
            self._banned[name] = printable(reason)
            member = self.members.get(name)
            link = None if member is None else member.link
            if member is not None:
                member.link = None
        if link is not None:
            link.send(End(reason=printable(reason), finished=False))
            link.end()

    def note_unheard(self) -> None:
        """Write down how many connections ended before anything was known of them; one line in a while."""
        now = time.monotonic()
        if now - self._noted < UNHEARD_SECONDS:
            return
        self._noted = now
        if count := self.carrier.unheard():
            self._events.add("connections that called nothing", count=count, reason=UNHEARD)

    def check_keys(self) -> None:
        """Drop members whose key was revoked since they joined."""
        self.note_unheard()
        with self.lock:
            present = [member for member in self.members.values() if member.link is not None]
        try:
            revoked = self.carrier.revoked()
        except ConfigError as error:  # such as a file that is being copied; the next call looks again
            self._events.add("cannot check keys", reason=error)
            return
        for member in present:
            if member.fingerprint in revoked:
                self.ban(member.name, "its key was revoked")
                self.arrivals.put(Broke(member, "its key was revoked"))

    def close(self, reason: str, *, finished: bool) -> None:
        """Tell everybody that it is over, and stop listening."""
        with self.lock:
            self._closing = True
            links = [member.link for member in self.members.values() if member.link is not None]
        for link in links:
            if finished:
                link.send(End(reason=printable(reason), finished=True))
            link.end()
        self.carrier.close()

    # --- one stream: the carrier sends, a thread of its own reads

    def _join(self, link: Link, incoming: Iterator[bytes], peer: Peer) -> None:
        """Give a stream to whoever has a key for it; others do not come to say anything."""
        try:
            key = self.carrier.key_of(peer)
            with self.lock:
                if key and self._streams[key] >= STREAMS_OF_A_KEY:
                    raise JoinError("key", f"at most {STREAMS_OF_A_KEY} streams at once", "one more", retry=True)
                self._streams[key] += 1
        except JoinError as error:
            self._turn_away(link, error, peer)
            return
        except ConfigError as error:
            self._strangers.add(_WORDS[ConfigError], peer, reason=error)
            link.abort()
            return
        arguments = (link, incoming, peer, key)
        try:
            threading.Thread(target=self._read, args=arguments, name="join", daemon=True).start()
        except RuntimeError as error:  # the machine has no more threads
            with self.lock:
                self._streams[key] -= 1
            self._strangers.add("no thread is left for", peer, reason=error)
            link.abort()

    def _turn_away(self, link: Link, error: JoinError, peer: Peer, name: str = "") -> None:
        self._strangers.add("refused", peer, node=name, field=error.field, reason=error)
        link.send(Refusal(field=error.field, expected=error.expected, found=error.found, retry=error.retry))
        link.end()

    def _read(self, link: Link, incoming: Iterator[bytes], peer: Peer, key: str) -> None:
        """Read a stream to its end; whatever goes wrong concerns this one alone."""
        assembler = Assembler(self._message_bytes)
        impatience = _started(HELLO_SECONDS, link)
        name, member = "", None
        try:
            messages = self._messages(link, incoming, assembler)
            hello, _ = next(messages)
            if isinstance(hello, Refusal):
                raise _NodeRefusedError(hello)
            if not isinstance(hello, Hello):
                raise FrameError(f"{hello.kind!r} before a hello")
            name = hello.name
            fingerprint = self._check(hello, peer)
            impatience.cancel()
            impatience = _started(AGREE_SECONDS, link)
            link.send(Offer(contract=self._contract))
            answer, _ = next(messages)
            if isinstance(answer, Refusal):
                raise _NodeRefusedError(answer)
            if not isinstance(answer, Accept):
                raise FrameError(f"{answer.kind!r} where the contract is to be accepted")
            check_facts(self._contract, self._method, answer.facts)
            member = self._enter(hello, fingerprint, answer.facts, link)
            impatience.cancel()
            self._listen(member, link, messages)
            reason = "the stream ended"
        except StopIteration:
            reason = "the stream ended"
        except JoinError as error:
            reason = str(error)
            self._turn_away(link, error, peer, name)
        except (FrameError, _NodeRefusedError, ConfigError) as error:
            reason = str(error)
            self._strangers.add(_WORDS[type(error)], peer, node=name, reason=reason)
            if member is not None:
                self.arrivals.put(Broke(member, reason))
            if isinstance(error, _NodeRefusedError):
                link.end()
            else:
                link.abort()
        except Exception as error:  # of the carrier, whatever it is: gRPC raises bare ones when a call has ended
            reason = f"the connection broke: {str(error) or type(error).__name__}"
            if member is None:
                self._strangers.add("went before it joined", peer, node=name, reason=reason)
        finally:
            impatience.cancel()
            with self.lock:
                self._streams[key] -= 1
            if member is not None:
                self._leave(member, link, reason)

    def _messages(
        self, link: Link, incoming: Iterator[bytes], assembler: Assembler
    ) -> Iterator[tuple[Envelope, Incoming]]:
        for frame in incoming:
            link.counters.frames_up += len(frame)
            whole = assembler.feed(frame)
            if whole is not None:
                link.counters.payload_up += len(whole[1])
                yield whole

    def _check(self, hello: Hello, peer: Peer) -> str:
        """Whether a node may join; returns its key's fingerprint."""
        same("protocol version", PROTOCOL, hello.protocol)
        same("library version", LIBRARY, hello.library)
        same("wire version", WIRE, hello.wire)
        if hello.name in self._banned:
            raise JoinError("node", "one that was not sent away", f"{hello.name}: {self._banned[hello.name]}")
        return self.carrier.admitted(hello.name, peer)

    def _enter(self, hello: Hello, fingerprint: str, facts: Facts, link: Link) -> Member:
        """Make the node a member, or connect the member again."""
        with self.lock:
            member = self.members.get(hello.name)
            before = self._known.get(hello.name)
            if before is not None and before != facts:
                raise JoinError("facts", "those with which the node began", "others: its model or data changed")
            if self._known and before is None:
                raise JoinError("node", f"one of {', '.join(sorted(self._known))}, who began the run", hello.name)
            there = [m for m in self.members.values() if m.link is not None and m is not member]
            if any(m.facts.class_names != facts.class_names for m in there):
                raise JoinError(CLASS_NAMES, "those of the nodes that are there, in their order", OTHER_NAMES)
            if member is None and len(self.members) >= self._most:
                raise JoinError("node", f"at most {self._most} nodes", f"{hello.name} beside them")
            if before is None:
                self._architectures.check(facts, {m.name: m.facts for m in self.members.values() if m is not member})
            alike = [m for m in self.members.values() if m.fingerprint == fingerprint and m.link is not None]
            if alike and alike[0].incarnation != hello.incarnation:
                raise JoinError("key", "a key that is not in use", f"that of {alike[0].name}, who is here", retry=True)
            restarted = member is not None and member.incarnation != hello.incarnation
            if member is None:
                member = Member(hello.name, fingerprint, hello.incarnation, facts, link)
                self.members[hello.name] = member
            elif member.link is not None:
                member.link.end()  # a connection that broke without our noticing
            link.counters = member.counters
            member.link, member.incarnation = link, hello.incarnation
        self._events.add("joined", node=hello.name, samples=facts.samples, architecture=facts.architecture)
        self.arrivals.put(Joined(member, restarted))
        return member

    def _listen(self, member: Member, link: Link, messages: Iterator[tuple[Envelope, Incoming]]) -> None:
        for envelope, payload in messages:
            if isinstance(envelope, Refusal):
                raise _NodeRefusedError(envelope)
            if not isinstance(envelope, Reply | Done | Ready):
                raise FrameError(f"{envelope.kind!r} from a member")
            link.answered()
            self.arrivals.put(Arrived(member, envelope, payload))

    def _leave(self, member: Member, link: Link, reason: str) -> None:
        with self.lock:
            current = member.link is link
            if current:
                member.link = None
        link.end()
        if current and not self._closing:
            self._events.add("left", node=member.name, reason=reason)
            self.arrivals.put(Left(member, reason))

    def began(self, facts: Mapping[str, Facts]) -> None:
        """From now on only these nodes may join, with these facts."""
        with self.lock:
            self._known = dict(facts)

    def begin(self, member: Member, attempt: int, clients: int, d: int | None) -> Link | None:
        """Have a node begin an attempt; the stream on which it was told, if it is there."""
        assert member.client is not None
        with self.lock:
            if member.link is not None:
                member.link.send(Begin(attempt=attempt, client=member.client, clients=clients, d=d))
            return member.link


def _started(seconds: float, link: Link) -> threading.Timer:
    """What ends a stream after so many seconds, unless it is cancelled."""
    timer = threading.Timer(seconds, link.abort)
    timer.daemon = True
    timer.start()
    return timer
