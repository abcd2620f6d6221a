"""The local engine: one machine, in this process or side by side in forked workers."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Engine, Failure, Request
from interfuse.engines.allocator import keep_freed_memory
from interfuse.engines.arena import Arena, to_json
from interfuse.engines.host import Host
from interfuse.engines.placement import Move, Placement
from interfuse.engines.processes import available_cores, can_fork, fork
from interfuse.errors import ConfigError, RunError
from interfuse.handler import handlers
from interfuse.messages import Message, flatten, unflatten
from interfuse.models import SplitModel
from interfuse.setup import Setup
from interfuse.wire import FileRecord


class InProcess:
    """All clients in this process, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self.profiles: Mapping[ClientId, Profile] = setup.profiles
        self._host = Host(setup, tuple(setup.profiles))

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> list[Answer]:
        with self._host.working():
            return [self._host.run(request, client, message) for client, message in messages.items()]

    def model(self, client: ClientId) -> SplitModel:
        """A copy of a client's model as it is now. Scratch lasts until the end of the round."""
        return self._host.model(client)

    def undo(self, clients: Sequence[ClientId]) -> None:
        self._host.undo(clients)

    def end_round(self) -> None:
        self._host.end_round()

    def save(self, folder: Path, suffix: str) -> dict[str, FileRecord]:
        return self._host.save(folder, suffix)

    def load(self, folder: Path, files: Mapping[str, FileRecord]) -> None:
        self._host.load(folder, files)

    def close(self) -> None:
        pass


class Workers:
    """Clients in forked processes of one thread each. Tensors move through shared memory."""

    def __init__(self, setup: Setup, count: int) -> None:
        self.profiles: Mapping[ClientId, Profile] = setup.profiles
        self._setup = setup
        self._placement = Placement(setup.profiles, count)
        self._down = Arena()
        self._workers = [_Worker(number, self._placement) for number in range(count)]
        for worker in self._workers:
            name = f"interfuse-{worker.number}"
            worker.process = fork(_serve, setup, worker, self._workers, self._down, name=name)
        for worker in self._workers:
            worker.theirs.close()

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        if request.heading == "training":
            self._move(self._placement.arrange(messages))
        self._down.clear()
        written: dict[int, list[list[Any]]] = {}
        tasks: dict[int, list[Any]] = {}
        for client, message in messages.items():
            if message is not None and id(message) not in written:
                written[id(message)] = self._down.write(flatten(message))
            places = None if message is None else written[id(message)]
            tasks.setdefault(self._placement.home[client], []).append([client, places])
        reply_type = handlers(type(self._programs(request)))[request.handler].reply_type
        for number, task in tasks.items():
            self._workers[number].send({"do": "call", "request": asdict(request), "tasks": task})
        # all answers before the first is looked at: nothing may be left in the pipes when one is refused
        for worker, answers in list(self._collect(tasks)):
            for client, places, reason, seconds, steps in answers:
                if request.heading == "training":
                    self._placement.note(client, seconds)
                if reason is not None:
                    yield Answer(client, Failure(client, reason), seconds)
                elif places is None or reply_type is None:
                    yield Answer(client, None, seconds, steps)
                else:
                    yield Answer(client, unflatten(reply_type, worker.up.read(places)), seconds, steps)

    def _programs(self, request: Request) -> Any:
        return self._setup.programs_of(next(iter(self.profiles)))[request.program]

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
        self._placement.end_round()
        self._everybody({"do": "end_round"})

    def save(self, folder: Path, suffix: str) -> dict[str, FileRecord]:
        answers = self._everybody({"do": "save", "folder": str(folder), "suffix": suffix})
        return {name: FileRecord(**record) for answer in answers for name, record in answer.items()}

    def load(self, folder: Path, files: Mapping[str, FileRecord]) -> None:
        records = {name: asdict(record) for name, record in files.items()}
        self._everybody({"do": "load", "folder": str(folder), "files": records})

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
                    errors.append(answer["error"])
                else:
                    yield worker, answer["answer"]
        if errors:
            raise RunError(errors[0])


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
        return RunError(
            f"worker {self.number} (clients {', '.join(map(str, self.clients()))}) ended with exit code {code}; "
            "is there enough memory? The run can be resumed"
        )


def _serve(setup: Setup, worker: _Worker, workers: Sequence[_Worker], down: Arena) -> None:
    """A worker's life: it ends when the other end of its connection is closed, however that came about."""
    for other in workers:
        other.ours.close()
        if other is not worker:
            other.theirs.close()
    host = Host(setup, worker.clients())
    try:
        while True:
            order = json.loads(worker.theirs.recv_bytes())
            if order["do"] == "stop":
                os._exit(0)
            try:
                answer: dict[str, Any] = {"answer": _obey(host, setup, worker, workers, down, order)}
            except Exception as error:  # whatever it is, the engine has to hear of it
                answer = {"error": str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"}
            worker.theirs.send_bytes(to_json(answer))
    except (EOFError, OSError):
        os._exit(0)


def _obey(
    host: Host, setup: Setup, worker: _Worker, workers: Sequence[_Worker], down: Arena, order: Mapping[str, Any]
) -> Any:
    if order["do"] == "call":
        return _call(host, setup, worker, down, Request(**order["request"]), order["tasks"])
    if order["do"] == "end_round":
        return host.end_round()
    if order["do"] == "undo":
        with host.working():
            return host.undo(order["clients"])
    if order["do"] == "release":
        worker.up.clear()
        return [[client, worker.up.write(host.release(client))] for client in order["clients"]]
    if order["do"] == "adopt":
        for client, source, places in order["clients"]:
            host.adopt(client, workers[source].up.read(places))
        return None
    folder = Path(order["folder"])
    if order["do"] == "save":
        return {name: asdict(record) for name, record in host.save(folder, order["suffix"]).items()}
    return host.load(folder, {name: FileRecord(**record) for name, record in order["files"].items()})


def _call(host: Host, setup: Setup, worker: _Worker, down: Arena, request: Request, tasks: Any) -> list[list[Any]]:
    worker.up.clear()
    program = setup.programs_of(tasks[0][0])[request.program]
    expected = handlers(type(program))[request.handler].message_type
    answers = []
    received: tuple[Any, Message | None] = (None, None)
    with host.working():
        for client, places in tasks:
            if places is not None and expected is not None and places != received[0]:
                received = (places, unflatten(expected, down.read(places)))
            answer = host.run(request, client, received[1] if places is not None else None)
            if isinstance(answer.reply, Failure):
                answers.append([client, None, answer.reply.reason, answer.seconds, 0])
            else:
                sent = None if answer.reply is None else worker.up.write(flatten(answer.reply))
                answers.append([client, sent, None, answer.seconds, answer.steps])
    return answers


def local(setup: Setup, workers: int | None = None) -> Engine:
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
    return InProcess(setup) if workers == 1 else Workers(setup, min(workers, len(setup.profiles)))
