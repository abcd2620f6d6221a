"""The ClientApp that relays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from interfuse_relay.lines import handed_on
from interfuse_relay.records import ACTION, BROKEN, NOBODY, UNNAMED, content_of, failed, packet_of

PLACE = "interfuse"
"""Key of a SuperNode's configuration: the path of the socket at which its node answers."""


def client_app(simulated: Path | None = None) -> ClientApp:
    """A ClientApp that relays.

    Args:
        simulated: The recipe of whose clients nodes are made in Flower's simulation, where SuperNodes name none.
    """
    places = _Places(simulated)

    def relay(message: Message, context: Context) -> Message:
        return Message(_answer(message, context, places), reply_to=message)

    app = ClientApp()
    app.query(ACTION)(relay)
    return app


class _Places:
    """Where nodes answer."""

    def __init__(self, simulated: Path | None) -> None:
        self._simulated = simulated
        self._of_partition: Callable[[Context], str] | None = None

    def of(self, context: Context) -> str:
        """Where the SuperNode's own configuration says; in a simulation, where the client's home is."""
        if PLACE in context.node_config:
            return str(context.node_config[PLACE])
        if self._simulated is None or not _in_simulation():
            return ""
        if self._of_partition is None:
            from interfuse.flower.simulated import Homes  # with PyTorch, which no other process here needs

            self._of_partition = Homes(self._simulated).place_of
        return self._of_partition(context)


def _in_simulation() -> bool:
    """Whether this is one of the Ray actors in which Flower simulates clients."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _answer(message: Message, context: Context, places: _Places) -> RecordDict:
    packet, place = packet_of(message.content), places.of(context)
    if packet is None or not place:
        return failed(BROKEN if packet is None else UNNAMED)
    try:
        return content_of(handed_on(packet, place))
    except (FileNotFoundError, ConnectionRefusedError):
        return failed(NOBODY)
    except OSError:
        return failed(BROKEN)
