"""Texts that cross between parties: nothing in them moves a cursor, ends a line or hides what follows."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MaxLen
from pydantic import AfterValidator, Field

SENTENCE = 300
"""Characters of a sentence at most."""


def printable(text: str, most: int = SENTENCE) -> str:
    """A text of ours as it may be sent or shown, whatever went into it."""
    return "".join(one if one.isprintable() else "?" for one in text[:most])


def _printed(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a text has characters that cannot be printed")
    return text


Name = Annotated[str, MaxLen(200), AfterValidator(_printed)]
Sentence = Annotated[str, MaxLen(SENTENCE), AfterValidator(_printed)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, or of a payload BLAKE3, in hexadecimal."""
Mark = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
"""A digest that may be cut short; empty where there is nothing that it could be of."""
