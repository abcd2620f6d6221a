"""Data as companies have it: a folder of images by class, or a table with columns of targets."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.task import Classification
from interfuse.errors import DataError, nearest

TABLES = (".csv", ".parquet")


def load_table(
    path: str | Path, label: str | Sequence[str], classes: Sequence[str] | None = None, task: str | None = None
) -> Dataset:
    """All rows of a CSV (with a head line) or Parquet file as training rows: numbers, and columns of targets.

    Args:
        label: The column of targets, or several.
        classes: The values of the label column in the order of their numbers; None: those that are there, sorted.
        task: A name of :data:`.task.TASKS`. None: a single column has classes, unless all of it is numbers and some are
            not whole; of several see :meth:`Dataset.from_arrays`.

    Raises:
        DataError: the file cannot be read, has no such column, or a value that is no number.
    """
    path = Path(path)
    columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    labels = [label] if isinstance(label, str) else list(label)
    for name in labels:
        if name not in columns:
            raise DataError(f"{path} has no column {name!r}: {nearest(name, columns)}")
    targets = {name: columns.pop(name) for name in labels}
    if not columns:
        raise DataError(f"{path} has no column beside {', '.join(map(repr, labels))}")
    x = _stacked(path, columns)
    if len(labels) == 1 and task in (None, Classification.name) and (classes or task or not _fractional(targets)):
        y, names = _numbered([str(value) for value in targets[labels[0]]], classes, path)
        return _training_rows(path.stem, x, y, names)
    return _training_rows(path.stem, x, _stacked(path, targets), labels, task)


def _fractional(columns: Mapping[str, Sequence[object]]) -> bool:
    """Whether all of it is numbers, and some are not whole."""
    try:
        values = np.asarray(list(columns.values()), dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return bool(np.isfinite(values).all() and (values != np.trunc(values)).any())


def _stacked(path: Path, columns: Mapping[str, Sequence[object]]) -> np.ndarray:
    values = []
    for name, column in columns.items():
        try:
            values.append(np.asarray(column, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: column {name!r} is not all numbers: {error}") from error
    return np.stack(values, axis=1)


def load_folder(path: Path, classes: Sequence[str] | None = None) -> Dataset:
    """All images of a folder with a subfolder for each class, as training rows: grey or RGB, all of one size.

    Args:
        classes: The subfolders in the order of their numbers; None: those that are there, sorted.

    Raises:
        DataError: there are no images, a file is none, or they differ in size.
    """
    from PIL import Image  # comes with matplotlib, and is slow to import

    files = sorted(file for folder in path.iterdir() if folder.is_dir() for file in folder.iterdir())
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))
        except OSError as error:
            raise DataError(f"{file} is no image: {error}") from error
        if images[-1].shape != images[0].shape:
            raise DataError(f"{file} has shape {images[-1].shape}, but {files[0]} {images[0].shape}; make them alike")
    if not images:
        raise DataError(f"{path} has no subfolders with images, one for each class")
    x = np.stack(images)
    y, names = _numbered([file.parent.name for file in files], classes, path)
    return _training_rows(path.name, x if x.ndim == 3 else np.moveaxis(x, -1, 1), y, names)


def _csv(path: Path) -> dict[str, Sequence[object]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path} as CSV: {error}") from error
    if any(len(row) != len(head) for row in rows):
        raise DataError(f"{path}: every row needs {len(head)} values, as the head line has")
    return dict(zip(head, zip(*rows, strict=True), strict=True)) if rows else {}


def _parquet(path: Path) -> dict[str, Sequence[object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs `pip install interfuse[tables]`") from None
    try:
        found: dict[str, Sequence[object]] = parquet.read_table(path).to_pydict()
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error
    return found


def _numbered(labels: Sequence[str], classes: Sequence[str] | None, path: Path) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(labels)) if classes is None else list(classes)
    number = {name: index for index, name in enumerate(names)}
    if unknown := sorted(set(labels) - set(names)):
        raise DataError(f"{path} has the class {unknown[0]!r}, which is not among {', '.join(names)}")
    return np.array([number[label] for label in labels], np.int64), names


def _training_rows(
    name: str, x: np.ndarray, y: np.ndarray, names: list[str], task: str | None = Classification.name
) -> Dataset:
    return Dataset.from_arrays(name, x, y, x[:0], y[:0], class_names=names, task=task)
