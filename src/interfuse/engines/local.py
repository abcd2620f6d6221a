"""The local engine: one machine, in this process or side by side in forked workers."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Engine, Request
from interfuse.engines.allocator import keep_freed_memory
from interfuse.engines.arena import Arena, to_json
from interfuse.engines.groups import Groups, Task, run_group
from interfuse.engines.host import Host
from interfuse.engines.placement import Move, Placement
from interfuse.engines.processes import available_cores, can_fork, fork
from interfuse.engines.resting import ROOM, Room
from interfuse.engines.stacked import prepare
from interfuse.engines.working import Numbered, heard, reply_type_of, worked
from interfuse.errors import ConfigError, RunError, numbers
from interfuse.messages import Message, flatten
from interfuse.models import SplitModel
from interfuse.setup import Setup
from interfuse.wire import FileRecord, Part, Source

AHEAD = 2
"""Where answers are wanted in order, a worker may be so many clients ahead, for each worker there is."""
AT_ONCE = 4
"""Where answers are wanted in order, so many clients of one process work before the first of them is taken up: to put
global generators back for each would take a tenth of a millisecond."""


class InProcess:
    """All clients in this process, one after the other."""

    def __init__(self, setup: Setup, room: Room = ROOM) -> None:
        self.profiles: Mapping[ClientId, Profile] = setup.profiles
        self._numerics = setup.numerics
        self._host = Host(setup, room=room.of_each(1))
        self._groups = Groups(setup.profiles, setup.numerics.together)

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterable[Answer]:
        groups = self._groups.of(request, messages)
        tasks = [[(client, messages[client]) for client in group] for group in groups]
        if not request.ordered:
            return self._run(request, tasks)
        count = max(1, AT_ONCE // self._numerics.together)
        some = (tasks[place : place + count] for place in range(0, len(tasks), count))
        return (answer for few in some for answer in self._run(request, few))

    def _run(self, request: Request, groups: Sequence[Sequence[Task]]) -> list[Answer]:
        with self._host.working():
            return [answer for group in groups for answer in run_group(self._host, self._numerics, request, group)]

    def model(self, client: ClientId) -> SplitModel:
        """A copy of a client's model as it is now. Scratch lasts until the end of the round."""
        return self._host.model(client)

    def undo(self, clients: Sequence[ClientId]) -> None:
        self._host.undo(clients)

    def end_round(self) -> None:
        self._groups.end_round()
        self._host.end_round()

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        record = self._host.save(pack_of(folder, stem, 0), again)
        return [] if record is None else [record]

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        self._host.restore(parts)

    def close(self) -> None:
        pass


