"""What makes a stream over Flower its two ends' alone: TLS within what Flower carries, from node to coordinator.

Flower's own TLS ends at the SuperLink, and whoever reaches that can begin a run. So the two ends speak TLS with each
other, with the certificates that they have over gRPC: the node is the client and asks for the name that its vendor's
file dials, the coordinator is the server and asks for a node's certificate. Flower carries records.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from interfuse.engines.parties import KeyFiles, Vendor
from interfuse.errors import ConfigError

_READ = 1 << 20
_MISNAMED = (62, 64)
"""OpenSSL's numbers for a certificate that is good, but for another host, or another address."""
_NO_SERVER = 26
"""That for one which is good, but a node's."""
_OF_TIME = (9, 10)
"""Those for one that is not valid yet, or no longer."""


class Channel(Protocol):
    """One end of a stream's bytes."""

    @property
    def ready(self) -> bool:
        """Whether the other end is known; until then it says nothing."""

    @property
    def credential(self) -> bytes:
        """The certificate of the other end, as PEM; nothing where none is asked for."""

    def take(self, piece: bytes) -> bytes:
        """What the other end has said, once a piece of it has come.

        Raises:
            OSError: it is not who it should be, or somebody has changed something.
        """

    def give(self, said: bytes) -> bytes:
        """What has to be sent to say something; with nothing, what the channel itself has to send."""


class Plain:
    """Bytes as they are."""

    ready = True
    credential = b""

    def take(self, piece: bytes) -> bytes:
        return piece

    def give(self, said: bytes) -> bytes:
        return said


class Tls:
    """TLS 1.3 between two certificates of one authority.

    Args:
        host: Whose certificate is asked for; None: this is the coordinator, which asks for a node's.
    """

    def __init__(self, context: ssl.SSLContext, host: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ends = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self.ready = False

    @property
    def credential(self) -> bytes:
        found = self._ends.getpeercert(binary_form=True) if self.ready else None
        return b"" if found is None else ssl.DER_cert_to_PEM_cert(found).encode()

    def take(self, piece: bytes) -> bytes:
        self._incoming.write(piece)
        said = bytearray()
        with suppress(ssl.SSLWantReadError):
            self._shake()
            while read := self._ends.read(_READ):
                said += read
        return bytes(said)

    def give(self, said: bytes) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self._shake()
        if said:
            self._ends.write(said)
        return self._outgoing.read()

    def _shake(self) -> None:
        if not self.ready:
            self._ends.do_handshake()
            self.ready = True


def context_of_node(files: KeyFiles) -> ssl.SSLContext:
    """For a node's end.

    Raises:
        ConfigError: a file cannot be read, or is no key or certificate.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def context_of_coordinator(keys: Path) -> ssl.SSLContext:
    """For the coordinator's end, with the folder of `interfuse keys`.

    Raises:
        ConfigError: as above.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, KeyFiles.in_folder(keys, "coordinator"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def of_node(vendor: Vendor, context: ssl.SSLContext | None) -> Channel:
    """A new stream's channel at a node."""
    return Plain() if context is None else Tls(context, _dialled(vendor))


def why_unfit(error: ssl.SSLCertVerificationError, vendor: Vendor) -> str:
    """Why who asks a node is not its coordinator, and what to do where it should be. The node goes on waiting: whoever
    reaches the SuperLink can ask, also the coordinator of another federation."""
    host = _dialled(vendor)
    if error.verify_code in _MISNAMED:
        return (
            f"who asks has a certificate for another name than {host}, the host of `coordinator` in the vendor's file: "
            f"name that one there, or have it made for {host} (`interfuse keys --hosts`)"
        )
    if error.verify_code == _NO_SERVER:
        return "who asks has a certificate of this node's authority, but not a coordinator's: another node's, it seems"
    if error.verify_code in _OF_TIME:
        return f"who asks has a certificate that is not valid now ({error.verify_message}): renew it, or set the clock"
    return (
        f"who asks has no certificate of this node's authority ({error.verify_message}): it is somebody else, or the "
        "file [keys] authority is of another federation"
    )


def _dialled(vendor: Vendor) -> str:
    """The host whose name the coordinator's certificate must have."""
    return vendor.coordinator.rpartition(":")[0].strip("[]")


def of_coordinator(context: ssl.SSLContext | None) -> Channel:
    """A new stream's channel at the coordinator."""
    return Plain() if context is None else Tls(context, None)


def _context(protocol: int, files: KeyFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
    except OSError as error:
        raise ConfigError(f"keys in {files.key.parent} cannot be used: {error}; `interfuse keys` makes some") from error
    return context
