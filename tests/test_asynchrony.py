"""Deadlines and streams of replies: the virtual clock decides, and what it takes back is as if it had never been."""

from __future__ import annotations

import heapq
import math
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Int64
from torch import Tensor
from worlds import entries, everything_owned, federation, same_bits, weights_of

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.clock import NAMED, Devices
from interfuse.errors import ClientError, ConfigError
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import Message, State, flatten
from interfuse.method import Method
from interfuse.methods.fedbuff import FedBuff
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_async import IFLAsync
from interfuse.methods.ifl_partial import IFLPartial
from interfuse.server import Server
from interfuse.training import cross_entropy

SECONDS = Devices(step_seconds=1.0, uplink=math.inf, downlink=math.inf)
"""A step is a second, and bits are nothing."""


class Task(Message):
    steps: int


class Done(Message):
    steps: int
    runs: int


class Runs(State):
    count: Int64[Tensor, ""]


@dataclass(frozen=True)
class Trial(Method):
    """Clients that work for as many steps as they are told, or as their number and history say."""

    replies: int = 2

    def new_client(self, client: Client[Runs]) -> Runs:
        return Runs(torch.tensor(0))

    def round(self, server: Server, clients: Clients) -> None:
        for _ in islice(clients.stream(self.own_pace), self.replies):
            pass

    @on_client
    def work(self, client: Client[Runs], task: Task) -> Done:
        if task.steps < 0:
            raise ValueError("out of order")
        client.fit(cross_entropy, steps=task.steps, lr=0.1, batch_size=4, optimizer="adam", keep_optimizer="main")
        client.state = Runs(client.state.count + 1)
        return Done(task.steps, int(client.state.count))

    @on_client
    def own_pace(self, client: Client[Runs]) -> Done:
        return self.work(client, Task(pace(client.id, int(client.state.count))))


def pace(client: int, runs: int) -> int:
    """Steps of a client's next piece of work."""
    return [2, 7, 3, 5][client] + (runs * (client + 1)) % 3


WORKERS = [1, 2]


def trial(workers: int = 1, devices: Devices = SECONDS, **settings: Any) -> Federation:
    return federation(Trial(**settings), clients=4, workers=workers, devices=devices)


@pytest.fixture(params=WORKERS)
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def after(workers: int, spoilt: bool) -> tuple[dict[str, Tensor], float]:
    """What is owned when clients 1 and 3 were late, or were not asked, and all have worked again."""
    f = trial(workers)
    method: Any = f.method
    f.clients.call(method.work, Task(1))
    if spoilt:
        replies = f.clients.call(method.work, {0: Task(2), 1: Task(9), 2: Task(4), 3: Task(5)}, deadline=4.5)
        assert list(replies) == [0, 2]
    else:
        f.clients.call(method.work, {0: Task(2), 2: Task(4)})
    f.clients.call(method.work, Task(2))
    f.engine.end_round()
    owned = everything_owned(f)
    f.engine.close()
    return owned, f.exchange.clock.now


def test_a_late_client_is_put_back_to_where_it_was(workers: int) -> None:
    (spoilt, waited), (spared, _) = after(workers, True), after(workers, False)
    assert same_bits(spoilt, spared)
    assert int(spoilt["client-00001:state/count"]) == 2
    assert int(spoilt["client-00002:state/count"]) == 3
    assert waited == 1 + 4.5 + 2


def test_late_clients_are_named_and_what_they_sent_is_counted() -> None:
    f = trial()
    method: Any = f.method
    replies = f.clients.call(method.work, {0: Task(2), 1: Task(9), 2: Task(4), 3: Task(5)}, deadline=4.5)
    assert [(failure.client, failure.kind) for failure in replies.failures] == [(1, "late"), (3, "late")]
    assert replies.failures[0].reason == "late: 9.000 s, 4.500 s were given"
    assert list(replies.failures) == f.exchange.failures
    assert sorted((entry.client, entry.direction) for entry in entries(f)) == [
        (client, way) for client in range(4) for way in ("down", "up")
    ]
    assert f.exchange.steps.total() == 20


