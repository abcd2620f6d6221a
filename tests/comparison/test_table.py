"""Tables as text: what fits on a page, escaping, files that others read."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import finished, plan_of
from hypothesis import given
from hypothesis import strategies as st

from interfuse.comparison.execution import Finished
from interfuse.comparison.formats import latex, to_csv, to_json, to_latex, to_markdown
from interfuse.comparison.html import page
from interfuse.comparison.measures import Anchor, Row, rows
from interfuse.comparison.notes import footnotes, notes
from interfuse.comparison.plan import Plan
from interfuse.comparison.table import Table, columns_of, tables
from interfuse.errors import ConfigError
from interfuse.runs.summary import without_nan

HOSTILE = "50 % of <b>A_1</b> & B|C\\D $x^2$ ~ #{}\n± –"


def texts(table: Table, line: int) -> dict[str, str]:
    """The texts of a line by heading."""
    return dict(zip(table.heads, (cell.text for cell in table.lines[line]), strict=True))


def test_a_round_chosen_on_test_rows_is_told_wherever_it_stands(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg", columns=["own", "own-best-on-test"])
    found, anchor = rows(plan, [finished(entry, tmp_path) for entry in plan.entries])
    first = tables(plan, found, anchor)[0]
    assert first.heads[2] == "best round on test rows"
    told = "chosen on the very rows that it is tested on"
    assert told in first.caption
    assert told in to_latex(plan, [first], []).replace("\n", " ")
    usual = plan_of("ifl", "fedavg", columns=["own", "own-by-rows"])
    assert told not in tables(usual, found, anchor)[0].caption


def test_a_protocol_is_told_once_and_what_single_entries_have_otherwise_beside_them(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg", "local", "other")
    said = "protocol theirs sets initial = common, lr = 0.1"
    texts_of = [
        f"{said}, pull = 1; otherwise than it: rounds = 2 (9)",
        f"{said}; otherwise than it: rounds = 2 (9), clients = 3 (20), meme = a (b)",
        f"{said}; otherwise than it: rounds = 2 (9)",
        "",
    ]
    done = [finished(e, tmp_path, protocol=text) for e, text in zip(plan.entries, texts_of, strict=True)]
    found, _ = rows(plan, done)
    told = {note.text: list(note.entries) for note in footnotes(found) if "theirs" in note.text}
    assert told == {
        "by protocol theirs, whose settings the report of each run lists; otherwise than it: rounds = 2 (9)": [
            "ifl", "fedavg", "local",
        ],
        "otherwise than protocol theirs: clients = 3 (20), meme = a (b)": ["fedavg"],
    }  # fmt: skip
    followed, _ = rows(plan, [finished(plan.entries[0], tmp_path / "alone", protocol=said)])
    assert footnotes(followed)[0].text == "by protocol theirs, whose settings the report of each run lists"


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Plan, list[Row], Anchor | None]:
    """Of four entries one failed, and one has lost a seed."""
    plan = plan_of("ifl", "fedavg", "local", "broken", title=HOSTILE, accuracies=[0.5], uplinks=[9e3], grid={
        "lr,base_lr": [0.25, 0.5, 1.0], "batch_size": [16, 32],
    })  # fmt: skip
    ifl, fedavg, local, broken = plan.entries
    done = [
        finished(ifl, tmp_path, rise=0.9),
        replace(finished(fedavg, tmp_path, seeds=[0, 2], discloses=["parameters"]), failures={"seed 1": HOSTILE}),
        finished(local, tmp_path, upload=0, rise=0.7, method="local", discloses=[]),
        Finished(broken, failures={"lr=0.25; batch_size=16": HOSTILE}),
    ]
    found, anchor = rows(plan, done)
    return plan, found, anchor


def test_the_main_table_says_mean_and_deviation_in_percent(compared: tuple[Plan, list[Row], Anchor | None]) -> None:
    plan, found, anchor = compared
    made = tables(plan, found, anchor)
    cells = {table.title: texts(table, 0) for table in made}
    row = found[0]
    assert cells["Accuracy and cost"] == {
        "entry": "ifl",
        "own": f"{100 * row.mean['own_last']:.1f} ± {100 * row.std['own_last']:.1f} ≈",
        "global": f"{100 * row.mean['global_last']:.1f} ± {100 * row.std['global_last']:.1f}",
        "composition": f"{100 * row.mean['composition_last']:.1f} ± {100 * row.std['composition_last']:.1f} ≈",
        "uplink": "48.0 kB",  # 12 rounds, 4 clients, 1000 bytes; the same with every seed
        "client steps": "336",
    }
    best = f"{100 * row.mean['global_best']:.1f} ± {100 * row.std['global_best']:.1f}"
    assert cells["Best round"]["global"] == best
    assert cells["Cost"]["chosen"] == "base_lr=0.25; batch_size=16"
    assert made[-1].heads[-2:] == ("peak memory", "seconds")
    assert "over 3 seeds" in made[0].caption


def test_captions_say_what_is_summed_and_where_one_point_is_all_there_is(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg", accuracies=[])
    summed = "Uplink and client steps are sums over all clients and the whole run"
    for rounds, codec, only, behind in ((2, "int4", True, ", bytes before codecs."), (4, None, False, ".")):
        folder = tmp_path / str(rounds)
        done = [finished(entry, folder, rounds=rounds, every=2, codec=codec) for entry in plan.entries]
        made = tables(plan, rows(plan, done)[0], None)
        best = next(table for table in made if table.title == "Best round")
        assert f"{summed}{behind}" in made[0].caption
        assert best.caption.endswith(", the only point of the curve after training.") is only
        for text in (to_markdown("t", made, []), to_latex(plan, made, [])):
            assert f"{summed}{behind}" in text
            assert ("the only point of the curve" in text) is only


def test_failures_have_a_row_and_a_reason(compared: tuple[Plan, list[Row], Anchor | None]) -> None:
    plan, found, anchor = compared
    for table in tables(plan, found, anchor):
        of = table.title.removeprefix("Differences to ")
        names = [name for name in ("ifl", "fedavg (2 of 3 seeds)", "local", "broken (failed)") if name != of]
        assert [line[0].text for line in table.lines] == names
        assert {cell.text for cell in table.lines[-1][1:]} == {"–"}
    said = notes(found)
    assert f"fedavg, seed 1, failed: {HOSTILE}" in said
    assert f"broken, lr=0.25; batch_size=16, failed: {HOSTILE}" in said


def test_every_table_of_markdown_has_as_many_cells_in_each_line(
    compared: tuple[Plan, list[Row], Anchor | None],
) -> None:
    plan, found, anchor = compared
    pages = [page for table in tables(plan, found, anchor, footnotes(found)) for page in table.pages()]
    text = to_markdown(HOSTILE, tables(plan, found, anchor, footnotes(found)), notes(found))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(blocks) == len(pages)
    for block, table in zip(blocks, pages, strict=True):
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in block} == {len(table.heads) + 1}
        assert len(block) == 2 + len(table.lines)


@given(st.text())
def test_nothing_is_left_that_latex_would_take_for_a_command(text: str) -> None:
    escaped = latex(text)
    assert not escaped.count("`")
    known = r"\\texttt\{|\\text(?:backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\$\\pm\$|\$-\$|\$\\approx\$"
    rest = re.sub(rf"{known}|\\[{{}}_%&#$]", "", escaped)
    rest = rest.replace("}", "", escaped.count("\\texttt{"))  # what closes code
    assert not set(rest) & set("\\{}_%&#$~^\n")


def test_latex_of_the_special_letters() -> None:
    assert latex("`local_steps` of `a") == r"\texttt{local\_steps} of \texttt{a}"
    assert latex("a_b & 5 % ± 0.1 {x} – −1") == r"a\_b \& 5 \% $\pm$ 0.1 \{x\} -- $-$1"


def test_latex_has_balanced_environments_and_equal_columns(compared: tuple[Plan, list[Row], Anchor | None]) -> None:
    plan, found, anchor = compared
    made = tables(plan, found, anchor, footnotes(found))
    text = to_latex(plan, made, notes(found))
    floats = re.findall(r"\\begin\{(table\*?)\}(.*?)\\end\{\1\}", text, re.DOTALL)
    assert len(floats) == sum(len(table.pages()) for table in made) == text.count(r"\begin{tabular}")
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(set(labels)) == len(floats)
    assert labels[0] == "tab:test"
    for kind, body in floats:
        ((columns, inside),) = re.findall(r"\\begin\{tabular\}\{(l?r*)\}(.*?)\\end\{tabular\}", body, re.DOTALL)
        lines = [line for line in inside.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
        assert (kind == "table*") == (len(columns) > 4)
        plain = re.sub(r"\\[\\{}]", "", body)
        assert plain.count("{") == plain.count("}")
        assert len(columns) <= 8
    outside = re.sub(r"\\begin\{table(\*?)\}.*?\\end\{table\1\}", "", text, flags=re.DOTALL)
    assert all(line.startswith(("%", r"\providecommand")) for line in outside.splitlines() if line)


def test_csv_gives_every_number_back(compared: tuple[Plan, list[Row], Anchor | None]) -> None:
    plan, found, _ = compared
    lines = list(csv.DictReader(io.StringIO(to_csv(plan, found, footnotes(found)))))
    assert [line["entry"] for line in lines] == ["ifl", "fedavg", "local", "broken"]
    assert [line["seeds"] for line in lines] == ["0 1 2", "0 2", "0 1 2", ""]
    for line, row in zip(lines, found, strict=True):
        for part, values in (("mean", row.mean), ("std", row.std)):
            for key, value in values.items():
                read = line[f"{key}_{part}"]
                assert math.isnan(value) if read == "" else float(read) == value
    assert list(lines[0])[-4:] == ["peak_memory_mean", "peak_memory_std", "seconds_mean", "seconds_std"]
    assert "A_1" in lines[1]["failures"]


def test_json_has_the_values_of_every_seed(compared: tuple[Plan, list[Row], Anchor | None]) -> None:
    plan, found, anchor = compared
    made = to_json(plan, found, anchor, footnotes(found), notes(found), "out")
    values = json.loads(json.dumps(without_nan(made), allow_nan=False))
    ifl, fedavg, _, broken = values["entries"]
    assert ifl["seeds"]["2"]["own_last"] == found[0].values[2]["own_last"]
    assert list(fedavg["seeds"]) == ["0", "2"]
    assert (broken["seeds"], broken["chosen"], broken["failures"]) == ({}, None, dict(found[3].finished.failures))
    assert values["anchor"] == {"entry": "ifl", "uplink": anchor.uplink if anchor else None}


def test_columns_for_each_client_at_the_anchor_only_where_numbers_of_clients_differ(tmp_path: Path) -> None:
    plan = plan_of("ifl", "local", accuracies=[])
    heads = []
    for clients in (4, 3):
        folder = tmp_path / str(clients)
        done = [finished(plan.entries[0], folder), finished(plan.entries[1], folder, clients=clients)]
        found, anchor = rows(plan, done)
        (within,) = (t for t in tables(plan, found, anchor) if t.title == "Accuracy within an uplink")
        heads.append(within.heads)
    assert heads[0] == ("entry", "global at that of ifl, all", "composition at that of ifl, all")
    assert len(heads[1]) == 5


def test_without_local_there_are_no_differences(tmp_path: Path) -> None:
    plan = plan_of("ifl", "fedavg")
    found, anchor = rows(plan, [finished(entry, tmp_path) for entry in plan.entries])
    assert not any("local" in table.title for table in tables(plan, found, anchor))
    assert notes(found) == []


# --- notes


def noted(tmp_path: Path, ifl: float, fedavg: float, local: float) -> list[str]:
    plan = plan_of("ifl", "fedavg", "local")
    levels = {"ifl": (ifl, ["features"]), "fedavg": (fedavg, ["parameters"]), "local": (local, [])}
    done = [
        finished(entry, tmp_path / entry.name, rise=levels[entry.name][0], discloses=levels[entry.name][1])
        for entry in plan.entries
    ]
    return notes(rows(plan, done)[0])


def test_who_is_worse_than_local_is_named(tmp_path: Path) -> None:
    said = noted(tmp_path, ifl=0.5, fedavg=0.6, local=0.8)
    (line,) = [line for line in said if line.startswith("Worse than local")]
    assert re.findall(r"(\w+) \(−\d\d\.\d ± \d+\.\d\)", line) == ["ifl", "fedavg"]
    assert any(line.startswith("ifl shares features, so composition falls short") for line in said)


def test_who_beats_local_is_not_and_composition_counts_for_who_shares_features(tmp_path: Path) -> None:
    said = noted(tmp_path, ifl=0.9, fedavg=0.9, local=0.3)
    assert len(said) == 1
    assert said[0].startswith("ifl shares features, so composition is its point")


def test_who_cannot_be_told_from_local_is_named_as_that(tmp_path: Path) -> None:
    (line,) = [line for line in noted(tmp_path, ifl=0.9, fedavg=0.5, local=0.501) if "ocal" in line[:25]]
    assert re.findall(r"(\w+) \([+−]", line) == ["fedavg"]
    assert line.startswith("Not told from local")


def test_an_accuracy_that_nobody_has_gets_no_columns(tmp_path: Path) -> None:
    plan = plan_of("ifl", "local", accuracies=[0.2, 0.99], baseline="local")
    done = [finished(entry, tmp_path / entry.name, rise=0.8) for entry in plan.entries]
    made = {table.title: table for table in tables(plan, *rows(plan, done))}
    for title in ("Bytes until an accuracy", "Virtual time until an accuracy", "Rounds until an accuracy"):
        assert any("20 %" in head for head in made[title].heads)
        assert not any("99 %" in head for head in made[title].heads)
    assert made["Accuracy and cost"].caption.endswith("On no curve is the mean global accuracy ever 99 %.")


def test_where_nobody_has_any_there_is_no_table_of_them(tmp_path: Path) -> None:
    plan = plan_of("ifl", accuracies=[0.99], baseline="ifl")
    made = tables(plan, *rows(plan, [finished(plan.entries[0], tmp_path, rise=0.8)]))
    assert not any("until" in table.title for table in made)


def test_a_choice_at_the_edge_of_its_grid_is_named(tmp_path: Path) -> None:
    plan = plan_of("fedavg", grid={"lr": [0.25, 0.5, 1.0], "batch_size": [16, 32]})
    (entry,) = plan.entries
    done = finished(entry, tmp_path)
    said = [notes(rows(plan, [replace(done, chosen=point)])[0]) for point in entry.points()]
    edge = [bool(lines) for lines in said]
    assert edge == [point["lr"] != 0.5 for point in entry.points()]
    assert said[0] == ["Chosen at the edge of the grid, so try values beyond it: fedavg (lr = 0.25)."]


# --- the page


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(
    compared: tuple[Plan, list[Row], Anchor | None],
) -> None:
    plan, found, anchor = compared
    text = page(plan, found, tables(plan, found, anchor), notes(found), {}, Path("out & more"))
    assert "<b>A_1" not in text
    assert "without result: broken" in text
    assert not re.search(r"<script|<link|<img|src=|https?://(?!www\.w3\.org)", text)
    assert "interfuse compare &#39;out &amp; more/comparison.toml&#39;" in text


def test_a_heading_breaks_where_it_may() -> None:
    plan = plan_of("fedavg")
    text = page(plan, [], [Table("T", "c", ("entry", "global at 1.00 MB, all"), [])], [], {}, Path("out"))
    assert "global<br>at 1.00 MB,<br>all" in text


def test_codecs_bring_a_table_of_what_was_on_the_wire(tmp_path: Path) -> None:
    plan = plan_of("ifl", "other", method="ifl", accuracies=[0.5])
    plain = [finished(entry, tmp_path / "plain") for entry in plan.entries]
    coded = [plain[0], finished(plan.entries[1], tmp_path / "coded", codec="int8", wire=250)]
    assert "On the wire" not in {table.title for table in tables(plan, *rows(plan, plain))}
    found = {table.title: table for table in tables(plan, *rows(plan, coded))}
    wire = found["On the wire"]
    cells = texts(wire, 1)
    assert (cells["uplink"], cells["uplink on the wire"], cells["times less"]) == ("48.0 kB", "12.0 kB", "4.0")
    assert "on the wire, uplink to 50 %" in found["Bytes until an accuracy"].heads


def test_metrics_have_columns_a_table_and_differences(tmp_path: Path) -> None:
    columns = ["own-accuracy-with-prior", "global-absent-recall"]
    plan = plan_of("ifl", "local", metrics=["absent-recall", "recall", "accuracy-with-prior"], columns=columns)
    done = [finished(entry, tmp_path / entry.name) for entry in plan.entries]
    for better, entry in enumerate(reversed(done)):
        for seed, path in entry.runs.items():
            values = json.loads((path / "summary.json").read_text())
            value = 0.5 + 0.2 * better + 0.01 * seed
            absent = {"mean": value, "std": 0.0, "per_client": [value, None, value, None]}
            nobody = {"mean": None, "std": None, "per_client": [None] * 4}
            prior = {"own": absent, "global": nobody}
            values["metrics"] = {"absent-recall": {"own": nobody, "global": absent}, "accuracy-with-prior": prior}
            (path / "summary.json").write_text(json.dumps(values))
    found, _ = rows(plan, done)
    made = {table.title: table for table in tables(plan, found, None)}
    first = next(iter(made.values()))
    assert first.heads[1:] == ("own accuracy with prior", "global recall of absent classes")
    assert [cell.text for cell in first.lines[0][1:]] == ["71.0 ± 1.0", "71.0 ± 1.0"]
    assert all(cell.bold for cell in first.lines[0][1:])
    table = made["Metrics beyond accuracy"]
    assert table.heads == (
        "entry", "global recall of absent classes", "own accuracy with prior", "clients that lack a class",
    )  # fmt: skip
    assert [line[-1].text for line in table.lines] == ["2", "2"]
    assert any("no training row" in note for note in table.notes)
    differences = texts(made["Differences to local"], 0)
    assert differences["global recall of absent classes"] == "+20.0 ± 0.0"
    assert "own_accuracy-with-prior_minus_local_half" in to_csv(plan, found, ()).splitlines()[0]
    with pytest.raises(ConfigError, match="columns: no 'own-auroc'"):
        columns_of(plan_of("ifl", metrics=["recall"], columns=["own-auroc"]))


def test_bytes_until_an_own_accuracy_and_until_one_of_compositions_are_shown_where_it_is_there(tmp_path: Path) -> None:
    plan = plan_of("ifl", "local", accuracies=[0.6])
    done = [finished(entry, tmp_path / entry.name, compositions=entry.name == "ifl") for entry in plan.entries]
    found, _ = rows(plan, done)
    table = next(table for table in tables(plan, found, None) if table.title.startswith("Bytes until"))
    assert table.heads[-2:] == ("uplink to 60 % own", "uplink to 60 % composition")
    assert [line[-1].text for line in table.lines][1] == "–"
    for row, line in zip(found, table.lines, strict=True):
        assert line[-2].text.split(" ")[0] == f"{row.mean['uplink_to_0.6_own'] / 1e3:.1f}"
