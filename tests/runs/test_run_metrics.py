"""Metrics beyond accuracy in the summary of a run, checked against its models and its accuracies."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import GIVEN, Fuse, Killed, assert_same, config_of, lines, outcome, timeless
from worlds import PLAIN, Recorder, dataset_of, federation, live_model, same_bits, tensors_in, tiny_dataset

from interfuse.data import Dataset
from interfuse.errors import ConfigError, RunError
from interfuse.evaluation import METRICS, Measurements, accuracy, evaluate, measure
from interfuse.federation import Federation
from interfuse.messages import Disclosure, disclosed
from interfuse.result import Result
from interfuse.runs import Given, RunConfig, execute, resume
from interfuse.runs.loop import assemble
from interfuse.wire.sealed import sealed

SCALARS = [name for name in METRICS if name != "recall"]


def measured(**values: Any) -> RunConfig:
    """A run with all metrics whose best round is not its last."""
    defaults = {"settings": {"base_lr": 0.4, "modular_lr": 0.4}, "beside": ["local"]}
    return config_of(**{"metrics": METRICS} | defaults | values)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("metrics") / "run"
    execute(measured(), made, given=GIVEN)
    return made


@pytest.mark.parametrize("method", ["ifl", "fedproto", "fedavg", "splitfed-v1"])
def test_accuracy_is_the_diagonal_of_the_confusion_matrix(method: str) -> None:
    assert_accuracy_is_the_diagonal(federation(method, rounds=2))


def test_without_an_answer_everything_is_wrong_here_as_in_accuracy() -> None:
    made = federation("ifl", rounds=2)
    for tensor in live_model(made, 0).parameters_of("modular").values():
        tensor.data[:] = torch.nan
    assert_accuracy_is_the_diagonal(made)
    found = measure(made)
    assert (found[0].common.confusion == torch.tensor([0, 0, 0, 8])).all()
    assert not found[1].common.confusion[:, -1].any()


def assert_accuracy_is_the_diagonal(made: Federation) -> None:
    found, accuracies = measure(made), evaluate(made, full=True)
    for client, one in found.items():
        for side, value in ((one.own, accuracies.own[client]), (one.common, accuracies.common[client])):
            assert int(side.confusion.diagonal().sum()) / int(side.confusion.sum()) == value


def test_values_follow_from_the_models(path: Path) -> None:
    """Confusion, recall and AUROC of every client, counted here from its own scores."""
    result, data = Result(path, GIVEN), GIVEN.dataset
    assert isinstance(data, Dataset)
    total = np.zeros((3, 4), dtype=int)
    for client in range(3):
        model = result.model(client)
        with model.evaluating():
            scores = model(data.normalise(data.x_test))
        matrix = np.zeros((3, 4), dtype=int)
        for answer, label in zip(scores.argmax(1).tolist(), data.y_test.tolist(), strict=True):
            matrix[label, answer] += 1
        recall = np.diag(matrix) / matrix.sum(1)
        assert result.metric("recall", "global")[client] == pytest.approx(recall)
        assert result.metric("balanced-accuracy", "global")[client] == pytest.approx(recall.mean())
        p = scores.double().softmax(1)
        pairs = [
            [(a > b) + 0.5 * (a == b) for a in p[data.y_test == c, c].tolist() for b in p[data.y_test != c, c].tolist()]
            for c in range(3)
        ]
        assert result.metric("auroc", "global")[client] == pytest.approx(np.mean([np.mean(c) for c in pairs]), abs=1e-6)
        total += matrix
    assert (result.confusion("global") == total).all()


def test_the_best_round_has_its_own(path: Path) -> None:
    result = Result(path)
    assert result.summary.best.round < 3, "choose other rates: the best round is the last"
    assert (result.confusion("global", best=True) != result.confusion("global")).any()
    for side in ("own", "global"):  # all clients have as many samples of it, so that their mean is that of all samples
        matrix = result.confusion(side, best=True)
        assert getattr(result.summary.best, f"{side}_accuracy").mean == pytest.approx(np.trace(matrix) / matrix.sum())


def test_the_summary_has_what_was_asked_for(path: Path) -> None:
    summary = outcome(path).summary
    for values in (summary, summary["best"], summary["beside"]["local"], summary["beside"]["local"]["best"]):
        assert list(values["metrics"]) == list(METRICS)
        for name in SCALARS:
            for side in ("own", "global"):
                spread = values["metrics"][name][side]
                known = [value for value in spread["per_client"] if value is not None]
                assert all(0 <= value <= 1 for value in known)
                assert len(spread["per_client"]) == 3
                # all clients have all classes; a prior belongs to a client's own rows
                nobody = name == "absent-recall" or (name, side) == ("accuracy-with-prior", "global")
                assert bool(known) is not nobody
                if nobody:
                    continue
                assert spread["mean"] == pytest.approx(np.mean(known))
                assert spread["std"] == pytest.approx(np.std(known))
        assert np.array(values["confusion"]["global"]).sum(1).tolist() == [24, 24, 24]
        assert np.shape(values["metrics"]["recall"]["own"]) == (3, 3)


def test_metrics_change_nothing_else(path: Path, tmp_path: Path) -> None:
    execute(measured(metrics=()), tmp_path / "plain", given=GIVEN)
    plain, with_metrics = outcome(tmp_path / "plain"), outcome(path)
    assert same_bits(plain.tensors, with_metrics.tensors)
    assert timeless(plain.metrics) == timeless(with_metrics.metrics)
    for entry in lines(path / "ledger.jsonl"):
        added = entry["kind"] == "Measurements"
        assert added == (entry["handler"] == "measurements")
        assert not added or entry["heading"] == "evaluation"
    places = {True: set(), False: set()}
    for entry in lines(path / "ledger.jsonl"):
        places[entry["kind"] == "Measurements"].add((entry["round"], entry["heading"], entry["call"]))
    assert not places[True] & places[False], "one call has one place in the ledger"
    kept = [entry for entry in lines(path / "ledger.jsonl") if entry["kind"] != "Measurements"]
    assert kept == lines(tmp_path / "plain" / "ledger.jsonl")
    wanted = timeless(plain.summary)
    for values in (wanted, wanted["best"], wanted["beside"]["local"], wanted["beside"]["local"]["best"]):
        assert not {"metrics", "confusion"} & set(values)

    def without(values: dict[str, Any]) -> dict[str, Any]:
        skipped = ("metrics", "confusion", "evaluation_bytes")
        return {k: without(v) if isinstance(v, dict) else v for k, v in values.items() if k not in skipped}

    assert without(timeless(with_metrics.summary)) == without(wanted)


def test_workers_and_a_kill_give_the_same(tmp_path: Path) -> None:
    whole = Fuse()
    execute(measured(beside=[]), tmp_path / "whole", given=GIVEN, engine=whole.engine)
    execute(measured(beside=[], workers=2), tmp_path / "two", given=GIVEN)
    assert_same(outcome(tmp_path / "two"), outcome(tmp_path / "whole"))
    steps = [number for number, name in enumerate(whole.names, 1) if "measurements" in name]
    assert len(steps) == 2, "one of the last and one of the best round"
    for step in steps:
        with pytest.raises(Killed):
            execute(measured(beside=[]), tmp_path / "killed", given=GIVEN, engine=Fuse(step).engine)
        resume(tmp_path / "killed", given=GIVEN)
        assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
        shutil.rmtree(tmp_path / "killed")


def test_scores_never_leave_a_client() -> None:
    assert disclosed(Measurements) == {Disclosure.STATISTICS}
    for rows in (24, 240):
        made = federation("ifl", rounds=1, wrap=Recorder, dataset=tiny_dataset(test_rows=rows))
        recorder = made.engine
        assert isinstance(recorder, Recorder)
        recorder.up.clear()
        measure(made)
        assert [request.handler for request, _, _ in recorder.up] == ["measurements"] * 3
        sizes = [sum(tensor.numel() for tensor in tensors_in([message])) for _, _, message in recorder.up]
        assert sizes == [2 * (3 * 4 + 3) + 1 + 3] * 3, "what leaves does not grow with the samples"


@pytest.mark.parametrize(("classes", "lacking"), [(1, 3), (2, 3), (3, 0)])
def test_clients_that_lack_classes_are_measured_on_them_and_answer_with_their_prior(
    tmp_path: Path, classes: int, lacking: int
) -> None:
    """All have FedAvg's one model, and are measured on the common test set once; but each lacks other classes."""
    partition = {"name": "pathological", "classes_per_client": classes}
    config = measured(method="fedavg", settings={"lr": 0.4}, beside=[], test=0.2, partition=partition)
    execute(config, tmp_path / "run", given=GIVEN)
    result, data = Result(tmp_path / "run", GIVEN), GIVEN.dataset
    assert isinstance(data, Dataset)
    shares = assemble(config, GIVEN).shares
    assert result.summary.metric("absent-recall", "global").known == lacking
    for client, share in enumerate(shares):
        recall, counts = result.metric("recall", "global"), np.bincount(data.y_train.numpy()[share.train], minlength=3)
        assert (recall[client] == recall[0]).all()
        assert (counts > 0).sum() == classes
        for kind, of_kind in (("absent", counts == 0), ("present", counts > 0)):
            wanted = recall[client, of_kind].mean() if of_kind.any() else math.nan
            found = result.metric(f"{kind}-recall", "global")[client]
            assert found == pytest.approx(wanted, nan_ok=True)
        model = result.model(client)
        with model.evaluating():
            scores = model(data.normalise(data.x_train[torch.from_numpy(share.test)]))
        posterior = scores.double().softmax(1).numpy() * (counts + 1)
        right = (posterior.argmax(1) == data.y_train.numpy()[share.test]).mean()
        assert result.metric("accuracy-with-prior")[client] == pytest.approx(right)


