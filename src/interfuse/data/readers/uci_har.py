"""UCI HAR's unzipped folder (Anguita et al., ESANN 2013): the inertial signals of windows, not the 561 features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.formats import read_har_part
from interfuse.data.reading import Reading, ReadOptions
from interfuse.data.recordings import ACTIVITIES, as_given
from interfuse.errors import DataError
from interfuse.opening import content

MOST = 1 << 32
"""Bytes of a file."""
FORMAT = "UCI HAR's folder"


def recognises(path: Path) -> bool:
    """Whether a folder has inertial signals in ``train``, or holds the folder ``UCI HAR Dataset`` that has."""
    return (_root(path) / "train" / "Inertial Signals").is_dir()


def read(path: Path, options: ReadOptions) -> Dataset:
    """Windows ``[n, 9, 128]`` with the split of the files; groups are people, blocks unbroken recordings.

    Raises:
        DataError: naming file and line.
    """
    options.only(format=FORMAT)
    root = _root(path)

    def contents(name: str) -> bytes:
        try:
            return content(root / name, MOST)
        except OSError as error:
            raise DataError(f"cannot read {root / name}: {error.strerror}") from error

    train, test = (read_har_part(contents, part, str(root)) for part in ("train", "test"))
    windows, labels, people = (np.concatenate(arrays) for arrays in zip(train, test, strict=True))
    names = _activities(root / "activity_labels.txt")
    if labels.max(initial=0) >= len(names):
        raise DataError(f"{root}: an activity has the number {labels.max() + 1}, but there are {len(names)}")
    split = as_given(windows, labels, people, len(train[1]))
    both = len(np.intersect1d(train[2], test[2]))
    sides = f"; {both} people are on both sides" if both else ", other people"
    facts = (
        ("samples", "windows of 9 inertial signals, 128 steps each; X_train.txt and X_test.txt are left out"),
        ("classes", ", ".join(f"{number} is {name}" for number, name in enumerate(names, 1))),
        ("groups", f"{len(np.unique(train[2]))} people"),
        ("blocks", "unbroken recordings, whose windows overlap by half, stay together"),
        ("test", f"{len(test[1])} windows, as the files have it{sides}"),
    )
    return Dataset.from_arrays(
        "har",
        split.x_train,
        split.y_train,
        split.x_test,
        split.y_test,
        has_channels=True,
        class_names=names,
        groups=split.groups,
        test_groups=split.test_groups,
        blocks=split.blocks,
        reading=Reading(FORMAT, facts),
    )


def _root(path: Path) -> Path:
    inner = path / "UCI HAR Dataset"
    return inner if inner.is_dir() else path


def _activities(file: Path) -> tuple[str, ...]:
    """Names by number, lines of ``1 WALKING``; the published ones where the file is not there."""
    try:
        lines = [line.split() for line in content(file).decode("utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        return ACTIVITIES
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line[:1] != [str(number)] or len(line) != 2:
            raise DataError(f"{file}, line {number}: expected {number} and a name, such as '1 WALKING'")
    return tuple(name.lower().replace("_", " ") for _, name in lines)
