"""A service at an address: with TLS or without, until it is told to end."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from interfuse.errors import ConfigError
from interfuse.serve.application import Service
from interfuse.serve.connections import Connection
from interfuse.serve.faults import ServiceError

CERTIFICATES_FOR = 1.0
"""Seconds for which a certificate that was let in is not looked up again."""


def listening(address: str) -> socket.socket:
    """A socket that listens at ``HOST:PORT``; port 0 is any that is free.

    Raises:
        ConfigError: nothing can listen there.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=1024)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"cannot listen at {address}: {error}; --listen HOST:PORT names another place") from error


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine reach an address ``HOST:PORT``."""
    host = address.rpartition(":")[0].strip("[]") or "127.0.0.1"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls(folder: Path, *, certificates: bool) -> ssl.SSLContext:
    """TLS with the files of a folder as `interfuse keys` makes them: ``NAME.key`` and ``NAME.crt``, where NAME is the
    folder's, and ``ca.crt``.

    Args:
        certificates: Whether whoever connects must show one of the authority.

    Raises:
        ConfigError: a file cannot be read.
    """
    name = folder.resolve().name
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
        if certificates:
            context.load_verify_locations(folder / "ca.crt")
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # an ssl.SSLError is one
        raise ConfigError(
            f"{folder} needs {name}.key, {name}.crt and ca.crt of one authority (`interfuse keys` makes some): {error}"
        ) from error
    return context


def admission(folder: Path, clock: Callable[[], float] = time.monotonic) -> Callable[[bytes], str]:
    """Names the owner of a certificate that lies in ``nodes/`` of a folder, and not in ``revoked/``."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from interfuse.engines.admission import Admission, name_in
    from interfuse.engines.parties import JoinError

    known, let_in = Admission(folder), dict[bytes, tuple[str, float]]()

    def named(shown: bytes) -> str:
        name, until = let_in.get(shown, ("", 0.0))
        if clock() < until:
            return name
        try:
            certificate = x509.load_der_x509_certificate(shown)
            name = name_in(certificate)
            known.check(name, certificate.public_bytes(Encoding.PEM))
        except (JoinError, ValueError) as error:
            let_in.pop(shown, None)
            raise ServiceError("unauthorised", f"that certificate may not ask here: {error}") from None
        let_in[shown] = name, clock() + CERTIFICATES_FOR
        return name

    return named


def run(service: Service, at: socket.socket, context: ssl.SSLContext | None = None) -> None:
    """Answer until SIGTERM or SIGINT; then finish what is under way."""
    server = _server(service, context)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([at])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running(service: Service, context: ssl.SSLContext | None = None, address: str = "127.0.0.1:0") -> Iterator[str]:
    """A service in a thread of this process, for tests and notebooks. Gives its address, ``http://HOST:PORT``."""
    server = _server(service, context)
    with listening(address) as at:
        thread = threading.Thread(target=server.run, args=([at],), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise ConfigError("the service could not begin")
                time.sleep(0.005)
            host, port = at.getsockname()[:2]
            yield f"{'http' if context is None else 'https'}://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join()


def _server(service: Service, context: ssl.SSLContext | None) -> uvicorn.Server:
    limits = service.limits
    config = uvicorn.Config(
        service.application(),
        http=Connection,
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(limits.idle)),
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        h11_max_incomplete_event_size=64 << 10,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    return uvicorn.Server(config)
