"""The audit log: all that left a node, in lines that are chained, signed by the node's key, and anchored outside.

A line holds the SHA-256 of the line before it and a signature of itself. It stands there before any of its message
leaves. The digest of a large message, which is worked out on its way, is a line of its own, for which the last piece
waits. How many lines there are, the digest of the last one, and the bytes that left for each run lie in
``audit.json``, which is written when the disk has the log: a log that was cut before that, exchanged or taken away is
noticed, and gives no budget back. Lines behind it say themselves what left. The coordinator keeps a mark of the log
with every commit: a vendor that makes log and anchor anew has another one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from interfuse.engines.parties.digests import Digested, digest_of
from interfuse.engines.parties.frames import CHUNK, Envelope, Payload
from interfuse.engines.parties.keeping import put
from interfuse.engines.parties.logs import now
from interfuse.engines.parties.words import Digest
from interfuse.errors import RunError
from interfuse.opening import add_whole, content, opened, to_add_to
from interfuse.wire.sealed import seal_of, sealed

NOTHING = digest_of(b"")
"""The digest of no payload."""
START = "0" * 64
"""What the first line names as the line before it."""
ANCHOR_FILE = "audit.json"
LONGEST = 1 << 24
"""Bytes of a line at most: the shapes of all tensors of a model stand in it."""
KEY, GAP, DIGEST = "key", "gap", "digest"
"""Lines that the log itself writes: by whose key lines from there on are signed; that lines before it are missing; the
digest of a payload whose line says that it began to leave."""

_SIGNATURE = b', "signature": "'
_ABOUT = b"interfuse audit log, line:\n"
"""Stands before what is signed, so that a signature of anything else is none of this."""


class Signer(Protocol):
    """A node's key."""

    @property
    def certificate(self) -> bytes:
        """PEM, of the key's public part and the node's name."""

    def sign(self, data: bytes) -> str:
        """A signature as text."""


Check = Callable[[bytes, str, bytes], bool]
"""Whether a signature is that of data by the key of a certificate: ``check(certificate, signature, data)``."""


class Anchor(BaseModel):
    """``audit.json``: what the node remembers of its log.

    Attributes:
        node: Whose it is.
        lines, head: How many lines there are, and the digest of the last one.
        sent: Bytes of messages that left, by run.
    """

    model_config = ConfigDict(frozen=True)

    node: str = ""
    lines: Annotated[int, Ge(0)] = 0
    head: Digest = START
    sent: dict[str, Annotated[int, Ge(0)]] = {}

    @property
    def mark(self) -> str:
        """What a coordinator keeps of it."""
        return f"{self.lines}:{self.head}"


