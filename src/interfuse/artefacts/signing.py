"""Signatures of artefacts, by the keys that nodes have: who made one, and that nothing of it was changed."""

from __future__ import annotations

import base64
import binascii
import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from interfuse.artefacts.folder import SIGNATURE, SUMS
from interfuse.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from cryptography import x509

_ABOUT = b"interfuse artefact, SHA256SUMS:\n"
"""Stands before what is signed, so that a signature of anything else is none of this."""


class Signature(BaseModel):
    """``signature.json``: by the key of a certificate, of :data:`_ABOUT` and the text of ``SHA256SUMS``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: str
    signature: str


def sign(folder: Path, key: bytes, certificate: bytes) -> None:
    """Sign an artefact.

    Args:
        key, certificate: PEM.

    Raises:
        ConfigError: they cannot be read, or are of another kind, or the artefact cannot be written.
    """
    _needs_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private, made = load_pem_private_key(key, None), x509.load_pem_x509_certificate(certificate)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"key or certificate cannot be read: {error}") from error
    if private.public_key() != made.public_key():
        raise ConfigError("key and certificate are not of one pair")
    if isinstance(private, ed25519.Ed25519PrivateKey):
        found = private.sign(_ABOUT + (folder / SUMS).read_bytes())
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        found = private.sign(_ABOUT + (folder / SUMS).read_bytes(), ec.ECDSA(hashes.SHA256()))
    else:
        raise ConfigError("artefacts are signed by keys on elliptic curves, as `interfuse keys` makes them")
    said = Signature(certificate=certificate.decode(), signature=base64.b64encode(found).decode())
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
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        trusted = [x509.load_pem_x509_certificate(pem) for pem in authorities]
    except ValueError as error:
        raise ConfigError(f"an authority's certificate cannot be read: {error}") from error
    try:
        said = Signature.model_validate_json((folder / SIGNATURE).read_bytes())
        certificate = x509.load_pem_x509_certificate(said.certificate.encode())
        signature, sums = base64.b64decode(said.signature, validate=True), (folder / SUMS).read_bytes()
    except FileNotFoundError:
        raise ArtefactError(f"{folder} is not signed") from None
    except (OSError, ValidationError, ValueError, binascii.Error) as error:
        raise ArtefactError(f"{folder / SIGNATURE} cannot be read: {str(error).splitlines()[0]}") from error
    if not any(_issued(certificate, authority) for authority in trusted):
        raise ArtefactError(f"{folder} is signed by somebody whom no authority named here has certified")
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ArtefactError(f"{folder} is signed with a certificate that is not valid now")
    public = certificate.public_key()
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, _ABOUT + sums)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, _ABOUT + sums, ec.ECDSA(hashes.SHA256()))
        else:
            raise InvalidSignature
    except InvalidSignature:
        raise ArtefactError(f"{folder} is signed, but not as it is now") from None
    return _name(certificate)


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _name(certificate: x509.Certificate) -> str:
    from cryptography.x509.oid import NameOID

    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _needs_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError("signatures need cryptography; in a checkout of interfuse: pip install '.[grpc]'")
