"""A partition, a schedule and a metric of the user: functions, or the names of functions in a file."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import GIVEN, Fuse, Killed, assert_same, committed, config_of, outcome
from torch import Tensor
from worlds import same_bits

import interfuse
from interfuse.cli.configuration import configure
from interfuse.data import Dataset, deal
from interfuse.errors import ClientError, ConfigError, RunError
from interfuse.evaluation.metrics import statistics
from interfuse.references import load_reference, reference_of, short_name
from interfuse.runs import execute, resume
from interfuse.runs.config import partition_of
from interfuse.training import OwnSchedule

FILE = """
import torch

def every_third(labels, clients, rng):
    return [range(client, len(labels), clients) for client in range(clients)]

def falling(round, step):
    return 0.4 / (1 + round) / (1 + step)

def top_two(scores, labels):
    return (scores.topk(2).indices == labels[:, None]).any(1).float().mean()

rate = 0.1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "mine.py"
    made.write_text(FILE, encoding="utf-8")
    return made


FEW: dict[str, Any] = {
    "data": GIVEN.dataset, "clients": 3, "models": ["logistic"], "fusion_width": 8, "rounds": 2, "beside": ["local"],
    "workers": 1, "progress": interfuse.Silent(), "commit_rounds": 1,
}  # fmt: skip


def fixed(round: int, step: int) -> float:
    return 0.1


def split_in_turn(labels: Any, clients: int, rng: np.random.Generator) -> list[list[int]]:
    """Labels, clients and generator are what a partition gets."""
    return [list(range(client, len(labels), clients))[::-1] for client in range(clients)]


# ------------------------------------------------------------------------------------------------------------- names


def test_a_reference_leads_back_or_is_none() -> None:
    assert reference_of(split_in_turn) == "test_own_functions:split_in_turn"
    assert reference_of(Dataset) == "interfuse.data.dataset:Dataset"
    assert load_reference(reference_of(Dataset)) is Dataset
    for other in (lambda: 0, Fuse(), partial_of(split_in_turn)):
        assert reference_of(other).startswith("in-memory:")
    assert short_name(reference_of(lambda: 0)) == "<lambda>"


def partial_of(function: Callable[..., Any]) -> Callable[..., Any]:
    def inner() -> Any:
        return function

    return inner


def test_what_a_file_defines_is_found_by_the_file(file: Path) -> None:
    name = f"{file}:falling"
    assert reference_of(load_reference(name)) == name  # type: ignore[arg-type]
    code = f"from interfuse.references import *; print(load_reference({name!r})(1, 0))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(said.stdout) == 0.2


