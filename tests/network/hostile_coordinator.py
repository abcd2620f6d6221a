"""A coordinator that asks a node for every handler of a method under every heading, and looks at what arrives.

The run itself is an honest one, with two nodes in this process. A third and a fourth have the first one's rows and a
vendor who asks for noise; both get every message that the first gets. The third is asked under all headings, also those
that no honest coordinator would write. The fourth is asked for the work of rounds as if it came before them.

    python tests/network/hostile_coordinator.py [METHOD ...]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from every_method import BETWEEN_PARTIES, prepared
from parties import Parties
from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Request
from interfuse.coordination.driver import Public, between_parties, make_contract
from interfuse.engines.parties.contract import Contract, Facts
from interfuse.engines.parties.frames import Accept, Begin, Call, Envelope, Offer, Payload, Ready, Reply
from interfuse.engines.parties.limits import without_noise
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.setups import RemoteSetup
from interfuse.engines.parties.vendor import read_vendor
from interfuse.evaluation import Evaluation, evaluate
from interfuse.federation import Federation
from interfuse.handler import Program, handlers
from interfuse.messages import Disclosure, Message, flatten
from interfuse.messages.encoding import decode, encoded, read
from interfuse.messages.records import leaf_at
from interfuse.models import resolve
from interfuse.runs import RunConfig
from interfuse.runs.config import parse_config
from interfuse.wire import NO_CODECS, FileRecord, Heading, Part

HEADINGS: tuple[Heading, ...] = get_args(Heading)
SIGMA = 1e4
"""Of the noise that the vendor asks for: far above what a small model's values are."""
ROUNDS = ("start", False), ("training", True)
"""Under which headings a method works before the first round and in one."""
Asked = tuple[str, str, Heading]
"""Program, handler, heading."""
Answering = Callable[[Envelope, Payload], Iterable[tuple[Envelope, Any]]]
"""How a node is asked."""


def directly(node: Node) -> Answering:
    """Nothing carries the messages."""
    return node.answer


@dataclass
class Line:
    """A node, and what the coordinator asked it so far."""

    node: Node
    answer: Answering
    facts: Facts
    number: int = 0
    ended: int = 0

    @classmethod
    def opened(cls, path: Path, contract: Contract, client: ClientId, over: Callable[[Node], Answering]) -> Line:
        """A node that has taken the contract and begun."""
        node = Node(read_vendor(path), Events(None, lambda text: None))
        answer = over(node)
        ((accepted, _),) = answer(Offer(contract=contract), b"")
        assert isinstance(accepted, Accept)
        width = accepted.facts.fusion_width
        ((ready, _),) = answer(Begin(attempt=1, client=client, clients=2, d=width), b"")
        assert isinstance(ready, Ready)
        return cls(node, answer, accepted.facts)

    def ask(self, request: Request, message: Message | None, heading: Heading, round: int) -> tuple[Reply, Any]:
        """Have a handler run under a heading; the reply with its payload."""
        self.number += 1
        call = Call(
            attempt=1, number=self.number, ended=self.ended, program=request.program, handler=request.handler,
            heading=heading, round=round, index=request.index, recoverable=request.recoverable,
            message=message is not None,
        )  # fmt: skip
        ((reply, payload),) = self.answer(call, b"" if message is None else encoded(message))
        assert isinstance(reply, Reply)
        return reply, payload


@dataclass
class Found:
    """What came of it."""

    denied: Counter[Asked] = field(default_factory=Counter)
    noisy: Counter[Asked] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def tries(self) -> int:
        return self.denied.total() + self.noisy.total()


