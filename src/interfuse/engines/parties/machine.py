"""What a process may take of its machine, said to the operating system at its start."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

KEPT = 256
"""Descriptors that connections are not given: files of a run's folder, logs, models, sockets of metrics."""
MOST = 1 << 16
"""Descriptors that are asked for at most: some systems allow a thousand million, and some libraries count through."""


def raise_descriptors() -> int:
    """Let the process have as many descriptors as it may; returns how many of them are for connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(16, (MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)) - KEPT)


def bound_memory(most: int | None) -> int:
    """Have the process get an error, which it can answer, where it would ask for more than this or the machine has.

    Returns: the bound, in bytes.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = there if most is None else min(most, there)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    return bound
