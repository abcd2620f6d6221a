"""Scores of a client's model on the test rows of other clients, by task, over rounds, and what was forgotten."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_runs import GIVEN, assert_same, config_of, lines, outcome, timeless
from torch import Tensor
from worlds import federation, live_model, setup_of, tiny_dataset

from interfuse.coordination.driver import between_parties
from interfuse.data import IID, Natural, make_shares
from interfuse.engines import local
from interfuse.errors import ConfigError, DataError
from interfuse.evaluation import ACROSS_TASKS, accuracy, evaluate, evaluation
from interfuse.evaluation.accuracy import Owners
from interfuse.federation import Federation
from interfuse.methods.local import Local
from interfuse.report.console import console_summary
from interfuse.report.html import page
from interfuse.report.plots import figures
from interfuse.report.run import load
from interfuse.result import Result
from interfuse.runs import Given, execute, parse_config, resume
from interfuse.runs.summary import Point, Row
from interfuse.runs.summing import forgetting

PEOPLE = tiny_dataset(rows=120, test_rows=48)
TASKS = replace(PEOPLE, groups=torch.arange(120) // 2 % 6, test_groups=torch.arange(48) // 2 % 6)
"""Six groups, each with all three classes."""


def across(method: Any, *asked: str, workers: int = 1, rounds: int = 1, **settings: Any) -> Federation:
    """A federation in which these are measured."""
    made = setup_of(method, **settings)
    setup = replace(made, extra_programs=partial(evaluation, across=asked))
    found = Federation(setup, local(setup, workers))
    found.start()
    for _ in range(rounds):
        found.run_round()
    return found


def right(f: Federation, client: int, rows: np.ndarray, x: Tensor, y: Tensor) -> float:
    """The accuracy of a client's model on some rows."""
    model = live_model(f, client)
    with model.evaluating():
        answers = model(TASKS.normalise(x[rows])).argmax(1)
    return float((answers == y[rows]).double().mean())


@pytest.mark.parametrize("source", [False, True])
def test_others_is_the_mean_over_the_other_clients_of_the_score_on_their_own_test_rows(source: bool) -> None:
    shares = (
        make_shares(TASKS, Natural(), 3, 0, test="source") if source else make_shares(PEOPLE, IID(), 3, 0, test=0.3)
    )
    f = across(Local(local_epochs=1, lr=0.1), "others", dataset=TASKS, shares=shares)
    found = evaluate(f, full=True)
    for client in range(3):
        each = [
            right(f, client, share.test, TASKS.x_train, TASKS.y_train)
            if share.held is None
            else right(f, client, share.held, TASKS.x_test, TASKS.y_test)
            for share in shares
        ]
        assert found.others_matrix[client] == each
        assert found.others[client] == pytest.approx(np.mean([value for k, value in enumerate(each) if k != client]))
        assert found.own[client] == each[client]
    assert len({*found.others}) > 1, "choose other rates: all clients answer alike"
    assert found.rows["others"] == sum(len(share.test if share.held is None else share.held) for share in shares)


def test_there_are_no_others_of_one_client_and_nothing_where_nobody_asks() -> None:
    f = across("local", "others", dataset=TASKS, clients=1)
    assert math.isnan(evaluate(f, full=True).others[0])
    nobody = evaluate(federation("local", dataset=TASKS), full=True)
    assert (nobody.others, nobody.others_matrix, nobody.by_task) == ([], [], [])
    assert "others" not in nobody.rows


def test_a_point_of_the_curve_has_as_many_rows_of_all_owners_as_of_the_common_test_set() -> None:
    for clients, limit in ((1, 250), (3, 250), (8, 125), (2000, 1)):
        assert Owners(tuple(range(clients)), full=False).limit == limit
        assert Owners(tuple(range(clients)), full=True).limit is None


