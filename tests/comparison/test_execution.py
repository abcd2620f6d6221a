"""Comparisons carried out: choice by validation, failures, kills, other plans."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from summaries import best_round, summary_values

import interfuse
from interfuse.comparison import Plan, compare, parse, preflight, read, resolve
from interfuse.comparison import plots as comparison_plots
from interfuse.comparison.execution import State, carry_out, prepare
from interfuse.comparison.flops import flops_of_a_round
from interfuse.comparison.progress import Amount, Lines, Nobody, Pace, Standing
from interfuse.errors import ConfigError, RunError
from interfuse.references import load_file
from interfuse.runs import parse_config

SMALL = {"clients": 2, "models": ["logistic"], "fusion_width": 8, "rounds": 4, "eval_every": 1}
IFL, LOCAL = {"name": "ifl", "method": "ifl"}, {"name": "local", "method": "local"}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

FLAKY = '''
from dataclasses import dataclass
import os
from pathlib import Path

from interfuse import Client, Clients, Method, Server, cross_entropy, on_client


@dataclass(frozen=True)
class Flaky(Method):
    """Local training whose process dies at a high learning rate while a file is there."""

    lr: float = 0.2

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)
        if self.lr == 0.2 and server.round == 2 and Path(r"{flag}").exists():
            os._exit(9)

    @on_client
    def train(self, client: Client) -> None:
        client.fit(cross_entropy, steps=1, lr=self.lr, batch_size=8)
'''


@pytest.fixture(autouse=True)
def _without_plots(no_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the runs here, and have a test file of their own."""
    monkeypatch.setattr(comparison_plots, "figures", lambda rows: {})


def plan_of(*entries: dict[str, Any], run: dict[str, Any] | None = None, **tables: Any) -> Plan:
    values = {"comparison": {"seeds": [0, 1]}, "run": SMALL | (run or {}), "entry": list(entries), **tables}
    return resolve(parse(values, "test", "test.toml", Path("/nowhere")))


