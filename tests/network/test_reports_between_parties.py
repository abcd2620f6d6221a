"""What is shown of a run between parties is true of parties, whatever was measured."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from parties import CLASSES, rows
from rich.console import Console

from interfuse import report
from interfuse.cli.configuration import configure
from interfuse.coordination.driver import Terms, coordinate
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import RunError
from interfuse.report.progress import Lines
from interfuse.result import Result
from interfuse.runs import RunConfig, parse_config
from interfuse.runs.config import changed_in

Said = tuple[Result, str, str, str]


def federation(folder: Path, evaluation: str, classes: int | None = CLASSES, **values: Any) -> Said:
    """Two parties in one process. Returns the result, and what page, terminal and progress say."""
    config = parse_config({
        "method": "ifl", "models": ["logistic"], "fusion_width": 4, "rounds": 3, "eval_every": 1, "beside": [],
        "evaluation": evaluation, "settings": {"local_steps": 2},
        "data": str(rows(folder, "public", 9)) if evaluation == "shared" else "digits",
    } | values)  # fmt: skip
    carrier, said = Loopback(), list[str]()
    with ExitStack() as opened, ThreadPoolExecutor(2) as pool:
        for seed, name in enumerate(("ant", "bee")):
            home = folder / name
            home.mkdir()
            rows(home, "rows", seed)
            vendor = {
                "name": name, "model": {"build": "logistic"},
                "data": {"source": "rows.npz"} | ({"test": "../public.npz"} if evaluation == "shared" else {}),
                "allow": {"methods": ["ifl"], "disclosures": ["features", "labels"], "evaluation": "shared"},
            }  # fmt: skip
            (home / "vendor.toml").write_text(tomli_w.dumps(vendor))
            node = opened.enter_context(
                closing(Node(read_vendor(home / "vendor.toml"), Events(None, lambda text: None)))
            )
            pool.submit(take_part, node, carrier.dial, patience=30.0)
        result = coordinate(config, folder / "run", Terms(carrier, 2, classes=classes), Lines(said.append))
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL).split())
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report.console_summary(result.summary))
    return result, text, captured.get(), "\n".join(said)


WRONG = ("interfuse run", "interfuse resume", "on digits", "digits", "global –", "diverge", "nan", "None")


@pytest.fixture(scope="module", params=["none", "own", "shared"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Said:
    return federation(tmp_path_factory.mktemp(request.param), request.param)


def test_nothing_is_said_that_is_true_of_a_simulation_only(said: Said) -> None:
    _, page, terminal, progress = said
    for text in (page.partition(" Configuration ")[0], terminal, progress):
        for words in WRONG:
            assert words not in text, words


def test_what_was_measured_is_shown_and_nothing_else(said: Said) -> None:
    result, page, terminal, progress = said
    evaluation = result.config.evaluation
    shown = {"none": set[str](), "own": {"own"}, "shared": {"own", "global", "composition"}}[evaluation]
    assert {w for w in ("own", "global") if f"{w} accuracy" in page.partition("Warnings")[0]} == shown - {"composition"}
    assert ("Compositions" in page) is ("composition" in shown)
    assert ("own accuracy" in terminal) is ("own" in shown)
    assert ("global" in terminal) is ("composition" in terminal) is ("global" in shown)
    assert ("global " in progress, " own " in progress) == (evaluation == "shared", evaluation == "own")
    assert (result.path / "plots" / "accuracy-rounds.svg").exists() is bool(shown)
    tested = {"none": "not tested", "own": "each tested on its own data", "shared": "tested on public"}[evaluation]
    assert f"ifl between 2 parties, {tested}, 3 rounds, seed 0" in page
    assert ("Nothing was measured" in terminal) is ("Nothing was measured" in page) is (evaluation == "none")
    note = "every party has data of its own" + ("; the common test set, " if evaluation == "shared" else "")
    assert note in page
    assert result.summary.parties


def test_the_command_of_the_page_goes_on_with_the_run(said: Said) -> None:
    result, page, _, _ = said
    config = configure(str(result.path / "config.toml"), {})
    assert changed_in(result.path, config) == []
    classes = "" if result.config.evaluation == "shared" else f" --classes {CLASSES}"
    assert f"interfuse coordinate {result.path}/config.toml --nodes 2 --keys FOLDER{classes}" in page


def test_models_are_with_the_nodes(said: Said) -> None:
    for look in (lambda r: r.model(0), lambda r: r.compose(0, 1), lambda r: r.class_names(0)):
        with pytest.raises(RunError, match="is a run between parties: models and data are with its nodes"):
            look(said[0])


def test_an_unfinished_run_says_how_it_goes_on(said: Said, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "cut"
    shutil.copytree(said[0].path, folder)
    (folder / "summary.json").unlink()
    text = re.sub(r"<svg.*?</svg>|<[^>]+>", " ", report.write(folder).read_text(encoding="utf-8"), flags=re.DOTALL)
    text = text.partition(" Configuration ")[0]
    assert f"--out {folder}" in text
    for words in ("interfuse resume", "interfuse run", "digits", "logistic"):
        assert words not in text
    with pytest.raises(
        RunError, match="is not finished: `interfuse coordinate` with its recipe and --out .*cut goes on"
    ):
        Result(folder).summary  # noqa: B018


def test_parties_that_name_nothing_are_warned_and_a_recipe_with_names_is_not(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    result, page, terminal, progress = federation(tmp_path / "numbers", "own")
    (warning,) = [w for w in result.summary.warnings if w.name == "data that may not fit together"]
    assert "No party names its classes" in warning.text
    for text in (page, terminal, progress):
        assert "No party names its classes" in text
    assert RunConfig().classes == ()
