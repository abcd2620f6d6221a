"""Early stopping: by the validation scores of the curve alone, and the same after a kill."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import GIVEN, Fuse, Killed, assert_same, config_of, outcome, timeless

from interfuse.errors import ConfigError
from interfuse.report import console_summary
from interfuse.result import Result
from interfuse.runs import EarlyStopping, Given, Row, execute, resume
from interfuse.runs.summary import Stopped

NEVER = math.nan
# of Local with this rate the validation score falls after it has risen
FALLING: dict[str, Any] = {
    "method": "local", "rounds": 12, "settings": {"lr": 3.0, "local_steps": 3}, "validation": 0.3, "test": 0.2,
}  # fmt: skip


def rows_of(validation: Sequence[float], every: int = 1) -> list[Row]:
    """Lines of a curve with these mean validation scores, the first before any training."""
    point = {"own": (0.9,), "common": (0.9,), "composition": None}
    still = {"raw": 0, "wire": 0}
    moved = {"uplink": still, "downlink": still, "steps": {"clients": 0, "server": 0}, "failures": (), "seconds": {}}
    about = moved | {"outstanding": 0, "virtual_seconds": {}}
    return [
        Row.model_validate({**about, "round": every * n, "accuracy": {**point, "validation": (value, value)}})
        for n, value in enumerate(validation)
    ]


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "last"),
    [
        ([0.9, 0.1, 0.2, 0.3], 1, 0.0, None),  # what was before training is no best
        ([0, 0.5, 0.5, 0.5], 2, 0.0, 4),  # equal is not risen
        ([0, 0.5, 0.4, 0.6, 0.5, 0.5], 2, 0.0, 6),  # a rise begins the count anew
        ([0, 0.5, 0.55, 0.61, 0.65], 2, 0.1, None),  # the best moves only where it counts: 0.5, then 0.61
        ([0, 0.5, 0.55, 0.6, 0.65], 2, 0.1, 4),
        ([0, NEVER, NEVER], 2, 0.0, 3),
        ([0, 0.5, 0.4, 0.9], 1, 0.0, 3),  # the first time decides, whatever came later
        ([0], 1, 0.0, None),
    ],
)
def test_the_last_round_by_hand(values: list[float], patience: int, min_delta: float, last: int | None) -> None:
    found = EarlyStopping(patience, min_delta).after(rows_of(values))
    assert (None if found is None else found.round) == last
    if found is not None:
        tenfold = EarlyStopping(patience, min_delta).after(rows_of(values, every=10))
        assert tenfold == Stopped(
            round=10 * found.point + 1, point=10 * found.point, since=10 * found.since, patience=patience
        )


def test_it_ends_as_a_run_of_so_many_rounds_does(tmp_path: Path) -> None:
    stop = EarlyStopping(patience=2)
    summary = execute(config_of(**FALLING, stop=stop), tmp_path / "run", given=GIVEN)
    _, curve = Result(tmp_path / "run", GIVEN).curve("validation")
    means = np.nanmean(curve, axis=1)[1:]
    first = next(n for n in range(2, len(means)) if max(means[n - 1 : n + 1]) <= max(means[: n - 1]))
    assert summary.stopped is not None
    assert summary.rounds == summary.stopped.round == first + 2 < 12
    execute(config_of(**FALLING | {"rounds": summary.rounds}), tmp_path / "plain", given=GIVEN)
    found, wanted = outcome(tmp_path / "run"), outcome(tmp_path / "plain")
    assert found.summary.pop("stopped") == summary.stopped.values()
    assert wanted.summary.pop("stopped") is None
    assert_same(found, wanted)


def test_a_kill_changes_nothing(quick_path: Path) -> None:
    config, whole = config_of(**FALLING, clients=2, stop=EarlyStopping(2), eval_every=2, commit_rounds=3), Fuse()
    assert execute(config, quick_path / "whole", given=GIVEN, engine=whole.engine).stopped
    for limit in range(whole.burnt // 2, whole.burnt + 1, 5):
        path = quick_path / str(limit)
        with pytest.raises(Killed):
            execute(config, path, given=GIVEN, engine=Fuse(limit).engine)
        resume(path, given=GIVEN)
        assert_same(outcome(path), outcome(quick_path / "whole"))


def test_test_data_has_no_say(tmp_path: Path) -> None:
    """Other labels of the common test set change every score on it, and nothing else."""
    dataset = GIVEN.dataset
    assert dataset is not None
    assert not isinstance(dataset, Sequence)
    other = Given(dataset=replace(dataset, y_test=(dataset.y_test + 1) % 3))
    config = config_of(**FALLING, stop=EarlyStopping(2))
    one, two = (execute(config, tmp_path / name, given=g) for name, g in {"one": GIVEN, "two": other}.items())
    assert one.stopped == two.stopped is not None
    assert one.global_accuracy != two.global_accuracy


def test_local_beside_it_has_as_many_rounds(tmp_path: Path) -> None:
    config = config_of(rounds=6, stop=EarlyStopping(1, 1.0), beside=["local"])
    summary = execute(config, tmp_path / "run", given=GIVEN)
    local = summary.local
    assert local is not None
    assert (summary.rounds, local.rounds, local.stopped) == (3, 3, None)
    assert Result(tmp_path / "run/beside/local").config.stop is None
    assert timeless(resume(tmp_path / "run", given=GIVEN).values()) == timeless(summary.values())


def test_the_terminal_says_it(tmp_path: Path) -> None:
    from rich.console import Console

    summary = execute(config_of(rounds=6, stop=EarlyStopping(1, 1.0)), tmp_path / "run", given=GIVEN)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(console_summary(summary))
    assert (
        "Early stopping: the mean validation score did not rise in 1 point of the curve after round 1;" in shown.get()
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"validation": 0}, "stop goes by validation shares: set validation above 0"),
        ({"evaluation": "none"}, "stop goes by validation shares"),
        ({"stop": {"patience": 0}}, "stop.patience = 0 is impossible"),
        ({"stop": {"patienc": 3}}, "[stop]: unknown key 'patienc': did you mean 'patience'?"),
    ],
)
def test_what_cannot_stop_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        config_of(**{"stop": {"patience": 2}} | values)