class Line(BaseModel):
    """A line of the log; what describes the payload stands beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    time: str
    run: str
    what: str
    facts: dict[str, Any]
    bytes: Annotated[int, Ge(0)]
    repeated: bool
    before: Digest
    digest: Digest | None = None


class Read(NamedTuple):
    """A line as it stands there. ``signed`` is what its signature is of, which is empty where it has none."""

    number: int
    line: Line
    digest: str
    signed: bytes
    signature: str


class Audit:
    """An append-only log of what left.

    Attributes:
        gap: How it was found otherwise than it was left; empty where it was not.
    """

    def __init__(self, path: Path, node: str, signer: Signer | None = None, runs: Sequence[str] = ()) -> None:
        """Open the log, and go on with its chain. Where lines are missing, that is its next line.

        Args:
            signer: Signs lines; None: they are chained and anchored alone.
            runs: Those that the node has begun.

        Raises:
            RunError: it cannot be read or written, a line was changed, it is signed and there is no key to go on with,
                or nothing says any more what left.
        """
        self._path, self._signer, self.gap = path, signer, ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (anchor, lost), found = _anchor_or_why_not(path), Anchor(node=node)
            if anchor is not None and anchor.node != node:
                raise RunError(f"{path.with_name(ANCHOR_FILE)} is of node {anchor.node!r}, and this one is {node!r}")
            missing = anchor is not None and anchor.lines > 0
            certificate, unfinished = "", 0
            sent, behind = dict[str, int](), dict[str, int]()
            if os.path.lexists(path):
                unfinished = _unfinished(path)
                for one in lines(path):
                    found = found.model_copy(update={"lines": one.number, "head": one.digest})
                    certificate = _named(one.line) or certificate
                    for counted in (sent,) if missing else (sent, behind):
                        if one.line.bytes and not one.line.repeated:
                            counted[one.line.run] = counted.get(one.line.run, 0) + one.line.bytes
                    missing = missing and found.mark != (anchor or found).mark
            if anchor is None and not found.lines and runs:
                raise RunError(
                    f"{path} and {path.with_name(ANCHOR_FILE)} are gone or empty, so what left for {', '.join(runs)} "
                    "is not known any more, nor what may still leave: put one of them back, or take the folders of "
                    "these runs away to end this node's part in them"
                )
            known = {} if anchor is None else anchor.sent
            most = {run: max(sent.get(run, 0), known.get(run, 0) + behind.get(run, 0)) for run in {*sent, *known}}
            if certificate and signer is None:
                raise RunError(
                    f"{path} is signed, and lines without a signature would count as forged: start the node with its "
                    "key, or name another state folder"
                )
            self._file = to_add_to(path)
            if unfinished:
                self._file.truncate(self._file.seek(0, os.SEEK_END) - unfinished)
        except OSError as error:
            raise RunError(f"cannot open the audit log {path}: {error.strerror}") from error
        self.anchor = found.model_copy(update={"sent": most})
        mine = "" if signer is None else signer.certificate.decode()
        try:
            if not found.lines and anchor is None and not lost:
                self._write_anchor()  # a first line without it would look as if it had been taken away
            if mine != certificate:
                self._write("", KEY, {"certificate": mine})
            if missing and anchor is not None:
                self._write("", GAP, {"lines": anchor.lines, "head": anchor.head})
                self.gap = f"of {anchor.lines} lines that were written some are gone or changed"
            elif lost or (anchor is None and found.lines and certificate):
                reason = lost or f"{ANCHOR_FILE} is gone"
                self._write("", GAP, {"lines": found.lines, "head": "", "reason": reason})
                self.gap = reason
            self.sync()
        except OSError as error:
            self._file.close()
            raise RunError(f"cannot write the audit log {path}: {error.strerror}") from error

    def sent(self, run: str) -> int:
        """Bytes of messages that left for a run, over all processes of this node, whatever became of the log."""
        return self.anchor.sent.get(run, 0)

    def add(
        self,
        run: str,
        envelope: Envelope,
        payload: Payload,
        content: Mapping[str, Any],
        repeated: bool,
    ) -> int:
        """Write what is about to leave; returns the number of the line.

        Args:
            content: The payload in words (:func:`.logs.described`).
            repeated: The same left before; it is written again, but counts once.

        Raises:
            OSError: it cannot be written, so it must not leave.
        """
        facts = envelope.model_dump(mode="json", exclude={"size"}, exclude_none=True)
        digest = payload.digest if isinstance(payload, Digested) else digest_of(payload)
        self._write(run, envelope.kind, facts, digest, len(payload), content, repeated)
        return self.anchor.lines

    def add_digest(self, run: str, line: int, digest: str) -> None:
        """Write the digest of a payload, once it is known, before the last of it leaves.

        Args:
            line: The number of the payload's own line.

        Raises:
            OSError: it cannot be written, so the rest must not leave.
        """
        self._write(run, DIGEST, {"line": line}, digest)

    def _write(
        self,
        run: str,
        what: str,
        facts: Mapping[str, Any],
        digest: str | None = NOTHING,
        length: int = 0,
        content: Mapping[str, Any] = {},
        repeated: bool = False,
    ) -> None:
        line: dict[str, Any] = {
            "time": now(),
            "run": run,
            "what": what,
            "facts": facts,
            "bytes": length,
            "digest": digest,
            "repeated": repeated,
            **(content or {}),
            "before": self.anchor.head,
        }
        text = json.dumps(line).encode()
        if self._signer is not None:
            text = text[:-1] + _SIGNATURE + self._signer.sign(_ABOUT + text).encode() + b'"}'
        add_whole(
            self._file, text + b"\n"
        )  # a killed process loses nothing; the disk is waited for when state is saved
        sent = dict(self.anchor.sent)
        if not repeated and length:
            sent[run] = self.sent(run) + length
        head = hashlib.sha256(text).hexdigest()
        self.anchor = Anchor(node=self.anchor.node, lines=self.anchor.lines + 1, head=head, sent=sent)

    def sync(self) -> None:
        """Wait until the disk has the log, and then its anchor, which is never ahead of it.

        Raises:
            OSError, RunError: the disk is full or broken.
        """
        os.fsync(self._file.fileno())
        self._write_anchor()

    def _write_anchor(self) -> None:
        put(self._path.with_name(ANCHOR_FILE), sealed(self.anchor.model_dump()).encode())

    def close(self) -> None:
        """Give the files back. A full disk is no error here: the anchor is then behind the log, as after a kill."""
        with suppress(OSError, RunError):
            self.sync()
        self._file.close()


def read_anchor(log: Path) -> Anchor | None:
    """What the node remembers of its log; None where there is nothing.

    Raises:
        RunError: it was changed.
    """
    path = log.with_name(ANCHOR_FILE)
    try:
        data = content(path, follow=False)
        if seal_of(data) is None:
            raise RunError("its digest is missing")
        return Anchor.model_validate_json(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (RunError, ValidationError) as error:
        raise RunError(f"{path} cannot be read: {str(error).splitlines()[0]}; put it back from a copy") from None


def _anchor_or_why_not(log: Path) -> tuple[Anchor | None, str]:
    """What the node remembers of its log, and why it cannot be read, where the log is there to go on with."""
    try:
        return read_anchor(log), ""
    except RunError:
        if not os.path.lexists(log):
            raise
        return None, f"{ANCHOR_FILE} cannot be read"


def _named(line: Line) -> str:
    """The certificate that a line names; empty where it names none, which takes no other back."""
    return str(line.facts.get("certificate", "")) if line.what == KEY else ""


def lines(log: Path) -> Iterator[Read]:
    """The whole lines of a log, whose chain is checked. Nothing is written.

    Raises:
        RunError: it cannot be read, or a line is none, or was changed or taken out; names the line.
    """
    before, number = START, 0
    try:
        with opened(log, follow=False) as file:
            while (text := file.readline(LONGEST + 1)).endswith(b"\n"):
                number, text = number + 1, text[:-1]
                one = _line(text, f"{log}, line {number}")
                if one.before != before:
                    raise RunError(
                        f"{log}, line {number}: the chain is broken: a line before it was changed or taken out"
                    )
                head, mark, tail = text.rpartition(_SIGNATURE)
                before = hashlib.sha256(text).hexdigest()
                signature = tail[:-2].decode("ascii", "replace") if mark else ""
                yield Read(number, one, before, _ABOUT + head + b"}" if mark else b"", signature)
            if len(text) > LONGEST:
                raise RunError(f"{log}, line {number + 1} is longer than a line of an audit log")
    except OSError as error:
        raise RunError(f"cannot read {log}: {error.strerror}") from error


def _line(text: bytes, place: str) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join((*map(str, first["loc"]), first["msg"]))
        raise RunError(f"{place} is no line of an audit log: {what}") from None


def _unfinished(log: Path) -> int:
    """Bytes of a last line that was cut off."""
    with opened(log, follow=False) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - LONGEST))
        tail = file.read()
        return len(tail) - tail.rfind(b"\n") - 1


@dataclass(frozen=True)
class Verified:
    """What a log was found to be.

    Attributes:
        node: Whose it is, as its anchor says; empty where there is none.
        certificates: By whose keys its lines are signed.
        unknown: What could not be checked, and why.
    """

    lines: int
    head: str
    node: str = ""
    certificates: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """As a coordinator keeps it."""
        return f"{self.lines}:{self.head}"


def verify(
    log: Path, check: Check | None = None, trusted: Callable[[bytes], None] | None = None, mark: str = ""
) -> Verified:
    """Check a log against itself, its signatures, the node's anchor and a coordinator's mark. Nothing is written.

    Args:
        check: Of signatures; None: they are not looked at.
        trusted: Raises where a certificate is of nobody who is known; the log then has to be signed. None: any that
            the log names will do.
        mark: What a coordinator has kept, ``LINES:DIGEST``; empty: nothing.

    Raises:
        RunError: a line was changed, taken out, added, has no digest or is not signed by the node, lines are missing,
            or the log is another one; names the line.
    """
    anchor, unknown = read_anchor(log), list[str]()
    wanted = {mark, "" if anchor is None else anchor.mark}
    passed = {Verified(0, START).mark}
    certificates: list[str] = []
    unsigned: list[int] = []
    without_digest: dict[str, None] = {}
    last, certificate = Verified(0, START), ""
    for number, line, digest, signed, signature in lines(log):
        place = f"{log}, line {number}"
        if line.digest is None and line.bytes <= CHUNK:
            raise RunError(f"{place} has no digest, which a message above {CHUNK} bytes alone has in a line of its own")
        if line.what == GAP:
            raise RunError(f"{place}: lines before it are missing: the node found so at {line.time}")
        if line.digest is None:
            without_digest[str(number)] = None
        elif line.what == DIGEST:
            without_digest.pop(str(line.facts.get("line")), None)
        if named := _named(line):
            certificate = named
            certificates.append(named)
            if trusted is not None:
                trusted(named.encode())
        if not certificate:
            unsigned.append(number)
        elif not signature:
            raise RunError(f"{place} is not signed, though lines before it are")
        elif check is not None and not check(certificate.encode(), signature, signed):
            raise RunError(f"{place}: its signature is not that of the node's key: it was changed, or another wrote it")
        last = Verified(number, digest)
        if last.mark in wanted:
            passed.add(last.mark)
    if anchor is None:
        unknown.append(f"{ANCHOR_FILE} is not there: whether lines at the end are missing, or all of it is another log")
    elif anchor.mark not in passed:
        raise RunError(f"{log} is not what the node wrote: {ANCHOR_FILE} has {anchor.lines} lines with another end")
    elif last.lines > anchor.lines:
        unknown.append(
            f"lines {anchor.lines + 1} to {last.lines} are behind {ANCHOR_FILE}, as while a node runs or when it was "
            "killed: whether further ones are missing"
        )
    if trusted is not None and not certificates:
        raise RunError(f"{log} is not signed, though a certificate or an authority was named")
    if mark and mark not in passed:
        raise RunError(f"{log} is not what the coordinator has a mark of: line {mark.partition(':')[0]} is another")
    if not mark:
        unknown.append("no coordinator's mark was given: whether log and anchor were made anew together")
    if unsigned:
        unknown.append(
            f"lines {unsigned[0]} to {unsigned[-1]} have no signature: an earlier version wrote them, or a node "
            "without keys"
        )
    if certificates and check is None:
        unknown.append("signatures: that needs cryptography")
    if certificates and trusted is None:
        unknown.append("no certificate or authority was given: whose keys these are")
    if without_digest:
        unknown.append(
            f"digests of what lines {', '.join(without_digest)} speak of: the node ended while that left, or runs"
        )
    if unfinished := _unfinished(log):
        unknown.append(f"the last {unfinished} bytes, a line that was cut off when the node was killed")
    node = "" if anchor is None else anchor.node
    return replace(last, node=node, certificates=tuple(certificates), unknown=tuple(unknown))
