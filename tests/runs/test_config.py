from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interfuse.cli.configuration import configure, devices_table
from interfuse.clock import NAMED
from interfuse.data import IID, Dirichlet, Natural, Pathological
from interfuse.errors import ConfigError, InterfuseError
from interfuse.methods import built_in
from interfuse.runs import RunConfig, parse_config, read_config
from interfuse.runs.config import Execution, complete, differences, partition_values, plain, to_toml
from interfuse.training import Cosine, Exponential

FULL: dict[str, Any] = {
    "method": "fedavg", "data": "mnist", "public": "digits", "clients": 7, "models": ["cnn", "mlp"],
    "read": {"label": ["a", "b"], "task": "regression"},
    "fusion_width": 16, "rounds": 3, "seed": 5, "eval_every": 2, "device": "cpu", "beside": ["local", "pooled"],
    "validation": 0.2, "test": 0.0, "divide": "train", "normalise": "plain", "initial": "common",
    "sampling": {"order": "shuffled", "last_batch": "spread"},
    "tasks": {"arrival": "dynamic", "over_rounds": 2, "memory": 9, "temperature": 0.5, "decay": 0.9},
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "settings": {"lr": 0.5},
    "client": {2: {"lr": 0.25}}, "numerics": {"layout": "channels_last", "together": 4},
    "execution": {
        "engine": "ray", "workers": 3, "ray_address": "head:6379", "ray_gpus": 0.5, "commit_seconds": 1.5,
        "commit_rounds": 2, "client_memory": 9,
    },
    "environment": {"torch": "x"}, "sources": {"mine.py": "ab"}, "unset": [], "metrics": ["auroc", "recall"],
    "devices": {"slow": 0.5, "uplink": 1.0}, "evaluation": "shared", "test_rows": 500, "train_rows": 900,
    "protocol": None, "curve": "all", "stop": {"patience": 3, "min_delta": 0.01}, "classes": ["a", "b"],
    "codecs": {"default": "int8+ef+zstd", "Weights.tensors": "fp16"},
}  # fmt: skip


def test_every_key_has_a_value_in_the_full_example() -> None:
    assert FULL.keys() == RunConfig.model_fields.keys()


