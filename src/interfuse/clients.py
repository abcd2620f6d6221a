"""``clients.call``: how anything moves between the server and its clients."""

from __future__ import annotations

import operator
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import torch

from interfuse.client import ClientId, Profile
from interfuse.errors import ClientError, ConfigError, MessageError
from interfuse.handler import Handler, Program
from interfuse.message import Dims, Message, check, kind_of, narrow, rounded, sizes
from interfuse.randomness import Key, generator
from interfuse.wire import NO_CODECS, Codecs, Entry, FileRecord, Heading, Ledger

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message | None)
R_co = TypeVar("R_co", bound=Message | None, covariant=True)


@dataclass(frozen=True)
class Request:
    """Which handler runs, and where in the run: all that its randomness may depend on, beside the client."""

    program: str
    handler: str
    heading: Heading
    round: int
    index: int
    """Which call of this handler in this round, from 0."""
    recoverable: bool = False
    """A client that fails is put back to where it was before the call."""

    def place(self, client: ClientId) -> tuple[Key, ...]:
        """Where a client's part of the call stands in the run: keys for randomness."""
        return (self.heading, self.program, self.handler, client, self.round, self.index)

    def codecs(self, configured: Codecs) -> Codecs:
        """The codecs of its messages: the method's own. What interfuse measures with travels as it is."""
        return configured if self.program.partition(".")[0] == "method" else NO_CODECS


@dataclass(frozen=True)
class Failure:
    """Why a client did not reply."""

    client: ClientId
    reason: str


@dataclass(frozen=True)
class Answer:
    """What comes back from one client: its reply or a failure, and the seconds and gradient steps of its work."""

    client: ClientId
    reply: Message | Failure | None
    seconds: float
    steps: int = 0


class Engine(Protocol):
    """Where clients live and how a call reaches them. It knows nothing of methods."""

    @property
    def profiles(self) -> Mapping[ClientId, Profile]: ...

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterable[Answer]:
        """Run a handler on the clients that are keys of ``messages``; answers may come in any order.

        One object under several keys is a broadcast. Replies come checked: an engine makes a failure of a reply that
        is not what the handler declares.
        """

    def end_round(self) -> None:
        """Forget all scratch."""

    def save(self, folder: Path, suffix: str) -> dict[str, FileRecord]:
        """Write the owned state that changed since the last save, and say which file now holds whose state."""

    def load(self, folder: Path, files: Mapping[str, FileRecord]) -> None:
        """Put all clients back to a saved state; those without a file to their beginning."""

    def close(self) -> None: ...


@dataclass
class Exchange:
    """What all calls of a run share: the engine, the ledger, and the place in the run."""

    engine: Engine
    ledger: Ledger
    dims: Dims
    seed: int
    programs: Mapping[str, Program]
    round: int = 0
    heading: Heading = "start"
    calls: int = 0
    draws: int = 0
    handler_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0
    failures: list[Failure] = field(default_factory=list)
    codecs: Codecs = NO_CODECS

    def enter(self, round: int, heading: Heading, calls: int = 0) -> None:
        """Go to a place in the run: counters start again, that of calls at a given number."""
        self.round, self.heading, self.calls, self.draws = round, heading, calls, 0
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
    def call(self, handler: Handler[None, R], message: None = None, *, minimum: int | None = None) -> Replies[R]: ...
    @overload
    def call(
        self, handler: Handler[M, R], message: M | Mapping[ClientId, M], *, minimum: int | None = None
    ) -> Replies[R]: ...
    def call(self, handler: Handler[Any, Any], message: Any = None, *, minimum: int | None = None) -> Replies[Any]:
        """Run a handler on these clients and wait for their replies.

        Tensors are detached, narrowed to the declared dtype and copied on the way; sizes go to the ledger.

        Args:
            message: One message for all, or one each in a mapping by client; clients without one are left out. The very
                same message for all is a broadcast.
            minimum: How many replies are enough. A client that fails is then put back to where it was and stays out
                of this call; by default any failure ends the round.

        Raises:
            ClientError: too few clients replied; names the first that failed, the handler and the round.
            MessageError: the server's own message does not match its declaration.
        """
        exchange, declaration = self._exchange, handler.declaration
        path = exchange.path_of(handler.program)
        request = Request(
            path, handler.name, exchange.heading, exchange.round, exchange.handler_calls[path, handler.name],
            minimum is not None,
        )  # fmt: skip
        exchange.handler_calls[path, handler.name] += 1
        exchange.calls += 1
        began = time.perf_counter()
        outgoing = self._outgoing(declaration.message_type, message, request)
        replies: dict[ClientId, Message | None] = {}
        failures: list[Failure] = []
        for answer in sorted(exchange.engine.call(request, outgoing), key=lambda a: a.client):
            exchange.seconds["local work, all clients"] += answer.seconds
            exchange.steps += answer.steps
            if isinstance(answer.reply, Failure):
                failures.append(answer.reply)
                continue
            try:
                replies[answer.client] = self._incoming(declaration.reply_type, answer, request)
            except MessageError as error:
                failures.append(Failure(answer.client, str(error)))
        exchange.seconds["calls"] += time.perf_counter() - began
        exchange.failures += failures
        if len(replies) < (len(outgoing) if minimum is None else minimum):
            first = f"client {failures[0].client} failed" if failures else "too few clients were called"
            reason = f": {failures[0].reason}" if failures else ""
            enough = f" ({len(replies)} clients replied, at least {minimum} are needed)" if minimum else ""
            raise ClientError(f"{first} in {handler.name}, round {request.round}{reason}{enough}")
        return Replies(replies, failures)

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
        size = sizes(reply, request.codecs(self._exchange.codecs))
        self._count(answer.client, "up", reply, size, "unicast", request)
        return reply

    def _count(
        self, client: ClientId, direction: Any, message: Message, size: tuple[int, int], casting: Any, request: Request
    ) -> None:
        self._exchange.ledger.append(
            Entry(
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
        )
