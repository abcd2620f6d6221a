"""Files that somebody else may have put there: opened only where they are files, and read up to a bound.

Everything here raises OSError, with the path and the reason in its words, so that whoever reads a format explains one
kind of error and not a list of them.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

TEXT = 1 << 28
"""Bytes of a file that is read whole as text, such as a configuration, at most."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def opened(path: str | Path, *, follow: bool = True) -> BufferedReader:
    """A file that is open for reading, piece by piece. A pipe or a device in its place is never waited for.

    Args:
        follow: Whether a link to a file will do.

    Raises:
        OSError: it is not there, or it is no file; the text says what it is.
    """
    return open(_descriptor(path, os.O_RDONLY, follow), "rb")


def to_add_to(path: str | Path) -> BufferedRandom:
    """A file that is open for adding to its end, and for reading; a new one where there is none.

    Raises:
        OSError: it cannot be opened, or it is a link or no file.
    """
    return open(_descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, follow=False), "a+b")


def add_whole(file: BufferedRandom, data: bytes) -> None:
    """Add bytes to the end of a file that was opened by :func:`to_add_to`: all of them or none. Nothing stays in a
    buffer, which closing the file would try to write again.

    Raises:
        OSError: there is no room for them.
    """
    end = file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
    except OSError:
        file.truncate(end)
        raise


def content(path: str | Path, most: int = TEXT, *, follow: bool = True) -> bytes:
    """All bytes of a file.

    Args:
        most: How many it may have.
        follow: Whether a link to a file will do.

    Raises:
        OSError: it is not there, is no file, or has more bytes.
    """
    with opened(path, follow=follow) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return found


def json_in(path: str | Path, most: int = TEXT) -> Any:
    """What a JSON file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or its lists and mappings are too deep.
    """
    try:
        return json.loads(content(path, most))
    except RecursionError:
        raise ValueError("its lists and mappings are too deep") from None


def check_place(path: str | Path) -> None:
    """Check that what is about to be opened for writing, as a lock is, would be a file of its own.

    Raises:
        OSError: a link or something that is no file is there.
    """
    try:
        _check(os.lstat(path).st_mode, path)
    except FileNotFoundError:
        return


def _descriptor(path: str | Path, flags: int, follow: bool) -> int:
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666)
    except ValueError as error:
        raise OSError(errno.EINVAL, "it is no name of a file", str(path)) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, a folder, a pipe or socket
            _check(os.lstat(path).st_mode, path)
        raise
    try:
        _check(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))
