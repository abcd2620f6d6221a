"""What is shown while a run goes on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import interfuse
from interfuse.report.progress import Bars, Lines, Standing
from interfuse.runs import Progress, Row, RunConfig

pytestmark = pytest.mark.usefixtures("no_report")

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


def a_row(number: int, trained: float, evaluated: float | None) -> Row:
    nothing = {"raw": 0, "wire": 0}
    point = {"own": [0.5], "validation": [0.5], "common": [0.5], "composition": None}
    known = {
        "round": number,
        "uplink": nothing,
        "downlink": nothing,
        "steps": {"clients": 1, "server": 0},
        "failures": [],
        "outstanding": 0,
        "virtual_seconds": {},
        "accuracy": None if evaluated is None else point,
        "seconds": {
            "server": 0.0,
            "local work, all clients": 9 * trained,
            "waiting": trained,
            "evaluation": evaluated or 0,
        },
    }
    return Row.model_validate(known)


def test_the_time_left_counts_rounds_and_evaluations_apart() -> None:
    standing = Standing(RunConfig(rounds=100, eval_every=10), 0, clock=lambda: 0.0)
    standing.update(a_row(0, 5.0, 60.0))  # the start: an evaluation, and no round
    standing.update(a_row(1, 30.0, None))  # the first round warms up
    for number in range(2, 11):
        standing.update(a_row(number, 1.0, 20.0 if number == 10 else None))
    # 90 rounds of a second, nine points of the median of 60 and 20 seconds
    assert str(standing).endswith(", 7 min 30 s left")
