"""What a named data set is made of: files in one of several layouts, a rule that arranges their arrays, facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Integer, Shaped

from interfuse.data.dataset import Dataset
from interfuse.data.fetch import Places, RemoteFile, load_arrays
from interfuse.data.inputs import Shape

State = Literal["shipped", "installed", "found", "cached", "download", "incomplete", "not installed"]
Rows = Shaped[np.ndarray, "n *sample"]
Labels = Integer[np.ndarray, "n"]


class Split(NamedTuple):
    """Training and test rows with their labels, the groups and blocks of the training rows, the groups of the test rows
    (see `Dataset`), and the names of the classes where the files have them."""

    x_train: Rows
    y_train: Labels
    x_test: Rows
    y_test: Labels
    groups: Labels | None = None
    blocks: Labels | None = None
    test_groups: Labels | None = None
    class_names: tuple[str, ...] | None = None


DIGITS = "digits"
DIGIT_NAMES = tuple("0123456789")


@dataclass(frozen=True)
class DatasetInfo:
    """What can be said of a named data set without loading it.

    :param shape: of one sample, channels first.
    :param rows_train: None where only its files know; as ``rows_test``.
    :param state: ``shipped`` with interfuse; ``installed``, or not, as a package of its own; ``found`` whole in
        INTERFUSE_DATA; ``cached``, needing no network; ``download``, nothing of it is here; ``incomplete``, the rest
        would be downloaded. Files are looked up by name; hashes are checked when the set is loaded.
    :param missing: files that would be downloaded; empty where all are here.
    """

    name: str
    shape: Shape
    classes: int
    rows_train: int | None
    rows_test: int | None
    state: State
    licence: str
    note: str
    missing: tuple[str, ...] = ()


def every_fifth(x: Rows, y: Labels) -> Split:
    """Split a single part: every fifth row of each class, in the order of the file, is a test row.

    No generator is involved, so the split is the same under every version of NumPy.
    """
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        test[np.flatnonzero(y == label)[4::5]] = True
    return Split(x[~test], y[~test], x[test], y[test])


@dataclass(frozen=True)
class Layout:
    """One form in which a data set is kept: as published, or as somebody packed it anew.

    :param arrange: makes the split from the arrays of all files, in the order of ``files``.
    """

    files: tuple[RemoteFile, ...]
    arrange: Callable[..., Split] = Split


@dataclass(frozen=True)
class Source:
    """A named data set.

    :param layouts: the one that is downloaded comes first; all give the same rows in the same order.
    :param class_names: by number; of data whose files name its classes how many there are.
    :param mean: as published for the training rows, a number a channel; None where it is computed from them.
    :param std: as ``mean``.
    """

    name: str
    layouts: tuple[Layout, ...]
    shape: tuple[int, ...]
    class_names: tuple[str, ...] | int
    rows_train: int
    rows_test: int
    licence: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    note: str = ""

    def state(self, places: Places) -> State:
        """Whether the set can be loaded from ``places`` without a download."""
        layouts = [layout.files for layout in self.layouts]
        if any(all(map(places.own, files)) for files in layouts):
            return "found"
        if any(all(map(places.here, files)) for files in layouts):
            return "cached"
        return "incomplete" if any(any(map(places.here, files)) for files in layouts) else "download"

    def load(self, places: Places) -> Dataset:
        """The data set from ``places``, after a download where it is needed.

        Raises:
            DataError: a file cannot be had or is corrupt.
        """
        layout = self._chosen(places)
        split = layout.arrange(*(array for file in layout.files for array in load_arrays(file, places)))
        return Dataset.from_arrays(
            self.name,
            split.x_train,
            split.y_train,
            split.x_test,
            split.y_test,
            has_channels=len(self.shape) == 2,
            class_names=split.class_names if isinstance(self.class_names, int) else self.class_names,
            mean=self.mean,
            std=self.std,
            groups=split.groups,
            blocks=split.blocks,
            test_groups=split.test_groups,
            note=self.note,
            licence=self.licence,
        )

    def _chosen(self, places: Places) -> Layout:
        """The layout that needs no download, the user's own files first; else the published one."""
        for there in (places.own, places.here):
            for layout in self.layouts:
                if all(map(there, layout.files)):
                    return layout
        return self.layouts[0]

    def info(self, places: Places) -> DatasetInfo:
        """The facts of the set, and its state in ``places``."""
        return DatasetInfo(
            name=self.name,
            shape=self.shape,
            classes=self.class_names if isinstance(self.class_names, int) else len(self.class_names),
            rows_train=self.rows_train,
            rows_test=self.rows_test,
            state=self.state(places),
            licence=self.licence,
            note=self.note,
            missing=tuple(file.name for file in self._chosen(places).files if not places.here(file)),
        )


def load_digits() -> Dataset:
    """The handwritten digits that come with interfuse: 1,437 training and 360 test images of 8x8 pixels, 0 to 16."""
    path = resources.files(__package__).joinpath("digits.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        parts = [arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    return Dataset.from_arrays(
        DIGITS, *parts, class_names=DIGIT_NAMES, scale=16.0, licence=DIGITS_INFO.licence, note=DIGITS_INFO.note
    )


DIGITS_INFO = DatasetInfo(
    name=DIGITS,
    shape=(1, 8, 8),
    classes=10,
    rows_train=1437,
    rows_test=360,
    state="shipped",
    licence="CC BY 4.0 (E. Alpaydin, C. Kaynak; UCI Optical Recognition of Handwritten Digits)",
    note="the split is interfuse's own; not comparable with published numbers for these digits",
)
