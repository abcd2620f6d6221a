"""Runs whose clients get their tasks one after the other: equal bits, the reference beside, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import GIVEN, Fuse, Killed, assert_same, config_of, lines, outcome
from worlds import resident, setup_of, tiny_dataset

from interfuse.data import Dataset, Natural, Tasks, make_shares
from interfuse.engines import local
from interfuse.errors import ConfigError, DataError
from interfuse.federation import Federation
from interfuse.runs import EarlyStopping, Given, RunConfig, execute, parse_config, read_config, resume

DATA = tiny_dataset(rows=96, test_rows=48)
TASKS = Given(dataset=replace(DATA, groups=torch.arange(96) // 2 % 6, test_groups=torch.arange(48) // 2 % 6))
NATURAL: dict[str, Any] = {"partition": {"name": "natural", "drawn": False}, "test": "source", "validation": 0.1}


def in_time(method: str = "fedavg", **values: Any) -> RunConfig:
    """Three clients with two tasks each, one after the other, and four rounds."""
    few = {"tasks": {"arrival": "dynamic", "memory": 3}, "rounds": 4, "settings": {"local_epochs": 1, "batch_size": 5}}
    return config_of(method, **{**NATURAL, **few, **values})


@pytest.mark.parametrize("method", ["fedavg", "local"])
def test_workers_and_a_kill_anywhere_give_the_same_bits(method: str, tmp_path: Path) -> None:
    whole = Fuse()
    execute(in_time(method), tmp_path / "whole", given=TASKS, engine=whole.engine)
    execute(in_time(method, workers=2), tmp_path / "two", given=TASKS)
    assert_same(outcome(tmp_path / "two"), outcome(tmp_path / "whole"))
    steps = [number for number, name in enumerate(whole.names, 1) if name in ("training 2 train 3", "save 000003")]
    assert len(steps) >= 2, whole.names
    for step in steps:
        path = tmp_path / f"killed-{step}"
        with pytest.raises(Killed):
            execute(in_time(method), path, given=TASKS, engine=Fuse(step).engine)
        resume(path, given=TASKS, rounds=None)
        assert_same(outcome(path), outcome(tmp_path / "whole"))


def test_a_round_trains_on_what_has_come(tmp_path: Path) -> None:
    execute(in_time(tasks={"arrival": "dynamic", "memory": 0}), tmp_path / "run", given=TASKS)
    steps = [line["steps"]["clients"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    # 32 rows a client, 3 of them for validation; tasks of 14 or 15 over two rounds: two batches of 5 each time
    assert steps == [0, 6, 6, 6, 6]
    execute(in_time(tasks={"arrival": "dynamic"}), tmp_path / "all", given=TASKS)
    grow = [line["steps"]["clients"] for line in lines(tmp_path / "all" / "metrics.jsonl")]
    assert grow[1] == 6
    assert grow[1] < grow[2] < grow[3] < grow[4]


def test_a_handler_sees_the_rows_that_have_come() -> None:
    assert isinstance(TASKS.dataset, Dataset)
    shares = make_shares(TASKS.dataset, Natural(drawn=False), 3, 0, 0.0, "source", apart=False)
    setup = replace(setup_of("local", dataset=TASKS.dataset, shares=shares), tasks=Tasks("dynamic", 4))
    made, seen = Federation(setup, local(setup, 1)), []
    made.start()
    for _ in range(5):
        made.run_round()
        seen.append([len(resident(made, client).data.labels()) for client in range(3)])
    assert seen == [[8] * 3, [16] * 3, [24] * 3, [32] * 3, [32] * 3]


def test_all_rows_have_come_after_the_rounds_with_which_a_run_began(tmp_path: Path) -> None:
    """A run that is extended is the one that was told so from its beginning."""
    execute(in_time(), tmp_path / "run", given=TASKS)
    assert read_config(tmp_path / "run" / "config.toml").tasks.over_rounds == 4
    resume(tmp_path / "run", given=TASKS, rounds=5)
    execute(
        in_time(rounds=5, tasks={"arrival": "dynamic", "memory": 3, "over_rounds": 4}), tmp_path / "long", given=TASKS
    )
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "long"))


def test_the_reference_beside_has_the_same_tasks_after_an_early_end(tmp_path: Path) -> None:
    stop = EarlyStopping(patience=1, min_delta=1.0)
    config = in_time(beside=["local"], rounds=6, tasks={"arrival": "dynamic"}).model_copy(update={"stop": stop})
    summary = execute(config, tmp_path / "run", given=TASKS)
    assert summary.rounds < 6
    local = read_config(tmp_path / "run" / "beside" / "local" / "config.toml")
    assert (local.rounds, local.tasks.over_rounds) == (summary.rounds, 6)
    assert summary.local is not None
    assert summary.local.gradient_steps == summary.gradient_steps


def test_every_task_is_measured_and_forgetting_is_there(tmp_path: Path) -> None:
    summary = execute(in_time(metrics=["forgetting"]), tmp_path / "run", given=TASKS)
    assert [len(tasks) for tasks in summary.by_task] == [2, 2, 2]
    assert summary.forgetting.known == 3


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (
            {"arrival": "later"},
            "tasks.arrival = 'later' is impossible: Input should be 'at-once', 'static' or 'dynamic'",
        ),
        ({"arival": "static"}, r"\[tasks\]: unknown key 'arival': did you mean 'arrival'"),
        ({"memory": -1}, "tasks.memory = -1 is impossible"),
        ({"temperature": 0}, "tasks.temperature = 0 is impossible"),
        ({"decay": 1.5}, "tasks.decay = 1.5 is impossible"),
        ({"over_rounds": 0}, "tasks.over_rounds = 0 is impossible"),
    ],
)
def test_impossible_tasks_are_named(tasks: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config({"tasks": tasks})


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sampling.order = 'stored' goes through rows as they lie"):
        parse_config({"tasks": {"arrival": "static"}, "sampling": {"order": "stored"}})
    for values in ({"method": "pooled"}, {"beside": ["pooled"]}):
        with pytest.raises(ConfigError, match="pooled takes all rows before the first round, .* leave it out"):
            execute(in_time(**values), tmp_path / "run", given=TASKS)
    with pytest.raises(DataError, match="does not say which task a row is of"):
        execute(config_of("fedavg", tasks={"arrival": "dynamic"}), tmp_path / "run", given=GIVEN)
