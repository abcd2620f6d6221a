"""``clients.call`` on both engines: order, failures and their consequences, broadcast, scratch, sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from worlds import (
    Recorder,
    entries,
    everything_owned,
    federation,
    in_process,
    live_model,
    resident,
    same_bits,
    tiny_dataset,
    weights_of,
)

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client
from interfuse.clients import Clients, Replies
from interfuse.errors import ClientError, ConfigError, MessageError
from interfuse.families.holdings import held, initial_weights
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import ClassCounts, Features, Labels, Logits, Message, Parameters, State, Weights
from interfuse.method import BUFFERS, NOTHING, Method
from interfuse.methods import find
from interfuse.models import SplitModel, pair
from interfuse.server import Server
from interfuse.training import cross_entropy


class Number(Message):
    value: int


class Twin(Message):
    value: int


class Counts(Message):
    counts: ClassCounts


class Wide(Message):
    z: Features
    y: Labels


class Named(Message):
    tensors: Parameters


class ByClient(Message):
    counts: dict[int, ClassCounts]


class Scores(Message):
    scores: Logits


class Seen(State):
    calls: Int64[Tensor, ""]


@dataclass(frozen=True)
class Trial(Method):
    """Handlers that go right and wrong on request."""

    troubled: int = 3

    def new_client(self, client: Client[Seen]) -> Seen:
        return Seen(torch.tensor(0))

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.work, Number(1))

    @on_client
    def work(self, client: Client[Seen], task: Number) -> Number:
        """Train, count, and then fail at the troubled client where the task is below 0."""
        client.fit(cross_entropy, steps=2, lr=0.1, batch_size=4, optimizer="adam", keep_optimizer="main")
        client.state = Seen(client.state.calls + 1)
        if task.value < 0 and client.id >= self.troubled:
            raise ValueError("the disk of this party is full")
        return Number(client.id * 10 + task.value)

    @on_client
    def silent(self, client: Client[Seen]) -> None:
        return None

    @on_client
    def draws(self, client: Client[Seen]) -> Counts:
        return Counts(torch.cat([torch.rand(2, generator=client.generator), torch.rand(1)]))

    @on_client
    def in_place(self, client: Client[Seen], received: Counts) -> None:
        received.counts.add_(1)

    @on_client
    def wrong_type(self, client: Client[Seen]) -> Number:
        return Counts(torch.zeros(3))  # type: ignore[return-value]

    @on_client
    def twin_type(self, client: Client[Seen]) -> Number:
        return Twin(1)  # type: ignore[return-value]

    @on_client
    def talkative(self, client: Client[Seen]) -> None:
        return Number(1)  # type: ignore[return-value]

    @on_client
    def tongue_tied(self, client: Client[Seen]) -> Number:
        return None  # type: ignore[return-value]

    @on_client
    def wrong_shape(self, client: Client[Seen]) -> Counts:
        return Counts(torch.zeros(4 if client.id == 3 else 3))

    @on_client
    def not_finite(self, client: Client[Seen]) -> Wide:
        return Wide(torch.full((2, 8), torch.nan if client.id == 3 else 1.0), torch.zeros(2, dtype=torch.int64))

    @on_client
    def wrong_key(self, client: Client[Seen]) -> Named:
        return Named({"classifier.weight" if client.id != 3 else "mine": torch.zeros(3, 8)})

    @on_client
    def listed(self, client: Client[Seen]) -> Wide:
        return Wide([1.0], torch.zeros(1))  # type: ignore[arg-type]


WORKERS = [1, 2]


@pytest.fixture(params=WORKERS)
def trial(request: pytest.FixtureRequest) -> Iterator[Federation]:
    f = federation(Trial(), clients=5, workers=request.param)
    yield f
    f.engine.close()


def method(f: Federation) -> Any:
    return f.method


def test_replies_come_by_client_in_order(trial: Federation) -> None:
    replies = trial.clients.call(method(trial).work, {4: Number(4), 0: Number(7), 2: Number(5)})
    assert list(replies) == [0, 2, 4]
    assert [reply.value for reply in replies.values()] == [7, 25, 44]
    assert replies.failures == ()
    assert list(Replies({3: None, 1: None, 2: None})) == [1, 2, 3]


def test_one_message_each_reaches_its_client_and_replies_go_straight_back(trial: Federation) -> None:
    first = trial.clients.call(method(trial).work, {c: Number(100 * c) for c in trial.clients})
    second = trial.clients.call(method(trial).work, first)
    assert [reply.value for reply in second.values()] == [120 * c for c in trial.clients]


def test_a_handler_without_message_or_reply(trial: Federation) -> None:
    assert dict(trial.clients.call(method(trial).silent)) == dict.fromkeys(range(5))
    assert entries(trial) == []


def test_a_failing_client_is_named_with_handler_and_round(trial: Federation) -> None:
    trial.run_round()
    trial.run_round()
    with pytest.raises(ClientError) as caught:
        trial.clients.call(method(trial).work, Number(-1))
    text = str(caught.value)
    assert text.startswith("client 3 failed in work, round 2: ValueError: the disk of this party is full")
    assert "test_clients.py, line" in text
    assert [failure.client for failure in trial.exchange.failures] == [3, 4]


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("wrong_type", "field reply: expected Number, found Counts"),
        ("twin_type", "field reply: expected Number, found Twin"),
        ("talkative", "field reply: expected None, found Number"),
        ("tongue_tied", "field reply: expected Number, found NoneType"),
        ("wrong_shape", "message Counts, field counts: expected classes = 3, found shape (4,)"),
        ("not_finite", "message Wide, field z: expected finite values, found 16 of 16 are NaN or infinite"),
        ("wrong_key", "field tensors/mine: expected a key of the client's model"),
        ("listed", "field z: expected a tensor, found list"),
    ],
)
def test_a_reply_that_breaks_its_declaration_is_its_clients_failure(trial: Federation, handler: str, said: str) -> None:
    with pytest.raises(ClientError) as caught:
        trial.clients.call(getattr(trial.method, handler))
    everybody = handler not in ("wrong_shape", "not_finite", "wrong_key")
    assert str(caught.value).startswith(f"client {0 if everybody else 3} failed in {handler}, round 0")
    assert said in str(caught.value)
    if not everybody:
        replies = trial.clients.call(getattr(trial.method, handler), minimum=4)
        assert list(replies) == [0, 1, 2, 4]


def test_changing_a_received_message_is_noticed(trial: Federation) -> None:
    with pytest.raises(ClientError, match="client 0 failed in in_place.*changed the message's tensor counts in place"):
        trial.clients.call(method(trial).in_place, Counts(torch.zeros(3)))


@pytest.mark.parametrize("minimum", [1, 3])
def test_enough_replies_go_on_without_those_who_failed(trial: Federation, minimum: int) -> None:
    replies = trial.clients.call(method(trial).work, Number(-1), minimum=minimum)
    assert list(replies) == [0, 1, 2]
    assert [(failure.client, "disk" in failure.reason) for failure in replies.failures] == [(3, True), (4, True)]


def test_too_few_replies_say_so(trial: Federation) -> None:
    with pytest.raises(ClientError, match=r"client 3 .*\(3 clients replied, at least 4 are needed\)"):
        trial.clients.call(method(trial).work, Number(-1), minimum=4)


def after_trouble(workers: int, rounds: int, made: bool, troubled: bool) -> list[dict[str, Tensor]]:
    """What is owned after a call that clients 3 and 4 failed in, or were not asked to, and a round later."""
    f = federation(Trial(), clients=5, workers=workers, rounds=rounds)
    if made:
        f.clients.call(method(f).silent)
    if troubled:
        f.clients.call(method(f).work, Number(-1), minimum=1)
    else:
        f.clients.call(method(f).work, {client: Number(1) for client in range(3)})
    f.engine.end_round()
    found = [everything_owned(f)] if made else []
    f.run_round()
    found.append(everything_owned(f))
    f.engine.close()
    return found


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("rounds", "made"), [(0, True), (2, True), (0, False)])
def test_a_client_that_failed_is_put_back_to_where_it_was(workers: int, rounds: int, made: bool) -> None:
    failed, spared = (after_trouble(workers, rounds, made, troubled) for troubled in (True, False))
    for mine, others in zip(failed, spared, strict=True):
        assert mine
        assert same_bits(mine, others)
    if made:
        assert int(failed[0]["client-00003:state/calls"]) == rounds
        assert int(failed[0]["client-00002:state/calls"]) == rounds + 1
        assert any("optimizers/main" in key for key in failed[0])


def test_calls_of_strangers_and_wrong_messages_are_refused_before_they_leave(trial: Federation) -> None:
    work = method(trial).work
    with pytest.raises(MessageError, match=r"field clients: expected some of \[0, 1, 2, 3, 4\], found \[9\]"):
        trial.clients.call(work, {9: Number(1)})
    with pytest.raises(MessageError, match="expected Number, found NoneType"):
        trial.clients.call(work)
    with pytest.raises(MessageError, match="expected no message, found Number"):
        trial.clients.call(method(trial).silent, Number(1))
    with pytest.raises(MessageError, match="field to client 0: expected Number, found Counts"):
        trial.clients.call(work, Counts(torch.zeros(3)))
    with pytest.raises(MessageError, match="field counts: expected classes = 3"):
        trial.clients.call(method(trial).in_place, Counts(torch.zeros(5)))
    with pytest.raises(ConfigError, match="Trial is not part of this run's method"):
        trial.clients.call(Trial().silent)
    with pytest.raises(ConfigError, match=r"clients \[7\] are not among \[0, 1\]"):
        trial.clients.only([0, 1]).only([7])
    assert entries(trial) == []


def test_one_object_for_all_is_one_broadcast() -> None:
    f = federation(Trial(), clients=4, wrap=Recorder)
    f.clients.call(method(f).work, Number(1))
    f.clients.call(method(f).work, {c: Number(1) for c in f.clients})
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    received = [message for _, _, message in recorder.down]
    assert len({id(message) for message in received[:4]}) == 1  # engines rely on identity
    assert len({id(message) for message in received[4:]}) == 4
    casts = [(entry.call, entry.casting) for entry in entries(f) if entry.direction == "down"]
    assert casts == [(1, "broadcast")] * 4 + [(2, "unicast")] * 4
    totals = f.exchange.ledger.totals("start")
    assert (totals.downlink.raw, totals.downlink_broadcast.raw) == (8 * 8, 8 + 4 * 8)


def test_what_the_server_does_with_its_message_later_reaches_nobody() -> None:
    f = federation(Trial(), wrap=Recorder)
    mine = torch.zeros(3)
    with pytest.raises(ClientError):
        f.clients.call(method(f).in_place, Counts(mine))
    assert torch.equal(mine, torch.zeros(3))


def test_draws_depend_on_client_round_call_and_handler_alone() -> None:
    def drawn(workers: int, order: list[list[int]]) -> dict[tuple[int, int, int], tuple[float, ...]]:
        f = federation(Trial(), clients=3, workers=workers)
        found = {}
        for round in (1, 2):
            f._enter(round, "training")
            for index in (0, 1):
                for clients in order:
                    f.exchange.handler_calls["method", "draws"] = index
                    for client, reply in f.clients.only(clients).call(method(f).draws).items():
                        found[round, index, client] = tuple(reply.counts.tolist())
                f.clients.call(method(f).silent)
        f.engine.close()
        return found

    one = drawn(1, [[0, 1, 2]])
    assert one == drawn(1, [[2], [0], [1]]) == drawn(2, [[0, 1, 2]])
    assert len(set(one.values())) == len(one)
    assert len({value for values in one.values() for value in values}) == 3 * len(one)


def test_samples_are_a_function_of_seed_and_round() -> None:
    f, again = (federation(Trial(), clients=10, seed=1) for _ in range(2))
    other = federation(Trial(), clients=10, seed=2)

    def drawn(f: Federation, fraction: float) -> list[tuple[int, ...]]:
        found = []
        for round in range(1, 7):
            f._enter(round, "training")
            found.append(f.clients.sample(fraction).ids)
        return found

    assert drawn(f, 0.3) == drawn(again, 0.3)
    assert drawn(f, 0.3) != drawn(other, 0.3)
    assert len(set(drawn(f, 0.3))) > 3
    for ids in drawn(f, 0.3):
        assert len(ids) == 3
        assert list(ids) == sorted(set(ids))
    assert {len(ids) for ids in drawn(f, 0.01)} == {1}
    assert set(drawn(f, 1.0)) == {tuple(range(10))}
    for impossible in (0.0, -0.1, 1.1):
        with pytest.raises(ConfigError, match="participation is a fraction"):
            f.clients.sample(impossible)


@dataclass(frozen=True)
class Curious(Trial):
    """Draws samples, replaces its state and keeps an optimizer while it is evaluated."""

    def deployed(self, server: Server, clients: Clients) -> Weights:
        return Weights({})

    @on_client
    def deploy(self, client: Client[Seen], message: Weights) -> None:
        client.batch(3)
        client.state = Seen(client.state.calls + 100)
        assert client.optimizers == {}
        client.optimizers["extra"] = {"key": {"slot": torch.zeros(1)}}


@pytest.mark.parametrize("workers", WORKERS)
def test_what_is_done_under_evaluation_leaves_no_trace(workers: int) -> None:
    def owned(evaluated: bool) -> dict[str, Tensor]:
        f = federation(Curious(), workers=workers, rounds=1)
        if evaluated:
            with f.evaluating():
                pass
        f.run_round()
        found = everything_owned(f)
        f.engine.close()
        return found

    assert same_bits(owned(True), owned(False))


@dataclass(frozen=True)
class OwnStatistics(Method):
    """Clients keep their normalisation statistics; one of them fails after they have moved."""

    def keeps(self) -> frozenset[str]:
        return frozenset({BUFFERS})

    def round(self, server: Server, clients: Clients) -> None:
        weights = held(initial_weights(server, clients, BufferPolicy.LOCAL), clients)
        clients.call(self.train, weights, minimum=1)

    @on_client
    def train(self, client: Client, received: Weights) -> None:
        client.model.load(received.tensors)
        client.fit(cross_entropy, steps=2, lr=0.1, batch_size=8)
        if client.id == 1 and client.round == 2:
            raise ValueError("out of memory")


@pytest.mark.parametrize("rounds", [1, 2])
def test_statistics_of_a_client_that_failed_are_put_back(rounds: int) -> None:
    images: dict[str, Any] = {"models": ["cnn-bn"], "dataset": tiny_dataset(shape=(1, 6, 6)), "rounds": rounds}

    def of_client_1(f: Federation) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in everything_owned(f).items() if key.startswith("client-00001")}

    f = federation(OwnStatistics(), **images)
    if rounds == 2:
        assert [failure.client for failure in f.exchange.failures] == [1]
        assert same_bits(of_client_1(f), of_client_1(federation(OwnStatistics(), **{**images, "rounds": 1})))
    else:
        assert not same_bits(of_client_1(f), of_client_1(federation(OwnStatistics(), **{**images, "rounds": 0})))


# --- scratch --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgetful(Method):
    """FedAvg that loads what it received in the first round only."""

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train, held(initial_weights(server, clients), clients))

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        if client.round == 1:
            client.model.load(received.tensors)
        client.fit(cross_entropy, steps=1, lr=0.1)
        return Weights(client.tensors())


@dataclass(frozen=True)
class HalfForgetful(Forgetful):
    """Keeps the modular block, and forgets to load the base block."""

    def keeps(self) -> frozenset[str]:
        return frozenset({"modular"})

    @on_client
    def nothing(self, client: Client) -> None:
        """Only have the model put in place."""


@dataclass(frozen=True)
class ForgetfulServer(Method):
    """Trains a scratch model of the server without loading it."""

    def round(self, server: Server, clients: Clients) -> None:
        model = server.scratch_model("tail", clients.profiles[0].architecture)
        if server.round == 1:
            model.load({key: torch.zeros_like(t) for key, t in model.tensors().items()})
        assert all(t.isfinite().all() for t in model.tensors().values())


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", [Forgetful, HalfForgetful])
def test_scratch_that_was_not_loaded_is_nan_and_training_it_names_the_client(kind: Any, workers: int) -> None:
    f = federation(kind(), rounds=1, workers=workers)
    with pytest.raises(ClientError, match=r"client 0 failed in train, round 2: training diverged"):
        f.run_round()
    f.engine.close()


def test_what_a_client_keeps_is_there_and_the_rest_is_nan() -> None:
    f = federation(HalfForgetful(), rounds=1)
    modular = weights_of(f, 1, "modular")
    f._enter(2, "training")
    f.clients.call(method(f).nothing)
    model = live_model(f, 1)
    assert same_bits(modular, model.tensors("modular"))
    assert all(t.isnan().all() for t in model.tensors("base").values())


def test_scratch_of_the_server_is_nan_in_every_round() -> None:
    f = federation(ForgetfulServer(), rounds=1)
    with pytest.raises(AssertionError):
        f.run_round()


def test_models_are_lent_to_clients_that_keep_nothing() -> None:
    f = federation("fedavg", clients=6, dataset=tiny_dataset(rows=90), rounds=3)
    host = in_process(f)._host
    lent = {id(host._residents[client].client.networks["model"].module) for client in f.clients} - {id(None)}
    assert len(lent | {id(module) for free in host._free.values() for module in free}) == 1
    assert not [key for key in everything_owned(f) if key.startswith("client") and ":model" in key]


# --- messages are private, scalars are checked ----------------------------------------------------


class Cells(Message):
    cells: tuple[ByClient, ...]


class Figures(Message):
    count: int
    rate: float
    last: bool


class More(Number):
    extra: int


BAD_FIGURES: list[tuple[str, Any]] = [
    ("count", 2.5),
    ("count", 2**63),
    ("count", 2**70),
    ("count", -(2**63) - 1),
    ("count", True),
    ("count", np.float64(2)),
    ("count", torch.tensor(1)),
    ("rate", math.nan),
    ("rate", -math.inf),
    ("rate", np.float32("nan")),
    ("rate", torch.tensor(1.0)),
    ("rate", "1.0"),
    ("last", 1),
]


@dataclass(frozen=True)
class Careless(Method):
    """Handlers that use what they received in ways of their own; 3 is the troubled client."""

    @on_client
    def slope(self, client: Client, received: Counts) -> Counts:
        received.counts.requires_grad_().square().sum().backward()
        assert received.counts.grad is not None
        return Counts(received.counts.grad)

    @on_client
    def wipe(self, client: Client, received: Counts) -> Counts:
        seen = received.counts.clone()
        if client.id == 1:
            received.counts.zero_()
        return Counts(seen)

    @on_client
    def figures(self, client: Client, case: Number) -> Figures:
        good: dict[str, Any] = {"count": np.int64(client.id), "rate": np.float32(0.5), "last": True}
        if client.id == 3 and case.value >= 0:
            name, value = BAD_FIGURES[case.value]
            good[name] = value
        return Figures(**good)

    @on_client
    def more(self, client: Client) -> Number:
        return More(1, 2) if client.id == 3 else Number(client.id)

    @on_client
    def mirror(self, client: Client, received: Cells) -> Cells:
        return received


@pytest.fixture(params=[1, 2, 3])
def careless(request: pytest.FixtureRequest) -> Iterator[Federation]:
    f = federation(Careless(), clients=4, workers=request.param)
    yield f
    f.engine.close()


def test_clients_of_one_broadcast_share_no_gradient(careless: Federation) -> None:
    replies = careless.clients.call(method(careless).slope, Counts(torch.tensor([1.0, 2.0, 3.0])))
    assert [reply.counts.tolist() for reply in replies.values()] == [[2.0, 4.0, 6.0]] * 4


def test_a_client_that_writes_into_a_broadcast_fails_alone(careless: Federation) -> None:
    sent = Counts(torch.tensor([1.0, 2.0, 3.0]))
    replies = careless.clients.call(method(careless).wipe, sent, minimum=1)
    assert {c: reply.counts.tolist() for c, reply in replies.items()} == {c: [1.0, 2.0, 3.0] for c in (0, 2, 3)}
    (failure,) = replies.failures
    assert failure.client == 1
    assert "changed the message's tensor counts in place" in failure.reason
    assert sent.counts.tolist() == [1.0, 2.0, 3.0]


def test_scalars_that_are_not_what_they_say_are_their_clients_failure(careless: Federation) -> None:
    figures = method(careless).figures
    for case, (name, value) in enumerate(BAD_FIGURES):
        replies = careless.clients.call(figures, Number(case), minimum=3)
        assert list(replies) == [0, 1, 2], (name, value)
        assert f"message Figures, field {name}: expected " in replies.failures[0].reason
        with pytest.raises(ClientError, match=f"client 3 failed in figures.*field {name}"):
            careless.clients.call(figures, Number(case))
    good = careless.clients.call(figures, Number(-1))
    assert [(reply.count, reply.rate, reply.last) for reply in good.values()] == [(c, 0.5, True) for c in range(4)]
    assert {(type(reply.count), type(reply.rate)) for reply in good.values()} == {(int, float)}


def test_scalars_of_the_server_are_checked_before_they_leave(careless: Federation) -> None:
    figures = method(careless).figures
    for value in (2.5, 2**70, True, torch.tensor(1), math.nan):
        with pytest.raises(MessageError, match="message Number, field value: expected a whole number of 64 bits"):
            careless.clients.call(figures, Number(value))  # type: ignore[arg-type]
    assert len(careless.clients.call(figures, Number(np.int16(-1)))) == 4  # type: ignore[arg-type]


def test_a_reply_that_says_more_than_declared_is_refused_and_spoils_no_other(careless: Federation) -> None:
    more = method(careless).more
    replies = careless.clients.call(more, minimum=3)
    assert {c: type(reply) for c, reply in replies.items()} == {0: Number, 1: Number, 2: Number}
    assert "field reply: expected Number, found More" in replies.failures[0].reason
    with pytest.raises(ClientError, match="client 3 failed in more.*expected Number, found More"):
        careless.clients.call(more)
    assert len(careless.clients.call(method(careless).figures, Number(-1))) == 4


def test_more_than_declared_does_not_go_down_either(careless: Federation) -> None:
    with pytest.raises(MessageError, match="expected Number, found More"):
        careless.clients.call(method(careless).figures, More(1, 2))


def test_items_without_a_tensor_keep_their_place(careless: Federation) -> None:
    one = {7: torch.arange(3.0)}
    sent = Cells((ByClient({}), ByClient(one), ByClient({}), ByClient({})))
    for reply in careless.clients.call(method(careless).mirror, sent).values():
        assert [list(item.counts) for item in reply.cells] == [[], [7], [], []]
        assert reply.cells[1].counts[7].tolist() == [0.0, 1.0, 2.0]
    assert {entry.raw for entry in entries(careless)} == {12}


def test_more_replies_than_clients_can_give_are_too_few(trial: Federation) -> None:
    with pytest.raises(ClientError, match=r"too few clients were called in work.*\(1 clients replied, at least 3"):
        trial.clients.only([0]).call(method(trial).work, Number(1), minimum=3)
    assert len(trial.clients.only([0]).call(method(trial).work, Number(1), minimum=1)) == 1


# --- numbers of clients, draws --------------------------------------------------------------------


def test_numbers_of_clients_may_come_from_numpy(trial: Federation) -> None:
    def draws(ids: Any) -> list[list[float]]:
        trial._enter(1, "training")
        chosen = trial.clients.only(ids)
        assert [type(client) for client in chosen.ids] == [int, int]
        return [reply.counts.tolist() for reply in chosen.call(method(trial).draws).values()]

    assert draws(np.array([0, 2])) == draws([0, 2]) == draws(torch.tensor([0, 2]))
    replies = trial.clients.call(method(trial).work, {c: Number(int(c)) for c in np.array([4, 2])})
    assert {client: reply.value for client, reply in replies.items()} == {2: 22, 4: 44}
    assert {type(client) for client in replies} == {int}
    assert {entry.client for entry in entries(trial) if entry.heading == "training"} <= set(range(5))


def test_two_samples_of_a_round_differ_and_each_is_a_function_of_its_place() -> None:
    f, again = (federation(Trial(), clients=12, seed=3) for _ in range(2))

    def drawn(f: Federation, round: int) -> list[tuple[int, ...]]:
        f._enter(round, "training")
        return [f.clients.sample(0.5).ids for _ in range(4)]

    found = [drawn(f, round) for round in (1, 2)]
    assert len({ids for of_round in found for ids in of_round}) == 8
    assert drawn(again, 2) == found[1]
    assert drawn(again, 1) == found[0]


# --- states ---------------------------------------------------------------------------------------


class Best(State):
    score: float
    counts: Float32[Tensor, "classes"]


class Other(State):
    score: float


@dataclass(frozen=True)
class Scoring(Method):
    """The server's state is changed in place, against the rules; those of clients begin with infinity."""

    def start(self, server: Server, clients: Clients) -> Best:
        return Best(-math.inf, torch.zeros(3))

    def new_client(self, client: Client[Best]) -> Best:
        return Best(math.inf, torch.ones(3))

    def round(self, server: Server[Any], clients: Clients) -> None:
        clients.call(self.nothing)
        server.state.counts.add_(1)

    @on_client
    def nothing(self, client: Client) -> None: ...

    @on_client
    def swap(self, client: Client[Any]) -> None:
        client.state = Other(1.0)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_state_may_hold_infinity_and_what_changed_in_place_is_committed(workers: int, tmp_path: Path) -> None:
    f = federation(Scoring(), workers=workers, rounds=1)
    f.save(tmp_path)
    f.run_round()
    second = f.save(tmp_path)
    f.engine.close()
    again = federation(Scoring(), workers=workers, rounds=1)
    again.load(tmp_path, 2, second)
    assert (again.server.state.score, again.server.state.counts.tolist()) == (-math.inf, [2.0] * 3)
    again.run_round()
    assert everything_owned(again)["client-00001:state/score"].item() == math.inf
    assert again.server.state.counts.tolist() == [3.0] * 3
    again.engine.close()


