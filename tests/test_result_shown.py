"""How results show themselves in a notebook, and what several seeds have in common."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import tiny_dataset

import interfuse
from interfuse import EarlyStopping, Result, SeedResults
from interfuse.errors import ConfigError, RunError
from interfuse.report.text import percent

pytestmark = pytest.mark.usefixtures("no_report")

FEW: dict[str, Any] = {
    "data": tiny_dataset(rows=120), "clients": 2, "models": ["logistic"], "fusion_width": 8, "rounds": 2, "workers": 1,
    "progress": interfuse.Silent(), "commit_rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return interfuse.run("ifl", out=tmp_path_factory.mktemp("shown") / "run <1>", **FEW)


class Balanced(HTMLParser):
    """Every element that is opened is closed; gathers the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.text = list[str](), ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_result_says_what_it_gave_on_which_evidence(result: Result) -> None:
    summary, shown = result.summary, repr(result)
    lines = shown.splitlines()
    assert lines[0] == "ifl on tiny, 2 clients, 2 rounds, seed 0"
    assert lines[1] == summary.headline.text
    own = summary.own_accuracy
    line = next(line for line in lines if line.startswith("own accuracy: "))
    assert line.startswith(f"own accuracy: {percent(own.mean)} ± {100 * own.std:.1f} (2 clients, {summary.rows['own']}")
    assert f"Local {percent(summary.beside['local'].own_accuracy.mean)}" in line
    assert "(4 pairs, " in shown
    for warning in summary.warnings:
        assert warning.text in shown
    assert lines[-1] == str(result.path)


def test_its_page_says_the_same_and_escapes(result: Result) -> None:
    page = result._repr_html_()
    text = Balanced(page).text
    assert "run <1>" in text
    assert "<1>" not in page
    for part in (result.summary.headline.text, "own accuracy", "Local", *(w.text for w in result.summary.warnings)):
        assert part in text


def test_a_run_that_is_not_finished_and_one_that_stopped_say_so(tmp_path: Path) -> None:
    class Cut(interfuse.Silent):
        def advance(self, row: Any) -> None:
            if row.round == 2:
                raise LookupError

    with pytest.raises(LookupError):
        interfuse.run("ifl", out=tmp_path / "cut", **FEW | {"progress": Cut()})
    cut = interfuse.load_run(tmp_path / "cut", data=FEW["data"])
    for shown in (repr(cut), Balanced(cut._repr_html_()).text):
        assert "ifl: not finished, round 2 of 2; interfuse.resume goes on with it" in shown
    settings = FEW | {"rounds": 5, "eval_every": 1, "beside": (), "stop": EarlyStopping(1, 1.0)}
    stopped = interfuse.run("ifl", out=tmp_path / "run", **settings)
    for shown in (repr(stopped), Balanced(stopped._repr_html_()).text):
        assert "arly stopping: the mean validation score did not rise in 1 point of the curve after round 1" in shown


def test_a_result_can_be_extended_and_drawn(tmp_path: Path) -> None:
    short = interfuse.run("ifl", out=tmp_path / "run", **FEW)
    with pytest.raises(RunError, match=r"has 2 rounds; rounds = 2 should be the number of all rounds, such as 4"):
        short.extend(rounds=2)
    longer = short.extend(rounds=3, progress=interfuse.Silent())
    whole = interfuse.run("ifl", out=tmp_path / "whole", **FEW | {"rounds": 3})
    assert longer.summary.rounds == longer.config.rounds == 3
    assert np.array_equal(longer.curve("validation")[1], whole.curve("validation")[1])
    axes = longer.plot().axes[0]
    assert len(axes.lines) >= 2
    assert axes.lines[0].get_xdata()[-1] == 3  # type: ignore[index]


def test_seeds_are_real_runs_and_one_summary(tmp_path: Path) -> None:
    found = interfuse.run("ifl", seeds=[0, 3], out=tmp_path / "runs", metrics=["auroc"], **FEW)
    assert isinstance(found, SeedResults)
    assert found.seeds == (0, 3)
    own = [result.summary.own_accuracy.mean for result in found.results]
    assert found.per_seed["own_accuracy"] == own
    assert found.mean["own_accuracy"] == pytest.approx(sum(own) / 2)
    assert found.std["own_accuracy"] == pytest.approx(abs(own[0] - own[1]) / 2**0.5)
    pairs = [s.own_accuracy.mean - s.beside["local"].own_accuracy.mean for s in found.summaries]
    assert found.minus("local") == pytest.approx((np.mean(pairs), np.std(pairs, ddof=1)))
    assert found.per_seed["auroc"] == [s.metric("auroc", "own").mean for s in found.summaries]
    alone = interfuse.run("ifl", seed=3, out=tmp_path / "alone", metrics=["auroc"], **FEW)
    assert alone.summary.own_accuracy == found.summaries[1].own_accuracy
    for shown in (repr(found), Balanced(found._repr_html_()).text):
        heads = ("Mean ± standard deviation over 2 seeds", "own AUROC, %")
        for part in (*heads, "seed 0", "seed 3", "minus local, ± 95 %"):
            assert part in shown
    before = (tmp_path / "runs/seed-0/summary.json").stat().st_mtime_ns
    again = interfuse.run("ifl", seeds=[0, 3], out=tmp_path / "runs", metrics=["auroc"], **FEW)
    assert again.mean == found.mean
    assert (tmp_path / "runs/seed-0/summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seeds": []}, "seeds = []: name at least one seed"),
        ({"seeds": [1, 1]}, "seeds = [1, 1]: name at least one seed, and each once"),
        ({"seeds": [1], "seed": 2}, "seed and seeds together: give one of them"),
    ],
)
def test_seeds_that_are_none_are_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        interfuse.run("ifl", out=tmp_path / "runs", **FEW | values)


def test_an_object_as_method_has_seeds_too(tmp_path: Path) -> None:
    def rate(round: int, step: int) -> float:
        return 0.1

    settings = FEW | {"settings": {"lr": rate}, "beside": ()}
    found = interfuse.run("fedavg", seeds=[0, 1], out=tmp_path / "runs", **settings)
    again = interfuse.run("fedavg", seeds=[0, 1], out=tmp_path / "runs", **settings)
    assert again.mean == found.mean
    with pytest.raises(ConfigError, match="holds a run of another configuration: rounds: 2 became 3"):
        interfuse.run("fedavg", seeds=[0, 1], out=tmp_path / "runs", **settings | {"rounds": 3})
