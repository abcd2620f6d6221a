"""A registry of artefacts: a folder, or any address that fsspec knows, with a folder of versions for each name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from interfuse.artefacts.folder import MANIFEST, REVOKED, Artefact, because, load
from interfuse.artefacts.manifest import Fusion, Manifest
from interfuse.errors import ArtefactError, ConfigError, nearest

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """One version of an artefact; ``revoked`` is the reason, None where it is good."""

    name: str
    version: int
    manifest: Manifest
    revoked: str | None

    @property
    def address(self) -> str:
        """As commands take it, behind the registry's own address."""
        return f"{self.name}/{self.version}"


class Registry:
    """Artefacts by name and version, from 1. Nobody is asked for them but the file system.

    Args:
        address: A folder, or what fsspec takes, such as ``s3://bucket/blocks`` where its package is installed.
    """

    def __init__(self, address: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{address} is no place for a registry: {error}") from error
        self.address, self._root = address, str(root).rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's file systems."""
        return isinstance(self._fs, LocalFileSystem)

    def add(self, artefact: Artefact, name: str) -> Listed:
        """Put an artefact beside earlier versions of its name.

        Raises:
            ConfigError: the name has other signs than letters, digits, dots, hyphens and underscores, or the registry
                cannot be written.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a name: letters, digits, dots, hyphens and underscores, at most 64")
        version = 1 + max(self._versions(name), default=0)
        with _explained(self.address):
            place = f"{self._root}/{name}/{version}"
            self._fs.makedirs(place, exist_ok=False)
            for file in sorted(artefact.path.iterdir()):
                self._fs.put_file(str(file), f"{place}/{file.name}")
        return Listed(name, version, artefact.manifest, None)

    def artefacts(self) -> list[Listed]:
        """All versions of all names, in their order. What has no readable manifest is left out: see :meth:`verify`."""
        found = []
        for name in self._names():
            for version in self._versions(name):
                try:
                    manifest = Manifest.model_validate_json(self._read(name, version, MANIFEST) or b"")
                except ValidationError:
                    continue
                reason = self._read(name, version, REVOKED)
                found.append(
                    Listed(name, version, manifest, None if reason is None else reason.decode(errors="replace"))
                )
        return found

    def by_contract(self) -> list[tuple[Fusion | None, list[Listed]]]:
        """What fits together: good versions by the contract of their fusion layer; None: whole models."""
        found: list[tuple[Fusion | None, list[Listed]]] = []
        for one in self.artefacts():
            if one.revoked is not None:
                continue
            group = next((group for fusion, group in found if fusion == one.manifest.fusion), None)
            if group is None:
                found.append((one.manifest.fusion, [one]))
            else:
                group.append(one)
        return found

    @contextmanager
    def fetched(self, name: str, version: int | None = None) -> Iterator[Artefact]:
        """An artefact, read and checked; the copy that it was read from is there inside the block.

        Args:
            version: None: the newest that is not revoked.

        Raises:
            ArtefactError: there is none, or it is damaged, revoked or expired.
        """
        newest, versions = self.newest(name), self._versions(name)
        wanted = newest if version is None else version
        if wanted not in versions:
            raise ArtefactError(
                f"{self.address} has no version {wanted} of {name}, but {', '.join(map(str, versions))}"
            )
        with tempfile.TemporaryDirectory() as folder, _explained(self.address):
            place = Path(folder) / name / str(wanted)
            self._fs.get(f"{self._root}/{name}/{wanted}", str(place), recursive=True)
            yield load(place)

    def verify(self) -> dict[str, str | None]:
        """What is wrong with each version, by its address; None: nothing."""
        found: dict[str, str | None] = {}
        for name in self._names():
            for version in self._versions(name):
                try:
                    with self.fetched(name, version):
                        found[f"{name}/{version}"] = None
                except ArtefactError as error:
                    found[f"{name}/{version}"] = str(error)
        return found

    def revoke(self, name: str, version: int | None, reason: str) -> list[int]:
        """Have readers refuse a version, or all of a name, from now on: from here, and where it is fetched anew.

        Returns: the versions.
        Raises:
            ConfigError: there is no such version.
        """
        versions = [number for number in self._versions(name) if version in (None, number)]
        if not versions:
            raise ConfigError(f"{self.address} has no such version of {name!r}")
        with _explained(self.address):
            for number in versions:
                self._fs.pipe_file(f"{self._root}/{name}/{number}/{REVOKED}", reason.encode())
        return versions

    def revoked(self, name: str, version: int) -> str | None:
        """Why a version that was fetched is good no more, in words that follow its name; None: it is.

        Raises:
            ArtefactError: there is no such version, or not now.
            ConfigError: the registry cannot be read.
        """
        if self._read(name, version, MANIFEST) is None:
            raise ArtefactError(f"{self.address} has no artefact {name}/{version}")
        reason = self._read(name, version, REVOKED)
        return None if reason is None else because(reason)

    def newest(self, name: str) -> int:
        """The newest version of a name that is not revoked, or the newest of all.

        Raises:
            ArtefactError: there is nothing of this name.
        """
        versions = self._versions(name)
        if not versions:
            raise ArtefactError(f"{self.address} has nothing of the name {name!r}: {nearest(name, self._names())}")
        good = [number for number in versions if self._read(name, number, REVOKED) is None]
        return max(good, default=max(versions))

    def _names(self) -> list[str]:
        return [name for name in self._entries(self._root) if NAME.fullmatch(name)]

    def _versions(self, name: str) -> list[int]:
        found = self._entries(f"{self._root}/{name}") if NAME.fullmatch(name) else []
        return sorted(int(entry) for entry in found if entry.isdecimal())

    def _entries(self, place: str) -> list[str]:
        with _explained(self.address):
            if not self._fs.isdir(place):
                return []
            return sorted(path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(place, detail=False))

    def _read(self, name: str, version: int, file: str) -> bytes | None:
        path = f"{self._root}/{name}/{version}/{file}"
        with _explained(self.address):
            try:  # not by isfile, to which an error of any kind means that there is none
                kind = self._fs.info(path)["type"]
            except FileNotFoundError:
                return None
            return bytes(self._fs.cat_file(path)) if kind == "file" else None


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"the registry {address} cannot be read or written: {error.strerror or error}") from error
