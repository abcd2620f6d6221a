"""What is written down for operators, and messages in words. The audit log is in :mod:`.audit`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interfuse.engines.parties.words import printable
from interfuse.messages import Message, flatten, kind_of
from interfuse.opening import add_whole, to_add_to

LINE = 10_000
"""Characters of an event in words."""


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Events:
    """A structured log: a JSON object a line, flushed, and the same in words for whoever looks on."""

    def __init__(self, path: Path | None, show: Callable[[str], None]) -> None:
        self._show = show
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None if path is None else to_add_to(path)

    def add(self, event: str, **facts: Any) -> None:
        """Write an event and its facts. A full disk does not stop who wanted to say so."""
        words = " ".join(f"{name}={value}" for name, value in facts.items() if value not in (None, ""))
        self._show(printable(f"{event} {words}".strip(), LINE))
        if self._file is None:
            return
        try:
            line = json.dumps({"time": now(), "event": event} | facts, default=str)
            add_whole(self._file, line.encode() + b"\n")
        except OSError as error:
            self._show(f"the log cannot be written: {error.strerror}")

    def close(self) -> None:
        """Write no more; a thread whose stream ends after this only says so."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def described(message: Message) -> dict[str, Any]:
    """A message in words: its kind, and names, types and shapes of its tensors."""
    shapes = {
        name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape] for name, tensor in flatten(message).items()
    }
    return {"message": kind_of(message), "tensors": shapes}
