"""A node: one client beside its own data and model, and what it answers to a coordinator."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel

from interfuse.client import ClientId, part_of
from interfuse.clients import Answer, Failure, Request
from interfuse.data import Dataset
from interfuse.data.inputs import shape_text
from interfuse.engines.allocator import keep_freed_memory
from interfuse.engines.host import Host
from interfuse.engines.parties.contract import (
    CLASS_NAMES,
    LIBRARY,
    WIRE,
    Contract,
    Facts,
    JoinError,
    check_facts,
    method_of,
    rows_digest,
    same,
)
from interfuse.engines.parties.frames import (
    PROTOCOL,
    Accept,
    Begin,
    Call,
    Cancel,
    Code,
    Done,
    Envelope,
    Hello,
    Offer,
    Order,
    Payload,
    Ready,
    Refusal,
    Reply,
)
from interfuse.engines.parties.logs import Audit, Events, described
from interfuse.engines.parties.setups import NodeSetup, Own, dims_of, own_share
from interfuse.engines.parties.vendor import Vendor
from interfuse.errors import ConfigError, InterfuseError, MessageError, RunError
from interfuse.evaluation import Evaluation
from interfuse.federation import check_codecs
from interfuse.handler import Handler, handlers
from interfuse.messages import Message
from interfuse.messages.delivery import disturbed
from interfuse.messages.encoding import decode, encoded, rounded
from interfuse.method import Method
from interfuse.setup import check_device
from interfuse.wire import Codecs, FileRecord, Limits, Part, open_pack, sync_folder


class Outgoing(NamedTuple):
    """What leaves: an envelope, its payload, and the payload in words."""

    envelope: Envelope
    payload: Payload = b""
    content: Mapping[str, Any] = {}


Tap = Callable[[Envelope, Payload], None]
EVALUATION = {"none": set[str](), "own": {"count"}, "shared": {"count", "fused", "composed"}}
"""Handlers of the evaluation that a node runs, by what the contract says of it. None of them takes foreign inputs."""

RUN_FILE = "run.json"
STATES_FILE = "states.json"
BYTES_OF_SECRET = 32


class RunFile(BaseModel):
    """What a node remembers of a run: how far the coordinator was, with which data it began, and what was agreed.

    ``clients`` and ``d`` are as in :class:`.frames.Begin`.
    """

    attempt: int
    client: int
    data: str
    contract: Contract
    clients: int
    d: int | None


class StatesFile(BaseModel):
    """After which round each saved state was taken, by its digest."""

    rounds: dict[str, int]


class RefusedError(InterfuseError):
    """Either side refused to go on; ``retry`` says whether it may work later."""

    def __init__(self, text: str, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


class Node:
    """Answers a coordinator's envelopes one after the other, and lets nothing leave that its vendor does not allow.

    What leaves passes :meth:`answer` and is in the audit log before.
    """

    def __init__(self, vendor: Vendor, events: Events, tap: Tap = lambda envelope, payload: None) -> None:
        """Load data and model of a vendor. ``tap`` sees everything that leaves.

        Raises:
            InterfuseError: something of the vendor's file cannot work, or another process is this node already.
        """
        check_device(vendor.device)
        keep_freed_memory()
        self.vendor, self.events, self._tap = vendor, events, tap
        vendor.state_folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(vendor.state_folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{vendor.state_folder} is in use: another process is node {vendor.name}") from None
        self.audit = Audit(vendor.state_folder / "audit.jsonl")
        self._dataset: Dataset = vendor.data.load(vendor.folder).to(vendor.device)
        self._builder = vendor.model.builder(vendor.folder)
        self._incarnation = secrets.token_hex(8)
        self._own: Own | None = None
        self._session: Session | None = None

    def hello(self) -> tuple[Envelope, Payload]:
        """What a stream begins with."""
        hello = Hello(
            protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name=self.vendor.name, incarnation=self._incarnation
        )
        return self._leaving(Outgoing(hello))

    def answer(self, envelope: Envelope, payload: Payload) -> Iterator[tuple[Envelope, Payload]]:
        """What is answered to an envelope: at most one.

        Raises:
            RefusedError: one of the sides does not agree; to be raised after the answer has left.
            RunError: the audit log cannot be written, so nothing may leave.
        """
        if isinstance(envelope, Offer):
            yield from self._offered(envelope.contract)
        elif isinstance(envelope, Begin):
            yield from self._begin(envelope)
        elif isinstance(envelope, Call | Order) and self._session is not None:
            repeated = self._session.has_answered(envelope)
            yield self._leaving(self._session.carry_out(envelope, payload), repeated)
        elif isinstance(envelope, Cancel) and self._session is not None:
            self._session.cancel(envelope)
        elif isinstance(envelope, Refusal):
            text = f"the coordinator refused: {envelope.field}: expected {envelope.expected}, found {envelope.found}"
            text += self._own_names() if envelope.field == CLASS_NAMES else ""
            raise RefusedError(text, envelope.retry)
        else:
            raise RefusedError(f"the coordinator sent {envelope.kind!r} where it makes no sense", retry=True)

    def _leaving(self, outgoing: Outgoing, repeated: bool = False) -> tuple[Envelope, Payload]:
        run = "" if self._own is None else self._own.contract.run
        try:
            self.audit.add(run, *outgoing, repeated)
        except OSError as error:
            self.events.add("the audit log cannot be written; nothing leaves", reason=error.strerror)
            raise RunError(f"the audit log cannot be written: {error.strerror}; nothing may leave") from error
        self._tap(outgoing.envelope, outgoing.payload)
        return outgoing.envelope, outgoing.payload

    def _offered(self, contract: Contract) -> Iterator[tuple[Envelope, Payload]]:
        try:
            facts = self._agree(contract)
        except JoinError as error:
            yield self._refusal(error)
            raise RefusedError(f"this node refused: {error}") from error
        except InterfuseError as error:  # its text may speak of what is the vendor's own
            self.events.add("refused", field="configuration", reason=error)
            words = "a node that can take part", "a fault on its side; its log says which"
            yield self._leaving(Outgoing(Refusal(field="configuration", expected=words[0], found=words[1])))
            raise RefusedError(f"this node cannot take part: {error}") from error
        self.events.add("agreed", run=contract.run, method=contract.method, rounds=contract.rounds)
        yield self._leaving(Outgoing(Accept(facts=facts)))

    def _refusal(self, error: JoinError) -> tuple[Envelope, Payload]:
        what = {"field": error.field, "expected": error.expected, "found": error.found}
        self.events.add("refused", **what)
        return self._leaving(Outgoing(Refusal.model_validate(what)))

    def _agree(self, contract: Contract) -> Facts:
        same("library version", contract.library, LIBRARY)
        same("wire version", contract.wire, WIRE)
        self.vendor.check(contract)
        method = method_of(contract)
        try:
            codecs = Codecs.parse(contract.codecs)
            check_codecs(codecs, method)
        except ConfigError as error:
            raise JoinError("codecs", "those that the method's messages can have", str(error)[:300]) from error
        self.vendor.check_codecs(codecs, method)
        if self._own is None or contract != self._own.contract:
            dataset = self._dataset
            if contract.evaluation == "shared":
                dataset = dataset.with_test_rows(contract.test_rows)
            dataset = dataset.normalised(contract.normalise)
            same("classes", contract.classes, dataset.classes)
            public = self._public(contract, dataset)
            own = Own(
                contract, public, method, dataset, own_share(contract, dataset), self._builder, self.vendor.device
            )
            facts = own.facts(self.vendor.architecture)
            self._check(contract, method, facts)
            if (notice := own.trial.notice("this node")) is not None:
                self.events.add("notice", text=notice.text, remedy=notice.remedy)
            self._own, self._facts, self._session = own, facts, None
        return self._told(self._facts)

    def _check(self, contract: Contract, method: Method, facts: Facts) -> None:
        """Refuse a contract that the node's facts do not fit; its own names of classes are told to its vendor alone."""
        try:
            check_facts(contract, method, self._told(facts))
        except JoinError as error:
            if error.field != CLASS_NAMES:
                raise
            raise JoinError(error.field, error.expected, error.found, aside=self._own_names()) from None

    def _own_names(self) -> str:
        return f". This node's own: {', '.join(self._dataset.class_names)}"

    def _public(self, contract: Contract, dataset: Dataset) -> Dataset | None:
        """The public data that the contract names, as the vendor has it."""
        if not contract.public_data:
            return None
        public = self.vendor.data.load_public(self.vendor.folder)
        if public is None:
            raise JoinError("public data", contract.public_data, "none; the vendor's file can name it, [data] public")
        same("rows of the public data", contract.public_digest, rows_digest(public))
        if shape_text(public.shape) != shape_text(dataset.shape):  # the shape of its own samples is the node's affair
            raise JoinError("shape of the public data", "that of the node's samples", shape_text(public.shape))
        return public.normalised(contract.normalise).to(self.vendor.device)

    def _told(self, facts: Facts) -> Facts:
        """What the coordinator may know of it."""
        return facts if self.vendor.model.public else facts.model_copy(update={"shapes": None})

    def _begin(self, begin: Begin) -> Iterator[tuple[Envelope, Payload]]:
        own = self._own
        if own is None:
            raise RefusedError("the coordinator began before it offered a contract", retry=True)
        session = self._session
        if session is None or session.attempt != begin.attempt:
            folder = self.vendor.state_folder / own.contract.run
            try:
                secret = _secret(folder)
                _remember(
                    folder,
                    RunFile(
                        attempt=begin.attempt,
                        client=begin.client,
                        data=self._dataset.digest,
                        contract=own.contract,
                        clients=begin.clients,
                        d=begin.d,
                    ),
                )
            except JoinError as error:
                yield self._refusal(error)
                raise RefusedError(f"this node refused: {error}") from error
            dims = dims_of(own.contract, begin.clients, begin.d)
            setup = own.hosted(self._facts.profile(begin.client), dims, secret)
            self._session = Session(self.vendor, setup, begin, folder, self.audit, self.events)
            self.events.add("begins", run=own.contract.run, attempt=begin.attempt, client=begin.client)
        yield self._leaving(Outgoing(Ready(attempt=begin.attempt)))

    def close(self) -> None:
        """Give the files back."""
        self.audit.close()
        self._lock.release()