def test_classes_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    """One class alone has no AUROC; the others have no recall, and do not count in the mean."""
    data = dataset_of(torch.rand(40, 5), torch.ones(40, dtype=torch.long), 4)
    execute(config_of("local", clients=2, rounds=2, metrics=METRICS), tmp_path / "run", given=Given(dataset=data))
    result = Result(tmp_path / "run")
    recall = result.metric("recall")
    assert np.isnan(recall[:, [0, 2, 3]]).all()
    assert (result.metric("balanced-accuracy") == recall[:, 1]).all()
    assert tuple(recall[:, 1]) == result.summary.own_accuracy.per_client
    assert np.isnan(result.metric("auroc", "global")).tolist() == [True, True]
    assert not np.isnan(result.metric("calibration-error")).any()


def test_empty_shares_and_clients_that_are_not_evaluated_are_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "MOST_CLIENTS", 2)
    monkeypatch.setattr(accuracy, "MOST_COMPOSED", 2)
    execute(measured(test=0.0, beside=[]), tmp_path / "run", given=GIVEN)
    result = Result(tmp_path / "run")
    assert not result.confusion("own").any()
    assert result.confusion("global").sum() == 2 * 24
    for name in METRICS:
        assert np.isnan(result.metric(name, "own")).all()
        if name in ("absent-recall", "accuracy-with-prior"):
            assert np.isnan(result.metric(name, "global")).all()
            continue
        found = np.isnan(result.metric(name, "global")).reshape(3, -1)
        assert found.all(1).tolist() == [False, False, True]


