"""Named choices of a run: common initial values, the order of samples, the last batch, whose test rows are whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import GIVEN, Fuse, Killed, assert_same, config_of, outcome
from worlds import same_bits

from interfuse.data import Sampling
from interfuse.errors import ConfigError
from interfuse.models.making import initial_key
from interfuse.runs import execute, parse_config, resume
from interfuse.runs.loop import assemble

CHOICES: dict[str, Any] = {
    "initial": "common", "sampling": {"order": "stored", "last_batch": "drop"}, "normalise": "plain", "divide": "all",
    "test": 0.25,
}  # fmt: skip


def test_models_of_an_architecture_begin_alike_and_those_of_others_do_not() -> None:
    setup = assemble(config_of("lg-fedavg", models=["logistic", "mlp"], initial="common"), GIVEN)
    first, second, server = (setup.build("mlp", *key).tensors() for key in ((1,), (2,), ("server", "new")))
    assert same_bits(first, second)
    assert same_bits(first, server)
    own = assemble(config_of("lg-fedavg", models=["logistic", "mlp"]), GIVEN)
    assert not same_bits(own.build("mlp", 1).tensors(), own.build("mlp", 2).tensors())
    assert initial_key("own", "client", 3) == ("client", 3)
    assert initial_key("common", "client", 3) == initial_key("common", "server")


@pytest.mark.parametrize("method", ["fedproto", "fedgen"])
def test_choices_hold_for_any_workers_and_after_a_kill(method: str, tmp_path: Path) -> None:
    whole = config_of(method, **CHOICES)
    execute(whole, tmp_path / "whole", given=GIVEN)
    execute(config_of(method, workers=2, **CHOICES), tmp_path / "two", given=GIVEN)
    assert_same(outcome(tmp_path / "two"), outcome(tmp_path / "whole"))
    with pytest.raises(Killed):
        execute(whole, tmp_path / "killed", given=GIVEN, engine=Fuse(at="training 2 train 3").engine)
    resume(tmp_path / "killed", given=GIVEN)
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


def test_what_is_not_chosen_is_as_it_was() -> None:
    config = parse_config({})
    assert (config.initial, config.sampling, config.normalise, config.divide) == ("own", Sampling(), "data", "train")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"test": "source", "divide": "all"}, "test = 'source' takes the test rows as they are: leave out divide"),
        ({"test": "source", "test_rows": 5}, "test = 'source' makes own test rows and common ones the same"),
        ({"divide": "all", "test_rows": 5}, "leave out test_rows"),
        ({"test": 0, "divide": "all"}, "divide = 'all' leaves clients' own test rows alone to test on"),
        ({"test": "sauce"}, "test.* is impossible"),
        ({"sampling": {"last_batch": "droped"}}, "sampling.last_batch = 'droped' is impossible"),
        ({"sampling": {"ordr": "stored"}}, "unknown key 'ordr': did you mean 'order'"),
        ({"initial": "comon"}, "initial = 'comon' is impossible"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(values)