class Workers:
    """Clients in forked processes of one thread each. Tensors move through shared memory."""

    def __init__(self, setup: Setup, count: int, room: Room = ROOM) -> None:
        self.profiles: Mapping[ClientId, Profile] = setup.profiles
        self._setup = setup
        self._placement = Placement(setup.profiles, count)
        self._groups = Groups(setup.profiles, setup.numerics.together)
        self._down = Arena()
        self._workers = [_Worker(number, self._placement) for number in range(count)]
        for worker in self._workers:
            name = f"interfuse-{worker.number}"
            worker.process = fork(_serve, setup, worker, self._workers, self._down, room.of_each(count), name=name)
        for worker in self._workers:
            worker.theirs.close()

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        groups = self._groups.of(request, messages)
        if request.heading == "training":
            self._move(self._placement.arrange(groups))
        self._down.clear()
        places: dict[int, list[list[Any]]] = {}
        tasks: dict[int, list[list[Numbered]]] = {}
        for group in groups:
            own: list[Numbered] = []
            for client in group:
                message = messages[client]
                if message is not None and id(message) not in places:
                    places[id(message)] = self._down.write(flatten(message))
                own.append((client, None if message is None else id(message)))
            tasks.setdefault(self._placement.home[group[0]], []).append(own)
        reply_type = reply_type_of(self._setup, request)
        if request.ordered:
            yield from self._one_by_one(request, tasks, places, list(messages), reply_type)
            return
        for home, mine in tasks.items():
            self._workers[home].send(_calling(request, mine, places))
        # all answers before the first is looked at: nothing may be left in the pipes when one is refused
        for worker, answers in list(self._collect(tasks)):
            for answer in answers:
                yield self._answer(request, worker, reply_type, answer)

    def _one_by_one(
        self,
        request: Request,
        tasks: Mapping[int, list[list[Numbered]]],
        places: _Places,
        clients: Sequence[ClientId],
        reply_type: type[Message] | None,
    ) -> Iterator[Answer]:
        """Answers as they come, of clients that are never far ahead of the first whose answer is still awaited."""
        rank = {client: place for place, client in enumerate(clients)}
        left = {number: deque(own) for number, own in tasks.items()}
        busy: set[int] = set()
        done: set[int] = set()
        first = 0  # rank of the first client whose answer is awaited

        def give(number: int) -> None:
            if left[number] and rank[left[number][0][0][0]] < first + AHEAD * len(self._workers):
                self._workers[number].send(_calling(request, [left[number].popleft()], places))
                busy.add(number)

        try:
            while busy or any(left.values()):
                for number in left.keys() - busy:
                    give(number)
                worker = next(worker for worker in self._workers if worker.ours in wait(self._connections(busy)))
                busy.remove(worker.number)
                ready = [self._answer(request, worker, reply_type, answer) for answer in _checked(worker.receive())]
                done.update(rank[answer.client] for answer in ready)
                while first in done:
                    first += 1
                give(worker.number)
                yield from ready
        finally:
            for number in busy:
                self._workers[number].receive()

    def _connections(self, numbers: Iterable[int]) -> list[Any]:
        return [self._workers[number].ours for number in numbers]

    def _answer(
        self, request: Request, worker: _Worker, reply_type: type[Message] | None, told: Sequence[Any]
    ) -> Answer:
        """What a worker told, with the reply copied out of its memory."""
        answer = heard(told, reply_type, worker.up.read)
        if request.heading == "training":
            self._placement.note(answer.client, answer.seconds)
        return answer

    def _move(self, moves: Sequence[Move]) -> None:
        """Carry clients over, through the shared memory of those who give them away."""
        leaving: dict[int, list[ClientId]] = {}
        for move in moves:
            leaving.setdefault(move.source, []).append(move.client)
        for source, clients in leaving.items():
            self._workers[source].send({"do": "release", "clients": clients})
        owned = {client: places for _, answer in self._collect(leaving) for client, places in answer}
        coming: dict[int, list[list[Any]]] = {}
        for move in moves:
            coming.setdefault(move.target, []).append([move.client, move.source, owned[move.client]])
        for target, arrivals in coming.items():
            self._workers[target].send({"do": "adopt", "clients": arrivals})
        for _ in self._collect(coming):
            pass

    def undo(self, clients: Sequence[ClientId]) -> None:
        homes = {self._placement.home[client] for client in clients}
        for home in homes:
            own = [client for client in clients if self._placement.home[client] == home]
            self._workers[home].send({"do": "undo", "clients": own})
        for _ in self._collect(homes):
            pass

    def end_round(self) -> None:
        self._groups.end_round()
        self._placement.end_round()
        self._everybody({"do": "end_round"})

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        for worker in self._workers:
            path = pack_of(folder, stem, worker.number)
            own = [client for client in again if self._placement.home[client] == worker.number]
            worker.send({"do": "save", "path": str(path), "again": own})
        written = {worker.number: record for worker, record in self._collect(range(len(self._workers)))}
        return [FileRecord(**written[number]) for number in sorted(written) if written[number] is not None]

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        places: dict[int, list[list[Any]]] = {worker.number: [] for worker in self._workers}
        for client, part in parts.items():
            places[self._placement.home[client]].append([client, part.source.name, part.offset, part.size])
        for worker in self._workers:
            worker.send({"do": "restore", "parts": places[worker.number]})
        for _ in self._collect(places):
            pass

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join(timeout=5)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
            worker.up.close()
        self._down.close()

    def _everybody(self, order: Mapping[str, Any]) -> list[Any]:
        for worker in self._workers:
            worker.send(order)
        return [answer for _, answer in self._collect(range(len(self._workers)))]

    def _collect(self, numbers: Iterable[int]) -> Iterator[tuple[_Worker, Any]]:
        """Answers of these workers as they come. An error of a worker is raised once all have answered."""
        awaited = [self._workers[number] for number in numbers]
        errors = []
        while awaited:
            ready = wait([worker.ours for worker in awaited])
            for worker in [worker for worker in awaited if worker.ours in ready]:
                awaited.remove(worker)
                answer = worker.receive()
                if "error" in answer:
                    errors.append(answer)
                else:
                    yield worker, answer["answer"]
        if errors:
            _checked(errors[0])


def _checked(answer: Mapping[str, Any]) -> Any:
    """What a worker answered.

    Raises:
        RunError: it was an error.
    """
    if "error" in answer:
        raise RunError(answer["error"])
    return answer["answer"]


_Places = Mapping[int, list[list[Any]]]
"""Where messages lie in shared memory, by number."""


def _calling(request: Request, groups: Sequence[Sequence[Numbered]], places: _Places) -> dict[str, Any]:
    messages = {number: places[number] for group in groups for _, number in group if number is not None}
    return {"do": "call", "request": asdict(request), "groups": groups, "messages": messages}


