"""A node runs a handler only under a heading of its program, whatever its coordinator writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parties import CLASSES, rows

from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.frames import Accept, Begin, Call, Envelope, Offer, Payload, Reply
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.vendor import read_vendor
from interfuse.evaluation.accuracy import Counted, Scope
from interfuse.messages import Message, Weights
from interfuse.messages.encoding import decode, encoded
from interfuse.runs import parse_config
from interfuse.wire import Heading

VENDOR = """
name = "ant"
[model]
build = "logistic"
public = true
[data]
source = "rows.npz"
[allow]
methods = ["fedavg"]
disclosures = ["parameters"]
evaluation = "own"
[limits.noise]
parameters = 1000.0
statistics = 1000.0
"""


class Coordinator:
    """One that asks a node for anything, without a stream between them."""

    def __init__(self, folder: Path) -> None:
        rows(folder, "rows", 0)
        (folder / "vendor.toml").write_text(VENDOR)
        recipe = {
            "method": "fedavg", "data": str(folder / "rows.npz"), "models": ["logistic"], "clients": 1, "rounds": 3,
            "evaluation": "own", "beside": [],
        }  # fmt: skip
        config = parse_config(recipe)
        public = Public(CLASSES, list(map(str, range(CLASSES))), torch.zeros(0, dtype=torch.int64), None)
        contract = make_contract(config, config.make_method(), "run", public)
        self.node = Node(read_vendor(folder / "vendor.toml"), Events(None, lambda text: None))
        ((accepted, _),) = self.node.answer(Offer(contract=contract), b"")
        assert isinstance(accepted, Accept)
        assert accepted.facts.shapes is not None
        self.keys = accepted.facts.shapes.keys
        tuple(self.node.answer(Begin(attempt=1, client=0, clients=1, d=None), b""))
        self.zeros = Weights({key: torch.zeros(shape) for key, shape in self.keys.items()})
        self.sizes = {"classes": CLASSES, "clients": 1, "sums": 2}
        self._number = 0

    def ask(
        self, handler: str, message: Message, heading: Heading, *, program: str = "method", ended: int = 0
    ) -> tuple[Envelope, Payload]:
        self._number += 1
        call = Call(
            attempt=1, number=self._number, ended=ended, program=program, handler=handler, heading=heading,
            round=heading != "start", index=0, recoverable=False, message=True,
        )  # fmt: skip
        (answer,) = self.node.answer(call, bytes(encoded(message)))
        return answer

    def failure(
        self, handler: str, message: Message, heading: Heading, *, program: str = "method", ended: int = 0
    ) -> str | None:
        reply, payload = self.ask(handler, message, heading, program=program, ended=ended)
        assert isinstance(reply, Reply)
        assert reply.failure is None or not payload
        return reply.failure


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    found = Coordinator(tmp_path)
    yield found
    found.node.close()


def test_no_heading_spares_a_methods_reply_the_vendors_noise(coordinator: Coordinator) -> None:
    others: tuple[Heading, ...] = ("evaluation", "transport")
    own: tuple[Heading, ...] = ("training", "start")
    for heading in others:
        assert coordinator.failure("train", coordinator.zeros, heading) == "not-allowed"
    for heading in own:
        reply, payload = coordinator.ask("train", coordinator.zeros, heading)
        assert isinstance(reply, Reply)
        assert reply.failure is None
        sent = decode(payload, Weights, coordinator.sizes, coordinator.keys).tensors
        assert max(float(tensor.abs().max()) for tensor in sent.values()) > 100


def test_what_is_measured_is_asked_for_under_evaluation_alone_and_has_no_noise(coordinator: Coordinator) -> None:
    others: tuple[Heading, ...] = ("training", "start", "transport")
    for heading in others:
        assert coordinator.failure("count", Scope(True, False), heading, program="evaluation") == "not-allowed"
    assert coordinator.failure("deploy", coordinator.zeros, "evaluation") is None
    _, payload = coordinator.ask("count", Scope(True, False), "evaluation", program="evaluation")
    sums = decode(payload, Counted, coordinator.sizes, {})
    assert 0 <= float(sums.own[0]) <= float(sums.own[1]) == int(sums.own[1]) > 0


def test_a_model_is_put_in_place_once_in_an_evaluation(coordinator: Coordinator) -> None:
    assert coordinator.failure("deploy", coordinator.zeros, "evaluation") is None
    assert coordinator.failure("deploy", coordinator.zeros, "evaluation") == "not-allowed"
    assert coordinator.failure("deploy", coordinator.zeros, "evaluation", ended=1) is None
