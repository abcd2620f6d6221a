"""Many nodes that fail within one round, one after another or together: those that remain come to the end of the run,
and none gives more answers to a call than its vendor's file says."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Coordinator
from hostile_vendor import BATCH, PAYLOAD, WIDTH, Fake

from interfuse.coordination import Terms, coordinate, driver
from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.budget import Budget
from interfuse.engines.parties.carrier import Line
from interfuse.engines.parties.contract import LIBRARY, WIRE, Contract
from interfuse.engines.parties.digests import digest_of
from interfuse.engines.parties.frames import PROTOCOL, Assembler, Call, Code, Done, End, Hello, Incoming, Order, Reply
from interfuse.engines.parties.limits import LimitsTable
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.permission import DeniedError
from interfuse.evaluation.accuracy import Counted
from interfuse.messages import Weights
from interfuse.messages.encoding import encoded
from interfuse.runs import RunConfig, Silent, parse_config
from interfuse.runs.folder import RunFolder

ANSWERS = 3
HONEST = ("ant", "bee", "cat")
Fails = Callable[[Call], bool]


def config_of(**values: Any) -> RunConfig:
    return parse_config({
        "method": "ifl", "settings": {"batch_size": BATCH, "local_steps": 1}, "models": ["logistic"],
        "evaluation": "own", "classes": ["a", "b", "c"], "rounds": 4, "eval_every": 1, "beside": [],
        "fusion_width": WIDTH, "execution": {"commit_rounds": 1},
    } | values)  # fmt: skip


@dataclass
class Counting(Fake):
    """A client whose answers to the evaluation follow from what it was sent, and are counted as a node does."""

    folder: Path = Path()
    fails: Fails = lambda call: False
    code: Code = "handler-error"
    learnt: str = ""
    saved: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / f"{self.name}.jsonl"
        path.touch()
        self.budget = Budget(path, LimitsTable(answers=ANSWERS))

    def serve(self, line: Line) -> None:
        assembler = Assembler()
        self._send(line, Hello(protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name=self.name, incarnation=self.name))
        for received in line.received():
            if (whole := assembler.feed(received)) is None:
                continue
            asked, payload = whole
            self.ended |= isinstance(asked, End)
            if isinstance(asked, Call):
                self._reply(line, asked, payload)
            elif isinstance(asked, Order):
                self._obey(line, asked)
            else:
                self._answer(line, asked)

    def _obey(self, line: Line, order: Order) -> None:
        done = Done(attempt=order.attempt, number=order.number)
        if order.do == "load":
            self.learnt = self.saved.get(order.digest or "", "")
        else:
            digest = digest_of(self.learnt.encode())
            self.saved[digest] = self.learnt
            done = done.model_copy(update={"digest": digest, "bytes": 1})
        self._send(line, done)

    def _reply(self, line: Line, call: Call, payload: Incoming) -> None:
        reply = Reply(attempt=call.attempt, number=call.number)
        if self.fails(call):
            self._send(line, reply.model_copy(update={"failure": self.code}))
        elif call.handler == "train_modular":
            self.learnt += digest_of(payload)
            self._send(line, reply)
        else:
            answer = PAYLOAD
            if call.handler == "count":
                right = int(digest_of(self.learnt.encode())[:4], 16)
                sums = torch.tensor([float(right), 65536.0], dtype=torch.float64)
                answer = bytes(encoded(Counted(sums, sums, torch.zeros_like(sums))))
            try:
                self.budget.spend(call, digest_of(answer), 10)
            except DeniedError as error:
                self._send(line, reply.model_copy(update={"failure": error.code}))
            else:
                self._send(line, reply.model_copy(update={"message": True}), answer)

    @property
    def most(self) -> int:
        """How many different answers left to one call."""
        lines = (self.folder / f"{self.name}.jsonl").read_text().splitlines()
        return max(Counter(tuple(json.loads(line)[:4]) for line in lines).values(), default=0)


@dataclass
class Run:
    """A run in one process whose nodes fail as they are told."""

    folder: Path
    failing: Mapping[str, Fails]
    code: Code = "handler-error"
    config: RunConfig = field(default_factory=config_of)

    def carry_out(self) -> list[Counting]:
        """Returns the honest nodes."""
        offer = self._offer()
        fakes = [Counting(name, offer, folder=self.folder) for name in HONEST]
        fakes += [
            Counting(name, offer, folder=self.folder, fails=fails, code=self.code)
            for name, fails in self.failing.items()
        ]
        carrier, over = Loopback(), threading.Event()
        threads = [threading.Thread(target=served, args=(carrier, fake, over), daemon=True) for fake in fakes]
        for thread in threads:
            thread.start()
        try:
            coordinate(self.config, self.folder / "run", Terms(carrier, len(fakes), minimum=2), Silent())
        finally:
            over.set()
            for thread in threads:
                thread.join()
        return fakes[: len(HONEST)]

    def _offer(self) -> Contract:
        public = Public(3, ["a", "b", "c"], torch.zeros(0, dtype=torch.int64), None)
        return make_contract(self.config, self.config.make_method(), "run", public)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "run" / "coordinator.jsonl").read_text().splitlines()]

    def gone(self) -> list[str]:
        return [event["node"] for event in self.events() if event["event"] == "goes on without"]

    def passed_over(self) -> list[int]:
        return [event["round"] for event in self.events() if event["event"] == "passes over"]


def served(carrier: Loopback, fake: Counting, over: threading.Event) -> None:
    while not over.wait(0.05) and not fake.ended:
        with carrier.dial() as line:
            fake.serve(line)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.report, "write", lambda path: path)
    monkeypatch.setattr(driver.secrets, "token_hex", lambda size: "run")


def in_turn(names: Sequence[str], round: int, handler: str) -> dict[str, Fails]:
    """Each fails in an attempt of its own, at the same place."""
    return {
        name: lambda call, attempt=place + 1: (call.round, call.handler, call.attempt) == (round, handler, attempt)
        for place, name in enumerate(names)
    }


@pytest.mark.parametrize("lost", [4, 12])
def test_a_run_outlives_nodes_that_fail_one_after_another_in_one_round(tmp_path: Path, lost: int) -> None:
    names = [f"x{i:02d}" for i in range(lost)]
    run = Run(tmp_path, in_turn(names, 2, "count"))
    honest = run.carry_out()
    rows = RunFolder(tmp_path / "run").metrics()
    assert [row.round for row in rows] == [0, 1, 2, 3, 4]
    assert all(row.accuracy for row in rows if row.round != 2)
    assert [fake.most for fake in honest] == [ANSWERS] * len(HONEST)
    assert run.passed_over() == [2]
    assert run.gone() == names[: ANSWERS + 1]  # the others had no time to fail
    assert rows[2].accuracy is None
    assert {(failure.client, failure.kind) for failure in rows[2].failures} >= {(i, "spent") for i in range(3)}
    assert rows[2].uplink == rows[1].uplink  # nobody was asked
    assert json.loads((tmp_path / "run" / "network.json").read_text())["begun"] == 2  # for a coordinator started anew
    summary = RunFolder(tmp_path / "run").summary()
    assert summary is not None
    assert summary.missing_replies["spent"] == len(rows[2].failures)


def test_the_last_round_can_be_passed_over_too(tmp_path: Path) -> None:
    """The evaluation on everything asks otherwise than the curve, so its answers count apart."""
    run = Run(tmp_path, in_turn([f"x{i}" for i in range(4)], 4, "count"))
    run.carry_out()
    assert run.passed_over() == [4]
    assert RunFolder(tmp_path / "run").summary() is not None


def test_nodes_that_fail_together_cost_one_try(tmp_path: Path) -> None:
    names = [f"x{i:02d}" for i in range(12)]
    run = Run(tmp_path, {name: lambda call: (call.round, call.handler) == (2, "count") for name in names})
    honest = run.carry_out()
    assert run.gone() == names
    assert run.events()[-1]["attempts"] == 2
    assert max(fake.most for fake in honest) == 2


@pytest.mark.parametrize(("others", "passed"), [(0, []), (1, [2])])
def test_a_node_that_says_it_has_no_answers_left_ends_no_run(tmp_path: Path, others: int, passed: list[int]) -> None:
    """It has a round passed over at most for each that was lost in one, and is sent away in the next."""
    failing = in_turn(["x"] * others, 2, "count") | {"liar": lambda call: call.round >= 2 and call.attempt > others}
    run = Run(tmp_path, failing, "limit-calls")
    run.carry_out()
    assert run.passed_over() == passed
    assert run.gone() == ["x"] * others + ["liar"]
    assert all(row.accuracy for row in RunFolder(tmp_path / "run").metrics() if row.round not in passed)


def test_a_coordinator_that_says_nodes_were_lost_gets_no_more_answers(tmp_path: Path) -> None:
    """Attempt after attempt, before and after the node's process was started anew."""
    one = Coordinator(tmp_path, f"\n[limits]\nanswers = {ANSWERS}\n")
    failures: list[str | None] = []
    for step in range(2 * ANSWERS):
        message = Weights({key: tensor + 1e-3 * step for key, tensor in one.zeros.items()})
        failures += [one.failure("train", message), one.failure("train", message, index=0)]
        one.begin()
        if step == ANSWERS:
            one.node.close()
            one.start()
    one.node.close()
    assert failures[: 2 * ANSWERS].count(None) == ANSWERS
    assert {*failures[2 * ANSWERS :]} == {"limit-calls"}
