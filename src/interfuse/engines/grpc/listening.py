"""A coordinator that listens over gRPC. See :class:`interfuse.engines.parties.Carrier`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2

from interfuse.engines.admission import Admission
from interfuse.engines.grpc.dialling import METHOD, OPTIONS
from interfuse.engines.grpc.handshakes import Handshakes
from interfuse.engines.grpc.keys import of_server
from interfuse.engines.parties import Join, KeyFiles, Link, Peer
from interfuse.engines.parties.machine import raise_descriptors
from interfuse.errors import ConfigError

SERVER = (
    *OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_concurrent_streams", 4),
)
"""Nodes ask every 10 seconds whether the coordinator is there, also while it has nothing to say to them for minutes. By
default gRPC takes three such questions within 15 minutes for an attack, and ends the connection; with these it does for
whoever asks more often than every 5 seconds.

A connection has 10 seconds for its handshake, 30 without a stream, and 4 streams at once: whoever has no key, or only a
revoked one, holds no descriptor for longer."""


CONNECTIONS = 4096
"""At most, whoever they are of: one that has not shown a key yet takes about 120 kB of memory."""


class Listener:
    """Streams over gRPC, each in two threads of its own: gRPC's sends, the one behind ``join`` reads.

    Args:
        address: ``HOST:PORT``; port 0 is any that is free.
        keys: The coordinator's folder of `interfuse keys`; None: without TLS, whoever comes is who it says it is.
    """

    def __init__(self, address: str, keys: Path | None) -> None:
        self.address = address
        self._keys, self._admission = keys, None if keys is None else Admission(keys)
        self._handshakes = Handshakes()

    def open(self, streams: int, join: Join) -> None:
        pool = futures.ThreadPoolExecutor(streams)
        options = (*SERVER, ("grpc.max_allowed_incoming_connections", min(raise_descriptors(), CONNECTIONS)))
        self._join, self._server = join, grpc.server(pool, options=options, maximum_concurrent_rpcs=streams)
        known = health.HealthServicer()
        # Check alone: a stream that watches has no end, and a revoked key could hold any number of them
        asked = grpc.unary_unary_rpc_method_handler(
            partial(self._checked, known),
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        service, name = METHOD.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        handlers = {service: {name: handler}, "grpc.health.v1.Health": {"Check": asked}}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(*one) for one in handlers.items()])
        try:
            if self._keys is None:
                port = self._server.add_insecure_port(self.address)
            else:
                credentials = of_server(KeyFiles.in_folder(self._keys, "coordinator"), self._handshakes.begins)
                port = self._server.add_secure_port(self.address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen at {self.address}: is the port taken? name another (--listen)") from error
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self._server.start()
        for serving in ("", service):
            known.set(serving, health_pb2.HealthCheckResponse.SERVING)

    def _checked(
        self, known: health.HealthServicer, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        self._handshakes.calls(context.peer())
        return known.Check(request, context)

    def _stream(self, incoming: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self._handshakes.calls(context.peer())
        link = Link(context.cancel)
        if not context.add_callback(link.end):
            return  # it was reset before it began: nothing would ever end the link, and the thread would wait for ever
        pem = b"".join(context.auth_context().get("x509_pem_cert", []))
        self._join(link, incoming, Peer(context.peer(), pem))
        yield from link.outgoing()

    def key_of(self, peer: Peer) -> str:
        return "" if self._admission is None else self._admission.known(peer.credential)

    def admitted(self, name: str, peer: Peer) -> str:
        return f"(insecure) {name}" if self._admission is None else self._admission.check(name, peer.credential)

    def revoked(self) -> set[str]:
        return set() if self._admission is None else self._admission.revoked()

    def unheard(self) -> int:
        return self._handshakes.unheard()

    def close(self) -> None:
        self._server.stop(grace=2.0).wait()
