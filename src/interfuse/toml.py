"""Settings files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from interfuse.errors import ConfigError
from interfuse.opening import content


def read_toml(path: Path, *, follow: bool = True) -> dict[str, Any]:
    """What a TOML file says.

    Args:
        follow: Whether a link to a file will do.

    Raises:
        ConfigError: the file is missing or is no TOML.
    """
    try:
        return tomllib.loads(content(path, follow=follow).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path} is no TOML of ours: its tables or lists are too deep") from None