def compared(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """The entries of ``comparison.json``."""
    entries: list[dict[str, Any]] = compare(plan, out).values["entries"]
    return entries


def times(folder: Path) -> dict[str, int]:
    """When each file of the finished runs was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for summary in folder.rglob("summary.json")
        for path in sorted(summary.parent.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def without_costs(folder: Path) -> tuple[Any, ...]:
    """All that a comparison wrote about its runs, but what differs between two equal ones."""
    values = json.loads((folder / "comparison.json").read_text())
    del values["folder"]
    for entry in values["entries"]:
        for numbers in (entry["mean"], entry["std"], *entry["seeds"].values()):
            assert list(numbers)[-2:] == ["peak_memory", "seconds"]
            del numbers["peak_memory"], numbers["seconds"]
    table = (folder / "table.csv").read_text()
    lines = [line.rsplit(",", 4)[0] for line in table.splitlines()]
    before, costs = (folder / "table.md").read_text().split("## Cost (2 of 2)")
    return values, lines, before, re.sub(r"\| [^|]* \| [^|]* \|$", "|", costs, flags=re.MULTILINE)


# --- what is chosen


def test_the_grid_is_decided_by_validation_accuracy_and_all_seeds_run_with_it(tmp_path: Path) -> None:
    plan = plan_of({**LOCAL, "grid": {"lr": [1e-6, 0.5]}}, comparison={"seeds": [3, 1], "tuning": {"fraction": 0.5}})
    (entry,) = compared(plan, tmp_path)
    tried = {
        path.name: json.loads((path / "summary.json").read_text())["best"]["validation_accuracy"]
        for path in (tmp_path / "tuning" / "local").iterdir()
    }
    assert sorted(tried) == ["lr=0.5", "lr=1e-06"]
    assert {f"lr={t['lr']}": t["validation_accuracy"] for t in entry["tuning"]} == tried
    assert entry["chosen"] == {"lr": 0.5}
    assert tried["lr=0.5"] > tried["lr=1e-06"]
    for path, seed, rounds, lr in (
        ("tuning/local/lr=1e-06", 0, 2, 1e-6), ("runs/local/seed-3", 3, 4, 0.5), ("runs/local/seed-1", 1, 4, 0.5),
    ):  # fmt: skip
        config = tomllib.loads((tmp_path / path / "config.toml").read_text())
        assert (config["seed"], config["rounds"], config["settings"]["lr"]) == (seed, rounds, lr)
        assert (config["beside"], config["execution"]["workers"]) == ([], 1)


def test_the_choice_is_made_once_when_the_last_process_has_ended(tmp_path: Path) -> None:
    plan = plan_of({**LOCAL, "grid": {"lr": [0.1, 0.2, 0.5]}})
    state = State(plan, plan.entries[0], tmp_path)
    tuning = state.begin()
    for accuracy, job in enumerate(tuning):
        job.path.mkdir(parents=True)
        (job.path / "summary.json").write_text(json.dumps(summary_values(best=best_round(accuracy / 10))))
    # the runs to come count all the time
    assert state.amount.rounds == sum(job.config.rounds for job in tuning) + 2 * 4
    begun = [[job.label for job in state.after(job, None)] for job in tuning]
    assert begun == [[], [], ["seed 0", "seed 1", "operations of a round"]]


def test_a_run_of_a_comparison_is_that_of_the_command_run(tmp_path: Path) -> None:
    compare(plan_of({**IFL, "settings": {"base_lr": 0.25}}), tmp_path / "compared")
    alone = interfuse.run(
        "ifl", settings={"base_lr": 0.25}, clients=2, models=["logistic"], fusion_width=8, rounds=4, eval_every=1,
        seed=1, beside=(), out=tmp_path / "alone", progress=interfuse.Silent(),
    )  # fmt: skip
    run = tmp_path / "compared/runs/ifl/seed-1"
    together = interfuse.load_run(run)
    assert (alone.curve("own")[1] == together.curve("own")[1]).all()
    assert (run / "ledger.jsonl").read_bytes() == (tmp_path / "alone/ledger.jsonl").read_bytes()


def test_results_do_not_depend_on_how_many_run_side_by_side(tmp_path: Path) -> None:
    plan = plan_of(IFL, {**LOCAL, "grid": {"lr": [0.1, 0.5]}})
    compare(plan, tmp_path / "one", jobs=1)
    compare(plan, tmp_path / "three", jobs=3)
    assert without_costs(tmp_path / "one") == without_costs(tmp_path / "three")


# --- what fails


def test_a_run_that_diverges_is_a_failed_row_and_the_others_go_on(tmp_path: Path) -> None:
    plan = plan_of({**IFL, "settings": {"base_lr": 1e30}}, LOCAL)
    ifl, local = compared(plan, tmp_path)
    assert sorted(ifl["failures"]) == ["seed 0", "seed 1"]
    assert "try a lower learning rate" in ifl["failures"]["seed 0"]
    assert ifl["seeds"] == {}
    assert list(local["seeds"]) == ["0", "1"]
    assert local["failures"] == {}
    assert "ifl (failed)" in (tmp_path / "table.md").read_text()
    before = times(tmp_path)
    again = compared(plan, tmp_path)
    assert again == [ifl, local]
    assert times(tmp_path) == before


def test_a_point_of_the_grid_that_diverges_cannot_win(tmp_path: Path) -> None:
    (entry,) = compared(plan_of({**LOCAL, "grid": {"lr": [1e30, 0.1]}}), tmp_path)
    assert entry["chosen"] == {"lr": 0.1}
    assert entry["tuning"][0]["validation_accuracy"] is None
    assert entry["failures"] == {}


def test_where_all_of_the_grid_diverges_the_entry_fails(tmp_path: Path) -> None:
    (entry,) = compared(plan_of({**LOCAL, "grid": {"lr": [1e30, 1e31]}}), tmp_path)
    assert entry["chosen"] is None
    assert sorted(entry["failures"]) == ["lr=1e+30", "lr=1e+31"]
    assert entry["seeds"] == {}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("grid", [{}, {"lr": [0.1, 0.2]}])
def test_what_broke_for_another_reason_is_tried_again(tmp_path: Path, grid: dict[str, Any]) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "mine.py").write_text(FLAKY.replace("{flag}", str(flag)))
    asked = {"seeds": [0, 1], "tuning": {"fraction": 0.5}}
    plan = plan_of({"name": "mine", "method": str(tmp_path / "mine.py"), "grid": grid}, LOCAL, comparison=asked)
    flag.touch()
    mine, local = compared(plan, tmp_path / "out")
    assert len(mine["failures"]) == (1 if grid else 2)
    assert set(mine["failures"].values()) == {"its process ended with exit code 9; is there enough memory?"}
    assert mine["chosen"] == ({} if not grid else None)
    assert len(local["seeds"]) == 2
    flag.unlink()
    mine, _ = compared(plan, tmp_path / "out")
    assert mine["failures"] == {}
    assert len(mine["seeds"]) == 2


# --- what is there already


def test_another_plan_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    prepare(plan_of(IFL, LOCAL), tmp_path)
    prepare(plan_of(IFL, LOCAL), tmp_path)
    for other, said in (
        (plan_of(IFL, {**LOCAL, "rounds": 9}), "entry.local.rounds: 4 became 9"),
        (plan_of(IFL), "What differs: entry 'local' is gone"),
        (plan_of(IFL, LOCAL, {**LOCAL, "name": "more"}), "What differs: entry 'more' is new"),
        (plan_of(LOCAL, IFL), "entry.ifl.place: 0 became 1"),
        (plan_of(IFL, LOCAL, comparison={"seeds": [0]}), "comparison.seeds: [0, 1] became [0]"),
    ):
        with pytest.raises(RunError, match=re.escape(said)):
            prepare(other, tmp_path)
    many = plan_of(*({**entry, "rounds": 9, "eval_every": 3} for entry in (IFL, LOCAL)))
    with pytest.raises(
        RunError, match=r"choose another --out. What differs: (entry\S+ \S+ became \S+; ){3}and 1 more$"
    ):
        prepare(many, tmp_path)
    (tmp_path / "comparison.toml").write_text("[comparison")
    with pytest.raises(RunError, match="is no TOML: .*; choose another --out"):
        prepare(plan_of(IFL, LOCAL), tmp_path)


def test_another_plan_is_refused_before_anything_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(plan_of(IFL, LOCAL), tmp_path)
    monkeypatch.setattr(preflight, "look", None)
    with pytest.raises(RunError, match="holds another comparison"):
        compare(plan_of(IFL), tmp_path)


def test_a_run_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    plan = plan_of(LOCAL)
    run = SMALL | {"rounds": 1}
    interfuse.run("local", **run, beside=(), out=tmp_path / "runs/local/seed-0", progress=interfuse.Silent())
    with pytest.raises(RunError, match="seed-0 holds another run than the plan says"):
        compare(plan, tmp_path)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    plan = plan_of(LOCAL)
    prepare(plan, tmp_path)
    with interfuse.runs.folder.RunFolder(tmp_path).locked(), pytest.raises(RunError, match="by another process"):
        carry_out(plan, tmp_path, 1, Nobody(), {})


def test_no_job_at_all() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        compare(plan_of(LOCAL), Path("nowhere"), jobs=0)


@LINUX
def test_after_kill_9_the_same_command_goes_on_and_gives_the_same_table(tmp_path: Path) -> None:
    recipe, out = tmp_path / "small.toml", tmp_path / "killed"
    recipe.write_text(
        '[comparison]\nseeds = [0, 1]\n[run]\nclients = 2\nfusion_width = 16\nmodels = ["logistic"]\nrounds = 4\n'
        '[[entry]]\nname = "ifl"\nmethod = "ifl"\n[[entry]]\nname = "local"\nmethod = "local"\n'
    )
    command = [sys.executable, "-m", "interfuse.cli", "compare", str(recipe), "--quiet", "--jobs", "2", "--out"]
    process = subprocess.Popen([*command, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list(out.rglob("summary.json")):
        assert process.poll() is None
        time.sleep(0.005)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(list(out.rglob("summary.json")))
    until = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < until, "a run outlived its comparison"
        time.sleep(0.01)
    assert not (out / "table.md").exists()
    before = times(out)
    assert 0 < len(list(out.rglob("summary.json"))) == there < 4
    plan = resolve(read(recipe))
    compare(plan, out)
    assert {path: when for path, when in times(out).items() if path in before} == before
    compare(plan, tmp_path / "whole", jobs=1)
    assert without_costs(out) == without_costs(tmp_path / "whole")


# --- operations, progress


def test_operations_of_local_training_in_closed_form() -> None:
    clients, steps, batch, width = 3, 5, 16, 8
    values = {"method": "local", "clients": clients, "models": ["logistic"], "fusion_width": width, "settings": {
        "local_steps": steps, "batch_size": batch,
    }}  # fmt: skip
    # forward and the gradient of the weights for both layers; that of its input for the second alone
    step = 2 * batch * (2 * 64 * width + 3 * width * 10)
    assert flops_of_a_round(parse_config(values), interfuse.runs.Given()) == clients * steps * step


def test_the_time_left_is_judged_by_each_entry_on_its_own() -> None:
    """A round of one method takes 20 times as long as one of the other, and two runs go side by side."""
    now = [0.0]
    pace = Pace(2, lambda: now[0])
    fast, slow = Amount("fast", 50, 150, 100), Amount("slow", 0, 100, 100)
    pace.goes_on("run of fast", "fast", 50)  # begun by an earlier call
    assert str(pace.standing([fast, slow], ["a", "b"])) == "round 50 of 250, 0 s, now a; b"
    now[0] = 10.0
    pace.ended("run of fast", 150)
    done = Amount("fast", 150, 150, 0)
    assert pace.standing([done, slow], []).left == 10.0  # nothing is known of the slow one but the pace of the other
    pace.goes_on("run of slow", "slow", 0)
    now[0] = 14.0
    pace.goes_on("run of slow", "slow", 2)
    assert pace.standing([done, Amount("slow", 2, 100, 98)], []).left == 98 * 2.0  # one run is one process
    two = Amount("slow", 2, 200, 100)
    assert pace.standing([done, two], []).left == 200.0
    assert pace.standing([done, Amount("slow", 2, 400, 100)], []).left == 398 * 2.0 / 2
    assert pace.standing([done], []).left is None


def test_a_comparison_of_unlike_entries_is_estimated_to_a_fifth() -> None:
    """Simulated: tuning, then three seeds each, one run after the other; entries differ thirtyfold in their rounds."""
    seconds, rounds, seeds = {"a": 0.3, "b": 0.01, "c": 0.1}, 100, 3
    now = [0.0]
    pace = Pace(1, lambda: now[0])
    done = dict.fromkeys(seconds, 0)
    whole = sum(seconds.values()) * rounds * seeds
    for seed in range(seeds):
        for entry, each in seconds.items():
            for number in range(rounds + 1):
                now[0] += each if number else 0.0
                done[entry] += bool(number)
                pace.goes_on((entry, seed), entry, number)
                amounts = [Amount(e, n, rounds * seeds, min(rounds, rounds * seeds - n)) for e, n in done.items()]
                left = pace.standing(amounts, []).left
                if seed:  # by then each entry has been seen
                    assert left is None or left == pytest.approx(whole - now[0], rel=0.2, abs=1)
            pace.ended((entry, seed), rounds)


def test_a_log_has_a_line_for_each_tenth_and_each_job() -> None:
    lines: list[str] = []
    follower = Lines(lines.append)
    for done in range(0, 21):
        follower.show(Standing(done, 20, 0.0, None, []))
    follower.ended("ifl, seed 0", None)
    follower.ended("ifl, seed 1", "why")
    assert [int(re.findall(r"round (\d+)", line)[0]) for line in lines[:-2]] == list(range(0, 21, 2))
    assert lines[-2:] == ["ifl, seed 0: done", "ifl, seed 1: failed: why"]


def test_the_bar_counts_to_its_end_also_where_an_entry_is_given_up(tmp_path: Path) -> None:
    class Seen(Nobody):
        last = (0, 0)
        failed: list[str] = []

        def show(self, standing: Standing) -> None:
            assert 0 <= standing.done <= standing.rounds
            self.last = (standing.done, standing.rounds)

        def ended(self, name: str, failure: str | None) -> None:
            self.failed += [] if failure is None else [name]

    plan = plan_of(IFL, {**LOCAL, "grid": {"lr": [1e30, 1e31]}})
    follower = Seen()
    compare(plan, tmp_path, follower=follower)
    assert follower.last == (2 * 4 + 2 * 1, 2 * 4 + 2 * 1)
    assert sorted(follower.failed) == ["local, lr=1e+30", "local, lr=1e+31"]


def test_finished_runs_are_found_by_entry_and_what_is_missing_is_named(tmp_path: Path) -> None:
    finished_runs = load_file(Path(__file__).parents[2] / "examples" / "finished_runs.py").finished_runs
    for run, name in (("a/seed-0", "summary.json"), ("b/seed-1", "summary.json"), ("c/seed-0", "config.toml")):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / name).touch()
    found = [run.relative_to(tmp_path / "runs").as_posix() for run in finished_runs(tmp_path)]
    assert found == ["a/seed-0", "b/seed-1"]
    assert [run.name for run in finished_runs(tmp_path, ["b"])] == ["seed-1"]
    with pytest.raises(RunError, match="no finished run of c in .*; there are: a; b"):
        finished_runs(tmp_path, ["c", "a"])
    with pytest.raises(RunError, match="no finished run of any entry"):
        finished_runs(tmp_path / "nowhere")
