"""Federations whose clients have different data sets, and that those with one are as they were."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Fuse, Killed, assert_same, config_of, outcome
from worlds import tiny_dataset

import interfuse
from interfuse import Silent, report
from interfuse.cli.configuration import configure
from interfuse.data import Classification, Dataset, Normalisation, make_shares
from interfuse.errors import ConfigError, RunError
from interfuse.report.text import architecture, title
from interfuse.result import Result
from interfuse.runs import Given, RunConfig, execute, read_config, resume
from interfuse.runs.config import parse_config, to_toml
from interfuse.runs.loop import assemble
from interfuse.setup import Setup

SMALL = tiny_dataset(rows=60, shape=(1, 5, 4), seed=1, test_rows=24)
OTHER = tiny_dataset(rows=90, shape=(2, 6, 6), seed=2, test_rows=30)
LARGE = dataclasses.replace(
    OTHER,
    name="large",
    normalisation={"x": Normalisation(1.0, (0.0,), (2.0,))},
    x_test=OTHER.x_test.flip(0),
    y_test=OTHER.y_test.flip(0),
)  # the labels of both test sets would be the same otherwise
GIVEN = Given(dataset=(SMALL, LARGE))
NAMES = ["in-memory:tiny", "in-memory:large"]


def mixed(method: str = "ifl", **values: Any) -> RunConfig:
    return config_of(method, **{"data": NAMES, "clients": 5, "models": ["logistic", "mlp", "cnn"]} | values)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mixed") / "run"
    execute(mixed(beside=["local"]), made, given=GIVEN)
    return made


def test_who_has_what() -> None:
    setup = assemble(mixed(), GIVEN)
    assert [dataset.name for dataset in setup.datasets] == ["tiny", "large", "tiny", "large", "tiny"]
    assert [dataset.name for dataset in setup.domains] == ["tiny", "large"]
    assert setup.architectures == ["logistic 1x5x4", "mlp 2x6x6", "cnn 1x5x4", "logistic 2x6x6", "mlp 1x5x4"]
    assert {profile.fusion_width for profile in setup.profiles.values()} == {8}
    for dataset, first, own in ((SMALL, 0, 3), (LARGE, 1, 2)):
        wanted = make_shares(dataset, mixed().make_partition(), own, 0, key=("data set", dataset.name))
        for share, found in zip(wanted, setup.shares[first::2], strict=True):
            np.testing.assert_array_equal(share.train, found.train)
        x = dataset.x_test[:3]
        torch.testing.assert_close(setup.inputs_of(first)(x), dataset.normalise(x), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"several data sets \(tiny, large\)"):
        _ = setup.dataset


def test_equal_shapes_are_one_architecture() -> None:
    other = dataclasses.replace(SMALL, name="other", x_train=SMALL.x_train + 1)
    setup = assemble(mixed(models=["logistic"]), Given(dataset=(SMALL, other)))
    assert set(setup.architectures) == {"logistic"}


def test_accuracies_are_on_the_test_set_of_the_base_block(path: Path) -> None:
    """Counted here from the models, for everybody with everybody."""
    result, summary = Result(path, GIVEN), outcome(path).summary
    matrix = summary["composition_matrix"]
    datasets = [SMALL, LARGE, SMALL, LARGE, SMALL]
    for i, dataset in enumerate(datasets):
        base = result.model(i)
        for k in range(5):
            modular = result.model(k)
            with base.evaluating(), modular.evaluating():
                scores = modular.modular(base.base(dataset.normalise(dataset.x_test)))
            right = float((scores.argmax(1) == dataset.y_test).double().mean())
            assert matrix[i][k] == pytest.approx(right)
            torch.testing.assert_close(result.compose(i, k)(dataset.x_test), scores, rtol=0, atol=1e-6)
        assert summary["global_accuracy"]["per_client"][i] == matrix[i][i]


def test_what_the_summary_says(path: Path) -> None:
    summary = outcome(path).summary
    assert summary["data"] == "in-memory:tiny, in-memory:large"
    assert [client["data"] for client in summary["clients"]] == ["tiny", "large", "tiny", "large", "tiny"]
    assert "that of its own data set" in summary["note"]
    typed = Result(path).summary
    assert title(typed) == "ifl on tiny, large, 5 clients, 3 rounds, seed 0"
    assert summary["class_names"] == list(SMALL.class_names)
    assert np.sum(summary["class_counts"], axis=1).tolist() == [20, 45, 20, 45, 20]
    assert [architecture(client, typed) for client in typed.clients[:2]] == ["logistic 1x5x4, tiny", "mlp 2x6x6, large"]


def test_the_report_of_a_run_under_way(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    assert "in-memory:tiny, in-memory:large" in report.write(tmp_path / "run").read_text()


def test_differing_class_names_become_numbers(tmp_path: Path) -> None:
    other = dataclasses.replace(LARGE, task=Classification(("x", "y", "z")))
    given = Given(dataset=(SMALL, other))
    summary = execute(mixed(rounds=1), tmp_path / "run", given=given)
    assert summary.class_names == ("0", "1", "2")
    assert Result(tmp_path / "run", given).class_names(1) == ("x", "y", "z")


def test_workers_and_a_resume_give_the_same(path: Path, tmp_path: Path) -> None:
    execute(mixed(beside=["local"], workers=2), tmp_path / "two", given=GIVEN)
    assert_same(outcome(tmp_path / "two"), outcome(path))
    with pytest.raises(Killed):
        execute(mixed(beside=["local"]), tmp_path / "killed", given=GIVEN, engine=Fuse(at="save 000002").engine)
    resume(tmp_path / "killed", given=GIVEN)
    assert_same(outcome(tmp_path / "killed"), outcome(path))


def test_changed_data_of_any_client_is_noticed(tmp_path: Path) -> None:
    execute(mixed(rounds=1), tmp_path / "run", given=GIVEN)
    (tmp_path / "run" / "summary.json").unlink()
    changed = dataclasses.replace(LARGE, x_train=LARGE.x_train + 1)
    with pytest.raises(RunError, match="in-memory:tiny, in-memory:large has other values"):
        resume(tmp_path / "run", given=Given(dataset=(SMALL, changed)))
    with pytest.raises(RunError, match="give it again"):
        resume(tmp_path / "run")
    resume(tmp_path / "run", given=GIVEN)


def six_classes() -> Dataset:
    return dataclasses.replace(tiny_dataset(classes=6), name="six")


@pytest.mark.parametrize(
    ("values", "given", "complaint"),
    [
        ({"clients": 1}, GIVEN, r"1 clients, but 2 data sets \(tiny, large\)"),
        ({"beside": ["pooled"]}, GIVEN, r"pooled trains on the data of all clients together.*\(tiny, large\)"),
        ({"method": "pooled"}, GIVEN, "pooled trains on the data of all clients together"),
        ({}, Given(dataset=(SMALL, SMALL)), "tiny, tiny: name each data set once"),
        ({}, Given(dataset=(SMALL, six_classes())), "client 1 has six with 6 classes, but client 0 tiny with 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_said_before_anything_is_trained(
    values: dict[str, Any], given: Given, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        execute(mixed(**values), tmp_path / "run", given=given)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_report")
def test_the_ways_to_name_several(tmp_path: Path) -> None:
    assert configure("ifl", {"data": ["digits", "rows.npz"]}).data == ("digits", f"{Path.cwd()}/rows.npz")
    written = to_toml(parse_config({"data": ["digits", "usps"]}))
    (tmp_path / "config.toml").write_text(written)
    assert read_config(tmp_path / "config.toml").data == ("digits", "usps")
    assert parse_config({"data": "digits"}).data == "digits"
    with pytest.raises(ConfigError, match="data is empty"):
        parse_config({"data": []})
    result = interfuse.run(
        "ifl", data=[SMALL, LARGE], clients=2, models=["logistic"], fusion_width=8, rounds=1, beside=(), workers=1,
        out=tmp_path / "run", progress=Silent(),
    )  # fmt: skip
    assert result.config.data == ("in-memory:tiny", "in-memory:large")
    again = interfuse.load_run(tmp_path / "run", data=[SMALL, LARGE])
    assert again.compose(1, 0)(LARGE.x_test[:2]).shape == (2, 3)


def of_names(name: str, names: tuple[str, ...] | None) -> Dataset:
    noise = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = noise.normal(size=(60, 5)).astype(np.float32)
    return Dataset.from_arrays(name, x, y, x[:9], y[:9], class_names=names)


def set_up_with(first: tuple[str, ...] | None, second: tuple[str, ...] | None, **values: Any) -> Setup:
    config = parse_config({
        "method": "fedavg", "data": ["in-memory:one", "in-memory:two"], "clients": 2, "models": ["logistic"],
    } | values)  # fmt: skip
    return assemble(config, Given(dataset=[of_names("one", first), of_names("two", second)]))


def test_a_class_of_two_data_sets_has_one_number() -> None:
    with pytest.raises(ConfigError, match="'b' is number 0 of two, but number 1 of one; .* classes in one order"):
        set_up_with(("a", "b", "c"), ("b", "a", "c"))
    with pytest.raises(ConfigError, match="'c' is number 1 of two, but number 2 of one"):
        set_up_with(("a", "b", "c"), ("x", "c", "y"))


def test_classes_that_are_called_otherwise_are_said() -> None:
    assert set_up_with(("a", "b", "c"), ("a", "b", "c")).data_notices == ()
    for other in (("x", "y", "z"), ("a", "b", "x"), None):
        setup = set_up_with(("a", "b", "c"), other)
        (notice,) = setup.data_notices
        assert "one: a, b, c" in notice.text
        assert "two: " in notice.text
        assert setup.class_names == ["0", "1", "2"]


def test_a_recipe_names_classes_that_have_numbers_only() -> None:
    setup = set_up_with(None, ("a", "b", "c"), classes=["a", "b", "c"])
    assert setup.class_names == ["a", "b", "c"]
    assert setup.data_notices == ()
    with pytest.raises(ConfigError, match="classes = a, b, d: two has a, b, c; name the same, in the same order"):
        set_up_with(None, ("a", "b", "c"), classes=["a", "b", "d"])


@pytest.mark.usefixtures("no_report")
def test_a_notice_of_the_data_is_a_warning_and_stands_in_the_headline(tmp_path: Path) -> None:
    result = interfuse.run(
        "fedavg", data=[of_names("one", ("a", "b", "c")), of_names("two", None)], models=["logistic"], clients=2,
        rounds=1, beside=[], out=tmp_path / "run", progress=interfuse.Silent(), workers=1,
    )  # fmt: skip
    (notice,) = result.summary.data_notices
    assert [w.text for w in result.summary.warnings if w.name == "data that may not fit together"] == [notice.text]
    assert notice.text.removesuffix(".") in result.summary.headline.text
