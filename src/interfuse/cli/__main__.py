"""``python -m interfuse.cli``."""

from __future__ import annotations

from interfuse.cli.app import main

main()
