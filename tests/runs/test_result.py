"""What the summary, the metrics and the ledger of a run say, checked against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import GIVEN, Fuse, Killed, config_of, lines, outcome
from worlds import dataset_of, in_packs, same_bits

from interfuse.data import make_shares
from interfuse.errors import RunError
from interfuse.party import under
from interfuse.result import Result
from interfuse.runs import Given, Row, Summary, execute
from interfuse.runs.commits import manifest_name
from interfuse.runs.folder import RunFolder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best round is not its last."""
    made = tmp_path_factory.mktemp("result") / "run"
    config = config_of(
        rounds=12, settings={"base_lr": 0.4, "modular_lr": 0.4}, eval_every=3, beside=["local", "pooled"]
    )
    execute(config, made, given=GIVEN)
    return made


def test_the_lines_of_the_metrics_are_the_rounds(path: Path) -> None:
    rows = lines(path / "metrics.jsonl")
    assert [row["round"] for row in rows] == list(range(13))
    assert [row["round"] for row in rows if "accuracy" in row] == [0, 3, 6, 9, 12]
    assert all(set(row["seconds"]) >= {"server", "evaluation", "commit"} for row in rows)
    assert all(row["failures"] == [] for row in rows)


def test_the_metrics_count_what_the_ledger_lists(path: Path) -> None:
    rows, entries = lines(path / "metrics.jsonl"), lines(path / "ledger.jsonl")
    for row in rows:
        for direction, key in (("up", "uplink"), ("down", "downlink")):
            moved = [
                entry for entry in entries
                if (entry["heading"], entry["direction"]) == ("training", direction) and entry["round"] <= row["round"]
            ]  # fmt: skip
            assert row[key] == {unit: sum(entry[unit] for entry in moved) for unit in ("raw", "wire")}
    assert rows[-1]["uplink"]["raw"] > 0


def test_the_summary_counts_what_the_ledger_lists(path: Path) -> None:
    summary, entries = outcome(path).summary, lines(path / "ledger.jsonl")
    training = [entry for entry in entries if entry["heading"] == "training"]
    up = [entry for entry in training if entry["direction"] == "up"]
    down = [entry for entry in training if entry["direction"] == "down"]
    assert summary["uplink_bytes"] == {unit: sum(e[unit] for e in up) for unit in ("raw", "wire")}
    copies = {(e["round"], e["call"]): e for e in down if e["casting"] == "broadcast"}
    unicast = [e for e in down if e["casting"] == "unicast"]
    assert summary["downlink_bytes"] == {unit: sum(e[unit] for e in down) for unit in ("raw", "wire")} | {
        f"{unit}_broadcast": sum(e[unit] for e in [*copies.values(), *unicast]) for unit in ("raw", "wire")
    }
    for kind, volumes in summary["bytes_by_kind"].items():
        assert volumes["uplink"]["raw"] == sum(e["raw"] for e in up if e["kind"] == kind)
        assert volumes["downlink"]["raw"] == sum(e["raw"] for e in down if e["kind"] == kind)


def test_the_best_round_is_that_of_the_curve_and_its_numbers_are_of_its_state(path: Path) -> None:
    summary = outcome(path).summary
    rows = [row for row in lines(path / "metrics.jsonl") if "accuracy" in row and row["round"] > 0]
    means = [float(np.mean(row["accuracy"]["validation"])) for row in rows]
    best = rows[int(np.argmax(means))]  # the first of equals
    assert summary["best"]["round"] == best["round"] < 12, "choose other rates: the best round is the last"
    assert summary["best"]["validation_accuracy"] == max(means)
    # the test set is smaller than the rows of the curve, so both are on everything
    assert summary["best"]["global_accuracy"]["per_client"] == best["accuracy"]["common"]
    assert summary["best"]["composition_matrix"] == best["accuracy"]["composition"]
    assert summary["best"]["composition_matrix"] != summary["composition_matrix"]


