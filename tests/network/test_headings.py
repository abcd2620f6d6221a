"""A node runs a handler only under a heading of its program, whatever its coordinator writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Coordinator

from interfuse.engines.parties.frames import Reply
from interfuse.evaluation.accuracy import Counted, Scope
from interfuse.messages import Weights
from interfuse.messages.encoding import decode
from interfuse.wire import Heading

NOISE = """
[limits.noise]
parameters = 1000.0
statistics = 1000.0
"""


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    found = Coordinator(tmp_path, NOISE)
    yield found
    found.node.close()


def test_no_heading_spares_a_methods_reply_the_vendors_noise(coordinator: Coordinator) -> None:
    others: tuple[Heading, ...] = ("evaluation", "transport")
    own: tuple[Heading, ...] = ("training", "start")
    for heading in others:
        assert coordinator.failure("train", Weights(coordinator.zeros), heading) == "not-allowed"
    for heading in own:
        reply, payload = coordinator.ask("train", Weights(coordinator.zeros), heading)
        assert isinstance(reply, Reply)
        assert reply.failure is None
        sent = decode(payload, Weights, coordinator.sizes, coordinator.keys).tensors
        assert max(float(tensor.abs().max()) for tensor in sent.values()) > 100


def test_what_is_measured_is_asked_for_under_evaluation_alone_and_has_no_noise(coordinator: Coordinator) -> None:
    others: tuple[Heading, ...] = ("training", "start", "transport")
    for heading in others:
        assert coordinator.failure("count", Scope(True, False), heading, program="evaluation") == "not-allowed"
    assert coordinator.failure("deploy", Weights(coordinator.zeros), "evaluation") is None
    _, payload = coordinator.ask("count", Scope(True, False), "evaluation", program="evaluation")
    sums = decode(payload, Counted, coordinator.sizes, {})
    assert 0 <= float(sums.own[0]) <= float(sums.own[1]) == int(sums.own[1]) > 0


def test_a_model_is_put_in_place_once_in_an_evaluation(coordinator: Coordinator) -> None:
    assert coordinator.failure("deploy", Weights(coordinator.zeros), "evaluation") is None
    assert coordinator.failure("deploy", Weights(coordinator.zeros), "evaluation") == "not-allowed"
    coordinator.ended = 1
    assert coordinator.failure("deploy", Weights(coordinator.zeros), "evaluation") is None
