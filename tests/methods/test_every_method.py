"""What holds for every built-in method, those of later too: bytes, disclosure, determinism, hard shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import (
    Backwards,
    Recorder,
    alone,
    dataset_of,
    entries,
    everything_owned,
    fitting,
    in_process,
    resident,
    same_bits,
    shares_of,
    tiny,
    tiny_dataset,
    wide,
)
from worlds import federation as any_federation

from interfuse.client import ClientId
from interfuse.clients import Answer, Failure, Request
from interfuse.clock import Devices
from interfuse.data import Dataset, Dirichlet, load
from interfuse.errors import ClientError
from interfuse.evaluation import ACROSS_TASKS, compose, draw, evaluate, measure
from interfuse.families.adapters import AdapterTraining
from interfuse.families.memes import MemeLearning
from interfuse.families.prototypes import PrototypeLearning
from interfuse.families.replay import Replaying
from interfuse.federation import Federation
from interfuse.handler import handlers
from interfuse.messages import Disclosure, Message, State, disclosed, flatten, leaves
from interfuse.messages.encoding import decode, encode
from interfuse.method import RETAINABLE, Method, check_declaration, disclosures_of, retained, settings
from interfuse.methods import built_in
from interfuse.models import SplitModel, pair
from interfuse.wire import Entry, Volume

BLOCKS = ("base", "modular")
EVERY = sorted(built_in())
every_method = pytest.mark.parametrize("name", EVERY)


OTHERWISE: dict[str, list[dict[str, Any]]] = {"ifl-capped": [{"downlink": "mixed", "downlink_rows": 6}]}
"""Settings with which a method sends what it otherwise does not."""


OF_ONE_SIZE: dict[str, dict[str, Any]] = {"fedkd": {"energy_start": 1.0, "energy_end": 1.0}}
"""Settings of methods whose messages are as large as the values want them, with which they are not."""


def federation(method: Method, **settings: Any) -> Federation:
    """A federation whose models have the parts that the method asks for."""
    return any_federation(method, models=fitting(method, settings.pop("models", ["logistic"])), **settings)


def uneven() -> dict[str, Any]:
    """Clients of 9, 17 and 34 rows."""
    return {"models": [wide], "shares": shares_of(range(0, 9), range(9, 26), range(26, 60))}


ELSEWHERE = {"ditto-lora", "perada", "fedmkt", "fed-sb", "flora", "hetlora"}
"""Methods whose adapters that travel are in no model when a handler begins or ends, have a factor in them, or have rows
of two values."""


class Watcher(Recorder):
    """Records messages, and the models of clients before and after each handler."""

    federation: Federation | None = None

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.parameters: dict[bytes, None] = {}

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for client in messages:
            self._look(client)
        for answer in super().call(request, messages):
            self._look(answer.client)
            yield answer

    def _look(self, client: ClientId) -> None:
        assert self.federation is not None
        for tensor in resident(self.federation, client).model.tensors(["base", "modular"]).values():
            rows = tensor.reshape(len(tensor) if tensor.ndim else 1, -1)
            several = (rows.sort(1).values.diff(dim=1) != 0).sum(1) >= 2  # three values or more
            for row in rows[several & rows.isfinite().all(1)]:
                self.parameters[row.numpy().tobytes()] = None


def watched(name: str) -> tuple[Federation, Watcher]:
    f = federation(tiny(name), wrap=Watcher, start=False, last=3, dataset=tiny_dataset(classes=4), **uneven())
    assert isinstance(f.engine, Watcher)
    f.engine.federation = f
    f.start()
    for _ in range(3):
        f.run_round()
        evaluate(f, full=False)
    return f, f.engine


@every_method
def test_the_declaration_is_what_the_replies_carry_and_parameters_are_sent_only_where_that_is_declared(
    name: str,
) -> None:
    kind = built_in()[name]
    check_declaration(kind)
    f, watcher = watched(name)
    carried = {d for request, _, m in watcher.up if request.heading != "evaluation" for d in disclosed(type(m))}
    assert carried == disclosures_of(kind)
    assert {type(m) for request, _, m in watcher.up if request.program == "method"} == {
        h.reply_type for h in handlers(type(f.method)).values() if h.reply_type is not None
    }
    traffic = b"|".join(encode(m) for _, _, m in watcher.up)
    sent = [row for row in watcher.parameters if row in traffic]
    assert len(watcher.parameters) > 20 or name == "pooled"
    # changes tell the parameters to whoever knows where they began, but are not these
    others = name in ("fednova", "fedbuff") or issubclass(kind, MemeLearning)  # a meme is no part of the model
    declared = {Disclosure.PARAMETERS, Disclosure.ADAPTERS} & disclosures_of(kind)
    elsewhere = name in ELSEWHERE and not sent
    assert elsewhere or bool(sent) == (bool(declared) and not others)


@every_method
def test_sizes_in_the_ledger_are_those_of_the_encoded_messages(name: str) -> None:
    travelled: set[type[Message]] = set()
    dataset = replace(tiny_dataset(), groups=torch.arange(60) % 2)
    for method in (tiny(name), *(replace(tiny(name), **other) for other in OTHERWISE.get(name, ()))):
        f = federation(method, wrap=Recorder, rounds=2, last=2, dataset=dataset, across=ACROSS_TASKS, **uneven())
        evaluate(f, full=True)
        measure(f)
        compose(f, 0, 1, f.setup.dataset.x_test)
        draw(f)
        recorder = f.engine
        assert isinstance(recorder, Recorder)
        for direction, messages in (("down", recorder.down), ("up", recorder.up)):
            counted = [entry for entry in entries(f) if entry.direction == direction]
            assert len(counted) == len(messages)
            for entry, (request, client, message) in zip(counted, messages, strict=True):
                assert (entry.client, entry.handler, entry.kind) == (client, request.handler, type(message).__name__)
                data = encode(message)
                assert entry.wire == len(data)
                assert entry.raw == sum(t.numel() * t.element_size() for t in flatten(message).values())
                again = decode(data, type(message), f.setup.dims, f.clients.profiles[client].keys)
                assert same_bits(flatten(message), flatten(again))
        travelled |= {type(m) for _, _, m in recorder.down + recorder.up}
    declared = {
        kind
        for program in f.exchange.programs.values()
        for handler in handlers(type(program)).values()
        for kind in (handler.message_type, handler.reply_type)
        if kind is not None
    }
    assert {kind.__name__ for kind in travelled} == {kind.__name__ for kind in declared}


@every_method
def test_bytes_do_not_depend_on_values_and_add_up(name: str) -> None:  # U21
    method = replace(tiny(name), **OF_ONE_SIZE.get(name, {}))
    one = federation(method, rounds=3, seed=0, dataset=tiny_dataset(seed=1))
    other = federation(method, rounds=3, seed=5, dataset=tiny_dataset(seed=2))
    for f in (one, other):
        evaluate(f, full=True)

    def counted(f: Federation) -> Counter[Entry]:
        return Counter(replace(entry, call=0) for entry in entries(f))  # the order of clients may be drawn

    assert counted(one) == counted(other)
    for heading in ("start", "training", "evaluation"):
        totals = one.exchange.ledger.totals(heading)
        mine = [entry for entry in entries(one) if entry.heading == heading]
        for direction, volume in (("up", totals.uplink), ("down", totals.downlink)):
            counted = [entry for entry in mine if entry.direction == direction]
            assert volume == Volume(sum(e.raw for e in counted), sum(e.wire for e in counted))
            kinds = [t.uplink if direction == "up" else t.downlink for t in totals.by_kind.values()]
            assert volume == Volume(sum(k.raw for k in kinds), sum(k.wire for k in kinds))


def outcome(name: str, workers: int, every_round: bool, **wrapping: Any) -> tuple[dict[str, Tensor], Any, Any]:
    world: dict[str, Any] = {"models": ["cnn-bn"], "dataset": tiny_dataset(shape=(1, 6, 6)), "clients": 4}
    f = federation(tiny(name), workers=workers, last=2, **wrapping, **world)
    for full in (True, False):
        f.run_round()
        if every_round:
            evaluate(f, full=full)
    owned, measured = everything_owned(f), evaluate(f, full=True)
    training = [entry for entry in entries(f) if entry.heading != "evaluation"]
    f.engine.close()
    return owned, measured, training


@every_method
def test_equal_bits_for_any_workers_any_order_and_any_evaluation(name: str) -> None:
    """Workers are two here; three, and clients that move among them, with the tests of the local engine."""
    owned, measured, training = outcome(name, 1, False)
    assert not math.isnan(sum(measured.common))
    others_owned, others_measured, others_training = outcome(name, 2, True, wrap=Backwards)
    assert same_bits(owned, others_owned)
    assert measured == others_measured
    assert training == others_training


@every_method
def test_the_seed_decides_and_a_method_keeps_hyperparameters_only(name: str) -> None:
    """That equal seeds give equal bits is seen with any workers and order."""
    method = tiny(name)
    before = dict(vars(method))
    one, other = (federation(method, rounds=2, seed=seed, **uneven()) for seed in (3, 4))
    assert not same_bits(everything_owned(one), everything_owned(other))
    assert vars(method) == before


def normed(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Batch normalisation of vectors in both blocks: it cannot train on a batch of one sample."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), width), nn.BatchNorm1d(width), nn.ReLU())
    return pair(base, nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)))


def hard_data(shape: tuple[int, ...]) -> tuple[Dataset, Any]:
    """Client 0 has one class, client 1 one sample, client 2 all classes but one; a fourth class is nowhere."""
    easy = tiny_dataset(rows=60, classes=3, shape=shape)
    of_class = [torch.nonzero(easy.y_train == c).flatten().tolist() for c in range(3)]
    shares = shares_of(of_class[0][:13], of_class[1][:1], of_class[0][13:] + of_class[2])
    return dataset_of(easy.x_train, easy.y_train, 4, test_rows=20), shares


AVERAGING = [name for name in EVERY if Disclosure.PARAMETERS in disclosures_of(built_in()[name])]
"""Methods whose server takes tensors of clients' models."""
NORMED = [name for name in EVERY if not issubclass(built_in()[name], AdapterTraining)]
"""Methods whose models may have statistics; transformers have none."""
HARD = [("logistic", 4), (normed, 4), ("cnn-bn", 4), ("mixed", 8)]


