"""A host runs handlers on the clients of one process. Every engine has hosts; they differ in how calls get there."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Answer, Failure, Request
from interfuse.data import EpochOrder
from interfuse.errors import ClientError, InterfuseError, MessageError, RunError
from interfuse.handler import Handler
from interfuse.messages import Message, flatten, kind_of, settled, unflatten
from interfuse.messages.delivery import check, narrow, private, unmodified
from interfuse.messages.encoding import rounded
from interfuse.method import ALL, BUFFERS, Method, check_state, state_type
from interfuse.models import SplitModel
from interfuse.randomness import generator, reseed, seeded
from interfuse.setup import Hosting
from interfuse.wire import FileRecord, load_tensors, save_tensors


class Resident:
    """One client of a host and what it owns between rounds."""

    def __init__(self, setup: Hosting, client: ClientId, model: SplitModel) -> None:
        self.method = setup.method_of(client)
        self.device = setup.device
        self.programs = setup.programs_of(client)
        self.keeps = self.method.keeps()
        self.changed = False
        self.created = False
        self.kept_buffers: dict[str, Tensor] | None = None
        self.feedback: dict[str, Tensor] = {}
        data = setup.data_of(client)
        order = EpochOrder(setup.seed, client, len(data.share.train))
        self.client: Client[Any] = Client(
            setup.profiles[client], model, data, order, setup.dims, setup.secret, setup.numerics.autocast
        )
        self.client.state = None

    @property
    def pooled(self) -> bool:
        """The client keeps no parameter, so for each round any model of its architecture will do."""
        return pooled(self.keeps)

    def kept_tensors(self) -> dict[str, Tensor]:
        """The live tensors of the model that the client owns, counters included."""
        everything = self.client.model.state_dict()
        if self.keeps == ALL:
            return everything
        if self.pooled:
            return self.kept_buffers or {}
        trainable = dict(self.client.model.named_parameters())
        wanted = set(self.client.model.keys_of(self.keeps - {BUFFERS}))
        if BUFFERS in self.keeps:
            wanted |= everything.keys() - trainable.keys()
        return {key: tensor for key, tensor in everything.items() if key in wanted}

    def owned(self) -> dict[str, Tensor]:
        """All that the client owns as tensors by name: what a commit writes."""
        order, state = self.client.order, self.client.state
        found = {
            "order": torch.tensor([order.epoch, order.position]),
            "created": torch.tensor(self.created),
            **{f"model/{key}": tensor for key, tensor in self.kept_tensors().items()},
            **{
                f"optimizer/{name}/{key}/{slot}": tensor
                for name, slots in self.client.optimizers.items()
                for key, kept in slots.items()
                for slot, tensor in kept.items()
            },
            **{f"feedback/{place}": tensor for place, tensor in self.feedback.items()},
        }
        if state is not None:
            found |= {f"state/{name}": tensor for name, tensor in flatten(state).items()}
        return found

    def restore(self, owned: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`owned`."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "feedback": {}, "state": {}}
        for name, tensor in owned.items():
            kind, _, rest = name.partition("/")
            if rest:
                groups[kind][rest] = tensor.to(self.device)
        epoch, position = owned["order"].tolist()
        self.client.order.epoch, self.client.order.position = epoch, position
        self.created = bool(owned["created"])
        if self.pooled:
            self.kept_buffers = groups["model"]
        else:
            self.client.model.load(groups["model"])
        self.client.optimizers = {}
        for path, tensor in groups["optimizer"].items():
            name, key, slot = path.rsplit("/", 2)
            self.client.optimizers.setdefault(name, {}).setdefault(key, {})[slot] = tensor
        self.feedback = groups["feedback"]
        state = state_type(self.method.new_client)
        self.client.state = None if state is None or not self.created else unflatten(state, groups["state"])

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all that the client owns."""
        return {name: tensor.clone() for name, tensor in self.owned().items()}


def pooled(keeps: frozenset[str]) -> bool:
    """Whether clients of a method that keeps these parts can borrow their models."""
    return keeps <= {BUFFERS}