class Hostile:
    """An engine whose clients are nodes; with everything that the first is asked, others are attacked."""

    def __init__(self, setup: RemoteSetup, honest: Mapping[ClientId, Line], attacked: Line, early: Line) -> None:
        self.setup, self.honest, self.attacked, self.early, self.found = setup, honest, attacked, early, Found()
        self.profiles: Mapping[ClientId, Profile] = setup.profiles
        self.programs, self.spared = setup.programs_with(setup.method), without_noise(setup.method)

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        program = self.programs[request.program]
        kind = handlers(type(program))[request.handler].reply_type
        for client, message in messages.items():
            reply, payload = self.honest[client].ask(request, message, request.heading, request.round)
            assert reply.failure is None, f"{request}: {reply.failure}"
            answer = None if kind is None else self._decoded(client, kind, payload)
            if client == 0:
                self._attack(request, message, answer, isinstance(program, Evaluation))
            yield Answer(client, answer, reply.seconds, reply.steps)

    def _decoded(self, client: ClientId, kind: type[Message], payload: Any) -> Message:
        return decode(payload, kind, self.setup.dims, self.profiles[client].keys)

    def _attack(self, request: Request, message: Message | None, clean: Message | None, measures: bool) -> None:
        """Ask under the right heading first, since what follows in the round goes on with it."""
        for heading in sorted(HEADINGS, key=lambda heading: heading != request.heading):
            for round in {request.round, 0, 1}:
                if (
                    heading != request.heading
                    and heading in ("start", "training")
                    and (heading == "start") == (not round)
                ):
                    continue  # that is the work of a method where it belongs: see below
                if heading != request.heading or round == request.round:
                    self._judge(self.attacked, request, message, clean, heading, round, measures)
        if request.heading == "training":
            self._judge(self.early, request, message, clean, "start", 0, measures)
        else:
            self._judge(self.early, request, message, clean, request.heading, request.round, measures)

    def _judge(
        self, line: Line, request: Request, message: Message | None, clean: Message | None, heading: Heading,
        round: int, measures: bool,
    ) -> None:  # fmt: skip
        reply, payload = line.ask(request, message, heading, round)
        asked = request.program, request.handler, heading
        own = heading == request.heading and round == request.round
        if reply.failure is not None:
            self.found.denied[asked] += 1
            if len(payload) or reply.message:
                self.found.faults.append(f"{asked}: refused with {len(payload)} bytes")
            if own:
                self.found.faults.append(f"{asked}: {reply.failure}")
            return
        if measures:
            if heading != "evaluation":
                self.found.faults.append(f"{asked}: measured outside of an evaluation")
            return
        if clean is None:
            return
        if heading == "evaluation":
            self.found.faults.append(f"{asked}: a method's reply under evaluation")
        for path, fault in unprotected(type(clean), flatten(clean), read(payload, NO_CODECS)[1], self.spared):
            self.found.faults.append(f"{asked}: {path}: {fault}")
        self.found.noisy[asked] += 1

    def ask_for_the_rest(self) -> None:
        """Ask for every handler that the run had no use for."""
        for path, program in self.programs.items():
            for name, handler in handlers(type(program)).items():
                if all((path, name) != asked[:2] for asked in self.found.denied | self.found.noisy):
                    for heading, round in itertools.product(HEADINGS, (0, 1)):
                        request = Request(path, name, heading, round, 0)
                        reply, payload = self.attacked.ask(request, None, heading, round)
                        self._judge_rest((path, name, heading), program, reply, payload, handler.reply_type)

    def _judge_rest(
        self, asked: Asked, program: Program, reply: Reply, payload: Any, kind: type[Message] | None
    ) -> None:
        if reply.failure is not None:
            self.found.denied[asked] += 1
        elif asked[2] not in ("start", "training") or isinstance(program, Evaluation):
            self.found.faults.append(f"{asked}: answered")
        elif kind is not None:
            self.found.faults += [
                f"{asked}: {p}: {f}" for p, f in unprotected(kind, {}, read(payload, NO_CODECS)[1], self.spared)
            ]
            self.found.noisy[asked] += 1

    def undo(self, clients: Sequence[ClientId]) -> None: ...

    def end_round(self) -> None:
        for line in (*self.honest.values(), self.attacked, self.early):
            line.ended += 1

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        return []

    def restore(self, parts: Mapping[ClientId, Part]) -> None: ...

    def close(self) -> None: ...