@pytest.mark.parametrize("values", [{}, FULL])
def test_what_is_written_is_read_again(values: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(values)
    (tmp_path / "config.toml").write_text(to_toml(config))
    again = read_config(tmp_path / "config.toml")
    assert again == config
    assert again.identity() == config.identity()
    assert differences(again.identity(), config.identity()) == []


def test_a_run_that_goes_on_takes_keys_of_its_engine_alone() -> None:
    """Those of Ray were left alone without a word where no Ray carried the run."""
    here, cluster = Execution(workers=2), parse_config(FULL).execution
    for key, value in (("ray_address", "auto"), ("ray_gpus", 0.5)):
        with pytest.raises(ConfigError, match=f"execution: {key}: for engine = 'ray' alone"):
            here.but({key: value})
        with pytest.raises(ConfigError, match=f"execution: {key}: for engine = 'ray' alone"):
            cluster.but({"engine": "local", key: value})
        assert here.but({"engine": "ray", key: value}).model_dump()[key] == value
        assert cluster.but({key: value}).model_dump()[key] == value
    assert cluster.but({"engine": None, "workers": 1}) == cluster.model_copy(update={"workers": 1})
    gone_on = cluster.but({"engine": "local"})  # what was said for Ray goes with it, so that the file can be read
    assert gone_on == cluster.model_copy(update={"engine": "local", "ray_address": None, "ray_gpus": None})
    here.check("x")


def test_values_arrive_where_they_belong() -> None:
    config = parse_config(FULL)
    assert config.make_partition() == Dirichlet(0.5)
    assert config.make_method() == built_in()["fedavg"].configure({"lr": 0.5})
    assert config.client == {2: {"lr": 0.25}}
    assert config.numerics.layout == "channels_last"
    assert (config.execution.workers, config.execution.commit_seconds, config.execution.commit_rounds) == (3, 1.5, 2)
    assert parse_config({}).make_partition() == IID()


@pytest.mark.parametrize("method", sorted(built_in()))
def test_a_complete_configuration_names_every_setting_and_survives_the_file(method: str, tmp_path: Path) -> None:
    made = built_in()[method]()
    config = complete(parse_config({"method": method}), made)
    (tmp_path / "config.toml").write_text(to_toml(config))
    again = read_config(tmp_path / "config.toml")
    assert again == config
    assert again.make_method() == made
    assert {*again.settings, *again.unset} == {f.name for f in fields(made)}


@pytest.mark.parametrize("rate", [Exponential(0.1, 0.9), Cosine(0.1, rounds=20, end=0.001)])
def test_a_schedule_survives_the_file(rate: Any, tmp_path: Path) -> None:
    made = built_in()["fedavg"].configure({"lr": rate})
    (tmp_path / "config.toml").write_text(to_toml(complete(parse_config({"method": "fedavg"}), made)))
    assert read_config(tmp_path / "config.toml").make_method() == made


@pytest.mark.parametrize("key", sorted(FULL.keys() - {"execution", "environment", "protocol"}))
def test_results_depend_on_all_but_how_the_run_is_carried_out(key: str) -> None:
    assert key in parse_config({}).identity()


def test_execution_and_environment_do_not_matter() -> None:
    a = parse_config({"execution": {"workers": 2, "commit_rounds": 1}, "environment": {"torch": "1"}})
    assert a.identity() == parse_config({}).identity()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"round": 3},
            "here: unknown key 'round': did you mean 'rounds'?",
        ),
        ({"fusion_wdth": 3}, "did you mean 'fusion_width'?"),
        ({"execution": {"worker": 2}}, "here, [execution]: unknown key 'worker': did you mean 'workers'?"),
        ({"numerics": {"layot": "x"}}, "here, [numerics]: unknown key 'layot': did you mean 'layout'?"),
        ({"rounds": 0}, "here: rounds = 0 is impossible"),
        ({"rounds": "many"}, "here: rounds = 'many' is impossible"),
        ({"rounds": 1.5}, "here: rounds = 1.5 is impossible"),
        ({"seed": None}, "here: seed = None is impossible"),
        ({"models": "cnn"}, "here: models = 'cnn' is impossible"),
        ({"models": []}, "here: models is empty"),
        ({"metrics": ["aurok"]}, "here: metrics: 'aurok' is no metric: did you mean 'auroc'? valid: absent-recall"),
        ({"metrics": "auroc"}, "here: metrics = 'auroc' is impossible"),
        ({"models": [3]}, "here: models.0 = 3 is impossible"),
        ({"clients": 0}, "here: clients = 0"),
        ({"clients": -3}, "here: clients = -3"),
        ({"fusion_width": 0}, "here: fusion_width = 0 is impossible"),
        ({"eval_every": 0}, "here: eval_every = 0 is impossible"),
        ({"validation": -0.1}, "here: validation = -0.1 is impossible"),
        ({"validation": 1}, "here: validation = 1 is impossible"),
        ({"validation": 0.6, "test": 0.4}, "here: validation + test = 1.0"),
        ({"execution": {"workers": 0}}, "here: execution.workers = 0 is impossible"),
        ({"execution": {"commit_seconds": -1}}, "here: execution.commit_seconds = -1 is impossible"),
        ({"numerics": {"threads": 2}}, "here: numerics.threads = 2 is impossible"),
        ({"numerics": {"together": 0}}, "here: numerics.together = 0 is impossible"),
        ({"numerics": {"dtype": "float16"}}, "here: numerics.dtype = 'float16' is impossible"),
        ({"client": {4: {}}}, "here: [client.4], but clients are 0 to 3"),
        ({"client": {"x": {}}}, "here: client.x"),
        ({"settings": 3}, "here: settings = 3 is impossible"),
        ({"execution": 3}, "here: execution = 3 is impossible"),
        (
            {"partition": {"cuts": [None]}},
            "here: a value cannot be written to a config.toml: Object of type 'NoneType'",
        ),
    ],
)
def test_what_is_unknown_or_impossible_is_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_config(values, "here")


@given(st.dictionaries(st.sampled_from([*FULL, "else"]), st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=4,
)))  # fmt: skip
def test_no_value_at_all_brings_another_error(values: dict[str, Any]) -> None:
    found = config_or_error(values)
    if isinstance(found, str):
        assert found.startswith("configuration")
    else:
        assert parse_config(tomllib.loads(to_toml(found))).identity().keys() == found.identity().keys()


def config_or_error(values: dict[str, Any]) -> RunConfig | str:
    try:
        return parse_config(values)
    except InterfuseError as error:
        return str(error)


