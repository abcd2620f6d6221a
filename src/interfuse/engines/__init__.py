"""Where clients live and how a call reaches them."""

from __future__ import annotations

from interfuse.engines.local import InProcess, local
from interfuse.engines.resting import Room

__all__ = ["InProcess", "Room", "local"]