def test_nobody_waits_when_all_are_there() -> None:
    f = trial()
    method: Any = f.method
    assert len(f.clients.call(method.work, Task(3), deadline=100.0)) == 4
    assert f.exchange.clock.now == 3


@pytest.mark.parametrize(("minimum", "there", "ends"), [(1, [0], 2.5), (2, [0, 2], 4), (4, [0, 1, 2, 3], 9)])
def test_the_minimum_is_waited_for_beyond_the_deadline(minimum: int, there: list[int], ends: float) -> None:
    f = trial()
    method: Any = f.method
    tasks = {0: Task(2), 1: Task(9), 2: Task(4), 3: Task(5)}
    assert list(f.clients.call(method.work, tasks, deadline=2.5, minimum=minimum)) == there
    assert f.exchange.clock.now == ends


def test_who_is_away_all_the_time_is_not_called(workers: int) -> None:
    f = trial(workers, Devices(step_seconds=1.0, uplink=math.inf, downlink=math.inf, away=0.5, away_seconds=100.0))
    method: Any = f.method
    away = [client for client in range(4) if f.exchange.clock.is_away(client, 0)]
    assert len(away) == 2
    replies = f.clients.call(method.work, Task(3), deadline=5.0)
    assert set(replies) == set(range(4)) - set(away)
    assert [(failure.client, failure.kind) for failure in replies.failures] == [(c, "away") for c in away]
    assert {entry.client for entry in entries(f)} == set(replies)
    assert {entry.casting for entry in entries(f) if entry.direction == "down"} == {"broadcast"}
    assert f.exchange.clock.now == 5.0
    # without a deadline they are waited for: nobody of them can begin before 100 s
    assert len(f.clients.call(method.work, Task(3))) == 4
    assert f.exchange.clock.now >= 103
    f.engine.close()


def test_a_failure_within_a_deadline_is_a_failure() -> None:
    f = trial()
    method: Any = f.method
    replies = f.clients.call(method.work, {0: Task(1), 1: Task(-1)}, deadline=5.0)
    assert list(replies) == [0]
    assert [(failure.client, failure.kind) for failure in replies.failures] == [(1, "failed")]
    with pytest.raises(ClientError, match=r"client 1 failed in work.*0 clients replied, at least 1 are needed"):
        f.clients.call(method.work, {1: Task(-1)}, deadline=5.0)
    with pytest.raises(ConfigError, match="deadline = 0"):
        f.clients.call(method.work, Task(1), deadline=0)


def by_hand(replies: int) -> list[tuple[int, int, int]]:
    """Who replies when after how many runs, from a queue of events."""
    queue = [(pace(client, 0), client, 1) for client in range(4)]
    heapq.heapify(queue)
    found = []
    while len(found) < replies:
        moment, client, runs = heapq.heappop(queue)
        found.append((client, moment, runs))
        heapq.heappush(queue, (moment + pace(client, runs), client, runs + 1))
    return found


def test_a_stream_is_the_queue_of_events_by_hand(workers: int) -> None:
    f = trial(workers)
    method: Any = f.method
    found = [(a.client, a.seconds, a.reply.runs) for a in islice(f.clients.stream(method.own_pace), 25)]
    assert found == by_hand(25)
    f.engine.close()


def test_what_is_outstanding_comes_in_a_later_round_also_after_a_resume(workers: int) -> None:
    f, again = trial(workers), trial(3 - workers)
    for _ in range(4):
        f.run_round()
    assert len(f.exchange.outstanding) == 3
    with tempfile.TemporaryDirectory() as folder:
        again.load(Path(folder), 4, f.save(Path(folder)))
    for one in (f, again):
        one.run_round()
    assert f.exchange.clock.times == again.exchange.clock.times
    assert [(a.client, a.seconds) for a in streamed(f)] == [(a.client, a.seconds) for a in streamed(again)]
    assert same_bits(everything_owned(f), everything_owned(again))
    assert [(a.client, a.seconds, a.reply.runs) for a in streamed(f)] == by_hand(20)[15:]
    f.engine.close()
    again.engine.close()


