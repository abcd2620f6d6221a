"""Windows of recorded signals that overlap: which belong together, and splits that keep them on one side.

Windows of UCI HAR share half of their steps with the window before. A window in a test set whose neighbour was trained
on is half known already, so what is dealt to one side is a recording: an unbroken chain of overlapping windows.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer

from interfuse.data.sources import Split

Windows = Float[np.ndarray, "n channels steps"]
Numbers = Integer[np.ndarray, "n"]

ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
"""Of UCI HAR in the order of their numbers, which begin with 1 in its files (``activity_labels.txt``)."""
OFFICIAL_TEST_PEOPLE = (2, 4, 9, 10, 12, 13, 18, 20, 24)


def recordings(windows: Windows, labels: Numbers, people: Numbers) -> list[Numbers]:
    """The rows of each chain of windows in time order: a window follows the one whose second half is its first half.

    Chains are ordered by person, class, and the values of their first window, so their order does not depend on that
    of the rows.
    """
    middle = windows.shape[2] // 2
    starts = {(int(people[row]), windows[row, :, :middle].tobytes()): row for row in range(len(windows))}
    after = {}
    for row in range(len(windows)):
        following = starts.get((int(people[row]), windows[row, :, middle:].tobytes()))
        if following is not None and following != row:
            after[row] = following
    heads = sorted(
        set(range(len(windows))) - set(after.values()),
        key=lambda row: (people[row], labels[row], windows[row].tobytes()),
    )
    chains = []
    for row in heads:
        chain = [row]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        chains.append(np.array(chain, np.int64))
    return chains


def official_people(windows: Windows, labels: Numbers, people: Numbers) -> Split:
    """The official split: nine people are the test set. Groups are people, blocks recordings."""
    chains = recordings(windows, labels, people)
    tested = [people[chain[0]] in OFFICIAL_TEST_PEOPLE for chain in chains]
    return _split(
        windows,
        labels,
        people,
        train=[chain[:0] if held else chain for chain, held in zip(chains, tested, strict=True)],
        test=[chain if held else chain[:0] for chain, held in zip(chains, tested, strict=True)],
    )


def as_given(windows: Windows, labels: Numbers, people: Numbers, training_rows: int) -> Split:
    """The split of the files: so many training rows come first. Groups are people, blocks recordings."""
    rows = np.split(np.arange(len(labels)), [training_rows])
    train, test = ([part[chain] for chain in recordings(windows[part], labels[part], people[part])] for part in rows)
    return _split(windows, labels, people, train=train, test=test)


def by_person(windows: Windows, labels: Numbers, people: Numbers) -> Split:
    """Everybody is in both sets: the last fifth of each recording, rounded down, is in the test set.

    The window before that fifth shares half of its steps with it, and is in neither set.
    """
    chains = recordings(windows, labels, people)
    ends = [len(chain) - len(chain) // 5 for chain in chains]
    return _split(
        windows,
        labels,
        people,
        train=[chain[: end - (end < len(chain))] for chain, end in zip(chains, ends, strict=True)],
        test=[chain[end:] for chain, end in zip(chains, ends, strict=True)],
    )


def _split(windows: Windows, labels: Numbers, people: Numbers, *, train: list[Numbers], test: list[Numbers]) -> Split:
    """The split by rows of each chain."""
    rows, held = (np.concatenate([np.empty(0, np.int64), *chains]) for chains in (train, test))
    blocks = np.repeat(np.arange(len(train)), [len(chain) for chain in train])
    groups, tested = (people[of].astype(np.int64) - 1 for of in (rows, held))
    return Split(windows[rows], labels[rows], windows[held], labels[held], groups, blocks, tested)
