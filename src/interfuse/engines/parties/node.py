"""A node: one client beside its own data and model, and what it answers to a coordinator."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from filelock import FileLock, Timeout

from interfuse.data import Dataset
from interfuse.data.inputs import shape_text
from interfuse.engines.allocator import keep_freed_memory, share_heaps
from interfuse.engines.parties.audit import Audit, Signer
from interfuse.engines.parties.contract import (
    CLASS_NAMES,
    LIBRARY,
    WIRE,
    Contract,
    Facts,
    JoinError,
    check_facts,
    check_messages,
    method_of,
    rows_digest,
    same,
)
from interfuse.engines.parties.digests import Digested
from interfuse.engines.parties.forecast import Forecast
from interfuse.engines.parties.frames import (
    PROTOCOL,
    Accept,
    Begin,
    Call,
    Cancel,
    Envelope,
    Hello,
    Incoming,
    Offer,
    Order,
    Payload,
    Ready,
    Refusal,
)
from interfuse.engines.parties.keeping import RunFile, begin_answers, remember, runs_in, secret_of
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.session import Outgoing, Session
from interfuse.engines.parties.setups import Holdings, Own, dims_of, vendors_own
from interfuse.engines.parties.stopwatch import Stopwatch
from interfuse.engines.parties.vendor import Vendor
from interfuse.errors import ConfigError, InterfuseError, RunError
from interfuse.federation import check_codecs
from interfuse.method import Method
from interfuse.opening import check_place
from interfuse.setup import check_device
from interfuse.wire import Codecs

Tap = Callable[[Envelope, Payload], None]


class RefusedError(InterfuseError):
    """Either side refused to go on; ``retry`` says whether it may work later."""

    def __init__(self, text: str, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


class Node:
    """Answers a coordinator's envelopes one after the other, and lets nothing leave that its vendor does not allow.

    What leaves passes :meth:`answer` and is in the audit log before.
    """

    def __init__(
        self,
        vendor: Vendor,
        events: Events,
        tap: Tap = lambda envelope, payload: None,
        signer: Signer | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        """Load data and model of a vendor.

        Args:
            tap: Sees everything that leaves.
            signer: The node's key, for the audit log.
            holdings: What it has, where that is not what the vendor's file names.

        Raises:
            InterfuseError: something of the vendor's file cannot work, or another process is this node already.
        """
        check_device(vendor.device)
        vendor.limits.check_names(vendor.allow.methods)
        keep_freed_memory()
        share_heaps()
        self.vendor, self.events, self._tap = vendor, events, tap
        vendor.state_folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(vendor.state_folder / ".lock")
        try:
            check_place(vendor.state_folder / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{vendor.state_folder} is in use: another process is node {vendor.name}") from None
        except OSError as error:
            raise RunError(f"cannot use {vendor.state_folder}: {error.strerror}") from error
        self.audit = Audit(vendor.state_folder / "audit.jsonl", vendor.name, signer, runs_in(vendor.state_folder))
        if self.audit.gap:
            events.add("the audit log is not as it was left", reason=self.audit.gap)
        self._holdings = holdings or vendors_own(vendor)
        self._dataset: Dataset = self._holdings.dataset.to(vendor.device)
        self._incarnation = secrets.token_hex(8)
        self._own: Own | None = None
        self._run: str | None = None
        self._session: Session | None = None

    def hello(self) -> tuple[Envelope, Payload]:
        """What a stream begins with."""
        hello = Hello(
            protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name=self.vendor.name, incarnation=self._incarnation
        )
        return self._leaving(Outgoing(hello))

    def answer(self, envelope: Envelope, payload: Incoming) -> Iterator[tuple[Envelope, Payload]]:
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
            yield from self._sent(self._session.carry_out(envelope, payload), repeated)
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
        with self._written():
            line = self.audit.add(run, outgoing.envelope, outgoing.payload, outgoing.content, repeated)
        if isinstance(outgoing.payload, Digested):
            outgoing.payload.known = partial(self._digest_known, run, line)
        self._tap(outgoing.envelope, outgoing.payload)
        return outgoing.envelope, outgoing.payload

    def _sent(self, outgoing: Outgoing, repeated: bool) -> Iterator[tuple[Envelope, Payload]]:
        """What is answered, until all of it was taken."""
        envelope, payload = self._leaving(outgoing, repeated)
        try:
            yield envelope, payload
        finally:
            if isinstance(payload, Digested):
                payload.finish()

    def _digest_known(self, run: str, line: int, digest: str) -> None:
        assert self._session is not None  # its answer is what leaves
        with self._written():
            self._session.digest_known(digest)
            self.audit.add_digest(run, line, digest)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """The block in which what leaves is written down.

        Raises:
            RunError: it cannot be, so it must not leave.
        """
        try:
            yield
        except OSError as error:
            self.events.add("the audit log cannot be written; nothing leaves", reason=error.strerror)
            raise RunError(f"the audit log cannot be written: {error.strerror}; nothing may leave") from error

    def _offered(self, contract: Contract) -> Iterator[tuple[Envelope, Payload]]:
        try:
            facts = self._agree(contract)
        except JoinError as error:
            yield self._refusal(error)
            raise RefusedError(f"this node refused: {error}") from error
        except Exception as error:  # of the vendor's model, too, which is built here; the text is the vendor's own
            self.events.add("refused", field="configuration", reason=error)
            words = "a node that can take part", "a fault on its side; its log says which"
            yield self._leaving(Outgoing(Refusal(field="configuration", expected=words[0], found=words[1])))
            raise RefusedError(f"this node cannot take part: {error}") from error
        self.events.add("agreed", run=contract.run, method=contract.method, rounds=contract.rounds)
        yield self._leaving(Outgoing(Accept(facts=facts)))

    def misnamed(self, found: Sequence[str]) -> tuple[Envelope, Payload]:
        """What is told to a coordinator whose certificate is not for the name that was dialled."""
        names, dialled = ", ".join(found)[:300], self.vendor.coordinator.rpartition(":")[0][:300]
        return self._refusal(JoinError("name in the coordinator's certificate", dialled, names))

    def _refusal(self, error: JoinError) -> tuple[Envelope, Payload]:
        what = {"field": error.field, "expected": error.expected, "found": error.found}
        self.events.add("refused", **what)
        return self._leaving(Outgoing(Refusal.model_validate(what)))

    def _agree(self, contract: Contract) -> Facts:
        same("library version", contract.library, LIBRARY)
        same("wire version", contract.wire, WIRE)
        self._check_run(contract.run)
        self.vendor.check(contract)
        method = method_of(contract)
        try:
            codecs = Codecs.parse(contract.codecs)
            check_codecs(codecs, method)
        except ConfigError as error:
            raise JoinError("codecs", "those that the method's messages can have", str(error)[:300]) from error
        self.vendor.limits.check_method(method, contract)
        self.vendor.limits.check_codecs(codecs, method)
        if self._own is None or contract != self._own.contract:
            dataset = self._dataset
            if contract.evaluation == "shared":
                dataset = dataset.with_test_rows(contract.test_rows)
            dataset = dataset.normalised(contract.normalise)
            same("classes", contract.classes, dataset.classes)
            public = self._public(contract, dataset)
            share, builder = self._holdings.share(contract, dataset), self._holdings.builder
            own = Own(contract, public, method, dataset, share, builder, self.vendor.device)
            facts = own.facts(self.vendor.architecture)
            self._check(contract, method, facts)
            check_messages(contract, facts, contract.message_bytes, "--largest of the coordinator")
            check_messages(contract, facts, self.vendor.limits.message_bytes, "[limits] message_bytes")
            self.vendor.limits.check_calls(method, facts.samples)
            if (notice := own.trial.notice("this node")) is not None:
                self.events.add("notice", text=notice.text, remedy=notice.remedy)
            self._own, self._facts, self._session = own, facts, None
            self._forecast = Forecast(self.vendor.limits.bytes, contract.rounds)
        return self._told(self._facts)

    def _check_run(self, run: str) -> None:
        """Refuse a run beside the one that this process has begun, and one more than the vendor lets begin: what is
        counted, and the secret, are a run's, and its name is the coordinator's word.

        Raises:
            JoinError: it is such a one.
        """
        if self._run is not None:
            same("name of the run", run, self._run)
        limit, begun = self.vendor.limits.runs, set(runs_in(self.vendor.state_folder))
        if limit is not None and len(begun | {run}) > limit:
            raise JoinError("number of runs", f"at most {limit}", str(len(begun | {run})))

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
        public = self._holdings.public()
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
                self._check_run(own.contract.run)
                self._check_begin(own.contract, begin)
                self._run = own.contract.run
                secret = secret_of(folder)
                begin_answers(folder)
                remember(
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
            watch = Stopwatch(self.vendor.limits.seconds)
            setup = own.hosted(self._facts.profile(begin.client), dims, secret, watch)
            self._forecast.begin_again()
            self._session = Session(self.vendor, setup, begin, folder, self.audit, self.events, self._forecast)
            self.events.add("begins", run=own.contract.run, attempt=begin.attempt, client=begin.client)
        yield self._leaving(Outgoing(Ready(attempt=begin.attempt)))

    def _check_begin(self, contract: Contract, begin: Begin) -> None:
        """Refuse sizes of a run that are not its own: messages are checked against them."""
        if begin.client >= begin.clients:
            raise JoinError("client number", f"below {begin.clients}", str(begin.client))
        if begin.d not in (None, self._facts.fusion_width):
            raise JoinError("fusion width", f"{self._facts.fusion_width}, or none in common", str(begin.d))

    def close(self) -> None:
        """Give the files back."""
        try:
            self.audit.close()
        finally:
            self._lock.release()
