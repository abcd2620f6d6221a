"""``.npz`` files: arrays by name."""

from __future__ import annotations

import math
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.reading import LAYOUTS, UNREADABLE, Layout, Reading, ReadOptions, listed
from interfuse.data.targets import clean, plain_origin, read_targets
from interfuse.data.task import Classification, Task
from interfuse.errors import DataError, nearest
from interfuse.opening import opened

SPLITS = (("x_train", "y_train", "x_test", "y_test"), ("X_train", "y_train", "X_test", "y_test"))
WHOLES = (("x", "y"), ("X", "y"))
GROUPS = ("groups", "group", "people", "subject", "subjects")
"""Names of the array that says whose a row is."""
HELD_GROUPS = "test_groups"
"""That which says it of the test rows, by the same numbers or names."""
FACTS = ("blocks", "task", "layout", "channels", "class_names")
"""What else is read: overlapping rows, and texts."""
MOST_BYTES = 1 << 36
"""Of all arrays of a file, unpacked."""
AXES: Mapping[tuple[str, int], Layout] = {
    ("first", 3): "signals",
    ("last", 3): "signals-last",
    ("first", 4): "images",
    ("last", 4): "images-last",
    ("first", 5): "volumes",
    ("last", 5): "volumes-last",
}


def recognises(path: Path) -> bool:
    """Whether it is a file with this ending."""
    return path.is_file() and path.suffix.lower() == ".npz"


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set in an ``.npz``.

    It has ``x_train, y_train, x_test, y_test``, or ``x, y``; and may have ``groups`` (or ``people``, ``subject``) and
    ``blocks``, of each row of ``x_train`` or ``x``; ``test_groups``, of each row of ``x_test``; ``class_names``;
    and the texts ``task``, ``layout``, or ``channels`` (``first`` or ``last``). What options say goes before those.

    Raises:
        DataError: it cannot be read, lacks an array, or two readings are likely.
    """
    options.only("classes", "task", "group", "layout", format="an .npz")
    arrays = _arrays(path)
    found = [names for names in (*SPLITS, *WHOLES) if all(name in arrays for name in names)]
    if not found:
        raise DataError(
            f"{path} holds {listed(sorted(arrays)) or 'nothing'}; it needs x_train, y_train, x_test, y_test, or x and y"
        )
    names = found[0]
    if len(found) > 1:
        raise DataError(f"{path} holds both {' and '.join(other[0] for other in found[:2])}; leave one of them out")
    x, y = arrays[names[0]], arrays[names[1]]
    if y.ndim == 0 or x.ndim == 0 or len(x) != len(y):
        raise DataError(f"{path}: {names[1]} has shape {list(y.shape)}, but {names[0]} {list(x.shape)}")
    x_held, y_held = (arrays[names[2]], arrays[names[3]]) if len(names) == 4 else (x[:0], y[:0])
    group = _group(path, arrays, options.group)
    blocks = arrays.get("blocks")
    for part, values in ((group, arrays.get(group)), ("blocks", blocks)):
        if values is not None and values.shape != x.shape[:1]:
            raise DataError(f"{path}: {part} has shape {list(values.shape)}, but {names[0]} has {len(x)} rows")
    tested = arrays.get(HELD_GROUPS)
    if tested is not None and (not group or tested.shape != x_held.shape[:1]):
        problem = (
            f"but {names[2]} has {len(x_held)} rows" if len(names) == 4 and group else "but no groups, or test rows"
        )
        raise DataError(f"{path}: {HELD_GROUPS} has shape {list(tested.shape)}, {problem}")
    layout = _layout(path, arrays, options, x, names[0])
    reading = Reading("npz", ((names[0], f"{x.dtype} {list(x.shape)}"), (names[1], f"{y.dtype} {list(y.shape)}")))
    if group:
        reading = reading.saying("group", group)
    used = {*names, group, HELD_GROUPS, *FACTS}
    if unused := sorted(arrays.keys() - used):
        reading = reading.saying("left out", f"{listed(unused)}: not among the names that are read")
    task: Task | str | None = options.task or _word(path, arrays, "task")
    class_names = _class_names(path, arrays)
    if options.classes is not None:
        sides = ((y, plain_origin(names[1])), (y_held, plain_origin(names[-1])))
        if class_names is not None and {*class_names} & {*options.classes} and task in (None, Classification.name):
            # other names go before those of the file; the same ones say the order
            known = read_targets(*sides, task, class_names)
            as_texts = np.array(class_names, dtype=object)
            sides = ((as_texts[known.train], sides[0][1]), (as_texts[known.test], sides[1][1]))
        targets = read_targets(*sides, task, options.classes, names_are_values=True)
        y, y_held, task, class_names = targets.train, targets.test, targets.task, None
    return Dataset.from_arrays(
        path.stem,
        x,
        y,
        x_held,
        y_held,
        task=task,
        layout=layout,
        class_names=class_names,
        groups=arrays.get(group),
        blocks=blocks,
        test_groups=tested,
        reading=reading,
    )


ARCHIVE, PICKLE = b"PK", b"\x80"
"""With what an ``.npz`` begins, and with what a pickle does."""
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # in UTF-8: names of columns read otherwise, sizes and types do not
}


_IN_TURN = threading.Lock()
"""Headers are Python's literals, and CPython 3.11 may fail at those that two threads parse at once ("AST constructor
recursion depth mismatch")."""


