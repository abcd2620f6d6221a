"""Where the finished runs of a comparison lie; the scripts beside this one go through them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interfuse.errors import RunError


def finished_runs(folder: Path, entries: Sequence[str] = ()) -> list[Path]:
    """The folders of a comparison's finished runs, by entry and seed; of ``entries`` alone where these are named.

    Raises:
        RunError: there is none, or none of an entry; names those that there are.
    """
    found = sorted(path.parent for path in folder.glob("runs/*/seed-*/summary.json"))
    there = {run.parent.name for run in found}
    if not there or set(entries) - there:
        missing = ", ".join(sorted(set(entries) - there)) or "any entry"
        known = "; ".join(sorted(there)) or "none: is it the folder of a comparison?"
        raise RunError(f"no finished run of {missing} in {folder / 'runs'}; there are: {known}")
    return [run for run in found if not entries or run.parent.name in entries]
