"""HtFLlib's and PFLlib's folders: ``train/0.npz``, ``test/0.npz``, ... of each client, and ``config.json``.

Each file holds one pickled dictionary ``{"x": ..., "y": ...}``. A pickle is a program, so such a folder is never read
as data: :func:`convert` makes one ``.npz`` of arrays from it, by a reader of its own (see :mod:`.pickled`).
"""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.readers.pickled import arrays_of
from interfuse.data.reading import UNREADABLE, ReadOptions, listed
from interfuse.errors import DataError
from interfuse.opening import json_in, opened

FORMAT = "a folder of HtFLlib or PFLlib"
LARGEST = 2 * 2**30
"""Most bytes that one client's file may unpack to."""
MOST_CLASSES = 2**16
_CLIENT = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)


@dataclass(frozen=True)
class _Part:
    """A client's samples, and what errors call them."""

    label: str
    x: np.ndarray
    y: np.ndarray


def recognises(path: Path) -> bool:
    """Whether a folder has clients' files in ``train/``, or is such a ``train`` or ``test``."""
    return bool(_files(path, "train") or (path.name in ("train", "test") and _files(path.parent, path.name)))


def read(path: Path, options: ReadOptions) -> Dataset:
    """Never: says how to convert it.

    Raises:
        DataError: always.
    """
    root = path if _files(path, "train") else path.parent
    raise DataError(
        f"{path} holds pickles, which can run code when they are loaded; convert it once: interfuse convert "
        f"{shlex.quote(str(root))} {shlex.quote(root.resolve().name)}.npz"
    )


def convert(source: Path, out: Path) -> list[str]:
    """Write the arrays of all clients into one ``.npz``: x_train, y_train, x_test, y_test, groups, test_groups and
    class_names.

    ``groups`` and ``test_groups`` have the client of each row, so ``--partition natural`` gives each client its
    training rows again, and ``test = "source"`` its test rows. Those of all clients are the common test set.

    Returns: what was found, a line each.
    Raises:
        DataError: ``source`` is no such folder, or a file is damaged, has other things than arrays of numbers, or
            contradicts the others or ``config.json``; or ``out`` is there.
    """
    if out.suffix != ".npz":
        raise DataError(f"{out}: give the path of an .npz to write")
    if out.exists():
        raise DataError(f"{out} is there already; give another path")
    files = {part: _files(source, part) for part in ("train", "test")}
    known = {file for part in files.values() for file in part.values()}
    if strange := [file for part in files for file in sorted((source / part).glob("[!.]*.npz")) if file not in known]:
        raise DataError(f"{strange[0]} is not named by the number of a client, such as 7.npz; take it away")
    if not files["train"]:
        raise DataError(f"{source} has no train/0.npz, train/1.npz, ...; give the folder that holds train and test")
    if odd := sorted(files["train"].keys() ^ files["test"].keys()):
        raise DataError(f"{source}: client {odd[0]} has a file in one of train and test only; it is not whole")
    train, test = ([_read(files[part][client]) for client in sorted(files[part])] for part in ("train", "test"))
    _check_alike([*train, *test])
    classes, facts = _checked(source, train, test)
    try:
        with out.open("xb") as file:
            np.savez_compressed(
                file,
                x_train=np.concatenate([part.x for part in train]),
                y_train=np.concatenate([part.y for part in train]),
                x_test=np.concatenate([part.x for part in test]),
                y_test=np.concatenate([part.y for part in test]),
                groups=np.repeat(sorted(files["train"]), [len(part.y) for part in train]),
                test_groups=np.repeat(sorted(files["test"]), [len(part.y) for part in test]),
                class_names=np.array([str(label) for label in range(classes)]),
            )
    except OSError as error:
        if not isinstance(error, FileExistsError):
            out.unlink(missing_ok=True)
        raise DataError(f"cannot write {out}: {error.strerror}") from error
    return facts


def _files(folder: Path, part: str) -> dict[int, Path]:
    """The files of a part by client, whose number is written as ``7`` and not as ``07``."""
    return {int(file.stem): file for file in (folder / part).glob("*.npz") if _CLIENT.fullmatch(file.stem)}


