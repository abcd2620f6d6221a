"""Calls are statically typed: mypy accepts and refuses what it should."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from subprocess import run

FILE = Path(__file__).parent / "typing" / "typed_calls.py"


def test_calls_are_statically_typed() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(FILE)]
    said = run(command, capture_output=True, text=True, cwd=FILE.parents[2], check=False)
    refused = {int(line) for line in re.findall(r"typed_calls\.py:(\d+): error:", said.stdout)}
    wanted = {n for n, line in enumerate(FILE.read_text().splitlines(), 1) if line.endswith("# refused")}
    assert len(wanted) > 10
    assert refused == wanted, said.stdout + said.stderr
