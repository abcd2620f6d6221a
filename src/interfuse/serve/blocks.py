"""The blocks that a service answers with, and whether somebody still vouches for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from interfuse.artefacts import Artefact, load
from interfuse.artefacts.folder import ONNX, expired, revoked
from interfuse.artefacts.registry import NAME, Registry
from interfuse.artefacts.signing import signer
from interfuse.errors import ConfigError
from interfuse.serve.faults import ServiceError
from interfuse.serve.limits import STALE

LOOK = 1.0
"""Seconds between two looks at files of this machine."""
LOOK_AFAR = 15.0
"""The same at a registry elsewhere, which may be paid by the question."""
_VERSIONED = re.compile(r"(.+)/([1-9][0-9]{0,8})")


@dataclass(eq=False)
class Block:
    """One version of a block, and how it stands.

    Attributes:
        artefact: None of one that was revoked before the service began.
        look: Asks why it was revoked; None: it was not. Raises an error where that cannot be known, as of an artefact
            that is not there: another program may be about to bring it back.
        revoked: Why it was, in words that follow its name.
        seen: When its standing was known last, by the clock that :meth:`refresh` is given.
        onnx: The same for other runtimes, where it was exported so.
        every: Seconds between two looks.
    """

    name: str
    version: int
    artefact: Artefact | None
    look: Callable[[], str | None] = field(repr=False)
    revoked: str | None = None
    seen: float = 0.0
    onnx: bytes | None = field(default=None, repr=False)
    every: float = LOOK

    @property
    def address(self) -> str:
        """``NAME/VERSION``."""
        return f"{self.name}/{self.version}"

    @property
    def withdrawn(self) -> str | None:
        """Why it is good no more, in words that follow its name: it was revoked, or is beyond its date."""
        return self.revoked or (None if self.artefact is None else expired(self.artefact.manifest))

    def refresh(self, now: float) -> None:
        """Look how it stands. What was revoked remains so."""
        if self.revoked is None:
            self.revoked = self.look()
        self.seen = now

    def good(self, now: float) -> Artefact:
        """The artefact, if it may answer.

        Raises:
            ServiceError: it was withdrawn, or nobody knows.
        """
        why = self.withdrawn
        if self.artefact is None or why is not None:
            raise ServiceError("withdrawn", f"{self.address} {why}", "block")
        if now - self.seen > STALE:
            message = f"whether {self.address} is still good is not known: its registry cannot be read"
            raise ServiceError("unknown_standing", message, "block", retry=30)
        return self.artefact

    def may_answer(self, now: float) -> bool:
        """Whether :meth:`good` gives the artefact."""
        return self.artefact is not None and self.withdrawn is None and now - self.seen <= STALE


def from_folders(folders: Sequence[Path], authority: bytes | None = None, *, onnx: bool = False) -> list[Block]:
    """Blocks of artefacts' folders. ``NAME/VERSION`` at the end of a path, as registries have it, names both; another
    path's last folder is the name, and the version is 1.

    Args:
        authority: PEM; who signed them must be certified by it.
        onnx: Whether to keep that too.

    Raises:
        ArtefactError: one is damaged, or not signed by whom it should be.
    """
    found = []
    for folder in folders:
        versioned = _VERSIONED.fullmatch("/".join(folder.resolve().parts[-2:]))
        name = versioned[1] if versioned is not None else folder.resolve().name
        if not NAME.fullmatch(name):
            raise ConfigError(f"{folder}: {name!r} cannot be the name of a block: rename the folder")
        version = int(versioned[2]) if versioned is not None else 1
        found.append(_block(name, version, partial(revoked, folder), partial(_checked, folder, authority, onnx)))
    return found


def from_registry(
    registry: Registry, names: Sequence[str], authority: bytes | None = None, *, onnx: bool = False
) -> list[Block]:
    """Blocks of a registry, each ``NAME/VERSION``, or ``NAME`` for its newest version; else as :func:`from_folders`.

    Raises:
        ArtefactError: there is no such one, it is damaged, or not signed by whom it should be.
    """
    found, every = [], LOOK if registry.is_local else LOOK_AFAR
    for text in names:
        versioned = _VERSIONED.fullmatch(text)
        name = versioned[1] if versioned is not None else text
        version = int(versioned[2]) if versioned is not None else registry.newest(name)
        look, read = partial(registry.revoked, name, version), partial(_fetched, registry, name, version)
        found.append(_block(name, version, look, partial(read, authority, onnx), every))
    return found


def _block(
    name: str,
    version: int,
    look: Callable[[], str | None],
    read: Callable[[], tuple[Artefact, bytes | None]],
    every: float = LOOK,
) -> Block:
    """A block, whose artefact is not read where it was revoked."""
    why = look()
    artefact, onnx = (None, None) if why is not None else read()
    return Block(name, version, artefact, look, why, onnx=onnx, every=every)


def _checked(folder: Path, authority: bytes | None, onnx: bool) -> tuple[Artefact, bytes | None]:
    if authority is not None:
        signer(folder, [authority])
    found = load(folder)
    return found, (folder / ONNX).read_bytes() if onnx and (folder / ONNX).exists() else None


def _fetched(
    registry: Registry, name: str, version: int, authority: bytes | None, onnx: bool
) -> tuple[Artefact, bytes | None]:
    with registry.fetched(name, version) as found:
        return _checked(found.path, authority, onnx)
