"""The experiments that interfuse ships: one TOML file each, found by name."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Where the recipes lie: inside an installed package, else at the top of the source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def names() -> list[str]:
    """Every recipe, sorted: what `interfuse run NAME` accepts."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def find(name: str) -> Path | None:
    """The file of the recipe called `name` (without `.toml`); None where there is no such recipe."""
    return folder() / f"{name}.toml" if name in names() else None