def unprotected(
    kind: type[Message], without: Mapping[str, Tensor], sent: Mapping[str, Tensor], spared: Collection[Disclosure]
) -> Iterator[tuple[str, str]]:
    """Numbers that came without the noise.

    Args:
        without: What they are, where that is known and not far below it.
        spared: Disclosures that the vendor asks for no noise on.
    """
    for path, tensor in sent.items():
        leaf = leaf_at(kind, path)
        assert leaf is not None
        if (
            leaf.disclosure is None
            or leaf.disclosure in spared
            or not tensor.dtype.is_floating_point
            or not tensor.numel()
        ):
            continue
        same = path in without and without[path].shape == tensor.shape
        noise = (tensor - without[path] if same else tensor).double()
        rms = float(noise.square().mean().sqrt())
        if path.endswith("running_var"):  # what is noise below 0 is cut there
            if bool((noise == 0).any()):
                yield path, "no noise"
        elif not 0.3 * SIGMA < rms < 3 * SIGMA if tensor.numel() >= 16 else not rms > 1e-3 * SIGMA:
            yield path, f"noise of {rms:g}, asked for {SIGMA:g}"


def attack(name: str, folder: Path, over: Callable[[Node], Answering] = directly) -> Found:
    """Run a method while nodes are attacked, over whatever carries the messages."""
    made = Parties(folder, ("ant", "bee"), secure=False)
    config, public = prepared(made, name)
    config = between_parties(parse_config(config.model_dump() | {"data": public, "rounds": 1}), 2)
    takes = {str(one) for one in Disclosure} - {str(one) for one in without_noise(config.make_method())}
    for spare in ("attacked", "early"):
        text = (folder / "ant" / "vendor.toml").read_text()
        (folder / spare).mkdir()
        noise = "\n".join(f"{one} = {SIGMA}" for one in sorted(takes))
        (folder / spare / "vendor.toml").write_text(f"{text}\n[limits.noise]\n{noise}\n")
    with ExitStack() as opened:
        engine = _engine(config, folder, opened, over)
        federation = Federation(engine.setup, engine, rounds=config.rounds)
        federation.start()
        for _ in range(config.rounds):
            federation.run_round()
        evaluate(federation, full=True)
        engine.ask_for_the_rest()
    return engine.found


def _engine(config: RunConfig, folder: Path, opened: ExitStack, over: Callable[[Node], Answering]) -> Hostile:
    method = config.make_method()
    public = Public.of(config, None)
    contract = make_contract(config, method, "run", public)
    secret = b"s" * 32
    lines = {}
    for name, client in (("ant", 0), ("bee", 1), ("attacked", 0), ("early", 0)):
        (folder / name / "state" / "run").mkdir(parents=True)
        (folder / name / "state" / "run" / "secret").write_bytes(secret)
        lines[name] = Line.opened(folder / name / "vendor.toml", contract, client, over)
        opened.enter_context(closing(lines[name].node))
    honest = {0: lines["ant"], 1: lines["bee"]}
    facts = {client: line.facts for client, line in honest.items()}
    builders = {name: partial(resolve, name) for name in config.models}
    setup = RemoteSetup(contract, public.data, method, facts, public.labels, builders, public.class_names)
    return Hostile(setup, honest, lines["attacked"], lines["early"])


def main() -> None:
    for name in sys.argv[1:] or BETWEEN_PARTIES:
        with tempfile.TemporaryDirectory() as folder:
            found = attack(name, Path(folder))
        print(f"{name}: {found.denied.total()} refused, {found.noisy.total()} with noise, faults: {found.faults}")


if __name__ == "__main__":
    main()
