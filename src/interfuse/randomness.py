"""Randomness as a function of where it is used.

No generator lives longer than the piece of work it serves: each is derived from the run's seed and the place of
use, so results cannot depend on engine, order of clients, evaluation cadence, or on a kill and resume.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock

import numpy as np
import torch

Key = str | int

_ONE_THREAD = RLock()
"""Held while global generators are asked or set. PyTorch locks its own with the interpreter's lock held, and may run
garbage collection meanwhile, which gives that away: two threads that ask at once could wait for each other for ever."""


def derive(seed: int, *keys: Key) -> int:
    """A 63-bit seed for one place of use; equal arguments give equal seeds on every machine.

    Keys are tagged with their type and length, so ``("a", 1)`` and ``("a1",)`` differ.
    """
    return int.from_bytes(hashlib.blake2b(_joined(seed, *keys), digest_size=8).digest(), "little") >> 1


def _joined(*keys: Key) -> bytes:
    return b"".join([_tagged(key if isinstance(key, str) else int(operator.index(key))) for key in keys])


@lru_cache(maxsize=10_000)
def _tagged(key: Key) -> bytes:
    text = (f"str:{key}" if isinstance(key, str) else f"int:{key}").encode()
    return len(text).to_bytes(4, "little") + text


def generator(seed: int, *keys: Key) -> torch.Generator:
    """A PyTorch generator on the CPU for one place of use."""
    return torch.Generator().manual_seed(derive(seed, *keys))


def uniform(seed: int, count: int, *keys: Key) -> np.ndarray:
    """Numbers of 53 bits, uniform in [0, 1), for one place of use: float64 out of SHAKE-256.

    For what must stay hidden from whoever does not know the seed. PyTorch's generators are no good for that: of a seed
    they take 32 bits, which can all be tried.
    """
    words = np.frombuffer(hashlib.shake_256(_joined(seed, *keys)).digest(8 * count), "<u8")
    found: np.ndarray = (words >> np.uint64(11)) * 2.0**-53
    return found


def numpy_generator(seed: int, *keys: Key) -> np.random.Generator:
    """A NumPy generator for one place of use."""
    return np.random.default_rng(derive(seed, *keys))


@contextmanager
def seeded(seed: int, *keys: Key) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python inside the block, and put them back after it.

    Dropout, the initialisers of other people's modules and much augmentation know no other generators. This is the only
    place in interfuse that touches a global seed.
    """
    put_back = standing()
    try:
        _seed_all(derive(seed, *keys))
        yield
    finally:
        put_back()


def generators() -> tuple[object, ...]:
    """Where the same generators stand: equal before and after work that has drawn nothing from them."""
    with _ONE_THREAD:
        of_torch = [torch.default_generator.get_state(), *(torch.cuda.get_rng_state_all() if _cuda_in_use() else ())]
    of_numpy = (np.asarray(part).tobytes() for part in np.random.get_state())
    return random.getstate(), *of_numpy, *(state.numpy().tobytes() for state in of_torch)


def reseed(seed: int, *keys: Key) -> None:
    """Seed the same generators inside a block of :func:`seeded`, which puts them back."""
    _seed_all(derive(seed, *keys))


def standing() -> Callable[[], None]:
    """Where the same generators stand; calling what it returns puts them there again."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with _ONE_THREAD:
        of_torch = torch.get_rng_state()
        of_cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []

    def put_back() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        with _ONE_THREAD:
            torch.set_rng_state(of_torch)
            if of_cuda:
                torch.cuda.set_rng_state_all(of_cuda)

    return put_back


def _seed_all(seed: int) -> None:
    random.seed(seed)
    # other bits than PyTorch takes: both are Mersenne twisters, and would draw the same
    np.random.seed(seed >> 31)
    with _ONE_THREAD:
        # torch.manual_seed takes a stack trace for each kind of device that is not there: a millisecond for nothing
        torch.default_generator.manual_seed(seed)
        if _cuda_in_use():
            torch.cuda.manual_seed_all(seed)


def _cuda_in_use() -> bool:
    """A run on the processor must not wake a GPU, and a forked worker cannot."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
