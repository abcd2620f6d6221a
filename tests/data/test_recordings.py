"""Overlapping windows: chains are found whatever the order of rows, and no half window is on two sides."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interfuse.data.recordings import OFFICIAL_TEST_PEOPLE, by_person, official_people, recordings
from interfuse.data.sources import Split

HALF = 4


def recorded(lengths: list[int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows of recordings of these lengths, a class and a person for each, shuffled; with the recording of each."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, length in enumerate(lengths):
        signal = rng.normal(size=(9, HALF * (length + 1))).astype(np.float32)
        parts += [(signal[:, HALF * i : HALF * (i + 2)], number % 3, 1 + number % 5, number) for i in range(length)]
    order = rng.permutation(len(parts))
    windows, *numbers = (np.array([parts[i][column] for i in order]) for column in range(4))
    return windows, *numbers


def halves(windows: np.ndarray) -> set[bytes]:
    return {half.tobytes() for window in windows for half in (window[:, :HALF], window[:, HALF:])}


lengths = st.lists(st.integers(1, 12), min_size=5, max_size=12)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 1000))
def test_chains_are_the_recordings_in_time_order(lengths: list[int], seed: int) -> None:
    windows, labels, people, numbers = recorded(lengths, seed)
    chains = recordings(windows, labels, people)
    assert sorted(len(chain) for chain in chains) == sorted(lengths)
    for chain in chains:
        assert len(set(numbers[chain])) == 1
        for one, following in pairwise(chain):
            np.testing.assert_array_equal(windows[one][:, HALF:], windows[following][:, :HALF])
    assert [people[chain[0]] for chain in chains] == sorted(people[chain[0]] for chain in chains)


@pytest.mark.parametrize("split", [official_people, by_person])
def test_the_order_of_rows_does_not_matter(split: object) -> None:
    # More recordings than pairs of a person and a class: some are told apart by their values alone.
    windows, labels, people, _ = recorded([7, 3, 12, 1, 9, 10] * 4, 0)
    again = np.random.default_rng(9).permutation(len(windows))
    one, other = split(windows, labels, people), split(windows[again], labels[again], people[again])  # type: ignore[operator]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def check_blocks(split: Split) -> None:
    assert split.blocks is not None
    assert split.groups is not None
    of_half: dict[bytes, int] = {}
    for window, block in zip(split.x_train, split.blocks, strict=True):
        for half in halves(window[None]):
            assert of_half.setdefault(half, int(block)) == block


@settings(max_examples=25, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 1000))
def test_splits_share_no_half_window(lengths: list[int], seed: int) -> None:
    windows, labels, people, _ = recorded(lengths, seed)
    official = official_people(windows, labels, people)
    assert len(official.x_train) + len(official.x_test) == len(windows)
    assert set(official.groups + 1) == set(people) - set(OFFICIAL_TEST_PEOPLE)
    own = by_person(windows, labels, people)
    tested = sum(length // 5 for length in lengths)
    between = sum(length >= 5 for length in lengths)
    assert (len(own.x_test), len(own.x_train)) == (tested, len(windows) - tested - between)
    assert set(own.groups + 1) == set(people)
    for split in (official, own):
        assert not halves(split.x_train) & halves(split.x_test)
        check_blocks(split)
        row_of = {window.tobytes(): row for row, window in enumerate(windows)}
        for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test)):
            assert y.tolist() == [labels[row_of[window.tobytes()]] for window in x]
        assert (split.groups + 1).tolist() == [people[row_of[window.tobytes()]] for window in split.x_train]
