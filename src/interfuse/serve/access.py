"""Who may ask, and how often: API keys, certificates, and rates."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tomli_w
from annotated_types import Ge
from pydantic import AllowInfNan, BaseModel, ConfigDict, StringConstraints, ValidationError

from interfuse.errors import ConfigError
from interfuse.serve.faults import ServiceError
from interfuse.serve.limits import STALE
from interfuse.toml import read_toml
from interfuse.writing import write_whole

_PREFIX = "if_"
_BYTES = 32
"""Of a key, drawn at random: nobody guesses it, so that a plain digest of it can be kept."""
_LONGEST = 256
LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})
"""What a machine calls itself."""
SLOWEST = 1e-6
"""Requests a second, at least: less is nobody's rate."""


class ApiKey(BaseModel):
    """What is kept of an API key.

    Attributes:
        sha256: Of the key's text, in hexadecimal.
        rate: Requests a second, over a minute or so.
        burst: Requests at once, one at least; None: two seconds' worth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    rate: Annotated[float, Ge(SLOWEST), AllowInfNan(False)] = 50.0
    burst: Annotated[float, Ge(1), AllowInfNan(False)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: dict[str, ApiKey] = {}


def read_keys(path: Path) -> Mapping[str, ApiKey]:
    """The API keys of a file, by the names of who has them.

    Raises:
        ConfigError: it cannot be read; says where.
    """
    try:
        return _File.model_validate(read_toml(path)).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def add_key(path: Path, name: str, rate: float) -> str:
    """Make an API key for somebody, and write its digest to a file; the key itself is kept nowhere.

    Returns: the key.
    Raises:
        ConfigError: that name has one, nobody can have that rate, or the file cannot be read or written.
    """
    _check_rate(rate)
    known = dict(read_keys(path)) if path.exists() else {}
    if name in known:
        raise ConfigError(f"{path} has a key of {name!r} already: take it out there, or name another")
    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    known[name] = ApiKey(sha256=_digest(key), rate=rate)
    try:
        write_whole(path, tomli_w.dumps(_File(keys=known).model_dump(exclude_none=True)))
        path.chmod(0o600)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return key


@dataclass
class Bucket:
    """Tokens that come at a rate, up to a number; a request takes one."""

    rate: float
    most: float
    tokens: float = field(init=False)
    at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.tokens = self.most

    def take(self, now: float) -> float:
        """Take a token. Returns the seconds until there is one; 0 where there was."""
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0


class Access:
    """Decides about every request.

    Args:
        keys: A file of API keys, which is read anew when it changes; None: nobody needs one.
        certificates: Names the owner of a certificate in DER that may ask; raises ServiceError. None: nobody needs one.
        rate: Requests a second of each caller whom no API key gives another; None: as many as there are.
        hosts: Names and addresses that callers without a key may know the service by; None: any. A page from elsewhere
            whose name was made to lead to this machine has another one (DNS rebinding).

    Raises:
        ConfigError: the keys cannot be read, or nobody can have that rate.
    """

    def __init__(
        self,
        keys: Path | None = None,
        certificates: Callable[[bytes], str] | None = None,
        rate: float | None = None,
        hosts: frozenset[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._certificates, self._rate, self._clock = keys, certificates, rate, clock
        self._hosts = hosts
        if rate is not None:
            _check_rate(rate)
        self._stamp, self._seen = None if keys is None else _stamp(keys), clock()
        self._keys: Mapping[str, ApiKey] = {} if keys is None else read_keys(keys)
        self._buckets: dict[str, Bucket] = {}

    def refresh(self) -> None:
        """Read what was changed.

        Raises:
            ConfigError: it cannot be read; what was known before goes on for a while.
        """
        if self._file is None:
            return
        if (stamp := _stamp(self._file)) != self._stamp:
            self._keys, self._stamp = read_keys(self._file), stamp
            self._buckets.clear()
        self._seen = self._clock()

    def admit(self, authorization: str | None, certificate: bytes | None, host: str) -> str:
        """Who asks; it counts towards the caller's rate.

        Args:
            authorization: The header of this name.
            certificate: What the other side of the connection showed, DER.
            host: The header of this name: what the caller takes the service for.

        Raises:
            ServiceError: nobody whom we know, or too often; or whom we know cannot be read.
        """
        name, bucket = self._caller(authorization, certificate, host)
        if bucket is not None and (seconds := bucket.take(self._clock())) > 0:
            retry = int(seconds) + 1
            raise ServiceError("too_many_requests", f"{name} may ask {bucket.rate:g} times a second", retry=retry)
        return name

    def _caller(self, authorization: str | None, certificate: bytes | None, host: str) -> tuple[str, Bucket | None]:
        if self._file is not None:
            if self._clock() - self._seen > STALE:
                raise ServiceError("unknown_standing", "the service cannot read who may ask", retry=30)
            name = self._of_key(authorization)
            key = self._keys[name]
            return name, self._bucket(name, key.rate, key.burst or max(1.0, 2 * key.rate))
        name = "anybody"
        if self._certificates is not None:
            if certificate is None:
                raise ServiceError("unauthorised", "a certificate is needed")
            name = self._certificates(certificate)
        elif self._hosts is not None and _name_in(host) not in self._hosts:
            known = " or ".join(sorted(self._hosts))
            raise ServiceError("unauthorised", f"without keys this answers as {known} alone: give it keys for more")
        return name, None if self._rate is None else self._bucket(name, self._rate, max(1.0, 2 * self._rate))

    def _of_key(self, authorization: str | None) -> str:
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key or len(key) > _LONGEST:
            raise ServiceError("unauthorised", "an API key is needed: send the header Authorization: Bearer KEY")
        digest, found = _digest(key.strip()), None
        for name, known in self._keys.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, known.sha256):
                found = name
        if found is None:
            raise ServiceError("unauthorised", "no such API key is known here")
        return found

    def _bucket(self, name: str, rate: float, most: float) -> Bucket:
        return self._buckets.setdefault(name, Bucket(rate, most))


def _stamp(file: Path) -> tuple[int, int, int]:
    """What differs once a file is another."""
    try:
        found = file.stat()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; `interfuse api-key` makes one") from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _check_rate(rate: float) -> None:
    if not SLOWEST <= rate < math.inf:
        raise ConfigError(f"a rate of {rate:g}: requests a second are a number from {SLOWEST:g}")


def _name_in(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