def _read(file: Path) -> _Part:
    try:
        stream = _unpacked(file)
    except UNREADABLE as error:
        raise DataError(f"cannot read {file}: {str(error) or type(error).__name__}") from error
    arrays = arrays_of(stream, str(file))
    if arrays.keys() != {"x", "y"}:
        raise DataError(f"{file} holds {_shown(arrays)}; it needs x and y alone")
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{file}: x has shape {list(x.shape)}, y {list(y.shape)}; it needs one y for each row of x")
    if y.dtype.kind not in "iu":
        raise DataError(f"{file}: y is {y.dtype}; it needs whole numbers of classes")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= MOST_CLASSES):
        raise DataError(f"{file}: labels go from {y.min()} to {y.max()}; they must be numbers of classes, from 0")
    return _Part(str(file), x, y.astype(np.int64))


def _unpacked(file: Path) -> io.BytesIO:
    """The pickle in a file, from where it begins.

    Raises:
        ValueError: there is none, or it is too large; other errors: the file is damaged.
    """
    with opened(file) as source, zipfile.ZipFile(source) as archive:
        names = [info.filename for info in archive.infolist()]
        if names != ["data.npy"]:
            raise ValueError(f"it holds {_shown(names)}, not data; it is no file of HtFLlib or PFLlib")
        info = archive.getinfo("data.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed as NumPy compresses nothing")
        if info.file_size > LARGEST:
            raise ValueError(f"it unpacks to {info.file_size:,} bytes, more than the {LARGEST:,} of a client")
        raw = io.BytesIO(archive.read(info))
    if np.lib.format.read_magic(raw) != (1, 0):
        raise ValueError("it is no array as NumPy saves a dictionary")
    shape, _, dtype = np.lib.format.read_array_header_1_0(raw)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"it holds an array of {dtype} with shape {list(shape)}, not a dictionary")
    return raw


def _shown(names: Iterable[str]) -> str:
    """Names that anybody may have chosen, short, and without what a terminal would obey."""
    return listed([name[:40] if name.isprintable() else repr(name[:40]) for name in names]) or "nothing"


def _check_alike(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts:
        if part.x.shape[1:] != first.x.shape[1:] or part.x.dtype != first.x.dtype:
            raise DataError(
                f"{part.label} has samples {part.x.dtype} {list(part.x.shape[1:])}, but {first.label} {first.x.dtype} "
                f"{list(first.x.shape[1:])}; clients must have alike"
            )


def _checked(source: Path, train: Sequence[_Part], test: Sequence[_Part]) -> tuple[int, list[str]]:
    """The number of classes, and what is to be said; checked against ``config.json`` where it is there."""
    counts = np.bincount(np.concatenate([part.y for part in [*train, *test]]))
    if not counts.sum():
        raise DataError(f"{source} has no samples")
    rows = [sum(len(part.y) for part in parts) for parts in (train, test)]
    facts = [
        f"{len(train)} clients, {rows[0]} training rows {train[0].x.dtype} {list(train[0].x.shape[1:])}",
        f"{rows[1]} test rows of all clients: the common test set; with --test source each client has its own of them",
    ]
    config = _config(source / "config.json")
    if config is None:
        return len(counts), [
            *facts,
            f"no config.json: labels go to {len(counts) - 1}, so there are {len(counts)} classes",
        ]
    clients, classes = config
    if classes > MOST_CLASSES:
        raise DataError(f"{source}: config.json says {classes} classes; at most {MOST_CLASSES} can be read")
    if clients != len(train):
        raise DataError(
            f"{source}: config.json says {clients} clients, but train/ has {len(train)} files; it is not whole"
        )
    if classes < len(counts):
        raise DataError(f"{source}: config.json says {classes} classes, but a label is {len(counts) - 1}")
    absent = np.flatnonzero(np.pad(counts, (0, classes - len(counts))) == 0).tolist()
    return classes, [*facts, f"{classes} classes" + (f", of which nobody has {absent}" if absent else "")]


def _config(file: Path) -> tuple[int, int] | None:
    """Numbers of clients and classes."""
    try:
        config = json_in(file)
        return int(config["num_clients"]), int(config["num_classes"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(f"cannot read num_clients and num_classes of {file}: {error!r}") from error