@pytest.mark.parametrize("workers", WORKERS)
def test_a_state_of_another_type_is_named(workers: int) -> None:
    f = federation(Scoring(), workers=workers)
    told = r"the state is of type Other, but Scoring.new_client is annotated to say that it returns Best.*-> Other"
    with pytest.raises(ClientError, match=f"client 0 failed in swap.*{told}"):
        f.clients.call(method(f).swap)
    f.engine.close()


class Unannotated(Trial):
    def start(self, server: Server, clients: Clients):  # type: ignore[no-untyped-def]
        return Best(0.0, torch.zeros(3))


class UnannotatedClient(Trial):
    def new_client(self, client: Client):  # type: ignore[no-untyped-def]
        return Seen(torch.tensor(0))


class PutInPlace(Trial):
    def round(self, server: Server[Any], clients: Clients) -> None:
        server.state = Best(0.0, torch.zeros(3))


class Wrong(Trial):
    def start(self, server: Server, clients: Clients) -> Best:
        return Other(0.0)  # type: ignore[return-value]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        (Unannotated, ConfigError, "type Best, but Unannotated.start is annotated to say that it returns no state"),
        (UnannotatedClient, ClientError, "type Seen, but UnannotatedClient.new_client is annotated.* returns no state"),
        (PutInPlace, ConfigError, "type Best, but Method.start is annotated to say that it returns no state"),
        (Wrong, ConfigError, "type Other, but Wrong.start is annotated to say that it returns Best"),
    ],
)
def test_a_state_without_its_annotation_is_refused(kind: Any, error: Any, told: str, workers: int) -> None:
    f = federation(kind(), workers=workers, start=False)
    with pytest.raises(error, match=f"{told}.*annotated: -> "):
        f.start()
        f.run_round()
    f.engine.close()


