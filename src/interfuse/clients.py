"""``clients.call``: how anything moves between the server and its clients."""

from __future__ import annotations

import operator
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, overload

import torch

from interfuse.client import ClientId, Profile
from interfuse.clock import Clock, Work
from interfuse.errors import ClientError, ConfigError, MessageError, ModelError
from interfuse.handler import Handler, Program, check_handler
from interfuse.messages import Dims, Message, kind_of, settled
from interfuse.messages.delivery import check, narrow
from interfuse.messages.encoding import rounded, sizes
from interfuse.randomness import Key, generator
from interfuse.wire import NO_CODECS, Codecs, Entry, FileRecord, Heading, Ledger, Part

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message | None)
R_co = TypeVar("R_co", bound=Message | None, covariant=True)

Fold = Callable[[ClientId, R], object]
"""What is given the replies of a call one by one."""


@dataclass(frozen=True)
class Request:
    """Which handler runs, and where in the run: all that its randomness may depend on, beside the client."""

    program: str
    handler: str
    heading: Heading
    round: int
    index: int
    """Which call of this handler in this round, from 0, or where an evaluation on everything begins to count."""
    recoverable: bool = False
    """A client that fails is put back to where it was before the call."""
    undoable: bool = False
    """Until the round ends, :meth:`Engine.undo` can put a client back to where it was before the call."""
    ordered: bool = False
    """Answers are wanted one by one in the order of clients: an engine that can holds but a few at a time."""
    deadline: float | None = None
    """Seconds after which, with ``minimum`` replies, an engine of real time takes back what is not done, and answers
    with failures of kind ``late``. In a simulation the virtual clock decides, and engines wait for everybody."""
    minimum: int = 0

    def place(self, client: ClientId) -> tuple[Key, ...]:
        """Where a client's part of the call stands in the run: keys for randomness."""
        return (self.heading, self.program, self.handler, client, self.round, self.index)

    def codecs(self, configured: Codecs) -> Codecs:
        """The codecs of its messages: the method's own. What interfuse measures with travels as it is."""
        return configured if self.program.partition(".")[0] == "method" else NO_CODECS


WORK, TRAINING = "local work, all clients", "training "
"""Phases of a round that are parts of others, or side by side: work at clients, and what the names of those begin with
that are the training of one network."""


def is_part(phase: str) -> bool:
    """Whether the seconds of a phase are counted in another too."""
    return phase == WORK or phase.startswith(TRAINING)


@dataclass(frozen=True)
class Failure:
    """Why there is no reply of a client: it failed, was late, or was away all the time."""

    client: ClientId
    reason: str
    kind: Literal["failed", "late", "away"] = "failed"


@dataclass(frozen=True)
class Answer:
    """What comes back from one client: its reply or a failure, the seconds and gradient steps of its work, the
    sizes of the reply in bytes, raw and on the wire, as who coded or received it has counted them, the rows that it
    had to leave out of its training, and the seconds of that by network, which nobody but this machine's own clients
    tells."""

    client: ClientId
    reply: Message | Failure | None
    seconds: float
    steps: int = 0
    size: tuple[int, int] = (0, 0)
    left_out: int = 0
    training: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Where clients live and how a call reaches them. It knows nothing of methods."""

    @property
    def profiles(self) -> Mapping[ClientId, Profile]: ...

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterable[Answer]:
        """Run a handler on the clients that are keys of ``messages``; answers may come in any order.

        One object under several keys is a broadcast. Replies come checked: an engine makes a failure of a reply that
        is not what the handler declares.
        """

    def undo(self, clients: Sequence[ClientId]) -> None:
        """Put clients back to where they were before their last call, which was an undoable one of this round."""

    def end_round(self) -> None:
        """Forget all scratch."""

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        """Write what clients own that changed since the last save, as parts of packs in a folder.

        Args:
            stem: What the names of the packs begin with.
            again: Clients to be written though they have not changed, since their packs are mostly stale.

        Raises:
            RunError: it cannot be written.
        """

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        """Put these clients back to what they owned, all others to their beginning.

        Raises:
            RunError: what was saved of a client cannot be read, or does not fit this run.
        """

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Outstanding:
    """A reply of :meth:`Clients.stream` that is on its way: whose handler it answers, and when it comes.

    ``round`` is that in which the work was given out.
    """

    program: str
    handler: str
    round: int
    arrives: float
    reply: Message | None


@dataclass
class Exchange:
    """What all calls of a run share: the engine, the ledger, the clock, and the place in the run."""

    engine: Engine
    ledger: Ledger
    dims: Dims
    seed: int
    programs: Mapping[str, Program]
    clock: Clock
    outstanding: dict[ClientId, Outstanding] = field(default_factory=dict)
    round: int = 0
    heading: Heading = "start"
    calls: int = 0
    first: int = 0
    """From which calls of a handler count."""
    draws: int = 0
    handler_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved: Counter[tuple[ClientId, str]] = field(default_factory=Counter)
    """Bytes on the wire of the latest call, by client and direction."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: Counter[ClientId] = field(default_factory=Counter)
    left_out: Counter[ClientId] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    codecs: Codecs = NO_CODECS
    folding: bool = False
    """Replies are taken up one by one."""

    def enter(self, round: int, heading: Heading, calls: int = 0, first: int = 0) -> None:
        """Go to a place in the run: counters start again, that of calls, and those of calls of a handler, at a given
        number."""
        self.round, self.heading, self.calls, self.first, self.draws = round, heading, calls, first, 0
        self.folding = False
        self.handler_calls.clear()

    def path_of(self, program: Program) -> str:
        for path, known in self.programs.items():
            if known is program:
                return path
        raise ConfigError(
            f"{type(program).__name__} is not part of this run's method; keep it in a field of the method"
        )


