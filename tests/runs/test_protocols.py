"""Protocols by name: what they set, what goes before them, and a run that can be repeated without the word."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import GIVEN, assert_same, config_of, outcome
from typer.testing import CliRunner

import interfuse
from interfuse import comparison
from interfuse.cli.app import app
from interfuse.cli.configuration import changed_partition, configure, partition_of
from interfuse.data import IID, Dirichlet, Natural, Pathological, Sampling
from interfuse.errors import ConfigError
from interfuse.methods import built_in
from interfuse.methods.fedproto import FedProto
from interfuse.runs import RunConfig, execute, parse_config, read_config
from interfuse.runs.config import plain
from interfuse.runs.protocols import departures, protocols, said_of

SMALL = ["--clients", "3", "--rounds", "1", "--models", "logistic", "--width", "8", "--beside", "none", "--quiet"]


@pytest.mark.parametrize("name", protocols())
def test_every_key_of_a_protocol_is_known(name: str) -> None:
    table = protocols()[name]
    parse_config(table["run"])
    for partition, own in table["where"].items():
        parse_config({**table["run"], **own, "partition": {"name": partition}})
    everything = {f.name for kind in built_in().values() for f in fields(kind)}
    assert table["settings"].keys() <= everything
    for method, own in table["method"].items():
        built_in()[method].configure(own)


def test_a_protocol_sets_what_is_not_said_and_no_more() -> None:
    config = parse_config({"method": "lg-fedavg", "protocol": "htfllib"})
    assert (config.clients, config.rounds, config.initial, config.test) == (20, 1000, "common", 0.25)
    assert config.sampling == Sampling("stored", "drop")
    assert config.make_partition() == Dirichlet(0.1, minimum=40, balanced=True)
    assert config.settings["momentum"] == 0
    assert config.settings["weights"] == "samples"
    assert "pull" not in config.settings
    other = parse_config({"method": "ifl", "protocol": "htfllib"}).settings
    assert other["batch_size"] == 10
    assert "lr" not in other  # IFL's rates have other names


def test_what_is_said_goes_before() -> None:
    said: dict[str, Any] = {
        "method": "fedproto", "protocol": "htfllib", "clients": 3, "settings": {"local_steps": 4, "pull": 1.0},
        "sampling": {"last_batch": "spread"}, "partition": {"name": "dirichlet", "alpha": 0.5},
    }  # fmt: skip
    config = parse_config(said)
    assert config.clients == 3
    assert config.sampling == Sampling("stored", "spread")
    assert config.make_partition() == Dirichlet(0.5, minimum=40, balanced=True)
    assert config.settings["local_steps"] == 4
    assert "local_epochs" not in config.settings  # one of the two
    assert (config.settings["pull"], config.settings["weights"]) == (1.0, "uniform")
    assert parse_config(said | {"partition": {"name": "iid"}}).make_partition() == IID()


def test_a_folder_of_theirs_keeps_its_division() -> None:
    config = parse_config({"method": "fedproto", "protocol": "htfllib", "partition": {"name": "natural"}})
    assert (config.test, config.divide, config.make_partition()) == ("source", "train", Natural())


def test_a_division_that_an_option_names_has_what_goes_with_it(tmp_path: Path) -> None:
    given = configure("fedproto", {"protocol": "htfllib"}, partition={"name": "natural"})
    assert (given.test, given.divide, given.make_partition()) == ("source", "train", Natural())
    (tmp_path / "mine.toml").write_text('method = "fedproto"\nprotocol = "htfllib"\nrounds = 3\n')
    mine = str(tmp_path / "mine.toml")
    read = configure(mine, {}, partition={"name": "natural"})
    assert (read.rounds, read.test, read.divide, read.make_partition()) == (3, "source", "train", Natural())
    assert configure(mine, {}, partition={"alpha": 0.5}).make_partition() == Dirichlet(0.5, minimum=40, balanced=True)
    assert (configure(mine, {}).test, configure(mine, {}).divide) == (0.25, "all")
    assert configure(mine, {"divide": "train"}, partition={"name": "natural"}).divide == "train"


def test_its_pathological_division_is_that_of_their_scripts() -> None:
    theirs = Pathological(5, alike=True, uneven=True)
    given = configure("fedproto", {"protocol": "htfllib"}, partition={"name": "pathological", "classes_per_client": 5})
    assert given.make_partition() == theirs
    assert (given.test, given.divide) == (0.25, "all")
    assert "partition.alike = True" in said_of(plain(given.model_dump()))


def test_a_comparison_changes_the_partition_of_its_protocol() -> None:
    of_recipe, options = {"protocol": "htfllib", "clients": 4}, {"protocol": "htfllib"}
    for values in (of_recipe, options):
        before = partition_of(values)
        assert changed_partition(before, {"alpha": 0.5})["balanced"] is True
    own = {"protocol": "htfllib", "partition": {"name": "shards"}}
    assert partition_of(own) == {"name": "shards"}
    assert partition_of({}) == {"name": "iid"}


def test_a_run_is_repeated_without_the_word(tmp_path: Path) -> None:
    execute(config_of("fedproto", protocol="htfllib", rounds=2, partition={"name": "iid"}), tmp_path / "a", given=GIVEN)
    whole = read_config(tmp_path / "a" / "config.toml")
    assert whole.protocol == "htfllib"
    text = (tmp_path / "a" / "config.toml").read_text().replace('protocol = "htfllib"\n', "")
    (tmp_path / "again.toml").write_text(text)
    again = read_config(tmp_path / "again.toml")
    assert again.protocol is None
    assert again.identity() == whole.identity()
    execute(again, tmp_path / "b", given=GIVEN)
    first, second = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert "protocol htfllib sets " in first.summary.pop("protocol")
    assert second.summary.pop("protocol") == ""
    assert_same(second, first)


def test_what_it_set_and_what_is_otherwise_is_said() -> None:
    config = parse_config({"method": "fedproto", "protocol": "htfllib", "rounds": 9, "settings": {"batch_size": 5}})
    set_here, otherwise = said_of(plain(config.model_dump())).split("; otherwise than it: ")
    assert otherwise == "rounds = 9 (1000), batch_size = 5 (10)"
    assert "partition.alpha = 0.1" in set_here
    assert "weights = uniform" in set_here
    assert departures(said_of(plain(config.model_dump()))) == (
        "htfllib", ["rounds = 9 (1000)", "batch_size = 5 (10)"],
    )  # fmt: skip
    assert departures(set_here) == ("htfllib", [])
    assert said_of(plain(RunConfig().model_dump())) == ""
    divided = parse_config({"method": "fedproto", "protocol": "htfllib", "partition": {"name": "iid"}})
    assert said_of(plain(divided.model_dump())).endswith("otherwise than it: partition.name = iid (dirichlet)")


def test_on_the_command_line_options_go_before_it_and_it_before_nothing_that_a_recipe_says(tmp_path: Path) -> None:
    config = configure(
        "fedproto", {"protocol": "htfllib", "rounds": 7}, partition={"alpha": 0.3}, assignments=["lr=0.5"]
    )
    assert config.make_partition() == Dirichlet(0.3, minimum=40, balanced=True)
    assert (config.rounds, config.clients, config.settings["lr"]) == (7, 20, 0.5)
    (tmp_path / "mine.toml").write_text('method = "fedproto"\nclients = 5\n[settings]\npull = 2.0\n')
    config = configure(str(tmp_path / "mine.toml"), {"protocol": "htfllib"})
    assert (config.clients, config.rounds, config.settings["pull"], config.settings["lr"]) == (5, 1000, 2.0, 0.01)


def test_the_terminal_and_the_report_say_it(tmp_path: Path) -> None:
    given = ["run", "fedproto", "--protocol", "htfllib", *SMALL, "--out", str(tmp_path / "run")]
    found = CliRunner().invoke(app, given, env={"COLUMNS": "400"})
    assert found.exit_code == 0, found.output
    assert "Protocol htfllib sets fusion_width" not in found.output  # it was given
    assert "otherwise than it: clients = 3 (20), rounds = 1 (1000), fusion_width = 8 (512)" in found.output
    assert "htfllib sets " in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["protocol"].startswith("protocol htfllib")


def test_in_python_settings_by_name_go_before_and_an_object_has_all_of_its_own(tmp_path: Path) -> None:
    data = GIVEN.dataset
    shared: Any = {"data": data, "clients": 3, "models": ["logistic"], "rounds": 1, "beside": [], "protocol": "htfllib"}
    shared["progress"] = interfuse.Silent()
    partition = {"partition": IID(), "test": 0.2}
    by_name = interfuse.run("fedproto", settings={"pull": 3.0}, out=tmp_path / "a", **shared, **partition)
    assert (by_name.config.settings["pull"], by_name.config.settings["weights"]) == (3.0, "uniform")
    assert (by_name.config.test, by_name.config.initial) == (0.2, "common")
    own = interfuse.run(FedProto(), out=tmp_path / "b", **shared, **partition)
    assert own.config.settings["weights"] == "samples"
    assert "weights = samples (uniform)" in own.summary.protocol


def test_a_comparison_takes_it_for_all_entries() -> None:
    recipe = comparison.parse(
        {"run": {"protocol": "htfllib", "rounds": 5}, "entry": [
            {"name": "a", "method": "fedproto"},
            {"name": "b", "method": "lg-fedavg", "settings": {"weights": "uniform"}},
        ]}, "made", "here", Path(),
    )  # fmt: skip
    a, b = comparison.resolve(recipe).entries
    assert (a.config.rounds, a.config.clients, a.config.settings["weights"]) == (5, 20, "uniform")
    assert (b.config.settings["weights"], b.config.settings["momentum"]) == ("uniform", 0)


@pytest.mark.parametrize(
    "ask", [lambda: parse_config({"protocol": "htflib"}), lambda: configure("ifl", {"protocol": "htflib"})]
)
def test_an_unknown_one_is_refused_with_the_nearest(ask: Any) -> None:
    with pytest.raises(ConfigError, match="unknown protocol 'htflib': did you mean 'htfllib'"):
        ask()


def test_clients_of_a_converted_folder_are_tested_on_their_own_rows(tmp_path: Path) -> None:
    rng, people = np.random.default_rng(0), np.repeat(np.arange(3), 12)
    x, y = rng.normal(size=(36, 4)).astype(np.float32), np.arange(36) % 2
    tested = np.array([0, 0, 1, 1, 1, 2])
    np.savez(tmp_path / "made.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6], groups=people, test_groups=tested)
    run = interfuse.run(
        "fedproto", data=str(tmp_path / "made.npz"), protocol="htfllib", partition="natural", clients=3, rounds=1,
        models=["logistic"], beside=[], out=tmp_path / "run", progress=interfuse.Silent(), read={"layout": "table"},
    )  # fmt: skip
    assert run.summary.rows["own"] == 6
    assert run.summary.rows["global"] == 6
    assert [client.samples for client in run.summary.clients] == [12, 12, 12]
