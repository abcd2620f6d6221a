"""The warnings about a run, under the name by which scripts know them."""

from __future__ import annotations

from interfuse.runs.summary import Diagnosis
from interfuse.runs.verdict import SMALL_LOSS, diagnose

__all__ = ["SMALL_LOSS", "Diagnosis", "diagnose"]
