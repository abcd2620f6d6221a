"""Packs: many parts of a commit in one safetensors file. Each part is a tensor of bytes: a safetensors file by itself.

So a part has a place in the file that is known before any other is looked at, a thousand clients of one architecture
have one header between them, and what lies in one file goes to another without being read as tensors.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from interfuse.errors import MessageError, RunError
from interfuse.opening import opened
from interfuse.wire.body import LENGTH, Filling, Limits, chunks, header_length, laid_out, layout, places, signature
from interfuse.wire.files import FileRecord, write_file

# A run trusts its own files: the bounds only keep shapes inside what 64-bit strides can express.
OWN = Limits(max_bytes=2**62, max_tensors=2**31, max_header_bytes=2**31, max_name=2**16)
AT_ONCE = 1 << 20
"""Bytes that are copied at a time from one file to another."""
MOST = 64
"""Packs beyond which the smaller half is written anew, unless a few saves make as many: each worker writes its own."""


class Source:
    """A file that is open for reading as long as anything in it is referred to, even when its name is gone by then."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, path: Path) -> Source:
        """The file of this path.

        Raises:
            RunError: it cannot be opened.
        """
        try:
            with opened(path) as file:
                return cls(os.dup(file.fileno()), str(path))
        except OSError as error:
            raise RunError(f"cannot read {path}: {error}") from error

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there on. Raises OSError where they are not there."""
        found = b""
        while len(found) < size:  # a system may read less at once than is asked for
            piece = os.pread(self.descriptor, size - len(found), offset + len(found))
            if not piece:
                raise OSError(f"{len(found)} of {size} bytes are there")
            found = found + piece if found else piece
        return found


class Content(Protocol):
    """What becomes a part: its length in bytes, and the bytes."""

    @property
    def size(self) -> int: ...

    def pieces(self) -> Iterator[bytes | memoryview]: ...


@dataclass(frozen=True)
class Tensors:
    """Tensors in memory as a part. They must not change before it is written."""

    tensors: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        return layout("part", signature(self.tensors)).size

    def pieces(self) -> Iterator[bytes | memoryview]:
        return chunks("part", self.tensors, layout("part", signature(self.tensors)))


@dataclass(frozen=True, slots=True)
class Part:
    """A part where it lies: in which file, from which byte on, and how long."""

    source: Source
    offset: int
    size: int

    def pieces(self, begin: int = 0) -> Iterator[bytes | memoryview]:
        """Its bytes from there on."""
        end = self.offset + self.size
        for place in range(self.offset + begin, end, AT_ONCE):
            yield self.source.read(place, min(AT_ONCE, end - place))

    def tensors(self) -> dict[str, Tensor]:
        """What was put in.

        Raises:
            RunError: the file is damaged, or cannot be read.
        """
        try:
            begin = self.source.read(self.offset, min(LENGTH, self.size))
            place = LENGTH + header_length("part", begin, self.size, OWN)
            header = self.source.read(self.offset + LENGTH, place - LENGTH)
            filling = Filling("part", header, self.size - place, OWN)
            for piece in self.pieces(place):
                filling.feed(piece)
            return filling.tensors()
        except (OSError, MessageError) as error:
            raise RunError(f"{self.source.name} is damaged: {error}; go back to an older commit") from error


def save_pack(path: Path, contents: Mapping[str, Content]) -> FileRecord:
    """Write a pack, whole or not at all; see :func:`write_file`.

    Raises:
        RunError: it cannot be written; nothing of it is left then.
    """
    try:
        sizes = tuple((name, torch.uint8, (content.size,)) for name, content in contents.items())
        plan = laid_out(path.name, sizes)
    except MessageError as error:
        raise RunError(f"cannot write {path}: {error}") from error

    def pieces() -> Iterator[bytes | memoryview]:
        yield plan.header
        for name in plan.names:
            yield from contents[name].pieces()

    return write_file(path, pieces(), plan.size)


def open_pack(path: Path) -> dict[str, Part]:
    """The parts of a pack by name. Only its header is read.

    Raises:
        RunError: the file cannot be read, or is no pack.
    """
    source = Source.of(path)
    try:
        size = os.fstat(source.descriptor).st_size
        begin = 8 + int.from_bytes(os.pread(source.descriptor, 8, 0), "little")
        if begin > size:
            raise OSError("it is cut off in its header")
        found = places(path.name, source.read(8, begin - 8), size - begin, OWN)
    except (OSError, MessageError) as error:
        raise RunError(f"{path} is damaged: {error}; go back to an older commit") from error
    return {name: Part(source, begin + start, end - start) for name, start, end in found}


class Packs:
    """The packs of a state that changes. Of a part that several have, the last one has the newest version.

    Attributes:
        parts: The newest version of each part by its name.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._packs: list[tuple[FileRecord, Source, int]] = []

    @property
    def records(self) -> tuple[FileRecord, ...]:
        """Those that are needed, in their order."""
        return tuple(record for record, _, _ in self._packs)

    def add(self, folder: Path, record: FileRecord) -> None:
        """A pack was written after all others; those of which nothing is new any more are not needed.

        Raises:
            RunError: it cannot be read, or is no pack.
        """
        found = open_pack(folder / record.name)
        source = next(iter(found.values())).source
        self._packs.append((record, source, sum(part.size for part in found.values())))
        self.parts |= found
        live = self._live()
        self._packs = [pack for pack in self._packs if live[pack[1]]]

    def stale(self, at_once: int = 1) -> list[str]:
        """The parts that are to be written again, so that files do not grow with what nobody needs: those of packs of
        which less than half is new, and of the smallest of too many packs, where ``at_once`` are written together."""
        most = max(MOST, 3 * at_once)
        live = self._live()
        old = {source for _, source, size in self._packs if 2 * live[source] < size}
        if len(self._packs) - len(old) > most:
            old |= set(sorted(live, key=live.__getitem__)[: most // 2])
        return [name for name, part in self.parts.items() if part.source in old] if old else []

    def _live(self) -> Counter[Source]:
        """Bytes of newest versions in each pack."""
        live: Counter[Source] = Counter()
        for part in self.parts.values():
            live[part.source] += part.size
        return live
