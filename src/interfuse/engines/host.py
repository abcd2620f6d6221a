"""A host runs handlers on the clients of one process. Every engine has hosts; they differ in how calls get there."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from interfuse.client import Client, ClientId, part_of
from interfuse.clients import Answer, Failure, Request
from interfuse.data import arriving
from interfuse.engines.resting import RestingFile, Room
from interfuse.equals import Equals
from interfuse.errors import ClientError, InterfuseError, MessageError, RunError
from interfuse.handler import Handler, Program, handlers
from interfuse.messages import Message, flatten, kind_of, settled
from interfuse.messages.delivery import check, narrow, private, unmodified
from interfuse.messages.encoding import rounded, sizes
from interfuse.method import Method, check_state, state_type
from interfuse.models import SplitModel, initial_key, make
from interfuse.party import BUFFERS, Held
from interfuse.randomness import Key, generator, reseed, seeded
from interfuse.setup import Hosting
from interfuse.training import DivergedError, Trainer, fit
from interfuse.wire import FileRecord, Part, Tensors, open_pack, save_pack

Kind = tuple[str, str, frozenset[str]]
"""Networks that one module can be at work for: architecture of the client, name of the network, what lasts of it."""


OBJECTS = 1 << 14
"""Bytes that a client takes beside its tensors: what Python makes of it, about."""


@dataclass(eq=False)
class Resident:
    """A client of a host, with the programs that run on it.

    Attributes:
        deployed: The module at work has that in place.
        evaluation: The place of the evaluation's call that it is at work for; None: it trains.
    """

    client: Client[Any]
    method: Method
    programs: Mapping[str, Program]
    deployed: bool = False
    evaluation: tuple[Key, ...] | None = None

    @cached_property
    def lendings(self) -> list[tuple[str, Held, Kind]]:
        """Its networks, and what tells whose modules fit them."""
        architecture = self.client.profile.architecture
        return [(name, held, (architecture, name, held.keeps)) for name, held in self.client.networks.items()]

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes while it is at rest, about."""
        client = self.client
        state: Any = client.state
        owned = [*client.feedback.values(), *([] if state is None else flatten(state).values())]
        for held in client.networks.values():
            owned += held.kept().values()
        for slots in client.optimizers.values():
            for kept in slots.values():
                owned += kept.values()
        return OBJECTS + sum(tensor.nbytes for tensor in owned)

    def at_work(self) -> Iterator[Tensor]:
        """The tensors of its modules: what they hold is another client's next, or changes with training."""
        for held in self.client.networks.values():
            if held.module is not None:
                yield from held.module.live(held.module.keys_of()).values()

    @cached_property
    def continuing(self) -> bool:
        """Whether a handler of the method goes on with what an earlier one of the round left: then it must stay."""
        methods = [program for program in self.programs.values() if isinstance(program, Method)]
        return any(found.continues for method in methods for found in handlers(type(method)).values())


_NOT_CONTINUING = (
    " (what an earlier call of this round left in the model's scratch and in client.scratch is gone: mark the handler "
    "@on_client.continuing to go on with it)"
)


