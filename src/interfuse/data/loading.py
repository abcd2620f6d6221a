"""From what a user writes to a data set: a name, a path of any format, or a function of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interfuse.data.catalogue import SOURCES, TASK_SETS
from interfuse.data.dataset import Dataset
from interfuse.data.fetch import Places
from interfuse.data.readers import READERS, format_of, read_path
from interfuse.data.reading import Layout, ReadOptions
from interfuse.data.sources import DIGITS, DIGITS_INFO, DatasetInfo, load_digits
from interfuse.errors import ConfigError, DataError, nearest
from interfuse.references import IN_MEMORY, is_reference, load_reference


def load(
    source: str | Path | Dataset,
    *,
    label: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    task: str | None = None,
    group: str | None = None,
    drop: str | Sequence[str] | None = None,
    layout: Layout | None = None,
    tasks: Sequence[str] = (),
    rows: int | Sequence[int] | None = None,
    test_rows: int | None = None,
    place: int | None = None,
    tokenizer: str | Sequence[str] = (),
    length: int | None = None,
    side: int | None = None,
    revision: str | None = None,
) -> Dataset:
    """The data set that is meant:

    - a name of :func:`available`, of which those that are made of tasks take ``tasks``, ``rows``, ``test_rows`` and
      ``place``, those of texts also ``tokenizer`` and ``length``, and those of a hub ``side`` and ``revision``;
    - the path of a file or folder: a table (CSV, Parquet), a folder of images, an ``.npz``, and what else
      docs/data.md lists. Where it has no test rows, a fixed fifth is the test set, see :meth:`Dataset.with_held_out`;
    - ``package.module:function`` or ``path/file.py:function``, a function without arguments that returns a
      :class:`Dataset` or ``(x_train, y_train, x_test, y_test)``, see :meth:`Dataset.from_arrays`;
    - a :class:`Dataset`, which is returned as it is.

    How a path is read is told by :class:`.reading.ReadOptions`, whose fields are the other arguments.

    Raises:
        ConfigError: there is no such name, the reference leads nowhere, or an option cannot be used.
        DataError: the data is missing, corrupt, or has the wrong form, or two readings are likely.
    """
    files = {"label": label, "classes": classes, "task": task, "group": group, "drop": drop, "layout": layout}
    made = {
        "tasks": tasks,
        "rows": rows,
        "test_rows": test_rows,
        "place": place,
        "tokenizer": tokenizer,
        "length": length,
        "side": side,
        "revision": revision,
    }
    return load_with(source, ReadOptions.of({**files, **made}))


def load_with(source: str | Path | Dataset, options: ReadOptions) -> Dataset:
    """As :func:`load`."""
    if not is_read(source):
        options.only(format="what is no file or folder")
    if isinstance(source, Dataset):
        return source
    if source == DIGITS:
        return load_digits()
    if source in SOURCES:
        return SOURCES[str(source)].load(Places.from_environment())
    if source in TASK_SETS:
        return TASK_SETS[str(source)].load(options)
    if is_path(source):
        return read_path(Path(source).expanduser(), options).with_held_out()
    if is_reference(str(source)):
        return _call(str(source))
    formats = ", ".join(reader.format for reader in READERS)
    raise ConfigError(
        f"unknown data set {str(source)!r}: {nearest(str(source), [DIGITS, *SOURCES, *TASK_SETS])}; or give the path "
        f"of {formats}, or 'package.module:function' or 'file.py:function'"
    )


def is_path(source: str | Path | Dataset, folder: Path = Path()) -> bool:
    """Whether a source is meant as a file or folder: it is one, or it looks like one that is missing.

    Args:
        folder: Where relative paths begin.
    """
    if isinstance(source, Dataset) or source in ("", DIGITS) or source in SOURCES or source in TASK_SETS:
        return False
    text = str(source)
    if text.startswith(IN_MEMORY) or (is_reference(text) and ".py:" in text):
        return False
    if isinstance(source, Path) or (folder / Path(text).expanduser()).exists():
        return True
    return not is_reference(text) and ("/" in text or Path(text).suffix != "")


def is_read(source: str | Path | Dataset) -> bool:
    """Whether options of reading say something of a source: it is a path, or a named set that is made of tasks."""
    return is_path(source) or source in TASK_SETS


def family_of(source: str) -> str | None:
    """What people call the format of a path, or the family of a set that is made of tasks; None: it is neither."""
    return type(TASK_SETS[source]).__name__ if source in TASK_SETS else format_of(Path(source).expanduser())


def available() -> list[DatasetInfo]:
    """The named data sets and whether they are here; nothing is downloaded or read."""
    places = Places.from_environment()
    made = (made.info() for made in TASK_SETS.values())
    return [DIGITS_INFO, *(source.info(places) for source in SOURCES.values()), *made]


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
