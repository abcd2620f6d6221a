from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import LOCAL, POOLED, FakeRun, write_page, write_run

from interfuse import report
from interfuse.errors import ConfigError, RunError
from interfuse.report.html import page as page_of
from interfuse.report.run import load

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Checks that every element is closed in its turn; keeps ids, attributes, tables and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


def written(folder: Path) -> Page:
    path = write_page(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def bare(folder: Path, **svgs: str) -> Page:
    """The page without the plots, which take nearly all the time; or with others."""
    run = load(folder)
    return Page(page_of(run, svgs))


FAKES: dict[str, tuple[FakeRun, tuple[FakeRun, ...]]] = {
    "four clients": (FakeRun(), (LOCAL, POOLED)),
    "one client": (FakeRun(clients=1), ()),
    "a hundred clients": (FakeRun(clients=100), (replace(LOCAL, clients=100),)),
    "no compositions": (FakeRun(method="fedavg", compositions=False, discloses=("parameters",)), (LOCAL,)),
    "no uplink": (LOCAL, ()),
    "a hundred classes": (FakeRun(clients=30, classes=100), ()),
    "one round": (FakeRun(rounds=1, eval_every=1), ()),
}


@pytest.mark.parametrize("name", FAKES)
def test_page_is_whole_and_asks_for_nothing(name: str, tmp_path: Path) -> None:
    fake, beside = FAKES[name]
    write_run(tmp_path, fake, beside)
    page = written(tmp_path)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "://" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    references = page.values("href") + page.values("xlink:href") + page.values("src")
    ids = page.values("id")
    assert len(ids) == len(set(ids)), "two plots share an id, so one of them would be drawn with the other's parts"
    assert {r.removeprefix("#") for r in references if not r.startswith("data:")} <= set(ids)
    assert {u for value in page.values("clip-path") for u in re.findall(r"url\(#(.+?)\)", value)} <= set(ids)
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def test_why_there_are_no_compositions(tmp_path: Path) -> None:
    fake = FakeRun(method="fedavg", compositions=False, rounds=1)
    for clients, reason in ((64, "they need blocks that fit"), (65, "federations of more than 64 clients have too")):
        write_run(tmp_path / str(clients), replace(fake, clients=clients), ())
        assert f"No compositions were measured: {reason}" in bare(tmp_path / str(clients)).text


def test_sections_come_in_order(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = written(tmp_path).text
    names = ["mean over all compositions", "Warnings", "Compositions", "Accuracy", "Bytes", "Classes by client", "Time"]
    places = [text.index(f"{name} ") for name in [*names, "What ran, and how to run it again", "Configuration"]]
    assert places == sorted(places)


def test_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    summary = write_run(tmp_path)
    page = bare(tmp_path)
    found, local, scores, counted, clients = page.tables
    for table, values in ((found, summary), (local, summary["beside"]["local"])):
        matrix = values["composition_matrix"]
        assert [row[1:-2] for row in table[1:]] == [[f"{100 * value:.1f}" for value in row] for row in matrix]
        assert [row[0] for row in table[1:]] == ["0 cnn", "1 mlp", "2 mixed", "3 deep-head"]
    own, common = summary["own_accuracy"], summary["global_accuracy"]
    mean = sum(map(sum, summary["composition_matrix"])) / 16
    best = summary["best"]
    assert scores[2][:4] == [
        "ifl",
        *(f"{100 * s['mean']:.1f}± {100 * s['std']:.1f}" for s in (own, common)),
        f"{100 * mean:.1f}",
    ]
    assert scores[2][4] == f"{100 * best['own_accuracy']['mean']:.1f}± {100 * best['own_accuracy']['std']:.1f}"
    assert scores[2][7:] == ["190", "0.4"]
    assert [row[0] for row in scores[2:]] == ["ifl", "Local", "Pooled"]
    assert scores[4][3] == scores[4][6] == "–"
    up, down = summary["uplink_bytes"]["raw"], summary["downlink_bytes"]["raw"]
    assert counted[1] == ["FusionOutputs", f"{up / 1e6:.1f} MB", f"{down / 1e6:.1f} MB", f"{down / 4e6:.1f} MB"]
    assert counted[-1] == ["evaluation", "1.23 MB", "7.65 MB", "–"]
    assert clients[2][:5] == ["1", "mlp", "623,536", "113,418", "291"]
    assert clients[2][5:] == [f"{100 * s['per_client'][1]:.1f}" for s in (own, common)]
    for text in (
        f"{100 * mean:.1f} % of Local's blocks:",
        f"uplink per client {up / 4e6:.1f} MB",
        f"uplink, sum of clients {up / 1e6:.1f} MB",
        f"interfuse run {tmp_path}/config.toml",
        "torch 2.13.0",
        "features, labels",
    ):
        assert text in page.text


def test_nodes_of_a_simulation_are_not_said_to_be_parties(tmp_path: Path) -> None:
    for simulated, words in ((False, "ifl between 4 parties"), (True, "ifl on digits, 4 clients at simulated nodes")):
        summary = write_run(tmp_path, FakeRun(), ())
        summary |= {"parties": True, "simulated": simulated}
        (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        text = bare(tmp_path).text
        assert words in text
        assert (f"interfuse run {tmp_path}/config.toml" in text) == simulated
        assert ("interfuse coordinate" in text) != simulated


def test_more_than_sixteen_clients_get_a_heat_map(tmp_path: Path) -> None:
    write_run(tmp_path / "17", FakeRun(clients=17), ())
    write_run(tmp_path / "16", FakeRun(clients=16), ())
    drawn = '<svg viewBox="0 0 9 9"></svg>'
    large, small = (bare(tmp_path / clients, composition=drawn) for clients in ("17", "16"))
    assert len(large.tables) == len(small.tables) - 1
    assert large.values("aria-label")[0].startswith("ifl: mean")


HOSTILE = "<script>alert('x')</script>"


def poisoned(value: Any) -> Any:
    """The same with every text hostile, keys of tables with names of a run's own too."""
    if isinstance(value, str):
        return f"{HOSTILE}{value}"
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return value


def test_a_coded_run_says_what_went_over_the_wire(tmp_path: Path) -> None:
    summary = write_run(tmp_path, FakeRun()) | {"codecs": {"default": "int8"}}
    summary["uplink_bytes"] |= {"wire": 4_000_000}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    text = written(tmp_path).text
    assert "raw, mean on the wire 1.00 MB" in text
    assert "raw on the wire 4.00 MB" in text


def test_everything_from_the_run_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<b onclick='x'>"
    folder.mkdir()
    fake = FakeRun(method=HOSTILE, architectures=(HOSTILE, '"><b onclick="x">'), class_names=(HOSTILE, "$\\frac$"))
    summary = poisoned(write_run(folder, fake))
    for key in ("bytes_by_kind", "seconds_by_phase", "virtual_seconds", "codecs"):
        summary[key] = {f'{HOSTILE}"{name}': found for name, found in (summary[key] or {"x": 1.5}).items()}
    summary["codecs"] = {HOSTILE: HOSTILE}
    said = {"text": HOSTILE, "remedy": f'"><b onclick="x">{HOSTILE}'}
    summary |= {"notice": said, "warnings": [said | {"name": HOSTILE}], "evaluation": "shared"}
    summary["headline"]["text"] = HOSTILE
    same = {"evaluation": "shared"}
    summary["beside"] = {name: other | {"method": name} | same for name, other in summary["beside"].items()}
    recall = {side: [[0.5, 0.5]] * 4 for side in ("own", "global")}
    summary |= {"metrics": {"recall": recall}, "confusion": {"own": [[1, 0, 0], [0, 1, 0]]}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "config.toml").write_text((folder / "config.toml").read_text() + f"# {HOSTILE}\n", encoding="utf-8")
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    row["failures"] = [{"client": 0, "kind": HOSTILE, "reason": f"\"'&{HOSTILE}"}]
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    page = written(folder)
    assert not {"script", "b"} & set(page.tags)
    assert "onclick" not in {name for name, _ in page.attributes}
    assert page.text.count(HOSTILE) > 40
    for text in ("client 0: \"'&<script>", f"interfuse run '{folder}/config.toml'", f'Try: "><b onclick="x">{HOSTILE}'):
        assert text in page.text.replace("'\"'\"'", "'")


def test_unfinished_run_shows_what_is_there(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(), (), done=60)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"round": 61, "upl')
    page = bare(tmp_path)
    last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1]][-1]
    assert "unfinished: 60 of 200 rounds" in page.text
    assert "interfuse resume" in page.text
    assert page.tables[0][1][1:-2] == [f"{100 * value:.1f}" for value in last["accuracy"]["composition"][0]]
    kinds = page.tables[2]
    up = 60 * 4 * FakeRun().upload
    assert kinds[1] == ["FusionOutputs", f"{up / 1e6:.1f} MB", f"{4 * up / 1e6:.1f} MB", f"{up / 1e6:.1f} MB"]
    assert kinds[-1] == ["evaluation", "2.88 kB", "0", "–"]


def test_reference_counts_once_it_is_finished(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(), (LOCAL,), done=200)
    assert "of Local's blocks" in bare(tmp_path).text
    (tmp_path / "beside" / "local" / "summary.json").unlink()
    page = bare(tmp_path)
    assert "unfinished: 200 of 200 rounds" in page.text
    assert "of Local's blocks" not in page.text


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
def test_run_that_has_hardly_begun(name: str, tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(), (), done=0)
    (tmp_path / name).unlink()
    assert "unfinished: 0 of 200 rounds" in bare(tmp_path).text


def test_failures_are_told(tmp_path: Path) -> None:
    write_run(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[7]) | {"failures": [{"client": 2, "kind": "late", "reason": "too late"}]}
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:7], json.dumps(row), *lines[8:], ""]))
    assert "1; the first in round 7, client 2: too late" in bare(tmp_path).text


