"""The command line: a thin layer over :func:`interfuse.run` and what belongs to it."""

from __future__ import annotations

from interfuse.cli.app import app, main

__all__ = ["app", "main"]
