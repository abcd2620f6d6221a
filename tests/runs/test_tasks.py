"""Every task through methods: it is learnt, workers and a kill change nothing, and who cannot do it says so."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Fuse, Killed, assert_same, config_of, outcome
from task_data import MODELS, bag, data_of, houses, recurrent, spam
from worlds import federation, setup_of

from interfuse import SplitModel
from interfuse.errors import ClientError, ConfigError, ModelError
from interfuse.evaluation import evaluate
from interfuse.methods import built_in
from interfuse.models import resolve
from interfuse.result import Result
from interfuse.runs import Given, RunConfig, execute, resume

SPAM = Path(os.environ.get("INTERFUSE_DATA") or Path(__file__).parents[3] / "shared" / "data") / "sms-spam"
SPAM /= "SMSSpamCollection"

SETTINGS: dict[str, dict[str, Any]] = {
    "local": {"lr": 0.01, "optimizer": "adam", "local_steps": 20},
    "fedavg": {"lr": 0.01, "optimizer": "adam", "local_steps": 20},
    "ifl": {"base_lr": 0.02, "modular_lr": 0.02, "optimizer": "adam", "local_steps": 15},
}
ENOUGH = {"regression": 0.8, "multi-label": 0.7, "tokens": 0.75, "question answering": 0.75, "language modelling": 0.9}
"""Scores that nobody reaches by chance."""
PAIRS = [(kind, method) for kind in MODELS for method in SETTINGS if (kind, method) != ("language modelling", "ifl")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def models_of(kind: str, method: str) -> Sequence[Callable[..., SplitModel]]:
    """FedAvg takes one model."""
    return MODELS[kind][: 1 if method == "fedavg" else None]


def given(kind: str, method: str, folder: Path) -> Given:
    return Given(dataset=data_of(kind, folder), builders=[resolve(model) for model in models_of(kind, method)])


def config(kind: str, method: str, **values: Any) -> RunConfig:
    models = [f"in-memory:{model.__name__}" for model in models_of(kind, method)]
    defaults = {"data": f"in-memory:{kind}", "models": models, "clients": 2, "rounds": 8, "eval_every": 4}
    return config_of(method, **defaults | {"settings": SETTINGS[method]} | values)


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_every_task_is_learnt(kind: str, method: str, folder: Path, tmp_path: Path) -> None:
    """And with one or two workers, killed or not, the very same way."""
    about = given(kind, method, folder)
    execute(config(kind, method), tmp_path / "run", given=about)
    _, curve = Result(tmp_path / "run", about).curve("global")
    assert curve[-1].min() > ENOUGH[kind] > curve[0].max()

    execute(config(kind, method, workers=2), tmp_path / "two", given=about)
    with pytest.raises(Killed):
        execute(config(kind, method), tmp_path / "killed", given=about, engine=Fuse(limit=15).engine)
    resume(tmp_path / "killed", given=about)
    for other in ("two", "killed"):
        assert_same(outcome(tmp_path / other), outcome(tmp_path / "run"))


def test_blocks_of_a_bag_and_a_recurrent_layer_compose(folder: Path, tmp_path: Path) -> None:
    about = given("tokens", "ifl", folder)
    execute(config("tokens", "ifl"), tmp_path / "run", given=about)
    result, data = Result(tmp_path / "run", about), about.dataset
    assert not isinstance(data, list | tuple | None)
    _, matrix = result.curve("composition")
    assert matrix[-1].min() > ENOUGH["tokens"]
    scores = result.compose(0, 1)(np.asarray(data.x_test))
    assert float((scores.argmax(1) == data.y_test).double().mean()) == pytest.approx(matrix[-1][0][1])


@pytest.mark.skipif(not SPAM.is_file(), reason="the SMS Spam Collection is not in INTERFUSE_DATA")
def test_an_embedding_bag_and_a_recurrent_layer_learn_spam_from_each_other(tmp_path: Path) -> None:
    models = [resolve(partial(model, words=600)) for model in (bag, recurrent)]
    about = Given(dataset=spam(SPAM), builders=models)
    execute(config("tokens", "ifl", fusion_width=16, rounds=20, clients=2), tmp_path / "run", given=about)
    _, matrix = Result(tmp_path / "run", about).curve("composition")
    assert matrix[-1].min() > 0.94  # who says ham always is right in 87 of 100


def test_a_picture_with_a_question_is_given_by_name(folder: Path, tmp_path: Path) -> None:
    about = given("question answering", "ifl", folder)
    execute(config("question answering", "ifl", rounds=1), tmp_path / "run", given=about)
    result, data = Result(tmp_path / "run", about), about.dataset
    assert not isinstance(data, list | tuple | None)
    answers = result.compose(0, 1)({name: tensor.numpy()[:5] for name, tensor in data.x_test.items()})
    torch.testing.assert_close(answers, result.compose(0, 1)(data.x_test)[:5], rtol=1e-5, atol=1e-6)


def test_r_squared_of_a_federation_is_that_of_its_predictions(folder: Path) -> None:
    f = federation("local", dataset=houses(folder), models=MODELS["regression"][:1], clients=2, rounds=2)
    data, found = f.setup.datasets[0], evaluate(f, full=True)
    for client in range(2):
        model = f.engine.model(client)
        price = model(data.normalise(data.x_test)).detach() * data.task.std[0] + data.task.mean[0]
        error, spread = (data.y_test - price).square().sum(), (data.y_test - data.y_test.mean()).square().sum()
        assert found.common[client] == pytest.approx(float(1 - error / spread), rel=1e-5)
        rows = f.setup.shares[client].test
        price = model(data.normalise(data.x_train[rows])).detach() * data.task.std[0] + data.task.mean[0]
        error = (data.y_train[rows] - price).square().sum()
        spread = (data.y_train[rows] - data.y_train[rows].mean()).square().sum()
        assert found.own[client] == pytest.approx(float(1 - error / spread), rel=1e-5)


REFUSALS = (
    r"^\w+ needs classes for \w+\.[\w/*]+, but the task is {task}; take another method$",
    r"the method needs the size 'classes', but this run has .*: its task is {task}$",
    "needed are extractor, intermediate, classifier",  # another model would do
    "its fusion layer is no vector; give it a width$",
    "a sketch of 32 numbers of a fusion layer 8 wide: at most 8 directions exist$",
    "an adapter method needs a transformers model, such as hf:FOLDER$",
)


@pytest.mark.parametrize("kind", ["regression", "multi-label", "language modelling"])
@pytest.mark.parametrize("method", sorted(built_in()))
def test_a_method_can_do_a_task_or_says_by_name_that_it_cannot(kind: str, method: str, folder: Path) -> None:
    data = data_of(kind, folder)
    try:
        f = federation(method, dataset=data, models=MODELS[kind][:1], clients=2, rounds=1)
    except (ConfigError, ModelError, ClientError) as error:
        task = re.escape(str(data.task))
        assert any(re.search(refusal.format(task=task), str(error)) for refusal in REFUSALS), str(error)  # noqa: PT017
    else:
        assert not any(math.isnan(score) for score in evaluate(f, full=True).common)


def test_fedproto_needs_classes(folder: Path) -> None:
    wanted = r"FedProto needs classes for .*, but the task is regression \(price\); take another method"
    with pytest.raises(ConfigError, match=wanted):
        setup_of("fedproto", dataset=houses(folder), models=MODELS["regression"])


def test_metrics_are_of_classes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metrics .*recall.* are of classes, but the task is regression \(price\)"):
        execute(
            config("regression", "local", metrics=["recall"]),
            tmp_path / "run",
            given=given("regression", "local", folder),
        )


def test_a_partition_by_class_needs_classes(folder: Path, tmp_path: Path) -> None:
    by_class = config("regression", "local", partition={"name": "dirichlet"})
    with pytest.raises(ConfigError, match=r"Dirichlet goes by class, but the task is regression \(price\)"):
        execute(by_class, tmp_path / "run", given=given("regression", "local", folder))
