"""Damage to the files of a run: it is cut away, gone around, or named; never used."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import GIVEN, Fuse, Killed, Outcome, assert_same, committed, config_of, lines, outcome

from interfuse.errors import ConfigError, RunError
from interfuse.federation import Saved
from interfuse.runs import RunConfig, execute, resume
from interfuse.runs.commits import Commit
from interfuse.runs.folder import RunFolder
from interfuse.runs.summary import Row, without_nan
from interfuse.wire import Entry, FileRecord, Ledger, Tensors, open_pack, save_pack

CONFIG = config_of(rounds=6, settings={"optimizer": "adam"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run that nothing happens to."""
    path = tmp_path_factory.mktemp("folder") / "whole"
    execute(CONFIG, path, given=GIVEN)
    return outcome(path)


@pytest.fixture
def broken_off(tmp_path: Path) -> Path:
    """A run whose process ended in round 5: its commits are those of rounds 3 and 4."""
    path = tmp_path / "run"
    with pytest.raises(Killed):
        execute(CONFIG, path, given=GIVEN, engine=Fuse(at="training 5 train_base 3").engine)
    assert [file.name for file in manifests(path)] == ["commit-000003.json", "commit-000004.json"]
    return path


def manifests(path: Path) -> list[Path]:
    """The manifests of all commits, the newest last."""
    return sorted(path.glob("commits/commit-*.json"))


def packs_of(manifest: Path) -> list[str]:
    """The names of the packs of a commit, in their order."""
    return [record["name"] for record in json.loads(manifest.read_text())["saved"]["packs"]]


def newest(path: Path) -> Path:
    """A pack that the newest commit needs and the one before does not, where every round changes all clients."""
    return path / "commits" / packs_of(manifests(path)[-1])[-1]


def cut(path: Path, by: int = 3) -> None:
    """Take the last bytes off a file."""
    os.truncate(path, path.stat().st_size - by)


def flip(path: Path, position: int = -1) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


# ------------------------------------------------------------------------------------------------------- line files


def test_lines_after_the_commit_go(broken_off: Path, whole: Outcome) -> None:
    """Cut off in the middle of a line, whole lines of rounds to be done again, and garbage."""
    for garbage in (b'{"round": 5, "upl', b'{"round": 5}\n{"round": 6}\n', b"\0\xff\xfe\n\n", b""):
        with open(broken_off / "metrics.jsonl", "ab") as metrics, open(broken_off / "ledger.jsonl", "ab") as ledger:
            metrics.write(garbage)
            ledger.write(garbage)
    resume(broken_off, given=GIVEN)
    assert_same(outcome(broken_off), whole)


def test_a_last_line_that_is_cut_off_is_not_shown(broken_off: Path) -> None:
    before = RunFolder(broken_off).metrics()
    with open(broken_off / "metrics.jsonl", "a") as file:
        file.write('{"round": 5, "upl')
    assert len(before) >= 5
    assert RunFolder(broken_off).metrics() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
def test_a_line_file_shorter_than_the_commit_is_named(name: str, broken_off: Path) -> None:
    os.truncate(broken_off / name, 100)
    with pytest.raises(RunError, match=f"{name} has 100 bytes; the last commit needs [0-9]+"):
        resume(broken_off, given=GIVEN)
    (broken_off / name).unlink()
    with pytest.raises(RunError, match=f"{name} has 0 bytes"):
        resume(broken_off, given=GIVEN)


def test_a_broken_line_inside_the_ledger_is_named(broken_off: Path) -> None:
    path = broken_off / "ledger.jsonl"
    flip(path, len(path.read_bytes().splitlines(keepends=True)[0]) + 1)
    with pytest.raises(RunError, match=r"ledger\.jsonl was changed since it was written"):
        resume(broken_off, given=GIVEN)
    with pytest.raises(RunError, match="line 2 of the ledger"), open(path) as lines:
        Ledger.replay(lines)


def test_appended_lines_are_there_at_once(tmp_path: Path) -> None:
    """Whoever looks while the run goes on, or after a kill, sees whole lines of all rounds."""
    seen: list[int] = []

    class Looking(Fuse):
        def step(self, name: str) -> None:
            if name.startswith("training"):
                seen.append(len(lines(tmp_path / "run/metrics.jsonl")))

    execute(config_of("local", commit_rounds=None), tmp_path / "run", given=GIVEN, engine=Looking().engine)
    assert seen == [1, 1, 2, 2, 3, 3]


