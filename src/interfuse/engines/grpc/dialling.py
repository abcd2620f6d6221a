"""A node's stream over gRPC. See :class:`interfuse.engines.parties.Line`."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import grpc

from interfuse.engines.grpc.keys import names_shown, of_node, why_strange
from interfuse.engines.parties import LARGEST_FRAME, LineError, MisnamedError, StrangeError, Vendor
from interfuse.errors import ConfigError

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
_MISNAMED = "Hostname Verification Check failed"
"""What gRPC says where a certificate is good, but for another name."""
_STRANGE = ("handshake failed", "Socket closed")
"""What it may say where a certificate is none of the other side's authority."""
FRAMES = 8
"""Frames that wait until gRPC takes them: a coordinator that does not read makes its node wait, not grow."""


@contextmanager
def dial(vendor: Vendor, *, insecure: bool) -> Iterator[GrpcLine]:
    """Open a stream to the vendor's coordinator.

    Args:
        insecure: Without TLS: everybody on the way can read and change everything.

    Raises:
        ConfigError: keys are needed, and are not there.
    """
    with _channel(vendor, insecure) as channel:
        line = GrpcLine(channel, vendor)
        try:
            yield line
        finally:
            line.send(None)


def _channel(vendor: Vendor, insecure: bool, name: str | None = None) -> grpc.Channel:
    """A channel to the coordinator, who may have a certificate for another name where one is given."""
    # only a proxy that the vendor's file names: an environment's (https_proxy) is nothing that its author has decided
    proxy = ("grpc.http_proxy", f"http://{vendor.proxy}") if vendor.proxy else ("grpc.enable_http_proxy", 0)
    options = [*OPTIONS, proxy, *([] if name is None else [("grpc.ssl_target_name_override", name)])]
    if insecure:
        return grpc.insecure_channel(vendor.coordinator, options)
    files = vendor.key_files()
    if files is None:
        raise ConfigError("the vendor's file names no [keys]; `interfuse keys` makes some, --insecure goes without")
    return grpc.secure_channel(vendor.coordinator, of_node(files), options)


class GrpcLine:
    """One stream, from the hello to its end."""

    def __init__(self, channel: grpc.Channel, vendor: Vendor) -> None:
        self._vendor = vendor
        self._outgoing: queue.Queue[bytes | None] = queue.Queue(FRAMES)
        join = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
        self._incoming = join(iter(self._outgoing.get, None))

    def received(self) -> Iterator[bytes]:
        try:
            yield from self._incoming
        except grpc.RpcError as error:
            called = isinstance(error, grpc.Call)
            if called and _MISNAMED in (error.details() or ""):
                found = names_shown(self._vendor)
                raise MisnamedError(
                    f"who answers at {self._vendor.coordinator} has a certificate for {', '.join(found) or 'no name'}: "
                    "dial that name, or have the certificate made for this one (`interfuse keys --hosts`)",
                    found,
                ) from error
            suspicious = called and any(words in (error.details() or "") for words in _STRANGE)
            if suspicious and (why := why_strange(self._vendor)):
                raise StrangeError(why) from error
            raise LineError(f"{error.code().name}: {error.details()}" if called else str(error)) from error

    def tell(self, found: str, frames: Iterable[bytes]) -> None:
        with _channel(self._vendor, False, found) as channel:
            line = GrpcLine(channel, self._vendor)
            for frame in frames:
                line.send(frame)
            line.finish()

    def send(self, frame: bytes | None) -> None:
        """Hand a frame to gRPC, which takes one after the other; None is the last."""
        while True:
            with suppress(queue.Full):
                return self._outgoing.put(frame, timeout=0.5)
            if self._incoming.done():
                return None

    def finish(self, seconds: float = 2.0) -> None:
        self.send(None)
        end = time.monotonic() + seconds
        with suppress(grpc.RpcError):
            while not self._incoming.done() and time.monotonic() < end:
                time.sleep(0.01)
