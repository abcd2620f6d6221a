"""What a comparison shows of scores on others' tasks, over rounds, and of what was forgotten."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hand_made import finished, plan_of

from interfuse.comparison.formats import to_csv, to_latex, to_markdown
from interfuse.comparison.measures import rows
from interfuse.comparison.table import columns_of, tables
from interfuse.errors import ConfigError

CURVE = (0.1, 0.2, 0.4, 0.6)
"""Of the score on others' tasks: before training and at three points."""


def write(path: Path, others: float) -> None:
    """Make a run say what it would have measured."""
    summary = json.loads((path / "summary.json").read_text())
    spread = {"mean": others, "std": 0.0, "per_client": [others] * 4}
    for values in (summary, summary["best"]):
        values["others_accuracy"] = spread
        values["by_task"] = [[0.5, 0.7], [0.6], [None], [0.6, 0.6]]
    summary["forgetting"] = {"mean": 0.25, "std": 0.0, "per_client": [0.25, None, None, 0.25]}
    (path / "summary.json").write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line, value in zip((line for line in lines if "accuracy" in line), CURVE, strict=True):
        line["accuracy"]["others"] = [value + others] * 4
        line["accuracy"]["own"] = [value] * 4
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_others_forgetting_and_areas_have_columns_differences_and_a_table(tmp_path: Path) -> None:
    plan = plan_of("ifl", "local", metrics=["others", "forgetting"])
    done = [finished(entry, tmp_path / entry.name, rounds=3, every=1) for entry in plan.entries]
    for better, entry in zip((0.2, 0.1), done, strict=True):
        for seed, path in entry.runs.items():
            write(path, better + 0.01 * seed)
    found, _ = rows(plan, done)
    first = found[0].values[1]
    assert first["others_last"] == first["others_best"] == pytest.approx(0.21)
    assert first["own_auc"] == pytest.approx(sum(CURVE[1:]) / 3)
    assert first["others_auc"] == pytest.approx(sum(CURVE[1:]) / 3 + 0.21)
    assert (first["by_task_last"], first["forgetting"]) == (pytest.approx(0.6), 0.25)

    made = {table.title: table for table in tables(plan, found, None)}
    main = next(iter(made.values()))
    assert main.heads[1:4] == ("own", "others", "global")
    across = made["Accuracy across tasks"]
    assert across.heads[1:4] == ("own, last", "own, over rounds", "others")
    assert across.heads[4:] == ("others, best round", "others, over rounds", "own, by task", "forgetting")
    assert [cell.text for cell in across.lines[0]][3:6] == ["21.0 ± 1.0", "21.0 ± 1.0", "61.0 ± 1.0"]
    assert [line[3].bold for line in across.lines] == [True, False]
    differences = made["Differences to local"]
    assert dict(zip(differences.heads, (c.text for c in differences.lines[0]), strict=True))["others"] == "+10.0 ± 0.0"
    assert "others_last_minus_local_half" in to_csv(plan, found, ()).splitlines()[0]
    assert "others, over rounds" in to_markdown("t", list(made.values()), [])
    assert "others, over rounds" in to_latex(plan, list(made.values()), []).replace("\n", " ")


def test_nobody_who_did_not_ask_is_shown_any(tmp_path: Path) -> None:
    plan = plan_of("ifl", "local")
    found, _ = rows(plan, [finished(entry, tmp_path / entry.name) for entry in plan.entries])
    assert not {"others_last", "own_auc", "forgetting"} & found[0].values[0].keys()
    assert not any("others" in table.heads or "across" in table.title for table in tables(plan, found, None))
    with pytest.raises(ConfigError, match="columns: no 'others'"):
        columns_of(plan_of("ifl", columns=["others"]))
    assert columns_of(plan_of("ifl", metrics=["others"], columns=["own-auc", "others-auc"]))[1].key == "others_auc"


def test_an_entry_that_measured_it_stands_beside_one_that_did_not(tmp_path: Path) -> None:
    plan = plan_of("ifl", "local", metrics=["others"])
    done = [finished(entry, tmp_path / entry.name, rounds=3, every=1) for entry in plan.entries]
    for path in done[0].runs.values():
        write(path, 0.2)
    found, _ = rows(plan, done)
    assert math.isnan(found[1].mean["others_last"])
    main = tables(plan, found, None)[0]
    assert [line[2].text for line in main.lines] == ["20.0 ± 0.0", "–"]
