"""Keys and certificates of gRPC's channels, and those that are made for a trial."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from interfuse.engines.admission import NODE_NAME
from interfuse.engines.parties import KeyFiles, Vendor
from interfuse.errors import ConfigError

DAYS = 365
"""For which trial certificates are valid."""


def of_server(files: KeyFiles, begins: Callable[[], None]) -> grpc.ServerCredentials:
    """For a coordinator: nodes must show a certificate of the authority.

    Args:
        begins: Called whenever a handshake begins.
    """
    key, certificate, authority = files.read()
    configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], authority)
    # asked for other certificates at each handshake, it has none: these stay
    return grpc.dynamic_ssl_server_credentials(configuration, begins, require_client_authentication=True)


def of_node(files: KeyFiles) -> grpc.ChannelCredentials:
    """For a node: the coordinator must show one for its host's name."""
    key, certificate, authority = files.read()
    return grpc.ssl_channel_credentials(authority, key, certificate)


OF_TIME = (9, 10)
"""Faults of certificates, as OpenSSL numbers them, that a clock or a renewal may mend: not valid yet, or no longer."""


def names_shown(vendor: Vendor) -> list[str]:
    """The names in the certificate of who answers at a vendor's coordinator; none where nobody is reached directly."""
    try:
        with _shaken(vendor) as line:
            shown = x509.load_der_x509_certificate(line.getpeercert(binary_form=True) or b"")
            found = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    return [str(name.value)[:100] for name in found]


def why_strange(vendor: Vendor) -> str:
    """Why no key fits, where somebody answers at a vendor's coordinator and that is why nothing comes of it; empty
    where it is not, or a clock may be wrong, or nobody is reached directly."""
    who = f"who answers at {vendor.coordinator}"
    try:
        with _shaken(vendor) as line:
            line.settimeout(5.0)
            if not line.recv(1):  # a server of HTTP/2 speaks first, unless it does not like the certificate
                return f"{who} does not take this node's certificate: it is of another authority, or out of date"
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in OF_TIME:
            return ""
        words = "in the coordinator's place, or the file [keys] authority is of another federation"
        return f"{who} has no certificate of this node's authority ({error.verify_message}): somebody else is {words}"
    except (OSError, ValueError):
        return ""
    return ""


@contextmanager
def _shaken(vendor: Vendor) -> Iterator[ssl.SSLSocket]:
    """A connection to whoever answers at a vendor's coordinator with a certificate of its authority, for any name.

    Raises:
        OSError: there is none.
        ValueError: nobody is reached directly.
    """
    files = vendor.key_files()
    host, _, port = vendor.coordinator.rpartition(":")
    if files is None or vendor.proxy is not None:
        raise ValueError("there are no keys, or a proxy stands between")
    context = ssl.create_default_context(cafile=str(files.authority))
    context.check_hostname = False  # only to see what it says; it has to be one of the authority's
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host.strip("[]"), int(port)), 5.0) as link, context.wrap_socket(link) as line:
        yield line


def make_keys(folder: Path, nodes: Sequence[str], hosts: Sequence[str], services: Sequence[str] = ()) -> list[Path]:
    """An authority, a coordinator's key and a key for each node, for a trial. What exists already stays.

    ``folder/ca.key`` signs more nodes later, and belongs nowhere else; ``folder/coordinator`` goes to the coordinator,
    ``folder/NAME`` to the node or the service of that name.

    Args:
        hosts: Names and addresses under which nodes reach the coordinator and the services.
        services: Have a folder as the coordinator has, for nodes that ask them.

    Returns: the folders that were made.
    Raises:
        ConfigError: a name cannot be used, or a file cannot be written.
    """
    for name in (*nodes, *services):
        if not NODE_NAME.fullmatch(name) or name in ("coordinator", "ca"):
            raise ConfigError(f"{name!r} cannot be the name of a node: letters, digits, dots and hyphens, and not ca")
    if both := {*nodes} & {*services}:
        raise ConfigError(f"{min(both)!r} is the name of a node and of a service: name them apart")
    servers = ("coordinator", *services)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _authority(folder)
        made = []
        for name in (*servers, *nodes):
            place = folder / name
            if not (place / f"{name}.crt").exists():
                _issue(place, name, name, _purpose(hosts if name in servers else ()), authority)
                made.append(place)
            (place / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
        for server in servers:
            known = folder / server / "nodes"
            known.mkdir(exist_ok=True)
            (folder / server / "revoked").mkdir(exist_ok=True)
            for name in nodes:
                (known / f"{name}.crt").write_bytes((folder / name / f"{name}.crt").read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
    return made


_Authority = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def _authority(folder: Path) -> _Authority:
    if not (folder / "ca.key").exists():
        return _issue(folder, "ca", "interfuse trial authority", [x509.BasicConstraints(ca=True, path_length=0)], None)
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'ca.key'} is no elliptic curve key; `interfuse keys` goes on only with its own")
    return key, x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())


def _purpose(hosts: Sequence[str]) -> list[x509.ExtensionType]:
    """A certificate is good for a server with ``hosts`` or, without, for a node only."""
    if not hosts:
        return [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), names]


def _issue(
    folder: Path, file: str, name: str, extensions: Sequence[x509.ExtensionType], authority: _Authority | None
) -> _Authority:
    """Write a key and its certificate, signed by the authority; without one, by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority is None else authority[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    certificate = builder.sign(key if authority is None else authority[0], hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(exist_ok=True)
    with open(os.open(folder / f"{file}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
        written.write(secret)
    (folder / f"{file}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