# ----------------------------------------------------------------------------------------------------------- commits


def damaged_manifest(path: Path) -> None:
    cut(manifests(path)[-1])


def empty_manifest(path: Path) -> None:
    manifests(path)[-1].write_text("")


def manifest_of_something_else(path: Path) -> None:
    manifests(path)[-1].write_text("[1, 2]")


def cut_file(path: Path) -> None:
    cut(newest(path))


def missing_file(path: Path) -> None:
    newest(path).unlink()


def changed_file(path: Path) -> None:
    flip(newest(path))


def changed_header(path: Path) -> None:
    flip(newest(path), 12)


DAMAGE = [
    damaged_manifest, empty_manifest, manifest_of_something_else, cut_file, missing_file, changed_file, changed_header,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_the_newest_commit_is_damaged_the_one_before_serves(
    damage: Callable[[Path], None], broken_off: Path, whole: Outcome
) -> None:
    damage(broken_off)
    going_on = Fuse()
    resume(broken_off, given=GIVEN, engine=going_on.engine)
    assert going_on.names[:1] == ["load"]
    assert going_on.names[1].startswith("training 4 ")
    assert_same(outcome(broken_off), whole)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_commit_is_in_nobodys_way_later(
    damage: Callable[[Path], None], tmp_path: Path, whole: Outcome
) -> None:
    """The run goes on from the commit before with another cadence and is killed again before it reaches that round."""
    path, often = tmp_path / "run", CONFIG.execution.model_copy(update={"commit_rounds": 2})
    with pytest.raises(Killed):
        execute(
            CONFIG.model_copy(update={"execution": often}),
            path,
            given=GIVEN,
            engine=Fuse(at="training 5 train_base 1").engine,
        )
    assert [file.name for file in manifests(path)] == ["commit-000002.json", "commit-000004.json"]
    damage(path)
    set_in_toml(path, "commit_rounds = 2", "commit_rounds = 1")
    with pytest.raises(Killed):
        resume(path, given=GIVEN, engine=Fuse(at="training 4 train_base 1").engine)
    assert "commit-000003.json" in {file.name for file in manifests(path)}
    going_on = Fuse()
    resume(path, given=GIVEN, engine=going_on.engine)
    assert going_on.names[1].startswith("training 4 ")
    assert_same(outcome(path), whole)


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_a_commit_that_is_whole_the_run_stops_and_says_why(
    damage: Callable[[Path], None], broken_off: Path
) -> None:
    cut(manifests(broken_off)[0])
    damage(broken_off)
    with pytest.raises(RunError, match=r"no commit .* can be used: .*commit-000004.*; .*commit-000003") as caught:
        resume(broken_off, given=GIVEN)
    assert str(broken_off) in str(caught.value)
    assert not (broken_off / "summary.json").exists()


def test_a_file_that_another_commit_wrote_is_not_taken(broken_off: Path, whole: Outcome) -> None:
    """Right name, right length, right format, and not the state of that round."""
    path = newest(broken_off)
    size = path.stat().st_size
    tensors = {name: part.tensors() for name, part in open_pack(path).items()}
    zeros = {name: Tensors({key: torch.zeros_like(t) for key, t in part.items()}) for name, part in tensors.items()}
    save_pack(path, zeros)
    assert path.stat().st_size == size
    resume(broken_off, given=GIVEN)
    assert_same(outcome(broken_off), whole)


def test_a_damaged_best_state_is_noticed(tmp_path: Path) -> None:
    """The best round's files lie outside of the last two commits, and the end of the run needs them."""
    path, config = tmp_path / "run", config_of(rounds=8, settings={"base_lr": 0.3, "modular_lr": 0.3})
    execute(config, path, given=GIVEN)
    commit = RunFolder(path).last_commit()
    assert commit is not None
    assert commit.best is not None
    only_best = {r.name for r in commit.best.saved.packs} - {r.name for r in commit.saved.packs}
    assert only_best, "choose another seed: the best round is the last"
    (path / "summary.json").unlink()
    flip(path / "commits" / sorted(only_best)[0])
    with pytest.raises(RunError, match=sorted(only_best)[0]):
        resume(path, given=GIVEN)


def test_only_what_the_last_two_commits_and_the_best_need_is_kept(tmp_path: Path) -> None:
    most = 0

    class Counting(Fuse):
        def step(self, name: str) -> None:
            nonlocal most
            if name.startswith("training"):
                most = max(most, len(list((tmp_path / "run/commits").glob("*"))))

    execute(config_of(rounds=12), tmp_path / "run", given=GIVEN, engine=Counting().engine)
    # 2 manifests; clients and server; twice, and once for the best round
    assert most <= 2 + 3 * 2
    folder = RunFolder(tmp_path / "run")
    assert len(manifests(tmp_path / "run")) == 2
    needed = {name for m in manifests(folder.path) for name in packs_of(m)}
    best = {r["name"] for m in manifests(folder.path) for r in json.loads(m.read_text())["best"]["saved"]["packs"]}
    assert {file.name for file in folder.commits.glob("*.safetensors")} == needed | best


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """FedAvg's clients own nothing but their place in the data; who was not drawn is not written again."""
    config = config_of("fedavg", settings={"participation": 0.34}, rounds=4, commit_rounds=1)
    execute(config, tmp_path / "run", given=GIVEN)
    drawn = [
        {e["client"] for e in lines(tmp_path / "run/ledger.jsonl") if e["handler"] == "train" and e["round"] == r}
        for r in range(1, 5)
    ]
    assert all(len(clients) == 1 for clients in drawn)
    commit = RunFolder(tmp_path / "run").last_commit()
    assert commit is not None
    last = {client: r for r, clients in enumerate(drawn, 1) for client in clients}
    packs = [open_pack(tmp_path / "run/commits" / r.name) for r in commit.saved.packs if r.name.startswith("clients")]
    assert [set(parts) for parts in packs] == [{f"client-{c:05d}"} for c in sorted(last, key=last.__getitem__)]


# --------------------------------------------------------------------------------------------------- configuration


def set_in_toml(path: Path, old: str, new: str) -> None:
    """Change a line of a run's configuration."""
    text = (path / "config.toml").read_text()
    assert re.search(f"^{re.escape(old)}$", text, flags=re.MULTILINE), text
    (path / "config.toml").write_text(re.sub(f"^{re.escape(old)}$", new, text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rounds = 6", "rounds = 5", "rounds: 6 became 5"),
        ("seed = 0", "seed = 1", "seed: 0 became 1"),
        ("base_lr = 0.01", "base_lr = 0.02", "settings.base_lr: 0.01 became 0.02"),
        ('name = "iid"', 'name = "dirichlet"', "partition.name: 'iid' became 'dirichlet'"),
        ('layout = "channels_last"', 'layout = "contiguous"', "numerics.layout: 'channels_last' became 'contiguous'"),
        ("eval_every = 1", "eval_every = 2", "eval_every: 1 became 2"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_configuration_is_refused_with_the_difference(
    old: str, new: str, told: str, finished: bool, broken_off: Path
) -> None:
    if finished:
        resume(broken_off, given=GIVEN)
    set_in_toml(broken_off, old, new)
    with pytest.raises(RunError, match=re.escape(told)) as caught:
        resume(broken_off, given=GIVEN)
    assert str(caught.value).count("became") == 1
    assert str(broken_off / "config.toml") in str(caught.value)
    set_in_toml(broken_off, new, old)
    resume(broken_off, given=GIVEN)


def test_how_a_run_is_carried_out_may_change(broken_off: Path, whole: Outcome) -> None:
    set_in_toml(broken_off, "workers = 1", "workers = 2")
    set_in_toml(broken_off, "commit_rounds = 1", "commit_rounds = 3")
    resume(broken_off, given=GIVEN)
    assert_same(outcome(broken_off), whole)


def test_a_method_object_with_other_settings_is_refused_too(broken_off: Path) -> None:
    """An object given to ``resume`` stands in for the configuration's method; it has to be that method."""
    from interfuse.methods.ifl import IFL
    from interfuse.runs import Given

    with pytest.raises(RunError, match="base_lr"):
        resume(broken_off, given=Given(dataset=GIVEN.dataset, method=IFL(optimizer="adam", base_lr=0.5)))


def test_a_configuration_that_is_broken_is_named(broken_off: Path) -> None:
    (broken_off / "config.toml").write_text("rounds = ")
    with pytest.raises(ConfigError, match=f"{broken_off / 'config.toml'} is no TOML"):
        resume(broken_off, given=GIVEN)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path / 'nothing'} holds no run"):
        resume(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------- one process a run


def test_a_run_that_has_done_nothing_may_be_removed(tmp_path: Path) -> None:
    RunFolder(tmp_path).create("rounds = 1\n")
    with pytest.raises(
        RunError, match=r"holds a run already: .*, remove it, since nothing was done in it \(rm -r .*, or"
    ):
        execute(CONFIG, tmp_path, given=GIVEN)


def test_an_existing_run_is_not_overwritten(broken_off: Path) -> None:
    before = {file: file.read_bytes() for file in broken_off.rglob("*") if file.is_file()}
    with pytest.raises(RunError, match=f"{broken_off} holds a run already: `interfuse resume"):
        execute(CONFIG, broken_off, given=GIVEN)
    assert before == {file: file.read_bytes() for file in broken_off.rglob("*") if file.is_file()}


def test_a_second_process_is_refused(broken_off: Path, whole: Outcome) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=(broken_off, theirs))
    holder.start()
    try:
        ours.recv()
        before = (broken_off / "metrics.jsonl").read_bytes()
        with pytest.raises(RunError, match=f"{broken_off} is being written by another process"):
            resume(broken_off, given=GIVEN)
        assert (broken_off / "metrics.jsonl").read_bytes() == before
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)  # a lock does not outlive its process
    finally:
        holder.kill()
        holder.join()
        ours.close()
        theirs.close()
    resume(broken_off, given=GIVEN)
    assert_same(outcome(broken_off), whole)


def hold(path: Path, ready: Any) -> None:
    """Hold a run until killed."""
    with RunFolder(path).locked():
        ready.send("locked")
        signal.pause()


@pytest.mark.parametrize("damage", [empty_manifest, damaged_manifest, lambda path: flip(newest(path))])
def test_a_run_that_went_back_behind_a_damaged_commit_commits_again_and_again(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    """The damaged manifest stands for a later round than the next commits, and must not be in their way."""
    path, config = tmp_path / "run", config_of("local", rounds=30, eval_every=10, commit_rounds=10)
    execute(config, tmp_path / "whole", given=GIVEN)
    with pytest.raises(Killed):
        execute(config, path, given=GIVEN, engine=Fuse(at="training 25 train 3").engine)
    assert [file.name for file in manifests(path)] == ["commit-000010.json", "commit-000020.json"]
    damage(path)
    (path / "commits/.commit-000020.json.tmp").write_text("half")
    text = (path / "config.toml").read_text()
    assert "commit_rounds = 10" in text
    (path / "config.toml").write_text(text.replace("commit_rounds = 10", "commit_rounds = 3"))
    for stop, first, left in ((17, 11, [12, 15]), (28, 16, [24, 27])):
        fuse = Fuse(at=f"training {stop} train 3")
        with pytest.raises(Killed):
            resume(path, given=GIVEN, engine=fuse.engine)
        assert next(name for name in fuse.names if name.startswith("training")) == f"training {first} train 1"
        assert [file.name for file in manifests(path)] == [f"commit-{round:06d}.json" for round in left]
    assert not list(path.glob("commits/.*.tmp"))
    resume(path, given=GIVEN)
    found, wanted = outcome(path), outcome(tmp_path / "whole")
    assert_same(found, wanted)


def test_data_that_were_changed_are_refused(tmp_path: Path) -> None:
    data, path, draws = GIVEN.dataset, tmp_path / "run", tmp_path / "rows.npz"
    assert data is not None
    arrays = {n: getattr(data, n).numpy() for n in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(draws, **arrays)
    whole = execute(config_of("local", data=str(draws)), tmp_path / "whole")
    with pytest.raises(Killed):
        execute(config_of("local", data=str(draws)), path, engine=Fuse(at="training 2 train 3").engine)
    for name in arrays:
        other = arrays[name].copy()
        other.flat[0] = 2 if name.startswith("y") else other.flat[0] + 1e-3
        np.savez(draws, **{**arrays, name: other})
        with pytest.raises(RunError, match=f"the data of {path} were changed.*{draws} has other values"):
            resume(path)
    np.savez(draws, **arrays)
    assert resume(path).global_accuracy == whole.global_accuracy


# ------------------------------------------------------------------------------------------------- the folder itself


def entry(round: int) -> Entry:
    return Entry(round, "training", 1, "train", 0, "up", "Weights", "unicast", 10, 20)


NOTHING = {"raw": 0, "wire": 0}
ROW = Row.model_validate({
    "round": 1, "uplink": NOTHING, "downlink": NOTHING, "steps": {"clients": 1, "server": 0}, "failures": [],
    "outstanding": 0, "virtual_seconds": {"devices": float("nan")}, "seconds": {"calls": 0.5},
})  # fmt: skip


def test_a_commit_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("rounds = 1\n")
    record = save_pack(folder.commits / "a-000001.safetensors", {"a": Tensors({"x": torch.arange(3)})})
    with folder.locked():
        ledger = folder.open_at(None)
        assert ledger.totals().uplink.raw == 0
        folder.append(ROW, [entry(1)])
        saved, data = Saved((record,), {"m": "mlp"}), {"values": "digest"}
        commit = Commit(1, saved, folder.files(), {"settings": {"lr": 0.1}}, data)
        folder.write_commit(commit)
    assert folder.last_commit() == commit
    assert [record.name for record in commit.files] == ["metrics.jsonl", "ledger.jsonl", "config.toml", "data.json"]
    for record in commit.files:
        content = (folder.path / record.name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with folder.locked():
        replayed = folder.open_at(commit)
    assert isinstance(replayed, Ledger)
    assert (replayed.totals().uplink.raw, replayed.totals().uplink.wire) == (10, 20)
    assert [row.values() for row in folder.metrics()] == [ROW.values()]
    assert "NaN" not in (folder.path / "metrics.jsonl").read_text()


def test_files_of_no_commit_go_with_the_next_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    records: list[FileRecord] = []
    with folder.locked():
        folder.open_at(None)
        for round in range(4):
            part = {"a": Tensors({"x": torch.tensor(round)})}
            records.append(save_pack(folder.commits / f"a-{round:06d}.safetensors", part))
            save_pack(folder.commits / f"never-committed-{round:06d}.safetensors", part)
            folder.write_commit(Commit(round, Saved((records[-1],), {}), folder.files(), {}, {"values": "a"}))
    assert sorted(f.name for f in folder.commits.glob("*.safetensors")) == [
        "a-000002.safetensors",
        "a-000003.safetensors",
    ]


def test_there_is_no_nan_in_json() -> None:
    rows = {"a": [float("nan"), 1.0, (float("inf"),)], "b": {"c": -float("inf"), "d": "nan", "e": None, "f": True}}
    assert without_nan(rows) == {"a": [None, 1.0, [None]], "b": {"c": None, "d": "nan", "e": None, "f": True}}
    assert json.loads(json.dumps(without_nan(rows), allow_nan=False))


def test_the_committed_tensors_are_those_of_the_run(tmp_path: Path) -> None:
    """The comparison of these tests would be empty if nothing were committed."""
    execute(config_of(), tmp_path / "run", given=GIVEN)
    tensors = committed(tmp_path / "run")
    weights = [tensor for key, tensor in tensors.items() if key.startswith("last:client-00000:networks/model/")]
    assert len(weights) == 4
    assert all(np.isfinite(tensor.numpy()).all() and tensor.abs().sum() > 0 for tensor in weights)


def run_config(path: Path) -> RunConfig:
    from interfuse.runs import read_config

    return read_config(path / "config.toml")


def test_the_configuration_of_a_run_gives_the_same_run(broken_off: Path, whole: Outcome, tmp_path: Path) -> None:
    execute(run_config(broken_off), tmp_path / "again", given=GIVEN)
    assert_same(outcome(tmp_path / "again"), whole)