def _no_folder(folder: Path) -> None:
    pass


def _broken_summary(folder: Path) -> None:
    write_run(folder)
    (folder / "summary.json").write_text("{")


def _no_models(folder: Path) -> None:
    write_run(folder, done=3)
    (folder / "config.toml").write_text('method = "ifl"\nmodels = []\n')


@pytest.mark.parametrize("damage", [_no_folder, _broken_summary, _no_models])
def test_what_is_no_run_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(tmp_path / "run")
    with pytest.raises((RunError, ConfigError), match="run"):
        report.write(tmp_path / "run")


def test_unknown_numbers_are_dashes(tmp_path: Path) -> None:
    summary: dict[str, Any] = write_run(tmp_path)
    nothing = {"mean": None, "std": None, "per_client": [None] * 4}
    summary |= {"own_accuracy": nothing, "stability": None, "best": None}
    summary["composition_matrix"][0][1] = None
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = bare(tmp_path)
    assert page.tables[0][1][2] == "–"
    assert page.tables[2][2][1] == "–"
    assert page.tables[2][2][4:] == ["–"] * 5
    assert "nan" not in page.text


@pytest.mark.parametrize(("rounds", "only"), [(2, True), (4, False)])
def test_the_best_round_is_said_to_be_the_only_point_where_it_is(tmp_path: Path, rounds: int, only: bool) -> None:
    write_run(tmp_path, FakeRun(rounds=rounds, eval_every=2))
    page = bare(tmp_path, **{"accuracy-rounds": '<svg viewBox="0 0 9 9"></svg>'})
    assert ("and here the only point after training" in page.text) is only
