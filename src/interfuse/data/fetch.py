"""Find the files of a data set, verify them by SHA-256, download what is missing, decode each once.

A file is looked for in three places, in this order:

1. the folder that the environment variable ``INTERFUSE_DATA`` names, as ``<set>/<file>`` or in torchvision's layout
   (``MNIST/raw/<file>``), unpacked or not;
2. the cache: the folder ``INTERFUSE_CACHE``, or the user's cache folder;
3. the network: first under the URL ``INTERFUSE_MIRROR`` (as ``<mirror>/<set>/<file>``), then the official places.

Nothing whose hash is wrong is ever decoded.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import pooch  # type: ignore[import-untyped]
import requests
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from interfuse.data.formats import Arrays, Reader
from interfuse.errors import ConfigError, DataError

TRIES = 2
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16  # bytes; what a broken transfer loses at most

_UNPACK = {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set: what it is, how it is read and where it is found.

    :param folder: of the set, here and under a mirror.
    :param elsewhere: another folder it may have here, that of other tools: ``MNIST/raw``, ``cifar-10-batches-bin``.
    :param name: as published; one that ends in ``.gz``, ``.xz`` or ``.bz2`` is that of a packed file.
    :param sha256: of the file as published.
    :param unpacked_sha256: of the file unpacked; None where it is not known, and then only the packed one is accepted.
    :param bases: URL prefixes of the official places, without the file's name.
    :param read: makes arrays of the unpacked contents.
    """

    folder: str
    elsewhere: str
    name: str
    sha256: str
    unpacked_sha256: str | None
    bases: tuple[str, ...]
    read: Reader

    @property
    def label(self) -> str:
        """What errors and progress bars call the file."""
        return f"{self.folder}/{self.name}"

    def copies(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Every path under ``root`` that may hold this file, with the SHA-256 it must have there."""
        for folder in (root / self.folder, root / self.elsewhere):
            yield folder / self.name, self.sha256
            if self.unpacked_sha256 is not None:
                yield folder / Path(self.name).stem, self.unpacked_sha256


class Hashed(Protocol):
    """What has a SHA-256."""

    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Places:
    """Where files are looked for.

    :param data: the user's own folder, only read; None for none.
    :param cache: folder that interfuse writes to.
    :param mirror: URL prefix tried before the official places; None for none.
    """

    data: Path | None
    cache: Path
    mirror: str | None = None

    @classmethod
    def from_environment(cls) -> Places:
        """The places that INTERFUSE_DATA, INTERFUSE_CACHE and INTERFUSE_MIRROR name.

        Raises:
            ConfigError: INTERFUSE_DATA is no folder.
        """
        data = os.environ.get("INTERFUSE_DATA")
        if data and not Path(data).expanduser().is_dir():
            raise ConfigError(f"INTERFUSE_DATA names {data!r}, which is no folder; correct it or unset it")
        return cls(
            data=Path(data).expanduser() if data else None,
            cache=Path(os.environ.get("INTERFUSE_CACHE") or pooch.os_cache("interfuse")).expanduser(),
            mirror=os.environ.get("INTERFUSE_MIRROR") or None,
        )

    def own_copy(self, file: RemoteFile) -> tuple[Path, str] | None:
        """The first copy of ``file`` in the user's folder and the hash it must have; not verified."""
        if self.data is None:
            return None
        return next((copy for copy in file.copies(self.data) if copy[0].is_file()), None)

    def own(self, file: RemoteFile) -> bool:
        """Whether the user's folder holds ``file``."""
        return self.own_copy(file) is not None

    def here(self, file: RemoteFile) -> bool:
        """Whether ``file`` can be had without a download."""
        return self.own(file) or self.decoded(file).is_file() or self.cached(file).is_file()

    def cached(self, file: RemoteFile) -> Path:
        """Where the cache holds ``file`` if it does."""
        return self.cache / file.folder / file.name

    def decoded(self, origin: Hashed) -> Path:
        """Where the cache holds the arrays of a file, or of a package, if it does."""
        return self.cache / "decoded" / f"{origin.sha256}.npz"

    def urls(self, file: RemoteFile) -> list[str]:
        """Where ``file`` is downloaded from, in the order of trial."""
        mirrors = [] if self.mirror is None else [f"{self.mirror.rstrip('/')}/{file.folder}/{file.name}"]
        return [*mirrors, *(f"{base.rstrip('/')}/{file.name}" for base in file.bases)]


def registered(path: Path) -> Mapping[str, str]:
    """The SHA-256 of every file in a registry of pooch's format."""
    files = pooch.Pooch("", "")
    files.load_registry(path)
    return MappingProxyType(files.registry)


def load_arrays(file: RemoteFile, places: Places) -> Arrays:
    """The arrays in ``file``: decoded before, or found or downloaded now.

    Raises:
        DataError: the file is nowhere, or the user's copy of it is corrupt.
    """
    return decoded_once(places.decoded(file), lambda: file.read(_contents(file, places), file.label))


def decoded_once(path: Path, decode: Callable[[], Arrays]) -> Arrays:
    """The arrays that the cache holds under this path; decoded now, and put there, where it does not."""
    arrays = _read_decoded(path)
    if arrays is None:
        arrays = decode()
        _write_decoded(path, arrays)
    return arrays


def decoded_text(path: Path, decode: Callable[[], str]) -> str:
    """The text that the cache holds under this path, likewise."""
    (kept,) = decoded_once(path, lambda: (np.frombuffer(decode().encode(), np.uint8),))
    return kept.tobytes().decode()


def _contents(file: RemoteFile, places: Places) -> bytes:
    """The verified contents of ``file``, unpacked."""
    own = places.own_copy(file)
    if own is not None:
        path, expected = own
        contents = path.read_bytes()
        found = hashlib.sha256(contents).hexdigest()
        if found != expected:
            raise DataError(
                f"{path} is corrupt: its SHA-256 is {found}, expected {expected}; replace it, or remove it from "
                f"INTERFUSE_DATA so that it is downloaded"
            )
        return _unpacked(path, contents)
    cached = places.cached(file)
    if not _intact(cached, file):
        _download(file, places)
    return _unpacked(cached, cached.read_bytes())


def _unpacked(path: Path, contents: bytes) -> bytes:
    return _UNPACK.get(path.suffix, bytes)(contents)


def _intact(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def _download(file: RemoteFile, places: Places) -> None:
    """Put ``file`` into the cache; processes that want it at the same time wait for the first."""
    target = places.cached(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Held while a partial file grows; the operating system releases it when a process dies.
        with FileLock(target.with_name(file.name + ".lock")):
            if not _intact(target, file):
                target.unlink(missing_ok=True)
                _try_urls(file, places)
    except OSError as error:
        raise DataError(
            f"cannot write {file.label} to the cache {places.cache}: {error}; set INTERFUSE_CACHE to a folder that can "
            f"be written, or INTERFUSE_DATA to one that holds the file"
        ) from error


def _try_urls(file: RemoteFile, places: Places) -> None:
    target = places.cached(file)
    failures = []
    for url in places.urls(file):
        for _ in range(TRIES):
            try:
                pooch.retrieve(url, f"sha256:{file.sha256}", target.name, target.parent, downloader=_resuming)
                return
            except requests.ConnectTimeout as error:
                failures.append(f"{url}: {_reason(error)}")
                break
            except (requests.RequestException, ValueError) as error:
                failures.append(f"{url}: {_reason(error)}")
    searched = f"not in INTERFUSE_DATA ({places.data})" if places.data else "INTERFUSE_DATA is not set"
    raise DataError(
        f"{file.label} is missing and cannot be downloaded; its SHA-256 is {file.sha256}\n"
        f"  {searched}, not in the cache {target.parent}\n"
        + "".join(f"  {failure}\n" for failure in dict.fromkeys(failures))
        + f"Set INTERFUSE_DATA to a folder that holds {file.label} (or {Path(file.elsewhere) / file.name})."
    )


def _reason(error: Exception) -> str:
    """The outcome of a download in one line; the text of requests repeats the address and names objects."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"status {error.response.status_code}"
    if isinstance(error, requests.RequestException):
        return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__
    return "the contents have another SHA-256"


def _resuming(url: str, output_file: str, _: object) -> None:
    """A downloader for pooch that goes on where an earlier attempt at the same file stopped, where the server can.

    What has arrived lives beside pooch's temporary file as ``<file>.part`` until it is complete; pooch then checks the
    hash, so a partial file of other origin costs one attempt, not correctness.
    """
    part = Path(output_file).parent / (url.rpartition("/")[2] + ".part")
    done = part.stat().st_size if part.is_file() else 0
    # Without compression in transit, which requests would undo: the published hash is that of the gz.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if not (response.status_code == requests.codes.partial_content and resumed):
            done = 0
        with part.open("ab" if done else "wb") as out:
            _stream(response, out, done, part.name.removesuffix(".part"))
    os.replace(part, output_file)


def _stream(response: requests.Response, out: io.BufferedWriter, done: int, label: str) -> None:
    length = response.headers.get("Content-Length")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # Where there is no terminal, the one line that pooch logs for each file is enough.
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None if length is None else done + int(length), completed=done)
        for chunk in response.iter_content(CHUNK):
            out.write(chunk)
            progress.advance(task, len(chunk))


def _read_decoded(path: Path) -> Arrays | None:
    """Arrays decoded before; None where there are none or they are broken (the archive carries a checksum)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return tuple(archive[f"arr_{number}"] for number in range(len(archive.files)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_decoded(path: Path, arrays: Arrays) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, then a rename: who writes the same array at the same time does no harm.
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as out:
                np.savez(out, *arrays)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        warnings.warn(
            f"cannot write the cache {path.parent} ({error}); data is decoded anew in every process. Set "
            f"INTERFUSE_CACHE to a folder that can be written.",
            RuntimeWarning,
            stacklevel=2,
        )
