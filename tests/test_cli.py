"""The command line, end to end on tiny runs."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from interfuse import load_run, recipes, report
from interfuse.cli import app
from interfuse.cli.configuration import configure, toml_or_text
from interfuse.errors import ConfigError
from interfuse.method import disclosures_of
from interfuse.methods import built_in
from interfuse.references import short_name
from interfuse.report.progress import Standing, duration
from interfuse.runs import RunConfig, read_config
from interfuse.runs.summary import Failure, Point, Row, Steps
from interfuse.wire import Volume

TINY = ["--clients", "2", "--models", "logistic", "--width", "8", "--rounds", "2", "--workers", "1", "--beside", "none"]

STOPPABLE = '''
from dataclasses import dataclass
from pathlib import Path

from interfuse import ALL, Client, Clients, Method, Server, cross_entropy, on_client


@dataclass(frozen=True)
class Stoppable(Method):
    """Local training that stops in round 2 while a file says so."""

    lr: float = 0.1

    def round(self, server: Server, clients: Clients) -> None:
        if server.round == 2 and Path(r"{flag}").exists() and Path(r"{flag}").read_text() == "interrupt":
            raise KeyboardInterrupt
        clients.call(self.train)

    @on_client
    def train(self, client: Client) -> None:
        if client.id == 1 and Path(r"{flag}").exists() and Path(r"{flag}").read_text() == "fail":
            raise ValueError("the disk of client 1 is gone")
        client.fit(cross_entropy, steps=1, lr=self.lr, batch_size=8)
'''


WRITE_REPORT = report.write


@pytest.fixture(autouse=True)
def _in_a_new_folder_without_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report's plots take longer than the runs here; a test that is about the report asks for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write", lambda folder: WRITE_REPORT(folder) if folder.name == "reported" else folder)


@pytest.fixture
def stoppable(tmp_path: Path) -> Iterator[Path]:
    """``mine.py`` in the working directory. While the file that is given exists, its runs stop."""
    flag = tmp_path / "stop"
    (tmp_path / "mine.py").write_text(STOPPABLE.replace("{flag}", str(flag)))
    yield flag
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: str | Path) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def summary_of(*arguments: str | Path) -> dict[str, Any]:
    """The object in the last line of the standard output."""
    found: dict[str, Any] = json.loads(good(*arguments, "--json").stdout.splitlines()[-1])
    return found


def refused(*arguments: str | Path) -> str:
    """What is said about a mistake: one line on the standard error stream, no traceback, no folder."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert not Path("runs").exists()
    return result.stderr.removeprefix("error: ")


def plain_text(result: Result) -> str:
    return " ".join(result.stdout.split())


# --- run


def test_json_is_the_summary_in_one_line() -> None:
    found = summary_of("run", "ifl", *TINY, "--out", "a", "--seed", "5", "--set", "local_steps=1")
    assert found == json.loads(Path("a/summary.json").read_text())
    assert (found["method"], found["seed"], found["rounds"], found["run"]) == ("ifl", 5, 2, "a")
    assert found["uplink_bytes"]["raw"] == 2 * 2 * 32 * (8 * 4 + 1)


def test_without_json_people_get_a_summary_and_the_report() -> None:
    result = good("run", "ifl", *TINY, "--out", "reported")
    assert "uplink" in result.stdout
    assert "reported/report.html" in result.stdout
    assert Path("reported/report.html").exists()
    assert "round 2/2" in result.stderr
    assert "round" not in result.stdout


def test_a_log_has_plain_lines_without_control_characters() -> None:
    result = good("run", "ifl", *TINY, "--rounds", "20", "--eval-every", "10", "--beside", "local")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.output)
    *lines, evaluating = (line for line in result.stderr.splitlines() if line.startswith("ifl: "))
    assert evaluating.endswith("evaluating the last and the best round on everything")
    assert [int(re.findall(r"round (\d+)/20", line)[0]) for line in lines] == list(range(0, 21, 2))
    assert re.fullmatch(
        r"ifl: round 10/20, global [\d.]+ %, composition [\d.]+ %, uplink 21.1 kB, \d+ s, \d+ s left", lines[5]
    )
    assert lines[-1].startswith("ifl: round 20/20")
    assert "left" not in lines[-1]
    assert result.stderr.count("local: round 20/20") == 1


def test_quiet_says_nothing_on_the_way() -> None:
    assert good("run", "ifl", *TINY, "--quiet", "--json").stderr == ""


def test_each_run_gets_a_folder_of_its_own() -> None:
    first, second = (summary_of("run", "local", *TINY)["run"] for _ in range(2))
    assert (first, second) == ("runs/local-digits-seed0", "runs/local-digits-seed0-2")


def test_a_folder_with_a_run_is_not_touched() -> None:
    good("run", "local", *TINY, "--out", "a")
    assert "interfuse resume a" in refused("run", "local", *TINY, "--out", "a")


