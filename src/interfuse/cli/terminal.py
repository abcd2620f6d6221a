"""The edge of the process: signals, a standard output that is full, and terminals that know no letters but ASCII."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes, as shells have them."""
FAILED = 2
TOGETHER = 2.0
"""Seconds in which further interruptions are the same one: keys repeat, and a process group hears twice."""
_IN_ASCII = {
    "±": "+-",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "•": "*",
    "·": ".",
    "α": "alpha",
    "τ": "tau",
    "ε": "epsilon",
    "\u00a0": " ",
    "\u202f": " ",
}
_ERRORS = "interfuse-ascii"


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end, as by a scheduler or `kill`."""


def exit_code(interruption: KeyboardInterrupt) -> int:
    """With which the process ends."""
    return TERMINATED if isinstance(interruption, TerminatedError) else INTERRUPTED


def carried_out(command: Callable[[], None]) -> int:
    """Carry out a command that ends with SystemExit, as those of typer do; returns its exit code.

    An interruption is heard once and not as a traceback; what cannot be printed is said to be so.
    """
    heard = -TOGETHER

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if time.monotonic() - heard >= TOGETHER:
            heard = time.monotonic()
            raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    for one in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(one) != signal.SIG_IGN:  # as in the background of a shell
            signal.signal(one, hear)
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=_ERRORS)
    try:
        command()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else FAILED
    except KeyboardInterrupt as interruption:
        code = exit_code(interruption)
    except OSError as error:
        if not _of_output(error):
            raise
        code = _lost(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _lost(error)
    return code


def _of_output(error: OSError) -> bool:
    """Whether it is of the standard output, and not of a file that was open, whose errors have no name either."""
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG):
        return False
    try:
        print(flush=True)  # an empty line, since what could not be written need not be in the buffer any more
    except OSError:
        return True
    return False


def _lost(error: OSError) -> int:
    """Say that the output is lost, and have nobody try to write it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno != errno.EPIPE:
        os.write(2, f"error: cannot write to the standard output: {error.strerror}\n".encode())
    return FAILED


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(letter, "?") for letter in lost), error.end
