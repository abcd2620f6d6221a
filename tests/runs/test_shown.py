"""What a method shows of its state: in each line of the metrics, the summary, the terminal and the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_runs import GIVEN, assert_same, config_of, outcome
from torch import Tensor
from worlds import tiny_dataset

from interfuse import report
from interfuse.errors import ConfigError
from interfuse.methods.local import Local
from interfuse.runs import Given, RunConfig, Summary, execute, resume
from interfuse.runs.folder import RunFolder
from interfuse.server import Server


@dataclass(frozen=True)
class Shows(Local):
    """Local, with a number of each kind that goes with the round."""

    wrong: bool = False

    def shown(self, server: Server[Any]) -> Mapping[str, Tensor]:
        pairs = torch.full((3, 3), torch.nan) if server.round == 0 else torch.arange(9.0).reshape(3, 3) * server.round
        each = torch.tensor([1.0, 2.0, torch.nan]) * (server.round or torch.nan)
        return {"tau": torch.tensor(0.1234567), "sources": each, "like": torch.ones(2, 2) if self.wrong else pairs}


def running(path: Path, shows: Shows = Shows(), **values: Any) -> Summary:
    return execute(config(**values), path, given=given(shows))


def config(**values: Any) -> RunConfig:
    return config_of("local", **{"rounds": 2} | values)


def given(shows: Local = Shows()) -> Given:
    return replace(GIVEN, method=shows)


def test_each_line_and_the_summary_have_what_was_shown(tmp_path: Path) -> None:
    summary = running(tmp_path / "run")
    rows = RunFolder(tmp_path / "run").metrics()
    assert [row["shown"]["pairs"]["like"] for row in rows] == [
        [[None] * 3] * 3,
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[0, 2, 4], [6, 8, 10], [12, 14, 16]],
    ]
    assert [row["shown"]["clients"]["sources"] for row in rows] == [[None] * 3, [1, 2, None], [2, 4, None]]
    assert rows[0].shown.numbers == {"tau": 0.123457}
    assert summary.shown == rows[-1].shown == report.load(tmp_path / "run").summary.shown
    assert summary.shown.means == {"tau": 0.123457, "sources": 3.0}


def test_it_can_be_seen_in_terminal_and_report(tmp_path: Path) -> None:
    summary = running(tmp_path / "run")
    console = Console(width=100, file=io.StringIO())
    with console.capture() as printed:
        console.print(report.console_summary(summary))
    text = printed.get()
    assert "sources  3" in text
    assert "tau  0.123" in text
    page = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert "<h2>Inside " in page
    assert "Like after round 2" in page
    assert {path.name for path in (tmp_path / "run/plots").glob("shown-*.png")} == {
        f"shown-{name}.png" for name in ("tau", "sources", "like")
    }


def test_a_method_that_shows_nothing_writes_nothing_of_it(tmp_path: Path) -> None:
    execute(config(), tmp_path / "run", given=GIVEN)
    assert '"shown": {}' in (tmp_path / "run/summary.json").read_text()
    assert "shown" not in (tmp_path / "run/metrics.jsonl").read_text()
    assert "Inside" not in report.write(tmp_path / "run").read_text(encoding="utf-8")


def test_what_is_shown_is_the_same_after_a_resume(tmp_path: Path) -> None:
    running(tmp_path / "once")
    running(tmp_path / "twice", rounds=1)
    resume(tmp_path / "twice", rounds=2, given=given())
    assert_same(outcome(tmp_path / "twice"), outcome(tmp_path / "once"))


def test_what_is_of_no_clients_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Shows.shown has 'like' of shape \(2, 2\).*\[3, 3\]"):
        running(tmp_path / "run", Shows(wrong=True))


def test_a_client_is_called_by_the_tasks_that_its_rows_are_of(tmp_path: Path) -> None:
    data = tiny_dataset()
    groups = torch.arange(60) % 6
    named = replace(data, groups=groups, group_names=("hue", "bgr", "hue", "inverted", "grey", "news"))
    natural = config(partition={"name": "natural"}, clients=6, rounds=1, validation=0.0)
    summary = execute(natural, tmp_path / "run", given=replace(given(Local()), dataset=named))
    wanted = {("hue",), ("bgr",), ("inverted",), ("grey",), ("news",)}
    assert {client.groups for client in summary.clients} == wanted
    assert [client.groups for client in summary.clients].count(("hue",)) == 2
    assert all(client.groups == () for client in running(tmp_path / "other").clients)