def test_every_option_enters_the_configuration() -> None:
    good(
        "run", "ifl", "--data", "digits", "--clients", "3", "--partition", "dirichlet", "--alpha", "2.5", "--balanced",
        "--models", "mlp, logistic", "--width", "9", "--rounds", "3", "--seed", "7", "--set", "optimizer=adam",
        "--set", "base_lr={start=0.1, rounds=200}", "--set", "keep_optimizer=false", "--set", "client.2.base_lr=0.001",
        "--workers", "1", "--device", "cpu", "--eval-every", "2", "--beside", "local,pooled",
        "--layout", "channels_last", "--commit-every", "2", "--client-memory", "3", "--together", "2",
        "--metrics", "recall,auroc", "--out", "a",
        "--codec", "int8+zstd", "--codec", "FusionOutputs.z=int4:tensor",
    )  # fmt: skip
    written = tomllib.loads(Path("a/config.toml").read_text())
    expected = {
        "method": "ifl", "data": "digits", "clients": 3,
        "partition": {"name": "dirichlet", "alpha": 2.5, "balanced": True}, "models": ["mlp", "logistic"],
        "fusion_width": 9, "rounds": 3, "seed": 7, "device": "cpu", "eval_every": 2,
        "beside": ["local", "pooled"], "client": {"2": {"base_lr": 0.001}}, "metrics": ["recall", "auroc"],
        "codecs": {"default": "int8+zstd", "FusionOutputs.z": "int4:tensor"},
    }  # fmt: skip
    assert {key: written[key] for key in expected} == expected
    assert written["settings"]["optimizer"] == "adam"
    assert written["settings"]["keep_optimizer"] is False
    assert written["settings"]["base_lr"] == {"start": 0.1, "rounds": 200, "end": 0.0}
    assert written["numerics"]["layout"] == "channels_last"
    assert written["execution"]["workers"] == 1
    assert written["execution"]["commit_rounds"] == 2
    assert written["execution"]["client_memory"] == 3_000_000
    assert written["numerics"]["together"] == 2
    assert set(json.loads(Path("a/summary.json").read_text())["beside"]) == {"local", "pooled"}


def test_a_run_can_be_repeated_from_its_configuration() -> None:
    first = summary_of("run", "ifl", *TINY, "--out", "a", "--set", "client.1.base_lr=0.2")
    again = summary_of("run", "a/config.toml", "--out", "b")
    other = summary_of("run", "a/config.toml", "--out", "c", "--set", "client.1.base_lr=0.3")
    same = ("global_accuracy", "own_accuracy", "composition_matrix", "uplink_bytes", "best")
    assert {key: first[key] for key in same} == {key: again[key] for key in same}
    assert _metrics("a") == _metrics("b") != _metrics("c")
    assert (again["run"], other["run"]) == ("b", "c")


def _metrics(folder: str) -> list[dict[str, Any]]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_the_demo_is_a_recipe_that_options_override() -> None:
    assert "demo" in recipes.names()
    found = summary_of("run", "demo", "--rounds", "1", "--beside", "none", "--workers", "1", "--models", "logistic")
    written = tomllib.loads(Path(found["run"], "config.toml").read_text())
    assert (written["method"], written["data"], written["fusion_width"], written["rounds"]) == ("ifl", "digits", 64, 1)
    assert {**written["settings"], "optimizer": "adam", "base_lr": 0.001, "modular_lr": 0.001} == written["settings"]


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demoo"], "no method or recipe 'demoo': did you mean 'demo'?"),
        (["ilf"], "no method or recipe 'ilf': did you mean 'ifl'?"),
        (["FD"], "no method or recipe 'FD': HtFLlib's FD is 'feddistill' here"),
        (["FedTGP"], "no method or recipe 'FedTGP': did you mean 'fedtgp'?"),
        (["nowhere.toml"], "cannot read nowhere.toml: No such file"),
        (["nowhere.py"], "nowhere.py"),
        (["ifl", "--data", "digit"], "unknown data set 'digit': did you mean 'digits'?"),
        (["ifl", "--models", "cnn,mpl"], "unknown model 'mpl': did you mean 'mlp'?"),
        (["ifl", "--partition", "iidd"], "unknown partition 'iidd': did you mean 'iid'?"),
        (["ifl", "--alpha", "0.1"], "--alpha belongs to --partition dirichlet, but the partition is 'iid'"),
        (["ifl", "--classes", "2", "--partition", "dirichlet"], "--classes belongs to --partition pathological"),
        (["ifl", "--partition", "dirichlet", "--alpha", "-1"], "alpha is -1.0, must be positive"),
        (["ifl", "--partition", "natural"], "no natural clients"),
        (["ifl", "--set", "local_step=1"], "IFL has no setting 'local_step': did you mean 'local_steps'?"),
        (["ifl", "--set", "base_lr=-1"], "base_lr = -1 is impossible"),
        (
            ["ifl", "--set", "client_memory=8"],
            "--set client_memory: this is no setting of ifl; it belongs into [execution]",
        ),
        (["ifl", "--set", "together=8"], "--set together: this is no setting of ifl; it belongs into [numerics]"),
        (["ifl", "--set", "local_steps"], "--set local_steps: write key=value"),
        (["ifl", "--set", "client.1=3"], "write client.NUMBER.key=value"),
        (["ifl", "--set", "client.x.base_lr=3"], "write client.NUMBER.key=value"),
        (["ifl", "--set", "client.4.base_lr=0.1"], "[client.4], but clients are 0 to 3"),
        (["ifl", "--set", "client.1.base_l=0.1"], "no setting 'base_l': did you mean 'base_lr'?"),
        (["ifl", "--clients", "0"], "clients = 0: a federation needs at least one client"),
        (["ifl", "--rounds", "0"], "rounds = 0 is impossible"),
        (["ifl", "--width", "0"], "fusion_width = 0 is impossible"),
        (["ifl", "--workers", "0"], "workers = 0 is impossible"),
        (["ifl", "--layout", "nhwc"], "layout = 'nhwc' is impossible"),
        (["ifl", "--device", "nowhere"], "device = 'nowhere' cannot be used"),
        (["ifl", "--beside", "lokal"], "beside: 'lokal' is no reference: did you mean 'local'?"),
        (["ifl", "--metrics", "auroc,recal"], "metrics: 'recal' is no metric: did you mean 'recall'?"),
        (["ifl", "--seeds", "0,x"], "--seeds 0,x: write whole numbers"),
        (["ifl", "--seeds", "0,0"], "--seeds 0,0: name at least one seed, and each once"),
        (["ifl", "--seeds", ","], "--seeds ,: name at least one seed"),
        (["ifl", "--seeds", "1", "--seed", "2"], "--seed and --seeds together"),
    ],
)
def test_mistakes_are_named_before_anything_runs(arguments: list[str], expected: str) -> None:
    assert expected in refused("run", *arguments)


