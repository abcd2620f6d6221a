"""Which differences seeds tell: against tables of Student's t, and by hand for three seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hand_made import finished, plan_of
from hypothesis import given
from hypothesis import strategies as st

from interfuse.comparison.formats import to_csv, to_json, to_latex, to_markdown
from interfuse.comparison.measures import Row, rows
from interfuse.comparison.notes import Footnote, footnotes, mark_of, notes
from interfuse.comparison.plan import Plan
from interfuse.comparison.resolution import best_of, paired
from interfuse.comparison.table import tables
from interfuse.runs.differences import Difference, difference, points, quantile, within

# two-sided 95 %, from printed tables
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_quantiles_are_those_of_printed_tables(freedom: int, value: float) -> None:
    assert quantile(freedom) == pytest.approx(value, abs=6e-4)


def test_quantiles_of_one_and_two_degrees_of_freedom_in_closed_form() -> None:
    assert quantile(1) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-12)
    assert quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 7])
def test_probabilities_are_those_of_the_density(freedom: int) -> None:
    t = np.linspace(0, 2.5, 20_001)
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    assert within(2.5, freedom) == pytest.approx(2 * np.trapezoid(density, t), abs=1e-8)


def test_three_seeds_by_hand() -> None:
    """Differences 1, 2 and 6: mean 3, standard deviation sqrt(7), error sqrt(7/3), times 4.3027."""
    found = difference([1.0, 2.0, 6.0])
    assert (found.mean, found.seeds) == (3.0, 3)
    assert found.half == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert (found.told, found.untold) == (False, True)
    assert difference([5.0, 6.0, 7.0]).told  # 6 beside 4.3027 / sqrt(3) = 2.484


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0.1, 3))
def test_differences_turn_with_their_sign_and_scale(values: list[float], scale: float) -> None:
    one, other = difference(values), difference([-scale * value for value in values])
    assert other.mean == pytest.approx(-scale * one.mean, abs=1e-12)
    assert other.half == pytest.approx(scale * one.half, abs=1e-12)
    assert one.told != one.untold


def test_one_seed_tells_nothing_and_none_is_unknown() -> None:
    one, none = difference([0.3, math.nan]), difference([math.nan])
    assert (one.mean, one.seeds, one.told, one.untold) == (0.3, 1, False, False)
    assert math.isnan(one.half)
    assert math.isnan(none.mean)
    assert (points(one), points(none)) == ("+30.0", "–")
    assert points(Difference(-0.053, 0.0587, 3)) == "−5.3 ± 5.9"


# --- in tables


def compared(tmp_path: Path, *levels: float, seeds: tuple[int, ...] = (0, 1, 2)) -> tuple[Plan, list[Row]]:
    """Entries of the given own accuracies, each a little higher with each seed, in which ``global`` is the same."""
    names = ("ifl", "fedavg", "local", "other")[: len(levels)]
    plan = plan_of(*names, seeds=list(seeds), accuracies=[])
    done = [finished(entry, tmp_path / entry.name, seeds) for entry in plan.entries]
    found, _ = rows(plan, done)
    for row, level in zip(found, levels, strict=True):
        for place, values in enumerate(row.values):
            values.update(own_last=level + 0.01 * place * (1 + (row is found[1])), global_last=0.5)
    return plan, found


def test_the_best_mean_is_bold_and_who_is_not_told_from_it_is_marked(tmp_path: Path) -> None:
    """fedavg minus ifl is 0, 1, 2 points: 1 ± 2.5, not told from 0; local minus ifl is −5 with each seed."""
    plan, found = compared(tmp_path, 0.80, 0.80, 0.75)
    ifl, fedavg, _ = found
    assert paired(fedavg, ifl, "own_last").half == pytest.approx(0.01 * 4.302653 / math.sqrt(3))
    assert best_of(found, "own_last") is fedavg
    main, *_ = made = tables(plan, found, None)
    assert [line[1].bold for line in main.lines] == [False, True, False]
    assert [line[1].text.endswith(" ≈") for line in main.lines] == [True, False, False]
    assert [line[2].bold for line in main.lines] == [True, True, True]  # equal means
    assert "The smallest differences to it that they tell, in points: own 2.5; global 0.0" in main.notes[0]
    differences = {table.title: [[cell.text for cell in line] for line in table.lines] for table in made}
    assert [line[:3] for line in differences["Differences to ifl"]] == [
        ["fedavg", "+1.0 ± 2.5 ≈", "0.0 ± 0.0 ≈"], ["local", "−5.0 ± 0.0", "0.0 ± 0.0 ≈"],
    ]  # fmt: skip
    assert [line[0] for line in differences["Differences to local"]] == ["ifl", "fedavg"]
    text = to_markdown("t", made, [])
    assert "| **80.0 ± 1.0** |" not in text
    assert "| ifl | 81.0 ± 1.0 ≈ | **50.0 ± 0.0** |" in text
    assert "| fedavg | **82.0 ± 2.0** | **50.0 ± 0.0** |" in text
    assert "Bold: the best mean of a column. ≈: these seeds do not tell it from the best" in text
    assert r"ifl & 81.0 $\pm$ 1.0 $\approx$ & \textbf{50.0 $\pm$ 0.0} &" in to_latex(plan, made, [])
    values = json.loads(json.dumps(to_json(plan, found, None, [], [], "out")))
    told = values["entries"][2]["differences"]["ifl"]["own_last"]
    assert told["mean"] == pytest.approx(-0.05)
    assert (told["seeds"], told["told"]) == (3, True)
    head, _, second, *_ = to_csv(plan, found, []).splitlines()
    place = head.split(",").index("own_last_minus_ifl_half")
    assert float(second.split(",")[place]) == paired(fedavg, ifl, "own_last").half


def test_with_one_seed_nothing_is_bold_and_no_order_follows(tmp_path: Path) -> None:
    plan, found = compared(tmp_path, 0.9, 0.5, seeds=(0,))
    made = tables(plan, found, None)
    assert not any(cell.bold for table in made for line in table.lines for cell in line)
    assert "One seed tells no difference: no order of entries follows." in made[0].notes
    (differences,) = (table for table in made if table.title == "Differences to ifl")
    assert differences.caption.endswith("One seed tells no difference.")
    assert differences.lines[0][1].text == "−40.0"


def test_seeds_that_only_one_has_are_left_out(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg")
    done = [finished(plan.entries[0], tmp_path), finished(plan.entries[1], tmp_path, seeds=[2, 5])]
    ifl, fedavg = rows(plan, done)[0]
    found = paired(fedavg, ifl, "own_last")
    assert (found.seeds, found.mean) == (1, fedavg.values[0]["own_last"] - ifl.values[2]["own_last"])


def test_what_no_two_seeds_compare_to_the_best_is_not_told_from_it(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg", "local")
    ifl, fedavg, local = plan.entries
    done = [
        finished(ifl, tmp_path), finished(fedavg, tmp_path, rise=0.5),
        finished(local, tmp_path, seeds=[2, 5], rise=0.7),
    ]  # fmt: skip
    main, *_ = tables(plan, rows(plan, done)[0], None)
    assert [line[1].bold for line in main.lines] == [True, False, False]
    assert [line[1].text.endswith(" ≈") for line in main.lines] == [False, False, True]


def test_without_anchor_and_local_differences_are_to_the_first(tmp_path: Path) -> None:
    plan = plan_of("one", "two", method="fedavg")
    found, anchor = rows(plan, [finished(entry, tmp_path) for entry in plan.entries])
    assert "Differences to one" in [table.title for table in tables(plan, found, anchor)]


# --- footnotes


def noted(tmp_path: Path, **changes: dict[str, object]) -> tuple[Plan, list[Row], list[Footnote]]:
    """Footnotes of runs whose summaries say this, by entry."""
    plan = plan_of("ifl", "fedavg", "local")
    done = [finished(entry, tmp_path) for entry in plan.entries]
    for name, values in changes.items():
        for path in (tmp_path / name).rglob("summary.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | values))
    found, _ = rows(plan, done)
    return plan, found, footnotes(found)


WARNING = {"name": "what the method says", "text": "Every mean is over one client.", "remedy": "Give one."}


def test_what_a_run_warns_of_stands_beside_its_entry_in_every_format(tmp_path: Path) -> None:
    plan, found, beside = noted(tmp_path, fedavg={"warnings": [WARNING]})
    own = [note for note in beside if "one client" in note.text]
    assert [(note.text, note.entries) for note in own] == [
        ("what the method says: Every mean is over one client.", ["fedavg"])
    ]
    mark, made = own[0].mark, tables(plan, found, None, beside)
    assert [mark in line[0].marks.split(",") for line in made[0].lines] == [False, True, False]
    assert f"{mark}: what the method says: Every mean is over one client." in made[0].notes
    assert f"| fedavg [{made[0].lines[1][0].marks}] |" in to_markdown("t", made, [])
    assert rf"fedavg$^{{{made[0].lines[1][0].marks}}}$ &" in to_latex(plan, made, [])
    assert own[0].text in to_csv(plan, found, beside).splitlines()[2]
    assert own[0].text in to_json(plan, found, None, beside, [], "out")["entries"][1]["notes"]


def test_one_note_serves_all_entries_and_seeds_of_which_it_is_true(tmp_path: Path) -> None:
    _, _, beside = noted(tmp_path, fedavg={"warnings": [WARNING]}, local={"warnings": [WARNING]})
    assert [note.entries for note in beside if "one client" in note.text] == [["fedavg", "local"]]


def test_unequal_work_is_said_beside_local(tmp_path: Path) -> None:
    _, _, beside = noted(tmp_path, fedavg={"gradient_steps": {"clients": 1230, "server": 50}})
    (note,) = (note for note in beside if "unequal work" in note.text)
    assert note.text == (
        "unequal work: gradient steps of all clients, beside 336 of local: fedavg 1,230 and 50 at the server"
    )
    assert note.entries == ["fedavg"]


def test_the_clients_behind_a_mean_are_counted_beside_it(tmp_path: Path) -> None:
    spread = {"mean": 0.5, "std": 0.1, "per_client": [0.4, None, 0.6, None]}
    plan, found, beside = noted(tmp_path, ifl={"own_accuracy": spread, "rows": {"own": 33, "global": 360}})
    (note,) = (note for note in beside if note.keys)
    assert note.text == "own: mean over the 2 of 4 clients with a test share of their own"
    main = tables(plan, found, None, beside)[0]
    assert main.lines[0][1].marks == note.mark
    assert note.mark not in main.lines[0][0].marks.split(",")
    assert "Test rows behind a figure: own 33; global 360." in main.notes
    assert to_json(plan, found, None, beside, [], "out")["entries"][0]["clients_behind"]["own"] == {
        "0": 2, "1": 2, "2": 2,
    }  # fmt: skip


def test_of_a_large_federation_it_is_said_that_not_all_were_evaluated(tmp_path: Path) -> None:
    spread = {"mean": 0.5, "std": 0.1, "per_client": [0.4, 0.6]}
    figures = {"own_accuracy": spread, "global_accuracy": spread, "evaluated": [0, 2]}
    plan, found, beside = noted(tmp_path, ifl=figures)
    own, common = (note for note in beside if note.keys)
    assert own.text == "own: mean over the 2 of 4 clients that were evaluated and have a test share of their own"
    assert common.text == "global: mean over the 2 of 4 clients that were evaluated"
    assert {"global_last", "global_best", "global_at_anchor"} <= set(common.keys)
    made = tables(plan, found, None, beside)
    to_ifl, to_local = (table.lines for table in made if table.title.startswith("Differences to "))
    assert [[cell.marks for cell in line[1:3]] for line in to_ifl] == [[own.mark, common.mark]] * 2
    assert [[cell.marks for cell in line[1:3]] for line in to_local] == [[own.mark, common.mark], ["", ""]]
    (latex,) = (part for part in to_latex(plan, made, []).split(r"\end{table}") if "to ifl. " in part)
    assert "For the marks see Table" in latex
    lines = [said for said in notes(found) if said.startswith(("Worse", "Not told"))]
    assert ["own test shares (2 to 4 of 4 clients), in points" in line for line in lines if "ifl" in line] == [True]
    assert ["own test shares, in points" in line for line in lines if "ifl" not in line] == [True]


def test_missing_replies_are_counted_by_kind(tmp_path: Path) -> None:
    _, _, beside = noted(tmp_path)
    (note,) = (note for note in beside if "without replies" in note.text)
    assert "ifl 12 late, 1 away" in note.text  # away is the seed: 0, 1, 2


def test_marks_do_not_end_with_the_alphabet() -> None:
    assert [mark_of(place) for place in (0, 25, 26, 27, 52, 701, 702)] == ["a", "z", "aa", "ab", "ba", "zz", "aaa"]


def test_where_seeds_stopped_early_their_rounds_stand_beside_the_entry(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg")
    done = [finished(entry, tmp_path) for entry in plan.entries]
    file = tmp_path / "ifl" / "seed-1" / "summary.json"
    stopped = {"rounds": 9, "stopped": {"round": 9, "point": 8, "since": 6, "patience": 1}}
    file.write_text(json.dumps(json.loads(file.read_text()) | stopped))
    (note,) = (note for note in footnotes(rows(plan, done)[0]) if "early stopping" in note.text)
    assert (note.text, note.entries) == ("early stopping: so many rounds, by seed: ifl 12, 9, 12", ["ifl"])


def test_a_table_of_what_no_run_has_is_left_out_and_does_not_speak_of_one_seed(tmp_path: Path) -> None:
    plan, found = compared(tmp_path, 0.9, 0.5)
    for row in found:
        for values in row.values:
            values.update(own_best=math.nan, global_best=math.nan, composition_best=math.nan)
    made = tables(plan, found, None)
    assert "Best round" not in [table.title for table in made]
    assert "One seed" not in to_markdown("t", made, [])
