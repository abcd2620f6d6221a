"""Where the keys of a party lie. What they are good for is the carrier's affair."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from interfuse.errors import ConfigError
from interfuse.opening import content


class KeyFiles(BaseModel):
    """The three PEM files of one side: its key, its certificate, and the authority it trusts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Path
    certificate: Path
    authority: Path

    @classmethod
    def in_folder(cls, folder: Path, name: str) -> KeyFiles:
        """The files as `interfuse keys` names them."""
        return cls(key=folder / f"{name}.key", certificate=folder / f"{name}.crt", authority=folder / "ca.crt")

    def below(self, folder: Path) -> KeyFiles:
        """The same, where paths are relative to a folder."""
        return KeyFiles(key=folder / self.key, certificate=folder / self.certificate, authority=folder / self.authority)

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Key, certificate and authority as PEM.

        Raises:
            ConfigError: a file cannot be read; names it.
        """
        try:
            return content(self.key), content(self.certificate), content(self.authority)
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}; `interfuse keys` makes some") from error
