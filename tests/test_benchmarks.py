"""The benchmarks run, write what they promise, and count operations as PyTorch does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from interfuse.data.readers.htfllib import convert

FOLDER = Path(__file__).parents[1] / "benchmarks"
MEASURED = {"name", "seconds_a_round", "ratio_to_ours", "seconds", "start_seconds", "peak_memory_mb", "shared_once_mb"}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


workload = module("workload")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a smoke run of everything writes."""
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, str(FOLDER / "everything.py"), "--smoke", "--no-peers", "--out", str(out)]
    # made-up images: no data set is looked for
    environment = {name: value for name, value in os.environ.items() if name not in ("BEFORE", "HTFLLIB", "PFLLIB")}
    environment |= {"INTERFUSE_DATA": str(out), "XDG_CACHE_HOME": str(out)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not list(out.glob("*.json")) + list(out.glob("*.md"))  # as if they were results
    return {path.stem: json.loads(path.read_text()) for path in out.glob("smoke/*.json")} | {
        path.name: path.read_text() for path in out.glob("smoke/*.md")
    }


def test_every_benchmark_says_what_it_measured_and_where(results: dict[str, Any]) -> None:
    for name in ("fedavg", "fedproto", "small", "fixed", "exchange", "start"):
        assert {"benchmark", "environment", "parameters", "notes"} <= results[name].keys()
        facts = results[name]["environment"]
        assert {"processor", "cores", "torch", "interfuse", "load_before", "time"} <= facts.keys()
        assert "| --- |" in results[f"{name}.md"]


def test_rows_have_time_memory_and_the_ratio_to_ours(results: dict[str, Any]) -> None:
    rows = results["fedavg"]["dtypes"]["float32"]["rows"]
    for row in (*rows, *(row for name in ("fedproto", "small", "exchange") for row in results[name]["rows"])):
        assert MEASURED - row.keys() == ({"peak_memory_mb", "shared_once_mb"} if sys.platform != "linux" else set())
        assert row["seconds_a_round"] == median(row["seconds"])
    assert rows[0]["ratio_to_ours"] == 1


def test_all_loops_of_fedavg_end_at_the_same_accuracy(results: dict[str, Any]) -> None:
    """They see the same batches, so rounding is all that can differ; and they learn."""
    rows = results["fedavg"]["dtypes"]["float32"]["rows"]
    assert len(rows) >= 4
    assert len({round(row["accuracy"], 2) for row in rows}) == 1
    assert len({row["accuracy"] for row in results["small"]["rows"] if "accuracy" in row}) == 1
    assert results["small"]["rows"][0]["accuracy"] > 0.3


def test_rates_follow_from_seconds_and_operations(results: dict[str, Any]) -> None:
    fedavg = results["fedavg"]
    for row in fedavg["dtypes"]["float32"]["rows"]:
        assert row["gflops"] == pytest.approx(fedavg["parameters"]["flops_a_round"] / row["seconds_a_round"] / 1e9)
        assert row["share_of_peak"] == pytest.approx(row["gflops"] / fedavg["dtypes"]["float32"]["peak_gflops"])


def test_peers_left_out_are_named(results: dict[str, Any]) -> None:
    assert [note.split()[0] for note in results["fedavg"]["notes"]] == ["an", "flower", "pfl", "PFLlib"]


def test_fedproto_with_htfllibs_choices_ends_where_its_loop_does(results: dict[str, Any]) -> None:
    paper, choices, theirs = results["fedproto"]["rows"]
    assert choices["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)
    assert paper["name"] == "interfuse, as the paper"


def test_targets_are_beside_what_was_measured(results: dict[str, Any]) -> None:
    for name in ("fedavg", "fedproto"):
        for target in results[name]["targets"]:
            assert f"| {target['what']} | ≥ {target['wanted']:g} |" in results[f"{name}.md"]
            assert f"| {target['what']} |" in results["targets.md"]
    by_name = {target["what"]: target for target in results["fedavg"]["targets"]}
    assert by_name["float32: pfl, defaults / ours"]["measured"] is None
    peak = by_name["float32: share of the convolution peak"]
    assert peak["measured"] == results["fedavg"]["dtypes"]["float32"]["rows"][0]["share_of_peak"]
    assert peak["verdict"] == "not judged: smoke"


def test_a_smoke_run_says_so_and_judges_nothing(results: dict[str, Any]) -> None:
    for name, text in results.items():
        if name.endswith(".md"):
            assert "smoke: the figures mean nothing" in text.splitlines()[0]
            assert not any(f"| {verdict} |" in text for verdict in ("met", "missed", "not measured"))


def test_verdicts_are_by_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    common = module("common")
    targets = [common.Target("a", 2.0, measured, at_most) for measured in (1.0, 3.0) for at_most in (False, True)]
    found = [line.split("|")[4].strip() for line in common.verdicts(targets, smoke=False).splitlines()[2:]]
    assert found == ["missed", "met", "met", "missed"]
    assert {line.split("|")[4].strip() for line in common.verdicts(targets, smoke=True).splitlines()[2:]} == {
        "not judged: smoke"
    }


SLEEPER = """
import subprocess, time
from driver import Channel, Forked, keep, options
if options()["kept"]:
    keep()
channel = Channel()
if options()["kept"]:
    subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"])
else:
    helpers = Forked([lambda seconds: time.sleep(seconds)] * 2)
channel.ready()
channel.next_round(lambda path: {})
time.sleep(60)
"""
KILLED = """
import sys
import common
asked = common.Contender("sleeper", sys.argv[1], {"kept": False}), common.Contender("kept", sys.argv[1], {"kept": True})
children = [common.Child(contender, sys.stderr) for contender in asked]
for child in children:
    print('{"do": "round", "clients": []}', file=child._requests, flush=True)
found = []
while len(found) < 1 + 2 + 2 + 3:
    found = [pid for child in children for pid in (child.pid, *common.descendants(child.pid))]
print(*found, flush=True)
children[0]._answer()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
def test_contenders_and_all_that_they_started_end_when_the_driver_is_killed(tmp_path: Path) -> None:
    """In the middle of a round, when nobody looks at what there is to read."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    driver = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "sleeper.py")],
        env=os.environ | {"PYTHONPATH": str(FOLDER)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdout is not None
    with driver.stdout:
        pids = driver.stdout.readline().split()
        driver.kill()
        driver.wait()
    assert len(pids) == 8
    until = time.monotonic() + 10
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not [pid for pid in pids if _lives(pid)]


def _lives(pid: str) -> bool:
    """Whether a process is there and has not ended; who adopted it may be slow to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", ["cnn", "htfl_cnn", "mlp"])
@pytest.mark.parametrize("batch", [1, 24, 32])
def test_operations_are_those_that_pytorch_counts(name: str, batch: int) -> None:
    model, x = workload.MODELS[name](), torch.randn(batch, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(model(x), torch.zeros(batch, dtype=torch.int64)).backward()
    assert workload.training_flops(model, x) == counter.get_total_flops()


def test_the_cnn_is_the_published_workload() -> None:
    model = workload.cnn()
    assert sum(parameter.numel() for parameter in model.parameters()) == 490_876
    per_client = 18 * workload.training_flops(model, torch.zeros(32, 1, 28, 28)) + workload.training_flops(
        model, torch.zeros(24, 1, 28, 28)
    )
    assert round(10 * per_client / 1e9) == 152


def test_modular_phases_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    assert module("modular").main(["--smoke", "--repetitions", "1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "smoke" / "modular.json").read_text(encoding="utf-8"))["rows"]
    assert [row.pop("clients") for row in rows] == [2, 8]
    assert all(len(row) == 4 and min(row.values()) > 0 for row in rows)


def test_seconds_of_a_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    assert (
        module("steps").main(["mlp", "HtFE2-narrow", "--shape", "1", "16", "16", "--width", "8", "--steps", "2"]) == 0
    )
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name.strip() for name, _ in rows] == ["mlp", "htfl-cnn-narrow", "tv-resnet18-narrow"]
    assert all(float(seconds) > 0 for _, seconds in rows)


def test_a_folder_as_htfllib_has_it_is_written_and_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    htfl = module("htfl_protocol")
    htfl.write_folder(tmp_path / "source", "digits", 4, 400, 0)
    facts = convert(tmp_path / "source", tmp_path / "made.npz")
    assert facts[0].startswith("4 clients, 300 training rows float32 [1, 8, 8]")
    figures = {"local": {"ours": [0, 0.5, 0.75], "theirs": [0.1, 0.5, 0.5], "bytes": {"up": 8.0, "down": 1024.0}}}
    assert htfl.table(figures).splitlines()[-1] == (
        "| local | 0.7500 | 0.5000 | 0.7500 | 0.5000 | 0.2500 | 8 | 1,024 |"
    )
    monkeypatch.delenv("HTFLLIB", raising=False)
    with pytest.raises(SystemExit, match="HTFLLIB is not set to the path of a checkout"):
        htfl.main([])


PEAKS = """
import torch
from phases import peak_of

kept = torch.ones(25_000_000)  # 100 MB, of pages that were written
print(peak_of(lambda: torch.ones(20_000_000).sum() + torch.ones(10_000_000).sum()), peak_of(lambda: kept.sum()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_peak_of_some_work() -> None:
    """80 MB, then 40: what is there already does not count, nor what was needed before. In a process of its own, as the
    benchmark has it, since what a process had once and gave back is used again."""
    ran = subprocess.run([sys.executable, "-c", PEAKS], cwd=FOLDER, capture_output=True, text=True, check=True)
    peak, nothing = map(int, ran.stdout.split())
    assert 80e6 <= peak < 140e6
    assert nothing < 20e6


def test_a_joint_step_has_the_losses_of_both_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    phases = module("phases")
    client = phases.Client("htfl-cnn-narrow", (1, 16, 16), 3, 8, 4, "cpu")
    for name, work in phases.PHASES.items():
        before = {
            key: tensor.clone() for net in (client.model, client.generator) for key, tensor in net.tensors().items()
        }
        work(client, 1)
        changed = {
            part for part, net in (("model", client.model), ("generator", client.generator))
            if any(not torch.equal(before[key], tensor) for key, tensor in net.tensors().items())
        }  # fmt: skip
        joint = name in phases.JOINT
        assert changed == ({"model", "generator"} if joint else {"generator"} if name == "generator" else {"model"})
