from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from interfuse.randomness import derive, generator, numpy_generator, reseed, seeded, uniform

KEYS = st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=4)


@given(st.integers(), KEYS)
def test_a_seed_has_63_bits_and_is_a_function_of_its_place(seed: int, keys: list[str | int]) -> None:
    assert 0 <= derive(seed, *keys) < 2**63
    assert derive(seed, *keys) == derive(seed, *list(keys))


@given(st.tuples(st.integers(), KEYS), st.tuples(st.integers(), KEYS))
def test_different_places_have_different_seeds(a: tuple[int, list[str | int]], b: tuple[int, list[str | int]]) -> None:
    assert (derive(a[0], *a[1]) == derive(b[0], *b[1])) == (a == b)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", 1), ("a1",)),
        (("a", "b"), ("ab",)),
        ((1,), ("1",)),
        ((1, 2), (12,)),
        (("", "a"), ("a", "")),
        (("a", ""), ("a",)),
        (("client", 1, 11), ("client", 11, 1)),
    ],
)
def test_keys_do_not_run_together(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert derive(0, *one) != derive(0, *other)


def test_seeds_are_the_same_on_every_machine_and_in_every_process() -> None:
    """Written out by hand, so that a change of the derivation (and so of every published number) is noticed."""
    parts = [b"int:7", b"str:handler", b"int:3"]
    digest = hashlib.blake2b(b"".join(len(part).to_bytes(4, "little") + part for part in parts), digest_size=8).digest()
    wanted = int.from_bytes(digest, "little") >> 1
    assert derive(7, "handler", 3) == wanted
    command = "from interfuse.randomness import derive; print(derive(7, 'handler', 3))"
    output = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert int(output) == wanted


def test_generators_are_functions_of_their_place() -> None:
    a, b, c = (torch.rand(8, generator=generator(0, "x", i)) for i in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    first, second, third = (numpy_generator(0, "x", i).random(8).tolist() for i in (1, 1, 2))
    assert first == second != third


def test_uniform_numbers_are_those_of_shake_and_take_the_whole_seed() -> None:
    found = uniform(5, 100_000, "labels", 3)
    assert np.array_equal(found, uniform(5, 100_000, "labels", 3))
    assert np.array_equal(found[:10], uniform(5, 10, "labels", 3))
    assert abs(found.mean() - 0.5) < 5 * (12 * 100_000) ** -0.5
    assert found.min() >= 0
    assert found.max() < 1
    assert not np.array_equal(found * 2**24, np.floor(found * 2**24))  # more digits than float32 has
    for other in ((5 + 2**32, "labels", 3), (5 + 2**200, "labels", 3), (5, "labels", 4)):
        assert not np.isin(uniform(other[0], 100, *other[1:]), found).any()
    tagged = b"".join(len(key).to_bytes(4, "little") + key for key in (b"int:5", b"str:labels", b"int:3"))
    (word,) = np.frombuffer(hashlib.shake_256(tagged).digest(8), "<u8")
    assert found[0] == int(word) // 2**11 / 2**53


def test_seeded_decides_dropout_and_initial_values_and_puts_everything_back() -> None:
    torch.manual_seed(5)
    undisturbed = [torch.rand(3), torch.rand(3)]
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), undisturbed[0])
    drawn = []
    for key in (1, 1, 2):
        with seeded(0, "model", key):
            drawn.append(torch.cat([nn.Linear(4, 4).weight.detach().flatten(), nn.Dropout()(torch.ones(16))]))
    assert torch.equal(torch.rand(3), undisturbed[1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_numpy_and_python_are_seeded_too_differently_and_put_back() -> None:
    """Their generators and PyTorch's are Mersenne twisters: from one seed of 32 bits they would draw the same."""

    def draw() -> list[float]:
        words = (torch.randint(2**31, (3,)).tolist(), np.random.randint(0, 2**31, 3).tolist())
        return [*words[0], *words[1], *(random.getrandbits(31) for _ in range(3))]

    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    drawn = []
    for key in (1, 1, 2):
        with seeded(0, "model", key):
            drawn.append(draw())
    with seeded(0, "other"):
        reseed(0, "model", 2)
        drawn.append(draw())
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert len({*drawn[0], *drawn[2]}) == 18
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_seeded_is_what_torch_seeds_too() -> None:
    torch.manual_seed(derive(3, "place"))
    wanted = torch.rand(4)
    with seeded(3, "place"):
        assert torch.equal(torch.rand(4), wanted)


def test_seeded_blocks_nest() -> None:
    with seeded(0, "outer"):
        expected = (torch.rand(2), torch.rand(2))
    with seeded(0, "outer"):
        first = torch.rand(2)
        with seeded(0, "inner"):
            torch.rand(100)
        second = torch.rand(2)
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


def test_what_is_raised_inside_comes_out_and_everything_is_put_back() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(0, "x"):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about devices that are not there")
def test_seeding_takes_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` takes three on machines without a GPU, which is longer than many a handler."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a stack trace was taken")

    monkeypatch.setattr("traceback.format_stack", refuse)
    with seeded(0, "place"):
        torch.rand(1)


THREADS = """
import gc, sys
from threading import Thread

import torch

from interfuse.randomness import generators, seeded

def build(number):
    for step in range(60):
        with seeded(number, step):
            torch.nn.Linear(4, 4)
            generators()

sys.setswitchinterval(1e-6)
gc.set_threshold(1)
gc.callbacks.append(lambda phase, info: [None for _ in range(20)])
threads = [Thread(target=build, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_seed_at_once_do_not_wait_for_each_other_for_ever() -> None:
    """With garbage collected all the while, and Python code run for it: a thread then gives the interpreter away while
    PyTorch asks its generator for its state."""
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=60)
