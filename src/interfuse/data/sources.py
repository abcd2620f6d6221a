"""The data sets that interfuse knows by name: their files, hashes, places of origin and facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from interfuse.data.dataset import Dataset
from interfuse.data.fetch import Places, RemoteFile, load_array

State = Literal["shipped", "found", "cached", "download", "incomplete"]
Bytes = UInt8[np.ndarray, "..."]
Split = tuple[Bytes, Bytes, Bytes, Bytes]
"""Training rows and labels, test rows and labels."""

DIGITS = "digits"
DIGIT_NAMES = tuple("0123456789")


@dataclass(frozen=True)
class DatasetInfo:
    """What can be said of a named data set without loading it.

    :param shape: of one sample, channels first.
    :param state: ``shipped`` with interfuse; ``found`` whole in INTERFUSE_DATA; ``cached``, needing no network;
        ``download``, nothing of it is here; ``incomplete``, the rest would be downloaded. Files are looked up by name;
        hashes are checked when the set is loaded.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    rows_train: int
    rows_test: int
    state: State
    licence: str
    note: str


def official_split(train_x: Bytes, train_y: Bytes, test_x: Bytes, test_y: Bytes) -> Split:
    """The arrays as they come."""
    return train_x, train_y, test_x, test_y


def every_fifth(x: Bytes, y: Bytes) -> Split:
    """Split a single part: every fifth row of each class, in the order of the file, is a test row.

    No generator is involved, so the split is the same under every version of NumPy.
    """
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        test[np.flatnonzero(y == label)[4::5]] = True
    return x[~test], y[~test], x[test], y[test]


@dataclass(frozen=True)
class Source:
    """A data set made of gzipped IDX files.

    :param files: in the order of the arguments of ``arrange``.
    :param arrange: makes the training and test arrays from those of the files.
    :param mean: as published for the training rows; None where it is computed from them.
    :param std: as ``mean``.
    """

    name: str
    files: tuple[RemoteFile, ...]
    arrange: Callable[..., Split]
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    rows_train: int
    rows_test: int
    licence: str
    mean: float | None = None
    std: float | None = None
    note: str = ""

    def state(self, places: Places) -> State:
        """Whether the set can be loaded from ``places`` without a download."""
        own = [places.own_copy(file) is not None for file in self.files]
        if all(own):
            return "found"
        cached = [places.decoded(file).is_file() or places.cached(file).is_file() for file in self.files]
        here = [either or other for either, other in zip(own, cached, strict=True)]
        if all(here):
            return "cached"
        return "incomplete" if any(here) else "download"

    def load(self, places: Places) -> Dataset:
        """The data set from ``places``, after a download where it is needed.

        Raises:
            DataError: a file cannot be had or is corrupt.
        """
        x_train, y_train, x_test, y_test = self.arrange(*(load_array(file, places) for file in self.files))
        return Dataset.from_arrays(
            self.name,
            x_train,
            y_train,
            x_test,
            y_test,
            class_names=self.class_names,
            mean=None if self.mean is None else [self.mean],
            std=None if self.std is None else [self.std],
            note=self.note,
            licence=self.licence,
        )

    def info(self, places: Places) -> DatasetInfo:
        """The facts of the set, and its state in ``places``."""
        return DatasetInfo(
            name=self.name,
            shape=self.shape,
            classes=len(self.class_names),
            rows_train=self.rows_train,
            rows_test=self.rows_test,
            state=self.state(places),
            licence=self.licence,
            note=self.note,
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


def _idx_files(
    folder: str, torchvision: str, bases: tuple[str, ...], hashes: Mapping[str, tuple[str, str | None]]
) -> dict[str, RemoteFile]:
    return {
        stem: RemoteFile(folder, torchvision, f"{stem}-ubyte.gz", sha256, unpacked, bases)
        for stem, (sha256, unpacked) in hashes.items()
    }


_MNIST = _idx_files(
    "mnist",
    "MNIST",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    {
        "train-images-idx3": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)

_FASHION_MNIST = _idx_files(
    "fashion-mnist",
    "FashionMNIST",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    {
        "train-images-idx3": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)

_KMNIST = _idx_files(
    "kmnist",
    "KMNIST",
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    {
        "train-images-idx3": ("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", None),
        "train-labels-idx1": (
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b",
        ),
        "t10k-images-idx3": (
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e",
        ),
        "t10k-labels-idx1": (
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
            "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6",
        ),
    },
)

_KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_KMNIST_LICENCE = 'CC BY-SA 4.0 ("KMNIST Dataset", created by CODH, adapted from "Kuzushiji Dataset", NIJL and others)'

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            Source(
                name="mnist",
                files=tuple(_MNIST.values()),
                arrange=official_split,
                shape=(1, 28, 28),
                class_names=DIGIT_NAMES,
                rows_train=60_000,
                rows_test=10_000,
                licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes, C. J. C. Burges)",
                mean=0.1307,
                std=0.3081,
            ),
            Source(
                name="fashion-mnist",
                files=tuple(_FASHION_MNIST.values()),
                arrange=official_split,
                shape=(1, 28, 28),
                class_names=(
                    "T-shirt/top",
                    "trouser",
                    "pullover",
                    "dress",
                    "coat",
                    "sandal",
                    "shirt",
                    "sneaker",
                    "bag",
                    "ankle boot",
                ),
                rows_train=60_000,
                rows_test=10_000,
                licence="MIT (Zalando SE)",
                mean=0.2860,
                std=0.3530,
            ),
            Source(
                name="kmnist",
                files=tuple(_KMNIST.values()),
                arrange=official_split,
                shape=(1, 28, 28),
                class_names=_KMNIST_NAMES,
                rows_train=60_000,
                rows_test=10_000,
                licence=_KMNIST_LICENCE,
            ),
            Source(
                name="kmnist-test",
                files=(_KMNIST["t10k-images-idx3"], _KMNIST["t10k-labels-idx1"]),
                arrange=every_fifth,
                shape=(1, 28, 28),
                class_names=_KMNIST_NAMES,
                rows_train=8_000,
                rows_test=2_000,
                licence=_KMNIST_LICENCE,
                mean=0.1846,
                std=0.3416,
                note="a split of KMNIST's official test half; not comparable with published KMNIST numbers",
            ),
        )
    }
)
