"""A run that is extended is the run that had so many rounds from its beginning, to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_runs import GIVEN, Fuse, Killed, assert_same, config_of, outcome
from test_finish import TunedAtTheEnd

from interfuse.clients import Clients
from interfuse.errors import RunError
from interfuse.report import load
from interfuse.runs import EarlyStopping, Given, execute, read_config, resume
from interfuse.server import Server

ADAM: dict[str, Any] = {"settings": {"optimizer": "adam", "local_steps": 2}, "models": ["logistic", "mlp"]}


@dataclass(frozen=True)
class Tuning(TunedAtTheEnd):
    """Has a finish, and does not ask how many rounds there are."""

    def start(self, server: Server[Any], clients: Clients) -> None:  # type: ignore[override]
        return None

    def finish(self, server: Server[Any], clients: Clients) -> None:
        clients.call(self.tune)


@pytest.mark.parametrize(("workers", "eval_every"), [(1, 2), (2, 1)])  # every 2: 3 rounds end beside the curve's grid
def test_an_extended_run_is_the_longer_run(workers: int, eval_every: int, quick_path: Path) -> None:
    settings = ADAM | {"beside": ["local", "pooled"], "workers": workers, "eval_every": eval_every}
    execute(config_of(rounds=5, **settings), quick_path / "whole", given=GIVEN)
    path = quick_path / "run"
    execute(config_of(rounds=3, **settings), path, given=GIVEN)
    assert resume(path, given=GIVEN, rounds=5).rounds == 5
    for part in ("", "beside/local", "beside/pooled"):
        assert_same(outcome(path / part), outcome(quick_path / "whole" / part))
        assert (path / part / "config.toml").read_bytes() == (quick_path / "whole" / part / "config.toml").read_bytes()


def test_a_finish_that_ran_is_taken_back(quick_path: Path) -> None:
    given = Given(dataset=GIVEN.dataset, method=Tuning())
    config = {"method": "test_extension:Tuning", "models": ["mlp"]}
    execute(config_of(rounds=4, **config), quick_path / "whole", given=given)
    execute(config_of(rounds=2, **config), quick_path / "run", given=given)
    resume(quick_path / "run", given=given, rounds=4)
    assert_same(outcome(quick_path / "run"), outcome(quick_path / "whole"))


def test_where_no_commit_lies_between_it_begins_anew(quick_path: Path) -> None:
    execute(config_of(rounds=4, commit_rounds=100), quick_path / "whole", given=GIVEN)
    execute(config_of(rounds=3, commit_rounds=100), quick_path / "run", given=GIVEN)
    resume(quick_path / "run", given=GIVEN, rounds=4)
    assert_same(outcome(quick_path / "run"), outcome(quick_path / "whole"))


def test_a_kill_within_an_extension_changes_nothing(quick_path: Path) -> None:
    config = {**ADAM, "beside": ["local"], "eval_every": 2, "clients": 2}
    execute(config_of(rounds=3, **config), quick_path / "whole", given=GIVEN)
    limit = killed = 1
    while killed:
        path = quick_path / f"killed-{limit}"
        execute(config_of(rounds=1, **config), path, given=GIVEN)
        try:
            resume(path, given=GIVEN, rounds=3, engine=Fuse(limit).engine)
            killed = 0
        except Killed:
            resume(path, given=GIVEN)  # rounds are not said again
        assert_same(outcome(path), outcome(quick_path / "whole"))
        assert_same(outcome(path / "beside/local"), outcome(quick_path / "whole/beside/local"))
        limit += 7
    assert limit > 20


def test_while_it_is_extended_it_is_not_compared_to_a_shorter_reference(quick_path: Path) -> None:
    path, config = quick_path / "run", {**ADAM, "beside": ["local"]}
    execute(config_of(rounds=2, **config), path, given=GIVEN)
    assert not math.isnan(load(path).summary.headline.gain)
    with pytest.raises(Killed):
        resume(path, given=GIVEN, rounds=5, engine=Fuse(at="save 000004").engine)
    run = load(path)
    assert (run.rounds_done, run.finished, run.summary.beside) == (4, False, {})
    assert math.isnan(run.summary.headline.gain)


def test_a_run_that_is_not_finished_can_be_extended(quick_path: Path) -> None:
    execute(config_of(rounds=4), quick_path / "whole", given=GIVEN)
    with pytest.raises(Killed):
        execute(config_of(rounds=3), quick_path / "run", given=GIVEN, engine=Fuse(at="save 000002").engine)
    resume(quick_path / "run", given=GIVEN, rounds=4)
    assert_same(outcome(quick_path / "run"), outcome(quick_path / "whole"))


def test_what_would_be_another_run_is_refused_and_stays_as_it_was(quick_path: Path) -> None:
    path, given = quick_path / "run", Given(dataset=GIVEN.dataset, method=TunedAtTheEnd())
    execute(config_of("test_finish:TunedAtTheEnd", models=["mlp"]), path, given=given)
    before = (path / "summary.json").read_bytes()
    with pytest.raises(RunError, match=r"cannot be extended: its method goes by the number of all rounds"):
        resume(path, given=given, rounds=5)
    with pytest.raises(RunError, match=r"has 3 rounds, and none is taken back: rounds = 2 .* such as 5"):
        resume(path, given=given, rounds=2)
    assert resume(path, given=given, rounds=3).rounds == 3
    assert read_config(path / "config.toml").rounds == 3
    assert (path / "summary.json").read_bytes() == before


def test_a_run_that_stopped_early_would_stop_again(quick_path: Path) -> None:
    path, stop = quick_path / "run", EarlyStopping(patience=1, min_delta=1.0)
    assert execute(config_of(rounds=6, stop=stop), path, given=GIVEN).rounds == 3
    with pytest.raises(RunError, match=r"cannot be extended: early stopping: .* round 3 was the last, and it would"):
        resume(path, given=GIVEN, rounds=8)
