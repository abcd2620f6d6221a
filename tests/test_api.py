"""``interfuse.run`` with objects, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from worlds import same_bits, tiny_dataset, wide

import interfuse
from interfuse import (
    Client,
    Clients,
    Dataset,
    Dirichlet,
    InterfuseError,
    Method,
    Natural,
    Pathological,
    Server,
    SplitModel,
    cross_entropy,
    on_client,
    pair,
)
from interfuse.api import new_folder
from interfuse.clock import named
from interfuse.errors import ConfigError, DataError, ModelError, RunError
from interfuse.methods import built_in
from interfuse.methods.ifl import IFL
from interfuse.numerics import Numerics
from interfuse.result import Result
from interfuse.runs import RunConfig, parse_config
from interfuse.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_report")

DATA = tiny_dataset(rows=120, test_rows=50)
METHOD = built_in()["ifl"].configure({"optimizer": "adam", "base_lr": 0.01, "modular_lr": 0.01})
FEW: dict[str, Any] = {
    "data": DATA, "clients": 3, "models": ["logistic"], "fusion_width": 8, "rounds": 1, "beside": (), "workers": 1,
}  # fmt: skip


def narrow(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """A fusion layer of another width than was asked for."""
    return pair(nn.Sequential(nn.Linear(sample_shape[0], 4), nn.ReLU()), nn.Linear(4, classes))


def blocks(width: int, classes: int) -> tuple[nn.Module, nn.Module]:
    """A builder without the shape of a sample, and a pair in place of a model."""
    return nn.Sequential(nn.Linear(5, width), nn.ReLU()), nn.Linear(width, classes)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """IFL with a method object, a data set object, builders, and a partition."""
    return interfuse.run(
        METHOD, data=DATA, partition=Dirichlet(0.5, minimum=8), models=[wide, "logistic", blocks], clients=3,
        fusion_width=8, rounds=6, eval_every=2, seed=1, commit_rounds=2, workers=1,
        out=tmp_path_factory.mktemp("api") / "run",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ results


def test_the_folder_says_what_ran(result: Result) -> None:
    config = result.config
    assert config.method == "ifl"
    assert config.data == "in-memory:tiny"
    assert config.partition == {"name": "dirichlet", "alpha": 0.5, "minimum": 8, "balanced": False}
    assert config.models == ("in-memory:worlds:wide", "logistic", "in-memory:test_api:blocks")
    assert config.settings["optimizer"] == "adam"
    assert {*config.settings, *config.unset} == {field.name for field in fields(IFL)}
    assert {"torch", "python", "interfuse", "machine"} <= set(config.environment)
    assert {"config.toml", "metrics.jsonl", "ledger.jsonl", "summary.json", "report.html", "commits", "beside"} <= {
        entry.name for entry in result.path.iterdir()
    }


def test_the_curve_has_the_rounds_that_were_evaluated(result: Result) -> None:
    rounds, common = result.curve("common")
    assert rounds.tolist() == [0, 2, 4, 6]
    assert common.shape == (4, 3)
    assert tuple(common[-1]) == result.summary.global_accuracy.per_client
    assert result.curve("own")[1].shape == result.curve("validation")[1].shape == (4, 3)
    assert result.curve("composition")[1].shape == (4, 3, 3)
    assert np.array_equal(result.curve("composition")[1][-1], result.summary.composition)
    assert common[-1].mean() > common[0].mean()
    with pytest.raises(ConfigError, match="no curve 'comon': .*global"):
        result.curve("comon")


def test_uplink_is_what_the_method_says_it_costs(result: Result) -> None:
    """A minibatch of fusion outputs (4 bytes a number) and labels (1 byte each) of every client and round."""
    rows = [min(result.config.settings["batch_size"], client.samples) for client in result.summary.clients]
    a_round = sum(rows) * (8 * 4 + 1)
    assert result.uplink.tolist() == [a_round * r for r in range(7)]
    assert result.summary.uplink_bytes.raw == 6 * a_round


@pytest.mark.parametrize("base", range(3))
@pytest.mark.parametrize("modular", range(3))
def test_a_composition_is_as_good_as_the_matrix_says(base: int, modular: int, result: Result) -> None:
    scores = result.compose(base=base, modular=modular)(DATA.x_test)
    assert scores.shape == (50, 3)
    right = int((scores.argmax(1) == DATA.y_test).sum())
    assert right / 50 == result.summary.composition_matrix[base][modular]
    plain = result.model(modular).eval().modular(result.model(base).eval().base(DATA.normalise(DATA.x_test)))
    torch.testing.assert_close(scores, plain.detach())


def test_the_diagonal_is_each_client_s_own_accuracy(result: Result) -> None:
    matrix = np.array(result.summary.composition_matrix)
    assert tuple(np.diag(matrix)) == result.summary.global_accuracy.per_client
    off = matrix[~np.eye(3, dtype=bool)]
    assert not np.allclose(off, np.diag(matrix).mean()), "all compositions alike: the test of the entries shows little"


def test_inputs_in_other_forms(result: Result) -> None:
    predict = result.compose(0, 2)
    wanted = predict(DATA.x_test)
    assert torch.equal(predict(DATA.x_test.numpy()), wanted)
    assert torch.equal(predict(DATA.x_test.tolist()), wanted)
    assert torch.allclose(predict(DATA.x_test[:1]), wanted[:1], atol=1e-6)
    assert torch.equal(predict(np.asfortranarray(DATA.x_test.numpy())), wanted)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 4), (2, 1, 5), (2, 5, 1), ()])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...], result: Result) -> None:
    with pytest.raises(InterfuseError, match=r"expected samples \[batch, 5\], found"):
        result.compose(0, 1)(torch.zeros(shape))


def test_images_of_one_channel_may_come_without_it(tmp_path: Path) -> None:
    data = tiny_dataset(shape=(1, 4, 4), dtype=torch.uint8)
    predict = interfuse.run("ifl", **FEW | {"data": data, "out": tmp_path / "run"}).compose(0, 1)
    assert torch.equal(predict(data.x_test[:, 0]), predict(data.x_test))
    with pytest.raises(InterfuseError, match=r"expected samples \[batch, 1, 4, 4\], found \(4, 4\)"):
        predict(data.x_test[0, 0])


def test_clients_that_are_not_there(result: Result) -> None:
    for base, modular, missing in ((3, 0, 3), (0, -1, -1)):
        with pytest.raises(ModelError, match=f"no client {missing}: clients are 0 to 2"):
            result.compose(base, modular)
    with pytest.raises(ModelError, match="no client 7: clients are 0 to 2"):
        result.model(7)


def test_a_model_is_a_copy(result: Result) -> None:
    first, second = result.model(1), result.model(1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert float(next(second.parameters()).abs().sum().detach()) > 0
    assert float(next(result.model(1).parameters()).abs().sum().detach()) > 0


def test_models_of_a_method_whose_clients_keep_nothing(tmp_path: Path) -> None:
    run = interfuse.run("fedavg", **FEW | {"out": tmp_path / "run", "rounds": 2})
    weights = [run.model(client).state_dict() for client in range(3)]
    assert same_bits(weights[0], weights[1])
    assert all(torch.isfinite(tensor).all() for tensor in weights[0].values())
    right = [(run.model(c).eval()(DATA.normalise(DATA.x_test)).argmax(1) == DATA.y_test).sum() / 50 for c in range(3)]
    assert [float(share) for share in right] == pytest.approx(run.summary.global_accuracy.per_client)


def test_a_run_is_opened_again(result: Result) -> None:
    again = interfuse.load_run(str(result.path), data=DATA, models=[wide, "logistic", blocks])
    assert again.summary == result.summary
    assert again.metrics == result.metrics
    assert torch.equal(again.compose(2, 0)(DATA.x_test), result.compose(2, 0)(DATA.x_test))
    with pytest.raises(RunError, match="holds no run"):
        interfuse.load_run(result.path / "commits")


def test_what_was_given_as_an_object_has_to_be_given_again(result: Result) -> None:
    opened = interfuse.load_run(result.path)
    assert opened.curve("common")[0].tolist() == [0, 2, 4, 6]
    with pytest.raises(RunError, match=r"data .*in-memory:tiny.*give it again: data="):
        opened.compose(0, 1)
    with pytest.raises(RunError, match=r"models .*give them again: models="):
        interfuse.load_run(result.path, data=DATA).model(0)


def test_a_run_that_is_not_finished_is_opened_and_resumed(tmp_path: Path) -> None:
    settings = FEW | {"rounds": 4, "commit_rounds": 1, "eval_every": 1}
    whole = interfuse.run("ifl", **settings, out=tmp_path / "whole")

    class StopAtThree:
        def begin(self, config: Any, done: int) -> None: ...

        def advance(self, row: Any) -> None:
            if row.round == 3:
                raise KeyboardInterrupt

        def stage(self, text: str) -> None: ...

        def note(self, text: str) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        interfuse.run("ifl", **settings, out=tmp_path / "run", progress=StopAtThree())
    opened = interfuse.load_run(tmp_path / "run", data=DATA)
    with pytest.raises(RunError, match="not finished"):
        opened.summary  # noqa: B018 (reading it is what fails)
    assert opened.curve("common")[0].tolist() == [0, 1, 2, 3]
    assert opened.compose(0, 1)(DATA.x_test).shape == (50, 3)
    with pytest.raises(RunError, match=r"in-memory:tiny.*give it again: data="):
        interfuse.resume(tmp_path / "run")
    done = interfuse.resume(tmp_path / "run", data=DATA, workers=2)
    assert done.summary.composition_matrix == whole.summary.composition_matrix
    assert (done.path / "ledger.jsonl").read_bytes() == (whole.path / "ledger.jsonl").read_bytes()
    assert (done.path / "report.html").exists()
    assert interfuse.resume(tmp_path / "run", data=DATA).summary == done.summary


def test_a_method_of_one_s_own(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Mine(Method):
        lr: float = 0.1

        def round(self, server: Server, clients: Clients) -> None:
            clients.call(self.train)

        @on_client
        def train(self, client: Client) -> None:
            client.fit(cross_entropy, steps=5, batch_size=8, lr=self.lr)

    done = interfuse.run(Mine(lr=0.05), **FEW | {"out": tmp_path / "run", "rounds": 3})
    assert done.config.settings == {"lr": 0.05}
    assert done.summary.uplink_bytes.raw == 0
    assert done.summary.global_accuracy.mean > 0.5
    assert done.model(0).part_names


def test_the_same_call_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    runs = [
        interfuse.run(METHOD, **FEW | {"out": tmp_path / str(n), "seed": seed, "partition": Dirichlet(0.5, 5)})
        for n, seed in enumerate((3, 3, 4))
    ]
    weights = [run.model(0).state_dict() for run in runs]
    assert same_bits(weights[0], weights[1])
    assert not same_bits(weights[0], weights[2])
    assert runs[0].summary.class_counts == runs[1].summary.class_counts != runs[2].summary.class_counts


def test_functions_of_one_name_are_different_models(tmp_path: Path) -> None:
    """Two lambdas of a notebook must not become one."""

    def hidden(units: int) -> Any:
        def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
            base = nn.Sequential(nn.Linear(sample_shape[0], units), nn.ReLU(), nn.Linear(units, width), nn.ReLU())
            return pair(base, nn.Linear(width, classes))

        return build

    a, b = hidden(3), hidden(7)
    done = interfuse.run("ifl", **FEW | {"models": [a, b, a], "out": tmp_path / "run"})
    assert [done.model(c).state_dict()["base.0.weight"].shape[0] for c in range(3)] == [3, 7, 3]
    sizes = [client.parameters.base for client in done.summary.clients]
    assert sizes == [3 * 6 + 8 * 4, 7 * 6 + 8 * 8, 3 * 6 + 8 * 4]


def test_builders_that_are_no_functions(tmp_path: Path) -> None:
    def sized(units: int, classes: int, width: int) -> SplitModel:
        return pair(nn.Sequential(nn.Linear(5, units), nn.Linear(units, width), nn.ReLU()), nn.Linear(width, classes))

    def wants(sample_shape: tuple[int, ...], classes: int, width: int, units: int = 3) -> SplitModel:
        return sized(units, classes, width)

    done = interfuse.run("ifl", **FEW | {"models": [partial(wants, units=6)], "out": tmp_path / "run"})
    assert done.model(0).state_dict()["base.0.weight"].shape == (6, 5)


@pytest.mark.parametrize("method", ["pooled", "fedavg", "splitfed-v1"])
def test_a_model_in_a_file_of_one_s_own(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name has a slash, and commits are named after models."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/models.py").write_text(
        "from torch import nn\n"
        "def build(classes, width):\n"
        "    return nn.Sequential(nn.Linear(5, width), nn.ReLU()), nn.Linear(width, classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = {"optimizer": "adam"} if method != "fedavg" else {}
    done = interfuse.run(method, **FEW | {"models": ["mine/models.py:build"], "settings": settings, "out": "run"})
    (tmp_path / "run/summary.json").unlink()
    assert interfuse.resume("run", data=DATA).summary.global_accuracy == done.summary.global_accuracy


# ------------------------------------------------------------------------------------------------------------ settings


def test_every_setting_of_a_recipe_can_be_given(tmp_path: Path) -> None:
    given: dict[str, Any] = FEW | {
        "evaluation": "own", "test_rows": 20, "commit_seconds": 5.0, "commit_rounds": 1, "device": "cpu",
        "client_memory": 0,
        "client": {1: {"base_lr": 0.5}}, "devices": "stragglers", "numerics": Numerics(layout="contiguous"),
    }  # fmt: skip
    config = interfuse.run("ifl", **given, out=tmp_path / "run").config
    assert (config.evaluation, config.test_rows, config.client) == ("own", 20, {1: {"base_lr": 0.5}})
    assert (config.execution.commit_seconds, config.execution.commit_rounds, config.execution.workers) == (5.0, 1, 1)
    assert (config.devices, config.numerics.layout) == (named("stragglers"), "contiguous")
    assert "test_rows: " in (interfuse.run.__doc__ or "")


def test_what_is_not_given_is_as_in_a_recipe(tmp_path: Path) -> None:
    given = {key: value for key, value in FEW.items() if key != "workers"} | {"out": tmp_path / "run"}
    config, default = interfuse.run("ifl", **given).config, RunConfig()
    same = set(RunConfig.model_fields) - {*given, "method", "settings", "unset", "environment"}
    assert {key: getattr(config, key) for key in same} == {key: getattr(default, key) for key in same}


# ------------------------------------------------------------------------------------------------ names of run folders


def test_run_folders_are_named_after_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for wanted in ("ifl-digits-seed0", "ifl-digits-seed0-2", "ifl-digits-seed0-3"):
        folder = new_folder(parse_config({}))
        assert folder == Path("runs") / wanted
        folder.mkdir(parents=True)
    for values, wanted in (
        ({"method": "mine.py", "seed": 4}, "mine-digits-seed4"),
        ({"method": "some/mine.py:FedProto", "data": "in-memory:tiny"}, "fedproto-tiny-seed0"),
        ({"method": "package.module:Class", "data": "/some/data.npz"}, "class-data-seed0"),
        ({"data": "package.module:load"}, "ifl-load-seed0"),
        ({"data": "/some/UCI HAR Dataset"}, "ifl-uci-har-dataset-seed0"),
    ):
        assert new_folder(parse_config(values)) == Path("runs") / wanted


def test_without_a_folder_a_new_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [interfuse.run("local", **FEW | {"seed": 9}).path for _ in range(2)]
    assert paths == [Path("runs/local-tiny-seed9"), Path("runs/local-tiny-seed9-2")]


def test_a_folder_that_holds_a_run_is_left_alone(result: Result) -> None:
    before = (result.path / "summary.json").read_bytes()
    with pytest.raises(RunError, match="holds a run already"):
        interfuse.run("ifl", **FEW | {"out": result.path})
    assert (result.path / "summary.json").read_bytes() == before


# ------------------------------------------------------------------------------------------- what cannot work, and why


def more(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return pair(nn.Linear(sample_shape[0], width), nn.Linear(width, classes + 1))


def longer(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return pair(nn.Linear(sample_shape[0] + 1, width), nn.Linear(width, classes))


def no_model(classes: int, width: int) -> Any:
    return 3


class SomeEmpty:
    """A partition of one's own that leaves client 1 without rows."""

    def split(self, labels: np.ndarray, clients: int, rng: Any, groups: Any) -> Sequence[np.ndarray]:
        return [np.arange(60), np.arange(0), np.arange(60, 120)]


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ({"data": "fashion-mnis"}, ConfigError, r"unknown data set 'fashion-mnis': did you mean 'fashion-mnist'"),
        ({"data": "nowhere.npz"}, DataError, r"nowhere.npz"),
        ({"clients": 0}, ConfigError, r"clients = 0: a federation needs at least one client"),
        ({"clients": -1}, ConfigError, r"clients = -1"),
        ({"models": []}, ConfigError, r"models is empty"),
        ({"models": ["logisti"]}, ConfigError, r"unknown model 'logisti': did you mean 'logistic'"),
        ({"models": ["logistic", narrow]}, ModelError, r"fusion width d: client 0 .* 8, client 1 \(.*narrow\) has 4"),
        ({"models": ["logistic", more]}, ModelError, r"client 1 \(.*more\).* 4 outputs, but tiny has 3 classes"),
        ({"models": ["logistic", longer]}, ModelError, r"client 1 \(.*longer\): .*cannot take samples of shape \(5,\)"),
        ({"models": ["logistic", no_model]}, ModelError, r"client 1 \(.*no_model\): .*not int"),
        ({"models": ["mlp", "cnn"]}, ModelError, r"client 1 \(cnn\)"),
        ({"partition": SomeEmpty()}, DataError, r"client 1 of 3 has no rows"),
        ({"partition": Dirichlet(0.01, minimum=0), "clients": 12}, DataError, r"client \d+ of 12 has no rows"),
        ({"partition": Dirichlet(1.0, minimum=80)}, DataError, r"3 clients with at least 80 rows each need 240"),
        ({"partition": Pathological(4)}, ConfigError, r"4 classes per client, but the data has 3"),
        ({"partition": Natural()}, DataError, r"no natural clients"),
        ({"partition": "dirichle"}, ConfigError, r"unknown partition 'dirichle': did you mean 'dirichlet'"),
        ({"clients": 121}, DataError, r"client \d+ of 121 has no rows"),
        ({"settings": {"base_l": 1}}, ConfigError, r"IFL has no setting 'base_l': did you mean 'base_lr'"),
        ({"settings": {"base_lr": -1}}, ConfigError, r"base_lr = -1 is impossible"),
        ({"method": METHOD, "settings": {"base_lr": 1.0}}, ConfigError, r"settings belong to a method .* by name"),
        ({"client": {1: {"base_l": 1}}}, ConfigError, r"client 1: IFL has no setting 'base_l'"),
        ({"client": {2: {"base_lr": 0}}}, ConfigError, r"client 2: IFL: base_lr = 0 is impossible"),
        ({"client": {3: {"base_lr": 1}}}, ConfigError, r"client.3\], but clients are 0 to 2"),
        ({"method": "ifk"}, ConfigError, r"no method 'ifk': did you mean 'ifl'"),
        ({"beside": ["loca"]}, ConfigError, r"beside: 'loca' .*local, pooled"),
        ({"rounds": 0}, ConfigError, r"rounds = 0 is impossible"),
        ({"roundz": 3}, ConfigError, r"interfuse.run: unknown key 'roundz': did you mean 'rounds'"),
        ({"execution": {}}, ConfigError, r"interfuse.run: unknown key 'execution'"),
        ({"workers": 0}, ConfigError, r"workers = 0 is impossible"),
        ({"commit_rounds": 0}, ConfigError, r"commit_rounds = 0 is impossible"),
        ({"eval_every": 0}, ConfigError, r"eval_every = 0 is impossible"),
        ({"validation": 0.5, "test": 0.5}, ConfigError, r"nothing is left to train on"),
        ({"device": "cpux"}, ConfigError, r"device = 'cpux'"),
        ({"numerics": Numerics(layout=cast(Any, "strided"))}, ConfigError, r"layout = 'strided' is impossible"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(
    values: dict[str, Any], kind: type[InterfuseError], told: str, tmp_path: Path
) -> None:
    """The text names the client and the field; no run folder is left behind."""
    with pytest.raises(kind, match=told):
        interfuse.run(**{"method": "ifl", **FEW, "out": tmp_path / "run"} | values)
    assert not (tmp_path / "run").exists()


def test_a_handler_that_raises_is_named_with_client_and_round_and_the_run_can_go_on(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Picky(Method):
        allow: bool = False

        def round(self, server: Server, clients: Clients) -> None:
            clients.call(self.train)

        @on_client
        def train(self, client: Client) -> None:
            if client.id == 2 and client.round == 2 and not (tmp_path / "mended").exists():
                raise ValueError("not on a Sunday")

    values = FEW | {"out": tmp_path / "run", "rounds": 3, "commit_rounds": 1}
    with pytest.raises(InterfuseError, match=r"client 2 failed in train, round 2: ValueError: not on a Sunday"):
        interfuse.run(Picky(), **values)
    commit = RunFolder(tmp_path / "run").last_commit()
    assert commit is not None
    assert commit.round == 1
    (tmp_path / "mended").touch()
    assert interfuse.resume(tmp_path / "run", method=Picky(), data=DATA).summary.rounds == 3


def test_a_data_set_may_have_samples_of_any_shape(tmp_path: Path) -> None:
    x = torch.randn(40, 2, 3)
    y = (x.sum((1, 2)) > 0).long()
    data = Dataset.from_arrays("rows", x, y, x[:10], y[:10], has_channels=True)
    done = interfuse.run("ifl", **FEW | {"data": data, "out": tmp_path / "run"})
    assert done.compose(0, 1)(x[:4]).shape == (4, 2)
