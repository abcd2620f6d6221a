"""From what a user writes to a data set: a name, an ``.npz`` file, or a function of their own."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from interfuse.data.catalogue import SOURCES
from interfuse.data.dataset import Dataset, stratified_subset
from interfuse.data.fetch import Places
from interfuse.data.sources import DIGITS, DIGITS_INFO, DatasetInfo, load_digits
from interfuse.errors import ConfigError, DataError, nearest
from interfuse.randomness import numpy_generator
from interfuse.references import is_reference, load_reference

TEST_FRACTION = 5  # one row in five of an .npz without a split of its own

_SPLITS = (("x_train", "y_train", "x_test", "y_test"), ("X_train", "y_train", "X_test", "y_test"))
_WHOLES = (("x", "y"), ("X", "y"))


def load(name_or_ref: str | Dataset) -> Dataset:
    """The data set that is meant:

    - a name of :func:`available`;
    - the path of an ``.npz`` with ``x_train, y_train, x_test, y_test``, or with ``x, y`` (then a fixed stratified fifth
      is the test set), and optionally ``groups``, the natural client of each row of ``x_train`` or ``x``, and
      ``task``, the name of one, where it is another than targets look like (see :meth:`Dataset.from_arrays`);
    - ``package.module:function`` or ``path/file.py:function``, a function without arguments that returns a
      :class:`Dataset` or ``(x_train, y_train, x_test, y_test)``, see :meth:`Dataset.from_arrays`;
    - a :class:`Dataset`, which is returned as it is.

    Raises:
        ConfigError: there is no such name, or the reference leads nowhere.
        DataError: the data is missing, corrupt, or has the wrong form.
    """
    if isinstance(name_or_ref, Dataset):
        return name_or_ref
    if name_or_ref == DIGITS:
        return load_digits()
    if name_or_ref in SOURCES:
        return SOURCES[name_or_ref].load(Places.from_environment())
    if name_or_ref.endswith(".npz"):
        return _load_npz(Path(name_or_ref).expanduser())
    if is_reference(name_or_ref):
        return _call(name_or_ref)
    raise ConfigError(
        f"unknown data set {name_or_ref!r}: {nearest(name_or_ref, [DIGITS, *SOURCES])}; or give the path of an .npz, "
        "or 'package.module:function' or 'file.py:function', which may return interfuse.data.load_table('rows.csv', "
        "'label')"
    )


def available() -> list[DatasetInfo]:
    """The named data sets and whether they are here; nothing is downloaded or read."""
    places = Places.from_environment()
    return [DIGITS_INFO, *(source.info(places) for source in SOURCES.values())]


def _load_npz(path: Path) -> Dataset:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        # NumPy's own advice is to allow pickles, which run code.
        reason = "it holds Python objects; save arrays of numbers" if "pickle" in str(error).lower() else str(error)
        raise DataError(f"cannot read {path}: {reason}") from error
    groups, task = arrays.get("groups"), str(arrays["task"]) if "task" in arrays else None
    for names in _SPLITS:
        if all(name in arrays for name in names):
            return Dataset.from_arrays(path.stem, *(arrays[name] for name in names), groups=groups, task=task)
    for x, y in _WHOLES:
        if x in arrays and y in arrays:
            return _split(path.stem, arrays[x], arrays[y], groups, task)
    raise DataError(
        f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; it needs x_train, y_train, x_test, y_test, or x and y"
    )


def _split(name: str, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None, task: str | None) -> Dataset:
    for part, array in (("y", y), ("groups", groups)):
        if array is not None and array.shape[: 1 if part == "y" else None] != x.shape[:1]:
            raise DataError(f"data set {name!r}: {part} has shape {list(array.shape)}, but x has {len(x)} rows")
    whole = Dataset.from_arrays(name, x, y, x[:0], y[:0], task=task)
    strata = whole.task.strata(whole.y_train)
    test = stratified_subset(strata, len(y) // TEST_FRACTION, numpy_generator(0, "data", "test"))
    train = np.delete(np.arange(len(y)), test)
    return Dataset.from_arrays(
        name,
        x[train],
        y[train],
        x[test],
        y[test],
        groups=None if groups is None else groups[train],
        task=whole.task.name,
    )


def _call(reference: str) -> Dataset:
    function = load_reference(reference)
    if not callable(function):
        raise ConfigError(f"{reference!r} is no function; name one that returns a data set")
    found = function()
    if isinstance(found, Dataset):
        return found
    if isinstance(found, tuple) and len(found) == 4:
        return Dataset.from_arrays(reference, *found)
    raise DataError(
        f"{reference!r} returned {type(found).__name__}; it must return a Dataset or (x_train, y_train, x_test, y_test)"
    )
