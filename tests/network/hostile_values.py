"""Envelopes with one field otherwise: every field of every type, found in the envelope, with values of all kinds."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from interfuse.engines.parties.frames import Envelope

Path = tuple[str | int, ...]
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: dict[str, Any] = {
    "null": None, "true": True, "minus one": -1, "zero": 0, "one": 1, "two": 2, "2^31": 2**31, "2^53": 2**53,
    "2^63": 2**63, "10^400": 10**400, "a half": 0.5, "1e308": 1e308, "-1e308": -1e308, "nan": math.nan, "inf": math.inf,
    "empty": "", "zz": "zz", "hexadecimal": "0" * 64, "escape": "\x1b[2J\x1b]0;title\x07", "lines": "a\nb\r\nc",
    "turned": "\u202etxt.exe", "surrogate": "\ud800", "long": "x" * 100_000, "path": "../../../etc", "list": [],
    "mapping": {}, "zeros": [0, 0], "huge shape": [2**20, 2**20, 2**20], "many": [1] * 5000, "deep": DEEP,
    "other keys": {"../a": [1], "\x1b": [2**53]},
}  # fmt: skip


def frame(values: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A frame with any header and a payload of its own size."""
    header = json.dumps(values).encode()
    return struct.pack("<I", len(header)) + header + payload


def lies(envelope: Envelope, payload: bytes = b"") -> Iterator[tuple[str, bytes]]:
    """The envelope with each of its fields, at any depth, replaced by each value, left out, and with one more."""
    honest = envelope.model_dump(mode="json") | {"size": len(payload)}
    for path in places(honest):
        words = ".".join(map(str, path))
        for name, value in VALUES.items():
            yield f"{envelope.kind}.{words} = {name}", frame(replaced(honest, path, value), payload)
        yield f"{envelope.kind} without {words}", frame(left_out(honest, path), payload)
        if isinstance(at(honest, path), dict):
            yield f"{envelope.kind}.{words} with more", frame(replaced(honest, (*path, "more"), 1), payload)


def places(values: Any, path: Path = ()) -> Iterator[Path]:
    """Where values stand, groups and what is in them."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def replaced(values: Mapping[str, Any], path: Path, value: Any) -> Mapping[str, Any]:
    changed = copy.deepcopy(dict(values))
    at(changed, path[:-1])[path[-1]] = value
    return changed


def left_out(values: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    changed = copy.deepcopy(dict(values))
    del at(changed, path[:-1])[path[-1]]
    return changed
