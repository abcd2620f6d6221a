"""JSON that says whether it is as it was written: its last entry, ``digest``, is the SHA-256 of all bytes before it.

It notices damage and mistakes. Whoever changes such a file on purpose can write the digest anew: against that only a
key helps, which a folder that is read by its own owner has not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from interfuse.errors import RunError

_BEFORE, _END = b'\n, "digest": "', b'"\n}'
"""The line of the digest brings its own comma: taken away whole, it leaves JSON."""


def sealed(values: Mapping[str, Any]) -> str:
    """The text of a sealed file with these values, of which there is at least one."""
    text = json.dumps(values, indent=1).removesuffix("\n}")
    return f"{text}{_BEFORE.decode()}{hashlib.sha256(text.encode()).hexdigest()}{_END.decode()}"


def seal_of(data: bytes) -> str | None:
    """The digest of a sealed file that was checked; None where it has none, as an older version or a hand leaves it.

    Raises:
        RunError: the file was changed since.
    """
    head, before, tail = data.rpartition(_BEFORE)
    if not before:
        return None
    found = hashlib.sha256(head).hexdigest()
    if tail != found.encode() + _END:
        raise RunError("it was changed since it was written: its digest is another")
    return found
