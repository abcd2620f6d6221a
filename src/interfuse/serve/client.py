"""What asks services in Python: features of vendor A's base block, scores of vendor B's modular block."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlencode, urlsplit

from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from interfuse.artefacts import TensorForm
from interfuse.data.inputs import Inputs, named, rows_of, together
from interfuse.errors import ConfigError, InterfuseError
from interfuse.serve.application import BlockFacts, Listing
from interfuse.serve.bodies import SAFETENSORS, as_safetensors, read_safetensors
from interfuse.serve.faults import Fault, ServiceError
from interfuse.wire.body import shown

LARGEST = 1 << 28
"""Bytes of an answer that are read at most."""


class UnreachableError(InterfuseError):
    """A service does not answer, or with what no service answers."""


@dataclass(frozen=True, eq=False)
class Features:
    """What a base block made of samples.

    Attributes:
        contract: The key of the fusion contract that they are under.
        file: The safetensors file as it came, coded perhaps: it goes to a modular block as it is.
    """

    tensors: Inputs
    contract: str
    file: bytes


class ServiceClient:
    """One connection to one service. Not for several threads at once.

    Args:
        address: Such as ``https://blocks.example.org:8080``.
        key: An API key.
        tls: For ``https``: with a certificate of one's own where the service wants one, and with its authority.
        timeout: Seconds without a byte.
    """

    def __init__(
        self, address: str, key: str | None = None, tls: ssl.SSLContext | None = None, timeout: float = 30.0
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"{address!r} is no address of a service, such as http://127.0.0.1:8080")
        self.address, self._headers = address, {} if key is None else {"Authorization": f"Bearer {key}"}
        if parts.scheme == "http":
            self._line = http.client.HTTPConnection(parts.hostname, parts.port, timeout)
        else:
            self._line = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=tls)
        self._known: dict[str, BlockFacts] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; another question opens it again."""
        self._line.close()

    def blocks(self) -> Mapping[str, BlockFacts]:
        """What the service has, by ``NAME/VERSION``.

        Raises:
            ServiceError: it refuses to say.
            UnreachableError: it does not answer.
        """
        try:
            found = Listing.model_validate_json(self._ask("GET", "/v1/blocks"))
        except ValidationError as error:
            raise UnreachableError(f"{self.address} answers with what is no list of blocks") from error
        self._known = {block.block: block for block in found.blocks}
        return self._known

    def features(self, block: str, x: Inputs, codec: str = "none") -> Features:
        """What a base block makes of samples, as its facts describe them.

        Args:
            codec: How features travel, such as ``int8+zstd``.

        Raises:
            ServiceError: the service refuses; says why.
            UnreachableError: it does not answer.
        """
        fusion = self._facts(block).fusion
        if fusion is None:
            raise ConfigError(f"{block} of {self.address} makes no features")
        query = "" if codec == "none" else f"?{urlencode({'codec': codec})}"
        file = self._ask("POST", f"/v1/blocks/{block}{query}", as_safetensors(named(x), {}))
        contract, tensors = _read(self.address, file, fusion.features, rows_of(x))
        if contract != fusion.key:
            raise UnreachableError(f"{self.address} answers under another contract than {block} is listed with")
        return Features(tensors, contract, file)

    def scores(self, block: str, features: Features) -> Float[Tensor, "batch *out"]:
        """What a modular block answers to features.

        Raises:
            ServiceError: the service refuses, perhaps since the features are under another contract.
            UnreachableError: it does not answer.
        """
        file = self._ask("POST", f"/v1/blocks/{block}", features.file)
        _, tensors = _read(self.address, file, {}, 0)
        if not isinstance(tensors, Tensor):
            raise UnreachableError(f"{self.address} answers with {', '.join(tensors)}, where one tensor was expected")
        return tensors

    def _facts(self, block: str) -> BlockFacts:
        known = self._known if block in self._known else self.blocks()
        if block not in known:
            raise ConfigError(f"{self.address} has no block {block}, but {', '.join(known)}")
        return known[block]

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = self._headers | ({} if body is None else {"Content-Type": SAFETENSORS})
        used = self._line.sock is not None
        try:
            try:
                answer, content = self._exchanged(method, path, body, headers)
            except (ConnectionError, ssl.SSLEOFError):
                if not used:
                    raise
                # services end connections that are idle: that this one was ended says nothing of the service
                self._line.close()
                answer, content = self._exchanged(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self._line.close()
            raise UnreachableError(f"{self.address} does not answer: {shown(str(error))}") from error
        if len(content) > LARGEST:
            self._line.close()
            raise UnreachableError(f"{self.address} answers with more than {LARGEST} bytes")
        if answer.status == 200:
            return content
        try:
            fault = Fault.model_validate_json(content)
        except ValidationError:
            raise UnreachableError(f"{self.address} answers with {answer.status}, and is no service") from None
        retry = answer.headers.get("Retry-After", "")
        raise ServiceError(fault.code, fault.message, fault.field, retry=int(retry[:9]) if retry.isdecimal() else None)

    def _exchanged(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._line.request(method, path, body, headers)
        answer = self._line.getresponse()
        return answer, answer.read(LARGEST + 1)


def _read(address: str, file: bytes, forms: Mapping[str, TensorForm], rows: int) -> tuple[str, Inputs]:
    """Contract and tensors of an answer."""
    try:
        found = read_safetensors(file, forms, rows)
    except ServiceError as error:
        raise UnreachableError(f"{address} answers with what cannot be read: {error}") from error
    return found.contract or "", together(found.tensors)
