"""A federation: a method, its server and its clients on an engine, round by round."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interfuse.client import part_of
from interfuse.clients import Clients, Engine, Exchange, Outstanding
from interfuse.data import Task
from interfuse.data.task import UNITS
from interfuse.errors import ConfigError, InterfuseError, RunError, nearest
from interfuse.handler import Program, handlers, programs
from interfuse.messages import UNSIGNED, Message, Precision, flatten, kind_of, leaves, settled, unflatten
from interfuse.method import Method, check_declaration, check_state, state_type
from interfuse.models import SplitModel, initial_key, make
from interfuse.party import Held
from interfuse.randomness import seeded
from interfuse.server import Server
from interfuse.setup import Serving, Setup, check_fusion, check_setup
from interfuse.wire import NO_CODEC, Codecs, FileRecord, Heading, Ledger, Packs, Tensors, save_pack
from interfuse.wire.codecs.rules import DEFAULT


@dataclass(frozen=True)
class Saved:
    """What a commit has to remember of a federation: its packs in their order, the server's models, and the time.

    ``outstanding`` has, by client as text, program, handler, round and arrival of a reply that is on its way;
    ``rounds_read`` says that the method has asked how many rounds there are.
    """

    packs: tuple[FileRecord, ...]
    architectures: Mapping[str, str]
    times: Mapping[str, float] = field(default_factory=dict)
    outstanding: Mapping[str, tuple[str, str, int, float]] = field(default_factory=dict)
    rounds_read: bool = False


def check(setup: Setup) -> None:
    """Refuse what cannot work before anything is trained.

    Raises:
        InterfuseError: naming the client and the field.
    """
    check_setup(setup)
    check_task(setup.method, setup.task)
    messages = messages_of(setup.method)
    if carries_features(messages):
        check_fusion(setup.profiles)
    check_codecs(setup.codecs, setup.method)


def messages_of(method: Method) -> list[type[Message]]:
    """All messages of a method and its parts, with the declarations checked.

    Raises:
        InterfuseError: the method, a handler or a message is not declared completely.
    """
    return [message for _, message in _with_senders(method)]


def _with_senders(method: Method) -> list[tuple[Program, type[Message]]]:
    """All messages of a method and its parts with whose they are, as :func:`messages_of` has them."""
    found: list[tuple[Program, type[Message]]] = []
    for program in programs(method, "method").values():
        if isinstance(program, Method):
            check_declaration(type(program))
        for handler in handlers(type(program)).values():
            found += [(program, kind) for kind in (handler.message_type, handler.reply_type) if kind is not None]
    return found


def carries_features(messages: Sequence[type[Message]]) -> bool:
    """Whether a message has a dimension d: that of the fusion layer."""
    return any("d" in (leaf.dims or ()) for message in messages for leaf in leaves(message))


def check_task(method: Method, task: Task) -> None:
    """Check that the task has the classes, or what else it is that a method's messages are of.

    Raises:
        ConfigError: naming the method, the field and the task.
    """
    for program, message in _with_senders(method):
        for leaf in leaves(message):
            units = {"classes"} if leaf.dtypes == UNSIGNED else UNITS.intersection(leaf.dims or ())
            for unit in units - task.dims().keys():
                name = type(program).__name__
                raise ConfigError(f"{name} needs {unit} for {leaf.field}, but the task is {task}; take another method")


def check_codecs(codecs: Codecs, method: Method) -> None:
    """Check that every codec belongs to a message, and that no field forbids it. The default leaves out what is
    forbidden, unless it would be nothing then.

    Raises:
        ConfigError: naming the codec, the field, and what may be done to it.
    """
    found = [
        (kind_of(message), leaf, leaf.lasting and isinstance(program, Method) and program.lasting)
        for program, message in _with_senders(method)
        for leaf in leaves(message)
    ]
    names = {name for kind, leaf, _ in found for name in (kind, leaf.field.partition(".")[0], leaf.field)}
    for key, codec in codecs.rules.items():
        if key == DEFAULT:
            if codec.ordered:
                raise ConfigError(f"codecs: {codec}: sorted is for labels; name the field, such as FusionOutputs.y")
            forbidden = bool(found) and all(leaf.precision is not Precision.SPARSE for _, leaf, _ in found)
            if forbidden and codec.keep is not None and codec.unthinned == NO_CODEC:
                raise ConfigError(
                    f"codecs: {codec}: nothing that {type(method).__name__} sends may be thinned out; round it, with "
                    "int8 for instance"
                )
            continue
        meant = [one for one in found if key in (one[0], one[1].field.partition(".")[0], one[1].field)]
        if not meant:
            raise ConfigError(f"codecs: the method sends no {key!r}: {nearest(key, names)}")
        allowed = {leaf.precision for _, leaf, _ in meant}
        if codec.lossy and allowed == {Precision.EXACT}:
            raise ConfigError(
                f"codecs: {key} = {codec}: {key} has to arrive exactly; only zstd, none, or for labels sorted will do"
            )
        if codec.keep is not None and Precision.SPARSE not in allowed:
            raise ConfigError(
                f"codecs: {key} = {codec}: {key} may be rounded, but not thinned out: most of it would "
                "be 0; leave topk to updates and features"
            )
        if codec.ordered and not any(leaf.unordered for _, leaf, _ in meant):
            raise ConfigError(
                f"codecs: {key} = {codec}: {key} is no labels of rows whose order means nothing; leave sorted out"
            )
        if codec.feedback and not any(lasting for _, _, lasting in meant):
            raise ConfigError(
                f"codecs: {key} = {codec}: {key} is something new each time, so what was lost cannot be sent later; "
                "leave ef to parameters"
            )


class Federation:
    """Runs a method on an engine. Owned state of both sides can be saved between rounds and put back.

    Attributes:
        rounds: Which round is the last; a run that stops early lowers it.
    """

    def __init__(self, setup: Serving, engine: Engine, ledger: Ledger | None = None, rounds: int = 0) -> None:
        self.setup, self.engine, self.method, self.rounds = setup, engine, setup.method, rounds
        self.exchange = Exchange(
            engine,
            ledger or Ledger(),
            setup.dims,
            setup.seed,
            setup.programs_with(setup.method),
            setup.make_clock(),
            codecs=setup.codecs,
        )
        self.clients = Clients(self.exchange, engine.profiles)
        self.round = 0
        self._forget_server()

    def _forget_server(self) -> None:
        setup = self.setup
        self.server: Server[Any] = Server(
            setup.seed,
            setup.dims,
            self._built,
            setup.inputs,
            setup.task,
            setup.public,
            setup.numerics.autocast,
            state_type(self.method.start),
            self.rounds,
            setup.device,
        )
        self.server.state = None
        for name, network in self.method.networks(None, setup.dims).items():
            place = ("network", name, *initial_key(setup.initial, "server"))
            made = make(network.build, setup.seed, *place, device=setup.device, numerics=setup.numerics)
            self.server.networks[name] = Held(network.keeps)
            self.server.networks[name].own(made)
        self._written: dict[str, str] = {}
        self._packs = Packs()
        self._in_packs = True

    def _built(self, architecture: str, name: str) -> SplitModel:
        return self.setup.build(architecture, "server", name)

    def start(self) -> None:
        """What happens once, before the first round."""
        self._enter(0, "start")
        with self.setup.numerics.applied(), seeded(self.setup.seed, "start"):
            self.server.state = self.method.start(self.server, self.clients)
        self._settle()
        self.engine.end_round()

    def run_round(self) -> None:
        """One round of the method; after the last one, what it does to finish."""
        self.round += 1
        self._enter(self.round, "training")
        state = self.server.state
        with self.setup.numerics.applied(), seeded(self.setup.seed, "round", self.round):
            self.method.round(self.server, self.clients)
            if self.round == self.rounds:
                self.engine.end_round()
                self.method.finish(self.server, self.clients)
        if self.server.state is not state:
            self._settle()
        self.engine.end_round()

    def _settle(self) -> None:
        check_state(self.server.state, self.method.start)
        if self.server.state is not None:
            self.server.state = settled(self.server.state)

    @contextmanager
    def evaluating(self, most: int | None = None, calls: int = 0, first: int = 0) -> Iterator[Clients]:
        """Clients with their models in place: all, or at most so many, evenly spread over their numbers.

        Calls inside are filed under evaluation, and change nothing.

        Args:
            calls: The number from which they count, where a round is evaluated more than once.
            first: The number from which calls of each handler count, where it is asked otherwise than at the same round
                before: a vendor counts the answers to each.
        """
        ids = self.clients.ids
        count = min(most or len(ids), len(ids))
        clients = self.clients.only(ids[position * len(ids) // count] for position in range(count))
        self._enter(self.round, "evaluation", calls, first)
        state, optimizers = self.server.state, self.server.optimizers
        self.server.optimizers = {}
        try:
            with self.setup.numerics.applied(), seeded(self.setup.seed, "evaluation", self.round):
                answers = self.method.deployed(self.server, clients)
                if answers is not None:
                    clients.call(self.method.deploy, answers)
                yield clients
        finally:
            self.server.state, self.server.optimizers = state, optimizers
            self.engine.end_round()

    def _enter(self, round: int, heading: Heading, calls: int = 0, first: int = 0) -> None:
        self.exchange.enter(round, heading, calls, first)
        self.server.enter(round, heading)

    def save(self, folder: Path) -> Saved:
        """Write what changed since the last save into packs; everything, where that did not come through.

        Raises:
            RunError: it cannot be written.
        """
        numbers = Counter(int(record.name.split("-")[1].split(".")[0]) for record in self._packs.records)
        stale, number = set(self._packs.stale(max(numbers.values(), default=1))), 1 + max(numbers, default=0)
        again = [client for client in self.clients if part_of(client) in stale] if stale else []
        if not self._in_packs:
            again = list(self.clients)
        self._in_packs = False
        written = self.engine.save(folder, f"clients-{number:06d}", again)
        parts = self._server_parts()
        marks = {name: _digest(tensors) for name, tensors in parts.items()}
        changed = {name for name, mark in marks.items() if self._written.get(name) != mark or name in stale}
        if changed:
            contents = {name: Tensors(parts[name]) for name in sorted(changed)}
            written.append(save_pack(folder / f"server-{number:06d}.safetensors", contents))
        for record in written:
            self._packs.add(folder, record)
        self._written |= marks
        self._in_packs = True
        on_their_way = self.exchange.outstanding
        return Saved(
            self._packs.records,
            dict(self.server.architectures),
            dict(self.exchange.clock.times),
            {str(c): (o.program, o.handler, o.round, o.arrives) for c, o in on_their_way.items()},
            self.server.rounds_read,
        )

    def _server_parts(self) -> dict[str, dict[str, Tensor]]:
        """What the server owns by file, and the replies on their way."""
        parts = self.server.parts()
        if outstanding := self.exchange.outstanding:
            parts["server-outstanding"] = {
                f"{client}/{path}": tensor
                for client, found in outstanding.items()
                if found.reply is not None
                for path, tensor in flatten(found.reply).items()
            }
        return parts

    def load(self, folder: Path, round: int, saved: Saved) -> None:
        """Go back to a saved state, on both sides.

        Raises:
            RunError: a pack is missing or damaged, or does not fit this federation.
        """
        self._forget_server()
        self.server.rounds_read = saved.rounds_read
        self.round = round
        self.exchange.enter(round, "training")
        for record in saved.packs:
            record.check(folder)
            self._packs.add(folder, record)
        found = self._packs.parts
        self.engine.restore({client: found[part_of(client)] for client in self.clients if part_of(client) in found})
        for name, architecture in saved.architectures.items():
            self.server.model(name, architecture)
        owned: dict[str, Tensor] = {}
        outstanding: dict[str, Tensor] = {}
        for name, part in found.items():
            if name.startswith("server"):
                target = outstanding if name == "server-outstanding" else owned
                target.update({path: tensor.to(self.setup.device) for path, tensor in part.tensors().items()})
        try:
            self.server.restore(owned, self.server.network)
            self.exchange.outstanding = {
                int(client): self._outstanding(client, *kept, outstanding) for client, kept in saved.outstanding.items()
            }
        except (InterfuseError, KeyError, ValueError) as error:
            raise RunError(f"the server's commit in {folder} does not fit this run: {error}") from error
        self.exchange.clock.times = dict(saved.times) or self.exchange.clock.times
        self._written = {name: _digest(tensors) for name, tensors in self._server_parts().items()}

    def _outstanding(
        self, client: str, program: str, handler: str, round: int, arrives: float, tensors: Mapping[str, Tensor]
    ) -> Outstanding:
        kind = handlers(type(self.exchange.programs[program]))[handler].reply_type
        own = {path.removeprefix(f"{client}/"): t for path, t in tensors.items() if path.startswith(f"{client}/")}
        return Outstanding(program, handler, round, arrives, None if kind is None else unflatten(kind, own))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names and values."""
    found = hashlib.blake2b(digest_size=16)
    for path, tensor in tensors.items():
        found.update(f"{path} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
