"""Comparisons: several methods, tuned alike, over several seeds, in one table."""

from __future__ import annotations

from interfuse.comparison.outcome import compare
from interfuse.comparison.plan import Plan, resolve
from interfuse.comparison.progress import shown
from interfuse.comparison.python import ComparedEntry, ComparisonResult
from interfuse.comparison.recipe import Recipe, only, override, parse, quicker, read

__all__ = [
    "ComparedEntry",
    "ComparisonResult",
    "Plan",
    "Recipe",
    "compare",
    "only",
    "override",
    "parse",
    "quicker",
    "read",
    "resolve",
    "shown",
]
