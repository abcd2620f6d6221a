"""Where clients at rest lie: in memory up to a number of bytes, and beyond it in a file."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from interfuse.errors import RunError
from interfuse.wire import Content, Part, Source

SLOT = 512
"""Bytes: places in the file are multiples of it, so that one that was given up fits what comes next."""
SHARE = 8
"""Of this many parts of the machine's memory clients at rest get one, unless it is said how much they get."""


@dataclass(frozen=True)
class Room:
    """Memory for what clients at rest own, in bytes over all workers, and the folder of the file beyond it.

    None: an eighth of the memory that is there; the folder for temporary files.
    """

    memory: int | None = None
    folder: Path | None = None

    def of_each(self, workers: int) -> Room:
        """What one of so many workers has of it."""
        memory = memory_there() // SHARE if self.memory is None else self.memory
        return Room(memory // workers, self.folder)


ROOM = Room()
"""Where nothing is said."""


def memory_there() -> int:
    """Bytes of memory of this machine, or as many as its control group leaves to this process."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return machine if text == "max" else min(machine, int(text))


class RestingFile:
    """A file without a name in which parts come and go. Nothing is left of it by a process that is killed.

    It is read and written, not mapped: pages of a map would count as memory of the process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._source: Source | None = None
        self._end = self._used = 0
        self._given_up: dict[int, list[int]] = defaultdict(list)

    def put(self, content: Content) -> Part:
        """Write something down.

        Raises:
            RunError: it cannot be written.
        """
        room = _slots(content.size)
        places = self._given_up[room]
        try:
            if self._source is None:
                with tempfile.TemporaryFile(dir=self._folder) as file:
                    self._source = Source(os.dup(file.fileno()), "the file of clients at rest")
            place = offset = places[-1] if places else self._end
            for piece in content.pieces():
                place += _write(self._source.descriptor, memoryview(piece), place)
        except OSError as error:
            raise RunError(
                f"cannot put clients at rest into a file in {self._folder or tempfile.gettempdir()}: {error.strerror}. "
                "Nothing that was committed is lost; make room there, or give clients more memory (client_memory in "
                "config.toml, bytes), and the run goes on from its last commit"
            ) from error
        if places:
            places.pop()
        else:
            self._end += room
        self._used += room
        return Part(self._source, offset, content.size)

    def give_up(self, part: Part) -> None:
        """A part is not needed any more, if it is one of this file."""
        if part.source is not self._source:
            return
        room = _slots(part.size)
        self._used -= room
        self._given_up[room].append(part.offset)
        if not self._used:
            self.clear()

    def clear(self) -> None:
        """Nothing is needed any more."""
        self._end = self._used = 0
        self._given_up.clear()
        if self._source is not None:
            os.ftruncate(self._source.descriptor, 0)


def _slots(size: int) -> int:
    return -(-size // SLOT) * SLOT


def _write(descriptor: int, piece: memoryview, offset: int) -> int:
    """Write all of it there. Returns its length."""
    written = 0
    while written < len(piece):  # a system may write less at once than is asked for
        written += os.pwrite(descriptor, piece[written:], offset + written)
    return written
