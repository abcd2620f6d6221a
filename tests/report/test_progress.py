"""What is shown while a run goes on."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

import interfuse
from interfuse.report.progress import Bars, Lines
from interfuse.runs import Progress

STAGE = "evaluating the last and the best round on everything"


def followed(progress: Progress, path: Path) -> None:
    interfuse.run(
        "local", models=["logistic"], clients=2, rounds=1, beside=(),
        settings={"local_steps": 1, "batch_size": 8}, out=path, progress=progress,
    )  # fmt: skip


def test_lines_say_that_the_last_evaluation_has_begun(tmp_path: Path) -> None:
    lines: list[str] = []
    followed(Lines(lines.append), tmp_path)
    assert lines[-1] == f"local: {STAGE}"
    assert lines[-2].startswith("local: round 1/1")


def test_bars_say_it_while_it_lasts(tmp_path: Path) -> None:
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=160))
    followed(bars, tmp_path)
    assert STAGE in stream.getvalue()
    bars.stop()
    assert STAGE not in stream.getvalue().rpartition("round 1/1")[2]
