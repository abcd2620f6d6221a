"""The engine whose clients are nodes on other machines. See :class:`interfuse.clients.Engine`."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Failure, Request
from interfuse.engines.grpc.frames import Call, Cancel, Done, Order, Payload, Ready, Reply
from interfuse.engines.grpc.hub import Arrived, Broke, Event, Hub, Joined, Left, Member
from interfuse.engines.grpc.setups import RemoteSetup
from interfuse.errors import MessageError, RunError
from interfuse.handler import handlers
from interfuse.message import Message, decode, encode
from interfuse.wire import FileRecord, Limits, load_tensors, save_tensors


@dataclass(frozen=True)
class Fault:
    """Why a node did not do its part.

    ``lost``: it was not there in time; ``restarted``: it is there, but what it held in memory is gone; ``bad``: it did
    what no honest node does, or its handler failed.
    """

    kind: Literal["lost", "restarted", "bad"]
    reason: str


class InterruptedRoundError(RunError):
    """Nodes are not where the round left them: everybody goes back to the last commit."""


@dataclass(frozen=True)
class Patience:
    """Seconds: for a node that is gone to come back, and for one that is there to answer a call."""

    back: float = 60.0
    answer: float = 600.0


@dataclass
class _Waiting:
    """A member from which something is awaited: what to send again when it comes back, and until when it may."""

    member: Member
    asked: Call | Order
    payload: Payload
    until: float
    sent: float


class Remote:
    """Clients behind the streams of a hub, for one attempt of a run.

    Args:
        members: By the numbers of their clients.
        watch: Told after every answer and whenever a node comes or goes.

    Attributes:
        faults: Nodes that failed in this attempt, by client.
        waited: Seconds between asking a node and its answer, less its work, by client.
    """

    def __init__(
        self,
        hub: Hub,
        setup: RemoteSetup,
        members: Mapping[ClientId, Member],
        attempt: int,
        patience: Patience,
        *,
        message_bytes: int,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        everybody = setup.profiles
        self.profiles: Mapping[ClientId, Profile] = {client: everybody[client] for client in sorted(members)}
        self.faults: dict[ClientId, Fault] = {}
        self.waited: dict[ClientId, float] = dict.fromkeys(members, 0.0)
        self._hub, self._setup, self._members, self.attempt = hub, setup, dict(members), attempt
        self._patience, self._limits, self._watch = patience, Limits(max_bytes=message_bytes), watch
        self._programs = setup.programs_with(setup.method)
        self._numbers = dict.fromkeys(members, 0)
        self._seen = dict.fromkeys(members, 0)
        self._cancelled: dict[ClientId, int] = {}

    def begin(self) -> None:
        """Have all nodes begin the attempt, and wait until they stand there.

        Raises:
            InterruptedRoundError: one of them does not; :attr:`faults` says why.
        """
        awaited = set(self._members)
        for member in self._members.values():
            self._hub.begin(member, self.attempt, len(self._setup.facts), self._setup.dims.get("d"))
        end = time.monotonic() + self._patience.back
        while awaited:
            event = self._next(end)
            if event is None:
                names = ", ".join(self._members[client].name for client in sorted(awaited))
                for client in awaited:
                    self.faults[client] = Fault("lost", "did not begin in time")
                raise InterruptedRoundError(f"nodes did not begin in {self._patience.back:g} seconds: {names}")
            who = self._client(event)
            if who is None:
                continue
            if isinstance(event, Joined):
                self._hub.begin(event.member, self.attempt, len(self._setup.facts), self._setup.dims.get("d"))
            elif isinstance(event, Broke):
                self.faults[who] = Fault("bad", event.reason)
                raise InterruptedRoundError(f"node {event.member.name}: {event.reason}")
            elif isinstance(event, Arrived) and isinstance(event.envelope, Ready):
                awaited -= {who} if event.envelope.attempt == self.attempt else set()

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> list[Answer]:
        """Run a handler on nodes, each once, whatever happens to their connections."""
        self._hub.check_keys()
        codecs = request.codecs(self._setup.codecs)
        encoded: dict[int, bytes] = {}
        waiting: dict[ClientId, _Waiting] = {}
        answers: list[Answer] = []
        for client, message in messages.items():
            if message is not None and id(message) not in encoded:
                encoded[id(message)] = encode(message, codecs)
            payload = b"" if message is None else encoded[id(message)]
            if request.recoverable and client in self.faults:  # still away, or its reply came too late: not waited for
                if self._members[client].link is None:
                    answers.append(self._failed(client, self.faults[client].reason))
                    continue
                del self.faults[client]
            call = Call(
                attempt=self.attempt, number=self._number(client), acknowledged=self._seen[client],
                program=request.program, handler=request.handler, heading=request.heading, round=request.round,
                index=request.index, recoverable=request.recoverable, message=message is not None,
            )  # fmt: skip
            waiting[client] = self._ask(client, call, payload)
        reply_type = handlers(type(self._programs[request.program]))[request.handler].reply_type
        for client, reply in self._collect(waiting):  # one is decoded while others are under way
            if isinstance(reply, Fault):
                self.faults[client] = reply
                answers.append(self._failed(client, reply.reason))
            else:
                answers.append(self._answer(client, reply, reply_type, request))
        self._stop_if_restarted()
        return answers

    def _answer(self, client: ClientId, arrived: Arrived, expected: type[Message] | None, request: Request) -> Answer:
        reply, name = arrived.envelope, self._members[client].name
        assert isinstance(reply, Reply)
        if reply.failure is not None:
            self.faults[client] = Fault("bad", f"{reply.failure} in {request.handler}, round {request.round}")
            return self._failed(client, f"node {name}: {reply.failure}; its log says more", reply.seconds)
        try:
            if (expected is not None) != reply.message:
                raise MessageError(request.handler, "reply", str(expected), "a message" if reply.message else "none")
            if expected is None:
                return Answer(client, None, reply.seconds, reply.steps)
            view, profile = memoryview(arrived.payload), self.profiles[client]
            codecs = request.codecs(self._setup.codecs)
            message = decode(view, expected, self._setup.dims, profile.keys, self._limits, codecs)
        except MessageError as error:
            self.faults[client] = Fault("bad", str(error))
            return self._failed(client, f"node {name}: {error}", reply.seconds)
        return Answer(client, message, reply.seconds, reply.steps)

    def _failed(self, client: ClientId, reason: str, seconds: float = 0.0) -> Answer:
        return Answer(client, Failure(client, reason), seconds)

    def undo(self, clients: Sequence[ClientId]) -> None:
        """Have nodes go back to where they were before their last call."""
        for client in clients:
            self._cancel(client, self._numbers[client])

    def _cancel(self, client: ClientId, number: int) -> None:
        """Have a node undo a call, or never begin it: now if it is there, and once more before it is asked again."""
        self._cancelled[client] = number
        with self._hub.lock:
            self._send_cancelled(self._members[client])

    def _send_cancelled(self, member: Member) -> None:
        client = member.client
        if member.link is not None and client in self._cancelled:
            member.link.send(Cancel(attempt=self.attempt, number=self._cancelled[client]))

    def _number(self, client: ClientId) -> int:
        self._numbers[client] += 1
        return self._numbers[client]

    def _ask(self, client: ClientId, asked: Call | Order, payload: Payload = b"") -> _Waiting:
        member, now = self._members[client], time.monotonic()
        with self._hub.lock:
            there = member.link is not None
            if member.link is not None:
                self._send_cancelled(member)
                member.link.send(asked, payload)
        until = now + (self._patience.answer if there else self._patience.back)
        return _Waiting(member, asked, payload, until, now)

    def _collect(self, waiting: dict[ClientId, _Waiting]) -> Iterator[tuple[ClientId, Arrived | Fault]]:
        """What comes back from each, in time or not, as it comes."""
        while waiting:
            event = self._next(min(one.until for one in waiting.values()))
            if event is None:
                now = time.monotonic()
                for client in [client for client, one in waiting.items() if one.until <= now]:
                    one = waiting.pop(client)
                    there = one.member.link is not None
                    self._cancel(client, one.asked.number)
                    yield client, Fault("lost", "no answer in time" if there else "gone, and not back in time")
                continue
            who = self._client(event)
            if who is None:
                continue
            if who not in waiting:
                if isinstance(event, Joined) and event.restarted:
                    self.faults[who] = Fault("restarted", "its process was started anew")
                continue
            one = waiting[who]
            outcome = self._outcome(event, one)
            if isinstance(outcome, Arrived):
                self._seen[who] = one.asked.number
                self._cancelled.pop(who, None)
                work = outcome.envelope.seconds if isinstance(outcome.envelope, Reply) else 0.0
                self.waited[who] += time.monotonic() - one.sent - work
            if outcome is not None:
                del waiting[who]
                yield who, outcome
            self._watch()

    def _outcome(self, event: Event, one: _Waiting) -> Arrived | Fault | None:
        """What an event says of a member that is waited for."""
        now = time.monotonic()
        if isinstance(event, Joined):
            if event.restarted:
                return Fault("restarted", "its process was started anew")
            with self._hub.lock:
                if one.member.link is not None:
                    self._send_cancelled(one.member)
                    one.member.link.send(one.asked, one.payload)
            one.until = now + self._patience.answer
        elif isinstance(event, Left):
            one.until = now + self._patience.back
        elif isinstance(event, Broke):
            return Fault("bad", event.reason)
        elif isinstance(event.envelope, Reply | Done):
            answer, asked = event.envelope, one.asked
            fits = isinstance(answer, Reply) == isinstance(asked, Call)
            if answer.attempt == asked.attempt and answer.number == asked.number and fits:
                return event
            if answer.attempt > asked.attempt or answer.number > asked.number:
                return Fault("bad", f"it answered number {answer.number}, which it was not asked")
        return None

    def _client(self, event: Event) -> ClientId | None:
        client = event.member.client
        return client if client in self._members else None

    def _next(self, end: float) -> Event | None:
        try:
            return self._hub.arrivals.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return None

    def _stop_if_restarted(self) -> None:
        names = [self._members[client].name for client, fault in self.faults.items() if fault.kind == "restarted"]
        if names:
            raise InterruptedRoundError(f"started anew in the middle of a round: {', '.join(sorted(names))}")

    def _everybody(
        self,
        do: Literal["end_round", "save", "load"],
        digests: Mapping[ClientId, str | None],
        keep: Mapping[ClientId, tuple[str, ...]],
    ) -> dict[ClientId, Done]:
        """Give all nodes an order, and wait until it is carried out."""
        waiting = {
            client: self._ask(
                client,
                Order(
                    attempt=self.attempt, number=self._number(client), acknowledged=self._seen[client], do=do,
                    digest=digests.get(client), keep=keep.get(client, ()),
                ),
            )
            for client in self._members
        }  # fmt: skip
        done: dict[ClientId, Done] = {}
        for client, outcome in self._collect(waiting):
            if isinstance(outcome, Fault):
                self.faults[client] = outcome
            elif isinstance(outcome.envelope, Done) and outcome.envelope.failure is None:
                done[client] = outcome.envelope
            elif isinstance(outcome.envelope, Done):
                self.faults[client] = Fault("bad", f"{outcome.envelope.failure} at {do}")
        self._stop_if_restarted()
        if missing := [client for client in self._members if client not in done]:
            first = missing[0]
            raise InterruptedRoundError(
                f"node {self._members[first].name} could not {do.replace('_', ' ')}: {self.faults[first].reason}"
            )
        return done

    def end_round(self) -> None:
        self._everybody("end_round", {}, {})

    def save(self, folder: Path, suffix: str) -> dict[str, FileRecord]:
        """Have nodes save on their own disks; what is written here are receipts, with the digests of their files."""
        keep: dict[ClientId, list[str]] = {client: [] for client in self._members}
        for client, held in keep.items():
            for receipt in folder.glob(f"{_name_of(client)}-*.safetensors"):
                held.append(_digest_in(receipt))
        done = self._everybody("save", {}, {client: tuple(held) for client, held in keep.items()})
        written = {}
        for client, answer in done.items():
            if answer.digest is not None:
                tensors = {"sha256": torch.tensor(list(bytes.fromhex(answer.digest)), dtype=torch.uint8)}
                path = folder / f"{_name_of(client)}-{suffix}.safetensors"
                written[_name_of(client)] = save_tensors(path, tensors)
        return written

    def load(self, folder: Path, files: Mapping[str, FileRecord]) -> None:
        """Have nodes go back to what they saved."""
        digests = {
            client: _digest_in(folder / record.name, record.sha256) if record is not None else None
            for client in self._members
            for record in [files.get(_name_of(client))]
        }
        self._everybody("load", digests, {})

    def close(self) -> None:
        """Nothing: streams belong to the hub, and outlive an attempt."""


def _name_of(client: ClientId) -> str:
    return f"client-{client:05d}"


def _digest_in(receipt: Path, sha256: str | None = None) -> str:
    return bytes(load_tensors(receipt, sha256)["sha256"].tolist()).hex()