def test_unknown_keys_of_a_recipe_are_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "ifl"\nround = 3\n')
    assert "mine.toml: unknown key 'round': did you mean 'rounds'?" in refused("run", "mine.toml")


@pytest.mark.parametrize(
    ("key", "table"),
    [("client_memory", "execution"), ("layers_together", "numerics"), ("uplink", "devices"), ("patience", "stop")],
)
def test_keys_of_a_table_are_refused_outside_of_it(key: str, table: str) -> None:
    Path("mine.toml").write_text(f'method = "ifl"\n{key} = 3\n')
    assert f"mine.toml: unknown key '{key}': it belongs into [{table}]" in refused("run", "mine.toml")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--together", "0", "0 is not in the range"),
        ("--commit-every", "0", "0 is not in the range"),
        ("--client-memory", "2GB", "'2GB' is no whole number of MB (10^6 bytes)"),
    ],
)
def test_a_refused_number_is_named_by_its_option(flag: str, value: str, expected: str) -> None:
    said = " ".join(call("run", "ifl", flag, value).stderr.replace("│", " ").split())
    assert f"Invalid value for '{flag}': {expected}" in said


def test_usage_errors_exit_with_2() -> None:
    assert call("run", "ifl", "--bogus").exit_code == 2
    assert call("run", "ifl", "--rounds", "many").exit_code == 2
    assert call("rnu").exit_code == 2


