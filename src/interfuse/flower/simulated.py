"""Nodes of a recipe's clients in Flower's simulation, where all parties are one.

Flower hands each message of a client to any of its Ray actors. The first that gets one becomes the client's home: its
node answers there, in a thread, at a socket; actors that get a later message hand it on to that socket.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from contextlib import closing, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from interfuse.client import ClientId
from interfuse.coordination.driver import between_parties
from interfuse.engines.flower.residence import reside
from interfuse.engines.parties.limits import LimitsTable
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.setups import Holdings
from interfuse.engines.parties.vendor import AllowTable, DataTable, ModelTable, Vendor
from interfuse.errors import ConfigError, InterfuseError
from interfuse.messages import Disclosure
from interfuse.runs import RunConfig, read_config
from interfuse.runs.loop import assemble
from interfuse.setup import Setup

BEGINNING = 60.0
"""Seconds in which a node must answer at its socket."""


@cache
def homes_of(recipe: Path) -> Homes:
    """Those of this process: Flower sends the ClientApp with every message, so it is another object each time."""
    return Homes(recipe)


class Homes:
    """The nodes of a simulation's clients that live in this process."""

    def __init__(self, recipe: Path) -> None:
        self._recipe = read_config(recipe)
        self._turn = threading.Lock()  # PyTorch's global generator is one for all nodes here

    def place_of(self, context: Any) -> str:
        """The socket of the node of a message's client; it is here from now on, where it was nowhere."""
        client, clients = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
        if clients != self._recipe.clients:
            raise ConfigError(
                f"the recipe has {self._recipe.clients} clients, but Flower simulates {clients} SuperNodes"
            )
        place = _own_folder(context.run_id) / f"{client}.sock"
        if not _answers(place):
            self._move_in(client, place, Path(str(context.run_config["out"])) / "nodes")
        return str(place)

    @cached_property
    def _config(self) -> RunConfig:
        return between_parties(self._recipe, self._recipe.clients)

    @cached_property
    def _setup(self) -> Setup:
        return assemble(self._config)

    def _move_in(self, client: ClientId, place: Path, folder: Path) -> None:
        vendor = self._vendor(client, folder)
        events = Events(vendor.state_folder / "node.jsonl", lambda text: None)
        node = Node(vendor, events, holdings=self._holdings(client))
        ready = threading.Event()
        threading.Thread(target=self._live, args=(node, events, place, ready), name=vendor.name, daemon=True).start()
        ready.wait(BEGINNING)

    def _live(self, node: Node, events: Events, place: Path, ready: threading.Event) -> None:
        with closing(events), closing(node):
            try:
                reside(node, place, keys=None, turn=self._turn, ready=ready.set)
            except InterfuseError as error:
                events.add("stops", reason=error)
            finally:
                ready.set()
                with suppress(OSError):  # not empty as long as others of the run answer
                    place.parent.rmdir()

    def _vendor(self, client: ClientId, folder: Path) -> Vendor:
        """One that allows all that the recipe asks, under a name that has the client's number in the order of names."""
        config, name = self._config, f"client-{client:05d}"
        allow = AllowTable(
            methods=(config.method,), disclosures=tuple(Disclosure), evaluation="shared", retention=True,
            draws_from="seed",
        )  # fmt: skip
        return Vendor(
            name=name, device=config.device, state=folder / name, data=DataTable(source=config.data_names[0]),
            model=ModelTable(architecture=self._setup.architectures[client], public=True), allow=allow,
            limits=LimitsTable(fusion_width=config.fusion_width),
        )  # fmt: skip

    def _holdings(self, client: ClientId) -> Holdings:
        setup = self._setup
        return Holdings(
            setup.datasets[client], setup.builders[client], lambda: setup.public_set,
            lambda contract, dataset: setup.shares[client],
        )  # fmt: skip


def _own_folder(run: int) -> Path:
    """The folder of a run's sockets, the same for all processes of this user.

    Sockets need short paths, so it lies where others may have put something of that name.

    Raises:
        ConfigError: they have, or there can be none.
    """
    folder = Path(tempfile.gettempdir()) / f"interfuse-{run:x}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"{folder}, for sockets of a simulation: {error.strerror}; set TMPDIR to another folder"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ConfigError(
            f"{folder} is no folder that is this user's alone (mode 0700), so no node answers there: remove it, or "
            "set TMPDIR to another folder"
        )
    return folder


def _answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        return line.connect_ex(str(place)) == 0