class Replies(Mapping[ClientId, R_co], Generic[R_co]):
    """Replies by client, in the order of clients, with the failures beside them.

    It is a mapping, so it can be given to the next call to send everybody an answer of their own.
    """

    def __init__(self, replies: Mapping[ClientId, R_co], failures: Sequence[Failure] = ()) -> None:
        self._replies, self.failures = dict(sorted(replies.items())), tuple(failures)

    def __getitem__(self, client: ClientId) -> R_co:
        return self._replies[client]

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._replies)

    def __len__(self) -> int:
        return len(self._replies)


@dataclass(frozen=True, eq=False)
class Arrival(Generic[R_co]):
    """A reply as :meth:`Clients.stream` yields it.

    Attributes:
        round: In which the work was given out; with the server's round it says how stale the reply is.
        seconds: The time by the run's clock.
    """

    client: ClientId
    reply: R_co
    round: int
    seconds: float


@dataclass(frozen=True)
class _Answers:
    """What came of sending some clients to work: replies and failures, and what the work was of each."""

    replies: dict[ClientId, Message | None]
    failures: list[Failure]
    work: dict[ClientId, Work]


class Clients:
    """Some clients of a federation, in order of their numbers."""

    def __init__(self, exchange: Exchange, ids: Iterable[ClientId]) -> None:
        self._exchange, self.ids = exchange, tuple(sorted(operator.index(client) for client in ids))

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def profiles(self) -> Mapping[ClientId, Profile]:
        """What the server knows of each of these clients."""
        everybody = self._exchange.engine.profiles
        return {client: everybody[client] for client in self.ids}

    @property
    def architecture(self) -> str:
        """That of all these clients.

        Raises:
            ModelError: they have several.
        """
        first, *others = {profile.architecture for profile in self.profiles.values()}
        if others:
            known = ", ".join(sorted({first, *others}))
            raise ModelError(f"clients have several architectures ({known}) where one is needed; give them one")
        return first

    def only(self, ids: Iterable[ClientId]) -> Clients:
        """A part of these clients."""
        wanted = {operator.index(client) for client in ids}
        if unknown := wanted - set(self.ids):
            raise ConfigError(f"clients {sorted(unknown)} are not among {list(self.ids)}")
        return Clients(self._exchange, wanted)

    def sample(self, fraction: float) -> Clients:
        """A part drawn for this round: ``round(fraction · len)`` clients without repetition, at least one."""
        if not 0 < fraction <= 1:
            raise ConfigError(f"participation is a fraction above 0 and up to 1, not {fraction}")
        count = max(1, round(fraction * len(self.ids)))
        if count == len(self.ids):
            return self
        exchange = self._exchange
        place = ("participation", exchange.heading, exchange.round, exchange.draws)
        exchange.draws += 1
        drawn = torch.randperm(len(self.ids), generator=generator(exchange.seed, *place))
        return self.only(self.ids[int(i)] for i in drawn[:count])

    @overload
    def call(
        self,
        handler: Handler[None, R],
        message: None = None,
        *,
        minimum: int | None = None,
        deadline: float | None = None,
    ) -> Replies[R]: ...
    @overload
    def call(
        self,
        handler: Handler[M, R],
        message: M | Mapping[ClientId, M],
        *,
        minimum: int | None = None,
        deadline: float | None = None,
    ) -> Replies[R]: ...
    @overload
    def call(
        self, handler: Handler[None, R], message: None = None, *, each: Fold[R], minimum: int | None = None
    ) -> Replies[None]: ...
    @overload
    def call(
        self,
        handler: Handler[M, R],
        message: M | Mapping[ClientId, M],
        *,
        each: Fold[R],
        minimum: int | None = None,
    ) -> Replies[None]: ...
    def call(
        self,
        handler: Handler[Any, Any],
        message: Any = None,
        *,
        each: Fold[Any] | None = None,
        minimum: int | None = None,
        deadline: float | None = None,
    ) -> Replies[Any]:
        """Run a handler on these clients and wait for their replies.

        Tensors are detached, narrowed to the declared dtype and copied on the way; sizes go to the ledger.

        Args:
            message: One message for all, or one each in a mapping by client; clients without one are left out. The very
                same message for all is a broadcast.
            each: Is given the replies one by one, in the order of clients, instead of all of them being returned: a
                mean over a thousand clients then holds a few models, not a thousand. What it raises ends the round.
            minimum: How many replies are enough. A client that fails is then put back to where it was and stays out
                of this call; by default any failure ends the round.
            deadline: Seconds, virtual ones in a simulation, after which nobody is waited for any more, once
                ``minimum`` replies (by default one) are there. A client that is late is put back to where it was,
                though what it sent is counted; one that is away all the time is not called. Both are among the
                failures.

        Raises:
            ClientError: too few clients replied; names the first that failed, the handler and the round.
            MessageError: the server's own message does not match its declaration.
        """
        check_handler(handler)
        exchange, began = self._exchange, time.perf_counter()
        wanted = (len(message) if isinstance(message, Mapping) else len(self.ids)) if minimum is None else minimum
        if each is not None and deadline is not None:
            raise ConfigError("each with a deadline: who is late is known only when all have replied; leave one out")
        if deadline is None or exchange.heading == "evaluation":
            answers = self._send(handler, message, each=each, recoverable=minimum is not None)
            if exchange.heading != "evaluation":
                begins = {client: found.arrives for client, found in exchange.outstanding.items()}
                exchange.clock.wait_for_all(begins, answers.work)
        else:
            wanted = minimum or 1
            answers = self._send_in_time(handler, message, deadline, wanted)
        exchange.seconds["calls"] += time.perf_counter() - began
        exchange.failures += answers.failures
        self._check_replies(handler, answers, wanted, said=minimum is not None or deadline is not None)
        return Replies(answers.replies, answers.failures)

    def _send_in_time(self, handler: Handler[Any, Any], message: Any, deadline: float, minimum: int) -> _Answers:
        """Send those to work that can be there in time, and take back what is done too late."""
        if not deadline > 0:
            raise ConfigError(f"deadline = {deadline}: it has to be above 0 seconds")
        exchange = self._exchange
        clock, began = exchange.clock, exchange.clock.now
        addressed = self.only(message) if isinstance(message, Mapping) else self
        there = self.only(clock.reachable(addressed.ids, deadline, minimum))
        if isinstance(message, Mapping):
            message = {client: message[client] for client in there}
        answers = there._send(handler, message, recoverable=True, deadline=deadline, minimum=minimum)
        done = {client: self._done(client, answers.work[client]) for client in answers.replies}
        complete = not answers.failures and len(there) == len(addressed)
        late = clock.close(done, deadline, minimum, complete=complete)
        exchange.engine.undo(late)
        for client in late:
            del answers.replies[client]
            reason = f"late: {done[client] - began:.3f} s, {clock.now - began:.3f} s were given"
            answers.failures.append(Failure(client, reason, "late"))
        for client in sorted(set(addressed) - set(there)):
            answers.failures.append(Failure(client, f"away for the {clock.now - began:.3f} s of the call", "away"))
        return answers

    def _done(self, client: ClientId, work: Work) -> float:
        """When a client is done with work that it gets now, after what it has on its hands."""
        clock, busy = self._exchange.clock, self._exchange.outstanding.get(client)
        return clock.done(client, work, clock.now if busy is None else max(clock.now, busy.arrives))

    @overload
    def stream(self, handler: Handler[None, R], message: None = None) -> Iterator[Arrival[R]]: ...
    @overload
    def stream(self, handler: Handler[M, R], message: M | Callable[[ClientId], M]) -> Iterator[Arrival[R]]: ...
    def stream(self, handler: Handler[Any, Any], message: Any = None) -> Iterator[Arrival[Any]]:
        """Keep these clients at work on a handler, and yield their replies in the order of the clock.

        Every client that has nothing to do is sent to work at once; so is one whose reply was taken, when the next
        reply is asked for. Leave the loop whenever you like, for instance by :func:`itertools.islice`: what is
        outstanding then comes in a later round. It is part of what a commit saves.

        Args:
            message: One for all, or a function that makes one for a client at the moment it is sent to work.

        Raises:
            ClientError: a client failed; names it, the handler and the round.
            MessageError: the server's own message does not match its declaration.
        """
        check_handler(handler)
        exchange, path = self._exchange, self._exchange.path_of(handler.program)
        idle = [client for client in self.ids if client not in exchange.outstanding]
        while True:
            began = time.perf_counter()
            if idle:
                self.only(idle)._give_out(handler, message)
            exchange.seconds["calls"] += time.perf_counter() - began
            coming = [
                (found.arrives, client)
                for client, found in exchange.outstanding.items()
                if client in self.ids and (found.program, found.handler) == (path, handler.name)
            ]
            if not coming:
                return
            _, client = min(coming)
            found = exchange.outstanding.pop(client)
            exchange.clock.go_to(found.arrives)
            yield Arrival(client, found.reply, found.round, exchange.clock.now)
            idle = [client]

    def _give_out(self, handler: Handler[Any, Any], message: Any) -> None:
        """Send these clients to work whose replies come later."""
        exchange, path = self._exchange, self._exchange.path_of(handler.program)
        answers = self._send(handler, {c: message(c) for c in self.ids} if callable(message) else message)
        exchange.failures += answers.failures
        self._check_replies(handler, answers, len(self.ids), said=False)
        for client, reply in answers.replies.items():
            arrives = self._done(client, answers.work[client])
            # what is kept has the bits that a commit would give back
            kept = None if reply is None else settled(reply)
            exchange.outstanding[client] = Outstanding(path, handler.name, exchange.round, arrives, kept)

    def _send(
        self,
        handler: Handler[Any, Any],
        message: Any,
        *,
        each: Fold[Any] | None = None,
        recoverable: bool = False,
        deadline: float | None = None,
        minimum: int = 0,
    ) -> _Answers:
        """Send these clients to work, and count and check what they answer."""
        exchange, declaration = self._exchange, handler.declaration
        if exchange.folding:
            raise ConfigError(f"{handler.name} is called inside a fold, while another call goes on; call it after that")
        path = exchange.path_of(handler.program)
        request = Request(
            path, handler.name, exchange.heading, exchange.round,
            exchange.first + exchange.handler_calls[path, handler.name],
            recoverable, deadline is not None, each is not None, deadline, minimum,
        )  # fmt: skip
        exchange.handler_calls[path, handler.name] += 1
        exchange.calls += 1
        exchange.moved.clear()
        outgoing = self._outgoing(declaration.message_type, message, request)
        found = _Answers({}, [], {})
        for answer in _in_order(exchange.engine.call(request, outgoing), list(outgoing)):
            exchange.seconds[WORK] += answer.seconds
            for network, seconds in answer.training.items():
                exchange.seconds[f"{TRAINING}{network}, all clients"] += seconds
            exchange.steps[answer.client] += answer.steps
            exchange.left_out[answer.client] += answer.left_out
            if isinstance(answer.reply, Failure):
                found.failures.append(answer.reply)
            else:
                try:
                    reply = self._incoming(declaration.reply_type, answer, request)
                except MessageError as error:
                    found.failures.append(Failure(answer.client, str(error)))
                else:
                    if each is not None:
                        exchange.folding = True
                        try:
                            each(answer.client, reply)
                        finally:
                            exchange.folding = False
                    found.replies[answer.client] = reply if each is None else None
            down, up = (exchange.moved[answer.client, way] for way in ("down", "up"))
            found.work[answer.client] = Work(answer.steps, down, up)
        return found

    def _check_replies(self, handler: Handler[Any, Any], answers: _Answers, wanted: int, *, said: bool) -> None:
        """Check that so many replies came."""
        replies, failures = answers.replies, answers.failures
        if len(replies) < wanted:
            first = f"client {failures[0].client} failed" if failures else "too few clients were called"
            reason = f": {failures[0].reason}" if failures else ""
            enough = f" ({len(replies)} clients replied, at least {wanted} are needed)" if said else ""
            raise ClientError(f"{first} in {handler.name}, round {self._exchange.round}{reason}{enough}")

    def _outgoing(
        self, expected: type[Message] | None, message: Any, request: Request
    ) -> dict[ClientId, Message | None]:
        """Check, narrow and count what goes down; one object for all is narrowed once."""
        if (expected is None) != (message is None):
            wanted = "no message" if expected is None else expected.__name__
            raise MessageError(request.handler, "(whole)", wanted, type(message).__name__)
        if message is None:
            return dict.fromkeys(self.ids)
        exchange, profiles = self._exchange, self.profiles
        addressed: dict[ClientId, Any] = dict.fromkeys(self.ids, message)
        if isinstance(message, Mapping):
            addressed = {operator.index(client): given for client, given in message.items()}
        if strangers := set(addressed) - set(self.ids):
            raise MessageError(request.handler, "clients", f"some of {list(self.ids)}", str(sorted(strangers)))
        same = len({id(given) for given in addressed.values()}) == 1 and len(addressed) > 1
        codecs = request.codecs(exchange.codecs)
        ready: dict[int, Message] = {}
        size: dict[int, tuple[int, int]] = {}
        checked: set[tuple[int, int]] = set()
        out: dict[ClientId, Message | None] = {}
        for client in sorted(addressed):
            given = addressed[client]
            if type(given) is not expected:
                raise MessageError(request.handler, f"to client {client}", kind_of(expected or Message), kind_of(given))
            first = id(given) not in ready
            if first:
                ready[id(given)] = narrow(given, exchange.dims)
            keys = profiles[client].keys
            if (id(given), id(keys)) not in checked:  # clients of one architecture have the very same keys
                check(ready[id(given)], exchange.dims, keys, finite=first)
                checked.add((id(given), id(keys)))
            if first:
                noise = generator(exchange.seed, "codec", "down", *request.place(client))
                ready[id(given)] = rounded(ready[id(given)], codecs, noise)
                size[id(given)] = sizes(ready[id(given)], codecs)
            out[client] = ready[id(given)]
            self._count(client, "down", given, size[id(given)], "broadcast" if same else "unicast", request)
        return out

    def _incoming(self, expected: type[Message] | None, answer: Answer, request: Request) -> Message | None:
        reply = answer.reply
        assert not isinstance(reply, Failure)
        if type(reply) is not (expected or type(None)):
            wanted = "None" if expected is None else kind_of(expected)
            raise MessageError(request.handler, "reply", wanted, type(reply).__name__)
        if reply is None:
            return None
        self._count(answer.client, "up", reply, answer.size, "unicast", request)
        return reply

    def _count(
        self, client: ClientId, direction: Any, message: Message, size: tuple[int, int], casting: Any, request: Request
    ) -> None:
        entry = Entry(
            round=request.round,
            heading=request.heading,
            call=self._exchange.calls,
            handler=request.handler,
            client=client,
            direction=direction,
            kind=kind_of(message),
            casting=casting,
            raw=size[0],
            wire=size[1],
        )
        self._exchange.ledger.append(entry)
        self._exchange.moved[client, direction] += entry.wire


def _in_order(answers: Iterable[Answer], clients: Sequence[ClientId]) -> Iterator[Answer]:
    """The answers in the order of clients. One that comes early waits for its turn, and is not held after it."""
    early: dict[ClientId, Answer] = {}
    turn = 0
    for answer in answers:
        early[answer.client] = answer
        while turn < len(clients) and clients[turn] in early:
            yield early.pop(clients[turn])
            turn += 1
    yield from (early[client] for client in sorted(early))
