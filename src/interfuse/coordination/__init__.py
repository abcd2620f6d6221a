"""A run between parties, at the coordinator."""

from __future__ import annotations

from interfuse.coordination.driver import Terms, coordinate
from interfuse.coordination.dry_run import dry_run
from interfuse.coordination.record import STATUS_FILE, Status, read_status

__all__ = ["STATUS_FILE", "Status", "Terms", "coordinate", "dry_run", "read_status"]
