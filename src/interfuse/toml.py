"""Settings files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from interfuse.errors import ConfigError
from interfuse.opening import content

DEEPEST = 50
"""Tables and lists in one another, at most."""
_TOO_DEEP = f"more than {DEEPEST} tables or lists lie in one another"


def read_toml(path: Path, *, follow: bool = True) -> dict[str, Any]:
    """What a TOML file says.

    Args:
        follow: Whether a link to a file will do.

    Raises:
        ConfigError: the file is missing or is no TOML.
    """
    try:
        found = tomllib.loads(content(path, follow=follow).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path} is no TOML of ours: {_TOO_DEEP}") from None
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in level if isinstance(one, dict | list)]
    if level:
        raise ConfigError(f"{path} is no TOML of ours: {_TOO_DEEP}")
    return found
