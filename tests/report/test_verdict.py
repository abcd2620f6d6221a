"""The headline and the warnings of a run are read off one evidence, and the headline says what qualifies it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import LOCAL, FakeRun, summary_of
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import interfuse
from interfuse import Dataset
from interfuse.report import console_summary
from interfuse.report.run import load
from interfuse.runs import Summary
from interfuse.seeds import SeedResults

FOUR = FakeRun(method="fedproto", discloses=("prototypes",))


def spread(*values: float | None) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"mean": sum(known) / len(known) if known else None, "std": 0.0, "per_client": list(values)}


NOBODY = spread(*[None] * 4)


def run(own: Any = NOBODY, common: Any = NOBODY, alone: Any = None, **changes: Any) -> Summary:
    """A run of four clients; ``alone`` are Local's scores where the run has some."""
    side = "own_accuracy" if own is not NOBODY else "global_accuracy"
    beside = {} if alone is None else {"local": summary_of(LOCAL, **{side: spread(*[alone] * 4)})}
    known = {"own_accuracy": own, "global_accuracy": common, "composition_matrix": None, "best": None}
    rows = {} if common is not NOBODY else {"global": 0}
    return summary_of(FOUR, **known | {"beside": beside} | changes | {"rows": rows | changes.get("rows", {})})


def warned(summary: Summary) -> list[str]:
    return [warning.name for warning in summary.warnings]


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["own", "global"]), st.none() | st.integers(1, 5000))
def test_the_warning_and_the_sign_of_the_headline_agree(value: float, alone: float, on: str, rows: int | None) -> None:
    each = spread(*[value] * 4)
    known = {} if rows is None else {"rows": {on: rows}}
    summary = run(each, alone=alone, **known) if on == "own" else run(common=each, alone=alone, **known)
    assert summary.headline.on == on
    bought = summary.headline.gain > 0 and not any("can tell" in doubt for doubt in summary.headline.doubts)
    assert ("no better than Local" in warned(summary)) is not bought
    for doubt in summary.headline.doubts:
        assert doubt in summary.headline.text


@pytest.mark.parametrize(("rows", "none"), [(100, False), (99, True), (None, False)])
def test_a_difference_of_fewer_than_six_rows_is_none(rows: int | None, none: bool) -> None:
    summary = run(spread(*[0.86] * 4), alone=0.8, **({} if rows is None else {"rows": {"own": rows}}))
    assert ("less than 99 rows can tell" in summary.headline.text) is none
    assert ("no better than Local" in warned(summary)) is none


def test_rows_say_nothing_of_scores_that_are_no_shares() -> None:
    summary = run(spread(*[0.81] * 4), alone=0.8, rows={"own": 9}, score="R²")
    assert "can tell" not in summary.headline.text
    assert warned(summary) == []


def test_clients_and_rows_behind_a_figure_are_said_where_not_all_have_one() -> None:
    summary = run(spread(0.9, None, None, 0.9), alone=0.8, rows={"own": 1230})
    assert (summary.headline.clients, summary.headline.rows) == (2, 1230)
    assert "on their own test shares (1,230 rows, 2 of 4 clients) clients reach 90.0 %" in summary.headline.text
    assert "of 4 clients" not in run(spread(*[0.9] * 4), alone=0.8).headline.text
    (warning,) = run(spread(0.8, None, None, 0.8), alone=0.8).warnings
    assert warning.text.startswith("On their own test shares (2 of 4 clients) the mean accuracy is 80.0 %, without ")


def test_unequal_steps_stand_in_the_headline() -> None:
    local = summary_of(LOCAL, own_accuracy=spread(*[0.8] * 4), gradient_steps={"clients": 500, "server": 0})
    summary = run(spread(*[0.9] * 4), beside={"local": local}, gradient_steps={"clients": 1230, "server": 0})
    assert summary.headline.text.startswith(
        "Collaboration bought 10.0 points (in 1,230 gradient steps beside Local's 500): on "
    )
    assert warned(summary) == ["Local took other steps"]