class Host:
    """Some clients of a federation in this process: their tensors, and modules that are lent to those at work.

    Modules go from client to client, so there is one for each architecture; where a client needs its scratch again,
    it keeps its module until the round ends. Clients at rest are in memory while there is room. Of the others, those
    who rested longest, the host only knows where they lie: in a pack of the last commit, if they have not changed
    since, or in a file of its own. One that never worked is nowhere.

    Args:
        room: Memory for clients at rest, and where the others go; None: all stay in memory.
        owns: A message belongs to the one client that gets it. Otherwise it is copied where it is kept.
        lends: A reply may share memory with its client's networks until the next client is called. Otherwise it takes
            along the memory of what its client does not keep, and is a copy of what it keeps.
    """

    def __init__(self, setup: Hosting, *, owns: bool = False, lends: bool = False, room: Room | None = None) -> None:
        self._setup, self._owns, self._lends = setup, owns, lends
        self._residents: dict[ClientId, Resident] = {}
        self._free: dict[Kind, list[SplitModel]] = {}
        self._idle: dict[Kind, dict[Held, None]] = {}
        self._in_round: set[ClientId] = set()
        self._before: dict[ClientId, dict[str, Tensor]] = {}
        self._entered: set[ClientId] = set()  # they have scratch of this round
        # what put in place what clients answer with in this evaluation: handlers of the method, and their messages
        self._answers: dict[ClientId, list[tuple[Handler[Any, Any], Message | None]]] = {}
        self._changed: set[ClientId] = set()  # what they own was not written since it changed
        self._parts: dict[ClientId, Part] = {}  # where the newest version of a client lies that is not in memory alone
        self._resting: dict[ClientId, int] = {}  # bytes of clients at rest in memory, those who rested longest first
        self._taken = 0
        self._memory = None if room is None else room.memory
        self._file = RestingFile(None if room is None else room.folder)
        self._round = 0
        self._equals = Equals()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block in which handlers may run: numeric settings hold, and global generators are put back after it."""
        with self._setup.numerics.applied(), seeded(self._setup.seed, "host"):
            yield

    def run(self, request: Request, client: ClientId, message: Message | None, trainer: Trainer = fit) -> Answer:
        """Run a handler on one client, inside :meth:`working`. Whatever goes wrong in it becomes a :class:`Failure`.

        Args:
            trainer: What carries out ``client.fit``.
        """
        began, before, hint = time.perf_counter(), None, ""
        place = request.place(client)
        given, untouched = None, unmodified(None)
        self._before.pop(client, None)
        try:
            resident = self._resident(client)
            handler = cast(Handler[Any, Any], getattr(resident.programs[request.program], request.handler))
            evaluates = request.heading == "evaluation"
            deploys = evaluates and isinstance(handler.program, Method) and handler.declaration.reply_type is None
            if message is not None:  # what is kept for a later handler of the round must be nobody else's
                measures, kept = evaluates and not deploys, request.recoverable or resident.continuing
                given = message if measures else private(message, copy=kept and not self._owns)
                untouched = unmodified(given)
            if deploys:
                others = [kept for kept in self._answers.get(client, ()) if kept[0].name != handler.name]
                self._answers[client] = [*others, (handler, given)]
                resident.deployed = False
                self._equals.forget(client)
                self._in_round.add(client)
                self._rest(resident)
                return Answer(client, None, time.perf_counter() - began)
            if client in self._entered and not handler.declaration.continues:
                hint = _NOT_CONTINUING
            self._enter(resident, request, continues=handler.declaration.continues)
            resident.client.begin(self._setup.handler_seed, "client", *place)
            before = _snapshot(resident) if request.recoverable else None
            reseed(self._setup.handler_seed, "handler", *place)
            resident.client.trainer = trainer
            try:
                reply, size = self._reply(resident, handler, request, given)
            finally:
                resident.client.trainer = fit  # the other one may know of this call's message
            if (name := untouched()) is not None:
                raise ClientError(f"the handler changed the message's tensor {name} in place; copy it first")
        except RunError:  # where clients at rest lie: whatever is wrong there is the run's failure
            raise
        except Exception as error:  # a handler is foreign code: whatever it raises is its client's failure
            if before is not None:
                self._roll_back(client, before)
            hint = hint if isinstance(error, KeyError | DivergedError | MessageError) else ""
            return Answer(client, Failure(client, _reason(error) + hint), time.perf_counter() - began)
        if request.heading == "evaluation" or not resident.continuing:
            self._rest(resident)
        if request.undoable and before is not None:
            self._before[client] = before
        done = resident.client
        return Answer(client, reply, time.perf_counter() - began, done.steps, size, done.left_out, done.training)

    def _reply(
        self, resident: Resident, handler: Handler[Any, Any], request: Request, message: Message | None
    ) -> tuple[Message | None, tuple[int, int]]:
        """What a handler answers, checked and as it travels, and its sizes: raw and encoded."""
        setup, client, state = self._setup, resident.client, resident.client.state
        if request.heading == "evaluation":
            with _unchanged(resident):
                reply = handler(client, message)
        else:
            self._change(client.id)
            reply = handler(client, message)
        expected = handler.declaration.reply_type
        if type(reply) is not (expected or type(None)):
            wanted = "None" if expected is None else kind_of(expected)
            raise MessageError(request.handler, "reply", wanted, type(reply).__name__)
        if client.state is not state:
            check_state(client.state, resident.method.new_client)
            given = {} if message is None else flatten(message)
            client.state = settled(client.state, [*resident.at_work(), *given.values()])
        if reply is None:
            return None, (0, 0)
        sent = check(self._narrowed(resident, reply, request), setup.dims, client.profile.keys)
        if codecs := request.codecs(setup.codecs):
            noise = generator(setup.seed, "codec", "up", *request.place(client.id))
            program = handler.program
            returns = request.heading != "evaluation" and isinstance(program, Method) and program.lasting
            sent = rounded(sent, codecs, noise, client.feedback if returns else None)
        return sent, sizes(sent, codecs)

    def _narrowed(self, resident: Resident, reply: Message, request: Request) -> Message:
        """A reply as it travels: nothing that happens later to its client's networks can reach it."""
        if self._lends or request.heading == "evaluation" or resident.continuing:
            return narrow(reply, self._setup.dims, copy=not self._lends)
        scratch = {name: held.scratch() for name, held in resident.client.networks.items()}
        sent = narrow(reply, self._setup.dims, given_up={address for own in scratch.values() for address in own})
        addresses = {tensor.data_ptr() for tensor in flatten(sent).values()}
        for name, held, kind in resident.lendings:
            if taken := addresses & scratch[name].keys():
                held.give_up(scratch[name][address] for address in taken)
                self._take_back(held, kind)  # its values are gone
        return sent

    def undo(self, clients: Sequence[ClientId]) -> None:
        """Put clients back to where they were before their last call. See :class:`interfuse.clients.Engine`."""
        for client in clients:
            if (before := self._before.pop(client, None)) is not None:
                self._roll_back(client, before)

    def _roll_back(self, client: ClientId, before: Mapping[str, Tensor]) -> None:
        """Put a client back to where it was before a call. Its scratch of this round is gone."""
        resident = self._resident(client)
        self._change(client)
        self._restore(resident, before)
        resident.client.scratch.clear()
        self._entered.discard(client)
        resident.deployed = False
        self._rest(resident)

    def _change(self, client: ClientId) -> None:
        """What the client owns is not what lies in a file any more."""
        self._changed.add(client)
        if (part := self._parts.pop(client, None)) is not None:
            self._file.give_up(part)

    def _resident(self, client: ClientId) -> Resident:
        """The client as it lives here; made when it is first asked for, and read where it lies in a file.

        Raises:
            RunError: what lies there is damaged, or does not fit this run.
        """
        if client in self._residents:
            return self._residents[client]
        setup = self._setup
        method, profile = setup.method_of(client), setup.profiles[client]
        data, order = arriving(setup.data_of(client), setup.tasks, setup.sampling, setup.handler_seed, client)
        made: Client[Any] = Client(
            profile, data, order, setup.dims, setup.secret, setup.numerics.autocast, state_type(method.new_client)
        )
        beside = method.networks(profile, setup.dims)
        made.networks = {"model": Held(method.keeps())} | {name: Held(net.keeps) for name, net in beside.items()}
        made.state = None
        resident = Resident(made, method, setup.programs_of(client))
        made.lend = partial(self._asked, resident)
        made.equals = self._equals
        if (part := self._parts.get(client)) is not None:
            self._fill(resident, part.tensors())
        self._residents[client] = resident
        return resident

    def _enter(self, resident: Resident, request: Request, *, continues: bool) -> None:
        """Have state made, and what does not last blank, unless the handler goes on with it. Modules come when they are
        asked for."""
        client = resident.client
        self._round = request.round
        client.enter(request.round)
        self._call_up(resident)
        if not client.begun:
            try:
                with seeded(self._setup.seed, "new_client", client.id):
                    client.begin(self._setup.seed, "new_client", client.id)
                    state = resident.method.new_client(client)
                check_state(state, resident.method.new_client)
            except Exception:
                self._drop(client.id)  # it is made anew when it is called again
                raise
            client.state = None if state is None else settled(state, resident.at_work())
            client.begun = True
        resident.evaluation = request.place(client.id) if request.heading == "evaluation" else None
        if resident.evaluation is not None:
            # a client that keeps nothing, so that work cannot change it, may be done before it needs a module
            if any(held.module is not None or held.keeps for held in client.networks.values()):
                self._deploy(resident)
        elif not (continues and client.id in self._entered):
            client.scratch.clear()
            for held in client.networks.values():
                if held.module is not None:
                    held.module.reset()
                held.blank()
            self._entered.add(client.id)
            resident.deployed = False

    def _deploy(self, resident: Resident) -> None:
        """Put in place what the client answers with in this evaluation."""
        at_work = [held for held in resident.client.networks.values() if held.module is not None]
        for held in resident.client.networks.values():
            if held.module is not None:
                held.module.reset()
        self._lend(resident)  # what comes anew is blank
        if resident.deployed:
            return
        for held in at_work:
            held.blank()
        for handler, message in self._answers.get(resident.client.id, ()):
            place = (handler.name, resident.client.id, self._round)
            resident.client.begin(self._setup.handler_seed, "deploy", *place)
            reseed(self._setup.handler_seed, "deploy", *place)
            with _unchanged(resident):
                handler(resident.client, message)
        resident.deployed = True

    def _call_up(self, resident: Resident) -> None:
        """The client keeps the modules that it still has, and has tensors of its own."""
        self._in_round.add(resident.client.id)
        self._taken -= self._resting.pop(resident.client.id, 0)
        for name, held, kind in resident.lendings:
            if held.module is not None:
                self._idle.get(kind, {}).pop(held, None)
            elif not held.made and not held.keeps <= {BUFFERS}:
                held.begin(self._built(resident, name, resident.client.id))

    def _asked(self, resident: Resident, wanted: str) -> None:
        """The client needs a network that has no module yet."""
        if resident.evaluation is None:
            self._lend(resident, wanted)
            return
        with seeded(self._setup.seed, "deploy"):  # the handler goes on with its own draws
            self._deploy(resident)
        resident.client.begin(self._setup.handler_seed, "client", *resident.evaluation)

    def _lend(self, resident: Resident, wanted: str | None = None) -> None:
        """Have a module at work for a network of the client, or for all of them, with its tensors in place."""
        for name, held, kind in resident.lendings:
            if held.module is None and wanted in (name, None):
                held.attach(self._module(resident, name, kind))
                resident.deployed = False

    def _module(self, resident: Resident, name: str, kind: Kind) -> SplitModel:
        """A module that nobody needs: a free one, that of a client which is done, or a new one.

        What a module has beside its tensors is that of a new one, the same for all clients of an architecture.
        """
        if free := self._free.get(kind):
            return free.pop()
        if (idle := self._idle.get(kind)) and (module := idle.popitem()[0].detach()) is not None:
            return module
        return self._built(resident, name, "pool")

    def _built(self, resident: Resident, name: str, key: str | int) -> SplitModel:
        setup, profile = self._setup, resident.client.profile
        if name == "model":
            return setup.build(profile.architecture, key)
        build = resident.method.networks(profile, setup.dims)[name].build
        place = ("network", name, *initial_key(setup.initial, key))
        return make(build, setup.seed, *place, device=setup.device, numerics=setup.numerics)

    def _rest(self, resident: Resident) -> None:
        """The client is done for now: its modules may go to others, and its tensors into a file.

        Raises:
            RunError: the file cannot be written.
        """
        for _, held, kind in resident.lendings:
            if held.module is not None:
                self._idle.setdefault(kind, {})[held] = None
        if self._memory is None:
            return
        client = resident.client.id
        self._taken -= self._resting.pop(client, 0)
        self._resting[client] = resident.weight
        self._taken += self._resting[client]
        while self._taken > self._memory:
            self._put_away(next(iter(self._resting)))

    def _put_away(self, client: ClientId) -> None:
        """Of a client at rest only remember where it lies."""
        resident = self._residents[client]
        if resident.client.begun and client not in self._parts:
            self._parts[client] = self._file.put(Tensors(resident.client.owned()))
        self._drop(client)

    def model(self, client: ClientId) -> SplitModel:
        """A copy of a client's model, as it answers in an evaluation inside one."""
        return copy.deepcopy(self.visit(client).model)

    def visit(self, client: ClientId) -> Client[Any]:
        """A client with its modules at work, which it keeps until the round ends."""
        resident = self._resident(client)
        self._call_up(resident)
        self._lend(resident)
        if client in self._answers:
            self._deploy(resident)
        return resident.client

    def end_round(self) -> None:
        """Forget scratch; all modules may go to others."""
        for client in self._in_round & self._residents.keys():
            if (resident := self._residents.get(client)) is not None:  # one that rests may make others go into a file
                resident.client.scratch.clear()
                resident.deployed, resident.evaluation = False, None
                self._rest(resident)
        self._forget_round()

    def _forget_round(self) -> None:
        for kept in (self._in_round, self._entered, self._answers, self._before):
            kept.clear()
        self._equals.clear()

    def release(self, client: ClientId) -> dict[str, Tensor]:
        """Give a client away: all that another host needs to carry it on. Nothing, where it was never called."""
        self._before.pop(client, None)
        owned: dict[str, Tensor] = {}
        part = self._parts.pop(client, None)
        if client in self._residents:
            resident = self._drop(client)
            owned = resident.client.owned() if resident.client.begun else {}
        elif part is not None:
            owned = part.tensors()
        if part is not None:
            self._file.give_up(part)
        changed = {"changed": torch.tensor(client in self._changed)} if owned else {}
        self._changed.discard(client)
        return owned | changed

    def _drop(self, client: ClientId) -> Resident:
        """Have a client no longer in memory; its modules are free."""
        self._taken -= self._resting.pop(client, 0)
        resident = self._residents.pop(client)
        for _, held, kind in resident.lendings:
            self._take_back(held, kind)
        resident.client.lend = None  # a cycle would hold its tensors until garbage is collected
        return resident

    def _take_back(self, held: Held, kind: Kind) -> None:
        """Have the module of a network free for others."""
        self._idle.get(kind, {}).pop(held, None)
        if (module := held.detach()) is not None:
            self._free.setdefault(kind, []).append(module)

    def adopt(self, client: ClientId, owned: Mapping[str, Tensor]) -> None:
        """Take a client over from the host that has it.

        Raises:
            RunError: what it owns does not fit this run.
        """
        if not owned:
            return
        resident = self._resident(client)
        self._fill(resident, owned)
        if owned.get("changed", False):
            self._change(client)
        self._rest(resident)

    def _fill(self, resident: Resident, owned: Mapping[str, Tensor]) -> None:
        """Give a client what it owned elsewhere."""
        try:
            self._restore(resident, owned)
        except (InterfuseError, KeyError, ValueError) as error:
            client = resident.client.id
            raise RunError(f"client {client}: what was saved of it does not fit this run: {error}") from error

    def _restore(self, resident: Resident, owned: Mapping[str, Tensor]) -> None:
        moved = {name: tensor.to(self._setup.device) for name, tensor in owned.items()}

        def like(name: str) -> SplitModel:
            if (module := resident.client.networks[name].module) is not None:
                return module
            kind = next(kind for known, _, kind in resident.lendings if known == name)
            free = self._free.setdefault(kind, [])
            if not free:
                free.append(self._module(resident, name, kind))
            return free[-1]

        resident.client.restore(moved, like)

    def save(self, path: Path, again: Collection[ClientId] = ()) -> FileRecord | None:
        """Write the clients that changed since they were last written, and those of ``again`` that live here, into a
        pack; None, where there are none.

        Raises:
            RunError: it cannot be written.
        """
        here = self._parts.keys() | {client for client, found in self._residents.items() if found.client.begun}
        wanted = sorted(self._changed | (here & set(again)))
        if not wanted:
            return None
        in_memory = {client: self._residents[client].client.owned() for client in wanted if client in self._residents}
        record = save_pack(
            path,
            {part_of(c): Tensors(in_memory[c]) if c in in_memory else self._parts[c] for c in wanted},
        )
        placed = open_pack(path)
        for client in wanted:
            if (part := self._parts.get(client)) is not None:
                self._file.give_up(part)
            self._parts[client] = placed[part_of(client)]
        self._changed.clear()
        return record

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        """Put these clients back to what they owned, all others to their beginning. Each is read when it is called."""
        for forgotten in (self._residents, self._idle, self._changed, self._resting):
            forgotten.clear()
        self._forget_round()
        self._taken = 0
        self._file.clear()
        self._parts = dict(parts)


def _snapshot(resident: Resident) -> dict[str, Tensor]:
    """A copy of all that the client owns."""
    return {name: tensor.clone() for name, tensor in resident.client.owned().items()}


@contextmanager
def _unchanged(resident: Resident) -> Iterator[None]:
    """Put back what the client owns, since an evaluation must not change how training goes on.

    Raises:
        ClientError: tensors of the model that the client keeps were changed.
    """
    client = resident.client
    before, place = (client.state, client.optimizers), client.order.saved()
    client.optimizers = {}
    kept = {f"{name}: {key}": t for name, held in client.networks.items() for key, t in held.kept().items()}
    versions = {key: tensor._version for key, tensor in kept.items()}
    try:
        yield
    finally:
        client.state, client.optimizers = before
        client.order.restore(place)
    if changed := [key for key, version in versions.items() if kept[key]._version != version]:
        raise ClientError(
            f"the evaluation changed {changed[0]}, which the client keeps: load it in a round, or copy it"
        )


def _reason(error: Exception) -> str:
    """What happened and where: the last frame outside interfuse's engines is the user's line."""
    if isinstance(error, InterfuseError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/interfuse/engines/" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
