"""Participation, of every method that has it: who is not drawn rests, costs nothing, and trains no more alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import ADAPTERS, Recorder, alone, entries, federation, fitting, shares_of, tiny_dataset

from interfuse.client import ClientId
from interfuse.clients import Answer, Request
from interfuse.evaluation import evaluate
from interfuse.families.late_joining import LateJoining
from interfuse.families.public_learning import PublicLearning
from interfuse.messages import Message
from interfuse.method import Method, disclosures
from interfuse.methods import built_in
from interfuse.methods.fedproto import FedProto
from interfuse.methods.ifl_ablations import IFLAblations
from interfuse.methods.pooled import Pooled

WITHOUT = {"fedbuff", "ifl-async"}
"""Everybody is always at work: there are no rounds to take part in."""
SMALL = {"local_steps": 1, "batch_size": 4, "joins_at": 4, "server_steps": 1, "generator_steps": 0, "decoder_steps": 0}
SMALL |= {"vtc_steps": 0, "head_epochs": 0, "directions": 4} | ADAPTERS
AT_THE_END = {"ccvr-local"}
"""Its clients send nothing in rounds."""
TWO_MODELS = {"ditto", "ditto-lora", "feddpa"}
"""Their clients train two models, or two adapters, and take twice the steps of Local."""
DRAWN = sorted(built_in().keys() - WITHOUT - {"pooled"})  # pooled trains at the server


def small(name: str, **settings: Any) -> Method:
    kind = built_in()[name]
    return kind.configure({f.name: SMALL[f.name] for f in fields(kind) if f.name in SMALL} | settings)


def test_all_methods_with_rounds_have_it_and_begin_with_everybody() -> None:
    default = {name: f.default for name, kind in built_in().items() for f in fields(kind) if f.name == "participation"}
    assert default == dict.fromkeys(built_in().keys() - WITHOUT, 1.0) | {"inco": 0.1}  # InCo's code


class Called(Recorder):
    """Records who is called in the training of each round."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.called: defaultdict[int, set[ClientId]] = defaultdict(set)

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        if request.heading == "training":
            self.called[request.round] |= set(messages)
        yield from super().call(request, messages)


@pytest.mark.parametrize("name", DRAWN)
def test_only_those_who_are_drawn_are_called_and_cost_bytes(name: str) -> None:
    method = small(name, participation=0.5)
    late = isinstance(method, LateJoining)
    world: dict[str, Any] = {"clients": 9 if late else 8, "dataset": tiny_dataset(rows=90)}  # the newcomer is not there
    f = federation(method, models=fitting(method, ["logistic"]), wrap=Called, rounds=3, **world)
    assert isinstance(f.engine, Called)
    called = f.engine.called
    assert [len(drawn) for drawn in called.values()] == [4, 4, 4]
    assert len(called[1] | called[2] | called[3]) > 4
    assert {(e.round, e.client) for e in entries(f) if e.heading == "training"} == {
        (round, client)
        for round, drawn in called.items()
        for client in drawn
        if disclosures(method) and name not in AT_THE_END
    }
    evaluate(f, full=True)
    if not late and not isinstance(
        method, PublicLearning
    ):  # some train on public rows too; the Local run draws them too: as many steps for each client
        local = federation(alone(method), models=["logistic"], rounds=3, **world)
        models = 2 if name in TWO_MODELS else 1
        assert Counter({client: models * taken for client, taken in local.exchange.steps.items()}) == f.exchange.steps


def test_pooled_takes_as_many_modular_steps_as_clients_take_part() -> None:
    settings: dict[str, Any] = {"local_steps": 1, "batch_size": 4, "modular_steps": "clients"}
    f = federation(Pooled(**settings, participation=0.5), models=["logistic"], clients=8, rounds=1)
    assert f.exchange.steps.total() == 0
    assert f.server.steps == 1 + 4


def test_prototypes_of_absent_classes_stay() -> None:
    """One of two clients a round, whose classes are 0 and 1, and 1 and 2."""
    y = tiny_dataset(rows=60).y_train
    of = [torch.nonzero(y == c).flatten().tolist() for c in range(3)]
    shares = shares_of(of[0] + of[1][:8], of[1][8:] + of[2])
    f = federation(FedProto(participation=0.5, local_steps=1), shares=shares, wrap=Called, models=["logistic"])
    assert isinstance(f.engine, Called)
    known: dict[int, Tensor] = {}
    for round in range(1, 9):
        f.run_round()
        (drawn,) = f.engine.called[round]
        now = f.server.state.prototypes
        assert now.y.tolist() == sorted({*known, drawn, drawn + 1})
        rows = dict(zip(now.y.tolist(), now.mean, strict=True))
        moved = {c for c in known if not torch.equal(known[c], rows[c])}
        assert moved == known.keys() & {drawn, drawn + 1}
        known = {c: row.clone() for c, row in rows.items()}
    assert len(known) == 3


def test_late_pairs_go_to_those_who_are_drawn_next() -> None:
    f = federation(IFLAblations(pairs="late", participation=0.5, local_steps=1), clients=6, wrap=Called, rounds=3)
    assert isinstance(f.engine, Called)
    sent = {(request.round, client): message for request, client, message in f.engine.up}
    for request, client, message in f.engine.down:
        assert client in f.engine.called[request.round]
        before = [sent[request.round - 1, other] for other in sorted(f.engine.called[request.round - 1])]
        assert all(torch.equal(a.z, b.z) for a, b in zip(message.pairs, before, strict=True))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ifl", "fedgh", "fedproto", "splitfed-v1", "fedavg"])
def test_one_client_a_round_is_said_before_a_run(name: str) -> None:
    def said(participation: float, clients: int) -> str:
        f = federation(small(name, participation=participation), models=["logistic"], clients=clients)
        notice = f.method.notice(f.clients.profiles)
        return "" if notice is None else f"{notice.text} {notice.remedy}"

    assert said(1.0, 4) == said(0.5, 4) == said(0.1, 1) == ""
    assert said(0.1, 4).startswith("participation = 0.1: of 4 clients one takes part in a round, so ")
    assert "--set participation=0.5." in said(0.1, 4)
