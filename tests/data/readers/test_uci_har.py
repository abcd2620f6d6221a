"""UCI HAR's folder: the rows, people and recordings of its files, and damage by file and line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from archives import har_zip

from interfuse.data import Dataset
from interfuse.data.formats import HAR_SIGNALS, read_har_archive
from interfuse.data.readers import read_path
from interfuse.data.reading import ReadOptions
from interfuse.data.recordings import official_people
from interfuse.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def overlapping(chains: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows that overlap by half, activities and people: of (person, activity, windows) each."""
    windows, labels, people = [], [], []
    for person, activity, count in chains:
        signal = RNG.normal(size=(9, 64 * (count + 1))).round(4)
        windows += [signal[:, 64 * i : 64 * i + 128] for i in range(count)]
        labels += [activity] * count
        people += [person] * count
    return np.array(windows), np.array(labels), np.array(people)


TRAIN = overlapping([(1, 1, 3), (3, 6, 2), (1, 2, 4)])
TEST = overlapping([(2, 5, 2), (4, 1, 1)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "unzipped" / "UCI HAR Dataset"
    for part, (windows, labels, people) in (("train", TRAIN), ("test", TEST)):
        (root / part / "Inertial Signals").mkdir(parents=True)
        for channel, signal in enumerate(HAR_SIGNALS):
            np.savetxt(root / part / "Inertial Signals" / f"{signal}_{part}.txt", windows[:, channel], fmt="%16.7e")
        np.savetxt(root / part / f"y_{part}.txt", labels, fmt="%d")
        np.savetxt(root / part / f"subject_{part}.txt", people, fmt="%d")
        np.savetxt(root / part / f"X_{part}.txt", RNG.normal(size=(len(labels), 561)))
    return root


def loaded(path: Path) -> Dataset:
    return read_path(path, ReadOptions())


def test_rows_people_and_recordings(folder: Path) -> None:
    data = loaded(folder)
    assert data.class_names == ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
    # Recordings in the order of people and activities; 1 in the files is the class 0.
    assert data.y_train.tolist() == [0] * 3 + [1] * 4 + [5] * 2
    assert data.groups.tolist() == [0] * 7 + [2] * 2
    assert data.blocks.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    np.testing.assert_allclose(data.x_train, TRAIN[0][[0, 1, 2, 5, 6, 7, 8, 3, 4]], rtol=1e-6)
    np.testing.assert_allclose(data.x_test, TEST[0], rtol=1e-6)
    assert data.y_test.tolist() == [4, 4, 0]
    assert dict(data.reading.facts)["test"].endswith("other people")
    np.testing.assert_array_equal(loaded(folder.parent).x_train, data.x_train)


def test_it_is_the_named_data_set(folder: Path) -> None:
    windows, labels, people = (np.concatenate(parts) for parts in zip(TRAIN, TEST, strict=True))
    raw = har_zip(windows, labels - 1, people, np.arange(len(labels)) >= len(TRAIN[1]), nested=False)
    named, data = official_people(*read_har_archive(raw, "zip")), loaded(folder)
    *parts, blocks, tested, _ = named
    np.testing.assert_array_equal(tested, data.test_groups)
    for a, b in zip(parts, (data.x_train, data.y_train, data.x_test, data.y_test, data.groups), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.unique(blocks, return_inverse=True)[1], data.blocks)


def test_names_of_the_folder(folder: Path) -> None:
    (folder / "activity_labels.txt").write_text("".join(f"{n} NAME_{n}\n" for n in range(1, 8)))
    assert loaded(folder).class_names == tuple(f"name {n}" for n in range(1, 8))
    (folder / "activity_labels.txt").write_text("1 WALKING\n3 SITTING\n")
    with pytest.raises(DataError, match=r"activity_labels.txt, line 2: expected 2 and a name"):
        loaded(folder)
    (folder / "activity_labels.txt").write_text("1 WALKING\n")
    with pytest.raises(DataError, match="an activity has the number 6, but there are 1"):
        loaded(folder)


def cut(name: str, end: int) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        (root / name).write_bytes((root / name).read_bytes()[:end])

    return damage


def line(name: str, number: int, text: str) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        lines = (root / name).read_text().splitlines()
        (root / name).write_text("\n".join([*lines[: number - 1], text, *lines[number:]]))

    return damage


SIGNAL = "train/Inertial Signals/body_gyro_y_train.txt"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut(SIGNAL, 128 * 17 * 3 + 100), f"{SIGNAL}, line 4 has [0-9]+ numbers, must have 128; it is cut off"),
        (cut(SIGNAL, 128 * 17 * 3), "train has 3 lines of body_gyro_y, but 9 of y"),
        (cut("train/subject_train.txt", 4), "train has 2 lines of subject, but 9 of y"),
        (cut("test/y_test.txt", 0), "test has 3 lines of subject, but 0 of y"),
        (line("test/y_test.txt", 2, "5 5"), "y_test.txt, line 2 has 2 numbers, must have 1"),
        (line("test/y_test.txt", 2, "0"), "y_test.txt, line 2 has 0; activities and people are numbered from 1"),
        (line("test/y_test.txt", 3, "7"), "an activity has the number 7, but there are 6"),
        (line("train/subject_train.txt", 3, "1.5"), "subject_train.txt, line 3 has 1.5"),
        (line(SIGNAL, 2, "nan " * 128), f"{SIGNAL}, line 2 has a number that is not finite"),
        (line(SIGNAL, 2, "x " * 128), f"{SIGNAL} has what is no number: .*'x'"),
        (lambda root: (root / SIGNAL).unlink(), f"cannot read .*{SIGNAL}: No such file"),
        (lambda root: shutil.rmtree(root / "test"), "cannot read .*test/y_test.txt: No such file"),
    ],
)
def test_damage(damage: Callable[[Path], object], problem: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match=problem):
        loaded(folder)


def test_options_mean_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="label means nothing for UCI HAR.s folder"):
        read_path(folder, ReadOptions(label=("y",)))
