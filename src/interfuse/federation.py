"""A federation: a method, its server and its clients on an engine, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interfuse.clients import Clients, Engine, Exchange
from interfuse.errors import InterfuseError, RunError
from interfuse.handler import handlers, programs
from interfuse.message import flatten, leaves, settled, unflatten
from interfuse.method import Method, check_declaration, check_state, state_type
from interfuse.randomness import seeded
from interfuse.server import Server
from interfuse.setup import Serving, Setup, check_fusion, check_setup
from interfuse.wire import FileRecord, Heading, Ledger, load_tensors, save_tensors


@dataclass(frozen=True)
class Saved:
    """What a commit has to remember of a federation: files by what they hold, and the server's models."""

    files: Mapping[str, FileRecord]
    architectures: Mapping[str, str]


def check(setup: Setup) -> None:
    """Refuse what cannot work before anything is trained.

    Raises:
        InterfuseError: naming the client and the field.
    """
    check_setup(setup)
    if carries_features(setup.method):
        check_fusion(setup.profiles)


def carries_features(method: Method) -> bool:
    """Whether a message of the method, whose declarations are checked, has a dimension d: that of the fusion layer.

    Raises:
        InterfuseError: the method, a handler or a message is not declared completely.
    """
    fused = False
    for program in programs(method, "method").values():
        if isinstance(program, Method):
            check_declaration(type(program))
        for handler in handlers(type(program)).values():
            for message in (handler.message_type, handler.reply_type):
                fused = fused or (message is not None and any("d" in (leaf.dims or ()) for leaf in leaves(message)))
    return fused


class Federation:
    """Runs a method on an engine. Owned state of both sides can be saved between rounds and put back."""

    def __init__(self, setup: Serving, engine: Engine, ledger: Ledger | None = None) -> None:
        self.setup, self.engine, self.method = setup, engine, setup.method
        self.exchange = Exchange(
            engine, ledger or Ledger(), setup.dims, setup.seed,
            setup.programs_with(setup.method),
        )  # fmt: skip
        self.clients = Clients(self.exchange, engine.profiles)
        self.round = 0
        self._forget_server()

    def _forget_server(self) -> None:
        setup = self.setup
        self.server: Server[Any] = Server(
            setup.seed,
            setup.dims,
            lambda architecture, name: setup.build(architecture, "server", name),
            setup.inputs,
            setup.numerics.autocast,
        )
        self.server.state = None
        self._written: dict[str, object] = {}

    def start(self) -> None:
        """What happens once, before the first round."""
        self._enter(0, "start")
        with self.setup.numerics.applied(), seeded(self.setup.seed, "start"):
            self.server.state = self.method.start(self.server, self.clients)
        self._settle()
        self.engine.end_round()

    def run_round(self) -> None:
        """One round of the method."""
        self.round += 1
        self._enter(self.round, "training")
        with self.setup.numerics.applied(), seeded(self.setup.seed, "round", self.round):
            state = self.server.state
            self.method.round(self.server, self.clients)
        if self.server.state is not state:
            self._settle()
        self.engine.end_round()

    def _settle(self) -> None:
        check_state(self.server.state, self.method.start)
        if self.server.state is not None:
            self.server.state = settled(self.server.state)

    @contextmanager
    def evaluating(self, most: int | None = None, calls: int = 0) -> Iterator[Clients]:
        """Clients with their models in place: all, or at most so many, evenly spread over their numbers.

        Calls inside are filed under evaluation, and change nothing.

        Args:
            calls: The number from which they count, where a round is evaluated more than once.
        """
        ids = self.clients.ids
        count = min(most or len(ids), len(ids))
        clients = self.clients.only(ids[position * len(ids) // count] for position in range(count))
        self._enter(self.round, "evaluation", calls)
        state, optimizers = self.server.state, self.server.optimizers
        self.server.optimizers = {}
        try:
            with self.setup.numerics.applied(), seeded(self.setup.seed, "evaluation", self.round):
                self.method.prepare_evaluation(self.server, clients)
                yield clients
        finally:
            self.server.state, self.server.optimizers = state, optimizers
        self.engine.end_round()

    def _enter(self, round: int, heading: Heading, calls: int = 0) -> None:
        self.exchange.enter(round, heading, calls)
        self.server.enter(round, heading)

    def save(self, folder: Path) -> Saved:
        """Write what changed since the last save into files named after the round."""
        suffix = f"{self.round:06d}"
        files = dict(self.engine.save(folder, suffix))
        for name, (mark, tensors) in self._server_parts().items():
            if name not in self._written or self._written[name] != mark:
                files[name] = save_tensors(folder / f"{name}-{suffix}.safetensors", tensors)
                self._written[name] = mark
        return Saved(files, dict(self.server.architectures))

    def _server_parts(self) -> dict[str, tuple[object, dict[str, Tensor]]]:
        """The server's state and each of its models as tensors, with a mark that differs after any change."""
        server, state = self.server, self.server.state
        slots = {
            f"{name}/{key}/{slot}": tensor
            for name, kept in server.optimizers.items()
            for key, slots in kept.items()
            for slot, tensor in slots.items()
        }
        values = {} if state is None else flatten(state)
        parts: dict[str, tuple[object, dict[str, Tensor]]] = {
            "server": ((_Same(state), _versions(values)), values),
            "server-optimizers": (tuple((path, _Same(t), t._version) for path, t in slots.items()), slots),
        }
        for number, model in enumerate(server.models.values()):
            tensors = dict(model.state_dict())
            parts[f"server-model-{number:03d}"] = (_versions(tensors), tensors)
        return parts

    def load(self, folder: Path, round: int, saved: Saved) -> None:
        """Go back to a saved state, on both sides.

        Raises:
            RunError: a file is missing, changed, or does not fit this federation.
        """
        self._forget_server()
        self.round = round
        self.exchange.enter(round, "training")
        self.engine.load(folder, saved.files)
        for name, architecture in saved.architectures.items():
            self.server.model(name, architecture)
        read = {
            name: {key: t.to(self.setup.device) for key, t in load_tensors(folder / record.name, record.sha256).items()}
            for name, record in saved.files.items()
            if name.startswith("server")
        }
        try:
            kind = state_type(self.method.start)
            self.server.state = None if kind is None else unflatten(kind, read["server"])
            for number, model in enumerate(self.server.models.values()):
                model.load(read[f"server-model-{number:03d}"])
            for path, tensor in read["server-optimizers"].items():
                name, key, slot = path.rsplit("/", 2)
                self.server.optimizers.setdefault(name, {}).setdefault(key, {})[slot] = tensor
        except (InterfuseError, KeyError, ValueError) as error:
            raise RunError(f"the server's commit in {folder} does not fit this run: {error}") from error
        self._written = {name: mark for name, (mark, _) in self._server_parts().items()}


def _versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors.values())


class _Same:
    """Equal only to a holder of the very same object."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
