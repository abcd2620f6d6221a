"""The blocks that a service answers with, and whether somebody still vouches for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from interfuse.artefacts import Artefact, Manifest, load
from interfuse.artefacts.folder import ONNX, expired, revoked
from interfuse.artefacts.registry import NAME, Registry
from interfuse.artefacts.signing import signer
from interfuse.errors import ArtefactError, ConfigError
from interfuse.serve.faults import RefusedError

STALE = 300.0
"""Seconds for which a block is served on when its registry cannot be read."""
_VERSIONED = re.compile(r"(.+)/([1-9][0-9]{0,8})")


@dataclass(eq=False)
class Block:
    """One version of a block, and how it stands.

    Attributes:
        artefact: None of one that was withdrawn before the service began.
        look: Asks why it is good no more; None: it is. Raises ConfigError where that cannot be known.
        withdrawn: Why it is good no more, in words that follow its name.
        seen: When its standing was known last, by the clock that :meth:`refresh` is given.
        onnx: The same for other runtimes, where it was exported so.
    """

    name: str
    version: int
    artefact: Artefact | None
    look: Callable[[], str | None] = field(repr=False)
    withdrawn: str | None = None
    seen: float = 0.0
    onnx: bytes | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """``NAME/VERSION``."""
        return f"{self.name}/{self.version}"

    def refresh(self, now: float) -> None:
        """Look how it stands. What was withdrawn remains so."""
        if self.withdrawn is None:
            self.withdrawn = self.look()
        self.seen = now

    def good(self, now: float) -> Artefact:
        """The artefact, if it may answer.

        Raises:
            RefusedError: it was withdrawn, or nobody knows.
        """
        if self.artefact is None or self.withdrawn is not None:
            raise RefusedError("withdrawn", f"{self.address} {self.withdrawn}", "block")
        if now - self.seen > STALE:
            message = f"whether {self.address} is still good is not known: its registry cannot be read"
            raise RefusedError("unknown_standing", message, "block", retry=30)
        return self.artefact


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
    found = []
    for text in names:
        versioned = _VERSIONED.fullmatch(text)
        name = versioned[1] if versioned is not None else text
        version = int(versioned[2]) if versioned is not None else registry.newest(name)
        found.append(
            _block(
                name, version, partial(registry.revoked, name, version),
                partial(_fetched, registry, name, version, authority, onnx),
            )
        )  # fmt: skip
    return found


def _block(
    name: str, version: int, look: Callable[[], str | None], read: Callable[[], tuple[Artefact, bytes | None]]
) -> Block:
    """A block, whose artefact is not read where it is good no more."""
    why = look()
    if why is not None and why.startswith("is there no more"):
        raise ArtefactError(f"there is no artefact {name}/{version}")
    artefact, onnx = (None, None) if why is not None else read()
    block = Block(name, version, artefact, look, why, onnx=onnx)
    if artefact is not None:
        block.look = partial(_standing, look, artefact.manifest)
    return block


def _standing(look: Callable[[], str | None], manifest: Manifest) -> str | None:
    return look() or expired(manifest)


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
