"""Every number of the table, computed a second time with plain loops over the files of the runs."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hand_made import finished, plan_of, write_run

from interfuse.comparison.execution import Finished
from interfuse.comparison.measures import Anchor, Row, accuracies_at, anchor_of, held, operations, read_run, rows
from interfuse.comparison.plan import resolve
from interfuse.comparison.recipe import parse
from interfuse.comparison.table import tables

SMALL = {"models": ["logistic"], "fusion_width": 8, "clients": 4}
IFL, LATE = {"name": "ifl", "method": "ifl"}, {"name": "late", "method": "ifl-late-replay"}
ACCURACIES, UPLINKS = [0.3, 0.6, 0.99], [9000, 20_000]


@pytest.fixture
def table(tmp_path: Path) -> tuple[list[Row], Anchor | None, Path]:
    """Three entries that differ in clients, uplink and level."""
    plan = plan_of("ifl", "fedavg", "local", accuracies=ACCURACIES, uplinks=UPLINKS)
    ifl, fedavg, local = plan.entries
    done = [
        finished(ifl, tmp_path, upload=1000, rise=0.9),
        finished(fedavg, tmp_path, upload=5000, rise=0.8, clients=3, method="fedavg", discloses=["parameters"]),
        finished(local, tmp_path, upload=0, rise=0.7, method="local", discloses=[]),
    ]
    found, anchor = rows(plan, done)
    return found, anchor, tmp_path


def files(folder: Path, name: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = folder / name / f"seed-{seed}"
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return json.loads((path / "summary.json").read_text()), [json.loads(line) for line in lines]


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def flat(matrix: list[list[float]]) -> list[float]:
    return [value for row in matrix for value in row]


def swapped(matrix: list[list[float]], base: int) -> list[float]:
    return [value for modular, value in enumerate(matrix[base]) if modular != base]


def by_hand(folder: Path, name: str, seed: int, anchor_bytes: int, anchor_clients: int) -> dict[str, float]:
    """All measures of a run."""
    summary, metrics = files(folder, name, seed)
    local, _ = files(folder, "local", seed)
    clients = len(summary["clients"])
    found: dict[str, float] = {}
    for when, values in (("last", summary), ("best", summary["best"])):
        matrix = values["composition_matrix"]
        found[f"own_{when}"] = average(values["own_accuracy"]["per_client"])
        found[f"global_{when}"] = average(values["global_accuracy"]["per_client"])
        found[f"composition_{when}"] = average(flat(matrix))
        found[f"swapped_{when}"] = average([v for base in range(clients) for v in swapped(matrix, base)])
        found[f"spread_{when}"] = average([statistics.pstdev(swapped(matrix, base)) for base in range(clients)])
    found["stability"] = summary["stability"]
    found["own_by_samples_last"] = summary["own_by_samples"]
    found["own_by_samples_on_test"] = summary["best_on_test"]["own_by_samples"]
    found["own_on_test"] = summary["best_on_test"]["own"]
    found["own_minus_local"] = found["own_last"] - average(local["own_accuracy"]["per_client"])
    found["composition_minus_local"] = found["composition_last"] - average(flat(local["composition_matrix"]))
    found["uplink"] = metrics[-1]["uplink"]["raw"]
    found["downlink"] = metrics[-1]["downlink"]["raw"]
    found["uplink_per_client"], found["downlink_per_client"] = found["uplink"] / clients, found["downlink"] / clients
    for way in ("uplink", "downlink"):
        found[f"{way}_wire"] = metrics[-1][way]["wire"]
        found[f"{way}_wire_per_client"] = found[f"{way}_wire"] / clients
    found["uplink_ratio"] = found["uplink"] / found["uplink_wire"] if found["uplink_wire"] else math.nan
    for side in ("clients", "server"):
        found[f"steps_{side}"] = sum(line["steps"][side] for line in metrics)
    found["virtual_seconds"] = metrics[-1]["virtual_seconds"]["devices"]
    found["missing"] = len(metrics) - 1 + seed
    found["flops"] = 1000.0 * (len(metrics) - 1)
    found["peak_memory"] = 1e6 * (seed + 1)
    found["seconds"] = sum(line["seconds"]["calls"] for line in metrics)
    points = [line for line in metrics if "accuracy" in line]
    for accuracy in ACCURACIES:
        there = [line for line in points if average(line["accuracy"]["common"]) >= accuracy]
        for key, way, form in (
            ("uplink", "uplink", "raw"), ("downlink", "downlink", "raw"), ("uplink_wire", "uplink", "wire"),
        ):  # fmt: skip
            size = min((line[way][form] for line in there), default=math.nan)
            found[f"{key}_to_{accuracy:g}"] = size
            found[f"{key}_to_{accuracy:g}_per_client"] = size / clients
        own = [line for line in points if average(line["accuracy"]["own"]) >= accuracy]
        composed = [line for line in points if average(flat(line["accuracy"]["composition"])) >= accuracy]
        for evidence, enough in (("own", own), ("compositions", composed)):
            size = min((line["uplink"]["raw"] for line in enough), default=math.nan)
            found[f"uplink_to_{accuracy:g}_{evidence}"] = size
        for name in ("devices", "1 Mbit/s", "10 Mbit/s", "100 Mbit/s"):
            seconds = there[0]["virtual_seconds"].get(name, math.nan) if there else math.nan
            found[f"virtual_{name}_to_{accuracy:g}"] = seconds
    limits = {str(uplink): (uplink, 1) for uplink in UPLINKS} | {"anchor": (anchor_bytes, anchor_clients)}
    for limit, (size, parties) in limits.items():
        for rule in ("", "_per_client"):
            within = [
                line for line in points
                if (line["uplink"]["raw"] <= size if not rule else line["uplink"]["raw"] * parties <= size * clients)
            ]  # fmt: skip
            found[f"global_at_{limit}{rule}"] = average(within[-1]["accuracy"]["common"])
            found[f"composition_at_{limit}{rule}"] = average(flat(within[-1]["accuracy"]["composition"]))
    return found


def test_all_measures_are_those_of_a_second_computation(table: tuple[list[Row], Anchor | None, Path]) -> None:
    found, anchor, folder = table
    assert anchor is not None
    for row in found:
        wanted = [by_hand(folder, row.name, seed, int(anchor.uplink), anchor.clients) for seed in (0, 1, 2)]
        for values, other in zip(row.values, wanted, strict=True):
            assert values == pytest.approx(other, nan_ok=True, abs=1e-12)
        for key in wanted[0]:
            values = [other[key] for other in wanted]
            assert row.mean[key] == pytest.approx(average(values), nan_ok=True), key
            deviation = math.nan if any(map(math.isnan, values)) else statistics.stdev(values)
            assert row.std[key] == pytest.approx(deviation, nan_ok=True, abs=1e-12), key


def test_the_anchor_is_where_its_mean_curve_has_95_percent_of_its_end(
    table: tuple[list[Row], Anchor | None, Path],
) -> None:
    _, anchor, folder = table
    curves = [[line for line in files(folder, "ifl", seed)[1] if "accuracy" in line] for seed in (0, 1, 2)]
    means = [average([average(line["accuracy"]["common"]) for line in lines]) for lines in zip(*curves, strict=True)]
    first = min(place for place, value in enumerate(means) if value >= 0.95 * means[-1])
    assert anchor == Anchor(curves[0][first]["uplink"]["raw"], 4)
    assert 0 < first < len(means)


def test_under_the_rule_for_each_client_many_clients_may_send_more(tmp_path: Path) -> None:
    few, many = (read_run(write_run(tmp_path / str(n), 0, clients=n, upload=100), 0) for n in (2, 8))
    found = [accuracies_at(run, [700.0], Anchor(600.0, 2)) for run in (few, many)]
    for run, values, of_all in ((few, found[0], 2), (many, found[1], 0)):
        # six rounds of 100 bytes are within 700 bytes of each client, and three within the anchor's 300
        assert values["global_at_700_per_client"] == run.curve.common[list(run.curve.rounds).index(6)]
        assert values["global_at_anchor_per_client"] == run.curve.common[list(run.curve.rounds).index(2)]
        assert values["global_at_anchor"] == run.curve.common[list(run.curve.rounds).index(of_all)]


def test_with_codecs_an_uplink_is_that_on_the_wire(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg", accuracies=[0.5], uplinks=[9000.0], seeds=[0])
    done = [finished(entry, tmp_path / entry.name, seeds=[0]) for entry in plan.entries]
    summary, metrics = (done[0].runs[0] / name for name in ("summary.json", "metrics.jsonl"))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        line["uplink"]["wire"] = line["uplink"]["raw"] // 4
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    before, anchor = rows(plan, done)
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"codecs": {"default": "int8"}}))
    after, smaller = rows(plan, done)
    assert anchor is not None
    assert smaller is not None
    assert smaller.uplink == anchor.uplink // 4
    points = [line for line in lines if "accuracy" in line]
    for found, size in ((before, "raw"), (after, "wire")):
        within = [line for line in points if line["uplink"][size] <= 9000]
        assert found[0].mean["global_at_9000"] == pytest.approx(average(within[-1]["accuracy"]["common"]))
    assert before[0].mean["global_at_9000"] < after[0].mean["global_at_9000"]


def test_bytes_to_an_accuracy_that_some_seeds_never_have_are_unknown(tmp_path: Path) -> None:
    plan = plan_of("ifl", accuracies=[0.5], seeds=[0, 1])
    (entry,) = plan.entries
    done = finished(entry, tmp_path, seeds=[0], rise=0.9)
    done.runs[1] = write_run(tmp_path / "low", 1, rise=0.2)
    (row,), _ = rows(plan, [done])
    assert math.isnan(row.mean["uplink_to_0.5"])
    assert row.known("uplink_to_0.5") == 1


def test_one_seed_has_no_spread_and_without_local_there_is_no_difference(tmp_path: Path) -> None:
    plan = plan_of("ifl", seeds=[0])
    (row,), _ = rows(plan, [finished(plan.entries[0], tmp_path, seeds=[0])])
    assert math.isnan(row.std["own_last"])
    assert math.isnan(row.mean["own_minus_local"])
    assert row.mean["own_last"] == row.values[0]["own_last"]


def test_two_clients_have_no_spread_over_modular_blocks_of_others(tmp_path: Path) -> None:
    plan = plan_of("ifl", seeds=[0])
    (row,), _ = rows(plan, [finished(plan.entries[0], tmp_path, seeds=[0], clients=2)])
    assert math.isnan(row.mean["spread_last"])


def test_without_compositions_they_are_unknown(tmp_path: Path) -> None:
    plan = plan_of("ifl", seeds=[0])
    (row,), _ = rows(plan, [finished(plan.entries[0], tmp_path, seeds=[0], compositions=False)])
    assert row.composition is None
    assert all(math.isnan(row.mean[f"{kind}_last"]) for kind in ("composition", "swapped", "spread"))
    assert not math.isnan(row.mean["global_last"])


def test_operations_follow_the_steps_where_rounds_differ(tmp_path: Path) -> None:
    """A first round of 30 steps, and 5 in each of the three others: 45 in all; without any, rounds count."""
    for first, wanted in ((30, 1000 * 45 / 30), (0, 1000 * 4)):
        folder = write_run(tmp_path / str(first), 0, rounds=4)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line, steps in zip(lines, (0, first, 5, 5, 5), strict=True):
            line["steps"] = {"clients": steps, "server": 0}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = json.loads((folder / "summary.json").read_text())
        summary["gradient_steps"] = {"clients": first + 15, "server": 0}
        (folder / "summary.json").write_text(json.dumps(summary))
        assert operations(read_run(folder, 0), 1000.0) == wanted


def test_newcomers_are_the_same_clients_in_every_entry(tmp_path: Path) -> None:
    """Four clients, of which two come late in one of the entries."""
    asked = {"run": SMALL, "entry": [IFL, {**LATE, "settings": {"newcomers": 2, "joins_at": 3}}]}
    plan = resolve(parse(asked, "test", "test.toml", Path("/nowhere")))
    done = [
        finished(entry, tmp_path, seeds=[0], rise=rise) for entry, rise in zip(plan.entries, (0.9, 0.7), strict=True)
    ]
    entries = [
        {
            "round": 1, "heading": heading, "call": 0, "handler": "method.train", "client": client, "direction": way,
            "kind": "weights", "casting": "unicast", "raw": 10**client, "wire": 1,
        }
        for heading in ("training", "evaluation") for client in range(4) for way in ("up", "down", "down")
    ]  # fmt: skip
    for f in done:
        (f.runs[0] / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found, anchor = rows(plan, done)
    for row in found:
        summary, _ = files(tmp_path, row.name, 0)
        for when, values in (("last", summary), ("best", summary["best"])):
            matrix = values["composition_matrix"]
            assert row.mean[f"newcomers_{when}"] == pytest.approx(average(flat([line[:2] for line in matrix[2:]])))
            assert row.mean[f"incumbents_{when}"] == pytest.approx(average(flat([line[:2] for line in matrix[:2]])))
        difference = row.mean["newcomers_last"] - row.mean["incumbents_last"]
        assert row.mean["newcomers_minus_incumbents"] == difference
        assert (row.mean["newcomers_uplink"], row.mean["newcomers_downlink"]) == (1100, 2200)
    assert "Newcomers" in [table.title for table in tables(plan, found, anchor)]
    assert "Newcomers" not in [table.title for table in tables(plan_of("ifl"), found[:1], anchor)]


def test_an_entry_without_runs_is_no_anchor() -> None:
    assert anchor_of([]) is None


def test_a_seed_that_stopped_early_stays_where_it_was(tmp_path: Path) -> None:
    plan = plan_of("ifl")
    runs = {seed: write_run(tmp_path / f"seed-{seed}", seed, rounds=rounds) for seed, rounds in ((0, 12), (1, 5))}
    ((row,), _) = rows(plan, [Finished(plan.entries[0], chosen={}, runs=runs, flops=1.0)])
    long, short = (run.curve.common.tolist() for run in row.runs)
    assert (len(long), len(short)) == (7, 4)
    both = held([run.curve.common for run in row.runs])
    assert both.tolist() == [long, short + short[-1:] * 3]
    accuracy = both.mean(0)
    first = next(place for place, value in enumerate(accuracy) if value >= 0.95 * accuracy[-1])
    assert anchor_of(row.runs) == Anchor(
        float(max(run.counted[min(first, 3 + 3 * (run.seed == 0))] for run in row.runs)), 4
    )


def test_rounds_until_an_accuracy_and_speed_beside_the_baseline(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg", "local", accuracies=ACCURACIES, baseline="fedavg")
    done = [finished(e, tmp_path, rise=rise) for e, rise in zip(plan.entries, (0.9, 0.7, 0.2), strict=True)]
    found, _ = rows(plan, done)

    def first(name: str, seed: int, accuracy: float) -> float:
        _, metrics = files(tmp_path, name, seed)
        lines = (m for m in metrics if "accuracy" in m and average(m["accuracy"]["common"]) >= accuracy)
        return next((m["round"] for m in lines), math.nan)

    for row in found:
        for seed, values in enumerate(row.values):
            for accuracy in ACCURACIES:
                own, unit = first(row.name, seed, accuracy), first("fedavg", seed, accuracy)
                expected = [own, unit / own]
                keys = [f"{key}_to_{accuracy:g}" for key in ("rounds", "speed")]
                assert [values[key] for key in keys] == pytest.approx(expected, nan_ok=True)
    ifl, fedavg, local = found
    assert fedavg.mean["speed_to_0.6"] == 1 < ifl.mean["speed_to_0.6"]
    assert math.isnan(local.mean["rounds_to_0.6"])
    shown = next(table for table in tables(plan, found, None) if table.title == "Rounds until an accuracy")
    assert shown.lines[1][shown.heads.index("speed to 60 %")].text == "1.0"
    means = found[0].values[0] | {"rounds_to_0.3": 7.5, "rounds_to_0.6": 1000.0}
    odd = tables(plan, [replace(found[0], values=[means] * 3), *found[1:]], None)
    (line,) = [table.lines[0] for table in odd if table.title == shown.title]
    assert [line[shown.heads.index(f"rounds to {part} %")].text for part in (30, 60)] == ["7.5", "1,000"]
    assert shown.lines[2][shown.heads.index("rounds to 60 %")].text == "–"


def test_operations_are_of_rounds_and_not_of_a_training_before_them() -> None:
    steps = SimpleNamespace(total=20 + 3 * 5)
    run: Any = SimpleNamespace(first_steps=5, steps_before=20, summary=SimpleNamespace(rounds=3, gradient_steps=steps))
    assert operations(run, 10.0) == 30.0