@pytest.mark.parametrize(
    ("name", "model", "side"),
    [(name, *case) for name in EVERY for case in (HARD if name in NORMED else HARD[:1])],
)
def test_hard_shares_train_without_nan(name: str, model: Any, side: int) -> None:  # U23
    data, shares = hard_data((1, side, side))
    f = federation(tiny(name), models=[model], dataset=data, shares=shares, last=3)
    for _ in range(3):
        f.run_round()
    assert all(math.isfinite(value) for value in evaluate(f, full=True).common)
    owned = everything_owned(f)
    assert any(key.endswith(("weight", ".A", ".P", ".R", ".received")) for key in owned)
    assert all(tensor.isfinite().all() for tensor in owned.values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    ("name", "model"),
    [*((name, "cnn-bn") for name in NORMED), *((name, "resnet10-narrow@0.25") for name in AVERAGING)],
)
def test_statistics_stay_those_of_the_clients(name: str, model: str) -> None:
    """Defaults, four rounds of eight steps on shares unlike each other, one of two clients three times slower."""
    kind = built_in()[name]
    wanted = {"local_steps": 8, "joins_at": 3, "server_steps": 8, "generator_steps": 8, "channels": 8}
    wanted |= {"decoder_steps": 8, "vtc_steps": 8, "directions": 8, "head_epochs": 1}
    method = kind.configure({f.name: wanted[f.name] for f in fields(kind) if f.name in wanted})
    devices = Devices(step_seconds=0.01, slow=0.5, slowdown=3.0)
    world: dict[str, Any] = {"dataset": load("digits"), "partition": Dirichlet(0.3), "devices": devices}
    models = fitting(method, [model]) if model == "cnn-bn" else [model]
    f = any_federation(method, models=models, clients=2, width=16, wrap=Recorder, **world)
    known = at_server(f)
    for _ in range(4):
        f.run_round()
    assert all(0 <= accuracy <= 1 for accuracy in evaluate(f, full=True).common)
    owned = everything_owned(f)
    assert all(tensor.isfinite().all() for tensor in owned.values() if tensor.is_floating_point())
    assert all((tensor >= 0).all() for key, tensor in owned.items() if key.endswith("running_var"))
    assert isinstance(f.engine, Recorder)
    sent = [flatten(message) for _, _, message in f.engine.up]
    for key, new in at_server(f).items():
        theirs = [tensor for own in sent for path, tensor in own.items() if path.rpartition("/")[2] == key]
        if theirs:
            everything = torch.stack([known[key], *theirs])
            slack = 1e-5 * everything.abs().amax(0)
            assert (everything.amin(0) - slack <= new).all()
            assert (new <= everything.amax(0) + slack).all()


