"""Data as people hold it, by path: each format has a module that recognises it and reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interfuse.data.dataset import Dataset
from interfuse.data.readers import arrays, htfllib, huggingface, images, leaf, tables, uci_har
from interfuse.data.reading import ReadOptions
from interfuse.errors import DataError, InterfuseError


@dataclass(frozen=True)
class Reader:
    """A format.

    Attributes:
        format: What people call it.
        recognises: Whether a path, which exists, holds it; it looks at names and first bytes and reads nothing whole.
        read: The data set, with :attr:`.Dataset.reading`. Raises :class:`.DataError` with the file, and row and column
            where there are such, and one sentence that helps.
    """

    format: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Dataset]


READERS: tuple[Reader, ...] = (
    Reader(leaf.FORMAT, leaf.recognises, leaf.read),
    Reader(htfllib.FORMAT, htfllib.recognises, htfllib.read),
    Reader(uci_har.FORMAT, uci_har.recognises, uci_har.read),
    Reader(huggingface.FORMAT, huggingface.recognises, huggingface.read),
    Reader("an .npz of arrays", arrays.recognises, arrays.read),
    Reader("a CSV or Parquet table", tables.recognises, tables.read),
    Reader("a folder of images by class", images.recognises, images.read),
)
"""In the order in which they are asked: the particular before the general."""


HINTS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "export the sheet as CSV"),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".tar", ".tgz", ".7z"), "unpack it"),
    **dict.fromkeys((".data", ".txt", ".dat"), "a table with a first line of names may be renamed to .csv"),
    ".npy": "save it as .npz with x and y (numpy.savez)",
}
"""What to do with a file that is none of these, by its ending."""


def format_of(path: Path) -> str | None:
    """What people call the format of a path; None where it is not there, or none of them."""
    if not path.exists():
        return None
    return next((reader.format for reader in READERS if reader.recognises(path)), None)


def read_path(path: Path, options: ReadOptions) -> Dataset:
    """The data set of a file or folder; all of its rows are training rows where it has no test rows of its own.

    Raises:
        DataError: there is no such path, no format is recognised, its reader refuses it, or whatever lies there has
            the reader's libraries fail.
    """
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    try:
        for reader in READERS:
            if reader.recognises(path):
                return reader.read(path, options)
    except InterfuseError:
        raise
    except Exception as error:  # whatever a format's library raises at a file that somebody made up
        reason = (str(error).splitlines() or [""])[0][:300]
        raise DataError(f"{path} cannot be read, it may be damaged: {type(error).__name__}: {reason}") from error
    hint = HINTS.get(path.suffix.lower() if path.is_file() else "", "")
    formats = f"{', '.join(reader.format for reader in READERS[:-1])} or {READERS[-1].format}"
    raise DataError(f"{path} is not {formats}{hint and f': {hint}'}")
