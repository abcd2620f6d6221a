"""A vendor that lies in one field of one envelope, among honest ones: the others go on, and the fault is its own.

Clients are threads that answer in the same process, without data or models.

    python tests/network/hostile_vendor.py [CLIENTS]
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from hostile_values import frame, lies

from interfuse.clients import Failure, Request
from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.carrier import Carrier, Line
from interfuse.engines.parties.contract import LIBRARY, WIRE, Contract, Facts, Shapes
from interfuse.engines.parties.frames import (
    PROTOCOL,
    Accept,
    Assembler,
    Begin,
    Call,
    Done,
    Envelope,
    FrameError,
    Hello,
    Offer,
    Order,
    Ready,
    Refusal,
    Reply,
    frames,
)
from interfuse.engines.parties.hub import Hub
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.remote import Patience, Remote
from interfuse.engines.parties.setups import RemoteSetup, no_labels
from interfuse.errors import InterruptedRoundError
from interfuse.families.fusion import FusionOutputs
from interfuse.messages.encoding import encoded
from interfuse.runs import parse_config

BATCH, WIDTH, CLASSES = 4, 8, 3
SENT = (Hello, Accept, Refusal, Ready, Reply, Done)
"""What a node sends."""
CONFIG = parse_config({
    "method": "ifl", "settings": {"batch_size": BATCH}, "models": ["logistic"], "clients": 4, "evaluation": "own",
    "beside": [], "fusion_width": WIDTH,
})  # fmt: skip
METHOD = CONFIG.make_method()
PAYLOAD = bytes(encoded(FusionOutputs(torch.ones(BATCH, WIDTH), torch.zeros(BATCH, dtype=torch.uint8))))
DIGEST = "ab" * 32


def contract() -> Contract:
    public = Public(CLASSES, ["a", "b", "c"], no_labels(), None)
    return make_contract(CONFIG, METHOD, "run", public)


def facts(names: str) -> Facts:
    """Those of a node with a public model that the coordinator cannot build."""
    keys = {"base.weight": (WIDTH, 2), "modular.weight": (CLASSES, WIDTH), "modular.bias": (CLASSES,)}
    shapes = Shapes(sample=(2,), keys=keys, cuts={"fusion": (WIDTH,)}, stages=("base", "modular"), buffers=())
    return Facts(
        architecture="own", classes=CLASSES, fusion_width=WIDTH, samples=100, test_labels="", class_names=names,
        given="", shapes=shapes,
    )  # fmt: skip


def honest(offer: Contract) -> dict[type[Any], tuple[Any, bytes]]:
    """What an honest node sends, by type; each time with the attempt and number that it is asked under."""
    return {
        Hello: (Hello(protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name="liar", incarnation="x"), b""),
        Accept: (Accept(facts=facts(offer.class_names)), b""),
        Refusal: (Refusal(field="method", expected="a", found="b"), b""),
        Ready: (Ready(attempt=1), b""),
        Reply: (Reply(attempt=1, number=1, seconds=0.5, steps=3, message=True), PAYLOAD),
        Done: (Done(attempt=1, number=2, digest=DIGEST, bytes=5), b""),
    }


class Sending(Protocol):
    """A stream's end that frames are handed to."""

    def send(self, frame: bytes, /) -> None: ...


@dataclass
class Fake:
    """A client without data: it answers what it is asked, and in the place of one of its envelopes it lies."""

    name: str
    offer: Contract
    lie: tuple[type[Any], bytes] | None = None

    def serve(self, line: Line) -> None:
        """Take part until the stream ends."""
        assembler = Assembler()
        self.greet(line)
        for received in line.received():
            whole = assembler.feed(received)
            if whole is not None:
                self.answer(line, whole[0])

    def greet(self, line: Sending) -> None:
        """Say who it is."""
        self._send(line, Hello(protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name=self.name, incarnation=self.name))

    def answer(self, line: Sending, asked: Envelope) -> None:
        """Answer what it is asked."""
        if isinstance(asked, Offer) and self.lie is not None and self.lie[0] is Refusal:
            line.send(self.lie[1])
        elif isinstance(asked, Offer):
            self._send(line, Accept(facts=facts(self.offer.class_names)))
        elif isinstance(asked, Begin):
            self._send(line, Ready(attempt=asked.attempt))
        elif isinstance(asked, Call):
            self._send(line, Reply(attempt=asked.attempt, number=asked.number, message=True), PAYLOAD)
        elif isinstance(asked, Order):
            self._send(line, Done(attempt=asked.attempt, number=asked.number, digest=DIGEST, bytes=5))

    def _send(self, line: Sending, envelope: Envelope, payload: bytes = b"") -> None:
        if self.lie is not None and type(envelope) is self.lie[0]:
            line.send(self.lie[1])
            return
        for one in frames(envelope, payload):
            line.send(one)


