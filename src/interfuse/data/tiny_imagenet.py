"""The archive of Tiny ImageNet (Stanford CS231n): 200 classes of ImageNet, JPEG of 64 by 64."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track

from interfuse.data.formats import Arrays
from interfuse.data.reading import UNREADABLE
from interfuse.data.sources import Labels, Rows, Split
from interfuse.errors import DataError

_ROOT = "tiny-imagenet-200"
_SIDE = 64


def read_tiny_imagenet(raw: bytes, label: str) -> Arrays:
    """Training images ``[n, 3, 64, 64]`` and labels, those of the validation part, and the names of the classes.

    Classes are numbered in the order of their WordNet numbers, as folders are sorted. The validation part is the test
    set: the images of the official one have no labels. Grey images become three equal channels.

    Raises:
        DataError: a file is missing or no image of this size, or an image has a class that ``wnids.txt`` has not.
    """
    from PIL import Image  # comes with Matplotlib, and is slow to import

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            numbers = sorted(_text(archive, "wnids.txt").split())
            train = _training_images(archive.namelist(), numbers, label)
            held = [line.split()[:2] for line in _text(archive, "val/val_annotations.txt").splitlines() if line.strip()]
            classes = {number: place for place, number in enumerate(numbers)}
            y_train = np.array([classes[number] for number, _ in train], np.int64)
            y_test = np.array([classes[number] for _, number in held], np.int64)
            x_train = _images(archive, [path for _, path in train], label)
            x_test = _images(archive, [f"{_ROOT}/val/images/{name}" for name, _ in held], label)
            words = dict(line.split("\t", 1) for line in _text(archive, "words.txt").splitlines() if line.strip())
            names = _short([words[number] for number in numbers], numbers)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError(f"{label} is no archive of Tiny ImageNet: {error}") from error
    return x_train, y_train, x_test, y_test, np.array(names)


def arranged(x: Rows, y: Labels, x_test: Rows, y_test: Labels, names: np.ndarray) -> Split:
    """The split, with the names of its classes."""
    return Split(x, y, x_test, y_test, class_names=tuple(map(str, names)))


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return archive.read(f"{_ROOT}/{name}").decode("utf-8")


def _training_images(members: Sequence[str], numbers: Sequence[str], label: str) -> list[tuple[str, str]]:
    """WordNet number and path of each, by class and then by the number in its name."""
    found = []
    for path in members:
        parts = path.split("/")
        if parts[:2] == [_ROOT, "train"] and path.endswith(".JPEG"):
            found.append((parts[2], path))
    lacking = {*numbers} - {number for number, _ in found}
    if lacking:
        raise DataError(f"{label} has no training images of {', '.join(sorted(lacking)[:3])}, a class of its wnids.txt")
    return sorted(found, key=lambda one: (one[0], len(one[1]), one[1]))


def _images(archive: zipfile.ZipFile, paths: Sequence[str], label: str) -> UInt8[np.ndarray, "n 3 64 64"]:
    """Decoded one by one into the array that is kept: all of the training part are 1.2 GB."""
    from PIL import Image

    console = Console(stderr=True)
    found = np.empty((len(paths), 3, _SIDE, _SIDE), np.uint8)
    for row, path in enumerate(track(paths, f"decoding {label}", console=console, disable=not console.is_terminal)):
        with Image.open(io.BytesIO(archive.read(path))) as image:
            if image.size != (_SIDE, _SIDE):
                wide, high = image.size
                raise DataError(f"{label}: {path} has {wide} by {high} points, must have {_SIDE} by {_SIDE}")
            found[row] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return found


def _short(names: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """The first of the words that each class has; with its number behind it where several begin alike."""
    first = [name.split(",")[0].strip() for name in names]
    counts = Counter(first)
    return [word if counts[word] == 1 else f"{word} ({number})" for word, number in zip(first, numbers, strict=True)]
