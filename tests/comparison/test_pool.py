"""Jobs in processes: how many at once, what a failure says, and that nothing outlives the pool."""

from __future__ import annotations

import os
import time
from pathlib import Path

from interfuse.comparison.pool import Ended, Pool


def all_of(pool: Pool[int]) -> list[Ended[int]]:
    found: list[Ended[int]] = []
    while pool.busy:
        found += pool.ended(5)
    return found


def test_every_job_is_done_in_a_process_of_its_own_and_never_more_than_asked(tmp_path: Path) -> None:
    def work(job: int) -> None:
        (tmp_path / f"begun-{job}").write_text(str(os.getpid()))
        while job == 0 and not (tmp_path / "begun-1").exists():  # for ever, if there were no second one beside it
            time.sleep(0.01)
        time.sleep(0.05)
        at_once = len(list(tmp_path.glob("begun-*")))  # before those that ended, so it is never too many
        at_once -= len(list(tmp_path.glob("ended-*")))
        (tmp_path / f"count-{job}").write_text(str(at_once))
        (tmp_path / f"ended-{job}").touch()

    with Pool(work, 2) as pool:
        pool.add(range(5))
        found = all_of(pool)
    assert sorted(ended.job for ended in found) == list(range(5))
    assert all(ended.failure is None for ended in found)
    processes = {path.read_text() for path in tmp_path.glob("begun-*")}
    assert len(processes) == 5
    assert str(os.getpid()) not in processes
    assert max(int(path.read_text()) for path in tmp_path.glob("count-*")) <= 2


def test_failures_say_why() -> None:
    def work(job: int) -> None:
        if job == 1:
            raise ValueError("no such thing")
        if job == 2:
            raise KeyError
        if job == 3:
            os._exit(7)

    with Pool(work, 4) as pool:
        pool.add(range(4))
        failures = {ended.job: ended.failure for ended in all_of(pool)}
    assert (failures[0], failures[1], failures[2]) == (None, "no such thing", "KeyError")
    assert failures[3] == "its process ended with exit code 7; is there enough memory?"


def test_leaving_ends_what_runs(tmp_path: Path) -> None:
    def work(job: int) -> None:
        (tmp_path / "process").write_text(str(os.getpid()))
        time.sleep(60)

    with Pool(work, 1) as pool:
        pool.add([0])
        while not ((tmp_path / "process").exists() and (tmp_path / "process").read_text()):
            assert pool.ended(0.01) == []
        process = int((tmp_path / "process").read_text())
        assert pool.running == [0]
    assert not Path(f"/proc/{process}").exists()
    assert not pool.running