def _secret(folder: Path) -> int:
    """What only this node knows in a run. Kept on its disk: after a restart it draws the same again.

    Raises:
        JoinError: the run began with one that is not there any more; or the disk is full or broken.
    """
    path = folder / "secret"
    with _room():
        if not path.exists():
            if (folder / RUN_FILE).exists():  # another one would give every sample a second report
                raise JoinError("state", "the secret that the run began with", "none")
            _write(path, secrets.token_bytes(BYTES_OF_SECRET))
        found = path.read_bytes()
    if len(found) != BYTES_OF_SECRET:
        raise JoinError("state", f"a secret of {BYTES_OF_SECRET} bytes", f"one of {len(found)}")
    return int.from_bytes(found, "little")


def _remember(folder: Path, now: RunFile) -> None:
    """Write down how far the coordinator is.

    Raises:
        JoinError: it was further already, or the run began with other data; or the disk is full or broken.
    """
    path = folder / RUN_FILE
    if path.exists():
        try:
            before = RunFile.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise JoinError("state", "what the node remembers of the run", f"{path.name} that cannot be read") from None
        if now.attempt < before.attempt:
            raise JoinError("attempt", f"{before.attempt} or later", f"stale attempt {now.attempt}")
        same("client number", before.client, now.client)
        if now.data != before.data:
            raise JoinError("data", "those that the run began with", "others")
    with _room():
        _write(path, now.model_dump_json().encode())