@pytest.mark.parametrize(
    ("content", "told"), [(b"rounds = ", "is no TOML"), (b"\xff\xfe", "is no TOML"), (None, "cannot read")]
)
def test_a_file_that_is_no_configuration_is_named(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    path.write_text("rouns = 3\n")
    with pytest.raises(ConfigError, match=f"{path}: unknown key 'rouns': did you mean 'rounds'"):
        read_config(path)


@pytest.mark.parametrize(
    "partition", [IID(), Dirichlet(0.3, minimum=4), Pathological(3), Natural(), Natural(drawn=False)]
)
def test_a_partition_survives_the_file(partition: Any) -> None:
    assert parse_config({"partition": partition_values(partition)}).make_partition() == partition


@dataclass(frozen=True)
class EverySecond:
    """A partition of one's own."""

    start: int = 0

    def split(self, labels: Any, clients: int, rng: Any, groups: Any) -> list[np.ndarray]:
        return [np.arange(self.start + client, len(labels), clients) for client in range(clients)]


def test_a_partition_of_one_s_own_is_named_by_reference() -> None:
    values = partition_values(EverySecond(1))
    assert values == {"name": "test_config:EverySecond", "start": 1}
    assert parse_config({"partition": values}).make_partition() == EverySecond(1)


def test_the_partition_is_refused_when_it_is_made() -> None:
    for partition, told in (
        ({"name": "iidd"}, "did you mean 'iid'"),
        ({"name": "dirichlet", "alhpa": 1}, "did you mean 'alpha'"),
        ({"name": "dirichlet", "alpha": -1}, "alpha is -1"),
    ):
        with pytest.raises(ConfigError, match=told):
            parse_config({"partition": partition}).make_partition()


def test_differences_name_the_place_and_both_values() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": 0, "same": {"e": 1.0}}
    new = {"a": 2, "b": {"c": [1, 3], "d": "x"}, "new": "n", "same": {"e": 1}}
    assert differences(old, new) == [
        "a: 1 became 2", "b.c: [1, 2] became [1, 3]", "gone: 0 became None", "new: None became 'n'",
    ]  # fmt: skip
    assert differences(old, old) == []


def test_plain_values() -> None:
    rate = Cosine(0.1, rounds=5)
    assert plain({"r": rate, 1: (1, {2}), "b": True, "n": None, "f": math.inf}) == {
        "r": {"start": 0.1, "rounds": 5, "end": rate.end}, "1": [1, [2]], "b": True, "n": None,
        "f": math.inf,
    }  # fmt: skip
    made = plain(built_in()["fedavg"]())
    assert made["buffers"] == "aggregate"
    assert type(made["buffers"]) is str


def test_a_partition_that_is_no_partition_is_refused_without_a_call(tmp_path: Path) -> None:
    for name in ("subprocess:run", "os:makedirs", "subprocess:Popen", "pathlib:Path"):
        partition = {"name": name, "args": ["mkdir", str(tmp_path / "made")], "name_": str(tmp_path / "made")}
        with pytest.raises(ConfigError, match=f"partition: '{name}' is (a function, which has no|no function)"):
            parse_config({"partition": partition}).make_partition()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="partition: .*unexpected keyword argument 'begin'"):
        parse_config({"partition": {"name": "test_config:EverySecond", "begin": 1}}).make_partition()


def test_devices_are_known_by_key_and_by_name() -> None:
    assert parse_config({"devices": {"slow": 0.5, "away": 0.2}}).devices == NAMED["stragglers"]
    assert parse_config({}).devices == NAMED["uniform"]
    with pytest.raises(ConfigError, match=r"\[devices\]: unknown key 'slwo': did you mean 'slow'"):
        parse_config({"devices": {"slwo": 0.5}})
    with pytest.raises(ConfigError, match="devices.away = 1.0 is impossible"):
        parse_config({"devices": {"away": 1.0}})
    asked = configure("ifl", {"devices": devices_table("stragglers")})
    assert asked.devices == NAMED["stragglers"]
    assert configure("ifl", {"devices": devices_table(None)}).devices == NAMED["uniform"]


def test_read_goes_for_files_of_one_format_whatever_their_ending(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    (tmp_path / "a.csv").write_text("\n".join(["x,label", *(f"{row / 7},{label}" for row, label in enumerate(labels))]))
    (tmp_path / "b.CSV").write_text((tmp_path / "a.csv").read_text())
    read = {"classes": ["1", "0"]}
    config = parse_config(
        {"method": "ifl", "data": str(tmp_path / "a.csv"), "public": str(tmp_path / "b.CSV"), "read": read}
    )
    assert config.load(str(config.public)).class_names == config.load(config.data_names[0]).class_names == ("1", "0")


def test_no_two_classes_have_one_name() -> None:
    with pytest.raises(ConfigError, match="a name is there twice"):
        parse_config({"method": "ifl", "classes": ["a", "a"]})
