"""Signatures of artefacts, by the keys that nodes have: who made one, and that nothing of it was changed."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from interfuse.artefacts.folder import SIGNATURE, SUMS
from interfuse.errors import ArtefactError, ConfigError
from interfuse.opening import content

if TYPE_CHECKING:
    from cryptography import x509

_ABOUT = b"interfuse artefact, SHA256SUMS:\n"
"""Stands before what is signed, so that a signature of anything else is none of this."""


class Signature(BaseModel):
    """``signature.json``: by the key of a certificate, of :data:`_ABOUT` and the text of ``SHA256SUMS``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: str
    signature: str


class Signer:
    """A private key and its certificate."""

    def __init__(self, key: bytes, certificate: bytes) -> None:
        """Take both as PEM.

        Raises:
            ConfigError: they cannot be read, or are not of one pair, or of a kind that signs nothing here.
        """
        _needs_cryptography()
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            private, made = load_pem_private_key(key, None), x509.load_pem_x509_certificate(certificate)
        except (UnsupportedAlgorithm, ValueError, TypeError) as error:
            raise ConfigError(f"key or certificate cannot be read: {error}") from error
        if private.public_key() != made.public_key():
            raise ConfigError("key and certificate are not of one pair")
        if not isinstance(private, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ConfigError("signatures are made by Ed25519, elliptic curves or RSA")
        self.certificate, self._private = certificate, private

    def sign(self, data: bytes) -> str:
        """A signature in base64."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            found = self._private.sign(data)
        elif isinstance(self._private, ec.EllipticCurvePrivateKey):
            found = self._private.sign(data, ec.ECDSA(hashes.SHA256()))
        else:
            found = self._private.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return base64.b64encode(found).decode()


def is_signed(certificate: bytes, signature: str, data: bytes) -> bool:
    """Whether a signature is that of data, by the key of a certificate (PEM). What cannot be read is none."""
    _needs_cryptography()
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    try:
        found = base64.b64decode(signature, validate=True)
        public = x509.load_pem_x509_certificate(certificate).public_key()
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(found, data)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(found, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(found, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def certified(certificate: bytes, authorities: Sequence[bytes]) -> str | None:
    """The name in a certificate that one of these authorities issued; None where none did.

    Args:
        certificate, authorities: PEM.

    Raises:
        ConfigError: one of them cannot be read.
    """
    _needs_cryptography()
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        made, *trusted = [x509.load_pem_x509_certificate(pem) for pem in (certificate, *authorities)]
        made.public_key()
    except (UnsupportedAlgorithm, ValueError) as error:
        raise ConfigError(f"a certificate cannot be read: {error}") from error
    return _name(made) if any(_issued(made, authority) for authority in trusted) else None


def sign(folder: Path, key: bytes, certificate: bytes) -> None:
    """Sign an artefact.

    Args:
        key, certificate: PEM.

    Raises:
        ConfigError: they cannot be read, or are of another kind, or the artefact cannot be written.
    """
    by = Signer(key, certificate)
    found = by.sign(_ABOUT + (folder / SUMS).read_bytes())
    said = Signature(certificate=certificate.decode(), signature=found)
    (folder / SIGNATURE).write_text(said.model_dump_json(indent=2) + "\n", encoding="utf-8")


def signer(folder: Path, authorities: Sequence[bytes]) -> str:
    """Who signed an artefact: the name in a certificate that one of these authorities issued.

    Args:
        folder: Of the artefact, whose digests :func:`.folder.load` has checked.
        authorities: Their certificates, PEM.

    Raises:
        ArtefactError: nobody did, the signature is of something else, or the certificate is of nobody who is trusted.
        ConfigError: an authority cannot be read.
    """
    _needs_cryptography()
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        trusted = [x509.load_pem_x509_certificate(pem) for pem in authorities]
    except ValueError as error:
        raise ConfigError(f"an authority's certificate cannot be read: {error}") from error
    try:
        said = Signature.model_validate_json(content(folder / SIGNATURE))
        certificate = x509.load_pem_x509_certificate(said.certificate.encode())
        sums = content(folder / SUMS)
    except FileNotFoundError:
        raise ArtefactError(f"{folder} is not signed") from None
    except (OSError, ValidationError, UnsupportedAlgorithm, ValueError) as error:
        raise ArtefactError(f"{folder / SIGNATURE} cannot be read: {str(error).splitlines()[0]}") from error
    if not any(_issued(certificate, authority) for authority in trusted):
        raise ArtefactError(f"{folder} is signed by somebody whom no authority named here has certified")
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ArtefactError(f"{folder} is signed with a certificate that is not valid now")
    if not is_signed(said.certificate.encode(), said.signature, _ABOUT + sums):
        raise ArtefactError(f"{folder} is signed, but not as it is now")
    return _name(certificate)


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _name(certificate: x509.Certificate) -> str:
    from cryptography.x509.oid import NameOID

    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _needs_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError("signatures need cryptography; in a checkout of interfuse: pip install '.[grpc]'")