def test_the_last_round_counts_for_the_run_itself(path: Path) -> None:
    summary, last = outcome(path).summary, lines(path / "metrics.jsonl")[-1]["accuracy"]
    assert summary["global_accuracy"]["per_client"] == last["common"]
    assert summary["own_accuracy"]["per_client"] == last["own"]
    assert summary["composition_matrix"] == last["composition"]
    for key in ("global_accuracy", "own_accuracy"):
        assert summary[key]["mean"] == pytest.approx(np.mean(summary[key]["per_client"]))
        assert summary[key]["std"] == pytest.approx(np.std(summary[key]["per_client"]))
    points = [row["round"] for row in lines(path / "metrics.jsonl") if "accuracy" in row]
    assert points[-10:][0] == 0, "the window begins before training"
    assert summary["stability"] is None


def test_after_the_best_was_evaluated_the_last_commit_is_still_the_last(path: Path) -> None:
    commit = RunFolder(path).last_commit()
    assert commit is not None
    assert commit.round == 12
    result = Result(path, GIVEN)
    x = torch.rand(4, 5)
    model = result.model(0)
    owned = in_packs(path / "commits", commit.saved.packs)
    assert same_bits(
        dict(model.state_dict()),
        under("client-00000:networks/model/", owned),
    )
    assert torch.isfinite(model(x)).all()


def test_the_facts_of_clients_and_classes(path: Path) -> None:
    summary = outcome(path).summary
    assert GIVEN.dataset is not None
    shares = make_shares(GIVEN.dataset, Result(path, GIVEN).config.make_partition(), 3, 0)
    for client, share in enumerate(shares):
        rows = np.concatenate([share.train, share.validation, share.test])
        assert summary["class_counts"][client] == np.bincount(GIVEN.dataset.y_train.numpy()[rows], minlength=3).tolist()
        assert summary["clients"][client]["samples"] == len(share.train)
        model = Result(path, GIVEN).model(client)
        assert sum(summary["clients"][client]["parameters"].values()) == sum(p.numel() for p in model.parameters())
    assert summary["class_names"] == ["class 0", "class 1", "class 2"]
    assert summary["discloses"] == ["features", "labels"]


def test_references_run_beside_with_the_steps_and_rates_of_the_method(path: Path) -> None:
    summary = outcome(path).summary
    assert set(summary["beside"]) == {"local", "pooled"}
    for name, other in summary["beside"].items():
        assert other == outcome(path / "beside" / name).summary
        config = Result(path / "beside" / name).config
        assert (config.method, config.rounds, config.seed, config.beside) == (name, 12, 0, ())
        assert config.settings["lr"] == 0.4
        assert config.settings["local_steps"] == Result(path).config.settings["local_steps"]
        assert other["class_counts"] == summary["class_counts"]
    assert summary["beside"]["local"]["uplink_bytes"]["raw"] == 0


def test_a_reference_is_not_run_beside_itself(tmp_path: Path) -> None:
    execute(config_of("local", rounds=1, beside=["local"]), tmp_path / "run", given=GIVEN)
    assert outcome(tmp_path / "run").summary["beside"] == {}
    assert not (tmp_path / "run/beside").exists()


def test_json_of_a_run_is_json(tmp_path: Path) -> None:
    """A share without test rows has no accuracy: null, and no NaN, which JSON does not know."""
    execute(config_of(rounds=1, test=0.0, validation=0.0), tmp_path / "run", given=GIVEN)

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    for text in [(tmp_path / "run/summary.json").read_text(), *metrics]:
        json.loads(text, parse_constant=refuse)
    summary = outcome(tmp_path / "run").summary
    typed = Result(tmp_path / "run").summary
    assert np.isnan([typed.own_accuracy.mean, *typed.own_accuracy.per_client]).all()
    assert typed.values() == summary
    assert summary["own_accuracy"] == {"mean": None, "std": None, "per_client": [None, None, None]}
    assert summary["best"] is None
    assert np.isnan(Result(tmp_path / "run").curve("own")[1]).all()


