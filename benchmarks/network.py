"""Seconds a call to nodes over mutual TLS on this machine, beside a bare grpcio echo of the same bytes.

Nodes are processes of their own that answer at once, so what is measured is the engine: encoding, checks, envelopes,
the audit log, gRPC. The bare echo keeps one stream a client and moves bytes in frames of the same size.

    python benchmarks/network.py [--smoke] [--nodes 4 16 64] [--repetitions 1] [--line far|connect] [--large [BYTES]]

With --line far all goes through a proxy that adds 50 ms of round trip and lets 20 Mbit/s through on each connection;
with --line connect through an HTTP CONNECT proxy. With --large one node gets and sends one message of so many bytes
(3.4 GB unless said), and the peak of memory of both processes is shown, beside what they took before.
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse import Client, Clients, Disclosure, Message, Method, Server, on_client
from interfuse.client import ClientId
from interfuse.clients import Exchange
from interfuse.clock import WallClock
from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.grpc import Listener, dial, make_keys
from interfuse.engines.grpc.dialling import METHOD, OPTIONS
from interfuse.engines.grpc.keys import of_node, of_server
from interfuse.engines.parties import KeyFiles, Vendor
from interfuse.engines.parties.contract import MESSAGE
from interfuse.engines.parties.frames import CHUNK
from interfuse.engines.parties.hub import Hub, Member
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.remote import Patience, Remote
from interfuse.engines.parties.setups import RemoteSetup, no_labels
from interfuse.engines.processes import fork
from interfuse.handler import programs
from interfuse.messages import Dims
from interfuse.runs import parse_config
from interfuse.wire import Ledger
from lines import listens, proxy


@dataclass(frozen=True)
class Place:
    """Where a measurement takes place: its folder, the coordinator's port, and what nodes go through."""

    folder: Path
    port: int
    line: str | None
    line_port: int

    @property
    def address(self) -> str:
        """What nodes dial."""
        return f"127.0.0.1:{self.line_port if self.line == 'far' else self.port}"

    @property
    def proxy(self) -> str | None:
        """The HTTP proxy that they use."""
        return f"127.0.0.1:{self.line_port}" if self.line == "connect" else None


WHO = ("coordinator", "node")


class Load(Message):
    """So many bytes."""

    x: Annotated[Float32[Tensor, "numbers"], Disclosure.STATISTICS]


class Many(Message):
    """So many bytes, in tensors as a large model has them."""

    tensors: tuple[Load, ...]


@dataclass(frozen=True)
class Echo(Method):
    """Sends a message down, or up, or none."""

    def round(self, server: Server, clients: Clients) -> None: ...

    @on_client
    def ping(self, client: Client) -> None: ...

    @on_client
    def down(self, client: Client, load: Load) -> None: ...

    @on_client
    def up(self, client: Client, load: Load) -> Load:
        return Load(_ready(int(load.x[0])))

    @on_client
    def many_down(self, client: Client, load: Many) -> None: ...

    @on_client
    def many_up(self, client: Client, load: Load) -> Many:
        return _many(int(load.x[0]))


@cache
def _ready(numbers: int) -> Tensor:
    """What a handler has at hand, such as parameters: making them is none of the engine's work."""
    return torch.zeros(numbers)