def at_server(f: Federation) -> dict[str, Tensor]:
    """The running statistics in the server's state, by key."""
    held = {} if f.server.state is None else flatten(f.server.state)
    named = {path.rpartition("/")[2].rpartition(":")[2]: tensor.clone() for path, tensor in held.items()}
    return {key: tensor for key, tensor in named.items() if "running" in key}


class Lost(Recorder):
    """An engine that no client answers in a round."""

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        if request.heading != "training":
            yield from super().call(request, messages)
            return
        for client in messages:
            yield Answer(client, Failure(client, "no reply in time"), 0.0)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "pooled"])  # whose rounds need no client
def test_a_round_without_any_client_says_so_and_changes_nothing(name: str) -> None:
    f = federation(tiny(name), wrap=Lost)
    state = f.server.state
    with pytest.raises(ClientError, match="client 0 failed in .*, round 1: no reply in time"):
        f.run_round()
    assert f.server.state is state


OF_CLASSES = [name for name, kind in built_in().items() if issubclass(kind, PrototypeLearning)]
"""The labels that these keep are numbers of classes."""


# the rows of pooled are plain tensors, declared by hand
@pytest.mark.parametrize("name", [name for name in EVERY if name not in (*OF_CLASSES, "pooled")])
def test_what_the_server_keeps_of_samples_beyond_a_round_is_what_the_contract_says(name: str) -> None:
    late: list[dict[str, Any]] = [{"pairs": "late"}] if name == "ifl-ablations" else []
    for method in (tiny(name), *(replace(tiny(name), **own) for own in late)):
        f = federation(method, clients=3, rounds=1)
        states = [f.server.state]
        if isinstance(method, Replaying):  # whose clients keep what others sent
            states += [resident(f, client).state for client in f.clients]
        kept = {leaf.disclosure for state in states if holds_rows(state) for leaf in leaves(type(state))}
        assert kept & set(RETAINABLE) == retained(method)


def holds_rows(state: State | None) -> bool:
    """Whether any tensor of a state has a row."""
    return state is not None and any(tensor.numel() for tensor in flatten(state).values())


@every_method
def test_every_setting_is_explained_beside_its_field(name: str) -> None:
    unexplained = [setting.name for setting in settings(built_in()[name]) if not setting.comment]
    assert unexplained == []


@every_method
def test_what_a_client_would_do_alone_sends_nothing(name: str) -> None:
    method = alone(tiny(name))
    assert not disclosures_of(type(method))
    f = federation(method, rounds=1, **uneven())
    assert f.exchange.ledger.totals().uplink == Volume()
    assert in_process(f).profiles == f.clients.profiles