def test_a_client_is_measured_on_the_test_set_of_its_own_domain(tmp_path: Path) -> None:
    small = tiny_dataset(rows=60, shape=(1, 5, 4), test_rows=24)
    large = Dataset(
        "large", torch.rand(90, 2, 6, 6), torch.arange(90) % 3,
        torch.rand(10, 2, 6, 6), torch.tensor([0] * 7 + [2] * 3),
        small.task, {"x": PLAIN},
    )  # fmt: skip
    config = measured(data=["in-memory:tiny", "in-memory:large"], models=["logistic", "mlp"], rounds=2, beside=[])
    execute(config, tmp_path / "run", given=Given(dataset=(small, large)))
    result = Result(tmp_path / "run")
    assert result.confusion("global").sum(1).tolist() == [2 * 8 + 7, 2 * 8, 2 * 8 + 3]
    recall = result.metric("recall", "global")
    assert np.isnan(recall).tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert result.summary.global_accuracy.per_client[1] == pytest.approx((7 * recall[1, 0] + 3 * recall[1, 2]) / 10)


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    execute(config_of("local", rounds=1, metrics=["recall"]), tmp_path / "run", given=GIVEN)
    result = Result(tmp_path / "run")
    assert list(result.summary.metrics) == ["recall"]
    assert result.confusion().sum() == 3 * 2
    with pytest.raises(ConfigError, match="metric 'auroc' was not measured: valid: recall"):
        result.metric("auroc")
    with pytest.raises(ConfigError, match="nothing is measured on 'common': own or global"):
        result.metric("recall", "common")


def test_runs_without_metrics_say_so(tmp_path: Path) -> None:
    execute(config_of("local", rounds=1), tmp_path / "run", given=GIVEN)
    with pytest.raises(ConfigError, match=r"measured no metrics beyond accuracy: run it with metrics=\[...\]"):
        Result(tmp_path / "run").confusion()
    with pytest.raises(Killed):
        execute(measured(), tmp_path / "killed", given=GIVEN, engine=Fuse(3).engine)
    with pytest.raises(RunError, match="is not finished"):
        Result(tmp_path / "killed").metric("auroc")
    execute(measured(rounds=1, validation=0.0, beside=[]), tmp_path / "blind", given=GIVEN)
    with pytest.raises(RunError, match="has no best round"):
        Result(tmp_path / "blind").confusion(best=True)


def test_a_run_from_before_there_were_metrics_goes_on(tmp_path: Path) -> None:
    config = config_of()
    execute(config, tmp_path / "whole", given=GIVEN)
    with pytest.raises(Killed):
        execute(config, tmp_path / "run", given=GIVEN, engine=Fuse(at="save 000002").engine)
    file = tmp_path / "run/config.toml"
    file.write_text(file.read_text().replace("metrics = []\n", ""))
    for manifest in (tmp_path / "run/commits").glob("*.json"):
        values = json.loads(manifest.read_text())
        assert values["settings"].pop("metrics") == []
        del values["digest"]
        values["before"] = ""
        manifest.write_text(sealed(values))
    resume(tmp_path / "run", given=GIVEN)
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    changed = measured(beside=[])
    with pytest.raises(Killed):
        execute(changed, tmp_path / "other", given=GIVEN, engine=Fuse(at="save 000002").engine)
    file = tmp_path / "other/config.toml"
    file.write_text(file.read_text().replace('    "auroc",\n', ""))
    with pytest.raises(RunError, match="was changed since the run began: metrics: "):
        resume(tmp_path / "other", given=GIVEN)
