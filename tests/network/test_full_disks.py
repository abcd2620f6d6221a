"""A disk that was full for a moment, or a file of a node that was damaged or taken away, stops no node for ever."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interfuse.engines.parties.audit import Audit, verify
from interfuse.engines.parties.budget import Budget
from interfuse.engines.parties.contract import JoinError
from interfuse.engines.parties.frames import Call, Ready
from interfuse.engines.parties.keeping import ANSWERS_FILE, RUN_FILE, begin_answers, remember_state, states_of
from interfuse.engines.parties.limits import LimitsTable
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.permission import DeniedError
from interfuse.errors import RunError

LIMITS = LimitsTable(calls=2, answers=1)


@contextmanager
def full(path: Path, left: int) -> Iterator[None]:
    """No file grows beyond the size of this one and a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def call(index: int) -> Call:
    return Call(
        attempt=1, number=1, ended=0, program="p", handler="h", heading="training", round=1, index=index,
        message=False, recoverable=False,
    )  # fmt: skip


def spend(budget: Budget, index: int) -> None:
    budget.spend(call(index), "0" * 64, most=2)


@pytest.mark.parametrize("left", [0, 5])
def test_an_answer_that_could_not_be_counted_leaves_nothing_behind(left: int, tmp_path: Path) -> None:
    begin_answers(tmp_path)
    path = tmp_path / ANSWERS_FILE
    budget = Budget(path, LIMITS)
    spend(budget, 0)
    before = path.read_bytes()
    with full(path, left), pytest.raises(OSError, match="large|space"):
        spend(budget, 1)
    assert path.read_bytes() == before
    spend(budget, 1)
    again = Budget(path, LIMITS)
    for known in (budget, again):
        spend(known, 0)
        with pytest.raises(DeniedError, match="2 calls"):
            spend(known, 2)


def test_a_line_that_was_cut_off_is_taken_away_and_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    begin_answers(tmp_path)
    path = tmp_path / ANSWERS_FILE
    budget = Budget(path, LIMITS)
    spend(budget, 0)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:7])
    Budget(path, LIMITS)
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(OSError, match="taken away"):
        spend(budget, 1)
    with pytest.raises(RunError, match="is gone"):
        Budget(path, LIMITS)
    begin_answers(tmp_path)  # a run that has not begun
    path.unlink()
    (tmp_path / RUN_FILE).touch()
    with pytest.raises(JoinError, match="the count of what left"):
        begin_answers(tmp_path)
    assert not path.exists()


def test_logs_on_a_full_disk_are_closed_without_another_error_and_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit, events = Audit(log, "ant"), Events(tmp_path / "node.jsonl", lambda text: None)
    audit.add("run", Ready(attempt=1), b"x" * 10, {}, repeated=False)
    before = log.read_bytes()
    with full(log, 5):
        with pytest.raises(OSError, match="large|space"):
            audit.add("run", Ready(attempt=2), b"x" * 10, {}, repeated=False)
        events.add("a" * 10_000)
        audit.close()
        events.close()
    assert log.read_bytes() == before
    audit = Audit(log, "ant")
    assert audit.sent("run") == 10
    audit.add("run", Ready(attempt=2), b"", {}, repeated=False)
    audit.close()
    assert verify(log).lines == 2


def test_a_damaged_list_of_states_is_begun_anew_and_said_to_be(tmp_path: Path) -> None:
    assert remember_state(tmp_path, "a", 1, []) == ""
    assert remember_state(tmp_path, "b", 2, ["a"]) == ""
    assert states_of(tmp_path) == {"a": 1, "b": 2}
    path = tmp_path / "states.json"
    path.write_bytes(path.read_bytes()[:-9])
    assert "states.json cannot be read" in remember_state(tmp_path, "c", 3, ["a", "b"])
    assert states_of(tmp_path) == {"c": 3}