@pytest.mark.parametrize(
    ("partition", "options", "expected"),
    [
        ({"name": "dirichlet", "alpha": 0.1}, {"alpha": 0.2}, {"name": "dirichlet", "alpha": 0.2}),
        ({"name": "dirichlet", "alpha": 0.1}, {"name": "dirichlet"}, {"name": "dirichlet", "alpha": 0.1}),
        ({"name": "dirichlet", "alpha": 0.1}, {"name": "iid"}, {"name": "iid"}),
        ({"name": "iid"}, *[{"name": "pathological", "classes_per_client": 3}] * 2),
    ],
)  # fmt: skip
def test_options_change_the_partition_of_a_recipe(
    tmp_path: Path, partition: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    lines = "\n".join(f"{key} = {value!r}" for key, value in partition.items())
    (tmp_path / "mine.toml").write_text(f"[partition]\n{lines}\n")
    assert configure("mine.toml", {}, partition=options).partition == expected


def test_options_that_are_not_given_leave_the_recipe_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("seed = 4\n[settings]\nbase_lr = 0.5\n[execution]\nworkers = 3\n")
    changed = configure(
        "mine.toml", {"seed": None, "execution": {"workers": None, "commit_rounds": 7}}, assignments=["local_steps=2"]
    )
    assert (changed.seed, changed.execution.workers, changed.execution.commit_rounds) == (4, 3, 7)
    assert changed.settings == {"base_lr": 0.5, "local_steps": 2}


# --- files of one's own


def test_a_recipe_names_files_beside_itself_and_options_beside_the_caller(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.toml").write_text(
        'method = "m.py:Mine"\ndata = "rows.npz"\nmodels = ["nets.py:one", "mlp", "package.module:two"]\n'
        '[partition]\nname = "cut.py:Halves"\n'
    )
    here, there = tmp_path.resolve(), (tmp_path / "recipes").resolve()
    config = configure("recipes/mine.toml", {})
    assert config.method == f"{there}/m.py:Mine"
    assert config.data == f"{there}/rows.npz"
    assert config.models == (f"{there}/nets.py:one", "mlp", "package.module:two")
    assert config.partition == {"name": f"{there}/cut.py:Halves"}
    assert configure("recipes/mine.toml", {"data": "rows.npz"}).data == f"{here}/rows.npz"
    assert configure("m.py", {"data": "d.py:load"}).method == f"{here}/m.py"
    assert configure("ifl", {"data": "d.py:load"}).data == f"{here}/d.py:load"
    assert configure("package.module:Class", {"data": "digits"}).method == "package.module:Class"


def test_own_method_data_and_model_run_and_resume_from_elsewhere(
    tmp_path: Path, stoppable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0)
    y = np.arange(60) % 3
    np.savez("rows.npz", x=(rows.normal(size=(60, 4)) + y[:, None]).astype(np.float32), y=y)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef small(sample_shape, classes, width):\n"
        "    return nn.Linear(sample_shape[0], width), nn.Linear(width, classes)\n"
    )
    tiny = ["--clients", "2", "--width", "4", "--rounds", "3", "--workers", "1", "--beside", "none"]
    stoppable.write_text("interrupt")
    stopped = call("run", "mine.py", "--data", "rows.npz", "--models", "nets.py:small", *tiny, "--out", "a")
    assert stopped.exit_code == 130
    stoppable.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = summary_of("resume", "../a")
    assert (found["rounds"], found["data"]) == (3, str(tmp_path.resolve() / "rows.npz"))


HEART = "patient,age,pain,diagnosis\n" + "".join(
    f"P{i},{40 + i % 9},{i % 3},{'ill' if i % 4 else 'well'}\n" for i in range(60)
)
READ = ("--read", "label=diagnosis", "--read", "drop=patient")


def test_a_table_is_described_run_and_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("heart.csv").write_text(HEART)
    refused = call("describe", "heart.csv", "--read", "label=diagnosis")
    assert refused.exit_code == 2
    assert "heart.csv: column 'patient' is not all numbers: another text in every row" in refused.output
    assert "drop=patient" in refused.output
    found = json.loads(call("describe", "heart.csv", *READ, "--json").stdout.splitlines()[-1])
    assert (found["format"], found["columns"], found["names"]) == ("CSV", ["age", "pain"], ["ill", "well"])
    assert (found["rows"], found["counts"]) == ({"train": 48, "test": 12}, {"train": [36, 12], "test": [9, 3]})
    text = call("describe", "heart.csv", *READ).stdout
    assert "ill: 36 to train on, 9 to test" in text
    assert "shipped" not in text
    tiny = ["--clients", "2", "--models", "mlp", "--width", "4", "--rounds", "1", "--workers", "1", "--beside", "none"]
    assert call("run", "fedavg", "--data", "heart.csv", *READ, *tiny, "--out", "reported").exit_code == 0
    config = read_config(Path("reported/config.toml"))
    assert (config.data, config.read) == (
        str(tmp_path.resolve() / "heart.csv"),
        {"label": ["diagnosis"], "drop": ["patient"]},
    )
    assert ["class 0", "ill: 36 to train on, 9 to test"] in json.loads(Path("reported/data.json").read_text())[0]
    assert "<dt>class 0</dt><dd>ill: 36 to train on, 9 to test</dd>" in Path("reported/report.html").read_text()
    monkeypatch.chdir(Path("reported").resolve())
    Path("new.csv").write_text("age,pain\n45,1\n41,2\n")
    Path("turned.csv").write_text("pain,age\n1,45\n")
    assert len(call("predict", ".", "new.csv", "--base", "0", "--modular", "1").stdout.split()) == 2
    assert "in another order" in call("predict", ".", "turned.csv", "--base", "0", "--modular", "1").output


def test_options_of_reading_are_for_files(tmp_path: Path) -> None:
    for texts, problem in (
        (("label",), "write key=value"), (("label=a", "label=b"), "label is there already"),
        (("lable=a",), "did you mean 'label'"), (("label=a",), "read says how files are read, but data is digits"),
    ):  # fmt: skip
        words = [word for text in texts for word in ("--read", text)]
        assert problem in call("run", "fedavg", *words, "--out", "never").output.replace("\n", " ")
    assert not Path("never").exists()


# --- interruption and failure


