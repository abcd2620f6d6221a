"""How a node reaches its coordinator: one long-lived stream, made anew for as long as it takes."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc

from interfuse.engines.grpc.frames import LARGEST_FRAME, Assembler, Begin, Call, End, FrameError, Order, frames
from interfuse.engines.grpc.node import Node, RefusedError
from interfuse.engines.grpc.vendor import Vendor
from interfuse.errors import ConfigError, RunError

METHOD = "/interfuse.Federation/Join"
OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_FRAME),
    ("grpc.max_send_message_length", LARGEST_FRAME),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
"""Of both sides: a peer that is gone is noticed within 20 seconds, whatever stands between."""
FRAMES = 8
"""Frames that wait until gRPC takes them: a coordinator that does not read makes its node wait, not grow."""
SHORTEST, LONGEST = 0.1, 10.0
"""Seconds between two attempts to reach the coordinator, before jitter."""


def take_part(node: Node, vendor: Vendor, *, insecure: bool, patience: float | None = None) -> str:
    """Take part in a run to its end; returns the coordinator's last words.

    Args:
        insecure: Without TLS: everybody on the way can read and change everything.
        patience: Seconds without a coordinator after which to give up; None: never.

    Raises:
        RefusedError: one of the sides does not agree with the other.
        RunError: no coordinator could be reached within ``patience``, or nothing may leave.
    """
    pause, lost = SHORTEST, time.monotonic()
    while True:
        reached = False
        with _channel(vendor, insecure) as channel:
            stream = _Stream(channel)
            try:
                for last in stream.serve(node):
                    reached = True
                    if last is not None:
                        node.events.add("ends", reason=last.reason)
                        if not last.finished:
                            raise RefusedError(f"the coordinator ended this node's part: {last.reason}")
                        return last.reason
                reason = "the stream ended"
            except grpc.RpcError as error:
                reason = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
            except FrameError as error:
                reason = f"the coordinator sent no frame of ours: {error}"
            except RefusedError as error:
                stream.finish()
                if not error.retry:
                    raise
                reason = str(error)
        if reached:
            pause, lost = SHORTEST, time.monotonic()
        if patience is not None and time.monotonic() - lost > patience:
            raise RunError(f"no coordinator at {vendor.coordinator} for {patience:g} seconds; the last try: {reason}")
        node.events.add("connects again", reason=reason, pause=round(pause, 1))
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, LONGEST)


def _channel(vendor: Vendor, insecure: bool) -> grpc.Channel:
    options = [*OPTIONS, *([("grpc.http_proxy", f"http://{vendor.proxy}")] if vendor.proxy else [])]
    if insecure:
        return grpc.insecure_channel(vendor.coordinator, options)
    files = vendor.key_files()
    if files is None:
        raise ConfigError("the vendor's file names no [keys]; `interfuse keys` makes some, --insecure goes without")
    return grpc.secure_channel(vendor.coordinator, files.of_node(), options)


class _Stream:
    """One stream, from the hello to its end."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outgoing: queue.Queue[bytes | None] = queue.Queue(FRAMES)
        join = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
        self._incoming = join(iter(self._outgoing.get, None))

    def serve(self, node: Node) -> Iterator[End | None]:
        """Answer until the stream ends. Yields None for every piece of a run's work, and the end if there is one."""
        assembler = Assembler(node.vendor.limits.message_bytes)
        try:
            self._send(frames(*node.hello()))
            for frame in self._incoming:
                whole = assembler.feed(frame)
                if whole is None:
                    continue
                if isinstance(whole[0], End):
                    yield whole[0]
                    return
                for answer in node.answer(*whole):
                    self._send(frames(*answer))
                if isinstance(whole[0], Begin | Call | Order):
                    yield None
        finally:
            self._put(None)

    def finish(self, seconds: float = 2.0) -> None:
        """Let what was sent last arrive."""
        self._put(None)
        end = time.monotonic() + seconds
        with suppress(grpc.RpcError):
            while not self._incoming.done() and time.monotonic() < end:
                time.sleep(0.01)

    def _send(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self._put(piece)

    def _put(self, piece: bytes | None) -> None:
        """Hand a frame to gRPC, which takes one after the other; nothing, once the stream has ended."""
        while True:
            with suppress(queue.Full):
                return self._outgoing.put(piece, timeout=0.5)
            if self._incoming.done():
                return None
