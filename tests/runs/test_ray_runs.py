"""Runs on Ray whose workers are lost, and runs that go on on another engine than they began on."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_in_process import RayInProcess, in_process
from small_runs import GIVEN, assert_same, config_of, lines, outcome

from interfuse.clients import Clients
from interfuse.engines import Room
from interfuse.engines.ray import Joining, OnRay, engine
from interfuse.engines.ray.cluster import LOOPBACK
from interfuse.errors import RunError
from interfuse.methods.local import Local
from interfuse.runs import Silent, execute, resume
from interfuse.server import Server
from interfuse.setup import Setup


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayInProcess]:
    with in_process(monkeypatch) as made:
        yield made


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def both(setup: Setup, workers: int | None, room: Room) -> OnRay:
    return OnRay(setup, 2, room, Joining())


def test_whatever_order_a_worker_ends_at_the_round_is_tried_again_from_the_commit(
    ray: RayInProcess, tmp_path: Path
) -> None:
    config = config_of("scaffold", rounds=2)
    execute(config, tmp_path / "local", given=GIVEN)
    wanted = outcome(tmp_path / "local")
    execute(config, tmp_path / "quiet", given=GIVEN, engine=both)
    orders = [what for _, what in ray.orders]
    for number in range(5, len(orders), 11):
        ray.orders.clear()
        ray.handles.clear()
        ray.strike = lambda now, what, at=number: now == at
        path, told = tmp_path / str(number), Noting()
        execute(config, path, given=GIVEN, engine=both, progress=told)
        assert_same(outcome(path), wanted)
        assert any("is lost: its worker process has died; everybody goes back" in text for text in told.notes)
    assert {"call", "end_round", "save"} <= {*orders}


@dataclass(frozen=True)
class Early(Local):
    """Local, whose clients train before the first round too."""

    def start(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)


def test_before_the_first_commit_everybody_goes_back_to_the_beginning(ray: RayInProcess, tmp_path: Path) -> None:
    given = replace(GIVEN, method=Early(optimizer="adam"))
    config = config_of("test_ray_runs:Early", settings={"optimizer": "adam"})
    execute(config, tmp_path / "local", given=given)
    ray.strike = lambda number, what: number == 4  # two come up, one has trained by then
    execute(config, tmp_path / "run", given=given, engine=both)
    assert [what for _, what in ray.orders[:4]] == ["facts", "facts", "call", "call"]
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "local"))


def test_one_that_is_lost_on_the_way_back_is_one_more_loss(ray: RayInProcess, tmp_path: Path) -> None:
    struck: list[int] = []

    def strike(number: int, what: str) -> bool:
        if number == 30 or (what == "restore" and len(struck) == 1):
            struck.append(number)
            return True
        return False

    ray.strike = strike
    execute(config_of("scaffold"), tmp_path / "run", given=GIVEN, engine=both)
    assert len(struck) == 2
    execute(config_of("scaffold"), tmp_path / "local", given=GIVEN)
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "local"))


def test_one_that_is_lost_again_and_again_ends_the_run_which_can_be_resumed(ray: RayInProcess, tmp_path: Path) -> None:
    ray.strike = lambda number, what: what == "call" and number > 40
    with pytest.raises(RunError, match=r"is lost: .* time 4 in round \d: is there enough memory .* resumed"):
        execute(config_of("scaffold", rounds=9), tmp_path / "run", given=GIVEN, engine=both)
    ray.strike = lambda number, what: False
    resume(tmp_path / "run", given=GIVEN, execution={"workers": 2, "engine": "ray"})
    execute(config_of("scaffold", rounds=9), tmp_path / "local", given=GIVEN)
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "local"))


def test_with_no_room_for_another_the_rest_go_on(
    ray: RayInProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "BUSY", 0.0)
    ray.resources = {"CPU": 1.0}
    ray.strike = lambda number, what: number == 30
    told = Noting()

    def lessened(*given: Any) -> OnRay:
        made = both(*given)
        ray.room = 1
        return made

    execute(config_of("scaffold"), tmp_path / "run", given=GIVEN, engine=lessened, progress=told)
    assert "with 1 of 2 workers" in " ".join(told.notes)
    execute(config_of("scaffold"), tmp_path / "local", given=GIVEN)
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "local"))


# ------------------------------------------------------------------------------------------------------- with real Ray

SLOW = '''
import os
import time
from dataclasses import dataclass
from interfuse import Client, Method, Server, Clients, on_client
from interfuse.methods.local import Local


@dataclass(frozen=True)
class Slow(Local):
    """Local, with time to be killed in."""

    @on_client
    def train(self, client: Client) -> None:
        time.sleep(float(os.environ["PAUSE"]))
        Local.train.function(self, client)
'''


def interfuse_of(folder: Path, *arguments: str, pause: float = 0.0) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "PAUSE": str(pause)}
    command = [sys.executable, "-m", "interfuse.cli", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rounds_of(run: Path) -> int:
    return len(lines(run / "metrics.jsonl"))


def workers_among(everybody: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in everybody if process.name().startswith("ray::Worker")]


def until(true: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_a_worker_and_then_the_driver_are_killed_and_the_run_goes_on_without_ray(quick_path: Path) -> None:
    """Nothing of Ray listens beyond this machine or answers who has no token, and no worker outlives the driver."""
    (quick_path / "slow.py").write_text(SLOW, encoding="utf-8")
    run, same = quick_path / "run", quick_path / "same"
    what = ["slow.py", "--data", "digits", "--clients", "3", "--models", "logistic", "--rounds", "40", "--beside"]
    what += ["none", "--commit-every", "4", "--set", "optimizer=adam"]
    driver = interfuse_of(
        quick_path,
        "run",
        *what,
        "--engine",
        "ray",
        "--workers",
        "2",
        "--ray-address",
        "local",
        "--out",
        str(run),
        pause=0.1,
    )
    try:
        until(lambda: rounds_of(run) > 2 or driver.poll() is not None)
        assert driver.poll() is None, driver.stderr.read()
        everybody = psutil.Process(driver.pid).children(recursive=True)
        workers = set[psutil.Process]()
        until(
            lambda: workers.update(workers_among(everybody)) or len(workers) == 2
        )  # Ray writes titles anew at each call
        listening = {
            place.laddr.ip for one in everybody for place in one.net_connections("inet") if place.status == "LISTEN"
        }
        assert listening
        assert all(ipaddress.ip_address(place.removeprefix("::ffff:")).is_loopback for place in listening)
        head = next(process for process in everybody if process.name() == "gcs_server")
        port = next(place.laddr.port for place in head.net_connections("inet") if place.status == "LISTEN")
        stranger = f"import ray; ray.init(address='127.0.0.1:{port}', logging_level=50)"
        knocking = os.environ | {LOOPBACK: "0", "RAY_NUM_REDIS_GET_RETRIES": "1"}
        tried = subprocess.run(
            [sys.executable, "-c", stranger], env=knocking, capture_output=True, text=True, timeout=120
        )
        assert "ConnectionError: Failed to connect to Ray cluster" in tried.stderr
        min(workers, key=lambda process: process.pid).kill()
        before = rounds_of(run)
        until(lambda: rounds_of(run) > before + 5)
    finally:
        driver.kill()
        out, told = driver.communicate()
    assert "is lost: its worker process has died" in told
    assert out == ""
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers))
    for arguments in (
        ["resume", str(run), "--engine", "local", "--workers", "1"],
        ["run", *what, "--workers", "1", "--out", str(same)],
    ):
        done = interfuse_of(quick_path, *arguments)
        assert done.wait() == 0, done.communicate()
        done.communicate()
    assert_same(outcome(run), outcome(same))