def test_ctrl_c_says_how_to_go_on_and_resume_does(stoppable: Path) -> None:
    tiny = [*TINY, "--rounds", "4", "--commit-every", "1"]
    whole = summary_of("run", "mine.py", *tiny, "--out", "whole")
    stoppable.write_text("interrupt")
    stopped = call("run", "mine.py", *tiny, "--out", "half way")
    assert stopped.exit_code == 130
    assert "interrupted; to go on: interfuse resume 'half way'" in stopped.stderr
    assert stopped.stdout == ""
    stoppable.unlink()
    resumed = good("resume", "half way", "--json")
    assert "goes on after round 1 of 4" in resumed.stderr
    found = json.loads(resumed.stdout.splitlines()[-1])
    assert found["global_accuracy"] == whole["global_accuracy"]
    assert _metrics("half way") == _metrics("whole")
    assert summary_of("resume", "half way") == found


def test_a_failing_handler_is_named_and_the_run_resumes(stoppable: Path) -> None:
    stoppable.write_text("fail")
    failed = call("run", "mine.py", *TINY, "--out", "a")
    assert failed.exit_code == 2
    assert failed.stderr.count("error: ") == 1
    assert "client 1 failed in train, round 1" in failed.stderr
    assert "the disk of client 1 is gone" in failed.stderr
    assert "`interfuse resume a`" in failed.stderr
    assert "Traceback" not in failed.stderr
    stoppable.unlink()
    assert summary_of("resume", "a")["rounds"] == 2


def test_resume_takes_another_number_of_workers(stoppable: Path) -> None:
    stoppable.write_text("fail")
    call("run", "mine.py", *TINY, "--workers", "2", "--out", "a")
    stoppable.write_text("")
    assert "workers = 0" in call("resume", "a", "--workers", "0").stderr
    assert summary_of("resume", "a", "--workers", "1")["rounds"] == 2


@pytest.mark.parametrize("command", ["resume RUN", "report RUN", "predict RUN x.npy --base 0 --modular 0"])
def test_what_is_no_run_is_named(command: str) -> None:
    assert "reported" in refused(*command.replace("RUN", "reported").split())


# --- several seeds


def test_seeds_give_every_run_and_what_they_have_in_common() -> None:
    found = summary_of("run", "ifl", *TINY, "--beside", "local", "--seeds", "0,3", "--out", "a")
    assert list(found) == ["seeds", "mean", "std", "minus"]
    assert found == json.loads(Path("a/seeds.json").read_text())
    both = [(summary, summary["beside"]["local"]) for summary in found["seeds"]]
    gains = [summary["own_accuracy"]["mean"] - local["own_accuracy"]["mean"] for summary, local in both]
    assert found["minus"]["local"] == pytest.approx({"mean": np.mean(gains), "std": np.std(gains, ddof=1)})
    assert [summary["seed"] for summary in found["seeds"]] == [0, 3]
    assert found["seeds"] == [json.loads(Path(f"a/seed-{s}/summary.json").read_text()) for s in (0, 3)]
    own = [summary["own_accuracy"]["mean"] for summary in found["seeds"]]
    pairs = [np.mean(summary["composition_matrix"]) for summary in found["seeds"]]
    assert own[0] != own[1]
    assert found["mean"]["own_accuracy"] == pytest.approx((own[0] + own[1]) / 2)
    assert found["std"]["own_accuracy"] == pytest.approx(abs(own[0] - own[1]) / 2**0.5)
    assert found["mean"]["mean_composition"] == pytest.approx((pairs[0] + pairs[1]) / 2)
    assert found["mean"]["uplink_raw_bytes"] == found["seeds"][0]["uplink_bytes"]["raw"]
    assert found["std"]["uplink_raw_bytes"] == 0
    # a single run with one of the seeds is the very same run
    assert summary_of("run", "ifl", *TINY, "--seed", "3")["own_accuracy"] == found["seeds"][1]["own_accuracy"]


def test_seeds_are_kept_and_unfinished_ones_go_on(stoppable: Path) -> None:
    command = ["run", "mine.py", *TINY, "--commit-every", "1", "--seeds", "0,1"]
    good(*command, "--rounds", "1")
    folder = Path("runs/mine-digits-seeds")
    before = (folder / "seed-0/summary.json").stat().st_mtime_ns
    (folder / "seed-1/summary.json").unlink()
    again = good(*command, "--rounds", "1")
    assert (folder / "seed-0/summary.json").stat().st_mtime_ns == before
    assert (folder / "seed-1/summary.json").exists()
    assert "Mean ± standard deviation over 2 seeds" in again.stdout
    assert "seed-1/report.html" in again.stdout
    assert not Path("runs/mine-digits-seeds-2").exists()

    stoppable.write_text("interrupt")
    stopped = call(*command)
    assert stopped.exit_code == 130
    assert "interfuse resume runs/mine-digits-seeds-2/seed-0" in stopped.stderr
    stoppable.unlink()
    assert "goes on after round 1" in good(*command).stderr
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine-digits-seeds", "mine-digits-seeds-2"]


