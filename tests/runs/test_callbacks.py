"""Callbacks see a run and have no say in it; one that fails ends it where it can go on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import GIVEN, assert_same, config_of, outcome

from interfuse.errors import CallbackError
from interfuse.runs import Callback, Row, RunConfig, Summary, execute, resume


@dataclass
class Listening(Callback):
    """Writes down what it is told, and fails where it should."""

    fails: str = ""
    told: list[str] = field(default_factory=list)

    def on_start(self, config: RunConfig, done: int) -> None:
        self._take(f"start {config.method} {done}")

    def on_round(self, row: Row) -> None:
        torch.manual_seed(0)  # global generators belong to whoever uses them
        np.random.seed(0)
        self._take(f"round {row.round}")

    def on_end(self, summary: Summary) -> None:
        self._take(f"end {summary.rounds}")

    def _take(self, text: str) -> None:
        self.told.append(text)
        if self.fails and text.startswith(self.fails):
            raise ZeroDivisionError("no tracker there")


def test_they_are_told_of_the_run_and_not_of_what_runs_beside_it(quick_path: Path) -> None:
    one, two = Listening(), Listening()
    given = replace(GIVEN, callbacks=(one, two))
    execute(config_of(beside=["local"]), quick_path / "heard", given=given)
    execute(config_of(beside=["local"]), quick_path / "plain", given=GIVEN)
    assert one.told == two.told == ["start ifl 0", "round 0", "round 1", "round 2", "round 3", "end 3"]
    assert_same(outcome(quick_path / "heard"), outcome(quick_path / "plain"))
    resume(quick_path / "heard", given=given)
    assert len(one.told) == 6


@pytest.mark.parametrize("fails", ["start", "round 0", "round 2", "round 3", "end"])
def test_one_that_fails_is_named_and_the_run_goes_on_later(fails: str, quick_path: Path) -> None:
    path, config = quick_path / "run", config_of(commit_rounds=100)
    hook = f"on_{fails.partition(' ')[0]}"
    told = f"callback Listening.{hook} failed: ZeroDivisionError: no tracker there. "
    with pytest.raises(CallbackError, match=re.escape(told)) as caught:
        execute(config, path, given=replace(GIVEN, callbacks=(Listening(fails),)))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert (path / "summary.json").exists() == (fails == "end")
    again = Listening()
    resume(path, given=replace(GIVEN, callbacks=(again,)))
    if fails == "round 2":
        assert f"`interfuse resume {path}` goes on after round 2" in str(caught.value)
        assert again.told == ["start ifl 2", "round 3", "end 3"]
    execute(config, quick_path / "plain", given=GIVEN)
    assert_same(outcome(path), outcome(quick_path / "plain"))


def test_one_that_fails_as_a_run_goes_on_says_from_where(quick_path: Path) -> None:
    path = quick_path / "run"
    with pytest.raises(CallbackError):
        execute(config_of(), path, given=replace(GIVEN, callbacks=(Listening("round 2"),)))
    with pytest.raises(CallbackError, match=re.escape(f"`interfuse resume {path}` goes on after round 2")):
        resume(path, given=replace(GIVEN, callbacks=(Listening("start"),)))