@dataclass
class Federation:
    """A hub with clients of which some lie.

    Args:
        over: Makes the carrier, and what has a client take part; queues, where nothing else is said.
    """

    liars: Mapping[str, tuple[type[Any], bytes]]
    clients: int
    shown: list[str] = field(default_factory=list)
    over: Callable[[], tuple[Carrier, Callable[[Fake], object]]] = lambda: _over_queues()

    def run(self, folder: Any, answer: float) -> str:
        """A call and a commit with everybody who joined; in words what came of it. Empty: nothing is wrong."""
        offer = contract()
        carrier, begin = self.over()
        hub = Hub(offer, METHOD, self.clients, carrier, Events(None, self.shown.append))
        honest = [f"n{i:03d}" for i in range(self.clients - len(self.liars))]
        fakes = [Fake(name, offer) for name in honest] + [Fake(n, offer, lie) for n, lie in self.liars.items()]
        try:
            for place, fake in enumerate(fakes):
                if place == len(honest):  # the honest ones were there first
                    _wait(hub, honest, len(honest))
                begin(fake)
            return self._carried_out(hub, honest, offer, folder, answer)
        finally:
            hub.close("over", finished=True)

    def _carried_out(self, hub: Hub, honest: list[str], offer: Contract, folder: Any, answer: float) -> str:
        _wait(hub, honest, self.clients)
        with hub.lock:
            members = {i: hub.members[name] for i, name in enumerate(sorted(hub.connected()))}
        for client, member in members.items():
            member.client = client
        told = {client: member.facts for client, member in members.items()}
        setup = RemoteSetup(offer, None, METHOD, told, no_labels(), {}, ["a", "b", "c"])
        attempt = 0
        while True:
            attempt += 1
            engine = Remote(hub, setup, members, attempt, Patience(answer, answer), message_bytes=1 << 20)
            failed: set[int] = set()
            try:
                engine.begin()
                request = Request("method", "train_base", "training", 1, 0)
                answers = engine.call(request, dict.fromkeys(members))
                failed = {one.client for one in answers if isinstance(one.reply, Failure)}
                if not failed:
                    engine.save(folder, "clients-000001", ())
                    missing = set(honest) - {member.name for member in members.values()}
                    return f"{sorted(missing)} are not there" if missing else ""
            except InterruptedRoundError:
                pass
            failed |= set(engine.faults)
            if not failed:
                return "interrupted by nobody"
            for client in failed:
                if members[client].name in honest:
                    return f"{members[client].name} is taken for a liar: {engine.faults.get(client)}"
                hub.ban(members.pop(client).name, "its fault")


def _wait(hub: Hub, honest: list[str], clients: int) -> None:
    """Until all honest ones are there, and everybody else had time to come."""
    for late in range(2000):
        there = hub.connected()
        if len(there) == clients or (set(honest) <= set(there) and late > 20):
            return
        time.sleep(0.005)


def _over_queues() -> tuple[Carrier, Callable[[Fake], object]]:
    carrier = Loopback()
    return carrier, lambda fake: threading.Thread(target=_served, args=(carrier, fake), daemon=True).start()


def _served(carrier: Loopback, fake: Fake) -> None:
    try:
        with carrier.dial() as line:
            fake.serve(line)
    except FrameError:
        pass


def all_lies() -> Iterator[tuple[str, type[Any], bytes]]:
    """Every lie in words, the envelope in whose place it is told, and its frame."""
    for kind, (envelope, payload) in honest(contract()).items():
        for words, one in lies(envelope, payload):
            yield words, kind, one


def renamed(one: bytes, name: str) -> bytes:
    """A frame of a liar that has another name than the others."""
    length = int.from_bytes(one[:4], "little")
    values = json.loads(one[4 : 4 + length])
    if values.get("name") == "liar":
        values["name"] = name
    return frame(values, one[4 + length :])


def parsed(one: bytes) -> bool:
    """Whether a frame is one of ours."""
    try:
        return Assembler(1 << 20).feed(one) is not None
    except FrameError:
        return False


def main() -> None:
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    well_formed = [(words, kind, one) for words, kind, one in all_lies() if parsed(one)]
    groups = [well_formed] if clients > len(well_formed) else [[lie] for lie in well_formed]
    wrong = 0
    for group in groups:
        liars = {f"liar-{i}": (kind, renamed(one, f"liar-{i}")) for i, (_, kind, one) in enumerate(group)}
        with tempfile.TemporaryDirectory() as folder:
            found = Federation(liars, clients)
            outcome = found.run(Path(folder), 1.0)
        wrong += bool(outcome) or not all(text.isprintable() for text in found.shown)
        if outcome:
            print(f"{group[0][0]}: {outcome}")
    told = sum(1 for _ in all_lies())
    print(f"{told} lies, {len(well_formed)} of them well-formed, {len(groups)} federations of {clients}: {wrong} wrong")


if __name__ == "__main__":
    main()