def test_no_steps_on_both_sides_warn() -> None:
    nothing = {"clients": 0, "server": 0}
    local = summary_of(LOCAL, own_accuracy=spread(*[0.8] * 4), gradient_steps=nothing)
    summary = run(spread(*[0.82] * 4), beside={"local": local}, gradient_steps=nothing)
    assert summary.headline.text.startswith("Collaboration bought 2.0 points (no gradient step was taken): on ")
    assert warned(summary) == ["nothing was trained"]
    assert "nor by Local" in summary.warnings[0].text


def test_a_notice_stands_in_the_headline() -> None:
    notice = {"text": "Every mean is over one client.", "remedy": "Give clients one architecture."}
    summary = run(spread(*[0.8] * 4), alone=0.8, notice=notice)
    assert summary.headline.text.startswith(
        "Collaboration did not change this mean (Every mean is over one client): on "
    )
    assert run(spread(*[0.8] * 4), notice=notice).headline.text.endswith("(Every mean is over one client).")


def test_compositions_that_gain_do_not_hide_clients_that_lose() -> None:
    local = summary_of(LOCAL, own_accuracy=spread(*[0.99] * 4))
    summary = summary_of(FakeRun(), beside={"local": local})
    assert summary.headline.on == "compositions"
    assert summary.headline.doubts == ("no better than Local on their own test shares",)
    assert warned(summary) == ["no better than Local"]


def test_nothing_measured_is_said() -> None:
    assert run(evaluation="none").headline.text == "Nothing was measured."
    assert run().headline.text == "No accuracy has been measured."
    assert warned(run(evaluation="none")) == warned(run(own=spread(*[0.9] * 4), evaluation="own")) == []


def test_an_empty_common_test_set_is_no_divergence() -> None:
    assert warned(run(own=spread(*[0.9] * 4), rows={"global": 0})) == []
    assert warned(run(own=spread(*[0.9] * 4), rows={"global": 9})) == ["divergence"]


def test_a_real_run_says_it_everywhere(tmp_path: Path) -> None:
    digits = interfuse.load("digits")
    few = Dataset.from_arrays("few", digits.x_train[:20], digits.y_train[:20], digits.x_test, digits.y_test)
    result = interfuse.run(
        "fedavg", data=few, models=["mlp", "cnn"], clients=2, rounds=1, beside=["local"], workers=1,
        out=tmp_path / "run", progress=interfuse.Silent(), settings={"local_steps": 1},
    )  # fmt: skip
    said = result.summary
    assert said.rows["global"] == len(digits.y_test)
    assert said.rows["own"] == 2  # a tenth of ten rows each
    assert warned(said)[0] == "what the method says"
    assert "every mean is over one client" in said.headline.text
    console = Console(width=1000)
    with console.capture() as captured:
        console.print(console_summary(said))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    file = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert load(tmp_path / "run").summary == said
    assert file["headline"]["text"] == said.headline.text
    for warning, written in zip(said.warnings, file["warnings"], strict=True):
        assert written == {"name": warning.name, "text": warning.text, "remedy": warning.remedy}
        assert f"warning: {warning.name}. {warning.text} Try: {warning.remedy}" in captured.get()
        assert warning.name in page
    assert said.headline.text in captured.get()


def test_warnings_of_several_seeds_stand_under_their_table(tmp_path: Path) -> None:
    bad, good = run(spread(*[0.7] * 4), alone=0.8), run(spread(*[0.9] * 4), alone=0.8)
    found = SeedResults(tmp_path, tuple(SimpleNamespace(summary=summary) for summary in (good, bad, bad)))
    assert found.notes == [f"warning (2 of 3 seeds): no better than Local. {bad.warnings[0].text}"]
    assert found.notes[0] in repr(found)