def test_seeds_of_another_configuration_are_refused() -> None:
    good("run", "local", *TINY, "--seeds", "0", "--out", "a")
    said = refused("run", "local", *TINY, "--rounds", "3", "--seeds", "1,0", "--out", "a")
    assert "rounds: 2 became 3" in said
    assert not Path("a/seed-1").exists()


def test_one_seed_has_no_deviation() -> None:
    found = summary_of("run", "local", *TINY, "--seeds", "4", "--out", "a")
    assert found["mean"]["own_accuracy"] == found["seeds"][0]["own_accuracy"]["mean"]
    assert set(found["std"].values()) == {None}


# --- predict, report


def test_convert(tmp_path: Path) -> None:
    for part in ("train", "test"):
        Path("MNIST", part).mkdir(parents=True)
        for client in range(2):
            np.savez(Path("MNIST", part, f"{client}.npz"), data={"x": np.eye(4, 64), "y": np.arange(4) % 2})
    assert good("convert", "MNIST", "out.npz").output.splitlines()[-1] == "wrote out.npz"
    good("run", "local", *TINY, "--data", "out.npz", "--partition", "natural", "--out", "a")
    assert "out.npz is there already" in refused("convert", "MNIST", "out.npz")


def test_predict_is_compose(tmp_path: Path) -> None:
    good("run", "ifl", *TINY, "--out", "a")
    x = np.random.default_rng(0).integers(0, 17, size=(5, 1, 8, 8)).astype(np.uint8)
    np.save("x.npy", x)
    expected = load_run("a").compose(base=0, modular=1)(x).numpy()
    swapped = load_run("a").compose(base=1, modular=0)(x).numpy()
    assert not np.array_equal(expected, swapped)
    found = summary_of("predict", "a", "x.npy", "--base", "0", "--modular", "1", "--out", "scores.npy")
    assert np.array_equal(np.array(found["scores"], np.float32), expected)
    assert found["classes"] == [str(best) for best in expected.argmax(1)]
    assert np.array_equal(np.load("scores.npy", allow_pickle=False), expected)
    printed = good("predict", "a", "--base", "0", "--modular", "1", "x.npy")
    assert printed.stdout.splitlines() == found["classes"]


def test_predict_refuses_what_it_cannot_take() -> None:
    good("run", "ifl", *TINY, "--out", "a")
    np.save("wide.npy", np.zeros((2, 1, 9, 9), np.uint8))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("several.npz", x=np.zeros(1))

    def said(name: str, base: int = 0) -> str:
        return refused("predict", "a", name, "--base", str(base), "--modular", "0")

    assert "expected samples [batch, 1, 8, 8], found (2, 1, 9, 9)" in said("wide.npy")
    assert "cannot read objects.npy" in said("objects.npy")
    assert "cannot read nowhere.npy" in said("nowhere.npy")
    assert "several.npz holds several arrays" in said("several.npz")
    assert "no client 2: clients are 0 to 1" in said("wide.npy", base=2)


def test_artefacts_answer_as_the_run_does(tmp_path: Path) -> None:
    good("run", "ifl", *TINY, "--out", "a")
    x = np.random.default_rng(0).integers(0, 17, size=(5, 1, 8, 8)).astype(np.uint8)
    np.save("x.npy", x)
    run = load_run("a")
    expected, own = run.compose(base=0, modular=1)(x).numpy(), run.compose(base=1, modular=1)(x).numpy()
    wrote = good("export", "a", "--out", "out", "--owner", "ant").stdout.split()
    assert wrote[1::2] == ["out/client-0-base", "out/client-0-modular", "out/client-1-base", "out/client-1-modular"]
    good("export", "a", "--out", "out", "--part", "model", "--client", "1", "--expires", "2999-12-31")
    Path("a").rename("gone")
    blocks = ["--base", "out/client-0-base", "--modular", "out/client-1-modular"]
    found = summary_of("predict", *blocks, "x.npy")
    np.testing.assert_allclose(np.array(found["scores"], np.float32), expected, atol=1e-6)
    assert found["classes"] == [str(best) for best in expected.argmax(1)]
    whole = summary_of("predict", "--model", "out/client-1-model", "x.npy")
    np.testing.assert_allclose(np.array(whole["scores"], np.float32), own, atol=1e-6)
    both = summary_of("predict", *blocks, "--modular", "out/client-0-modular", "x.npy", "--mean", "probabilities")
    np.testing.assert_allclose(np.array(both["scores"]).sum(1), 1, atol=1e-6)