@cache
def _many(size: int) -> Many:
    """Such a message at hand: a quarter of it in one tensor, the others of a hundredth."""
    numbers = size // 4
    return Many((Load(torch.ones(numbers // 4)), *(Load(torch.ones(numbers // 100)) for _ in range(75))))


@dataclass(frozen=True)
class Process:
    """Somebody whose memory is looked at."""

    pid: int

    def forget_peak(self) -> int:
        """Bytes that it takes now, from which its peak is counted."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak(self) -> int:
        """Bytes that it took at most since."""
        return self._memory("VmHWM")

    def work(self) -> float:
        """Seconds of processors that it has had."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def _memory(self, what: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few and small, to see that it works")
    parser.add_argument("--line", choices=["far", "connect"], help="what stands between nodes and coordinator")
    parser.add_argument("--large", type=float, nargs="?", const=3.4e9, help="bytes of one message, to one node")
    parser.add_argument("--nodes", type=int, nargs="+", help="how many at a time (default: 4 16 64)")
    parser.add_argument(
        "--repetitions", type=int, default=1, help="of each measurement, ours and the bare echo in turn"
    )
    given = parser.parse_args()
    if given.large is not None:
        large(int(given.large))
        return
    smoke, line = given.smoke, given.line
    if smoke:
        print("smoke: the figures mean nothing")
    torch.set_num_threads(1)
    print("nodes  call      interfuse, ms   bare grpcio, ms   ratio")
    for nodes in given.nodes or ((2,) if smoke else (4,) if line else (4, 16, 64)):
        sizes = {"trivial": 0, "5 MB": 5_000_000}
        if smoke:
            sizes["5 MB"] = 500_000
        elif nodes == 4 and line != "far":
            sizes["50 MB"] = 50_000_000
        ratios: dict[str, list[float]] = {}
        for _ in range(given.repetitions):
            ours = fork_measured(ours_of, nodes, sizes, line)
            bare = fork_measured(bare_of, nodes, sizes, line)
            for name, seconds in ours.items():
                ratios.setdefault(name, []).append(seconds / bare[name])
                print(f"{nodes:5}  {name:12} {1e3 * seconds:9.2f} {1e3 * bare[name]:15.2f} {ratios[name][-1]:11.2f}")
        for name, found in ratios.items() if given.repetitions > 1 else ():
            median = statistics.median(found)
            print(f"{nodes:5}  {name:12} ratios {min(found):.2f} to {max(found):.2f}, median {median:.2f}")


def large(size: int) -> None:
    """One message down and one up, and a bare echo of as many bytes, three times each; seconds are medians, those of
    processors means of both processes together."""
    print("message                  seconds, of processors   memory of processes, before and at most")
    bare, ours = fork_measured(large_bare_of, 1, {"": size}, None), fork_measured(large_of, 1, {"": size}, None)
    for way in ("down", "up"):
        for name, found in (("interfuse", ours), ("bare grpcio", bare)):
            takes = [f"{found[f'{way} {who} {when}'] / 1e9:.2f}" for who in WHO for when in ("before", "peak")]
            print(
                f"{size / 1e9:.1f} GB {way:4}  {name:11} {found[way]:8.2f} {found[f'{way} work']:8.2f}"
                f"   coordinator {takes[0]} to {takes[1]} GB, node {takes[2]} to {takes[3]} GB"
            )


def fork_measured(
    work: Callable[[Place, int, dict[str, int]], None], nodes: int, sizes: dict[str, int], line: str | None
) -> dict[str, float]:
    """Seconds by name, as a process of its own measures them: gRPC must not be in use where processes are forked."""
    with tempfile.TemporaryDirectory() as folder:
        make_keys(Path(folder) / "keys", [f"node-{i:02d}" for i in range(nodes)], ["127.0.0.1"])
        place = Place(Path(folder), free_port(), line, free_port())
        between = fork(proxy, place.line_port, place.port, line == "connect", name="line") if line else None
        while between is not None and between.is_alive() and not listens(place.line_port):
            time.sleep(0.05)
        work(place, nodes, sizes)
        if between is not None:
            between.kill()
        lines = (Path(folder) / "result").read_text().splitlines()
    return {name: float(value) for name, value in (line.split("\t") for line in lines)}


def timed(call: Callable[[], object], seconds: float = 2.0, least: int = 5) -> float:
    """The median of many calls, after a few to warm up."""
    for _ in range(2 if seconds else 0):
        call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < least:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def write(folder: Path, found: dict[str, float]) -> None:
    (folder / "result").write_text("\n".join(f"{name}\t{value}" for name, value in found.items()))


def joined(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(20)
        process.kill()


# --- interfuse


def ours_of(
    place: Place, nodes: int, sizes: dict[str, int], measure: Measure | None = None, most: int = MESSAGE
) -> None:
    folder, port = place.folder, place.port
    names = [f"node-{i:02d}" for i in range(nodes)]
    np.savez(folder / "rows.npz", x=np.zeros((20, 1, 4, 4), np.float32), y=np.arange(20) % 2)
    processes = [fork(_node, place, name, most, name=name) for name in names]
    arguments = (folder, names, port, sizes, measure or _times, most)
    processes.append(fork(_coordinator, *arguments, name="coordinator"))
    processes[-1].join()
    joined(processes)


def large_of(place: Place, nodes: int, sizes: dict[str, int]) -> None:
    ours_of(place, nodes, sizes, partial(_large, place.folder), sizes[""] + CHUNK)


def _large(folder: Path, method: Echo, clients: Clients, sizes: dict[str, int]) -> dict[str, float]:
    size = sizes[""]
    load = _many(size)
    found = looked_at(folder, "down", lambda: clients.call(method.many_down, load))
    del load
    _many.cache_clear()
    asked = Load(torch.tensor([float(size)]))
    return found | looked_at(folder, "up", lambda: clients.call(method.many_up, asked))


def looked_at(folder: Path, way: str, call: Callable[[], object], times: int = 3) -> dict[str, float]:
    """What calls of this process, the coordinator, and the one node take: seconds, work, memory."""
    processes = dict(zip(WHO, (Process(os.getpid()), Process(int((folder / "node-00.pid").read_text()))), strict=True))
    before = {f"{way} {who} before": float(process.forget_peak()) for who, process in processes.items()}
    worked = sum(process.work() for process in processes.values())
    seconds = timed(call, 0.0, times)
    work = (sum(process.work() for process in processes.values()) - worked) / times
    peaks = {f"{way} {who} peak": float(process.peak()) for who, process in processes.items()}
    return {way: seconds, f"{way} work": work, **before, **peaks}


def _node(place: Place, name: str, most: int) -> None:
    folder = place.folder
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    keys = folder / "keys" / name
    vendor = Vendor.model_validate(
        {
            "name": name, "coordinator": place.address, "proxy": place.proxy,
            "folder": folder, "state": f"state-{name}",
            "model": {"build": "logistic"}, "data": {"source": "rows.npz"},
            "allow": {"methods": [f"{__name__}:Echo"], "disclosures": ["statistics"]},
            "limits": {"calls": 10**6, "message_bytes": most},
            "keys": {"key": keys / f"{name}.key", "certificate": keys / f"{name}.crt", "authority": keys / "ca.crt"},
        }
    )  # fmt: skip
    take_part(Node(vendor, Events(None, lambda text: None)), partial(dial, vendor, insecure=False), patience=60)


def _coordinator(folder: Path, names: list[str], port: int, sizes: dict[str, int], measure: Measure, most: int) -> None:
    carrier = Listener(f"127.0.0.1:{port}", folder / "keys" / "coordinator")
    config = parse_config({"method": f"{__name__}:Echo", "evaluation": "none", "rounds": 1, "fusion_width": 8})
    method = Echo()
    public = Public(2, ["0", "1"], no_labels(), None)
    contract = make_contract(config, method, "benchmark", public, most)
    hub = Hub(contract, method, len(names), carrier, Events(None, lambda text: None), message_bytes=most)
    while len(hub.connected()) < len(names):
        time.sleep(0.05)
    members: dict[ClientId, Member] = {client: hub.members[name] for client, name in enumerate(names)}
    for client, member in members.items():
        member.client = client
    setup = RemoteSetup(contract, None, method, {c: m.facts for c, m in members.items()}, public.labels, {}, ["0", "1"])
    engine = Remote(hub, setup, members, 1, Patience(), message_bytes=most)
    engine.begin()
    dims: Dims = setup.dims
    clock = WallClock()
    exchange = Exchange(engine, Ledger(), dims, 0, programs(method, "method"), clock, round=1, heading="training")
    clients = Clients(exchange, engine.profiles)
    write(folder, measure(method, clients, sizes))
    hub.close("done", finished=True)


Measure = Callable[[Echo, Clients, dict[str, int]], dict[str, float]]


def _times(method: Echo, clients: Clients, sizes: dict[str, int]) -> dict[str, float]:
    found = {}
    for name, size in sizes.items():
        if not size:
            found[name] = timed(lambda: clients.call(method.ping))
            continue
        load, asked = Load(torch.zeros(size // 4)), Load(torch.tensor([float(size // 4)]))
        found[f"{name} down"] = timed(partial(clients.call, method.down, load))
        found[f"{name} up"] = timed(partial(clients.call, method.up, asked))
    return found


# --- bare grpcio


def large_bare_of(place: Place, nodes: int, sizes: dict[str, int]) -> None:
    bare_of(place, nodes, sizes, 0.0)


def bare_of(place: Place, nodes: int, sizes: dict[str, int], seconds: float = 2.0) -> None:
    processes = [fork(_bare_node, place, f"node-{i:02d}", name=f"bare-{i}") for i in range(nodes)]
    processes.append(fork(_bare_server, place.folder, nodes, place.port, sizes, seconds, name="bare"))
    processes[-1].join()
    joined(processes)


def _pieces(size: int) -> Iterator[bytes]:
    block = bytes(CHUNK)
    while size > CHUNK:
        yield block
        size -= CHUNK
    yield block[:size]


def _bare_node(place: Place, name: str) -> None:
    (place.folder / f"{name}.pid").write_text(str(os.getpid()))
    keys = place.folder / "keys" / name
    files = KeyFiles.in_folder(keys, name)
    outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    options = [*OPTIONS, *([("grpc.http_proxy", f"http://{place.proxy}")] if place.proxy else [])]
    channel = grpc.secure_channel(place.address, of_node(files), options)
    grpc.channel_ready_future(channel).result(timeout=60)
    join = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
    held = 0
    for frame in join(iter(outgoing.get, None)):
        if frame[:4] == b"want":  # the head: bytes that come down, bytes that go up
            down, up = (int(word) for word in frame[5:].split())
            held = 0
        else:
            held += len(frame)
        if held >= down:
            for piece in _pieces(up):
                outgoing.put(piece or b"ok")
            down = 1 << 62


def _bare_server(folder: Path, nodes: int, port: int, sizes: dict[str, int], seconds: float) -> None:
    place = folder / "keys" / "coordinator"
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    links: list[queue.SimpleQueue[bytes | None]] = []

    def stream(incoming: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        link: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def read() -> None:
            for frame in incoming:
                arrived.put(len(frame))

        threading.Thread(target=read, daemon=True).start()
        links.append(link)
        yield from iter(link.get, None)

    server = grpc.server(futures.ThreadPoolExecutor(nodes + 4), options=OPTIONS)
    service, name = METHOD.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
    server.add_secure_port(f"127.0.0.1:{port}", of_server(KeyFiles.in_folder(place, "coordinator"), lambda: None))
    server.start()
    while len(links) < nodes:
        time.sleep(0.05)

    def call(down: int, up: int) -> None:
        for link in links:
            link.put(f"want {down} {up}".encode())
            for piece in _pieces(down) if down else ():
                link.put(piece)
        left = nodes * max(up, 2)
        while left > 0:
            left -= arrived.get(timeout=600)

    found: dict[str, float] = {}
    for label, size in sizes.items():
        if not seconds:
            found |= looked_at(folder, "down", partial(call, size, 0))
            found |= looked_at(folder, "up", partial(call, 0, size))
        elif not size:
            found[label] = timed(lambda: call(0, 0))
        else:
            found[f"{label} down"] = timed(partial(call, size, 0), seconds)
            found[f"{label} up"] = timed(partial(call, 0, size), seconds)
    write(folder, found)
    for link in links:
        link.put(None)
    server.stop(1).wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
