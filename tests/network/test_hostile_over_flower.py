"""Hostile coordinators and vendors with Flower below them: the carrier opens no door that is shut over gRPC."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import hostile_coordinator
from flower_grid import FakeGrid
from flwr.app import Context, Message
from hostile_vendor import SENT, Fake, Federation, all_lies, parsed, renamed

from interfuse.engines.flower.carrier import FlowerCarrier, Pace
from interfuse.engines.flower.channel import Plain
from interfuse.engines.flower.exchange import ANSWER, ASK, NAME, Head, opened_whole, received, sent
from interfuse.engines.flower.residence import Residence
from interfuse.engines.parties.carrier import Carrier
from interfuse.engines.parties.frames import Assembler, Envelope, frames
from interfuse.engines.parties.node import Node
from interfuse_relay.records import content_of, packet_of

QUICK = Pace(poll=0.002, look=0.02, shortest=0.02, longest=0.05, closing=0.1)
STREAM = b"s" * NAME


def at_a_socket(node: Node) -> hostile_coordinator.Answering:
    """A node behind a SuperNode: all that it is asked is an exchange."""
    residence, asked = Residence(node), [0]

    def exchanged(said: list[bytes]) -> list[tuple[Envelope, Any]]:
        packet = b"".join((Head(ASK, STREAM, asked[0]).packed(), *sent(Plain(), said)))
        answer = b"".join(residence.answer(io.BytesIO(packet).read, len(packet)))
        head, pieces = opened_whole(answer, (ANSWER,))
        assert head == (ANSWER, STREAM, asked[0])
        asked[0] += 1
        assembler = Assembler()
        return [whole for frame in received(Plain(), pieces) if (whole := assembler.feed(frame)) is not None]

    exchanged([])
    return lambda envelope, payload: exchanged(list(frames(envelope, payload)))


@pytest.mark.parametrize("name", ["fedavg", "ifl", "splitfed-v1"])
def test_no_heading_spares_what_leaves_the_vendors_noise(name: str, tmp_path: Path) -> None:
    found = hostile_coordinator.attack(name, tmp_path, at_a_socket)
    assert not found.faults, "\n".join(found.faults)
    assert found.tries > 15


@dataclass
class _App:
    """The ClientApp of a client that may lie; it answers whatever exchange it is asked in."""

    fake: Fake
    said: list[bytes] = field(default_factory=list)
    assembler: Assembler = field(default_factory=Assembler)

    def send(self, frame: bytes, /) -> None:
        self.said.append(frame)

    def __call__(self, message: Message, context: Context) -> Message:
        packet = packet_of(message.content)
        assert packet is not None
        head, pieces = opened_whole(packet, (ASK,))
        self.said = []
        if head.number == 0:
            self.assembler = Assembler()
            self.fake.greet(self)
        for frame in received(Plain(), pieces):
            if (whole := self.assembler.feed(frame)) is not None:
                self.fake.answer(self, whole[0])
        answer = b"".join((head._replace(kind=ANSWER).packed(), *sent(Plain(), self.said)))
        return Message(content_of(answer), reply_to=message)


def _over_flower(notes: list[str]) -> tuple[Carrier, Callable[[Fake], object]]:
    grid = FakeGrid()

    def begin(fake: Fake) -> None:
        grid.nodes[len(grid.nodes)] = (_App(fake), {})

    return FlowerCarrier(grid, notes.append, None, 1 << 20, QUICK), begin


def test_the_others_go_on_without_those_that_lie_each_otherwise(tmp_path: Path) -> None:
    lies = [(kind, one) for _, kind, one in all_lies() if parsed(one)]
    assert {kind for kind, _ in lies} == set(SENT)
    liars = {f"liar-{i:03d}": (kind, renamed(one, f"liar-{i:03d}")) for i, (kind, one) in enumerate(lies)}
    notes = list[str]()
    found = Federation(liars, len(liars) + 8, over=lambda: _over_flower(notes))
    assert not found.run(tmp_path, 3.0)
    assert all(text.isprintable() for text in (*found.shown, *notes))
