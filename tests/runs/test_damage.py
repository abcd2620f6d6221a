"""Every file of a run folder, damaged in every way, is noticed or was not read. The files are those that are there."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from small_runs import GIVEN, Fuse, Killed, Outcome, assert_same, config_of, outcome, timeless
from worlds import same_bits

from interfuse import api, report
from interfuse.cli.serving import _say
from interfuse.errors import InterfuseError
from interfuse.runs import Silent, execute, resume
from interfuse.runs.folder import RunFolder

FINISHED = config_of("ifl", rounds=2, clients=2, beside=["local"])
KILLED = config_of("local", rounds=2, clients=2)


class Opened:
    """Which files this process opens for reading, while it is asked to look."""

    def __init__(self) -> None:
        self.looking, self.paths = False, set[str]()
        sys.addaudithook(self.see)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.looking and event == "open" and isinstance(args[0], str | Path) and not args[2] & os.O_WRONLY:
            self.paths.add(str(args[0]))


OPENED = Opened()


class Noting(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@dataclass
class Answers:
    """All that can be asked of a run folder."""

    figures: Any
    weights: dict[str, Any]
    noticed: list[str] = field(compare=False)

    def same(self, other: Answers) -> bool:
        return self.figures == other.figures and same_bits(self.weights, other.weights)


@dataclass(frozen=True)
class Runs:
    """A run that is finished, and one whose process was killed; both again with another seed."""

    paths: dict[str, Path]
    others: dict[str, Path]
    answers: Answers
    whole: Outcome
    outside: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("damage")
    for seed in (0, 1):
        execute(FINISHED.model_copy(update={"seed": seed}), folder / f"finished-{seed}", given=GIVEN)
        broken = Fuse(at="training 2 train 2")
        with pytest.raises(Killed):
            execute(
                KILLED.model_copy(update={"seed": seed}), folder / f"killed-{seed}", given=GIVEN, engine=broken.engine
            )
    execute(KILLED, folder / "whole", given=GIVEN)
    paths, others = ({name: folder / f"{name}-{seed}" for name in ("finished", "killed")} for seed in (0, 1))
    answers = answers_of(paths["finished"])
    assert not answers.noticed
    return Runs(paths, others, answers, outcome(folder / "whole"), folder / "outside")


def answers_of(run: Path) -> Answers:
    """Figures, a model, what the report shows, and what was said meanwhile."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = api.load_run(run, data=GIVEN.dataset)
        model = result.model(1).tensors()
        shown = report.load(run)
    rows = [[row.values() for row in rows] for rows in (result.metrics, shown.rows, *shown.beside.values())]
    figures = timeless([result.summary.values(), shown.summary.values(), rows, shown.data, shown.config_text])
    return Answers(figures, dict(model), [*result.notices, *shown.notices, *(str(one.message) for one in warned)])


def flip(place: Callable[[int], int]) -> Callable[[Path, Path, Path], None]:
    def damage(path: Path, other: Path, outside: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place(len(content))] ^= 1
        path.write_bytes(bytes(content))

    return damage