def test_artefacts_that_cannot_be_made_or_used_are_said() -> None:
    good("run", "ifl", *TINY, "--out", "a")
    good("export", "a", "--out", "out", "--client", "0")
    np.save("x.npy", np.zeros((2, 1, 8, 8), np.uint8))
    np.save("wide.npy", np.zeros((2, 1, 9, 9), np.uint8))
    base, modular = "out/client-0-base", "out/client-0-modular"
    assert "is there already" in refused("export", "a", "--out", "out", "--client", "0")
    assert "no client 7" in refused("export", "a", "--out", "more", "--client", "7")
    assert "no part 'bas': " in refused("export", "a", "--out", "more", "--part", "bas")
    assert "is no day" in refused("export", "a", "--out", "more", "--expires", "soon")
    assert "--run and --round are for a vendor's file" in refused("export", "a", "--out", "more", "--round", "1")
    assert "is a modular block, where a base" in refused("predict", "--base", modular, "--modular", modular, "x.npy")
    assert "is a base block, where a modular" in refused("predict", "--base", base, "--modular", base, "x.npy")
    assert "is a base block, where a whole model" in refused("predict", "--model", base, "x.npy")
    assert "expected samples" in refused("predict", "--base", base, "--modular", modular, "wide.npy")
    assert "name two artefacts" in refused("predict", "--base", base, "x.npy")
    assert "name two artefacts" in refused("predict", "x.npy")
    assert "is no artefact" in refused("predict", "--base", "nowhere", "--modular", modular, "x.npy")
    assert "no mean of 'logits'" in refused(
        "predict", "--base", base, "--modular", modular, "x.npy", "--mean", "logits"
    )
    assert "numbers of clients" in refused("predict", "a", "x.npy", "--base", base, "--modular", modular)
    assert not Path("more").exists()


def test_report_writes_the_page_anew() -> None:
    good("run", "ifl", *TINY, "--out", "reported")
    page = Path("reported/report.html").read_text()
    Path("reported/report.html").unlink()
    assert good("report", "reported").stdout == "reported/report.html\n"
    assert "<html" in page
    assert Path("reported/report.html").read_text() == page


# --- listings


def test_methods_lists_every_built_in_method_and_what_it_discloses() -> None:
    text = plain_text(good("methods"))
    for name, kind in built_in().items():
        assert f"{name} " in text
        assert all(disclosure in text for disclosure in disclosures_of(kind))
    assert re.search(r"local +nothing", text)


@pytest.mark.parametrize("name", sorted(built_in()))
def test_a_method_is_shown_with_its_settings(name: str) -> None:
    text = plain_text(good("methods", name))
    for setting in (field.name for field in fields(built_in()[name])):
        assert f"{setting} " in text


def test_messages_are_shown_with_what_they_carry() -> None:
    assert "or other clients: features, labels" in plain_text(good("methods", "ifl-replay"))
    text = plain_text(good("methods", "ifl"))
    assert "or other clients: nothing" in text
    assert "Interoperable federated learning (Krouka and Bennis, arXiv:2509.22823)." in text
    assert "train_base up FusionOutputs.z [batch, d] features" in text
    assert "train_base up FusionOutputs.y [batch, ...] labels" in text
    assert "train_modular down FusionOutputs.z [batch, d] features" in text
    assert "train_modular up" not in text
    assert "tau: base-block steps" in text


def test_a_method_of_ones_own_is_shown(stoppable: Path) -> None:
    assert "Local training that stops in round 2" in plain_text(good("methods", "mine.py"))
    assert "did you mean 'ifl'?" in refused("methods", "ilf")


def test_datasets_and_models_are_listed() -> None:
    listed = good("datasets").stdout
    assert re.search(r"digits +shipped +1,437 \+ 360 +1×8×8 +10", listed)
    assert re.search(r"hflb +download +\? \+ \? ", listed)
    text = plain_text(good("models"))
    assert "cnn-bn " in text
    assert "cnn, mlp, mixed, deep-head" in text


# --- help


def texts(command: Any) -> Iterator[str]:
    """Everything that help says of a command and those below it."""
    yield from (command.help or "", command.epilog or "", *(getattr(p, "help", None) or "" for p in command.params))
    for below in getattr(command, "commands", {}).values():
        yield from texts(below)


def test_no_word_in_brackets_is_lost_as_markup() -> None:
    tags = [tag for text in texts(get_command(app)) for tag in re.findall(r"(?<!\\)\[[a-z/][^\]]*\]", text)]
    assert set(tags) <= {"[bold]", "[/]"}
    assert "[devices] says more" in " ".join(good("compare", "--help").stdout.replace("│", " ").split())


def test_no_arguments_show_help_with_an_example() -> None:
    assert "interfuse run demo" in plain_text(call())
    assert "METHOD|RECIPE" in call("run").output


def test_version() -> None:
    assert re.fullmatch(r"interfuse \d+\.\d+\.\d+\n", good("--version").stdout)


@pytest.mark.parametrize("command", ["run", "resume", "report", "predict", "methods", "datasets", "models"])
def test_every_command_has_help(command: str) -> None:
    assert "Usage" in good(command, "--help").stdout