@pytest.mark.usefixtures("no_report")
def test_a_method_of_a_file_can_be_resumed_by_another_process(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "fedprox.py"
    result = interfuse.run(str(example), out=tmp_path / "run", **FEW | {"settings": {"lr": 0.1}})
    assert result.config.method == f"{example}:FedProx"


# --------------------------------------------------------------------------------------------------------- partition


@pytest.mark.usefixtures("no_report")
def test_a_function_deals_the_rows(file: Path, tmp_path: Path) -> None:
    results = {
        name: interfuse.run("ifl", partition=given, out=tmp_path / name, **FEW)
        for name, given in {
            "function": split_in_turn, "file": f"{file}:every_third", "lambda": lambda a, b, c: split_in_turn(a, b, c),
        }.items()
    }  # fmt: skip
    assert results["function"].config.partition == {"name": "test_own_functions:split_in_turn"}
    assert results["lambda"].config.partition["name"].startswith("in-memory:")
    for name in ("file", "lambda"):
        assert results[name].summary.own_accuracy == results["function"].summary.own_accuracy
        assert results[name].summary.class_counts == results["function"].summary.class_counts
    with pytest.raises(RunError, match=r"partition of this run was given as an object .* give it again: partition="):
        interfuse.load_run(tmp_path / "lambda", data=GIVEN.dataset).model(0)
    with pytest.raises(RunError, match=r"the given partition is not that of .*: partition.name: 'in-memory"):
        interfuse.resume(tmp_path / "lambda", data=GIVEN.dataset, partition=split_in_turn)


class InParts:
    """A partition with an option that nothing but the object knows."""

    def __init__(self, first: float = 0.5) -> None:
        self.first = first

    def split(self, labels: Any, clients: int, rng: np.random.Generator, groups: Any) -> list[Any]:
        rows = np.arange(len(labels))
        return np.array_split(rows[: int(self.first * len(rows))], 1) + np.array_split(rows[-9:], clients - 1)


@pytest.mark.usefixtures("no_report")
def test_an_object_whose_options_nobody_knows_has_to_be_given_again(tmp_path: Path) -> None:
    result = interfuse.run("ifl", partition=InParts(0.2), out=tmp_path / "run", **FEW)
    assert result.config.partition == {"name": "in-memory:InParts"}
    with pytest.raises(RunError, match=r"partition of this run was given as an object .* give it again: partition="):
        interfuse.load_run(tmp_path / "run", data=GIVEN.dataset).model(0)
    again = interfuse.load_run(tmp_path / "run", data=GIVEN.dataset, partition=InParts(0.2))
    assert sum(p.numel() for p in again.model(0).parameters())


def test_groups_are_given_where_they_are_asked_for() -> None:
    labels, seen = np.zeros(6, np.int64), list[Any]()

    def by_group(labels: Any, clients: int, rng: Any, groups: Any) -> Any:
        seen.append(groups)
        return np.array_split(np.arange(len(labels)), clients)

    parts = partition_of(by_group).split(labels, 2, np.random.default_rng(0), np.arange(6))
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]
    assert seen[0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("gives", "told"),
    [
        (lambda labels, clients, rng: [[0], [1]], "the partition gave 2 shares for 3 clients"),
        (lambda labels, clients, rng: [[0], [1], [1]], "gave a row to two clients"),
        (lambda labels, clients, rng: [[0], [1], [-1]], "or a row outside 0 to"),
        (lambda labels, clients, rng: [[0], [1], []], "client 2 of 3 has no rows"),
        (lambda labels, clients, rng: [[0], [1], [0.5]], "client 2 got float64 [1]; give each client the numbers"),
        (lambda labels, clients, rng: [labels == 0, [1], [2]], "client 0 got bool ["),
        (lambda labels, clients: [], "failed: TypeError"),
        (lambda labels, clients, rng: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_a_division_that_is_none_is_refused(gives: Any, told: str) -> None:
    assert isinstance(GIVEN.dataset, Dataset)
    with pytest.raises(interfuse.InterfuseError, match=re.escape(told)):
        deal([GIVEN.dataset], partition_of(gives), 3, 0)


# ---------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.usefixtures("no_report")
def test_a_schedule_is_what_its_numbers_are(file: Path, tmp_path: Path) -> None:
    """A constant function is that constant, to the bit, for the method and for Local beside it."""
    names = {"number": 0.1, "function": fixed, "lambda": lambda round, step: 0.1}
    found = {
        name: interfuse.run("fedavg", out=tmp_path / name, settings={"lr": lr}, **FEW) for name, lr in names.items()
    }
    for name in ("function", "lambda"):
        for part in ("", "beside/local"):
            ledger, own = ((tmp_path / n / part / "ledger.jsonl").read_bytes() for n in ("number", name))
            assert own == ledger
            assert same_bits(committed(tmp_path / name / part), committed(tmp_path / "number" / part))
        assert np.array_equal(found[name].curve("validation")[1], found["number"].curve("validation")[1])
    assert found["function"].config.settings["lr"] == {"function": "test_own_functions:fixed"}
    assert found["lambda"].config.method == "in-memory:FedAvg"
    other = interfuse.run("fedavg", out=tmp_path / "file", settings={"lr": f"{file}:falling"}, **FEW)
    assert not np.array_equal(other.curve("validation")[1], found["number"].curve("validation")[1])


def test_it_gets_round_and_step(file: Path, tmp_path: Path) -> None:
    schedule = OwnSchedule.of(f"{file}:falling")
    assert [schedule(0, 0), schedule(1, 0), schedule(1, 3)] == [0.4, 0.2, 0.05]
    config = config_of("fedavg", settings={"lr": f"{file}:falling", "local_steps": 2})
    execute(config, tmp_path / "whole", given=GIVEN)
    with pytest.raises(Killed):
        execute(config, tmp_path / "run", given=GIVEN, engine=Fuse(at="training 2 train 3").engine)
    resume(tmp_path / "run", given=GIVEN)
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (lambda round, step: math.nan, "lr(0, 0) is nan; it should be 0 or more"),
        (lambda round, step: -1, "lr(0, 0) is -1.0"),
        (lambda round: 0.1, "write lr(round, step), which returns a number"),
        (lambda round, step: "fast", "could not convert string to float: 'fast'; write lr(round, step)"),
        ("mine", "lr = 'mine' is impossible"),
        ("nowhere.py:rate", "there is no file"),
    ],
)
def test_a_rate_that_is_none_is_refused_before_the_run(rate: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        interfuse.run("fedavg", out=tmp_path / "run", settings={"lr": rate}, **FEW)
    assert not (tmp_path / "run").exists()


def test_paths_in_settings_are_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    config = configure("fedavg", {"metrics": ["mine.py:top_two"]}, assignments=["lr=mine.py:falling"])
    assert config.metrics == (f"{file}:top_two",)
    values = interfuse.runs.config.absolute_paths(config.model_dump(), file.parent)
    assert values["settings"] == {"lr": f"{file}:falling"}


# ------------------------------------------------------------------------------------------------------------ metric


def right(scores: Tensor, labels: Tensor) -> Tensor:
    """Accuracy once more, by hand."""
    return (scores.argmax(1) == labels).double().mean()


def test_a_metric_stands_beside_others(file: Path, tmp_path: Path) -> None:
    metrics = ["auroc", right, f"{file}:top_two"]
    result = interfuse.run("ifl", out=tmp_path / "run", metrics=metrics, **FEW)
    assert result.config.metrics == ("auroc", "test_own_functions:right", f"{file}:top_two")
    summary = result.summary
    for side, wanted in (("own", summary.own_accuracy), ("global", summary.global_accuracy)):
        assert result.metric("right", side).tolist() == list(wanted.per_client)  # type: ignore[arg-type]
        assert (result.metric("top_two", side) >= result.metric("right", side)).all()  # type: ignore[arg-type]
    assert summary.beside["local"].metrics.keys() == {"auroc", "right", "top_two"}
    assert set(json.loads((tmp_path / "run/summary.json").read_text())["metrics"]) == {"auroc", "right", "top_two"}
    page = (tmp_path / "run/report.html").read_text()
    assert all(f">{name}</th>" in page for name in ("AUROC", "right", "top_two"))
    own = summary.metrics["top_two"]["own"]
    assert isinstance(own, interfuse.runs.summary.Spread)
    assert f"{own.mean:.4g}" in page


@pytest.mark.usefixtures("no_report")
def test_what_cannot_be_said_is_unknown(tmp_path: Path) -> None:
    def rarely(scores: Tensor, labels: Tensor) -> float:
        return math.nan

    result = interfuse.run("ifl", out=tmp_path / "run", metrics=[rarely], **FEW)
    assert np.isnan(result.metric("rarely")).all()
    assert statistics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).own == {}
    with pytest.raises(RunError, match=r"a metric of this run was given as an object .* give it again: metrics="):
        interfuse.load_run(tmp_path / "run", data=GIVEN.dataset).model(0)


def fails_on_few(scores: Tensor, labels: Tensor) -> float:
    if len(scores) != scores.shape[1]:
        raise LookupError("no such row")
    return 0.5


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ([lambda scores, labels: scores], "metric <lambda> failed on scores [3, 3] and labels [3]: "),
        ([lambda scores: 1.0], "it takes both and returns a number"),
        ([right, lambda scores, labels: 1.0, right], "two are called 'right'"),
        (["math:pi"], "metrics: math:pi is no function of (scores, labels)"),
        (["rigth"], "'rigth' is no metric: "),
    ],
)
def test_a_metric_that_is_none_is_refused_before_the_run(metrics: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        interfuse.run("ifl", out=tmp_path / "run", metrics=metrics, **FEW)
    assert not (tmp_path / "run").exists()


def test_one_that_fails_later_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ClientError, match=r"client 0 failed in .*metric fails_on_few failed .*LookupError: no such row"
    ):
        interfuse.run("ifl", out=tmp_path / "run", metrics=[fails_on_few], **FEW)


@pytest.mark.parametrize("name", ["auroc", "recall"])
def test_a_metric_is_not_called_like_a_built_in_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def {name}(scores, labels):\n    return 7.0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine.py:{name}' is called like a built-in one; give it another name"):
        interfuse.run("ifl", metrics=[f"{tmp_path / 'mine.py'}:{name}"], out=tmp_path / "run", **FEW)
