"""The Ray engine: clients in actors on the nodes of a cluster. See :class:`interfuse.clients.Engine`."""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Engine, Request
from interfuse.engines.groups import Groups
from interfuse.engines.local import AHEAD, pack_of
from interfuse.engines.placement import Move, Placement
from interfuse.engines.ray.actor import Worker, build
from interfuse.engines.ray.cluster import WHATEVER, Joining, joined, resources
from interfuse.engines.ray.packing import Bytes, as_arrays, packed, paths, unpacked
from interfuse.engines.resting import ROOM, Room
from interfuse.engines.working import Numbered, heard, reply_type_of
from interfuse.errors import ConfigError, InterfuseError, InterruptedRoundError, RunError, numbers
from interfuse.messages import Message, flatten
from interfuse.setup import Setup
from interfuse.wire import FileRecord, Part
from interfuse.wire.files import write_file

SMALL = 1 << 16
"""Bytes up to which a message goes with each call. A larger one is put into the object store once."""
PIECE = 1 << 26
"""Bytes of a pack, or of what clients owned, that go to another node at once."""
LONGEST = 400
"""Characters of what Ray says of an error."""
BUSY = 10.0
"""Seconds that a worker is given to end a call that nobody waits for any more, before another takes its place; and
those after which the rest go on, where the cluster has no room for that one."""
QUEUED = 2
"""Tasks that one worker has before it, where answers are wanted in order: it need not wait for the next one."""
TOGETHER, LIGHT = 4, 1 << 20
"""Calls of such a task, which costs some milliseconds, where a message is of so many bytes at most: answers wait in
memory, and are mostly as large as what is asked."""


class _Actor(NamedTuple):
    """A worker that has come up.

    Attributes:
        near: It is on this process's node, so that it reads and writes the run's folder.
    """

    handle: Any
    place: str
    near: bool