@dataclass(frozen=True)
class OwnBase(Method):
    """Clients keep the base block. The modular block comes anew each round, without its statistics."""

    def keeps(self) -> frozenset[str]:
        return frozenset({"base"})

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train, held(initial_weights(server, clients, BufferPolicy.LOCAL, ["modular"]), clients))

    @on_client
    def train(self, client: Client, received: Weights) -> Scores:
        client.model.load(received.tensors)
        with client.model.evaluating():
            scores = client.model(client.batch(6).x)
        client.fit(cross_entropy, steps=2, lr=0.1, batch_size=8)
        return Scores(scores)


def normalised(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Normalisation in both blocks."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), width), nn.BatchNorm1d(width))
    return pair(base, nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)))


def test_statistics_a_client_does_not_keep_begin_anew_and_those_it_keeps_come_back_whole(tmp_path: Path) -> None:
    def scores(f: Federation) -> dict[str, Tensor]:
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        recorder.up.clear()
        f.run_round()
        return {f"{request.round} {client}": reply.scores for request, client, reply in recorder.up}  # type: ignore[attr-defined]

    settings: dict[str, Any] = {"models": [normalised], "rounds": 2, "wrap": Recorder}
    f, again = federation(OwnBase(), **settings), federation(OwnBase(), **{**settings, "rounds": 0})
    again.load(tmp_path, 2, f.save(tmp_path))
    kept = resident(again, 1).networks["model"].kept()
    counters = {key: int(t) for key, t in kept.items() if not t.is_floating_point()}
    assert list(counters.values()) == [4]
    assert same_bits(scores(again), scores(f))
    owned = everything_owned(f)
    assert any(key.endswith("num_batches_tracked") for key in owned)
    assert not [key for key in owned if "modular" in key]


class Unsaved(nn.Module):
    """A table that PyTorch does not save: it is made with the module, and part of no message."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


def with_a_table(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    base = nn.Sequential(nn.Flatten(), Unsaved(), nn.Linear(math.prod(sample_shape), width), nn.ReLU())
    return pair(base, nn.Sequential(nn.Linear(width, classes)))


@pytest.mark.parametrize("buffers", ["aggregate", "local"])
def test_a_buffer_that_is_not_saved_is_no_obstacle(buffers: str) -> None:
    f = federation(find("fedavg").configure({"buffers": buffers, "lr": 0.1}), models=[with_a_table], rounds=2)
    assert not [key for key in f.server.state.weights if "table" in key]
    assert all(t.isfinite().all() for t in f.server.state.weights.values())
