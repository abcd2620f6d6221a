"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, durable: bool = True, private: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once the block has ended well; what was there stays until then. A link in
    its place is replaced, not followed.

    Args:
        durable: Wait until the disk has it; what can be made again need not. The name is durable after
            :func:`interfuse.wire.sync_folder` on its folder.
        private: Nobody but its owner may read it.

    Raises:
        OSError: it cannot be written; nothing of it is left then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes, *, durable: bool = True, private: bool = False) -> None:
    """Write a file so that it is there whole or not at all; see :func:`replacing`.

    Raises:
        OSError: it cannot be written; nothing of it is left then.
    """
    with replacing(path, durable=durable, private=private) as file:
        file.write(data.encode() if isinstance(data, str) else data)