def test_a_run_without_a_commit_has_curves_and_no_models(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        execute(config_of(), tmp_path / "run", given=GIVEN, engine=Fuse(1).engine)
    result = Result(tmp_path / "run", GIVEN)
    assert result.metrics == []
    with pytest.raises(RunError, match=r"is not finished: `interfuse resume .*run`"):
        result.summary  # noqa: B018 (reading it is what fails)
    assert result.curve("common")[0].tolist() == []
    assert result.uplink.tolist() == []
    with pytest.raises(RunError, match="has no commit yet"):
        result.model(0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update(colour="blue"), r"summary\.json .*: colour: Extra inputs"),
        (lambda s: s["uplink_bytes"].update(zip=1), r"uplink_bytes\.zip: "),
        (lambda s: s["beside"]["local"].pop("rounds"), r"beside\.local\.rounds: Field required"),
        (lambda s: s.update(seed="seven"), r"seed: .*integer"),
        (lambda s: s["best"].update(validation_accuracy=[]), r"best\.validation_accuracy: "),
    ],
)
def test_a_summary_of_another_version_is_refused_by_file_and_key(
    change: Callable[[dict[str, Any]], object], told: str, path: Path, tmp_path: Path
) -> None:
    summary = json.loads((path / "summary.json").read_text())
    change(summary)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match=rf"{told}.*another version of interfuse"):
        RunFolder(tmp_path).summary()


def test_a_damaged_line_is_named(path: Path, tmp_path: Path) -> None:
    first, second, *_ = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(first + second.replace("uplink", "up") + "{")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2 cannot be read: uplink: Field required"):
        RunFolder(tmp_path).metrics()


def test_what_is_read_is_what_was_written(path: Path) -> None:
    summary = RunFolder(path).summary()
    assert summary is not None
    assert summary.values() == json.loads((path / "summary.json").read_text())
    assert [row.values() for row in RunFolder(path).metrics()] == lines(path / "metrics.jsonl")
    assert summary == RunFolder(path).summary()
    assert summary.local is not None
    assert summary.local.is_reference


def test_the_documented_keys_are_those_of_the_files() -> None:
    text = (Path(__file__).parents[2] / "docs/run-folder.md").read_text(encoding="utf-8")
    line, _, summary, metrics, across = (json.loads(part.partition("```")[0]) for part in text.split("```json")[1:])
    assert line.keys() == set(Row.model_fields)
    assert summary.keys() | metrics.keys() | across.keys() == set(Summary.model_fields)
    Row.model_validate(line)


def test_looking_at_a_run_writes_nothing(path: Path) -> None:
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}
    result = Result(path, GIVEN)
    result.compose(0, 1)(torch.rand(3, 5))
    result.model(2)
    result.curve("composition")
    assert before == {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}


def test_fusion_layers_of_other_widths_do_not_compose(tmp_path: Path) -> None:
    from interfuse.models import Builder, resolve

    def of_width(width: int) -> Builder:
        logistic = resolve("logistic")
        return lambda sample_shape, classes, _: logistic(sample_shape, classes, width)

    given = Given(dataset=GIVEN.dataset, builders=[of_width(4), of_width(6)])
    config = config_of("local", rounds=1, models=["in-memory:four", "in-memory:six"])
    execute(config, tmp_path / "run", given=given)
    result = Result(tmp_path / "run", given)
    assert outcome(tmp_path / "run").summary["composition_matrix"] is None
    assert result.compose(1, 1)(torch.rand(3, 5)).shape == (3, 3)
    with pytest.raises(Exception, match="clients 0 and 1: their fusion layers differ in width"):
        result.compose(0, 1)


def test_a_single_client_and_a_class_that_nobody_has(tmp_path: Path) -> None:
    data = dataset_of(torch.rand(20, 5), torch.zeros(20, dtype=torch.long), 4)
    execute(config_of("local", clients=1, rounds=1), tmp_path / "run", given=Given(dataset=data))
    summary = outcome(tmp_path / "run").summary
    assert summary["class_counts"] == [[20, 0, 0, 0]]
    assert len(summary["composition_matrix"]) == 1


def test_the_commit_of_a_thousand_rounds_is_named_in_order() -> None:
    """The newest commit is the last by name."""
    names = [manifest_name(round) for round in (9, 10, 100, 999, 1000, 99_999, 999_999)]
    assert names == sorted(names)


def test_all_tensors_of_a_commit_are_finite_and_all_clients_are_in_it(path: Path) -> None:
    tensors = outcome(path).tensors
    assert {key.split(":")[1] for key in tensors if key.startswith("last:client")} == {
        f"client-0000{c}" for c in range(3)
    }
    assert all(torch.isfinite(tensor.double()).all() for tensor in tensors.values())