def streamed(f: Federation) -> list[Any]:
    method: Any = f.method
    return list(islice(f.clients.stream(method.own_pace), 5))


def test_a_reply_says_in_which_round_its_work_was_given_out() -> None:
    f = trial()
    f.round = 3
    f._enter(3, "training")
    streamed(f)
    f._enter(4, "training")
    found = streamed(f)
    assert {arrival.round for arrival in found} == {3, 4}
    first = {client: next(a.round for a in found if a.client == client) for client in {a.client for a in found}}
    assert sum(round == 3 for round in first.values()) >= 2


def test_the_message_is_made_when_the_client_is_sent_to_work() -> None:
    f = trial()
    method: Any = f.method
    sent: list[tuple[int, int]] = []
    arrived = 0

    def task(client: int) -> Task:
        sent.append((client, arrived))
        return Task(client + 1)

    for _ in islice(f.clients.only([0, 1]).stream(method.work, task), 4):
        arrived += 1
    # client 0 takes a second, client 1 two; of the two that reply at second 2, the smaller number comes first
    assert sent == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 3)]


def test_a_client_that_fails_ends_a_stream() -> None:
    f = trial()
    method: Any = f.method
    with pytest.raises(ClientError, match="client 0 failed in work, round 0: ValueError: out of order"):
        next(f.clients.stream(method.work, Task(-1)))


def test_a_client_that_has_work_on_its_hands_begins_later() -> None:
    f = trial()
    method: Any = f.method
    next(f.clients.stream(method.own_pace))  # client 0 after 2 s; client 1 goes on until 7
    f.clients.only([1]).call(method.work, Task(1))
    assert f.exchange.clock.now == 8


def test_evaluation_takes_no_time() -> None:
    f = trial()
    method: Any = f.method
    with f.evaluating() as clients:
        clients.call(method.work, Task(0), deadline=1.0)
    assert f.exchange.clock.now == 0.0


# --- half of the clients slower, a fifth away

FAST: dict[str, Any] = {"local_steps": 2, "batch_size": 4}
FORMS: dict[str, Method] = {
    "synchronous": IFL(**FAST), "deadline": IFLPartial(deadline=0.08, **FAST), "asynchronous": IFLAsync(**FAST),
    "asynchronous averages": FedBuff(replies=2, **FAST),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_with_stragglers_a_repetition_has_equal_bits_times_and_failures(form: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clients": 5, "devices": replace(NAMED["stragglers"], away_seconds=0.2)}
    once, again = (federation(FORMS[form], rounds=6, workers=workers, **settings) for workers in (1, 2))
    resumed, begun = (federation(FORMS[form], rounds=rounds, **settings) for rounds in (0, 3))
    resumed.load(tmp_path, 3, begun.save(tmp_path))
    for _ in range(3):
        resumed.run_round()
    failures = [*begun.exchange.failures, *resumed.exchange.failures]
    assert {failure.kind for failure in failures} == ({"late", "away"} if form == "deadline" else set())
    assert once.exchange.failures == again.exchange.failures == failures
    assert once.exchange.clock.times == again.exchange.clock.times == resumed.exchange.clock.times
    if once.server.state is not None:
        assert same_bits(flatten(once.server.state), flatten(resumed.server.state))
    for client in once.clients if once.method.keeps() else ():
        assert same_bits(weights_of(once, client), weights_of(resumed, client))
    assert entries(once) == entries(again) == [*entries(begun), *entries(resumed)]
    assert same_bits(everything_owned(once), everything_owned(again))
    again.engine.close()
