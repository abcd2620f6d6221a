"""Readers of published file formats: from the unpacked contents of one file to arrays.

A reader gets files whose SHA-256 is right, so it checks no more than that they have the form it expects.
"""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Float64, Int64

from interfuse.errors import DataError

T = TypeVar("T")

Arrays = tuple[np.ndarray, ...]
Reader = Callable[[bytes, str], Arrays]
"""From contents, and what errors call the file, to its arrays."""


def read_idx(raw: bytes, label: str) -> Arrays:
    """The one array of an IDX file (yann.lecun.com/exdb/mnist): two zeros, type 8, axes, big-endian sizes, bytes.

    Raises:
        DataError: ``raw`` has not this form; the text begins with ``label``.
    """
    axes = raw[3] if len(raw) > 3 else 0
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    if raw[:3] != b"\0\0\x08" or axes == 0 or len(raw) != start + math.prod(shape):
        raise DataError(f"{label} is no IDX file of unsigned bytes, or is cut off")
    return (np.frombuffer(raw, np.uint8, offset=start).reshape(shape),)


def read_cifar(raw: bytes, label: str, label_bytes: int = 1) -> Arrays:
    """Images ``[n, 3, 32, 32]`` and labels of a file of CIFAR's binary version (www.cs.toronto.edu/~kriz/cifar.html).

    :param label_bytes: of a record; the last one is the label (CIFAR-100 has the coarse label before the fine one).
    Raises:
        DataError: ``raw`` is no whole number of records.
    """
    size = label_bytes + 3 * 32 * 32
    if not raw or len(raw) % size:
        raise DataError(f"{label} is no file of CIFAR's binary version, or is cut off")
    records = np.frombuffer(raw, np.uint8).reshape(-1, size)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def read_cifar_archive(train: Sequence[str], test: str, label_bytes: int) -> Reader:
    """A reader of CIFAR's binary archive: training images and labels, test images and labels."""

    def read(raw: bytes, label: str) -> Arrays:
        try:
            with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
                files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
                parts = [read_cifar(_present(files, name, label).read(), name, label_bytes) for name in (*train, test)]
        except tarfile.TarError as error:
            raise DataError(f"{label} is no tar archive: {error}") from error
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
        return images, labels, *parts[-1]

    return read


def read_libsvm_images(raw: bytes, label: str) -> Arrays:
    """Images ``[n, 16, 16]`` in thousandths and labels from 0: USPS in LIBSVM's format (label from 1, index:value).

    Raises:
        DataError: a line has another form.
    """
    rows = [line.split() for line in raw.decode("ascii", "replace").splitlines() if line.strip()]
    images = np.zeros((len(rows), 256), np.int16)
    try:
        for image, (_, *pixels) in zip(images, rows, strict=True):
            indices, values = zip(*(pixel.split(":") for pixel in pixels), strict=True)
            image[np.array(indices, np.int64) - 1] = np.rint(np.array(values, np.float64) * 1000)
        labels = np.array([int(float(row[0])) - 1 for row in rows], np.uint8)
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{label} does not hold images of 256 pixels in LIBSVM's format: {error}") from error
    return images.reshape(-1, 16, 16), labels


def read_npz(*names: str) -> Reader:
    """A reader of the arrays of these names in an ``.npz``."""

    def read(raw: bytes, label: str) -> Arrays:
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
                return tuple(archive[name] for name in names)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{label} is no .npz with {', '.join(names)}: {error}") from error

    return read


_MAT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15


def read_mat(*names: str) -> Reader:
    """A reader of numeric arrays in a little-endian MAT file, version 5 (MathWorks, "MAT-File Format", chapter 1)."""

    def read(raw: bytes, label: str) -> Arrays:
        if raw[126:128] != b"IM":
            raise DataError(f"{label} is no little-endian MAT file of version 5")
        try:
            found = dict(_mat_matrix(body) for kind, body in _mat_elements(raw[128:]) if kind == _MAT_MATRIX)
            return tuple(_present(found, name, label) for name in names)
        except (KeyError, ValueError, IndexError, zlib.error) as error:
            raise DataError(f"{label} is a MAT file of another kind, or is cut off: {error!r}") from error

    return read