def test_on_the_curve_rows_of_an_owner_are_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "CURVE_OWN_ROWS", 3)
    shares = make_shares(TASKS, Natural(), 3, 0, test="source")
    f = across("local", "others", dataset=TASKS, shares=shares)
    found = evaluate(f, full=False)
    assert found.others_matrix == []
    held = [share.held for share in shares]
    chosen = [rows[[0, (len(rows) - 1) // 2, len(rows) - 1]] for rows in held if rows is not None]
    assert found.others[0] == pytest.approx(
        np.mean([right(f, 0, rows, TASKS.x_test, TASKS.y_test) for rows in chosen[1:]])
    )


def test_clients_with_equal_models_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    f = across("fedavg", "others", dataset=TASKS, clients=4)
    asked: list[int] = []
    inner = accuracy.Evaluation._test_of
    monkeypatch.setattr(
        accuracy.Evaluation, "_test_of", lambda self, owner, *rest: asked.append(owner) or inner(self, owner, *rest)
    )
    found = evaluate(f, full=True)
    assert asked == [0, 1, 2, 3]
    assert len({*map(tuple, found.others_matrix)}) == 1
    own = found.others_matrix[0]
    assert found.others == pytest.approx([(sum(own) - value) / 3 for value in own])


def test_clients_whose_samples_have_another_shape_are_no_others() -> None:
    wider = replace(TASKS, name="wider", x_train=TASKS.x_train.repeat(1, 2), x_test=TASKS.x_test.repeat(1, 2))
    made = setup_of("local", dataset=TASKS, clients=4)
    dealt = {"datasets": [TASKS, wider] * 2, "architectures": ["a", "b"] * 2}
    setup = replace(made, **dealt, extra_programs=partial(evaluation, across=["others"]))
    f = Federation(setup, local(setup, 1))
    f.start()
    found = evaluate(f, full=True)
    known = [[not math.isnan(value) for value in row] for row in found.others_matrix]
    assert known == [[True, False] * 2, [False, True] * 2] * 2
    assert found.others[0] == found.others_matrix[0][2]


def test_scores_by_task_are_on_the_own_test_rows_of_each_group_in_order() -> None:
    shares = make_shares(TASKS, Natural(), 2, 0, validation=0.0, test="source")
    f = across("local", "forgetting", dataset=TASKS, shares=shares)
    found = evaluate(f, full=True)
    assert TASKS.groups is not None
    assert TASKS.test_groups is not None
    for client, share in enumerate(shares):
        tasks = sorted({int(TASKS.groups[row]) for row in share.train})
        assert len(tasks) == 3
        wanted = [
            right(f, client, np.flatnonzero(TASKS.test_groups == task), TASKS.x_test, TASKS.y_test) for task in tasks
        ]
        assert found.by_task[client] == wanted


def row(round: int, *by_task: list[float]) -> Row:
    point = Point(own=(), validation=(), common=(), composition=None, by_task=by_task)
    volume = {"raw": 0, "wire": 0}
    return Row.model_construct(round=round, uplink=volume, downlink=volume, accuracy=point)


def test_forgetting_is_the_best_earlier_score_minus_the_last_on_all_tasks_but_the_last() -> None:
    nan = math.nan
    points = [
        row(0, [1.0, 1.0, 1.0], [1.0]),  # before training: no score that could be lost
        row(1, [0.9, 0.2, 0.1], [0.3]),
        row(2, [0.7, 0.8, 0.1], [0.9]),
        row(3, [0.5, 0.9, 0.7], [0.1]),
    ]
    one, other = forgetting(points)
    assert one == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)
    assert math.isnan(other), "a client with one task forgets none"
    assert forgetting([row(1, [nan, 0.5, 0.1]), row(2, [nan, 0.2, 0.3])]) == pytest.approx([0.3])
    assert math.isnan(forgetting(points[:2])[0])
    assert forgetting([]) == []


ASKED = Given(dataset=TASKS)


def asking(**values: Any) -> Any:
    few = {"metrics": sorted(ACROSS_TASKS), "partition": {"name": "natural"}, "validation": 0.0, "test": "source"}
    return config_of(**({"method": "local", "settings": {"local_epochs": 1}} | few | values))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("others") / "run"
    execute(asking(method="fedavg", beside=["local"], workers=2), made, given=ASKED)
    return made


def test_a_run_says_it_wherever_own_accuracy_stands(path: Path) -> None:
    summary = outcome(path).summary
    for values in (summary, summary["beside"]["local"]):
        others = values["others_accuracy"]
        matrix = np.array(values["others_matrix"])
        assert np.diag(matrix).tolist() == values["own_accuracy"]["per_client"]
        mean = [np.delete(scores, client).mean() for client, scores in enumerate(matrix)]
        assert others["per_client"] == pytest.approx(mean)
        assert others["mean"] == pytest.approx(np.mean(mean))
        assert [len(tasks) for tasks in values["by_task"]] == [2, 2, 2]
        assert len(values["forgetting"]["per_client"]) == 3
    points = [line["accuracy"] for line in lines(path / "metrics.jsonl")]
    assert all(len(point["others"]) == 3 and len(point["by_task"]) == 3 for point in points)
    assert not any("others_matrix" in point for point in points)
    rounds, curve = Result(path).curve("others")
    assert (rounds.tolist(), curve.shape) == ([0, 1, 2, 3], (4, 3))
    assert curve[-1] == pytest.approx(summary["others_accuracy"]["per_client"])

    text_of = page(load(path), {})
    percent = f"{100 * summary['others_accuracy']['mean']:.1f}"
    assert re.search(rf"accuracy on others’ test rows</div><div class=\"value\">{percent} %", text_of)
    assert text_of.count('<th scope="col">others</th>') == 2
    assert '<th scope="col">others, %</th>' in text_of
    plot = figures(load(path))["accuracy-rounds"]
    assert "on others’ test rows" in {text.get_text() for text in plot.legends[0].get_texts()}
    text = io.StringIO()
    Console(file=text, width=120).print(console_summary(Result(path).summary))
    assert f"accuracy on others’ test rows  {percent} %   Local" in text.getvalue()
    assert "forgetting of earlier tasks" in text.getvalue()


def test_asking_changes_nothing_else(path: Path, tmp_path: Path) -> None:
    execute(asking(method="fedavg", beside=["local"], metrics=()), tmp_path / "plain", given=ASKED)
    plain, asked = outcome(tmp_path / "plain"), outcome(path)
    for line in asked.metrics:
        del line["accuracy"]["others"], line["accuracy"]["by_task"], line["accuracy"]["rows"]["others"]
    assert timeless(plain.metrics) == timeless(asked.metrics)
    assert plain.tensors.keys() == asked.tensors.keys()
    assert all(torch.equal(plain.tensors[key], asked.tensors[key]) for key in plain.tensors)


def test_a_run_that_is_extended_says_the_same(path: Path, tmp_path: Path) -> None:
    short = tmp_path / "run"
    execute(asking(method="fedavg", beside=["local"], rounds=2), short, given=ASKED)
    resume(short, given=ASKED, rounds=3)
    assert_same(outcome(short), outcome(path))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"metrics": ["others"], "evaluation": "none"}, "metrics = others: .*evaluation = 'none'"),
        ({"metrics": ["other"]}, "'other' is no metric: did you mean 'others'"),
        ({"metrics": ["auroc", "others"], "evaluation": "own"}, "measured with evaluation = 'shared', not 'own'"),
    ],
)
def test_what_cannot_be_measured_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(values)


def test_without_a_common_test_set_others_are_there_all_the_same(tmp_path: Path) -> None:
    execute(asking(metrics=["others"], evaluation="own", rounds=1), tmp_path / "run", given=ASKED)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["others_accuracy"]["mean"] is not None
    assert summary["global_accuracy"]["mean"] is None


def test_between_parties_no_test_row_moves() -> None:
    with pytest.raises(ConfigError, match="metrics = others: no party's test rows go to another one"):
        between_parties(parse_config({"metrics": ["others"]}), 2)


def test_forgetting_needs_tasks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not say which task a row is of"):
        execute(asking(metrics=["forgetting"], partition={"name": "iid"}, test=0.1), tmp_path / "run", given=GIVEN)