class _Worker:
    """Both ends of what connects the engine with one worker."""

    def __init__(self, number: int, placement: Placement) -> None:
        self.number, self._placement = number, placement
        self.ours, self.theirs = multiprocessing.Pipe()
        self.up = Arena()
        self.process: multiprocessing.process.BaseProcess | None = None

    def clients(self) -> tuple[ClientId, ...]:
        return self._placement.clients_of(self.number)

    def send(self, order: Mapping[str, Any]) -> None:
        try:
            self.ours.send_bytes(to_json(order))
        except OSError as error:
            raise self._lost() from error

    def stop(self) -> None:
        """Let the worker end. Closing is not enough: the workers of an engine made later hold copies of this end."""
        with suppress(OSError):
            self.ours.send_bytes(to_json({"do": "stop"}))
        self.ours.close()

    def receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self.ours.recv_bytes())
        except (OSError, EOFError) as error:
            raise self._lost() from error
        return answer

    def _lost(self) -> RunError:
        if self.process is not None:
            self.process.join(timeout=1)
        code = None if self.process is None else self.process.exitcode
        carried = numbers(self.clients()) if self.clients() else "no clients"
        return RunError(
            f"worker {self.number} ({carried}) ended with exit code {code}; "
            "is there enough memory? The run can be resumed"
        )


def _serve(setup: Setup, worker: _Worker, workers: Sequence[_Worker], down: Arena, room: Room) -> None:
    """A worker's life: it ends when the other end of its connection is closed, however that came about."""
    for other in workers:
        other.ours.close()
        if other is not worker:
            other.theirs.close()
    # a reply is copied into shared memory at once, where no other client works before that
    host = Host(setup, lends=setup.numerics.together == 1, room=room)
    try:
        with host.working():  # all the while: a process of its own has no settings of others to put back
            while True:
                order = json.loads(worker.theirs.recv_bytes())
                if order["do"] == "stop":
                    os._exit(0)
                try:
                    answer: dict[str, Any] = {"answer": _obey(host, setup, worker, workers, down, order)}
                except Exception as error:  # whatever it is, the engine has to hear of it
                    told = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
                    answer = {"error": told}
                worker.theirs.send_bytes(to_json(answer))
    except (EOFError, OSError):
        os._exit(0)


def _obey(
    host: Host, setup: Setup, worker: _Worker, workers: Sequence[_Worker], down: Arena, order: Mapping[str, Any]
) -> Any:
    if order["do"] == "call":
        return _call(host, setup, worker, down, order)
    if order["do"] == "end_round":
        return host.end_round()
    if order["do"] == "undo":
        return host.undo(order["clients"])
    if order["do"] == "release":
        worker.up.clear()
        return [[client, worker.up.write(host.release(client))] for client in order["clients"]]
    if order["do"] == "adopt":
        for client, source, places in order["clients"]:
            host.adopt(client, (down if source is None else workers[source].up).read(places))
        return None
    if order["do"] == "save":
        record = host.save(Path(order["path"]), order["again"])
        return None if record is None else asdict(record)
    return host.restore(parts_at(order["parts"]))


def parts_at(places: Sequence[Sequence[Any]]) -> dict[ClientId, Part]:
    """What was said of parts, as parts: each file is opened once."""
    sources = {name: Source.of(Path(name)) for name in {name for _, name, _, _ in places}}
    return {client: Part(sources[name], offset, size) for client, name, offset, size in places}


def pack_of(folder: Path, stem: str, number: int) -> Path:
    """The pack of a worker."""
    return folder / f"{stem}-{number}.safetensors"


def _call(host: Host, setup: Setup, worker: _Worker, down: Arena, order: Mapping[str, Any]) -> list[list[Any]]:
    worker.up.clear()
    places = order["messages"]
    request = Request(**order["request"])
    return worked(host, setup, request, order["groups"], lambda n: down.read(places[str(n)]), worker.up.write)


def local(setup: Setup, workers: int | None = None, room: Room = ROOM) -> Engine:
    """The local engine with a number of worker processes; 1 is this process, None as many as fit.

    Raises:
        ConfigError: workers are asked for where they cannot be had.
    """
    most = min(len(setup.profiles), available_cores())
    forks = can_fork() and setup.device == "cpu"
    if workers is None:
        workers = most if forks else 1
    if workers < 1:
        raise ConfigError(f"workers = {workers}: at least 1 is needed")
    if workers > 1 and not forks:
        raise ConfigError(f"workers = {workers}: several workers need a CPU device and a system that can fork; use 1")
    keep_freed_memory()  # forked workers inherit it
    if setup.numerics.together > 1:
        prepare()
    return InProcess(setup, room) if workers == 1 else Workers(setup, min(workers, len(setup.profiles)), room)
