"""Memory that is freed stays with the process, so that the next step of training finds it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Numbers of glibc's ``mallopt``."""
LARGEST_KEPT = 32 << 20
"""Larger blocks go back to the system at once; some versions of glibc allow no more."""
MOST_KEPT = 1 << 28
"""Free memory at the end of the heap that is not given back."""


ARENAS = 2
"""In which threads share the heap, where many of them take memory for strangers. With more of them it takes longer
until the heap has its size (docs/results/soak.md)."""


def share_heaps() -> bool:
    """Let all threads of this process take memory from a few heaps. Elsewhere nothing changes; the answer says whether
    it was done.

    By default glibc makes eight heaps a core, each of which grows to the most that its threads ever had at once and
    stays so: a process that many connect to grows for as long as it runs, up to that.
    """
    mallopt = _mallopt()
    return mallopt is not None and bool(mallopt(_ARENA_MAX, ARENAS))


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed. Elsewhere nothing changes; the answer says whether it was done.

    By default it returns every block above some hundred kilobytes to the system, and each step of training then pays
    for zeroed pages again: a quarter to a third of the time of a small convolutional network.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, MOST_KEPT))


def _mallopt() -> Callable[[int, int], int] | None:
    """What sets an option of glibc's allocator, where that is in use."""
    if sys.platform != "linux":
        return None
    try:
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except AttributeError:  # a Linux with another C library
        return None
    return found