def cut(path: Path, other: Path, outside: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def halved(path: Path, other: Path, outside: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def dropped(path: Path, other: Path, outside: Path) -> None:
    path.unlink()


def swapped(path: Path, other: Path, outside: Path) -> None:
    """With the next file of its folder."""
    files = sorted(file for file in path.parent.iterdir() if file.is_file())
    sibling = files[(files.index(path) + 1) % len(files)]
    kept = path.read_bytes()
    path.write_bytes(sibling.read_bytes())
    sibling.write_bytes(kept)


def of_another_run(path: Path, other: Path, outside: Path) -> None:
    path.write_bytes(other.read_bytes())


def emptied(path: Path, other: Path, outside: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path, other: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path, other: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path, other: Path, outside: Path) -> None:
    """To the very bytes, outside of the run."""
    path.replace(outside)
    path.symlink_to(outside)


DAMAGE: dict[str, Callable[[Path, Path, Path], None]] = {
    "first byte": flip(lambda size: 0),
    "middle byte": flip(lambda size: size // 2),
    "last byte": flip(lambda size: size - 1),
    "cut": cut,
    "halved": halved,
    "dropped": dropped,
    "swapped": swapped,
    "of another run": of_another_run,
    "emptied": emptied,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "a link": a_link,
}


def tries(run: Path, other: Path) -> list[tuple[str, str]]:
    """Every file that is there, damaged in every way that changes it."""
    of_bytes = {"first byte", "middle byte", "last byte", "cut", "halved", "emptied"}
    found = []
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        content, name = file.read_bytes(), str(file.relative_to(run))
        alike = (other / name).exists() and (other / name).read_bytes() == content
        left_out = (of_bytes if not content else set()) | ({"of another run"} if alike else set())
        found += [(name, how) for how in DAMAGE if how not in left_out]
    return found


def test_a_finished_run(runs: Runs, tmp_path: Path) -> None:
    """Whatever is asked of it gives the same, or says what is wrong. What it says nothing of was not opened."""
    run, todo = tmp_path / "run", tries(runs.paths["finished"], runs.others["finished"])
    unread: set[str] = set()
    for name, how in todo:
        fresh(runs, "finished", run)
        DAMAGE[how](run / name, runs.others["finished"] / name, runs.outside)
        OPENED.paths.clear()
        OPENED.looking = True
        try:
            found = answers_of(run)
        except InterfuseError:
            continue
        finally:
            OPENED.looking = False
        if not found.noticed:
            assert found.same(runs.answers), (name, how)
            assert str(run / name) not in OPENED.paths, (name, how)
            unread.add(name)
    assert len(todo) > 200
    assert unread <= {".lock", "beside/local/.lock"} | older(run) | references_state(run)


def test_a_run_that_goes_on(runs: Runs, tmp_path: Path) -> None:
    """It becomes the run that nothing happened to, or stops and says why; and nothing outside of it is written."""
    run, todo = tmp_path / "run", tries(runs.paths["killed"], runs.others["killed"])
    for name, how in todo:
        fresh(runs, "killed", run)
        DAMAGE[how](run / name, runs.others["killed"] / name, runs.outside)
        kept = runs.outside.read_bytes() if how == "a link" else b""
        noting = Noting()
        try:
            resume(run, given=GIVEN, progress=noting)
        except InterfuseError:
            pass
        else:
            assert_same(outcome(run), runs.whole)
            answers_of(run)
        assert how != "a link" or runs.outside.read_bytes() == kept, (name, how)
    assert len(todo) > 80


def fresh(runs: Runs, name: str, run: Path) -> None:
    """A copy of a run that nothing happened to."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(runs.paths[name], run)


def older(run: Path) -> set[str]:
    """Manifests behind the newest one."""
    return {str(path.relative_to(run)) for path in run.rglob("commit-*1.json")}


def references_state(run: Path) -> set[str]:
    """The ledger of a finished run, and of a reference beside it all but figures, are not read."""
    others = [path for path in run.glob("beside/**/*") if path.is_file()]
    return {"ledger.jsonl", *(str(path.relative_to(run)) for path in others if "metrics" not in path.name)}


def test_an_older_state_is_said_wherever_an_answer_goes(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder whose newest commit has one other bit: in Python, in the terminal and in JSON; and by a resume."""
    run = tmp_path / "run"
    fresh(runs, "finished", run)
    newest = max(run.glob("commits/clients-*.safetensors"))
    DAMAGE["last byte"](newest, newest, newest)
    result = api.load_run(run, data=GIVEN.dataset)
    with pytest.warns(UserWarning, match="the state after round 1 is used, for newer ones cannot be: commit-000002"):
        result.model(0)
    assert "the state after round 1 is used" in result.notices[-1]
    assert "notice: " in repr(result)
    assert "Notice." in result._repr_html_()
    _say(result.notices)
    assert "notice: " in capsys.readouterr().err
    fresh(runs, "killed", run)
    newest = max(run.glob("commits/clients-*.safetensors"))
    DAMAGE["last byte"](newest, newest, newest)
    noting = Noting()
    resume(run, given=GIVEN, progress=noting)
    assert [text for text in noting.said if "the state after round 0 is used" in text]
    assert_same(outcome(run), runs.whole)


def test_a_folder_of_an_earlier_version_is_read_and_gone_on_with_and_said_to_be_one(runs: Runs, tmp_path: Path) -> None:
    """Its manifests have lengths of two files, and no digests; what goes on from there has them."""
    run = tmp_path / "run"
    fresh(runs, "killed", run)
    for manifest in run.glob("commits/*.json"):
        values = json.loads(manifest.read_text())
        files = {record["name"]: record["bytes"] for record in values.pop("files")}
        for new in ("digest", "before", "end"):
            values.pop(new)
        values["offsets"] = {name: files[f"{name}.jsonl"] for name in ("metrics", "ledger")}
        manifest.write_text(json.dumps(values, indent=1))
    assert [text for text in RunFolder(run).notices() if "an earlier version wrote this run" in text]
    noting = Noting()
    resume(run, given=GIVEN, progress=noting)
    assert [text for text in noting.said if "an earlier version wrote this run" in text]
    assert_same(outcome(run), runs.whole)
    assert not answers_of(run).noticed


def test_a_finished_run_with_a_damaged_last_manifest_answers_from_the_one_before(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fresh(runs, "finished", run)
    newest = max(run.glob("commits/commit-*.json"))
    DAMAGE["last byte"](newest, newest, newest)
    found = answers_of(run)
    assert found.figures == runs.answers.figures
    assert [text for text in found.noticed if f"commits/{newest.name} is damaged" in text]
    assert not [text for text in found.noticed if "is not finished" in text]


def test_models_of_a_run_that_was_interrupted_are_said_to_be_no_last_ones(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fresh(runs, "killed", run)
    result = api.load_run(run, data=GIVEN.dataset)
    result.model(1)
    assert [text for text in result.notices if "is not finished: its models are those after round" in text]
