"""Of more than 100 clients the same 100 are evaluated each time: files have their figures alone, and all say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from worlds import tiny_dataset

import interfuse
from interfuse.report.console import console_summary
from interfuse.report.progress import Standing
from interfuse.result import Result

CLIENTS = 130
SOME = "100 of 130 clients"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return interfuse.run(
        "fedavg", data=tiny_dataset(rows=CLIENTS * 6), clients=CLIENTS, models=["logistic"], rounds=2, eval_every=1,
        beside=[], workers=1, test=0.2, validation=0.2, metrics=["recall", "auroc"], fusion_width=4,
        settings={"local_steps": 1, "participation": 0.05}, out=tmp_path_factory.mktemp("runs") / "run",
    )  # fmt: skip


def test_lines_and_summary_hold_those_figures_and_who_has_them(result: Result) -> None:
    wanted = tuple(place * CLIENTS // 100 for place in range(100))
    points = [row.accuracy for row in result.metrics]
    for found in (*points, result.summary, result.summary.best):
        assert found is not None
        assert found.evaluated == wanted
    for point in points:
        assert point is not None
        assert len(point.own) == len(point.validation) == len(point.common) == 100
    assert len(result.summary.own_accuracy.per_client) == 100
    lines = (result.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(None not in json.loads(line)["accuracy"]["common"] for line in lines)
    steps = [len(row.first_steps) for row in result.metrics]
    assert steps[0] == 0
    assert all(count <= 0.05 * CLIENTS for count in steps)  # those who take part, not all


def test_arrays_have_a_place_for_every_client(result: Result) -> None:
    _, common = result.curve("global")
    assert common.shape == (3, CLIENTS)
    known = ~np.isnan(common[-1])
    assert tuple(np.flatnonzero(known)) == result.summary.evaluated
    point = result.metrics[-1].accuracy
    assert point is not None
    assert tuple(common[-1][known]) == point.common
    assert result.metric("auroc").shape == (CLIENTS,)
    assert result.metric("recall", "global").shape == (CLIENTS, 3)
    assert np.isnan(result.metric("recall", "global")[~known]).all()


def test_it_is_said_wherever_a_mean_goes(result: Result) -> None:
    summary = result.summary
    assert SOME in summary.headline.text
    assert SOME in repr(result)
    page = (result.path / "report.html").read_text(encoding="utf-8")
    assert page.count(f"over {SOME}") >= 4  # two figures, the captions of scores and of metrics
    assert f"over rounds, mean over {SOME}" in page
    assert f"have sent, raw, mean over {SOME}" in page
    console = Console(width=200)
    with console.capture() as caught:
        console.print(console_summary(summary))
    assert f"(± over {SOME})" in caught.get()
    standing = Standing(result.config, 0)
    standing.update(result.metrics[-1])
    assert f"of {SOME}" in str(standing)


def test_an_older_folder_with_a_place_for_everybody_is_read(result: Result, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.toml").write_text((result.path / "config.toml").read_text(encoding="utf-8"), encoding="utf-8")
    for line in (result.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known = dict(zip(row["accuracy"].pop("evaluated"), row["accuracy"]["common"], strict=True))
        row["accuracy"]["common"] = [known.get(client) for client in range(CLIENTS)]
        with (older / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    np.testing.assert_equal(Result(older).curve("global"), result.curve("global"))
