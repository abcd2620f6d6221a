"""What is written down: events for operators, and the audit log of everything that left a node."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interfuse.engines.parties.frames import Envelope, Payload
from interfuse.errors import RunError
from interfuse.messages import Message, flatten, kind_of
from interfuse.wire import Pieces

START = "0" * 64
"""What the first line of an audit log names as the line before it."""


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Events:
    """A structured log: a JSON object a line, flushed, and the same in words for whoever looks on."""

    def __init__(self, path: Path | None, show: Callable[[str], None]) -> None:
        self._show = show
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None if path is None else open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def add(self, event: str, **facts: Any) -> None:
        """Write an event and its facts. A full disk does not stop who wanted to say so."""
        words = " ".join(f"{name}={value}" for name, value in facts.items() if value not in (None, ""))
        self._show(f"{event} {words}".strip())
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"time": now(), "event": event} | facts, default=str) + "\n")
            self._file.flush()
        except OSError as error:
            self._show(f"the log cannot be written: {error.strerror}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Audit:
    """An append-only log of what left: each line holds the SHA-256 of the line before it.

    A line that was changed or taken out breaks the chain (:func:`verify`). Cutting lines off the end does not: note
    the last digest elsewhere from time to time.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, and go on with its chain.

        Raises:
            RunError: it cannot be read or written, or its chain is broken.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._last, self._sent, _ = _read(path)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise RunError(f"cannot open the audit log {path}: {error.strerror}") from error

    def sent(self, run: str) -> int:
        """Bytes of messages that left for a run, over all processes that wrote this log."""
        return self._sent.get(run, 0)

    def add(self, run: str, envelope: Envelope, payload: Payload, content: Mapping[str, Any], repeated: bool) -> None:
        """Write what is about to leave.

        Args:
            content: The payload in words (:func:`described`).
            repeated: The same left before; it is written again, but counts once.

        Raises:
            OSError: it cannot be written, so it must not leave.
        """
        facts = envelope.model_dump(mode="json", exclude={"size"}, exclude_none=True)
        line: dict[str, Any] = {
            "time": now(), "run": run, "what": envelope.kind, "facts": facts, "bytes": len(payload),
            "digest": _digest(payload), "repeated": repeated, **content,
        }  # fmt: skip
        text = json.dumps(line | {"before": self._last})
        self._file.write(text + "\n")
        self._file.flush()  # a killed process loses nothing; the disk is waited for when state is saved
        self._last = hashlib.sha256(text.encode()).hexdigest()
        if not repeated:
            self._sent[run] = self.sent(run) + len(payload)

    def sync(self) -> None:
        """Wait for the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _digest(payload: Payload) -> str:
    found = hashlib.sha256()
    for part in Pieces.of(payload).parts:
        found.update(part)
    return found.hexdigest()


def described(message: Message) -> dict[str, Any]:
    """A message in words: its kind, and names, types and shapes of its tensors."""
    shapes = {
        name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape] for name, tensor in flatten(message).items()
    }
    return {"message": kind_of(message), "tensors": shapes}


def verify(path: Path) -> int:
    """Check the chain of an audit log; returns its number of lines.

    Raises:
        RunError: it cannot be read, or a line was changed or taken out; names the line.
    """
    try:
        return _read(path)[2]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path) -> tuple[str, dict[str, int], int]:
    """The digest of the last line, the bytes that left by run, and the number of lines.

    A last line that was cut off is taken away.
    """
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        os.truncate(path, len(text.encode()))
    last, number = START, 0
    sent: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = _entry(line)
        if entry.get("before") != last:
            raise RunError(f"{path}, line {number}: the chain is broken: a line before it was changed or taken out")
        last = hashlib.sha256(line.encode()).hexdigest()
        if not entry["repeated"]:
            sent[entry["run"]] = sent.get(entry["run"], 0) + entry["bytes"]
    return last, sent, number


def _entry(line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