class OnRay:
    """Clients in actors of Ray, each of one thread. Messages move as bodies of our wire.

    A worker that is lost is replaced, and the round is interrupted: everybody goes back to the last commit.
    """

    def __init__(self, setup: Setup, workers: int | None, room: Room, joining: Joining = WHATEVER) -> None:
        self.profiles: Mapping[ClientId, Profile] = setup.profiles
        self._setup, self._room, self._joining = setup, room, joining
        self._ray = joined(joining, workers)
        self._count, self._each = _shares(self._ray, setup, workers, joining)
        self._groups = Groups(setup.profiles, setup.numerics.together)
        self._here: str = self._ray.get_runtime_context().get_node_id()
        try:
            with as_arrays(self._ray):
                self._carried = self._ray.put(setup)
        except (TypeError, AttributeError, self._ray.exceptions.RaySystemError) as error:
            raise ConfigError(
                f"the method, a model or a metric of this run cannot be taken to Ray's workers: "
                f"{error.__cause__ or _cause(error)}; define it in "
                "a file or a module, without open files, locks or the like"
            ) from error
        self._actors: list[_Actor] = []
        self._ended = ""
        try:
            self._actors = self._start(self._count)
            if len(self._actors) < self._count:
                raise RunError(
                    f"{len(self._actors)} of {self._count} workers came up within {joining.seconds:g} s: each needs "
                    f"{self._needs()}, and the cluster has {resources(self._ray)}.{self._ended} Take fewer workers, or "
                    "add nodes"
                )
        except BaseException:
            self.close()
            raise
        self._placement = Placement(setup.profiles, len(self._actors))

    def _needs(self) -> str:
        return " and ".join(f"{count:g} {kind}" for kind, count in self._each.items() if count)

    def _start(self, count: int) -> list[_Actor]:
        """So many new workers, or as many as come up in time; where others are at work, room is not waited for."""
        ray = self._ray
        remote = ray.remote(Worker).options(
            num_cpus=self._each["CPU"], num_gpus=self._each["GPU"], max_restarts=0, scheduling_strategy="SPREAD"
        )
        arguments = (paths(), [self._carried], self._room, self._count)
        began, said, found, coming = time.monotonic(), False, list[_Actor](), dict[Any, Any]()
        try:
            while len(found) < count:
                for _ in range(count - len(found) - len(coming)):
                    handle = remote.remote(*arguments)
                    coming[handle.facts.remote()] = handle
                ready, _ = ray.wait(list(coming), num_returns=1, timeout=1.0)
                for reference in ready:
                    if (facts := self._come_up(reference)) is not None:
                        place = f"process {facts['pid']} on {facts['host']}"
                        found.append(_Actor(coming[reference], place, facts["node"] == self._here))
                    del coming[reference]
                waited = time.monotonic() - began
                if not said and waited > BUSY and coming:
                    said = True
                    self._joining.say(
                        f"Ray: {len(found)} of {count} workers are up; for the others up to "
                        f"{self._joining.seconds:g} s. Each needs {self._needs()}, and the cluster has {resources(ray)}"
                    )
                if waited > self._joining.seconds or (self._actors and waited > BUSY and not self._have_room()):
                    break
        except BaseException:
            _end(ray, [actor.handle for actor in found])
            raise
        finally:
            _end(ray, coming.values())
        return found

    def _come_up(self, reference: Any) -> Mapping[str, Any] | None:
        """What a new worker says of itself; None: it ended before it was there, perhaps with its node.

        Raises:
            RunError: it cannot be, here or elsewhere.
        """
        try:
            facts: Mapping[str, Any] = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if "creation task" in str(error):
                raise RunError(f"a worker of Ray could not begin: {_cause(error)}") from error
            self._ended = f" The last that ended on its way: {_cause(error)}."
            return None
        _check_build(facts, self._setup.device)
        return facts

    def _have_room(self) -> bool:
        """Whether there are nodes for all workers, be they up or not."""
        there = self._ray.cluster_resources()
        return all(there.get(kind, 0) >= each * self._count for kind, each in self._each.items())

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        groups = self._groups.of(request, messages)
        if request.heading == "training":
            self._move(self._placement.arrange(groups))
        bodies, largest = dict[int, Any](), 0
        tasks: dict[int, list[list[tuple[ClientId, int | None]]]] = {}
        for group in groups:
            own: list[tuple[ClientId, int | None]] = []
            for client in group:
                message = messages[client]
                if message is not None and id(message) not in bodies:
                    body = packed(flatten(message))
                    largest = max(largest, body.nbytes)
                    bodies[id(message)] = body if body.nbytes <= SMALL else self._ray.put(body)
                own.append((client, None if message is None else id(message)))
            tasks.setdefault(self._placement.home[group[0]], []).append(own)
        reply_type = reply_type_of(self._setup, request)

        def ask(worker: int, mine: Sequence[Sequence[Numbered]]) -> Any:
            """Have a worker carry the call out for some groups. Bodies go as arguments, numbered from 0."""
            wanted = dict.fromkeys(number for group in mine for _, number in group if number is not None)
            place = {number: position for position, number in enumerate(wanted)}
            numbered = [[(client, None if n is None else place[n]) for client, n in group] for group in mine]
            return self._ask(worker, "call", asdict(request), numbered, *(bodies[number] for number in wanted))

        asked: Iterable[Any]
        if request.ordered:
            asked = self._in_turn(tasks, list(messages), ask, TOGETHER if 0 < largest <= LIGHT else 1)
        else:
            # all answers before the first is looked at: a worker that is lost is found out before any is used
            asked = list(self._as_they_come({ask(worker, mine): worker for worker, mine in tasks.items()}))
        for told in asked:
            for one in told:
                answer = heard(one, reply_type, lambda body: unpacked(body, self._setup.device))
                if request.heading == "training":
                    self._placement.note(answer.client, answer.seconds)
                yield answer

    def _in_turn(
        self,
        tasks: Mapping[int, list[list[tuple[ClientId, int | None]]]],
        clients: Sequence[ClientId],
        ask: Callable[[int, Sequence[Sequence[Numbered]]], Any],
        together: int,
    ) -> Iterator[Any]:
        """Answers as they come, of clients that are never far ahead of the first whose answer is still awaited."""
        rank = {client: place for place, client in enumerate(clients)}
        left = {worker: deque(own) for worker, own in tasks.items()}
        asked: dict[Any, int] = {}
        done: set[int] = set()
        first = 0  # rank of the first client whose answer is awaited

        def give(worker: int) -> None:
            limit = first + QUEUED * together * AHEAD * len(self._actors)
            while list(asked.values()).count(worker) < QUEUED:
                own = list[list[tuple[ClientId, int | None]]]()
                while left[worker] and len(own) < together and rank[left[worker][0][0][0]] < limit:
                    own.append(left[worker].popleft())
                if not own:
                    return
                asked[ask(worker, own)] = worker

        while asked or any(left.values()):
            for worker in left:
                give(worker)
            (reference, *_), _ = self._ray.wait(list(asked), num_returns=1)
            told = self._got(reference, asked.pop(reference))
            done.update(rank[one[0]] for one in told)
            while first in done:
                first += 1
            yield told

    def _ask(self, worker: int, what: str, *arguments: Any) -> Any:
        """A reference to what a worker answers. It carries out one order after the other."""
        return getattr(self._actors[worker].handle, what).remote(*arguments)

    def _got(self, reference: Any, worker: int) -> Any:
        """What a worker answered.

        Raises:
            RunError: it could not do that.
            InterruptedRoundError: it is lost.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):  # of another worker, whose answer this one should have had
                raise self._lost(worker, error.cause) from error
            raise RunError(_cause(error)) from error
        except errors.RayError as error:
            raise self._lost(worker, error) from error

    def _as_they_come(self, asked: dict[Any, int]) -> Iterator[Any]:
        while asked:
            ready, _ = self._ray.wait(list(asked), num_returns=1)
            for reference in ready:
                yield self._got(reference, asked.pop(reference))

    def _all(self, orders: Iterable[tuple[int, str, tuple[Any, ...]]]) -> None:
        """Have workers carry orders out, and wait until they have."""
        asked = {self._ask(worker, what, *arguments): worker for worker, what, arguments in orders}
        for _ in self._as_they_come(asked):
            pass

    def _lost(self, worker: int, error: BaseException) -> InterruptedRoundError:
        """Put other workers in the place of those that are gone, and say what happened."""
        gone = self._actors[worker]
        carried = self._placement.clients_of(worker)
        whose = numbers(carried) if carried else "no clients"
        text = f"worker {worker} ({whose}, {gone.place}) is lost: {_cause(error)}"
        asked = {actor.handle.facts.remote(): actor for actor in self._actors}
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=BUSY)
        there = [asked[reference] for reference in ready if self._answers(reference)]
        _end(self._ray, [actor.handle for actor in self._actors if actor not in there])
        self._actors = there
        self._actors = there + self._start(self._count - len(there))
        if not self._actors:
            raise RunError(f"{text}. No other came up in its place. The run can be resumed") from error
        self._placement = Placement(self.profiles, len(self._actors))
        fewer = "" if len(self._actors) == self._count else f", with {len(self._actors)} of {self._count} workers"
        return InterruptedRoundError(f"{text}{fewer}")

    def _answers(self, reference: Any) -> bool:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError:
            return False
        return True

    def _move(self, moves: Sequence[Move]) -> None:
        """Carry clients over, from worker to worker."""
        ways: dict[tuple[int, int], list[ClientId]] = {}
        for move in moves:
            ways.setdefault((move.source, move.target), []).append(move.client)
        released = {(s, t): self._ask(s, "release", clients) for (s, t), clients in ways.items()}
        self._all((target, "adopt", (reference,)) for (_, target), reference in released.items())

    def undo(self, clients: Sequence[ClientId]) -> None:
        own = self._by_home(clients)
        self._all((home, "undo", (mine,)) for home, mine in own.items())

    def _by_home(self, clients: Iterable[ClientId]) -> dict[int, list[ClientId]]:
        found: dict[int, list[ClientId]] = {}
        for client in clients:
            found.setdefault(self._placement.home[client], []).append(client)
        return found

    def end_round(self) -> None:
        self._groups.end_round()
        self._placement.end_round()
        self._all((worker, "end_round", ()) for worker in range(len(self._actors)))

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        own = self._by_home(again)
        packs = {worker: pack_of(folder.absolute(), stem, worker) for worker in range(len(self._actors))}
        asked = {
            worker: self._ask(worker, "save", str(path) if self._actors[worker].near else None, own.get(worker, []))
            for worker, path in packs.items()
        }
        written = []
        for worker, reference in asked.items():
            if (found := self._got(reference, worker)) is not None:
                near = self._actors[worker].near
                written.append(FileRecord(**found) if near else self._fetched(worker, packs[worker], **found))
        return written

    def _fetched(self, worker: int, path: Path, name: str, bytes: int, sha256: str) -> FileRecord:
        """Write the pack that a worker on another node has."""

        def pieces() -> Iterator[memoryview]:
            for place in range(0, bytes, PIECE):
                yield memoryview(self._got(self._ask(worker, "piece", place, min(PIECE, bytes - place)), worker))

        record = write_file(path, pieces(), bytes)
        if record.sha256 != sha256:
            raise RunError(f"{path} did not come over from {self._actors[worker].place} as it was written; resume")
        return record

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        own = self._by_home(parts)
        places: dict[int, list[list[Any]]] = {}
        for worker, actor in enumerate(self._actors):
            mine = own.get(worker, [])
            if actor.near:
                files = {c: os.path.abspath(parts[c].source.name) for c in mine}
                places[worker] = [[c, files[c], parts[c].offset, parts[c].size] for c in mine]
            else:
                self._send(worker, mine, parts)
        self._all((worker, "restore", (places.get(worker, []),)) for worker in range(len(self._actors)))

    def _send(self, worker: int, clients: Sequence[ClientId], parts: Mapping[ClientId, Part]) -> None:
        """Bring what clients owned to a worker on another node, so much at a time."""
        waiting: list[ClientId] = []
        for client in clients:
            waiting.append(client)
            if client == clients[-1] or sum(parts[one].size for one in waiting) >= PIECE:
                bodies = [_whole(parts[one]) for one in waiting]
                self._all([(worker, "arrive", (list(waiting), *bodies))])
                waiting.clear()

    def close(self) -> None:
        """End the workers. Ray goes on until this process ends, for the next run in it."""
        _end(self._ray, [actor.handle for actor in self._actors])
        self._actors = []


def _end(ray: Any, handles: Iterable[Any]) -> None:
    for handle in handles:
        ray.kill(handle)


def _shares(
    ray: Any, setup: Setup, workers: int | None, joining: Joining
) -> tuple[int, Mapping[Literal["CPU", "GPU"], float]]:
    """How many workers, and what each has of a node's processors and GPUs.

    Raises:
        ConfigError: that cannot be.
    """
    there, clients = ray.cluster_resources(), len(setup.profiles)
    if setup.device == "cpu":
        if joining.gpus is not None:
            raise ConfigError(f"ray_gpus = {joining.gpus:g}, but device = 'cpu': leave it out, or set device = 'cuda'")
        return min(clients, workers or max(1, int(there.get("CPU", 1)))), {"CPU": 1, "GPU": 0}
    if setup.device != "cuda":
        raise ConfigError(f"device = {setup.device!r}: Ray deals GPUs to its workers, set device = 'cuda'")
    if not (gpus := int(there.get("GPU", 0))):
        raise ConfigError(f"device = 'cuda', but Ray has no GPU: {resources(ray)}")
    if joining.gpus is None:
        count = min(clients, workers or gpus)
        return count, {"CPU": 1, "GPU": 1 / math.ceil(count / gpus)}
    if not 0 < joining.gpus <= 1:
        raise ConfigError(f"ray_gpus = {joining.gpus:g}: a worker has one GPU or a part of it, above 0 and at most 1")
    return min(clients, workers or gpus * int(1 / joining.gpus)), {"CPU": 1, "GPU": joining.gpus}


def _check_build(facts: Mapping[str, Any], device: str) -> None:
    """Check that a worker computes the bits that this process would.

    Raises:
        ConfigError: it has other versions, or another processor or GPU.
    """
    theirs = facts["build"]
    other = [f"{name} {theirs[name]}, here {own}" for name, own in build(device).items() if theirs[name] != own]
    if other:
        raise ConfigError(
            f"{facts['host']} has {'; '.join(other)}: results would depend on who works where. Use machines of one "
            "kind with the same versions"
        )


def _cause(error: BaseException) -> str:
    """What Ray says of an error in one line, without its numbers of actors and its traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, InterfuseError):
        return str(cause)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    if type(error).__name__ == "ActorUnavailableError":  # it may come back, but nobody knows where the call ended
        return "its node does not answer"
    text = str(error)
    if "low on memory" in text:
        used = re.search(r"was ([\d.]+ ?[KMGT]?B / [\d.]+ ?[KMGT]?B)", text)
        return f"Ray ended it, since its machine was low on memory{f' ({used[1]})' if used else ''}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = next((line for line in lines if line.startswith("The actor is dead because")), lines[-1])
    said = said.removeprefix("The actor is dead because ").partition(" Some common causes")[0]
    # SYSTEM_ERROR says that it was not Ray's doing
    return said.partition(" Worker exit type: SYSTEM_ERROR")[0].rstrip(".")[:LONGEST]


def _whole(part: Part) -> Bytes:
    """A part as it lies in its file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return np.frombuffer(b"".join(part.pieces()), np.uint8)
    except OSError as error:
        raise RunError(f"cannot read {part.source.name}: {error}; go back to an older commit") from error


def on_ray(setup: Setup, workers: int | None = None, room: Room = ROOM, joining: Joining = WHATEVER) -> Engine:
    """The Ray engine with a number of workers; None: as many as there are processors, or GPUs, for.

    Raises:
        ConfigError: Ray is not there, or not as it has to be.
        RunError: the workers do not come up.
    """
    return OnRay(setup, workers, room, joining)