def _mat_elements(raw: bytes) -> list[tuple[int, bytes]]:
    """Type and contents of each data element, decompressed."""
    found, at = [], 0
    while at < len(raw):
        kind, size = (int.from_bytes(raw[at + skip : at + skip + 4], "little") for skip in (0, 4))
        start = at + 8
        if kind >> 16:  # a small element: type and size share four bytes, and the contents are the next four
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        body = raw[start : start + size]
        if len(body) < size:
            raise ValueError("an element ends after the file")
        if kind == _MAT_COMPRESSED:
            found += _mat_elements(zlib.decompress(body))
            at = start + size
        else:
            found.append((kind, body))
            at = start + size + (-(start + size)) % 8
    return found


def _mat_matrix(body: bytes) -> tuple[str, np.ndarray]:
    """Name and values: flags, sizes, name and the real part, in the order of Fortran."""
    _, (_, sizes), (_, name), (kind, values) = _mat_elements(body)[:4]
    shape = np.frombuffer(sizes, "<i4")
    return name.decode("ascii"), np.frombuffer(values, f"<{_MAT_TYPES[kind]}").reshape(shape, order="F")


HAR_SIGNALS = tuple(f"{sensor}_{axis}" for sensor in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")


def read_har_archive(raw: bytes, label: str) -> Arrays:
    """Windows ``[n, 9, 128]``, activities from 0 and people of UCI HAR's zip, training rows first.

    The archive lies in a second one of the same format today, and did not before.

    Raises:
        DataError: a file is missing or has another size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if "UCI HAR Dataset.zip" in archive.namelist():
                return read_har_archive(archive.read("UCI HAR Dataset.zip"), label)

            def read(name: str) -> bytes:
                return archive.read(f"UCI HAR Dataset/{name}")

            parts = [read_har_part(read, part, label) for part in ("train", "test")]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{label} is no archive of UCI HAR: {error}") from error
    windows, labels, people = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return windows, labels, people


def read_har_part(
    read: Callable[[str], bytes], part: str, label: str
) -> tuple[Float32[np.ndarray, "n 9 128"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Windows, activities from 0 and people from 1 of ``train`` or ``test`` of UCI HAR.

    :param read: gives the contents of a file by its path in the data set's folder.
    Raises:
        DataError: a file has another form; names file and line.
    """

    def numbers(name: str, columns: int) -> np.ndarray:
        path = f"{part}/{name}_{part}.txt"
        return _lines(read(path), columns, f"{label}: {path}")

    labels, people = (numbers(name, 1)[:, 0] for name in ("y", "subject"))
    signals = {signal: numbers(f"Inertial Signals/{signal}", 128) for signal in HAR_SIGNALS}
    for name, rows in {"subject": people, **signals}.items():
        if len(rows) != len(labels):
            raise DataError(f"{label}: {part} has {len(rows)} lines of {name}, but {len(labels)} of y; it is cut off")
    for name, values in (("y", labels), ("subject", people)):
        if len(odd := np.flatnonzero((values != np.trunc(values)) | (values < 1) | (values > 255))):
            line = f"line {odd[0] + 1} has {values[odd[0]]:g}"
            raise DataError(f"{label}: {part}/{name}_{part}.txt, {line}; activities and people are numbered from 1")
    return (
        np.stack([*signals.values()], axis=1).astype(np.float32),
        labels.astype(np.int64) - 1,
        people.astype(np.int64),
    )


def _lines(raw: bytes, columns: int, label: str) -> Float64[np.ndarray, "n columns"]:
    """Finite numbers, so many a line; blank lines at the end do not count."""
    rows = [line.split() for line in raw.rstrip().splitlines()]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise DataError(f"{label}, line {number} has {len(row)} numbers, must have {columns}; it is cut off")
    try:
        values = np.array(rows, np.float64).reshape(-1, columns)
    except ValueError as error:
        raise DataError(f"{label} has what is no number: {error}") from None
    if len(odd := np.argwhere(~np.isfinite(values))):
        raise DataError(f"{label}, line {odd[0][0] + 1} has a number that is not finite")
    return values


def _present(found: Mapping[str, T | None], name: str, label: str) -> T:
    value = found.get(name)
    if value is None:
        raise DataError(f"{label} has no {name!r}: it holds {', '.join(found)}")
    return value
