"""Codecs by every way in: the command line, recipes, comparisons, Python."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from summaries import best_round, summary_values

import interfuse
from interfuse.cli.configuration import codecs, configure
from interfuse.comparison import override, parse, resolve
from interfuse.comparison.execution import State
from interfuse.comparison.plan import Plan
from interfuse.comparison.preflight import look
from interfuse.errors import ConfigError
from interfuse.runs import parse_config
from interfuse.runs.config import read_config, to_toml

TINY: dict[str, Any] = {"clients": 2, "models": ["logistic"], "fusion_width": 8}


def test_words_of_the_command_line() -> None:
    assert codecs(None) is None
    assert codecs(["int8+zstd", "FusionOutputs.z=int4"]) == {"default": "int8+zstd", "FusionOutputs.z": "int4"}
    with pytest.raises(ConfigError, match="there is one for default already"):
        codecs(["int8", "int4"])


def test_one_text_is_the_default_and_every_codec_has_one_spelling(tmp_path: Path) -> None:
    config = parse_config({"codecs": "zstd + int4:row"})
    assert config.codecs == {"default": "int4+zstd"}
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "config.toml") == config
    recipe = tmp_path / "mine.toml"
    recipe.write_text('method = "ifl"\ncodecs = "int8"\n')
    asked = configure(str(recipe), {"codecs": {"FusionOutputs.z": "int4"}})
    assert asked.codecs == {"default": "int8", "FusionOutputs.z": "int4"}
    assert asked.identity()["codecs"] == asked.codecs
    with pytest.raises(ConfigError, match=r"codecs: default: codec 'int5'"):
        parse_config({"codecs": "int5"})


@pytest.mark.usefixtures("no_report")
def test_a_run_with_codecs_from_python(tmp_path: Path) -> None:
    plain, coded = (
        interfuse.run(
            "ifl", settings={"local_steps": 1}, rounds=2, eval_every=1, codecs=given, out=tmp_path / str(given),
            workers=1, progress=interfuse.Silent(), **TINY,
        ).summary
        for given in ({}, "int4+zstd")
    )  # fmt: skip
    assert (plain.codecs, coded.codecs) == ({}, {"default": "int4+zstd"})
    assert coded.uplink_bytes.raw == plain.uplink_bytes.raw
    assert coded.uplink_bytes.wire < coded.uplink_bytes.raw < plain.uplink_bytes.wire
    assert coded.beside["local"].codecs == {}
    lines = [json.loads(line) for line in (tmp_path / "int4+zstd" / "ledger.jsonl").read_text().splitlines()]
    up = [line["wire"] for line in lines if line["direction"] == "up" and line["heading"] == "training"]
    assert sum(up) == coded.uplink_bytes.wire
    assert tomllib.loads((tmp_path / "int4+zstd" / "config.toml").read_text())["codecs"] == {"default": "int4+zstd"}


def plan(*entries: dict[str, Any], **tables: Any) -> Plan:
    return resolve(parse({"run": TINY, "entry": list(entries), **tables}, "t", "t.toml", Path("/nowhere")))


IFL = {"name": "ifl", "method": "ifl"}


def test_a_comparison_takes_codecs_for_all_for_one_and_from_a_grid() -> None:
    texts = ["int8", "int4+zstd", "none"]
    recipe = parse(
        {"run": TINY | {"codecs": "fp16"}, "entry": [IFL, {"name": "b", "method": "ifl", "codecs": "int8"}]},
        "t", "t.toml", Path("/nowhere"),
    )  # fmt: skip
    assert [e.config.codecs for e in resolve(recipe).entries] == [{"default": "fp16"}, {"default": "int8"}]
    asked = resolve(override(recipe, {"codecs": {"default": "bf16"}}, {}))
    assert [e.config.codecs for e in asked.entries] == [{"default": "bf16"}] * 2
    (entry,) = plan({**IFL, "grid": {"codecs": texts, "base_lr": [0.1, 0.2]}}).entries
    found = [(c.codecs["default"], c.settings["base_lr"]) for c in (entry.run(p, 0) for p in entry.points())]
    assert found == [(text, lr) for text in texts for lr in (0.1, 0.2)]
    assert "codecs" not in entry.run(entry.points()[0], 0).settings
    again = resolve(parse(tomllib.loads(plan({**IFL, "grid": {"codecs": texts}}).to_toml()), "t", "t", Path("/")))
    assert again.values() == plan({**IFL, "grid": {"codecs": texts}}).values()


def test_every_codec_of_a_grid_is_checked_before_the_first_run() -> None:
    assert look(plan({**IFL, "grid": {"codecs": ["int8", "int4"]}}), 2).refused == {}
    thinned = plan({"name": "f", "method": "fedavg", "grid": {"codecs": ["int8", "topk:0.1"]}})
    (reason,) = look(thinned, 2).refused["f"]
    assert "thinned out" in reason


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.0, "fp16"), (0.005, "int8"), (0.02, "int4"), (1.0, "int2")])
def test_the_cheapest_codec_that_hardly_costs_accuracy_is_chosen(tmp_path: Path, tolerance: float, chosen: str) -> None:
    texts = {"fp16": (0.900, 50), "int8": (0.896, 25), "int4": (0.885, 13), "int2": (0.7, 7)}
    made = plan({**IFL, "grid": {"codecs": list(texts)}}, comparison={"tuning": {"tolerance": tolerance}, "seeds": [0]})
    state = State(made, made.entries[0], tmp_path)
    jobs = state.begin()
    for job, (accuracy, size) in zip(jobs, texts.values(), strict=True):
        job.path.mkdir(parents=True)
        (job.path / "summary.json").write_text(
            json.dumps(summary_values(best=best_round(accuracy), uplink_bytes={"raw": 0, "wire": size}))
        )
    runs = [later for job in jobs for later in state.after(job, None)]
    assert runs[0].config.codecs == {"default": chosen}
