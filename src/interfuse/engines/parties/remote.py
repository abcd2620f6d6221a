"""The engine whose clients are nodes on other machines. See :class:`interfuse.clients.Engine`."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from interfuse.client import ClientId, Profile, part_of
from interfuse.clients import Answer, Failure, Request
from interfuse.engines.parties.carrier import Link
from interfuse.engines.parties.frames import Call, Cancel, Done, Order, Payload, Ready, Reply
from interfuse.engines.parties.hub import Arrived, Broke, Event, Hub, Joined, Left, Member
from interfuse.engines.parties.limits import rows_of
from interfuse.engines.parties.setups import RemoteSetup
from interfuse.engines.parties.words import printable
from interfuse.errors import InterruptedRoundError, MessageError
from interfuse.handler import handlers
from interfuse.messages import Message, flatten
from interfuse.messages.encoding import decode, encoded
from interfuse.method import Method
from interfuse.wire import FileRecord, Limits, Part, Pieces, Tensors, open_pack, raw_size, save_pack


@dataclass(frozen=True)
class Fault:
    """Why a node did not do its part.

    ``lost``: it was not there, or did not answer; ``restarted``: it is there, but what it held in memory is gone;
    ``failed``: its handler failed, or its message is not what the handler declares; ``bad``: it did what no honest node
    does, or its key was revoked; ``late``: the deadline of the call went by.
    """

    kind: Literal["lost", "restarted", "failed", "bad", "late"]
    reason: str


@dataclass(frozen=True)
class Patience:
    """Seconds: for a node that is gone to come back, and for one that is there to answer a call."""

    back: float = 60.0
    answer: float = 600.0


@dataclass
class _Waiting:
    """A member from which something is awaited: what to send, again when it comes back, and until when it may answer.

    What is asked has a number from the moment at which it is sent.
    """

    member: Member
    asked: Call | Order
    payload: Payload
    began: float
    until: float


@dataclass
class _Closing:
    """When a call waits no longer: from a moment on, once no reply is missing that it needs."""

    moment: float = math.inf
    missing: int = 0

    @property
    def until(self) -> float:
        return math.inf if self.missing > 0 else self.moment


class Remote:
    """Clients behind the streams of a hub, for one attempt of a run.

    Args:
        members: By the numbers of their clients.
        watch: Told after every answer and whenever a node comes or goes.
        marked: Told the marks of the nodes' audit logs, by client, whenever they have saved.

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
        marked: Callable[[Mapping[ClientId, str]], None] = lambda marks: None,
    ) -> None:
        everybody = setup.profiles
        self.profiles: Mapping[ClientId, Profile] = {client: everybody[client] for client in sorted(members)}
        self.faults: dict[ClientId, Fault] = {}
        self.waited: dict[ClientId, float] = dict.fromkeys(members, 0.0)
        self._hub, self._setup, self._members, self.attempt = hub, setup, dict(members), attempt
        self._patience, self._limits, self._watch = patience, Limits(max_bytes=message_bytes), watch
        self._programs = setup.programs_with(setup.method)
        self._numbers = dict.fromkeys(members, 0)
        self._marked = marked
        self._ended = 0
        self._cancelled: dict[ClientId, int] = {}
        self._receipts: dict[ClientId, str] = {}
        self._busy: set[ClientId] = set()  # still at the call that was cancelled: nothing is sent to them meanwhile

    def begin(self) -> None:
        """Have all nodes begin the attempt, and wait until they stand there.

        Raises:
            InterruptedRoundError: one of them does not; :attr:`faults` says why.
        """
        patience, now = self._patience, time.monotonic()
        until = dict.fromkeys(self._members, now + patience.answer)  # it may be at work for an attempt that is over
        told = {client: self._begin(member) for client, member in self._members.items()}
        while until:
            event = self._next(min(until.values()))
            now = time.monotonic()
            if event is None:
                late = [client for client, moment in until.items() if moment <= now]
                for client in late:
                    self.faults[client] = Fault("lost", "did not begin in time")
                names = ", ".join(self._members[client].name for client in late)
                raise InterruptedRoundError(f"nodes did not begin in time: {names}")
            who = self._client(event)
            if who is None:
                continue
            if isinstance(event, Joined):
                if event.member.link is not told[who]:  # else it joined before it was told
                    told[who] = self._begin(event.member)
                until[who] = now + patience.answer
            elif isinstance(event, Left):
                until[who] = now + patience.back
            elif isinstance(event, Broke):
                self.faults[who] = Fault("bad", event.reason)
                raise InterruptedRoundError(f"node {event.member.name}: {event.reason}")
            elif isinstance(event.envelope, Ready) and event.envelope.attempt == self.attempt:
                until.pop(who, None)

    def _begin(self, member: Member) -> Link | None:
        return self._hub.begin(member, self.attempt, len(self._setup.facts), self._setup.dims.get("d"))

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> list[Answer]:
        """Run a handler on nodes, each once, whatever happens to their connections."""
        self._hub.check_keys()
        self._catch_up()
        began = time.monotonic()
        codecs = request.codecs(self._setup.codecs)
        payloads: dict[int, Pieces] = {}
        waiting: dict[ClientId, _Waiting] = {}
        answers: list[Answer] = []
        for client, message in messages.items():
            if (fault := self._standing(client, patient=not request.recoverable)) is not None:
                answers.append(self._failed(client, fault.reason))
                continue
            if message is not None and id(message) not in payloads:
                payloads[id(message)] = encoded(message, codecs)
            payload = b"" if message is None else payloads[id(message)]
            call = Call(
                attempt=self.attempt, number=0, ended=self._ended, program=request.program, handler=request.handler,
                heading=request.heading, round=request.round, index=request.index, recoverable=request.recoverable,
                message=message is not None,
            )  # fmt: skip
            waiting[client] = self._ask(client, call, payload)
        closing = _Closing()
        if request.deadline is not None:
            closing = _Closing(began + request.deadline, request.minimum)
        reply_type = handlers(type(self._programs[request.program]))[request.handler].reply_type
        for client, reply in self._collect(waiting, closing):  # one is decoded while others are under way
            if isinstance(reply, Arrived):
                answers.append(self._answer(client, reply, reply_type, request))
                closing.missing -= not isinstance(answers[-1].reply, Failure)
            elif reply.kind == "late":
                reason = f"late: {time.monotonic() - began:.3f} s were given"
                answers.append(Answer(client, Failure(client, reason, "late"), 0.0))
            else:
                self.faults[client] = reply
                answers.append(self._failed(client, reply.reason))
        self._stop_if_restarted()
        return answers

    def _standing(self, client: ClientId, *, patient: bool) -> Fault | None:
        """The fault for which a client is not asked now: that of a node that broke the rules, or is still away."""
        fault = self.faults.get(client)
        if fault is None or fault.kind == "bad":
            return fault
        if not patient and (self._members[client].link is None or client in self._busy):
            return fault
        del self.faults[client]
        return None

    def _answer(self, client: ClientId, arrived: Arrived, expected: type[Message] | None, request: Request) -> Answer:
        reply, name = arrived.envelope, self._members[client].name
        assert isinstance(reply, Reply)
        if reply.failure is not None:
            self.faults[client] = Fault("failed", f"{reply.failure} in {request.handler}, round {request.round}")
            return self._failed(client, f"node {name}: {reply.failure}; its log says more", reply.seconds)
        try:
            if (expected is not None) != reply.message:
                raise MessageError(request.handler, "reply", str(expected), "a message" if reply.message else "none")
            if expected is None:
                return Answer(client, None, reply.seconds, reply.steps, left_out=reply.left_out)
            profile = self.profiles[client]
            codecs = request.codecs(self._setup.codecs)
            message = decode(arrived.payload, expected, self._setup.dims, profile.keys, self._limits, codecs)
            self._check_rows(client, request, message)
        except MessageError as error:
            reason = printable(str(error), 500)
            self.faults[client] = Fault("failed", reason)
            return self._failed(client, f"node {name}: {reason}", reply.seconds)
        size = (raw_size(flatten(message)), len(arrived.payload))
        return Answer(client, message, reply.seconds, reply.steps, size, reply.left_out)

    def _check_rows(self, client: ClientId, request: Request, message: Message) -> None:
        """Refuse more rows than the method has a client send: everybody would be given them to learn from."""
        program = self._setup.programs_of(client)[request.program]
        known = program.rows_of_an_upload(self.profiles[client].samples) if isinstance(program, Method) else {}
        most = known.get(request.handler)
        if most is not None and (rows := rows_of(message)) > most:
            raise MessageError(request.handler, "reply", f"at most {most} rows", f"{rows}")

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

    def _ask(self, client: ClientId, asked: Call | Order, payload: Payload = b"") -> _Waiting:
        member, now = self._members[client], time.monotonic()
        there = member.link is not None
        one = _Waiting(member, asked, payload, now, now + (self._patience.answer if there else self._patience.back))
        self._send(client, one)
        return one

    def _send(self, client: ClientId, one: _Waiting) -> None:
        """Send what is asked, if the node is there and has nothing else to do."""
        with self._hub.lock:
            link = one.member.link
            if link is None or client in self._busy:
                return
            if not one.asked.number:
                self._numbers[client] += 1
                one.asked = one.asked.model_copy(update={"number": self._numbers[client]})
            self._send_cancelled(one.member)
            link.send(one.asked, one.payload)
        one.until = time.monotonic() + self._patience.answer

    def _collect(
        self, waiting: dict[ClientId, _Waiting], closing: _Closing
    ) -> Iterator[tuple[ClientId, Arrived | Fault]]:
        """What comes back from each, in time or not, as it comes."""
        while waiting:
            event = self._next(min(closing.until, *(one.until for one in waiting.values())))
            if event is None:
                yield from self._given_up(waiting, closing)
                continue
            who = self._client(event)
            if who is None:
                continue
            self._note(who, event)
            if who in waiting:
                one = waiting[who]
                outcome = self._outcome(who, event, one)
                if isinstance(outcome, Arrived):
                    self._cancelled.pop(who, None)
                    work = outcome.envelope.seconds if isinstance(outcome.envelope, Reply) else 0.0
                    self.waited[who] += max(0.0, time.monotonic() - one.began - work)
                if outcome is not None:
                    del waiting[who]
                    yield who, outcome
            self._watch()

    def _given_up(self, waiting: dict[ClientId, _Waiting], closing: _Closing) -> list[tuple[ClientId, Fault]]:
        """Those that are not waited for any more; what they were asked is taken back."""
        now = time.monotonic()
        found = []
        for client, one in list(waiting.items()):
            if closing.until <= now:
                fault = Fault("late", "the deadline went by")
            elif one.until <= now:
                there = one.member.link is not None
                fault = Fault("lost", "no answer in time" if there else "gone, and not back in time")
            else:
                continue
            del waiting[client]
            if one.asked.number:
                self._busy.add(client)
                self._cancel(client, one.asked.number)
            found.append((client, fault))
        return found

    def _catch_up(self) -> None:
        """Take note of what came while nobody waited.

        Raises:
            InterruptedRoundError: a node was started anew.
        """
        while (event := self._next(0.0)) is not None:
            if (who := self._client(event)) is not None:
                self._note(who, event)
        self._stop_if_restarted()

    def _note(self, client: ClientId, event: Event) -> None:
        """What an event says of a node, whether or not something is awaited from it."""
        if isinstance(event, Joined):
            self._busy.discard(client)  # it connects again only when it has nothing to do
            if event.restarted:
                self.faults[client] = Fault("restarted", "its process was started anew")
        elif isinstance(event, Broke):
            self.faults[client] = Fault("bad", event.reason)
        elif isinstance(event, Arrived) and isinstance(event.envelope, Reply | Done):
            answer = event.envelope
            if (answer.attempt, answer.number) == (self.attempt, self._cancelled.get(client)):
                self._busy.discard(client)

    def _outcome(self, client: ClientId, event: Event, one: _Waiting) -> Arrived | Fault | None:
        """What an event says of a member that is waited for."""
        if isinstance(event, Joined):
            if event.restarted:
                return self.faults[client]
            self._send(client, one)
        elif isinstance(event, Left):
            one.until = time.monotonic() + self._patience.back
        elif isinstance(event, Broke):
            return self.faults[client]
        elif isinstance(event.envelope, Reply | Done):
            answer, asked = event.envelope, one.asked
            if not asked.number:
                self._send(client, one)  # this may have been what it was still at
            fits = isinstance(answer, Reply) == isinstance(asked, Call)
            if (answer.attempt, answer.number) == (self.attempt, asked.number) and fits:
                return event
            if answer.attempt > self.attempt or answer.number > self._numbers[client]:
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

    def _order(self, do: Literal["save", "load"], digest: str | None = None, keep: Iterable[str] = ()) -> Order:
        return Order(attempt=self.attempt, number=0, ended=self._ended, do=do, digest=digest, keep=tuple(keep))

    def _everybody(self, orders: Mapping[ClientId, Order]) -> dict[ClientId, Done]:
        """Give every node its order, and wait until it is carried out."""
        self._catch_up()
        able = [client for client in orders if self._standing(client, patient=True) is None]
        waiting = {client: self._ask(client, orders[client]) for client in able}
        done: dict[ClientId, Done] = {}
        for client, outcome in self._collect(waiting, _Closing()):
            if isinstance(outcome, Fault):
                self.faults[client] = outcome
            elif isinstance(outcome.envelope, Done) and outcome.envelope.failure is None:
                done[client] = outcome.envelope
            elif isinstance(outcome.envelope, Done):
                self.faults[client] = Fault("failed", f"{outcome.envelope.failure} at {orders[client].do}")
        self._stop_if_restarted()
        if missing := [client for client in orders if client not in done]:
            name, do, fault = self._members[missing[0]].name, orders[missing[0]].do, self.faults[missing[0]]
            raise InterruptedRoundError(f"node {name} could not {do}: {fault.reason}")
        return done

    def end_round(self) -> None:
        """Nodes hear of it with what they are asked next: nobody waits for those that are slow."""
        self._ended += 1

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        """Have nodes save on their own disks; what is written here are receipts, with the digests of their files."""
        kept: dict[ClientId, set[str]] = {client: set() for client in self._members}
        for pack in folder.glob("*.safetensors"):
            parts = open_pack(pack)
            for client, digests in kept.items():
                if (part := parts.get(part_of(client))) is not None:
                    digests.add(_digest_in(part))
        orders = {client: self._order("save", keep=sorted(digests)) for client, digests in kept.items()}
        answers = self._everybody(orders)
        self._marked({client: done.audit for client, done in answers.items() if done.audit is not None})
        found = {client: done.digest for client, done in answers.items() if done.digest is not None}
        self._receipts |= found
        if not (wanted := sorted(found.keys() | self._receipts.keys() & set(again))):
            return []
        receipts = {part_of(client): Tensors(_receipt(self._receipts[client])) for client in wanted}
        return [save_pack(folder / f"{stem}.safetensors", receipts)]

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        """Have nodes go back to what they saved."""
        self._receipts = {client: _digest_in(part) for client, part in parts.items()}
        self._everybody({client: self._order("load", self._receipts.get(client)) for client in self._members})

    def close(self) -> None:
        """Nothing: streams belong to the hub, and outlive an attempt."""


def _receipt(digest: str) -> dict[str, Tensor]:
    return {"sha256": torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)}


def _digest_in(receipt: Part) -> str:
    return bytes(receipt.tensors()["sha256"].tolist()).hex()
