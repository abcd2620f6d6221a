"""What is damaged in a finished run is said and made again; what was begun before is not done a third time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import GIVEN, assert_same, config_of, outcome

from interfuse.engines import Room, local
from interfuse.errors import RunError
from interfuse.runs import Silent, conduct, execute, resume
from interfuse.runs.commits import Commit
from interfuse.runs.config import changed_in, complete, to_toml
from interfuse.runs.folder import RunFolder
from interfuse.runs.loop import assemble

CONFIG = config_of("fedavg", clients=2)


class Noting(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_finished_run_with_a_damaged_state_says_so_and_is_whole_again(tmp_path: Path) -> None:
    execute(CONFIG, tmp_path / "run", given=GIVEN)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    newest = max((tmp_path / "run" / "commits").glob("*.safetensors"), key=lambda path: path.name)
    damage(newest)
    progress = Noting()
    resume(tmp_path / "run", given=GIVEN, progress=progress)
    assert any(newest.name in text for text in progress.said)
    assert "what is damaged is made again, from round 2 on" in progress.said
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "before"))
    again = Noting()
    resume(tmp_path / "run", given=GIVEN, progress=again)
    assert again.said == []


def test_a_finished_run_without_any_state_is_refused(tmp_path: Path) -> None:
    execute(CONFIG, tmp_path / "run", given=GIVEN)
    for pack in (tmp_path / "run" / "commits").glob("*.safetensors"):
        damage(pack)
    with pytest.raises(RunError, match="no commit of .* can be used"):
        resume(tmp_path / "run", given=GIVEN)


def test_a_folder_that_was_copied_names_itself(tmp_path: Path) -> None:
    execute(CONFIG, tmp_path / "run", given=GIVEN)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert resume(tmp_path / "copy", given=GIVEN).run == str(tmp_path / "copy")


@pytest.mark.parametrize(("again", "rounds"), [(0, [0, 4]), (2, [0, 1, 2, 4])])
def test_rounds_that_were_begun_before_are_committed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: int, rounds: list[int]
) -> None:
    config = config_of("fedavg", clients=2, rounds=4, commit_rounds=None)
    setup, folder, found = assemble(config, GIVEN), RunFolder(tmp_path / "run"), list[int]()
    folder.create(to_toml(complete(config, setup.method)), setup.readings)
    write = RunFolder.write_commit

    def written(self: RunFolder, commit: Commit) -> None:
        found.append(commit.round)
        write(self, commit)

    monkeypatch.setattr(RunFolder, "write_commit", written)
    engine = local(setup, 1, Room(None, tmp_path))
    conduct(folder.config(), setup, folder, engine, Silent(), again=again)
    engine.close()
    assert found == rounds


def test_a_run_between_parties_that_does_not_say_so_drew_from_the_seed(tmp_path: Path) -> None:
    secret, seed = (config_of("ifl", data="digits", sampling={"draws_from": one}) for one in ("secret", "seed"))
    text = to_toml(complete(secret, secret.make_method()))
    assert text.count('draws_from = "secret"') == 1
    (tmp_path / "config.toml").write_text(text.replace('draws_from = "secret"\n', ""))
    assert changed_in(tmp_path, secret) == []  # a simulation draws from the seed whatever it says
    (tmp_path / "network.json").write_text("{}")
    assert changed_in(tmp_path, secret) == ["sampling.draws_from: 'seed' became 'secret'"]
    assert changed_in(tmp_path, seed) == []