class HoldsObjectsError(ValueError):
    """An array of Python objects, which would have to be unpickled. Its text names the array."""


def _arrays(path: Path) -> dict[str, np.ndarray]:
    at = "it"
    try:
        with _IN_TURN, opened(path) as file:
            check_archive(file)
            archive = np.load(file, allow_pickle=False)
            twice = sorted({name for name in archive.files if archive.files.count(name) > 1})
            if twice:
                raise DataError(f"{path} holds {listed(twice)} twice; write it anew")
            arrays = {}
            for name in archive.files:
                at = name
                arrays[name] = archive[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise DataError(f"{path}: {name} is no array; write it with numpy.savez")
            return arrays
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except UNREADABLE as error:
        reason = str(error) or f"{at}: {type(error).__name__}"
        if isinstance(error, HoldsObjectsError):
            reason += (
                " holds Python objects; save arrays of numbers, and texts by .astype(str) (of HtFLlib and PFLlib: "
                "interfuse convert FOLDER OUT)"
            )
        raise DataError(f"cannot read {path}: {reason}") from error


def check_archive(file: IO[bytes]) -> None:
    """Check that a file is an ``.npz``, and that arrays in it are as large as their headers say, before memory is taken
    for them. A pickle, which NumPy would offer to run, is known by its own first byte.

    Raises:
        ValueError: it is none, an array is not, or all together are larger than :data:`MOST_BYTES`. Other errors: it is
            damaged.
    """
    place = file.tell()
    begin = file.read(len(ARCHIVE))
    file.seek(place)
    if begin[:1] == PICKLE:
        raise HoldsObjectsError("it")
    if begin != ARCHIVE:
        raise ValueError("it is no .npz; write it with numpy.savez")
    with zipfile.ZipFile(file) as archive:
        if (whole := sum(info.file_size for info in archive.infolist())) > MOST_BYTES:
            raise ValueError(f"it unpacks to {whole:,} bytes: at most {MOST_BYTES:,} are read")
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            try:
                with archive.open(info) as member:
                    check_array(member, info.file_size)
            except HoldsObjectsError:
                raise HoldsObjectsError(name) from None
            except ValueError as error:
                raise ValueError(f"{name} is no array; write it with numpy.savez ({error})") from error
    file.seek(place)


def check_array(file: IO[bytes], size: int) -> None:
    """Check that an array of so many bytes, header included, is as large as its header says.

    Raises:
        ValueError: it is not, or it holds Python objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its header is of version {'.'.join(map(str, version))}, which is not known")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise HoldsObjectsError("it")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array of {dtype} {list(shape)} has another number of bytes: {size - file.tell():,}")


def _class_names(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    """Names of classes by number that the file says."""
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.ndim != 1:
        raise DataError(f"{path}: class_names has shape {list(names.shape)}, must be one name a class")
    return tuple(str(name) for name in clean(names.astype(object), plain_origin("class_names")).tolist())


def _group(path: Path, arrays: Mapping[str, np.ndarray], asked: str | None) -> str:
    if asked is not None and asked not in arrays:
        raise DataError(f"{path} has no array {asked!r}: {nearest(asked, arrays)}")
    known = [asked] if asked is not None else [name for name in GROUPS if name in arrays]
    if len(known) > 1:
        raise DataError(f"{path} has {' and '.join(known)}: say which one says whose a row is, group={known[0]}")
    return known[0] if known else ""


def _word(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> str | None:
    """A text that the file says."""
    if name not in arrays:
        return None
    if arrays[name].size != 1:
        raise DataError(f"{path}: {name} is {arrays[name].dtype} {list(arrays[name].shape)}, must be a single text")
    value = arrays[name].item()
    return value.decode() if isinstance(value, bytes) else str(value)


def _layout(
    path: Path, arrays: Mapping[str, np.ndarray], options: ReadOptions, x: np.ndarray, part: str
) -> Layout | None:
    if options.layout is not None:
        return options.layout
    said, channels = _word(path, arrays, "layout"), _word(path, arrays, "channels")
    if said is not None:
        if said not in LAYOUTS:
            raise DataError(f"{path}: layout {said!r}: {nearest(said, LAYOUTS)}")
        return said
    if channels is not None:
        if (channels, x.ndim) not in AXES:
            raise DataError(f"{path}: channels is {channels!r}, must be 'first' or 'last', for {part} of 3 to 5 axes")
        return AXES[channels, x.ndim]
    if x.ndim == 2 and x.dtype.kind in "iu" and x.dtype != np.uint8:
        raise DataError(
            f"{path}: {part} has whole numbers ({x.dtype}) and shape {list(x.shape)}, which may be columns of a table "
            "or numbers of tokens: say layout=table or layout=tokens (as an option, or as a text `layout` in the file)"
        )
    return None
