"""A worker of the Ray engine: a host in a process of its own, on some node of the cluster."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from interfuse.client import ClientId
from interfuse.clients import Request
from interfuse.engines.allocator import keep_freed_memory
from interfuse.engines.host import Host
from interfuse.engines.local import parts_at
from interfuse.engines.ray.packing import Bytes, Packed, packed, unpacked
from interfuse.engines.resting import RestingFile, Room
from interfuse.engines.stacked import prepare
from interfuse.engines.working import Numbered, worked
from interfuse.setup import Setup
from interfuse.wire import Part, Source


def build(device: str) -> dict[str, str]:
    """What bits depend on that is not in a run's configuration, of this process."""
    gpu = {} if device == "cpu" else {"GPU": torch.cuda.get_device_name()}
    return gpu | {
        "interfuse": version("interfuse"),
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


class Worker:
    """What becomes an actor. Its methods run one after the other, in the order in which the engine calls them.

    Args:
        paths: Where the engine finds modules; a worker looks there last.
        setup: A reference to the set-up in the object store, in a list: it can be read only where modules are found.
        workers: How many there are, between which the room is divided.
    """

    def __init__(self, paths: Sequence[str], setup: Sequence[Any], room: Room, workers: int) -> None:
        import ray

        sys.path += [path for path in paths if path not in sys.path]
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to data
        torch.set_num_threads(1)
        keep_freed_memory()
        self._setup: Setup = ray.get(setup[0])
        if self._setup.numerics.together > 1:
            prepare()
        self._folder = room.folder if room.folder is not None and room.folder.is_dir() else None
        room = Room(room.memory, self._folder).of_each(workers)
        self._host = Host(self._setup, lends=self._setup.numerics.together == 1, room=room)
        self._arrived = RestingFile(self._folder)
        self._parts: dict[ClientId, Part] = {}
        self._saved: Source | None = None
        self._node: str = ray.get_runtime_context().get_node_id()

    def facts(self) -> dict[str, Any]:
        """Where it is, and what it is built of."""
        return {"node": self._node, "host": platform.node(), "pid": os.getpid(), "build": build(self._setup.device)}

    def call(self, request: Mapping[str, Any], groups: Sequence[Sequence[Numbered]], *bodies: Bytes) -> list[list[Any]]:
        """Run a handler on groups of clients, whose messages are numbered as the bodies are."""
        device = self._setup.device
        with self._host.working():
            return worked(
                self._host, self._setup, Request(**request), groups, lambda n: unpacked(bodies[n], device), packed
            )

    def undo(self, clients: Sequence[ClientId]) -> None:
        self._host.undo(clients)

    def end_round(self) -> None:
        self._host.end_round()

    def release(self, clients: Sequence[ClientId]) -> list[tuple[ClientId, Bytes]]:
        """Give clients away."""
        return [(client, packed(self._host.release(client))) for client in clients]

    def adopt(self, released: Sequence[tuple[ClientId, Bytes]]) -> None:
        """Take clients over that another worker gave away."""
        with self._host.working():
            for client, body in released:
                self._host.adopt(client, unpacked(body, self._setup.device))

    def save(self, path: str | None, again: Collection[ClientId]) -> dict[str, Any] | None:
        """Write what clients own that changed into a pack; without a path into one that :meth:`piece` reads."""
        if path is not None:
            record = self._host.save(Path(path), again)
            return None if record is None else asdict(record)
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "clients.safetensors"
            record = self._host.save(own, again)
            self._saved = None if record is None else Source.of(own)  # open, it outlives its name
        return None if record is None else asdict(record)

    def piece(self, offset: int, size: int) -> bytes:
        """A piece of the pack that was saved last."""
        assert self._saved is not None
        return self._saved.read(offset, size)

    def restore(self, places: Sequence[Sequence[Any]]) -> None:
        """Put clients back to what lies in files, others to what has arrived, and all others to their beginning."""
        self._host.restore(self._parts | parts_at(places))
        self._parts, self._arrived = {}, RestingFile(self._folder)  # the file outlives its name in what refers to it

    def arrive(self, clients: Sequence[ClientId], *bodies: Bytes) -> None:
        """What clients owned, from where this worker cannot read it."""
        for client, body in zip(clients, bodies, strict=True):
            self._parts[client] = self._arrived.put(Packed(body))
