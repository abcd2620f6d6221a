"""A run between parties gives the bits of the local engine: over mutual TLS, and every method through queues."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from every_method import BETWEEN_PARTIES, prepared
from parties import Parties, assert_equal_to_local, parties

from interfuse.coordination import Terms, coordinate, driver, dry_run
from interfuse.engines.parties import node, session
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.vendor import read_vendor
from interfuse.runs import RunConfig, Silent
from interfuse.runs.config import parse_config

CASES: dict[str, tuple[list[str], int]] = {"ifl": (["mlp", "logistic"], 20), "fedavg": (["logistic"], 3)}
"""Models and rounds by method."""


@pytest.mark.parametrize("method", CASES)
def test_a_network_gives_the_bits_of_the_local_engine(method: str, tmp_path: Path) -> None:
    models, rounds = CASES[method]
    with parties(tmp_path) as four:
        recipe: dict[str, Any] = {"method": method, "rounds": rounds, "settings": {"batch_size": 16}}
        if method == "fedavg":  # what the contract says beside
            recipe |= {
                "sampling": {"order": "stored", "last_batch": "spread"},
                "normalise": "plain",
                "initial": "common",
            }
        config = four.prepare(recipe, models)
        nodes = four.all_nodes()
        coordinator = four.coordinate()
        assert coordinator.wait() == 0, four.everything()
        assert [process.wait() for process in nodes] == [0] * 4, four.everything()
        assert_equal_to_local(four, config)


def one_at_a_time(work: Callable[..., Any], turn: threading.Lock) -> Callable[..., Any]:
    def in_turn(*given: Any) -> Any:
        with turn:
            return work(*given)

    return in_turn


def run_in_this_process(two: Parties, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry a run out with nodes in threads. One works at a time, since PyTorch's global generator is one for all."""
    monkeypatch.setattr(driver.report, "write", lambda path: path)
    turn = threading.Lock()
    for owner, name_of_work in ((node.Node, "_agree"), (session.Session, "carry_out")):
        monkeypatch.setattr(owner, name_of_work, one_at_a_time(getattr(owner, name_of_work), turn))
    carrier, quiet = Loopback(), Events(None, lambda text: None)
    with ExitStack() as opened, ThreadPoolExecutor(2) as pool:
        for party in two.names:
            vendor = read_vendor(two.folder / party / "vendor.toml")
            found = opened.enter_context(closing(node.Node(vendor, quiet)))
            pool.submit(take_part, found, carrier.dial, patience=30.0)
        coordinate(config, two.run, Terms(carrier, 2), Silent())


@pytest.mark.parametrize("name", BETWEEN_PARTIES)
def test_so_do_queues_for_every_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Parties(tmp_path, ("ant", "bee"), secure=False)
    config, public = prepared(two, name)
    # what a node draws from a secret of its own, a simulation draws from the seed
    monkeypatch.setattr(node, "secret_of", lambda folder: config.seed)
    run_in_this_process(two, parse_config(config.model_dump() | {"data": public}), monkeypatch)
    assert_equal_to_local(two, config)


@pytest.mark.parametrize(
    ("method", "evaluation"),
    [("fedavg", "shared"), ("ifl", "shared"), ("ccvr", "shared"), ("fedbabu", "own"), ("ccvr", "none"), ("ifl", "own")],
)
@pytest.mark.parametrize(("rounds", "eval_every"), [(6, 2), (5, 3)])
def test_a_dry_run_adds_up_what_a_run_lets_leave(
    method: str, evaluation: str, rounds: int, eval_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the bytes that a node counts in the run itself."""
    two = Parties(tmp_path, ("ant", "bee"), secure=False)
    config, public = prepared(two, method)
    asked = {"rounds": rounds, "eval_every": eval_every, "evaluation": evaluation, "data": public}
    if evaluation != "shared":
        asked |= {"classes": ["0", "1", "2"]}
    config = parse_config(config.model_dump() | asked)
    vendor, said = read_vendor(tmp_path / "ant" / "vendor.toml"), list[str]()
    dry_run(vendor, config, tmp_path / "out", said.append)
    run_in_this_process(two, config, monkeypatch)
    sent = sum(json.loads((tmp_path / "ant" / "state" / "audit.json").read_text())["sent"].values())
    found = re.search(r"about ([0-9,]+) in all", "\n".join(said))
    assert found is not None
    told = int(found[1].replace(",", ""))
    assert 0.99 * sent <= told <= 1.1 * sent  # of its row of compositions a node alone has one number


def test_early_stopping_is_the_same_between_parties(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee"), secure=False) as two:
        stop = {"patience": 1, "min_delta": 1.0}  # no score rises by so much
        config = two.prepare({"method": "fedavg", "rounds": 9, "eval_every": 1, "stop": stop}, ["mlp"])
        nodes = two.all_nodes()
        assert two.coordinate().wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0] * 2, two.everything()
        assert two.rounds_done() == 1 + 3
        assert_equal_to_local(two, config)
