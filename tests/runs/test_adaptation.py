"""How fast models that a federation left learn an unseen task, against plain PyTorch on the same rows."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import GIVEN, config_of
from torch import Tensor
from worlds import plain_sgd, tiny_dataset

from interfuse.data import Dataset, EpochOrder
from interfuse.errors import ConfigError, DataError
from interfuse.evaluation import Adaptation, unseen_share
from interfuse.models import SplitModel
from interfuse.report.plots import adaptation_figure
from interfuse.result import Result
from interfuse.runs import execute

OTHER = replace(tiny_dataset(rows=40, seed=9, test_rows=30), name="other")
UNSEEN = replace(
    OTHER, groups=torch.arange(40) // 3 % 2, test_groups=torch.arange(30) // 3 % 2, group_names=("hue", "bgr")
)
LR, ROWS = 0.2, 6


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    path = tmp_path_factory.mktemp("adaptation") / "run"
    settings = {"local_epochs": 1, "lr": LR, "batch_size": ROWS}
    execute(config_of("fedavg", rounds=2, settings=settings, models=["logistic", "mlp"]), path, given=GIVEN)
    return Result(path, GIVEN)


def score(model: SplitModel, data: Dataset) -> float:
    with model.evaluating():
        found = model(data.normalise(data.x_test)).argmax(1)
    return float((found == data.y_test).double().mean())


def batches(data: Dataset, client: int, steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    order = EpochOrder(seed, client, len(data.y_train))
    rows = [torch.from_numpy(order.take(ROWS)) for _ in range(steps)]
    return [(data.normalise(data.x_train[own]), data.y_train[own]) for own in rows]


def test_a_curve_is_that_of_plain_sgd_from_what_the_federation_left(result: Result) -> None:
    found = result.adaptation(OTHER, clients=[2, 1], steps=(0, 3, 7), seed=5)
    assert list(found.curves) == ["client 2 (logistic)", "client 1 (mlp)", "new (mlp)", "new (logistic)"]
    for client, name in ((2, "logistic"), (1, "mlp")):
        for start, begins in (
            (f"client {client} ({name})", result.model(client)),
            (f"new ({name})", result._setup.build(name, "adaptation", 5)),
        ):
            wanted = []
            for steps in found.steps:
                model = copy.deepcopy(begins)
                plain_sgd(model, batches(OTHER, client, steps, 5), LR)
                wanted.append(score(model, OTHER))
            assert found.curves[start] == tuple(wanted)
    assert len({*found.curves["new (mlp)"]}) > 1, "choose other rates: nothing is learned"


def test_points_between_do_not_change_what_comes_later_and_the_run_stays_as_it_is(result: Result) -> None:
    before = result.model(0).state_dict()
    dense = result.adaptation(OTHER, clients=[0], steps=(0, 1, 2, 6))
    sparse = result.adaptation(OTHER, clients=[0], steps=(6,))
    assert {start: scores[-1] for start, scores in dense.curves.items()} == {
        start: scores[0] for start, scores in sparse.curves.items()
    }
    assert all(torch.equal(tensor, before[key]) for key, tensor in result.model(0).state_dict().items())


def test_options_stand_in_for_those_of_the_method(result: Result) -> None:
    still = result.adaptation(OTHER, clients=[0], steps=(0, 5), lr=0.0)
    assert all(first == last for first, last in still.curves.values())
    mine = result.model(0)
    own = result.adaptation(OTHER, clients=[0], steps=(0,), starts={"mine": (0, mine)})
    assert own.curves["mine"] == own.curves["client 0 (logistic)"]


def test_a_task_and_some_of_its_rows() -> None:
    assert UNSEEN.groups is not None
    assert UNSEEN.test_groups is not None
    for task in (1, "bgr"):
        share = unseen_share(UNSEEN, task, None, 0)
        assert share.train.tolist() == np.flatnonzero(UNSEEN.groups.numpy() == 1).tolist()
        assert share.held is not None
        assert share.held.tolist() == np.flatnonzero(UNSEEN.test_groups.numpy() == 1).tolist()
    few = [unseen_share(UNSEEN, "hue", 6, seed).train for seed in (0, 1)]
    assert all(np.bincount(UNSEEN.y_train[rows].numpy()).tolist() == [2, 2, 2] for rows in few)
    assert few[0].tolist() != few[1].tolist()
    assert all((UNSEEN.groups[rows] == 0).all() for rows in few)


def test_a_table_and_a_plot_say_it() -> None:
    found = Adaptation("accuracy", (0, 5, 10), {"client 0 (mlp)": (0.25, 0.5, 0.75), "new (mlp)": (0.1, 0.1, 0.5)})
    assert str(found).splitlines() == [
        "accuracy, %, after steps     0     5    10",
        "client 0 (mlp)            25.0  50.0  75.0",
        "new (mlp)                 10.0  10.0  50.0",
    ]
    assert found.until(0.5) == {"client 0 (mlp)": 5, "new (mlp)": 10}
    assert found.until(0.7) == {"client 0 (mlp)": 10, "new (mlp)": None}
    axes = adaptation_figure(found).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [list(scores) for scores in found.curves.values()]


@pytest.mark.parametrize(
    ("data", "values", "told"),
    [
        (tiny_dataset(classes=4), {}, "an unseen task has to be of the same kind"),
        (tiny_dataset(shape=(7,)), {}, "an unseen task has to be of the same kind"),
        (OTHER, {"steps": (5, 0)}, r"steps = \(5, 0\): give numbers of steps that go up"),
        (OTHER, {"steps": ()}, "give numbers of steps that go up"),
        (OTHER, {"task": 0}, "has no tasks"),
        (UNSEEN, {"task": "bgrr"}, "has no task 'bgrr': did you mean 'bgr'"),
        (UNSEEN, {"task": 7}, "has no task 7"),
        (OTHER, {"clients": [3]}, "no client 3"),
    ],
)
def test_what_cannot_be_is_refused(result: Result, data: Dataset, values: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        result.adaptation(data, **values)


def test_a_method_with_several_rates_wants_one_to_be_named(tmp_path: Path) -> None:
    execute(config_of("ifl", rounds=1), tmp_path / "run", given=GIVEN)
    result = Result(tmp_path / "run", GIVEN)
    with pytest.raises(ConfigError, match="IFL has no single rate of a client's own training: give lr="):
        result.adaptation(OTHER, clients=[0])
    found = result.adaptation(OTHER, clients=[0], steps=(0, 2), lr=0.1, batch_size=4)
    assert len(found.curves["client 0 (logistic)"]) == 2


def test_nobody_is_tested_on_nothing() -> None:
    with pytest.raises(DataError, match="20 training and 0 test rows"):
        bare = replace(UNSEEN, test_groups=torch.zeros(30, dtype=torch.int64))
        unseen_share(replace(bare, groups=torch.arange(40) % 2), 1, None, 0)
