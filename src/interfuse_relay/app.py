"""The ClientApp that relays."""

from __future__ import annotations

import sys
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

    def relay(message: Message, context: Context) -> Message:
        return Message(_answer(message, context, simulated), reply_to=message)

    app = ClientApp()
    app.query(ACTION)(relay)
    return app


def _place_of(context: Context, simulated: Path | None) -> str:
    """Where the SuperNode's own configuration says; in a simulation, where the client's home is."""
    if PLACE in context.node_config:
        return str(context.node_config[PLACE])
    if simulated is None or not _in_simulation():
        return ""
    from interfuse.flower.simulated import homes_of  # with PyTorch, which no other process here needs

    return homes_of(simulated).place_of(context)


def _in_simulation() -> bool:
    """Whether this is one of the Ray actors in which Flower simulates clients."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _answer(message: Message, context: Context, simulated: Path | None) -> RecordDict:
    packet, place = packet_of(message.content), _place_of(context, simulated)
    if packet is None or not place:
        return failed(BROKEN if packet is None else UNNAMED)
    try:
        return content_of(handed_on(packet, place))
    except (FileNotFoundError, ConnectionRefusedError):
        return failed(NOBODY)
    except OSError:
        return failed(BROKEN)