class Host:
    """Some clients of a federation in this process, made when they are first called.

    Args:
        lends: A message belongs to the one client that gets it, and a reply may share memory with what its client owns,
            until the client is called again. Otherwise both are copied where it matters.
    """

    def __init__(self, setup: Hosting, clients: Sequence[ClientId], *, lends: bool = False) -> None:
        self._setup, self._clients, self._lends = setup, set(clients), lends
        self._residents: dict[ClientId, Resident] = {}
        self._pool: dict[str, list[SplitModel]] = {}
        self._in_round: set[ClientId] = set()
        self._before: dict[ClientId, dict[str, Tensor]] = {}
        self._round = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block in which handlers may run: numeric settings hold, and global generators are put back after it."""
        with self._setup.numerics.applied(), seeded(self._setup.seed, "host"):
            yield

    def run(self, request: Request, client: ClientId, message: Message | None) -> Answer:
        """Run a handler on one client, inside :meth:`working`. Whatever goes wrong in it becomes a :class:`Failure`."""
        began = time.perf_counter()
        setup = self._setup
        place = request.place(client)
        given = None if message is None else private(message, copy=request.recoverable and not self._lends)
        untouched = unmodified(given)
        self._before.pop(client, None)
        before: dict[str, Tensor] | None = None
        try:
            resident = self._enter(client, request.round)
            resident.client.begin(setup.seed, "client", *place)
            before = resident.snapshot() if request.recoverable else None
            reseed(setup.seed, "handler", *place)
            reply = self._reply(resident, request, given)
            if (name := untouched()) is not None:
                raise ClientError(f"the handler changed the message's tensor {name} in place; copy it first")
        except Exception as error:  # a handler is foreign code: whatever it raises is its client's failure
            if before is not None:
                self._roll_back(client, before)
            return Answer(client, Failure(client, _reason(error)), time.perf_counter() - began)
        if request.undoable and before is not None:
            self._before[client] = before
        return Answer(client, reply, time.perf_counter() - began, resident.client.steps)

    def _reply(self, resident: Resident, request: Request, message: Message | None) -> Message | None:
        program = resident.programs[request.program]
        handler = cast(Handler[Any, Any], getattr(program, request.handler))
        state = resident.client.state
        if request.heading == "evaluation":
            with _unchanged(resident):
                reply = handler(resident.client, message)
        else:
            resident.changed = True
            reply = handler(resident.client, message)
        expected = handler.declaration.reply_type
        if type(reply) is not (expected or type(None)):
            wanted = "None" if expected is None else kind_of(expected)
            raise MessageError(request.handler, "reply", wanted, type(reply).__name__)
        if resident.client.state is not state:
            check_state(resident.client.state, resident.method.new_client)
            resident.client.state = settled(resident.client.state)
        if reply is None:
            return None
        setup, client = self._setup, resident.client
        sent = check(narrow(reply, setup.dims, copy=not self._lends), setup.dims, client.profile.keys)
        codecs = request.codecs(setup.codecs)
        if not codecs:
            return sent
        noise = generator(setup.seed, "codec", "up", *request.place(client.id))
        returns = request.heading != "evaluation" and isinstance(program, Method) and program.lasting
        return rounded(sent, codecs, noise, resident.feedback if returns else None)

    def undo(self, clients: Sequence[ClientId]) -> None:
        """Put clients back to where they were before their last call. See :class:`interfuse.clients.Engine`."""
        for client in clients:
            if (before := self._before.pop(client, None)) is not None:
                self._roll_back(client, before)

    def _roll_back(self, client: ClientId, before: Mapping[str, Tensor]) -> None:
        """Put a client back to where it was before a call. Its scratch of this round is gone."""
        resident = self._residents[client]
        resident.restore(before)
        resident.client.scratch.clear()
        if resident.pooled:
            self._give_back(resident)
        self._in_round.discard(client)

    def _enter(self, client: ClientId, round: int) -> Resident:
        """The resident, with a model in place and its state made."""
        resident = self._residents.get(client) or self._settle(client)
        resident.client.round = self._round = round
        if client not in self._in_round:
            self._in_round.add(client)
            self._prepare_scratch(resident)
        if not resident.created:
            with seeded(self._setup.seed, "new_client", client):
                resident.client.begin(self._setup.seed, "new_client", client)
                state = resident.method.new_client(resident.client)
            check_state(state, resident.method.new_client)
            resident.client.state = None if state is None else settled(state)
            resident.created = True
        return resident

    def _settle(self, client: ClientId) -> Resident:
        setup = self._setup
        architecture = setup.profiles[client].architecture
        model = (
            self._borrow(architecture) if pooled(setup.method_of(client).keeps()) else setup.build(architecture, client)
        )
        resident = self._residents[client] = Resident(setup, client, model)
        if resident.pooled:
            self._give_back(resident)
        return resident

    def _borrow(self, architecture: str) -> SplitModel:
        free = self._pool.setdefault(architecture, [])
        return free.pop() if free else self._setup.build(architecture, "pool")

    def _give_back(self, resident: Resident) -> None:
        self._pool[resident.client.profile.architecture].append(resident.client.model)

    def _prepare_scratch(self, resident: Resident) -> None:
        """Blank what the client does not own, so that nobody can use what an earlier round left there."""
        client = resident.client
        if resident.pooled:
            client.model = self._borrow(client.profile.architecture)
            client.model.blank()
            if resident.kept_buffers:
                client.model.load(resident.kept_buffers)
        elif resident.keeps != ALL:
            client.model.blank(resident.kept_tensors().keys())

    def model(self, client: ClientId) -> SplitModel:
        """A copy of a client's model."""
        return copy.deepcopy(self._enter(client, self._round).client.model)

    def end_round(self) -> None:
        """Forget scratch, take borrowed models back."""
        for client in sorted(self._in_round):
            resident = self._residents[client]
            resident.client.scratch.clear()
            if resident.pooled:
                if BUFFERS in resident.keeps:
                    model = resident.client.model
                    buffers = set(model.keys_of()) - dict(model.named_parameters()).keys()
                    resident.kept_buffers = {k: t.clone() for k, t in model.state_dict().items() if k in buffers}
                self._give_back(resident)
        self._in_round.clear()
        self._before.clear()

    def release(self, client: ClientId) -> dict[str, Tensor]:
        """Give a client away: all that another host needs to carry it on. Nothing, where it was never called."""
        self._clients.remove(client)
        self._before.pop(client, None)
        resident = self._residents.pop(client, None)
        return {} if resident is None else resident.owned() | {"changed": torch.tensor(resident.changed)}

    def adopt(self, client: ClientId, owned: Mapping[str, Tensor]) -> None:
        """Take a client over from the host that released it."""
        self._clients.add(client)
        if owned:
            resident = self._settle(client)
            resident.restore(owned)
            resident.changed = bool(owned["changed"])

    def save(self, folder: Path, suffix: str) -> dict[str, FileRecord]:
        """Write the clients that changed since the last save. See :class:`interfuse.clients.Engine`."""
        written = {}
        for client, resident in sorted(self._residents.items()):
            if resident.changed:
                path = folder / f"{_file_of(client)}-{suffix}.safetensors"
                written[_file_of(client)] = save_tensors(path, resident.owned())
                resident.changed = False
        return written

    def load(self, folder: Path, files: Mapping[str, FileRecord]) -> None:
        """Put this host's clients back to a saved state. See :class:`interfuse.clients.Engine`."""
        self.end_round()
        self._residents.clear()
        for client in sorted(self._clients):
            record = files.get(_file_of(client))
            if record is not None:
                try:
                    self._settle(client).restore(load_tensors(folder / record.name, record.sha256))
                except (InterfuseError, KeyError, ValueError) as error:
                    raise RunError(f"client {client}: {folder / record.name} does not fit this run: {error}") from error


@contextmanager
def _unchanged(resident: Resident) -> Iterator[None]:
    """Put back what the client owns, since an evaluation must not change how training goes on.

    Raises:
        ClientError: tensors of the model that the client keeps were changed.
    """
    client, order = resident.client, resident.client.order
    before = (client.state, client.optimizers, order.epoch, order.position)
    client.optimizers = {}
    kept = resident.kept_tensors()
    versions = {key: tensor._version for key, tensor in kept.items()}
    try:
        yield
    finally:
        client.state, client.optimizers, order.epoch, order.position = before
    if changed := [key for key, version in versions.items() if kept[key]._version != version]:
        raise ClientError(
            f"the evaluation changed {changed[0]}, which the client keeps: load it in a round, or copy it"
        )


def _file_of(client: ClientId) -> str:
    return f"client-{client:05d}"


def _reason(error: Exception) -> str:
    """What happened and where: the last frame outside interfuse's engines is the user's line."""
    if isinstance(error, InterfuseError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/interfuse/engines/" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
