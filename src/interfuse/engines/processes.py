"""Forked processes that work for this one, and never outlive it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from interfuse.engines.allocator import keep_freed_memory


def can_fork() -> bool:
    """Whether this system forks processes."""
    return "fork" in multiprocessing.get_all_start_methods()


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def fork(target: Callable[..., None], *args: Any, name: str) -> BaseProcess:
    """Call a function in a forked process of one thread, which ends when this process ends."""
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(os.getpid(), target, args), name=name, daemon=True
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forking with threads about; what is forked here never waits for one of them
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        process.start()
    return process


def _serve(parent: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # for good, not only in handlers: a forked process inherits the pool of threads, but not the threads
    torch.set_num_threads(1)
    keep_freed_memory()
    _end_with(parent)
    target(*args)


def _end_with(parent: int) -> None:
    """End this process when its parent ends, also in the middle of a handler: it would go on for nobody."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
