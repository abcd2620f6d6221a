"""Malformed frames at live streams: a coordinator under fire finishes its run, a node under fire stays."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from parties import assert_equal_to_local, parties, until

from interfuse.engines.grpc.dialling import METHOD, OPTIONS
from interfuse.engines.parties.contract import LIBRARY, WIRE
from interfuse.engines.parties.frames import PROTOCOL, Cancel, End, Hello, Reply, frames
from interfuse.engines.processes import fork

TWO = ("ant", "bee")
MEBIBYTES = 40


def malformed(noise: random.Random) -> Iterator[bytes]:
    """One stream's frames: some that are whole, and sooner or later one that is not."""
    hello = Hello(protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name=f"x{noise.random()}", incarnation="x")
    good = [
        *frames(hello),
        *frames(Reply(attempt=1, number=1, message=True), b"y" * 50),
        *frames(End(reason="", finished=True)),
    ]
    for _ in range(noise.randrange(1, 4)):
        frame = bytearray(noise.choice(good))
        choice = noise.randrange(5)
        if choice == 0:
            frame = bytearray(noise.randbytes(noise.randrange(0, 3000)))
        elif choice == 1:
            del frame[noise.randrange(len(frame)) :]
        elif choice == 2:
            frame[noise.randrange(len(frame))] = noise.randrange(256)
        elif choice == 3:
            frame = frame.replace(b'"size":0', b'"size":9999999999')
        yield bytes(frame)


def attack(port: int, streams: int) -> None:
    """Open streams one after the other, each with other malformed frames, and raw connections beside them."""
    noise = random.Random(0)
    with grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        join = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
        for _ in range(streams):
            try:
                for _ in join(iter(list(malformed(noise))), timeout=2):
                    pass
            except grpc.RpcError:
                pass
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(noise.randbytes(noise.randrange(1, 500)))


def memory(pid: int) -> float:
    """Resident memory in mebibytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_coordinator_under_fire_finishes_its_run(tmp_path: Path) -> None:
    with parties(tmp_path, TWO, secure=False) as two:
        config = two.prepare({"settings": {"local_steps": 1, "batch_size": 8}, "rounds": 6}, ["logistic"])
        coordinator = two.coordinate()
        coordinator.says("listens")
        first = fork(attack, two.port, 40, name="warm")
        first.join(60)
        before = memory(coordinator.process.pid or 0)
        second = fork(attack, two.port, 150, name="attack")
        time.sleep(0.5)
        nodes = [two.node(name) for name in TWO]
        second.join(60)
        until(lambda: not coordinator.process.is_alive() or two.rounds_done() >= 1, 30, two.everything)
        if coordinator.process.is_alive():
            assert memory(coordinator.process.pid or 0) - before < MEBIBYTES
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0]
        assert "malformed" in coordinator.text()
        assert_equal_to_local(two, config)


def impostor(port: int, streams: int) -> None:
    """A coordinator that sends malformed frames to whoever connects."""
    noise, served = random.Random(1), []

    def join(incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
        served.append(1)
        next(incoming)
        yield from [*frames(Cancel(attempt=1, number=1)), *malformed(noise)][noise.randrange(2) :]

    server = grpc.server(futures.ThreadPoolExecutor(4), options=OPTIONS)
    service, name = METHOD.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(join)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    while len(served) < streams:
        time.sleep(0.02)
    server.stop(0.2).wait()


def test_a_node_under_fire_stays_and_takes_part_in_the_true_run(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant",), secure=False) as one:
        one.prepare({"settings": {"local_steps": 1, "batch_size": 8}}, ["logistic"])
        fire = fork(impostor, one.port, 5, name="impostor")
        node = one.node("ant")
        fire.join(40)
        assert fire.exitcode == 0, one.everything()
        coordinator = one.coordinate()
        assert coordinator.wait() == 0, one.everything()
        assert node.wait() == 0, one.everything()
        assert "no frame of ours" in node.text() or "makes no sense" in node.text()
