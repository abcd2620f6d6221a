"""Settings files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from interfuse.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        ConfigError: the file is missing or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
