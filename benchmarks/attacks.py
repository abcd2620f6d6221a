"""What strangers, holders of revoked keys and a vendor's own key can do to a coordinator's port: bounded, for loopback.

Each attack takes an address, some do with keys of :func:`interfuse.engines.grpc.make_keys`; it returns how often it did
what it does. `soak.py` runs all of them at once beside a run.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from interfuse.engines.grpc.dialling import METHOD, OPTIONS
from interfuse.engines.grpc.keys import of_node
from interfuse.engines.parties import KeyFiles
from interfuse.engines.parties.contract import LIBRARY, WIRE
from interfuse.engines.parties.frames import PROTOCOL, Hello, frames

Address = tuple[str, int]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING = 0, 1, 3, 4, 6
"""Types of HTTP/2 frames (RFC 9113)."""


def idle(address: Address, count: int, seconds: float) -> int:
    """Open connections, say nothing, and close them after a while."""
    with ExitStack() as opened:
        found = 0
        for _ in range(count):
            with suppress(OSError):
                opened.enter_context(socket.create_connection(address, timeout=2))
                found += 1
        time.sleep(seconds)
        return found


def half_open(address: Address, count: int, seconds: float) -> int:
    """Begin TLS and stop in the middle of the first message."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
    with ExitStack() as opened:
        found = 0
        for _ in range(count):
            with suppress(OSError):
                connection = opened.enter_context(socket.create_connection(address, timeout=2))
                connection.sendall(hello)
                found += 1
        time.sleep(seconds)
        return found


def silent(address: Address, files: KeyFiles, count: int, seconds: float) -> int:
    """Open streams and say nothing; returns how many were still open after a while."""
    with ExitStack() as opened:
        calls = []
        for number in range(count):
            options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.attack", number)]
            channel = grpc.secure_channel(f"{address[0]}:{address[1]}", of_node(files), options)
            opened.enter_context(channel)
            join = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
            calls.append(join(_nothing(seconds)))
            threading.Thread(target=_listened, args=(calls[-1],), daemon=True).start()
        time.sleep(seconds / 2)
        return sum(not call.done() for call in calls)


def _listened(call: Iterator[bytes]) -> None:
    """Take what comes, since a call is over only when all of that is read."""
    with suppress(grpc.RpcError):
        for _ in call:
            pass


def _nothing(seconds: float) -> Iterator[bytes]:
    time.sleep(seconds)
    yield from ()


def joins(address: Address, files: KeyFiles, hello: Hello, count: int) -> int:
    """Join again and again, and go at once; returns how often the coordinator answered."""
    answered = 0
    for _ in range(count):
        with grpc.secure_channel(f"{address[0]}:{address[1]}", of_node(files), OPTIONS) as channel:
            join = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
            call = join(iter(list(frames(hello))), timeout=5)
            with suppress(grpc.RpcError, StopIteration):
                next(call)
                answered += 1
            call.cancel()
    return answered


def hello(name: str, library: str = LIBRARY, protocol: int = PROTOCOL) -> Hello:
    """What a node says first."""
    return Hello(protocol=protocol, library=library, wire=WIRE, name=name, incarnation="attack")


# --- HTTP/2 by hand


def rapid_reset(address: Address, files: KeyFiles, count: int) -> int:
    """Open streams and reset each at once; returns how many were sent before the other side had enough."""

    def pair(number: int) -> bytes:
        stream = 2 * number + 1
        return _frame(HEADERS, 4, stream, _request()) + _frame(RESET, 0, stream, struct.pack(">I", 8))

    return _sent(address, files, (pair(number) for number in range(count)))


def ping_flood(address: Address, files: KeyFiles, count: int) -> int:
    """Send pings without a pause; returns how many were sent before the other side had enough."""
    return _sent(address, files, (_frame(PING, 0, 0, bytes(8)) for _ in range(count)))


def _sent(address: Address, files: KeyFiles, pieces: Iterator[bytes]) -> int:
    """Send pieces over a connection of HTTP/2 until it ends."""
    sent = 0
    with suppress(OSError), _connected(address, files) as connection:
        connection.sendall(PREFACE + _frame(SETTINGS, 0, 0, b""))
        for piece in pieces:
            connection.sendall(piece)
            sent += 1
        connection.settimeout(1)
        while connection.recv(1 << 16):
            pass
    return sent


def _connected(address: Address, files: KeyFiles) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(files.authority))
    context.load_cert_chain(str(files.certificate), str(files.key))
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(socket.create_connection(address, timeout=5), server_hostname=address[0])


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def _request() -> bytes:
    """Headers of a call as literals without an index (RFC 7541, 6.2.2)."""
    headers = {
        ":method": "POST", ":scheme": "https", ":path": METHOD, ":authority": "x", "te": "trailers",
        "content-type": "application/grpc",
    }  # fmt: skip
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


# --- keys that an authority signed, for other times


def skewed(folder: Path, name: str, begins: datetime.timedelta, ends: datetime.timedelta) -> KeyFiles:
    """A key of the authority in ``folder`` whose certificate is valid from and to these times from now."""
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signing = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(signing, ec.EllipticCurvePrivateKey):
        raise SystemExit(f"{folder / 'ca.key'} is none that interfuse makes")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    place = folder / f"{name}-skewed"
    place.mkdir(exist_ok=True)
    (place / "node.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (place / "node.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return KeyFiles(key=place / "node.key", certificate=place / "node.crt", authority=folder / "ca.crt")


def files_of(keys: Path, name: str) -> KeyFiles:
    """A node's files in a folder of `interfuse keys`."""
    return KeyFiles.in_folder(keys / name, name)
