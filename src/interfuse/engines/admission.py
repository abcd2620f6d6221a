"""Who may join, by certificates.

A node is known by the name in its certificate and by the certificate's SHA-256. The coordinator's folder holds a file a
node, ``nodes/NAME.crt``; a certificate that lies in ``revoked/`` is refused, whatever signed it. Both are read anew for
every join and every call, so that a revocation works at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from interfuse.engines.parties import JoinError
from interfuse.errors import ConfigError
from interfuse.opening import content

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Admission:
    """Whom a coordinator lets in: the certificates in its folder, but those that were revoked."""

    folder: Path

    def check(self, name: str, pem: bytes) -> str:
        """The fingerprint of a certificate that may join under a name.

        Raises:
            JoinError: it may not, and why.
        """
        named = name_in(x509.load_pem_x509_certificate(pem))
        if named != name:
            raise JoinError("name", f"that of the certificate, {named!r}", repr(name))
        return self.known(pem)

    def known(self, pem: bytes) -> str:
        """The fingerprint of a certificate that may join under its own name.

        Raises:
            JoinError: it may not, and why.
        """
        certificate = x509.load_pem_x509_certificate(pem)
        shown, name = fingerprint(certificate), name_in(certificate)
        if shown in self.revoked():
            raise JoinError("key", "one that was not revoked", f"revoked key {shown[:16]} of {name}")
        if not NODE_NAME.fullmatch(name) or shown not in self._fingerprints("nodes", f"{name}.crt"):
            raise JoinError("key", f"a known key of {name}", f"unknown key {shown[:16]}")
        return shown

    def revoked(self) -> set[str]:
        """Fingerprints of the keys that were revoked."""
        return self._fingerprints("revoked")

    def _fingerprints(self, folder: str, pattern: str = "*.crt") -> set[str]:
        found = set()
        files = (path for path in (self.folder / folder).glob(pattern) if not path.name.startswith("."))
        for path in files:  # but for what a file browser or a copy under way leaves there
            try:
                found.add(fingerprint(x509.load_pem_x509_certificate(content(path))))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path} is no certificate: {error}") from error
        return found


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def name_in(certificate: x509.Certificate) -> str:
    """The common name of a certificate."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""