@contextmanager
def _room() -> Iterator[None]:
    """Errors of the disk, without their text, which is the node's own."""
    try:
        yield
    except (OSError, RunError):
        raise JoinError("disk", "room for the node's state", "none; its log says more") from None


def _write(path: Path, content: bytes) -> None:
    """Write a file that is nobody else's to read, so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


class Session:
    """An attempt of a run at a node: carries out each call once, keeps its answer until the next, saves and loads."""

    def __init__(
        self, vendor: Vendor, setup: NodeSetup, begin: Begin, folder: Path, audit: Audit, events: Events
    ) -> None:
        self.attempt, self.client = begin.attempt, begin.client
        self._vendor, self._setup, self._folder, self._audit, self._events = vendor, setup, folder, audit, events
        self._host = Host(setup, owns=True, lends=True)
        self._done = self._ended = 0
        self._kept: Outgoing | None = None
        self._saved: str | None = None
        self._round = 0
        self._deployed: set[tuple[str, str]] = set()
        self._noise = np.random.default_rng(secrets.randbits(256))  # nobody else can derive it
        self._rounding = torch.Generator().manual_seed(secrets.randbits(63))

    def carry_out(self, asked: Call | Order, payload: Payload) -> Outgoing:
        """Do what is asked, or send again what was answered before."""
        failed = Reply if isinstance(asked, Call) else Done
        if self._kept is not None and self.has_answered(asked):
            return self._kept
        if asked.attempt != self.attempt or asked.number != self._done + 1:
            self._events.add("refused", what=asked.kind, attempt=asked.attempt, number=asked.number, reason="stale")
            return Outgoing(failed(attempt=asked.attempt, number=asked.number, failure="stale"))
        if asked.ended > self._ended:
            self._end_round()
        self._done, self._ended, self._kept = asked.number, asked.ended, None
        self._kept = self._call(asked, payload) if isinstance(asked, Call) else Outgoing(self._order(asked))
        return self._kept

    def has_answered(self, asked: Call | Order) -> bool:
        """Whether this was the last to be answered; the answer is kept."""
        return self._kept is not None and (asked.attempt, asked.number) == (self.attempt, self._done)

    def _end_round(self) -> None:
        self._deployed.clear()
        self._host.end_round()

    def cancel(self, asked: Cancel) -> None:
        """Undo the last call; one that never came is not to be carried out any more."""
        if asked.attempt == self.attempt and asked.number == self._done + 1:
            self._done, self._kept = asked.number, None
        elif asked.attempt == self.attempt and asked.number == self._done and self._kept is not None:
            self._kept = None
            self._events.add("undone", number=asked.number, reason="its reply came too late")
            with self._host.working():
                self._host.undo([self.client])

    def _call(self, call: Call, payload: Payload) -> Outgoing:
        handler = self._allowed(call)
        if handler is None:
            return self._failed(
                call, "not-allowed", f"{call.program}.{call.handler} is nothing that may run under {call.heading} now"
            )
        limits, contract = self._vendor.limits, self._setup.contract
        if call.round > min(contract.rounds, limits.rounds or contract.rounds):
            return self._failed(call, "limit-rounds", f"round {call.round} is beyond what was agreed")
        try:
            message = self._read(handler, call, payload)
        except MessageError as error:
            return self._failed(call, "bad-message", str(error))
        if call.heading == "evaluation" and handler.declaration.reply_type is None:
            self._deployed.add((call.program, call.handler))
        self._round = call.round
        with self._host.working():
            answer = self._host.run(_request(call), self.client, message)
        if isinstance(answer.reply, Failure):
            return self._failed(call, "handler-error", answer.reply.reason)
        return self._reply(call, handler, answer, answer.reply)

    def _allowed(self, call: Call) -> Handler[Message | None, Message | None] | None:
        """The handler, where the contract has it and the call is under a heading of its program.

        The peer writes the heading, and the host trusts it: under evaluation, what a method's handler gets is kept
        until the evaluation ends. So such a handler has no reply, and gets one message.
        """
        programs = self._setup.programs_of(self.client)
        program = programs.get(call.program)
        if program is None or call.handler not in handlers(type(program)):
            return None
        found: Handler[Message | None, Message | None] = getattr(program, call.handler)
        if isinstance(program, Evaluation):
            allowed = call.heading == "evaluation" and call.handler in EVALUATION[self._setup.contract.evaluation]
        elif call.heading == "evaluation":
            again = (call.program, call.handler) in self._deployed
            allowed = found.declaration.reply_type is None and not again
        else:
            allowed = call.heading in ("start", "training")
        return found if allowed else None

    def _read(self, handler: Handler[Message | None, Message | None], call: Call, payload: Payload) -> Message | None:
        expected, setup = handler.declaration.message_type, self._setup
        if (expected is not None) != call.message:
            raise MessageError(call.handler, "(whole)", str(expected), "a message" if call.message else "none")
        if expected is None:
            return None
        limits = Limits(max_bytes=self._vendor.limits.message_bytes)
        codecs = _request(call).codecs(setup.codecs)
        return decode(payload, expected, setup.dims, setup.profile.keys, limits, codecs)

    def _reply(
        self, call: Call, handler: Handler[Message | None, Message | None], answer: Answer, reply: Message | None
    ) -> Outgoing:
        payload: Payload = b""
        content: Mapping[str, Any] = {}
        if reply is not None:
            limits, codecs = self._vendor.limits, _request(call).codecs(self._setup.codecs)
            if limits.noise and not isinstance(handler.program, Evaluation):
                reply = rounded(disturbed(reply, limits.noise, self._noise), codecs, self._rounding)
            payload, content = encoded(reply, codecs), described(reply)
            sent = self._audit.sent(self._setup.contract.run)
            if limits.bytes is not None and sent + len(payload) > limits.bytes:
                return self._failed(call, "limit-bytes", f"{sent} of {limits.bytes} bytes are sent already")
        done = Reply(
            attempt=call.attempt, number=call.number, seconds=answer.seconds, steps=answer.steps,
            left_out=answer.left_out, message=reply is not None,
        )  # fmt: skip
        return Outgoing(done, payload, content)

    def _failed(self, call: Call, code: Code, reason: str) -> Outgoing:
        self._events.add("failed", code=code, handler=call.handler, round=call.round, reason=reason)
        return Outgoing(Reply(attempt=call.attempt, number=call.number, failure=code))

    def _order(self, order: Order) -> Done:
        done = Done(attempt=order.attempt, number=order.number)
        try:
            if order.do == "save":
                record = self._save(order)
                return done.model_copy(update={"digest": record.sha256, "bytes": record.bytes}) if record else done
            self._load(order)
            return done
        except (RunError, OSError) as error:
            self._events.add("failed", order=order.do, reason=error)
            code: Code = "disk" if order.do == "save" else "wrong-state"
            return done.model_copy(update={"failure": code})

    def _save(self, order: Order) -> FileRecord | None:
        """Write the owned state under its digest, if it changed; forget those that nobody can ask for again."""
        record = self._host.save(self._folder / "saving.safetensors")
        self._audit.sync()
        if record is not None:
            (self._folder / record.name).replace(self._folder / f"{record.sha256}.safetensors")
            self._saved = record.sha256
        sync_folder(self._folder)
        for file in self._folder.glob("*.safetensors"):
            if file.stem not in order.keep and file.stem != self._saved:
                file.unlink()
        if self._saved is not None:
            known = {digest: at for digest, at in states_of(self._folder).items() if digest in order.keep}
            now = StatesFile(rounds=known | {self._saved: self._round})
            _write(self._folder / STATES_FILE, now.model_dump_json().encode())
        return record

    def _load(self, order: Order) -> None:
        self._saved = order.digest
        self._end_round()
        parts: dict[ClientId, Part] = {}
        if order.digest is not None:
            path = self._folder / f"{order.digest}.safetensors"
            if not path.is_file():
                raise RunError(f"there is no saved state {order.digest[:16]}")
            FileRecord(path.name, path.stat().st_size, order.digest).check(self._folder)
            parts[self.client] = open_pack(path)[part_of(self.client)]
        self._host.restore(parts)
        self._events.add("goes back", digest=order.digest or "beginning")


def states_of(folder: Path) -> dict[str, int]:
    """After which round each state that lies in a run's folder was taken, by its digest; of older states it is not
    known.

    Raises:
        RunError: the file that says so cannot be read.
    """
    path = folder / STATES_FILE
    try:
        return StatesFile.model_validate_json(path.read_bytes()).rounds if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _request(call: Call) -> Request:
    return Request(
        call.program, call.handler, call.heading, call.round, call.index, call.recoverable, undoable=call.recoverable
    )
