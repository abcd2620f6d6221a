"""Where clients live and how a call reaches them."""

from __future__ import annotations

from interfuse.engines.local import InProcess, local

__all__ = ["InProcess", "local"]
