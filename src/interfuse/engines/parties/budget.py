"""What a node has answered in a run so far, counted by itself: numbers in a call are the coordinator's."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Set
from pathlib import Path

from interfuse.engines.parties.frames import Call
from interfuse.engines.parties.limits import LimitsTable
from interfuse.engines.parties.permission import DeniedError
from interfuse.errors import RunError
from interfuse.opening import add_whole, content, to_add_to

EVALUATIONS = 4
"""Calls of a handler of the evaluation in one round: the curve, everything at the end, metrics."""
CALLS = 10
"""Calls of another handler in one round, where neither the vendor's file nor the method says how many."""

DIGITS = 32
"""Of a digest are written."""

_Handler = tuple[str, str, int]
"""Program, handler, round."""


class Budget:
    """Answers that left, by where in the run they were asked for and by their digests.

    The same answer to the same call costs nothing: it leaves with the same bits. Another one does, whatever made it
    another: a commit that the coordinator went back to, or another message. Each is a line of a file before it leaves.

    The disk is waited for when the node saves its state, and before an answer leaves that differs from an earlier one
    to the same call: without these lines a power cut would let such answers go unbounded.

    A large answer begins to leave before its digest is known, as a claim: a line without a digest, which counts as an
    answer of its own until the line with the digest takes its place.
    """

    def __init__(self, path: Path, limits: LimitsTable) -> None:
        """Go on with what the file says.

        Raises:
            RunError: it cannot be read, or is gone: without it, all calls would be given back.
        """
        self._path, self._limits = path, limits
        self._answers: dict[_Handler, dict[int, set[str]]] = {}
        try:
            data = content(path, follow=False)
            self._claim: tuple[Call, str] | None = None
            self._bytes = data.rfind(b"\n") + 1
            if self._bytes != len(data):  # killed while it wrote, or a full disk: that answer has not left
                with to_add_to(path) as file:
                    file.truncate(self._bytes)
            for line in data[: self._bytes].splitlines():
                self._note(line)
        except FileNotFoundError:
            raise RunError(f"{path}, which counts what left, is gone: put it back from a copy") from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path}, which counts what left, cannot be read: {error}") from error

    def _note(self, line: bytes) -> None:
        program, handler, round, index, digest, *claim = json.loads(line)
        there = self._answers.setdefault((program, handler, round), {}).setdefault(index, set())
        there.difference_update(claim)
        there.add(digest)

    def spend(self, call: Call, digest: str, most: int) -> None:
        """Count an answer that is about to leave.

        Args:
            most: How many calls of its handler may be answered in a round.

        Raises:
            DeniedError: it would be one too many.
            OSError: it cannot be written down, so it must not leave.
        """
        digest = digest[:DIGITS]
        if digest in self._calls(call).get(call.index, ()):
            return
        self._check(call, most)
        self._add(call, digest)

    def claim(self, call: Call, most: int) -> bool:
        """Count an answer that is about to leave whatever its digest is, which :meth:`settle` is told later. False:
        only the digest can say whether it may leave.

        Raises:
            OSError: as in :meth:`spend`.
        """
        try:
            self._check(call, most)
        except DeniedError:
            return False
        self._claim = call, f"claim {self._bytes}"
        self._add(*self._claim)
        return True

    def settle(self, digest: str) -> None:
        """The digest of the answer that was claimed last is known.

        Raises:
            OSError: as in :meth:`spend`.
        """
        if self._claim is not None:
            call, claim = self._claim
            self._claim = None
            self._add(call, digest[:DIGITS], claim)

    def _calls(self, call: Call) -> Mapping[int, Set[str]]:
        """Digests of answers to the calls of a handler in a round."""
        return self._answers.get((call.program, call.handler, call.round), {})

    def _check(self, call: Call, most: int) -> None:
        """Refuse an answer that is none of those that left to a call.

        Raises:
            DeniedError: it would be one too many.
        """
        calls = self._calls(call)
        there = calls.get(call.index, ())
        if call.index not in calls and len(calls) >= most:
            raise DeniedError("limit-calls", f"{most} calls of {call.handler} were answered in round {call.round}")
        if len(there) >= self._limits.answers:
            reason = f"{len(there)} different answers left to call {call.index} of {call.handler}, round {call.round}"
            raise DeniedError("limit-calls", reason)

    def sync(self) -> None:
        """Wait until the disk has all lines.

        Raises:
            OSError: the disk is full or broken.
        """
        with to_add_to(self._path) as file:
            os.fsync(file.fileno())

    def _add(self, call: Call, *digests: str) -> None:
        line = json.dumps([call.program, call.handler, call.round, call.index, *digests]).encode()
        self._write(line + b"\n", durable=bool(self._calls(call).get(call.index)))
        self._note(line)

    def _write(self, line: bytes, *, durable: bool) -> None:
        if not self._path.exists() or self._path.stat().st_size < self._bytes:  # a new one would give calls back
            raise OSError(errno.EIO, f"{self._path.name} was cut or taken away while the node ran")
        with to_add_to(self._path) as file:
            file.truncate(self._bytes)  # what is left of a line that was not written whole
            add_whole(file, line)
            if durable:
                os.fsync(file.fileno())
        self._bytes += len(line)