# --- parts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("0.1", 0.1), ("1e-3", 0.001), ("true", True), ("adam", "adam"), ("", ""), ('"3"', "3"),
        ("{start=0.1, rounds=200}", {"start": 0.1, "rounds": 200}), ("[1, 2]", [1, 2]), ("splitfed v1", "splitfed v1"),
    ],
)  # fmt: skip
def test_values_are_toml_or_text(text: str, value: object) -> None:
    found = toml_or_text(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_counts_from_where_the_run_went_on() -> None:
    now = [100.0]
    standing = Standing(RunConfig(rounds=100), 40, lambda: now[0])
    now[0] = 130.0
    failed = Failure(client=2, kind="failed", reason="gone")
    row = Row(
        round=50, uplink=Volume(1_500_000), downlink=Volume(), steps=Steps(clients=1, server=0), failures=(failed,),
        outstanding=0, virtual_seconds={}, seconds={"waiting": 3.0},
    )  # fmt: skip
    coded = Standing(RunConfig(rounds=100, codecs={"default": "int8"}), 40, lambda: now[0])
    coded.update(row.model_copy(update={"uplink": Volume(1_500_000, 400_000)}))
    assert "uplink 400.0 kB on the wire, " in str(coded)
    assert standing.update(row) == ["round 50: client 2 failed: gone"]
    assert str(standing) == "round 50/100, uplink 1.50 MB, 30 s, 2 min 30 s left"
    measured = Point(own=(), validation=(), common=(0.25, 0.75), composition=None)
    assert standing.update(row.model_copy(update={"round": 60, "accuracy": measured})) == []
    assert str(standing) == "round 60/100, global 50.0 %, uplink 1.50 MB, 30 s, 2 min 00 s left"
    standing.update(row.model_copy(update={"round": 70}))
    assert str(standing) == "round 70/100, global 50.0 % (after round 60), uplink 1.50 MB, 30 s, 1 min 30 s left"


def test_short_names() -> None:
    assert [short_name(text) for text in ("ifl", "/a/mine.py", "/a/mine.py:Mine", "package.module:Mine")] == [
        "ifl", "mine", "Mine", "Mine",
    ]  # fmt: skip


def test_an_option_of_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'sede'"):
        configure("ifl", {"sede": 3})


# --- a real process


def test_in_a_terminal_the_line_is_redrawn_and_stdout_stays_clean(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "interfuse.cli", "run", "ifl", *TINY, "--json"]
    output, shown = _in_terminal(command)
    assert json.loads(output)["method"] == "ifl"
    assert "\x1b[" in shown
    assert "round 2/2" in shown


def _in_terminal(command: list[str]) -> tuple[str, str]:
    """Standard output through a pipe, and what a terminal behind the standard error stream shows."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True)
    os.close(theirs)
    shown = b"".join(_until_hung_up(lambda: os.read(ours, 4096)))
    os.close(ours)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    return output, shown.decode()


def _until_hung_up(read: Callable[[], bytes]) -> Iterator[bytes]:
    while True:
        try:
            piece = read()
        except OSError:  # how Linux says that the other end of a terminal is closed
            return
        if not piece:
            return
        yield piece


def test_a_closed_pipe_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "interfuse.cli", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


# --- what a notebook's user asks for, in the shell


OWN_FUNCTIONS = """
def in_turn(labels, clients, rng):
    return [range(client, len(labels), clients) for client in range(clients)]

def rate(round, step):
    return 0.1

def top_two(scores, labels):
    return (scores.topk(2).indices == labels[:, None]).any(1).float().mean()
"""


def test_functions_of_a_file_and_more_rounds() -> None:
    Path("own.py").write_text(OWN_FUNCTIONS, encoding="utf-8")
    options = ["--partition", "own.py:in_turn", "--set", "lr=own.py:rate", "--metrics", "own.py:top_two"]
    found = summary_of("run", "fedavg", *TINY, *options, "--out", "a")
    assert list(found["metrics"]) == ["top_two"]
    longer = summary_of("resume", "a", "--rounds", "3")
    whole = summary_of("run", "fedavg", *TINY, *options, "--rounds", "3", "--out", "b")
    assert longer["rounds"] == 3
    assert longer["metrics"] == whole["metrics"]
    assert Path("a/config.toml").read_bytes() == Path("b/config.toml").read_bytes()
    assert "a has 3 rounds, and none is taken back" in refused("resume", "a", "--rounds", "1")
    assert "no function, and no class" in refused("run", "local", *TINY, "--partition", "own.py:__doc__")


def test_patience() -> None:
    assert "stop.patience = 0 is impossible" in refused("run", "local", *TINY, "--patience", "0")
    found = good("run", "local", *TINY, "--rounds", "30", "--set", "lr=1e-9", "--eval-every", "1", "--patience", "2")
    assert "Early stopping: the mean validation score did not rise in 2 points of the curve" in found.stdout
