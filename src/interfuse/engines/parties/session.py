"""An attempt of a run at a node: what it is asked for is carried out once, answered, saved and put back."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from interfuse.client import ClientId, part_of
from interfuse.clients import Answer, Failure, Request
from interfuse.engines.host import Host
from interfuse.engines.parties.audit import Audit
from interfuse.engines.parties.budget import CALLS, EVALUATIONS, Budget
from interfuse.engines.parties.digests import Digested, digest_of
from interfuse.engines.parties.forecast import Forecast
from interfuse.engines.parties.frames import (
    CHUNK,
    Begin,
    Call,
    Cancel,
    Code,
    Done,
    Envelope,
    Incoming,
    Order,
    Payload,
    Reply,
)
from interfuse.engines.parties.keeping import ANSWERS_FILE, BYTES_OF_SECRET, remember_state
from interfuse.engines.parties.limits import rows_of
from interfuse.engines.parties.logs import Events, described
from interfuse.engines.parties.permission import DeniedError, Permission
from interfuse.engines.parties.setups import NodeSetup
from interfuse.engines.parties.vendor import Vendor
from interfuse.errors import MessageError, RunError
from interfuse.evaluation import Evaluation
from interfuse.handler import Handler
from interfuse.messages import Message
from interfuse.messages.delivery import disturbed
from interfuse.messages.encoding import decode, encoded, rounded
from interfuse.method import Method
from interfuse.wire import Codecs, FileRecord, Limits, Part, Pieces, open_pack, sync_folder


class Outgoing(NamedTuple):
    """What leaves: an envelope, its payload, and the payload in words."""

    envelope: Envelope
    payload: Payload = b""
    content: Mapping[str, Any] = {}


class Session:
    """An attempt of a run at a node: carries out each call once, keeps its answer until the next, saves and loads."""

    def __init__(
        self,
        vendor: Vendor,
        setup: NodeSetup,
        begin: Begin,
        folder: Path,
        audit: Audit,
        events: Events,
        forecast: Forecast,
    ) -> None:
        self.attempt, self.client = begin.attempt, begin.client
        self._vendor, self._setup, self._folder, self._audit, self._events = vendor, setup, folder, audit, events
        self._host, self._forecast = Host(setup, owns=True, lends=True), forecast
        self._done = self._ended = 0
        self._kept: Outgoing | None = None
        self._saved: str | None = None
        self._round = 0
        self._permission = Permission(setup.programs_of(begin.client), setup.contract, vendor.limits)
        self._budget = Budget(folder / ANSWERS_FILE, vendor.limits)

    def carry_out(self, asked: Call | Order, payload: Incoming) -> Outgoing:
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
        self._permission.end_round()
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

    def _call(self, call: Call, payload: Incoming) -> Outgoing:
        try:
            handler = self._permission.granted(call)
            message = self._read(handler, call, payload)
        except DeniedError as error:
            return self._failed(call, error.code, str(error))
        except MessageError as error:
            return self._failed(call, "bad-message", str(error))
        self._round = call.round
        if call.heading == "training" and (
            said := self._forecast.begins(call.round, self._audit.sent(self._setup.contract.run))
        ):
            self._events.add("bytes will not do", text=said)
        watch = self._setup.watch
        watch.start()
        with self._host.working():
            answer = self._host.run(_request(call), self.client, message, watch.fit)
        if watch.over:
            return self._given_up(call)
        if isinstance(answer.reply, Failure):
            return self._failed(call, "handler-error", answer.reply.reason)
        try:
            return self._reply(call, handler, answer, answer.reply)
        except DeniedError as error:
            self._undo(call)
            return self._failed(call, error.code, str(error))
        except OSError as error:
            self._undo(call)
            return self._failed(call, "disk", f"what leaves cannot be counted: {error.strerror}")

    def _undo(self, call: Call) -> None:
        """Stand where it stood before a call that the coordinator takes for undone when it fails."""
        if call.recoverable:
            with self._host.working():
                self._host.undo([self.client])

    def _calls(self, handler: Handler[Any, Any]) -> int:
        """How many calls of a handler are answered in a round."""
        if not isinstance(handler.program, Method):
            return EVALUATIONS
        if self._vendor.limits.calls is not None:
            return self._vendor.limits.calls
        return handler.program.calls_of_a_round(self._setup.profile.samples).get(handler.name, CALLS)

    def _read(self, handler: Handler[Any, Any], call: Call, payload: Incoming) -> Message | None:
        expected, setup = handler.declaration.message_type, self._setup
        if (expected is not None) != call.message:
            raise MessageError(call.handler, "(whole)", str(expected), "a message" if call.message else "none")
        if expected is None:
            return None
        limits = Limits(max_bytes=self._vendor.limits.message_bytes)
        codecs = _request(call).codecs(setup.codecs)
        return decode(payload, expected, setup.dims, setup.profile.keys, limits, codecs)

    def _reply(self, call: Call, handler: Handler[Any, Any], answer: Answer, reply: Message | None) -> Outgoing:
        payload: Payload = b""
        content: Mapping[str, Any] = {}
        if reply is not None:
            codecs, measured = _request(call).codecs(self._setup.codecs), isinstance(handler.program, Evaluation)
            content = described(reply)
            payload = self._counted(call, self._protected(call, reply, codecs, measured=measured), self._calls(handler))
        done = Reply(
            attempt=call.attempt, number=call.number, seconds=answer.seconds, steps=answer.steps,
            left_out=answer.left_out, message=reply is not None,
        )  # fmt: skip
        return Outgoing(done, payload, content)

    def _counted(self, call: Call, payload: Pieces, most: int) -> Digested:
        """A reply once it is written down as one that leaves, with its digest: that of a large one is worked out on its
        way, where it may leave whatever it is, and :meth:`digest_known` is to be told.

        Raises:
            DeniedError: it may not leave.
            OSError: it cannot be written down, so it must not leave.
        """
        if len(payload) > CHUNK and self._budget.claim(call, most):
            return Digested(payload)
        digest = digest_of(payload)
        self._budget.spend(call, digest, most)
        return Digested(payload, digest)

    def digest_known(self, digest: str) -> None:
        """The digest of the reply that is leaving is known, and its last piece not away.

        Raises:
            OSError: it cannot be written down, so the rest must not leave.
        """
        self._budget.settle(digest)

    def _given_up(self, call: Call) -> Outgoing:
        """Where work stopped depends on the day, so the node stands where it did before the call, or where that is not
        known, where it was saved."""
        try:
            if call.recoverable:
                self._undo(call)
            elif call.heading != "evaluation":  # that changes nothing
                self._go_back(self._saved)
        except (RunError, OSError) as error:
            return self._failed(call, "wrong-state", str(error))
        return self._failed(call, "limit-seconds", f"more than {self._vendor.limits.seconds:g} seconds of work")

    def _protected(self, call: Call, reply: Message, codecs: Codecs, *, measured: bool) -> Pieces:
        """A reply as it may leave.

        Noise belongs to the answer: the same answer always leaves with the same noise, so that asking again and again
        does not average it out, and another one has another, so that two of them do not tell their difference.

        Raises:
            DeniedError: it may not leave.
        """
        limits, payload = self._vendor.limits, encoded(reply, codecs)
        if not measured:
            if limits.rows is not None and (rows := rows_of(reply)) > limits.rows:
                raise DeniedError("limit-rows", f"{rows} rows in one message, of {limits.rows} that may leave")
            if limits.noise:
                seed = noise_seed(self._setup.secret, call, digest_of(payload))
                noise, rounding = np.random.default_rng(seed), torch.Generator().manual_seed(seed >> 193)
                payload = encoded(rounded(disturbed(reply, limits.noise, noise), codecs, rounding), codecs)
        sent = self._audit.sent(self._setup.contract.run)
        if limits.bytes is not None and sent + len(payload) > limits.bytes:
            reason = f"{sent} of {limits.bytes} bytes are sent already; this message has {len(payload)}"
            raise DeniedError("limit-bytes", reason)
        return payload

    def _failed(self, call: Call, code: Code, reason: str) -> Outgoing:
        self._events.add("failed", code=code, handler=call.handler, round=call.round, reason=reason)
        return Outgoing(Reply(attempt=call.attempt, number=call.number, failure=code))

    def _order(self, order: Order) -> Done:
        done = Done(attempt=order.attempt, number=order.number)
        try:
            if order.do == "save":
                record = self._save(order)
                done = done.model_copy(update={"audit": self._audit.anchor.mark})
                return done.model_copy(update={"digest": record.sha256, "bytes": record.bytes}) if record else done
            self._go_back(order.digest)
            return done
        except (RunError, OSError) as error:
            self._events.add("failed", order=order.do, reason=error)
            code: Code = "disk" if order.do == "save" else "wrong-state"
            return done.model_copy(update={"failure": code})

    def _save(self, order: Order) -> FileRecord | None:
        """Write the owned state under its digest, if it changed; forget those that nobody can ask for again."""
        record = self._host.save(self._folder / "saving.safetensors")
        self._audit.sync()
        self._budget.sync()
        if record is not None:
            (self._folder / record.name).replace(self._folder / f"{record.sha256}.safetensors")
            self._saved = record.sha256
        sync_folder(self._folder)
        for file in self._folder.glob("*.safetensors"):
            if file.stem not in order.keep and file.stem != self._saved:
                file.unlink()
        if self._saved is not None:
            lost = remember_state(self._folder, self._saved, self._round, order.keep)
            if lost:
                self._events.add("rounds of earlier states are forgotten", reason=lost)
        return record

    def _go_back(self, digest: str | None) -> None:
        """Put a saved state in place; None: that before the first call.

        Raises:
            RunError: it is not there, or damaged.
        """
        self._saved = digest
        self._end_round()
        parts: dict[ClientId, Part] = {}
        if digest is not None:
            path = self._folder / f"{digest}.safetensors"
            if not path.is_file():
                raise RunError(f"there is no saved state {digest[:16]}")
            FileRecord(path.name, path.stat().st_size, digest).check(self._folder)
            parts[self.client] = open_pack(path)[part_of(self.client)]
        self._host.restore(parts)
        self._events.add("goes back", digest=digest or "beginning")


def noise_seed(secret: int, call: Call, digest: str) -> int:
    """256 bits for the noise on an answer, which nobody without the node's secret can derive."""
    key = secret.to_bytes(BYTES_OF_SECRET, "little")
    return int.from_bytes(hmac.digest(key, f"{call.program}.{call.handler} {digest}".encode(), "sha256"), "little")


def _request(call: Call) -> Request:
    return Request(
        call.program, call.handler, call.heading, call.round, call.index, call.recoverable, undoable=call.recoverable
    )
